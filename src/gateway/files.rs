//! The file descriptors of the process: a connection that would take the last ones is refused while it can still be told so.
//!
//! Without this, `accept` fails for want of a descriptor, again and again, and sessions that are open cannot dial either.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit, setrlimit};

/// How many descriptors connections may have, and how many they have.
#[derive(Debug)]
pub(crate) struct Files {
    /// For connections, without what is kept for everything else.
    limit: usize,
    held: AtomicUsize,
    refusals: AtomicUsize,
}

/// Descriptors that are kept for listeners, event loops, the admin port, plugins' own requests, files that are read again,
/// and refusals.
const RESERVE: usize = 128;

/// Connections that are told at once that there is no room; further ones are closed without a word.
const MOST_REFUSALS: usize = 32;

/// Descriptors of a connection that may need one upstream.
const PAIR: usize = 2;

impl Files {
    /// For the limit that the process has now.
    pub(crate) fn of_process() -> Files {
        let limit = getrlimit(Resource::Nofile).current;
        Files::new(limit.map_or(usize::MAX, |it| usize::try_from(it).unwrap_or(usize::MAX)))
    }

    fn new(limit: usize) -> Files {
        Files {
            limit: limit.saturating_sub(RESERVE),
            held: AtomicUsize::default(),
            refusals: AtomicUsize::default(),
        }
    }

    /// Sessions that there is room for: each has two connections.
    pub(crate) fn most_sessions(&self) -> usize {
        self.limit / PAIR
    }

    /// Counts a browser's connection; false when there would be no room for the one upstream.
    pub(crate) fn hold_with_room(&self) -> bool {
        one_more(&self.held, self.limit.saturating_sub(PAIR - 1))
    }

    /// Counts a connection upstream; false when there is no room.
    pub(crate) fn hold(&self) -> bool {
        one_more(&self.held, self.limit)
    }

    /// A connection has ended.
    pub(crate) fn release(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a connection that is refused politely, out of the reserve; false when there are as many as may be.
    pub(crate) fn refuse(&self) -> bool {
        one_more(&self.refusals, MOST_REFUSALS)
    }

    /// Such a connection has ended.
    pub(crate) fn refused(&self) {
        self.refusals.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one more, unless there are as many already.
pub(crate) fn one_more(count: &AtomicUsize, most: usize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1)).is_ok()
}

/// Lets the process open as many files as the system allows it: the first limit is made for programs that use `select`,
/// which this is not. Gives how many; `None`: any number.
pub(crate) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "The limit of open files could not be raised.");
            limit.current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_taken_only_with_room_for_its_upstream() {
        let files = Files::new(RESERVE + 5);
        assert_eq!(files.most_sessions(), 2);
        assert_eq!((0..9).filter(|_| files.hold_with_room()).count(), 4);
        assert!(files.hold(), "the last one is for an upstream");
        assert!(!files.hold());
        files.release();
        assert!(!files.hold_with_room(), "the last one still is");
        files.release();
        assert!(files.hold_with_room(), "what is given back can be had again");
    }

    #[test]
    fn refusals_are_bounded() {
        let files = Files::new(0);
        assert!(!files.hold() && !files.hold_with_room());
        assert_eq!((0..1000).filter(|_| files.refuse()).count(), MOST_REFUSALS);
        files.refused();
        assert!(files.refuse());
    }
}
