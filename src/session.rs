//! The life of a session as a state machine: what keeps it alive, and how it ends.
//!
//! **Invariant:** no I/O, no clock, no lock. Everything that happens comes in through [`Session::handle`] with the time
//! as an argument, and everything it wants comes out of [`Session::poll`].
//! **Drain rule:** after each `handle`, `poll` is called until it answers [`Action::Wait`].

mod frame;
mod keepalive;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub(crate) use frame::{Control, Opcode, Piece, Sender, Tracker, Violation};

use crate::config;
use keepalive::{Beat, Keepalive, Pong};

/// One of the two connections of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leg {
    /// To the browser.
    Browser,
    /// To the upstream.
    Upstream,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes came from a leg.
    Heard(Leg),
    /// A whole control frame came from a leg.
    Control(Leg, Control),
    /// A leg's connection ended, without more to read.
    Gone(Leg, Loss),
    /// A leg sent what is no WebSocket frame.
    Violated(Leg, Violation),
    /// The time that [`Action::Wait`] named has come.
    Tick,
    /// The gateway is about to end.
    Drain,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// FIN: closed, without a Close frame.
    Fin,
    /// RST.
    Reset,
    /// Nothing came for too long.
    Silence,
}

/// What the session wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a control frame to a leg, between two frames.
    Send(Leg, Control),
    /// The same, for a ping of our own.
    Ping(Leg, Control),
    /// A pong answered our ping; for the metrics.
    Measured(Leg, Duration),
    /// End both connections: flush and close each, or cut it as its peer's was cut.
    Finish(End),
    /// Nothing until this time, unless something happens.
    Wait(Instant),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Why, for the log and the metrics.
    pub(crate) reason: Reason,
    /// The code of the first Close frame; 0: none.
    pub(crate) code: u16,
    /// How the browser's connection is ended.
    pub(crate) browser: Ending,
    /// How the upstream's connection is ended.
    pub(crate) upstream: Ending,
}

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// What is due is sent, then FIN.
    Close,
    /// RST, at once.
    Reset,
}

/// Why a session ended; the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The browser sent Close.
    ClosedByBrowser,
    /// The upstream sent Close.
    ClosedByUpstream,
    /// The browser's connection ended without Close.
    BrowserLost,
    /// The upstream's connection ended without Close.
    UpstreamLost,
    /// Nothing came from the browser for too long.
    BrowserSilent,
    /// Nothing came from the upstream for too long.
    UpstreamSilent,
    /// The browser broke the protocol.
    BrowserViolation,
    /// The upstream broke the protocol.
    UpstreamViolation,
    /// The gateway restarts.
    Drained,
}

/// A session with both legs attached.
#[derive(Debug)]
pub(crate) struct Session {
    beats: [Keepalive; 2],
    /// A Close is on its way: who sent it, its code, and until when the answer is waited for.
    closing: Option<Closing>,
    ended: bool,
    actions: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug)]
struct Closing {
    by: Leg,
    code: u16,
    reason: Reason,
    until: Instant,
}

/// How long a Close frame waits for its answer. A peer that is there answers within a round trip; the rest is for
/// what stands in its queue before.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl Leg {
    pub(crate) const BOTH: [Leg; 2] = [Leg::Browser, Leg::Upstream];

    /// The `leg` label.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Leg::Browser => "browser",
            Leg::Upstream => "upstream",
        }
    }

    pub(crate) const fn other(self) -> Leg {
        match self {
            Leg::Browser => Leg::Upstream,
            Leg::Upstream => Leg::Browser,
        }
    }
}

impl Session {
    /// A session whose legs have both just shaken hands. `nonce` makes our pings recognisable.
    pub(crate) fn new(keepalive: config::Keepalive, nonce: u64, now: Instant) -> Self {
        let beats = Leg::BOTH.map(|leg| Keepalive::new(keepalive, nonce ^ leg as u64, now));
        Session { beats, closing: None, ended: false, actions: VecDeque::new() }
    }

    /// Takes note of what happened.
    pub(crate) fn handle(&mut self, now: Instant, event: Event) {
        if self.ended {
            return;
        }
        match event {
            Event::Heard(leg) => self.beats[leg as usize].heard(now),
            Event::Control(leg, control) => {
                self.beats[leg as usize].heard(now);
                self.control(leg, control, now);
            }
            Event::Gone(leg, loss) => self.gone(leg, loss),
            Event::Violated(leg, violation) => self.violated(leg, violation),
            Event::Tick => self.tick(now),
            Event::Drain => self.drain(),
        }
    }

    /// The next thing to do; called until it answers [`Action::Wait`] or [`Action::Finish`].
    pub(crate) fn poll(&mut self) -> Action {
        match self.actions.pop_front() {
            Some(action) => action,
            None => Action::Wait(self.deadline()),
        }
    }

    /// Whether what comes from a leg is still passed on. After its Close frame nothing is.
    pub(crate) fn accepts_data(&self, leg: Leg) -> bool {
        !self.ended && self.closing.is_none_or(|it| it.by != leg)
    }

    fn deadline(&self) -> Instant {
        let beats = self.beats[0].deadline().min(self.beats[1].deadline());
        self.closing.map_or(beats, |it| it.until)
    }

    fn control(&mut self, leg: Leg, control: Control, now: Instant) {
        match control.opcode {
            Opcode::Pong => match self.beats[leg as usize].pong(&control, now) {
                Pong::First(rtt) => self.actions.push_back(Action::Measured(leg, rtt)),
                Pong::Foreign if self.accepts_data(leg) => {
                    self.actions.push_back(Action::Send(leg.other(), control));
                }
                Pong::Repeated | Pong::Foreign => {}
            },
            Opcode::Ping if self.accepts_data(leg) => {
                self.actions.push_back(Action::Send(leg.other(), control))
            }
            Opcode::Ping => {}
            Opcode::Close => self.close(leg, control, now),
        }
    }

    /// A Close frame is passed on, and so is its answer; then both connections end.
    fn close(&mut self, leg: Leg, control: Control, now: Instant) {
        match self.closing {
            None => {
                self.actions.push_back(Action::Send(leg.other(), control));
                let reason = match leg {
                    Leg::Browser => Reason::ClosedByBrowser,
                    Leg::Upstream => Reason::ClosedByUpstream,
                };
                let until = now + CLOSE_TIMEOUT;
                self.closing = Some(Closing { by: leg, code: control.close_code(), reason, until });
            }
            Some(closing) if closing.by != leg => {
                self.actions.push_back(Action::Send(leg.other(), control));
                self.finish(closing.reason, closing.code, Ending::Close, Ending::Close);
            }
            Some(_) => {} // a second Close from the same side says nothing new
        }
    }

    /// An end without a Close frame is passed on as what it was: no Close is invented, a reset stays a reset.
    fn gone(&mut self, leg: Leg, loss: Loss) {
        let ending = match loss {
            Loss::Reset => Ending::Reset,
            Loss::Fin | Loss::Silence => Ending::Close,
        };
        if let Some(closing) = self.closing {
            // After the Close an end of the connection is the ordinary thing.
            return self.finish(closing.reason, closing.code, Ending::Close, Ending::Close);
        }
        let reason = match (leg, loss) {
            (Leg::Browser, Loss::Silence) => Reason::BrowserSilent,
            (Leg::Upstream, Loss::Silence) => Reason::UpstreamSilent,
            (Leg::Browser, _) => Reason::BrowserLost,
            (Leg::Upstream, _) => Reason::UpstreamLost,
        };
        match leg {
            Leg::Browser => self.finish(reason, 0, Ending::Reset, ending),
            Leg::Upstream => self.finish(reason, 0, ending, Ending::Reset),
        }
    }

    /// The culprit is told what it did; the other leg is told that the session is over.
    fn violated(&mut self, leg: Leg, violation: Violation) {
        self.actions.push_back(Action::Send(leg, Control::close(violation.code, violation.what)));
        let (reason, told) = match leg {
            Leg::Browser => {
                (Reason::BrowserViolation, Control::close(1001, "the other side broke the protocol"))
            }
            Leg::Upstream => {
                (Reason::UpstreamViolation, Control::close(1011, "the upstream broke the protocol"))
            }
        };
        self.actions.push_back(Action::Send(leg.other(), told));
        self.finish(reason, violation.code, Ending::Close, Ending::Close);
    }

    fn tick(&mut self, now: Instant) {
        if let Some(closing) = self.closing {
            if now >= closing.until {
                self.finish(closing.reason, closing.code, Ending::Close, Ending::Close);
            }
            return;
        }
        for leg in Leg::BOTH {
            match self.beats[leg as usize].beat(now) {
                Beat::Rest => {}
                Beat::Ping(ping) => self.actions.push_back(Action::Ping(leg, ping)),
                Beat::Lost => return self.gone(leg, Loss::Silence),
            }
        }
    }

    /// The browser is told to come back; the upstream sees a lost connection, not an end.
    fn drain(&mut self) {
        match self.closing {
            Some(closing) => self.finish(closing.reason, closing.code, Ending::Close, Ending::Close),
            None => {
                self.actions
                    .push_back(Action::Send(Leg::Browser, Control::close(1012, "the gateway restarts")));
                self.finish(Reason::Drained, 1012, Ending::Close, Ending::Close);
            }
        }
    }

    fn finish(&mut self, reason: Reason, code: u16, browser: Ending, upstream: Ending) {
        self.ended = true;
        self.actions.push_back(Action::Finish(End { reason, code, browser, upstream }));
    }
}

impl Reason {
    /// The `reason` label.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Reason::ClosedByBrowser => "closed_by_browser",
            Reason::ClosedByUpstream => "closed_by_upstream",
            Reason::BrowserLost => "browser_lost",
            Reason::UpstreamLost => "upstream_lost",
            Reason::BrowserSilent => "browser_silent",
            Reason::UpstreamSilent => "upstream_silent",
            Reason::BrowserViolation => "browser_violation",
            Reason::UpstreamViolation => "upstream_violation",
            Reason::Drained => "drained",
        }
    }
}
