//! Open-loop schedules: when each action is due, whatever became of those before it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clock::Clock;

/// `n` actions at an even rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) start: Instant,
    pub(super) per_second: f64,
    pub(super) n: u64,
}

impl Schedule {
    /// When an action is due.
    pub(super) fn due(&self, idx: u64) -> Instant {
        self.start + Duration::from_secs_f64(idx as f64 / self.per_second)
    }

    /// Begins each action when it is due, on the caller's thread, until all have begun or `stopped`. Gives how many have.
    ///
    /// An action that is due while another one is begun is begun later, and is told all the same when it was due.
    pub(super) fn pace(
        &self,
        clock: &Clock,
        stopped: &AtomicBool,
        mut begin: impl FnMut(u64, Instant),
    ) -> u64 {
        // By default the kernel may wake a thread 50 us late, to save power.
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).ok();
        for idx in 0..self.n {
            let due = self.due(idx);
            while let Some(wait) = due.checked_duration_since(clock.now()).filter(|it| !it.is_zero()) {
                if stopped.load(Ordering::Relaxed) {
                    return idx;
                }
                std::thread::sleep(wait.min(LONGEST));
            }
            if stopped.load(Ordering::Relaxed) {
                return idx;
            }
            begin(idx, due);
        }
        self.n
    }
}

/// Longest sleep without a look at whether all is to stop.
const LONGEST: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_due_at_an_even_rate() {
        let start = Clock::paused().now();
        let schedule = Schedule { start, per_second: 2000.0, n: 10 };
        assert_eq!(schedule.due(0), start);
        assert_eq!(schedule.due(1), start + Duration::from_micros(500));
        assert_eq!(schedule.due(20_000), start + Duration::from_secs(10));
    }

    #[test]
    fn what_is_begun_late_was_due_when_it_was() {
        let clock = Clock::paused();
        let schedule = Schedule { start: clock.now(), per_second: 1000.0, n: 500 };
        clock.advance(Duration::from_secs(1)); // all are due, and none has begun
        let mut begun = Vec::new();
        let n =
            schedule.pace(&clock, &AtomicBool::new(false), |idx, due| begun.push((idx, clock.now() - due)));
        assert_eq!((n, begun.len()), (500, 500));
        assert_eq!(begun[0], (0, Duration::from_secs(1)));
        assert_eq!(begun[499], (499, Duration::from_millis(501)));
        assert_eq!(schedule.pace(&clock, &AtomicBool::new(true), |_, _| panic!("it is stopped")), 0);
    }
}
