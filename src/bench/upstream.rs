//! The upstream behind the gateway under test: one that sends back what comes, or a streaming server's signalling.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::header::{CONTENT_TYPE, SEC_WEBSOCKET_PROTOCOL};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;

use crate::app::App;
use crate::bench::BenchError;
use crate::clock::Clock;
use crate::config::{Env, Role, Sources};

/// What an upstream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sends each message back.
    Echo,
    /// The signalling of the streaming server: it says `hello`, makes an offer, and pings.
    Signaling,
}

/// A running upstream; it ends when it is dropped.
pub(crate) struct Upstream {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    /// A streaming server stops when this is gone.
    _stop: oneshot::Sender<()>,
}

/// Asks the echo upstream which of its connections this is. A browser that has come back learns so whether its upstream
/// connection is still the one that it had.
pub(super) const WHICH: &str = "streamgate-bench: which";
/// Begins the answer; the number follows.
pub(super) const CONNECTION: &str = "streamgate-bench: connection ";

impl Upstream {
    /// Listens and serves.
    ///
    /// # Errors
    /// With what a user must know.
    pub(crate) async fn start(
        kind: Kind,
        listen: SocketAddr,
        sessions: usize,
        clock: &Clock,
    ) -> Result<Upstream, BenchError> {
        let (stop, stopped) = oneshot::channel();
        match kind {
            Kind::Echo => {
                let failed = |it: std::io::Error| {
                    BenchError::new(format!("the upstream cannot listen on {listen}: {it}"))
                };
                let listener = bind(listen).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                let listener = listener.tap_io(|it| drop(it.set_nodelay(true)));
                let router = Router::new().fallback(accept).with_state(Arc::new(AtomicU64::new(0)));
                let task = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
                Ok(Upstream { address, task, _stop: stop })
            }
            Kind::Signaling => {
                let file = format!(
                    "[streaming]\ncontrol = \"127.0.0.1:0\"\nsignaling = \"{listen}\"\nmedia_address = \"127.0.0.1\"\n\
                     max_sessions = {sessions}\nresume_timeout = \"24h\"\n"
                );
                let sources = Sources::new(Env::default()).with_file("bench", file);
                let config = sources.resolve(Role::Stream).map_err(|it| BenchError::new(it.to_string()))?;
                let app =
                    App::build(config, clock.clone()).await.map_err(|it| BenchError::new(it.to_string()))?;
                let address = app.addresses().signaling.expect("a streaming server has signalling");
                let task = tokio::spawn(app.run(async move { drop(stopped.await) }));
                Ok(Upstream { address, task, _stop: stop })
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

/// Any WebSocket is echoed; any other request is answered, so that plain HTTP can be measured too.
async fn accept(
    State(next): State<Arc<AtomicU64>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else { return ([(CONTENT_TYPE, "text/plain")], "ok\n").into_response() };
    let number = next.fetch_add(1, Ordering::Relaxed);
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let first = offered.split(',').map(str::trim).find(|it| !it.is_empty()).map(str::to_owned);
    let mut response = upgrade
        .protocols(first)
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
        .max_message_size(LARGEST)
        .max_frame_size(LARGEST)
        .on_upgrade(move |socket| echo(socket, number));
    let id = uuid::Uuid::new_v4().to_string();
    response
        .headers_mut()
        .insert("nvcf-reqid", HeaderValue::from_str(&id).expect("an id is a header's value"));
    response
}

async fn echo(mut socket: WebSocket, number: u64) {
    while let Some(Ok(message)) = socket.recv().await {
        let answer = match message {
            Message::Text(text) if text.as_str() == WHICH => Message::text(format!("{CONNECTION}{number}")),
            message @ (Message::Text(_) | Message::Binary(_)) => message,
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => continue, // answered by the library
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

/// Connections that wait to be accepted: a storm of browsers must not be lost here.
const BACKLOG: u32 = 8192;

/// Largest message. The messages of the bench are smaller.
const LARGEST: usize = 1 << 20;
