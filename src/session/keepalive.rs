//! What keeps an idle connection from being taken for dead, and finds out when it is.

use std::time::{Duration, Instant};

use crate::config;
use crate::session::{Control, Opcode};

/// The pings of one leg.
#[derive(Debug)]
pub(crate) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    heard: Instant,
    next_ping: Instant,
    /// The ping that has not been answered: when it was sent.
    asked: Option<Instant>,
    /// What the next answer is to say: a number that nobody else would choose, and how many were answered before.
    payload: u64,
}

/// The part of a payload that counts. Answers to all of the last 65,536 are known as ours.
const COUNT: u64 = 0xffff;

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing.
    Rest,
    /// A ping.
    Ping(Control),
    /// The peer is gone.
    Lost,
}

/// What a pong answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pong {
    /// Our ping, after this time.
    First(Duration),
    /// Our ping, once more.
    Repeated,
    /// Somebody else's ping.
    Foreign,
}

impl Keepalive {
    pub(crate) fn new(config: config::Keepalive, nonce: u64, now: Instant) -> Self {
        let config::Keepalive { interval, timeout } = config;
        Keepalive { interval, timeout, heard: now, next_ping: now + interval, asked: None, payload: nonce }
    }

    /// A new connection takes the leg's place. Pings of the old one are not answered on it.
    pub(crate) fn restart(&mut self, now: Instant) {
        (self.heard, self.next_ping, self.asked) = (now, now + self.interval, None);
    }

    /// Bytes came.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Between two pings.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// Since when nothing came.
    pub(crate) fn silent_since(&self) -> Instant {
        self.heard
    }

    /// The time of the next [`Keepalive::beat`].
    pub(crate) fn deadline(&self) -> Instant {
        self.lost_at().map_or(self.next_ping, |it| it.min(self.next_ping))
    }

    /// When the peer is given up: it has been silent for long, and has had time to answer a ping, which it has not if this
    /// process was stopped meanwhile.
    fn lost_at(&self) -> Option<Instant> {
        let patience = self.timeout.saturating_sub(self.interval);
        self.asked.map(|asked| (self.heard + self.timeout).max(asked + patience))
    }

    /// What is due at this time.
    pub(crate) fn beat(&mut self, now: Instant) -> Beat {
        if self.lost_at().is_some_and(|it| now >= it) {
            return Beat::Lost;
        }
        if now < self.next_ping {
            return Beat::Rest;
        }
        self.next_ping = now + self.interval;
        if self.asked.is_none() {
            self.payload = self.payload & !COUNT | self.payload.wrapping_add(1) & COUNT;
            self.asked = Some(now);
        }
        Beat::Ping(Control::new(Opcode::Ping, &self.payload.to_be_bytes()))
    }

    /// Whether a pong answers a ping of ours, and how long it took. A ping is repeated with the same payload, so only
    /// the first answer is measured; the others may come when the next ping is already under way.
    pub(crate) fn pong(&mut self, control: &Control, now: Instant) -> Pong {
        let Ok(answered) = <[u8; 8]>::try_from(control.payload()).map(u64::from_be_bytes) else {
            return Pong::Foreign;
        };
        if (answered ^ self.payload) & !COUNT != 0 {
            return Pong::Foreign;
        }
        self.asked
            .take_if(|_| answered == self.payload)
            .map_or(Pong::Repeated, |asked| Pong::First(now.saturating_duration_since(asked)))
    }
}
