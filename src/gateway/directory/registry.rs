//! What replicas tell each other about their sessions.

use std::sync::Arc;

use async_trait::async_trait;

use crate::config::Viewer;
use crate::gateway::directory::peer::Replica;
use crate::gateway::directory::{About, Entry, Handed, Offered, Peers, SessionId};
use crate::session::Stop;

/// Knows which replica has which session. None of its answers takes longer than a bound; what it cannot find out, it
/// says as if it were not so, and notes why.
#[async_trait]
pub(crate) trait Registry: Send + Sync {
    /// The session with this id in another replica that is alive.
    async fn locate(&self, id: SessionId) -> Option<Elsewhere>;

    /// Writes down that a session is here from now on. Whoever had it is asked to end it; with `viewer` set to refuse,
    /// nothing is written while a browser is attached to it there, and the answer is false.
    async fn take_over(&self, entry: &Arc<Entry>, viewer: Viewer) -> bool;

    /// A session of this replica is new, or its browser has come or gone.
    fn changed(&self, entry: &Arc<Entry>);

    /// A session of this replica has ended.
    fn ended(&self, entry: &Arc<Entry>);
}

/// A session in another replica.
pub(crate) struct Elsewhere {
    pub(crate) id: SessionId,
    pub(crate) known: Known,
    pub(super) replica: Replica,
    pub(super) peers: Arc<Peers>,
}

/// What other replicas know of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) about: About,
    /// Counts the browsers that have come back into it.
    pub(crate) generation: u32,
    /// Whether a browser is there.
    pub(crate) is_attached: bool,
}

/// The registry of a gateway that has no other beside it.
pub(crate) struct Alone;

#[async_trait]
impl Registry for Alone {
    async fn locate(&self, _: SessionId) -> Option<Elsewhere> {
        None
    }

    async fn take_over(&self, _: &Arc<Entry>, _: Viewer) -> bool {
        true
    }

    fn changed(&self, _: &Arc<Entry>) {}

    fn ended(&self, _: &Arc<Entry>) {}
}

impl Elsewhere {
    /// Hands a browser to the session.
    pub(crate) async fn hand_over(&self, offered: &Offered) -> Handed {
        self.peers.hand_over(&self.replica, self.id, offered).await
    }

    /// Asks the session to end, and waits until it has, for a bounded time. False when its replica knows of none.
    pub(crate) async fn make_way(&self, stop: Stop) -> bool {
        self.peers.release(&self.replica, self.id, stop).await
    }
}
