//! The local stand-in for NVCF: its functions API and its streaming front door.
//!
//! It keeps NVCF's own rules, the odd ones included, so that what works here works there; the comments name them by the
//! numbers of the conformance list in `docs/concepts/front-door.md`. It shares no type with the gateway or the streaming
//! server: they meet over sockets only.

mod faults;
mod functions;
mod health;
mod ingress;
mod problem;
mod stun;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::config::{self, Place, Problem};
use crate::secret::Secret;
use faults::Faults;
use functions::Functions;
use ingress::Sessions;

/// A front door whose ports are bound.
pub(crate) struct Server {
    listener: TcpListener,
    stun: UdpSocket,
    shared: Arc<Shared>,
}

/// What all connections have in common.
struct Shared {
    config: config::FrontDoor,
    functions: Functions,
    sessions: Sessions,
    faults: Faults,
    clock: Clock,
    /// What the workers are told to prove themselves with at the STUN server.
    stun: stun::Server,
}

impl Server {
    /// Binds the ports.
    pub(crate) async fn bind(config: config::FrontDoor, clock: &Clock) -> Result<Server, Problem> {
        let problem = |error: std::io::Error| {
            Problem::new(
                Place::Nowhere,
                format!("frontdoor.address = \"{}\"", config.address),
                format!("cannot listen: {error}"),
            )
        };
        let listener = TcpListener::bind(config.address).await.map_err(problem)?;
        let stun = UdpSocket::bind((config.address.ip(), 0)).await.map_err(problem)?;
        let stun_address = stun.local_addr().map_err(problem)?;
        let shared = Shared {
            functions: Functions::default(),
            sessions: Sessions::default(),
            faults: Faults::none(),
            clock: clock.clone(),
            stun: stun::Server { address: stun_address, username: random(), password: Secret::new(random()) },
            config,
        };
        Ok(Server { listener, stun, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    /// Serves until `stop`.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) {
        let Server { listener, stun, shared } = self;
        let stun = tokio::spawn(stun::run(stun, Arc::clone(&shared)));
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok((tcp, _)) => drop(connections.spawn(ingress::serve(Arc::clone(&shared), tcp))),
                    Err(error) => {
                        tracing::error!(%error, "The front door could not accept a connection.");
                        shared.clock.sleep(std::time::Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
        stun.abort();
        shared.functions.clear();
    }
}

fn random() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
