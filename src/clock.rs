//! The only source of time: the machine's, or one that stands still until a test advances it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;

pub use std::time::{Instant, SystemTime};

/// Reads the time and waits for it.
///
/// Cloning is cheap; all clones of a paused clock are advanced together.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// When it was made: what [`Clock::coarse`] counts from.
    System {
        start: Instant,
    },
    Paused {
        start: Instant,
        start_wall: SystemTime,
        elapsed: watch::Sender<Duration>,
    },
}

/// A deadline that can be moved; made by [`Clock::timer`].
#[derive(Debug)]
pub struct Timer {
    deadline: Instant,
    wait: Wait,
}

enum Wait {
    System(Pin<Box<tokio::time::Sleep>>),
    /// Boxed: only tests have it, and every session has a timer.
    Paused(Box<Paused>),
}

struct Paused {
    clock: Clock,
    changed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// How far apart coarse deadlines are: nothing against the seconds after which a peer is pinged or given up.
const GRAIN: Duration = Duration::from_millis(250);

impl Clock {
    /// The machine's clock.
    #[allow(clippy::disallowed_methods)] // the one place that may read it
    pub fn system() -> Self {
        Clock(Kind::System { start: Instant::now() })
    }

    /// A clock that stands still until [`Clock::advance`].
    pub fn paused() -> Self {
        #[allow(clippy::disallowed_methods)] // the one place that may read it
        let (start, start_wall) = (Instant::now(), SystemTime::now());
        Clock(Kind::Paused { start, start_wall, elapsed: watch::Sender::new(Duration::ZERO) })
    }

    /// Whether it stands still until [`Clock::advance`].
    pub fn is_paused(&self) -> bool {
        matches!(self.0, Kind::Paused { .. })
    }

    /// Monotonic time, for durations and deadlines.
    #[allow(clippy::disallowed_methods)] // the one place that may read it
    pub fn now(&self) -> Instant {
        match &self.0 {
            Kind::System { .. } => Instant::now(),
            Kind::Paused { start, elapsed, .. } => *start + *elapsed.borrow(),
        }
    }

    /// Calendar time, for what outlives the process or is read by people.
    #[allow(clippy::disallowed_methods)] // the one place that may read it
    pub fn wall(&self) -> SystemTime {
        match &self.0 {
            Kind::System { .. } => SystemTime::now(),
            Kind::Paused { start_wall, elapsed, .. } => *start_wall + *elapsed.borrow(),
        }
    }

    /// A deadline at or a little after this one, such that many fall together: a thread that wakes for one of them does the
    /// work of all. A paused clock's are exact.
    pub fn coarse(&self, deadline: Instant) -> Instant {
        let Kind::System { start } = &self.0 else { return deadline };
        let Some(since) = deadline.checked_duration_since(*start) else { return deadline };
        let over = since.as_nanos() % GRAIN.as_nanos();
        if over == 0 { deadline } else { deadline + (GRAIN - Duration::from_nanos(over as u64)) }
    }

    /// Seconds since the Unix epoch.
    pub fn unix(&self) -> u64 {
        self.wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |it| it.as_secs())
    }

    /// Moves a paused clock forward and wakes whoever waits for the time passed.
    ///
    /// # Panics
    /// On the system clock, which nobody can advance.
    pub fn advance(&self, by: Duration) {
        let Kind::Paused { elapsed, .. } = &self.0 else { panic!("only a paused clock can be advanced") };
        elapsed.send_modify(|it| *it += by);
    }

    /// Waits until `deadline`; returns at once when it has passed.
    pub async fn sleep_until(&self, deadline: Instant) {
        let mut timer = self.timer(deadline);
        std::future::poll_fn(|cx| timer.poll(cx)).await;
    }

    /// Waits for `duration` from now.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    /// Runs `future` for at most `duration`; `None` when the time is over first.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.sleep(duration) => None,
        }
    }

    /// A deadline that can be moved and polled.
    pub fn timer(&self, deadline: Instant) -> Timer {
        #[allow(clippy::disallowed_methods)] // the one place that may wait for it
        let wait = match &self.0 {
            Kind::System { .. } => Wait::System(Box::pin(tokio::time::sleep_until(deadline.into()))),
            Kind::Paused { .. } => {
                Wait::Paused(Box::new(Paused { clock: self.clone(), changed: self.changed() }))
            }
        };
        Timer { deadline, wait }
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let Kind::Paused { elapsed, .. } = &self.0 else {
            unreachable!("only a paused clock waits for a change")
        };
        let mut receiver = elapsed.subscribe();
        Box::pin(async move {
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl Timer {
    /// Moves the deadline. Cheap when it did not change.
    pub fn reset(&mut self, deadline: Instant) {
        if self.deadline != deadline {
            self.deadline = deadline;
            if let Wait::System(sleep) = &mut self.wait {
                sleep.as_mut().reset(deadline.into());
            }
        }
    }

    /// Ready once `until` has passed, for deadlines that come one after the other and are hardly ever reached: to move a
    /// timer for each of them costs more than one that comes too early now and then.
    pub fn poll_lazily(&mut self, cx: &mut Context<'_>, clock: &Clock, until: Instant) -> Poll<()> {
        if self.deadline > until {
            self.reset(until);
        }
        while self.poll(cx).is_ready() {
            if clock.now() >= until {
                return Poll::Ready(());
            }
            self.reset(until);
        }
        Poll::Pending
    }

    /// Ready once the deadline has passed, and from then on until it is moved.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.wait {
            Wait::System(sleep) => sleep.as_mut().poll(cx),
            Wait::Paused(paused) => loop {
                if paused.clock.now() >= self.deadline {
                    return Poll::Ready(());
                }
                std::task::ready!(paused.changed.as_mut().poll(cx));
                paused.changed = paused.clock.changed();
            },
        }
    }
}

impl std::fmt::Debug for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Wait::System(_) => "System",
            Wait::Paused(_) => "Paused",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_deadlines_are_few_and_never_early() {
        let clock = Clock::system();
        let now = clock.now();
        let all: Vec<Instant> = (0..1000).map(|it| now + Duration::from_millis(it)).collect();
        let mut coarse: Vec<Instant> = all.iter().map(|it| clock.coarse(*it)).collect();
        assert!(all.iter().zip(&coarse).all(|(exact, it)| it >= exact && *it < *exact + GRAIN));
        coarse.dedup();
        assert!((4..=5).contains(&coarse.len()), "{}", coarse.len());
        let paused = Clock::paused();
        assert_eq!(paused.coarse(now), now);
    }

    #[tokio::test]
    async fn a_paused_clock_wakes_its_sleepers_when_it_is_advanced() {
        let clock = Clock::paused();
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(3600)).await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(3599));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.expect("the sleeper does not panic");
    }
}
