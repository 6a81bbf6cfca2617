//! The moments of a request at which a plugin is asked.

use std::fmt;

/// A moment of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// The request head is there; nobody has been asked who sent it.
    OnRequest,
    /// Who is asking?
    Authenticate,
    /// May they?
    Authorize,
    /// The request that goes upstream is being made.
    UpstreamRequest,
    /// A response goes to the browser, be it the upstream's or the gateway's own.
    ResponseHeaders,
    /// A session is open; is it still right?
    SessionTick,
    /// All is over; for the record.
    Log,
}

/// A set of phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases(u16);

impl Phase {
    /// All phases, in the order in which they run.
    pub const ALL: [Phase; 7] = [
        Phase::OnRequest,
        Phase::Authenticate,
        Phase::Authorize,
        Phase::UpstreamRequest,
        Phase::ResponseHeaders,
        Phase::SessionTick,
        Phase::Log,
    ];

    /// The phase's name: the function of a plugin, the `phase` label of metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::OnRequest => "on_request",
            Phase::Authenticate => "authenticate",
            Phase::Authorize => "authorize",
            Phase::UpstreamRequest => "upstream_request",
            Phase::ResponseHeaders => "response_headers",
            Phase::SessionTick => "session_tick",
            Phase::Log => "log",
        }
    }

    /// The phase of that name.
    pub fn find(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Whether a plugin may reject the request here, or end the session.
    pub const fn may_reject(self) -> bool {
        !matches!(self, Phase::ResponseHeaders | Phase::Log)
    }

    /// Whether a plugin may answer the request here.
    pub const fn may_respond(self) -> bool {
        self.may_reject() && !matches!(self, Phase::SessionTick)
    }

    /// What the phase is for, for the reference page.
    pub const fn doc(self) -> &'static str {
        match self {
            Phase::OnRequest => {
                "The request head is there; nobody has been asked who sent it. CORS preflights are answered here."
            }
            Phase::Authenticate => "Who is asking? The plugin sets `principal` or rejects.",
            Phase::Authorize => "May they? Runs after all plugins have authenticated.",
            Phase::UpstreamRequest => {
                "The request that goes upstream is being made; what a browser may not say has been taken out already, and the gateway's own headers are set afterwards."
            }
            Phase::ResponseHeaders => {
                "A response goes to the browser, be it the upstream's, the 101 of a WebSocket, or the gateway's own error."
            }
            Phase::SessionTick => {
                "A session is open, since `sessions.tick` or longer. A rejection ends it: the browser gets a Close frame with the code of a refusal. The headers of its request are gone by then; what was set is there."
            }
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
