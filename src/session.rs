//! The life of a session as a state machine: what keeps it alive, and how it ends.
//!
//! **Invariant:** no I/O, no clock, no lock. Everything that happens comes in through [`Session::handle`] with the time
//! as an argument, and everything it wants comes out of [`Session::poll`].
//! **Drain rule:** after each `handle`, `poll` is called until it answers [`Action::Wait`].

mod backlog;
mod frame;
mod gather;
mod keepalive;
mod message;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub(crate) use backlog::{Backlog, Sent};
pub(crate) use frame::{Control, Opcode, Piece, Sender, Tracker, Violation};
pub(crate) use gather::Gather;
pub(crate) use message::{Assembler, TooLarge, encode as encode_message};

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
    /// Data came from either leg.
    Moved,
    /// A browser has come back.
    Attached,
    /// The browser that was just lost cannot come back: what was under way between it and the upstream is torn.
    Torn,
    /// More came for an absent browser than is kept.
    Overflowed,
    /// Somebody wants the session to end.
    Stop(Stop),
    /// A policy wants it to end, with this Close frame to the browser.
    Refused(Control),
    /// The time that [`Action::Wait`] named has come.
    Tick,
    /// The gateway is about to end, and waits for its sessions until this time.
    Drain(Instant),
}

/// Why a session is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The browser or an operator asked for it.
    Asked,
    /// The same browser reaches the session over another connection upstream.
    Replaced,
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
    /// Another browser takes its place, in a moment.
    Replaced,
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
    /// Ask the policies whether the session may go on.
    Ask,
    /// The browser is gone: let go of its connection, and keep what comes for it.
    Park(Loss),
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
    /// The browser did not come back in time.
    Expired,
    /// More came for an absent browser than is kept.
    Overflowed,
    /// It is as old as a session may become.
    TooOld,
    /// No message went either way for too long.
    Idle,
    /// The browser or an operator asked for its end.
    Terminated,
    /// A policy refused it from some time on.
    Refused,
    /// The same browser reached it over another connection upstream.
    Replaced,
}

/// The limits of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) keepalive: config::Keepalive,
    /// How long a lost browser may come back into it; `None`: not at all.
    pub(crate) window: Option<Duration>,
    /// How old it may become.
    pub(crate) max_age: Option<Duration>,
    /// How long no message may go either way.
    pub(crate) max_idle: Option<Duration>,
    /// How often policies are asked whether it may go on; `None`: none of them wants to be asked.
    pub(crate) tick: Option<Duration>,
}

/// A session from its 101 to its end.
#[derive(Debug)]
pub(crate) struct Session {
    beats: [Keepalive; 2],
    window: Option<Duration>,
    max_idle: Option<Duration>,
    tick: Option<Duration>,
    /// When policies are asked next.
    ask: Option<Instant>,
    /// When it is closed so that the process can end.
    drain_by: Option<Instant>,
    /// When it is too old.
    too_old: Option<Instant>,
    /// When the last message went.
    moved: Instant,
    /// The upstream's last ping, which the browser has not answered, and when it came.
    asked: Option<Box<(Instant, Control)>>,
    state: State,
    actions: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Both legs are open.
    Attached,
    /// The browser is away, and may come back until a time. How its connection ended.
    Parked {
        until: Instant,
        loss: Loss,
    },
    /// A Close is on its way: who sent it, its code, and until when the answer is waited for.
    Closing {
        by: Leg,
        code: u16,
        reason: Reason,
        until: Instant,
    },
    Ended,
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
    pub(crate) fn new(limits: Limits, nonce: u64, now: Instant) -> Self {
        let Limits { keepalive, window, max_age, max_idle, tick } = limits;
        Session {
            beats: Leg::BOTH.map(|leg| Keepalive::new(keepalive, nonce ^ leg as u64, now)),
            window,
            max_idle,
            tick,
            ask: tick.map(|it| now + it),
            drain_by: None,
            too_old: max_age.map(|it| now + it),
            moved: now,
            asked: None,
            state: State::Attached,
            actions: VecDeque::new(),
        }
    }

    /// Takes note of what happened.
    pub(crate) fn handle(&mut self, now: Instant, event: Event) {
        if matches!(self.state, State::Ended) {
            return;
        }
        match event {
            Event::Heard(leg) => self.beats[leg as usize].heard(now),
            Event::Control(leg, control) => {
                self.beats[leg as usize].heard(now);
                self.control(leg, control, now);
            }
            Event::Gone(leg, loss) => self.gone(leg, loss, now),
            Event::Violated(leg, violation) => self.violated(leg, violation),
            Event::Moved => self.moved = now,
            Event::Attached => self.attached(now),
            Event::Torn => {
                if let State::Parked { loss, .. } = self.state {
                    self.lost(Leg::Browser, loss);
                }
            }
            Event::Overflowed => self.overflowed(),
            Event::Stop(stop) => self.stop(stop),
            Event::Refused(close) => self.terminate(Reason::Refused, close, "the session may not go on"),
            Event::Tick => self.tick(now),
            Event::Drain(until) => {
                self.drain_by = Some(until);
                if self.is_parked() || now >= until {
                    self.drain();
                }
            }
        }
    }

    /// The next thing to do; called until it answers [`Action::Wait`] or [`Action::Finish`].
    pub(crate) fn poll(&mut self) -> Action {
        match self.actions.pop_front() {
            Some(action) => action,
            None => {
                self.actions = VecDeque::new(); // an idle session keeps no buffer
                Action::Wait(self.deadline())
            }
        }
    }

    /// Whether what comes from a leg is still passed on. After its Close frame nothing is.
    pub(crate) fn accepts_data(&self, leg: Leg) -> bool {
        match self.state {
            State::Attached | State::Parked { .. } => true,
            State::Closing { by, .. } => by != leg,
            State::Ended => false,
        }
    }

    /// Whether the browser is away and may come back.
    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked { .. })
    }

    /// Whether a browser may take the place of the present or the absent one.
    pub(crate) fn takes_browsers(&self) -> bool {
        self.window.is_some()
            && self.drain_by.is_none()
            && matches!(self.state, State::Attached | State::Parked { .. })
    }

    fn deadline(&self) -> Instant {
        let [browser, upstream] = [0, 1].map(|it: usize| self.beats[it].deadline());
        let beat = match self.state {
            State::Parked { until, .. } => upstream.min(until),
            State::Closing { until, .. } => return until,
            State::Attached | State::Ended => upstream.min(browser),
        };
        let idle = self.max_idle.map(|it| self.moved + it);
        [idle, self.too_old, self.drain_by, self.ask].into_iter().flatten().fold(beat, Instant::min)
    }

    fn control(&mut self, leg: Leg, control: Control, now: Instant) {
        match control.opcode {
            Opcode::Pong => match self.beats[leg as usize].pong(&control, now) {
                Pong::First(rtt) => self.actions.push_back(Action::Measured(leg, rtt)),
                Pong::Foreign if self.accepts_data(leg) => {
                    if leg == Leg::Browser {
                        self.asked.take_if(|it| it.1.payload() == control.payload());
                    }
                    self.actions.push_back(Action::Send(leg.other(), control));
                }
                Pong::Repeated | Pong::Foreign => {}
            },
            Opcode::Ping if self.is_parked() => {
                let pong = Control::new(Opcode::Pong, control.payload());
                self.actions.push_back(Action::Send(leg, pong));
            }
            Opcode::Ping if self.accepts_data(leg) => {
                if leg == Leg::Upstream && self.window.is_some() {
                    self.asked = Some(Box::new((now, control)));
                }
                self.actions.push_back(Action::Send(leg.other(), control));
            }
            Opcode::Ping => {}
            Opcode::Close => self.close(leg, control, now),
        }
    }

    /// A Close frame is passed on, and so is its answer; then both connections end.
    fn close(&mut self, leg: Leg, control: Control, now: Instant) {
        match self.state {
            State::Parked { .. } => {
                let answer = match control.close_code() {
                    1005 => Control::new(Opcode::Close, &[]),
                    code => Control::close(code, ""),
                };
                self.actions.push_back(Action::Send(leg, answer));
                self.finish(Reason::ClosedByUpstream, control.close_code(), Ending::Close, Ending::Close);
            }
            State::Closing { by, code, reason, .. } if by != leg => {
                self.actions.push_back(Action::Send(leg.other(), control));
                self.finish(reason, code, Ending::Close, Ending::Close);
            }
            State::Attached => {
                self.actions.push_back(Action::Send(leg.other(), control));
                let reason = match leg {
                    Leg::Browser => Reason::ClosedByBrowser,
                    Leg::Upstream => Reason::ClosedByUpstream,
                };
                let (code, until) = (control.close_code(), now + CLOSE_TIMEOUT);
                self.state = State::Closing { by: leg, code, reason, until };
            }
            State::Closing { .. } | State::Ended => {} // a second Close from the same side says nothing new
        }
    }

    /// A lost browser may come back. Any other end without a Close frame is passed on as what it was: no Close is
    /// invented, a reset stays a reset.
    fn gone(&mut self, leg: Leg, loss: Loss, now: Instant) {
        match (self.state, leg, self.window) {
            (State::Closing { code, reason, .. }, ..) => {
                // After the Close an end of the connection is the ordinary thing.
                self.finish(reason, code, Ending::Close, Ending::Close);
            }
            (State::Attached, Leg::Browser, Some(window)) if self.drain_by.is_none() => {
                self.state = State::Parked { until: now + window, loss };
                self.actions.push_back(Action::Park(loss));
                self.answer_for_browser();
            }
            _ => self.lost(leg, loss),
        }
    }

    /// The upstream's ping is answered in the place of a browser that does not: whether it comes back is not for the upstream
    /// to wait for.
    fn answer_for_browser(&mut self) {
        if let Some(asked) = self.asked.take() {
            let pong = Control::new(Opcode::Pong, asked.1.payload());
            self.actions.push_back(Action::Send(Leg::Upstream, pong));
        }
    }

    fn lost(&mut self, leg: Leg, loss: Loss) {
        let reason = match (leg, loss) {
            (Leg::Browser, Loss::Silence) => Reason::BrowserSilent,
            (Leg::Upstream, Loss::Silence) => Reason::UpstreamSilent,
            (Leg::Browser, _) => Reason::BrowserLost,
            (Leg::Upstream, _) => Reason::UpstreamLost,
        };
        match leg {
            Leg::Browser => self.finish(reason, 0, Ending::Reset, loss.passed_on()),
            Leg::Upstream => self.finish(reason, 0, loss.passed_on(), Ending::Reset),
        }
    }

    fn attached(&mut self, now: Instant) {
        self.beats[Leg::Browser as usize].restart(now);
        self.state = State::Attached;
    }

    /// The upstream is told that it sent too much for whoever is not there.
    fn overflowed(&mut self) {
        let close = Control::close(1009, "more than is kept for a browser that is away");
        self.actions.push_back(Action::Send(Leg::Upstream, close));
        self.finish(Reason::Overflowed, 0, Ending::Close, Ending::Close);
    }

    fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Asked => self.terminated(Reason::Terminated, "the session was ended"),
            Stop::Replaced => {
                self.send_close(Leg::Browser, Control::close(3005, "the session goes on elsewhere"));
                // The upstream sees a lost connection, not an end: the session goes on over another one.
                self.finish(Reason::Replaced, 3005, Ending::Close, Ending::Close);
            }
        }
    }

    /// Both sides are told that the session is over for good.
    fn terminated(&mut self, reason: Reason, what: &str) {
        self.terminate(reason, Control::close(3010, what), what);
    }

    fn terminate(&mut self, reason: Reason, close: Control, what: &str) {
        let code = close.close_code();
        self.send_close(Leg::Browser, close);
        self.send_close(Leg::Upstream, Control::close(1000, what));
        self.finish(reason, code, Ending::Close, Ending::Close);
    }

    /// Sends a Close frame to a leg that has not had one.
    fn send_close(&mut self, leg: Leg, close: Control) {
        if !matches!(self.state, State::Closing { by, .. } if by != leg) {
            self.actions.push_back(Action::Send(leg, close));
        }
    }

    /// The culprit is told what it did; the other leg is told that the session is over.
    fn violated(&mut self, leg: Leg, violation: Violation) {
        self.send_close(leg, Control::close(violation.code, violation.what));
        let (reason, told) = match leg {
            Leg::Browser => {
                (Reason::BrowserViolation, Control::close(1001, "the other side broke the protocol"))
            }
            Leg::Upstream => {
                (Reason::UpstreamViolation, Control::close(1011, "the upstream broke the protocol"))
            }
        };
        self.send_close(leg.other(), told);
        self.finish(reason, violation.code, Ending::Close, Ending::Close);
    }

    fn tick(&mut self, now: Instant) {
        let legs: &[Leg] = match self.state {
            State::Closing { code, reason, until, .. } => {
                if now >= until {
                    self.finish(reason, code, Ending::Close, Ending::Close);
                }
                return;
            }
            State::Parked { until, loss } if now >= until => {
                return self.finish(Reason::Expired, 0, Ending::Reset, loss.passed_on());
            }
            State::Parked { .. } => &[Leg::Upstream],
            State::Attached => &Leg::BOTH,
            State::Ended => return,
        };
        if self.drain_by.is_some_and(|it| now >= it) {
            return self.drain();
        }
        if self.too_old.is_some_and(|it| now >= it) {
            return self.terminated(Reason::TooOld, "the session is as old as it may become");
        }
        if self.max_idle.is_some_and(|it| now >= self.moved + it) {
            return self.terminated(Reason::Idle, "the session was idle for too long");
        }
        if self.ask.is_some_and(|it| now >= it) {
            self.ask = self.tick.map(|it| now + it);
            self.actions.push_back(Action::Ask);
        }
        let silent_since = self.beats[Leg::Browser as usize].silent_since();
        let patience = self.beats[Leg::Browser as usize].interval() / 2;
        if self.asked.as_ref().is_some_and(|it| silent_since <= it.0 && now >= it.0 + patience) {
            self.answer_for_browser();
        }
        for &leg in legs {
            match self.beats[leg as usize].beat(now) {
                Beat::Rest => {}
                Beat::Ping(ping) => self.actions.push_back(Action::Ping(leg, ping)),
                Beat::Lost => {
                    self.gone(leg, Loss::Silence, now);
                    if matches!(self.state, State::Ended) {
                        return;
                    }
                }
            }
        }
    }

    /// The browser is told to come back; the upstream sees a lost connection, not an end.
    fn drain(&mut self) {
        match self.state {
            State::Closing { .. } => {} // it ends by itself
            State::Parked { loss, .. } => self.finish(Reason::Drained, 0, Ending::Reset, loss.passed_on()),
            State::Attached | State::Ended => {
                self.actions.push_back(Action::Send(Leg::Browser, Control::restart()));
                self.finish(Reason::Drained, 1012, Ending::Close, Ending::Close);
            }
        }
    }

    fn finish(&mut self, reason: Reason, code: u16, browser: Ending, upstream: Ending) {
        self.state = State::Ended;
        self.actions.push_back(Action::Finish(End { reason, code, browser, upstream }));
    }
}

impl Loss {
    /// How the other leg's connection ends.
    const fn passed_on(self) -> Ending {
        match self {
            Loss::Reset => Ending::Reset,
            Loss::Fin | Loss::Silence | Loss::Replaced => Ending::Close,
        }
    }

    /// The `cause` label.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Loss::Fin => "closed",
            Loss::Reset => "reset",
            Loss::Silence => "silent",
            Loss::Replaced => "replaced",
        }
    }
}

impl Reason {
    /// All there are.
    pub(crate) const ALL: [Reason; 16] = [
        Reason::ClosedByBrowser,
        Reason::ClosedByUpstream,
        Reason::BrowserLost,
        Reason::UpstreamLost,
        Reason::BrowserSilent,
        Reason::UpstreamSilent,
        Reason::BrowserViolation,
        Reason::UpstreamViolation,
        Reason::Drained,
        Reason::Expired,
        Reason::Overflowed,
        Reason::TooOld,
        Reason::Idle,
        Reason::Terminated,
        Reason::Refused,
        Reason::Replaced,
    ];

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
            Reason::Expired => "expired",
            Reason::Overflowed => "overflowed",
            Reason::TooOld => "max_age",
            Reason::Idle => "max_idle",
            Reason::Terminated => "terminated",
            Reason::Refused => "refused",
            Reason::Replaced => "replaced",
        }
    }
}
