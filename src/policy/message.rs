//! Messages of a session, for the plugins that asked to see them.

use bytes::Bytes;

/// A whole message on its way through the gateway.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who sent it.
    pub from: Side,
    /// Whether it is text; else it is binary.
    pub is_text: bool,
    /// What it says. A plugin may put something else in its place.
    pub payload: Bytes,
    /// It is not passed on.
    pub is_dropped: bool,
}

/// A side of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The browser.
    Browser,
    /// The function behind the upstream.
    Function,
}

/// Which messages a plugin wants to see: for each side the largest size in bytes. A session that has a larger one ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those of the browser.
    pub browser: Option<usize>,
    /// Those of the function.
    pub function: Option<usize>,
}

impl Side {
    /// What plugins call it.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Browser => "browser",
            Side::Function => "function",
        }
    }
}

impl Wanted {
    /// The largest size of what this side sends, if it is wanted.
    pub const fn of(self, side: Side) -> Option<usize> {
        match side {
            Side::Browser => self.browser,
            Side::Function => self.function,
        }
    }
}
