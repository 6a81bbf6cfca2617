//! The moments of a request and of a session at which a plugin is asked.

use std::fmt;

/// A moment of a request or of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// A worker has begun; there is no request.
    Init,
    /// The request head is there; nobody has been asked who sent it.
    OnRequest,
    /// Who is asking?
    Authenticate,
    /// May they?
    Authorize,
    /// Which function shall serve it?
    Select,
    /// The request that goes upstream is being made.
    UpstreamRequest,
    /// A response goes to the browser, be it the upstream's or the gateway's own.
    ResponseHeaders,
    /// A session has begun.
    SessionOpen,
    /// A message goes through a session.
    SessionMessage,
    /// A session is open; is it still right?
    SessionTick,
    /// A session lost its browser.
    SessionPark,
    /// A session has its browser back.
    SessionResume,
    /// A session is over.
    SessionEnd,
    /// All is over; for the record.
    Log,
}

/// A set of phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases(u16);

impl Phase {
    /// All phases, in the order in which they run.
    pub const ALL: [Phase; 14] = [
        Phase::Init,
        Phase::OnRequest,
        Phase::Authenticate,
        Phase::Authorize,
        Phase::Select,
        Phase::UpstreamRequest,
        Phase::ResponseHeaders,
        Phase::SessionOpen,
        Phase::SessionMessage,
        Phase::SessionTick,
        Phase::SessionPark,
        Phase::SessionResume,
        Phase::SessionEnd,
        Phase::Log,
    ];

    /// The phase's name: the function of a plugin, the `phase` label of metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Init => "init",
            Phase::OnRequest => "on_request",
            Phase::Authenticate => "authenticate",
            Phase::Authorize => "authorize",
            Phase::Select => "select",
            Phase::UpstreamRequest => "upstream_request",
            Phase::ResponseHeaders => "response_headers",
            Phase::SessionOpen => "session_open",
            Phase::SessionMessage => "session_message",
            Phase::SessionTick => "session_tick",
            Phase::SessionPark => "session_park",
            Phase::SessionResume => "session_resume",
            Phase::SessionEnd => "session_end",
            Phase::Log => "log",
        }
    }

    /// The phase of that name.
    pub fn find(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Whether a plugin may reject the request here, or end the session.
    pub const fn may_reject(self) -> bool {
        self.may_respond() || matches!(self, Phase::SessionTick | Phase::SessionMessage)
    }

    /// Whether a plugin may answer the request here.
    pub const fn may_respond(self) -> bool {
        matches!(
            self,
            Phase::OnRequest
                | Phase::Authenticate
                | Phase::Authorize
                | Phase::Select
                | Phase::UpstreamRequest
        )
    }

    /// Whether a plugin may wait here, for a network or a timer.
    pub const fn may_wait(self) -> bool {
        !matches!(self, Phase::OnRequest | Phase::ResponseHeaders | Phase::SessionMessage | Phase::Log)
    }

    /// Whether the phase is about an open session rather than a request.
    pub const fn is_of_session(self) -> bool {
        matches!(
            self,
            Phase::SessionOpen
                | Phase::SessionMessage
                | Phase::SessionTick
                | Phase::SessionPark
                | Phase::SessionResume
                | Phase::SessionEnd
        )
    }

    /// Whether something waits for the answer. Where nothing does, the phase runs beside the session.
    pub const fn is_awaited(self) -> bool {
        !self.is_of_session() || matches!(self, Phase::SessionTick | Phase::SessionMessage)
    }

    /// What the phase is for, for the reference page.
    pub const fn doc(self) -> &'static str {
        match self {
            Phase::Init => {
                "A worker has begun with this configuration. Timers are started here; `conf` is the only argument."
            }
            Phase::OnRequest => {
                "The request head is there; nobody has been asked who sent it. CORS preflights are answered here."
            }
            Phase::Authenticate => "Who is asking? The plugin sets `principal` or rejects.",
            Phase::Authorize => "May they? Runs after all plugins have authenticated.",
            Phase::Select => "Which function shall serve it? The plugin sets `function_id`.",
            Phase::UpstreamRequest => {
                "The request that goes upstream is being made; what a browser may not say has been taken out already, and the gateway's own headers are set afterwards. A browser that comes back to a session whose upstream is still there makes none."
            }
            Phase::ResponseHeaders => {
                "A response goes to the browser, be it the upstream's, the 101 of a WebSocket, or the gateway's own error."
            }
            Phase::SessionOpen => {
                "A session has begun: both sides have their 101. It does not wait for the plugin."
            }
            Phase::SessionMessage => {
                "A message goes through a session, from a side and of a size that the plugin asks for in its schema (`messages`). It may be replaced or dropped; a rejection ends the session. Without a plugin that asks, no message is looked at."
            }
            Phase::SessionTick => {
                "A session is open, since `sessions.tick` or longer. A rejection ends it: the browser gets a Close frame with the code of a refusal."
            }
            Phase::SessionPark => {
                "A session has lost its browser and waits for it. It does not wait for the plugin."
            }
            Phase::SessionResume => {
                "A session has its browser back. Whether it may come back was asked in the phases of its request. It does not wait for the plugin."
            }
            Phase::SessionEnd => "A session is over.",
            Phase::Log => "All is over: the response was sent, or the session has ended.",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Phases {
    /// A set of the phases given.
    pub const fn of(phases: &[Phase]) -> Self {
        let mut bits = 0;
        let mut idx = 0;
        while idx < phases.len() {
            bits |= 1 << phases[idx] as u16;
            idx += 1;
        }
        Phases(bits)
    }

    /// Whether the set has the phase.
    pub const fn contains(self, phase: Phase) -> bool {
        self.0 & (1 << phase as u16) != 0
    }

    /// The phases of the set, in the order in which they run.
    pub fn iter(self) -> impl Iterator<Item = Phase> {
        Phase::ALL.into_iter().filter(move |it| self.contains(*it))
    }

    /// The names, for a message.
    pub fn names(self) -> String {
        self.iter().map(Phase::name).collect::<Vec<_>>().join(", ")
    }
}

impl FromIterator<Phase> for Phases {
    fn from_iter<I: IntoIterator<Item = Phase>>(iter: I) -> Self {
        Phases(iter.into_iter().fold(0, |bits, it| bits | 1 << it as u16))
    }
}
