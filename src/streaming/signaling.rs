//! Signalling: JSON over a WebSocket. The server offers, candidates trickle both ways.
//!
//! `docs/reference/signaling.md` has the messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::streaming::peer::{Candidate, Peer, PeerEvent};
use crate::streaming::{Shared, viewer};

/// The subprotocol: JSON messages of the first version.
const SUBPROTOCOL: &str = "streamgate.v1";

/// Largest message in bytes. An answer with many candidates has a tenth of it.
const LARGEST: usize = 64 << 10;

/// Messages that a browser may send in a second.
const RATE: u32 = 60;

/// Candidates that a browser may send in a session, and new offers that it may ask for.
const MOST_CANDIDATES: usize = 100;
const MOST_RESTARTS: u64 = 100;

/// How often the browser is asked whether it is there, and when it is given up.
const HEARTBEAT: Duration = Duration::from_secs(3);
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// Time from the offer until media can flow.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);

/// What a browser says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Said {
    Answer { seq: u64, sdp: String },
    Candidate { candidate: Option<Candidate> },
    Restart,
    Keyframe,
    Pong,
    Bye,
}

/// Why a session ended: the code of the Close frame, the code in `bye`, the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ClosedByBrowser,
    Lost,
    NoMediaPath,
    MediaLost,
    BadMessage,
    TooFast,
    Stopping,
    Failed,
}

impl Ending {
    /// The label, the code of the Close frame, and what the browser is told.
    const fn parts(self) -> (&'static str, u16, &'static str) {
        match self {
            Ending::ClosedByBrowser => ("closed", 1000, "The session was ended."),
            Ending::Lost => ("lost", 1000, "The connection was lost."),
            Ending::NoMediaPath => {
                ("no_media_path", 4001, "No media path could be found: UDP does not get through.")
            }
            Ending::MediaLost => ("media_lost", 4002, "The media path was lost."),
            Ending::BadMessage => ("bad_message", 1008, "A signalling message was not understood."),
            Ending::TooFast => ("too_fast", 1008, "Too many signalling messages."),
            Ending::Stopping => ("stopping", 1001, "The streaming server is stopping."),
            Ending::Failed => ("failed", 1011, "The streaming server failed."),
        }
    }
}

pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let path = shared.config.start_endpoint.clone();
    let router = Router::new().route(&path, get(upgrade)).with_state(shared);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "The signalling server stopped.");
    }
}

async fn upgrade(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let offered = headers.get("sec-websocket-protocol").and_then(|it| it.to_str().ok()).unwrap_or_default();
    if !offered.is_empty() && !offered.split(',').any(|it| it.trim() == SUBPROTOCOL) {
        let message = format!("this streaming server speaks the subprotocol {SUBPROTOCOL}\n");
        return (StatusCode::BAD_REQUEST, message).into_response();
    }
    let max = if shared.config.exit_after_session { 1 } else { shared.config.max_sessions };
    let claimed =
        shared.n_sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
    if claimed.is_err() || shared.is_over.load(Ordering::Relaxed) {
        if claimed.is_ok() {
            shared.n_sessions.fetch_sub(1, Ordering::Relaxed);
        }
        shared.metrics.streaming.refused("full");
        return (StatusCode::SERVICE_UNAVAILABLE, "no further session is served here\n").into_response();
    }
    shared.metrics.streaming.session("active", 1);
    let place = Place(Arc::clone(&shared));
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(4 << 10)
        .max_message_size(LARGEST)
        .max_frame_size(LARGEST)
        .on_upgrade(move |socket| async move {
            serve(&shared, socket).await;
            drop(place);
        })
}

/// A place among the sessions, given back when it is dropped: also when the upgrade does not come about.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.place_is_free();
    }
}

async fn serve(shared: &Arc<Shared>, mut socket: WebSocket) {
    let started = shared.clock.now();
    let id = uuid::Uuid::new_v4().simple().to_string();
    let (events, happened) = mpsc::channel(64);
    let ending = match shared.engine.open(events).await {
        Ok(peer) => {
            tracing::info!(session = %id, "A streaming session began.");
            let mut session = Session::new(shared, &id, Arc::clone(&peer), started);
            let ending = session.run(&mut socket, happened).await;
            peer.close().await;
            ending
        }
        Err(error) => {
            tracing::error!(%error, "A media path could not be made.");
            Ending::Failed
        }
    };
    shared.session_ended();
    let (label, code, reason) = ending.parts();
    let took = shared.clock.now() - started;
    shared.metrics.streaming.ended(label, took);
    tracing::info!(session = %id, reason = label, seconds = took.as_secs_f64(), "A streaming session ended.");
    if !matches!(ending, Ending::ClosedByBrowser | Ending::Lost) {
        let bye = json!({ "type": "bye", "code": label, "reason": reason });
        drop(socket.send(Frame::Text(bye.to_string().into())).await);
    }
    drop(socket.send(Frame::Close(Some(CloseFrame { code, reason: label.into() }))).await);
    // The browser's own Close, so that neither side is left with a connection that was cut.
    let answer = async { while let Some(Ok(_)) = socket.recv().await {} };
    shared.clock.timeout(Duration::from_secs(1), answer).await;
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    id: &'a str,
    peer: Arc<dyn Peer>,
    started: Instant,
    seq: u64,
    is_connected: bool,
    n_candidates: usize,
    heard: Instant,
    viewer: Option<tokio::task::JoinHandle<()>>,
    wanted: mpsc::Sender<()>,
    wanted_by: Option<mpsc::Receiver<()>>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(viewer) = &self.viewer {
            viewer.abort();
        }
    }
}

impl<'a> Session<'a> {
    fn new(shared: &'a Arc<Shared>, id: &'a str, peer: Arc<dyn Peer>, started: Instant) -> Self {
        let (wanted, wanted_by) = mpsc::channel(1);
        Session {
            shared,
            id,
            peer,
            started,
            seq: 0,
            is_connected: false,
            n_candidates: 0,
            heard: started,
            viewer: None,
            wanted,
            wanted_by: Some(wanted_by),
        }
    }

    async fn run(&mut self, socket: &mut WebSocket, mut happened: mpsc::Receiver<PeerEvent>) -> Ending {
        let clock = &self.shared.clock;
        let hello = json!({ "type": "hello", "v": 1, "session": self.id, "heartbeatMs": HEARTBEAT.as_millis() as u64 });
        if say(socket, &hello).await.is_err() {
            return Ending::Lost;
        }
        let mut mapped = self.shared.mux.mapped();
        if let Err(ending) = self.offer(socket, false).await {
            return ending;
        }
        let known = *mapped.borrow_and_update();
        if self.trickle(socket, known).await.is_err() {
            return Ending::Lost;
        }
        let mut stopping = self.shared.stopping.subscribe();
        let mut heartbeat = clock.timer(clock.now() + HEARTBEAT);
        let mut connect = clock.timer(clock.now() + CONNECT_WITHIN);
        let mut second = clock.now();
        let mut n_in_second = 0;
        loop {
            // In this order: what a browser says counts before what it is given up for, and no media path is the
            // better reason for an end that has two.
            tokio::select! {
                biased;
                message = socket.recv() => {
                    let now = clock.now();
                    if now - second >= Duration::from_secs(1) {
                        (second, n_in_second) = (now, 0);
                    }
                    n_in_second += 1;
                    if n_in_second > RATE {
                        return Ending::TooFast;
                    }
                    let text = match message {
                        Some(Ok(Frame::Text(text))) => {
                            self.heard = now; // a ping of the WebSocket may come from a gateway on the way
                            text
                        }
                        Some(Ok(Frame::Close(_))) => return Ending::ClosedByBrowser,
                        Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => continue,
                        Some(Ok(Frame::Binary(_))) => return Ending::BadMessage,
                        Some(Err(_)) | None => return Ending::Lost,
                    };
                    match serde_json::from_str(&text) {
                        Ok(said) => if let Err(ending) = self.hear(socket, said).await { return ending },
                        Err(error) => {
                            tracing::debug!(session = self.id, %error, "A signalling message was not understood.");
                            return Ending::BadMessage;
                        }
                    }
                }
                Some(event) = happened.recv() => if let Err(ending) = self.happen(socket, event).await { return ending },
                Ok(()) = mapped.changed() => {
                    let known = *mapped.borrow_and_update();
                    if known.is_some() && self.trickle(socket, known).await.is_err() {
                        return Ending::Lost;
                    }
                }
                () = std::future::poll_fn(|cx| connect.poll(cx)), if !self.is_connected => return Ending::NoMediaPath,
                () = std::future::poll_fn(|cx| heartbeat.poll(cx)) => {
                    let now = clock.now();
                    if now - self.heard >= DEAD_AFTER {
                        return Ending::Lost;
                    }
                    heartbeat.reset(now + HEARTBEAT);
                    if say(socket, &json!({ "type": "ping", "t": (now - self.started).as_millis() as u64 })).await.is_err() {
                        return Ending::Lost;
                    }
                }
                () = stopped(&mut stopping) => return Ending::Stopping,
            }
        }
    }

    async fn offer(&mut self, socket: &mut WebSocket, restart: bool) -> Result<(), Ending> {
        let sdp = self.peer.offer(restart).await.map_err(|error| {
            tracing::warn!(session = self.id, %error, "An offer could not be made.");
            Ending::Failed
        })?;
        self.seq += 1;
        say(socket, &json!({ "type": "offer", "seq": self.seq, "sdp": sdp })).await.map_err(|_| Ending::Lost)
    }

    /// Sends the candidate that the STUN server knows, if there is one, and the end of candidates.
    async fn trickle(
        &self,
        socket: &mut WebSocket,
        mapped: Option<std::net::SocketAddr>,
    ) -> Result<(), axum::Error> {
        if let Some(mapped) = mapped {
            let candidate = Candidate {
                candidate: self.shared.mux.mapped_candidate(mapped),
                sdp_mid: Some("0".into()),
                sdp_m_line_index: Some(0),
            };
            say(socket, &json!({ "type": "candidate", "candidate": candidate })).await?;
        }
        // With credentials and no answer from the STUN server yet, more may follow.
        if mapped.is_some() || self.shared.creds.borrow().is_none() {
            say(socket, &json!({ "type": "candidate", "candidate": null })).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, socket: &mut WebSocket, said: Said) -> Result<(), Ending> {
        let misunderstood = |error: crate::streaming::peer::PeerError| {
            tracing::debug!(session = self.id, %error, "A signalling message could not be used.");
            Ending::BadMessage
        };
        match said {
            Said::Answer { seq, sdp } if seq == self.seq => {
                self.peer.answer(&sdp).await.map_err(misunderstood)?;
                self.shared.metrics.streaming.setup("answer", self.shared.clock.now() - self.started);
            }
            Said::Answer { .. } => {} // to an offer that another has replaced
            Said::Candidate { candidate: Some(candidate) } if !candidate.candidate.is_empty() => {
                self.n_candidates += 1;
                if self.n_candidates > MOST_CANDIDATES {
                    return Err(Ending::TooFast);
                }
                self.peer.add_candidate(&candidate).await.map_err(misunderstood)?;
            }
            Said::Candidate { .. } | Said::Pong => {}
            Said::Restart if self.seq > MOST_RESTARTS => return Err(Ending::TooFast),
            Said::Restart => self.offer(socket, true).await?,
            Said::Keyframe => drop(self.wanted.try_send(())),
            Said::Bye => return Err(Ending::ClosedByBrowser),
        }
        Ok(())
    }

    async fn happen(&mut self, socket: &mut WebSocket, event: PeerEvent) -> Result<(), Ending> {
        match event {
            PeerEvent::Connected => {
                if !std::mem::replace(&mut self.is_connected, true) {
                    self.shared.metrics.streaming.setup("connected", self.shared.clock.now() - self.started);
                    tracing::info!(session = self.id, "Media flows.");
                }
                if let Some(wanted) = self.wanted_by.take() {
                    let (peer, source) = (Arc::clone(&self.peer), self.shared.source.clone());
                    let (metrics, clock) = (self.shared.metrics.clone(), self.shared.clock.clone());
                    self.viewer = Some(tokio::spawn(viewer::run(peer, source, wanted, metrics, clock)));
                }
            }
            // The browser's network may have changed: fresh checks find the new way while the old session lives on.
            PeerEvent::Disconnected => self.offer(socket, true).await?,
            PeerEvent::Failed => {
                return Err(if self.is_connected { Ending::MediaLost } else { Ending::NoMediaPath });
            }
            PeerEvent::KeyframeWanted => drop(self.wanted.try_send(())),
            PeerEvent::Input(message) => {
                if let Err(error) = self.peer.send_input(&message).await {
                    tracing::debug!(session = self.id, %error, "An echo could not be sent.");
                }
            }
        }
        Ok(())
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|it| *it).await); // a sender that is gone stops as well
}

async fn say(socket: &mut WebSocket, message: &Value) -> Result<(), axum::Error> {
    socket.send(Frame::Text(message.to_string().into())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_says_is_understood_or_refused() {
        let parse = |text: &str| serde_json::from_str::<Said>(text);
        assert!(matches!(parse(r#"{"type":"answer","seq":1,"sdp":"v=0"}"#), Ok(Said::Answer { seq: 1, .. })));
        let candidate = r#"{"type":"candidate","candidate":{"candidate":"candidate:1 1 udp 1 192.0.2.1 9 typ host","sdpMid":"0","sdpMLineIndex":0,"usernameFragment":"u"}}"#;
        assert!(
            matches!(parse(candidate), Ok(Said::Candidate { candidate: Some(it) }) if it.sdp_m_line_index == Some(0))
        );
        assert!(matches!(
            parse(r#"{"type":"candidate","candidate":null}"#),
            Ok(Said::Candidate { candidate: None })
        ));
        assert!(matches!(parse(r#"{"type":"pong","t":7}"#), Ok(Said::Pong)));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"type":"answer"}"#,
            r#"{"type":"answer","seq":"1","sdp":"v"}"#,
            r#"{"type":"drop tables"}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
