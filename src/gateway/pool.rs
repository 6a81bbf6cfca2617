//! Connections upstream that wait for their next request, where the configuration lets a request have one that served
//! another before.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::io::AsyncReadExt;

use crate::gateway::conn::Conn;

/// The connections of one worker, or of one browser's connection.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The one that served last is the last.
    idle: RefCell<Vec<Idle>>,
    most: usize,
}

#[derive(Debug)]
struct Idle {
    conn: Conn,
    since: Instant,
}

/// How long a connection waits: less than the 60 s after which servers and balancers drop theirs.
const PATIENCE: Duration = Duration::from_secs(55);

impl Pool {
    /// A pool for at most so many.
    pub(crate) fn new(most: usize) -> Pool {
        Pool { idle: RefCell::default(), most }
    }

    /// A connection that can be used, if there is one.
    pub(crate) fn take(&self, now: Instant) -> Option<Conn> {
        self.prune(now);
        loop {
            let Idle { mut conn, .. } = self.idle.borrow_mut().pop()?;
            if is_quiet(&mut conn) {
                return Some(conn);
            }
        }
    }

    /// Keeps a connection. The one that has waited longest makes room for it.
    pub(crate) fn put(&self, conn: Conn, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == self.most {
            idle.remove(0);
        }
        idle.push(Idle { conn, since: now });
    }

    /// Drops those that have waited too long.
    pub(crate) fn prune(&self, now: Instant) {
        self.idle.borrow_mut().retain(|it| now.saturating_duration_since(it.since) < PATIENCE);
    }
}

/// Whether nothing has come: neither its end nor bytes that nobody asked for.
fn is_quiet(conn: &mut Conn) -> bool {
    conn.read(&mut [0]).now_or_never().is_none()
}
