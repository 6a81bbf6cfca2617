//! What has happened to all browsers so far, counted by their tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::bench::histogram::Latencies;
use crate::bench::report::Errors;

/// All counters.
pub(super) struct Tally {
    /// Browsers that have a connection now: how many, and which.
    pub(super) open: AtomicUsize,
    /// Told when the last of them has gone.
    pub(super) all_gone: Notify,
    is_open: Vec<AtomicBool>,
    /// Messages that were sent and came back, pings of the gateway, cookies that it set.
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) pings: AtomicU64,
    pub(super) cookies: AtomicU64,
    /// Connections that ended although nobody wanted it.
    pub(super) lost: AtomicU64,
    pub(super) ramp: Actions,
    pub(super) idle: Actions,
    pub(super) echo: Actions,
    pub(super) ask: Actions,
    pub(super) loss: Actions,
    pub(super) storm: Actions,
    pub(super) resume: Actions,
    pub(super) late: AtomicU64,
    phase: AtomicU8,
}

/// Actions of one kind. Each ends once: well or not.
pub(super) struct Actions {
    pub(super) succeeded: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) latencies: Latencies,
    /// How late they were begun: the share of the latency that is our own.
    pub(super) lag: Latencies,
    errors: Mutex<BTreeMap<String, u64>>,
    /// How many there will be, once that is known.
    wanted: AtomicU64,
    changed: Notify,
    last: Mutex<Option<Instant>>,
}

/// What is measured now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Ramp,
    Idle,
    Echo,
    Ask,
    Storm,
    End,
}

/// Why an action failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// No TCP connection.
    Connect,
    Tls,
    Timeout,
    /// A status instead of 101.
    Http(u16),
    /// A Close frame with this code; 1005 for one without.
    Closed(u16),
    /// The connection ended without a Close frame.
    Reset,
    /// What came was not a WebSocket, or not what was sent.
    Protocol,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Ramp => "ramp",
            Phase::Idle => "idle",
            Phase::Echo => "echo",
            Phase::Ask => "ask",
            Phase::Storm => "storm",
            Phase::End => "end",
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failed::Connect => f.write_str("connect"),
            Failed::Tls => f.write_str("tls"),
            Failed::Timeout => f.write_str("timeout"),
            Failed::Http(status) => write!(f, "http_{status}"),
            Failed::Closed(code) => write!(f, "closed_{code}"),
            Failed::Reset => f.write_str("reset"),
            Failed::Protocol => f.write_str("protocol"),
        }
    }
}

impl Tally {
    pub(super) fn new(sessions: usize) -> Self {
        Tally {
            open: AtomicUsize::new(0),
            all_gone: Notify::new(),
            is_open: (0..sessions).map(|_| AtomicBool::new(false)).collect(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            pings: AtomicU64::new(0),
            cookies: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            ramp: Actions::new(),
            idle: Actions::new(),
            echo: Actions::new(),
            ask: Actions::new(),
            loss: Actions::new(),
            storm: Actions::new(),
            resume: Actions::new(),
            late: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Ramp as u8),
        }
    }

    pub(super) fn begin(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn phase(&self) -> Phase {
        let now = self.phase.load(Ordering::Relaxed);
        let all = [Phase::Ramp, Phase::Idle, Phase::Echo, Phase::Ask, Phase::Storm];
        all.into_iter().find(|it| *it as u8 == now).unwrap_or(Phase::End)
    }

    /// Browser `idx` has a connection, or has none any more.
    pub(super) fn set_open(&self, idx: usize, is_open: bool) {
        if self.is_open[idx].swap(is_open, Ordering::Relaxed) == is_open {
            return;
        }
        if is_open {
            self.open.fetch_add(1, Ordering::Relaxed);
        } else if self.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.all_gone.notify_one();
        }
    }

    /// The browsers that have a connection now.
    pub(super) fn those_open(&self) -> Vec<usize> {
        (0..self.is_open.len()).filter(|it| self.is_open[*it].load(Ordering::Relaxed)).collect()
    }

    /// A connection ended although nobody wanted it.
    pub(super) fn lose(&self, why: Failed) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let actions = match self.phase() {
            Phase::Ramp => &self.ramp,
            Phase::Idle => &self.idle,
            Phase::Echo => &self.echo,
            Phase::Ask | Phase::Storm | Phase::End => &self.storm,
        };
        actions.note(why, 1);
    }

    /// All that went wrong so far.
    pub(super) fn n_errors(&self) -> u64 {
        [&self.ramp, &self.idle, &self.echo, &self.storm].iter().map(|it| it.errors().total()).sum()
    }
}

impl Actions {
    fn new() -> Self {
        Actions {
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latencies: Latencies::new(),
            lag: Latencies::new(),
            errors: Mutex::default(),
            wanted: AtomicU64::new(u64::MAX),
            changed: Notify::new(),
            last: Mutex::new(None),
        }
    }

    /// One has ended well; `idx` is the browser's.
    pub(super) fn succeed(&self, idx: usize, latency: Duration, now: Instant) {
        self.latencies.record(idx, latency);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        self.succeeded.fetch_add(1, Ordering::SeqCst);
        self.one_ended();
    }

    /// One has failed.
    pub(super) fn fail(&self, why: Failed) {
        self.note(why, 1);
        self.give_up();
    }

    /// One has failed with what was noted before.
    pub(super) fn give_up(&self) {
        self.failed.fetch_add(1, Ordering::SeqCst);
        self.one_ended();
    }

    /// Something went wrong `n` times.
    pub(super) fn note(&self, why: Failed, n: u64) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = why.to_string();
        let kind = if errors.len() < KINDS || errors.contains_key(&kind) { kind } else { "other".into() };
        *errors.entry(kind).or_default() += n;
    }

    /// How many have ended.
    pub(super) fn n_ended(&self) -> u64 {
        self.succeeded.load(Ordering::SeqCst) + self.failed.load(Ordering::SeqCst)
    }

    /// When the last one succeeded.
    pub(super) fn last(&self) -> Option<Instant> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn errors(&self) -> Errors {
        Errors(self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Waits until so many have ended.
    pub(super) async fn ended(&self, wanted: u64) {
        self.wanted.store(wanted, Ordering::SeqCst);
        loop {
            let changed = self.changed.notified();
            if self.n_ended() >= wanted {
                return;
            }
            changed.await;
        }
    }

    fn one_ended(&self) {
        if self.n_ended() >= self.wanted.load(Ordering::SeqCst) {
            self.changed.notify_one();
        }
    }
}

/// Most kinds of errors that are told apart: a peer that makes up codes fills no memory.
const KINDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_makes_up_codes_fills_no_memory() {
        let actions = Actions::new();
        for code in 1000..2000 {
            actions.note(Failed::Closed(code), 1);
        }
        let errors = actions.errors();
        assert_eq!((errors.0.len(), errors.total()), (KINDS + 1, 1000));
        assert_eq!(errors.0.get("other"), Some(&(1000 - KINDS as u64)));
    }

    #[test]
    fn a_loss_belongs_to_the_phase_in_which_it_happens() {
        let tally = Tally::new(1);
        tally.set_open(0, true);
        tally.set_open(0, true);
        assert_eq!((tally.open.load(Ordering::Relaxed), tally.those_open()), (1, vec![0]));
        for (phase, name) in
            [(Phase::Ramp, "ramp"), (Phase::Idle, "idle"), (Phase::Echo, "echo"), (Phase::Storm, "storm")]
        {
            tally.begin(phase);
            assert_eq!(tally.phase().name(), name);
            tally.lose(Failed::Reset);
        }
        let all = [&tally.ramp, &tally.idle, &tally.echo, &tally.storm].map(|it| it.errors().total());
        assert_eq!((all, tally.n_errors()), ([1; 4], 4));
    }
}
