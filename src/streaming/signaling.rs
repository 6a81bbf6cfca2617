//! Signalling: JSON over a WebSocket. The server offers, candidates trickle both ways.
//!
//! `docs/reference/signaling.md` has the messages.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::sync::{Notify, mpsc, watch};

use crate::clock::Clock;
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

/// How often the browser is asked whether it is there, and when it counts as away.
const HEARTBEAT: Duration = Duration::from_secs(3);
const AWAY_AFTER: Duration = Duration::from_secs(10);

/// The name of a session at NVCF, by which a browser's next connection is told from another browser's.
const NAME: &str = "nvcf-reqid";
const LONGEST_NAME: usize = 128;

/// Time from the offer until media can flow.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);

/// What a browser says with its Close frame when a page is loaded again, left, or closed (RFC 6455 section 7.4.1): it
/// does not say which of them, and may come back.
const GOING_AWAY: u16 = 1001;

/// How long a browser may leave unread what is said to it, once nothing more fits on the way.
const SAY_WITHIN: Duration = Duration::from_secs(5);

/// How long a connection may take for its end.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// What a browser says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Said {
    Answer { seq: u64, sdp: String },
    Candidate { candidate: Option<Candidate> },
    Restart,
    Anew,
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
    Ended,
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
            Ending::Ended => ("ended", 3010, "The session was ended from outside."),
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
    let name = headers.get(NAME).and_then(|it| it.to_str().ok()).filter(|it| it.len() <= LONGEST_NAME);
    let upgrade = upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(4 << 10)
        .max_message_size(LARGEST)
        .max_frame_size(LARGEST);
    if let Some(session) = name.and_then(|it| shared.named.find(it)) {
        return upgrade.on_upgrade(move |socket| async move {
            drop(session.sockets.send(socket).await); // a session that has just ended drops it, and the browser comes again
        });
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
    let (sender, sockets) = mpsc::channel(1);
    let ended = Arc::new(Notify::new());
    let handle = Handle { sockets: sender, ended: Arc::clone(&ended) };
    let named = name.map(|it| shared.named.list(it, handle));
    upgrade.on_upgrade(move |socket| async move {
        serve(&shared, socket, Mail { sockets, ended, has_name: named.is_some() }).await;
        drop((named, place));
    })
}

/// The sessions that NVCF has named, so that another connection of the same one finds it.
#[derive(Clone, Default)]
pub(super) struct Named(Arc<Mutex<HashMap<String, Handle>>>);

/// How a session is reached from outside.
#[derive(Clone)]
pub(super) struct Handle {
    sockets: mpsc::Sender<WebSocket>,
    ended: Arc<Notify>,
}

impl Handle {
    /// Asks the session to end.
    pub(super) fn end(&self) {
        self.ended.notify_one();
    }
}

/// What comes to a session from outside.
struct Mail {
    sockets: mpsc::Receiver<WebSocket>,
    ended: Arc<Notify>,
    /// Whether another connection could be told to be this session's.
    has_name: bool,
}

/// A name that is listed as long as this lives.
struct Listed(Named, String);

impl Named {
    pub(super) fn find(&self, name: &str) -> Option<Handle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn list(&self, name: &str, handle: Handle) -> Listed {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), handle);
        Listed(self.clone(), name.to_owned())
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// A place among the sessions, given back when it is dropped: also when the upgrade does not come about.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.place_is_free();
    }
}

async fn serve(shared: &Arc<Shared>, socket: WebSocket, mail: Mail) {
    let started = shared.clock.now();
    let id = uuid::Uuid::new_v4().simple().to_string();
    let mut wire = Wire { socket: Some(socket), has_broken: false, clock: shared.clock.clone() };
    let (events, happened) = mpsc::channel(64);
    let ending = match shared.engine.open(events).await {
        Ok(peer) => {
            tracing::info!(session = %id, "A streaming session began.");
            let mut session = Session::new(shared, &id, peer, happened, started);
            session.can_detach = mail.has_name && !shared.config.resume_timeout.is_zero();
            let ending = session.run(&mut wire, mail).await;
            session.peer.close().await;
            session.set_detached(false);
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
        wire.say(&json!({ "type": "bye", "code": label, "reason": reason })).await;
    }
    wire.close(code, label).await;
}

/// The signalling connection of a session. It may break and be replaced; what is said meanwhile is lost.
struct Wire {
    socket: Option<WebSocket>,
    /// It was given up, which has not been noticed yet.
    has_broken: bool,
    clock: Clock,
}

impl Wire {
    async fn say(&mut self, message: &Value) {
        let Some(socket) = &mut self.socket else { return };
        let sent = socket.send(Frame::Text(message.to_string().into()));
        // A broken one is found by hearing; one that is not read would hold up the session and its end.
        if self.clock.timeout(SAY_WITHIN, sent).await.is_none() {
            (self.socket, self.has_broken) = (None, true);
        }
    }

    /// What comes next; nothing while the connection is gone. `None`: it has just broken.
    async fn hear(&mut self) -> Option<Result<Frame, Violation>> {
        if std::mem::take(&mut self.has_broken) {
            return None;
        }
        let Some(socket) = &mut self.socket else { return std::future::pending().await };
        match socket.recv().await {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) if is_violation(&error) => Some(Err(Violation)),
            Some(Err(_)) | None => {
                self.socket = None;
                None
            }
        }
    }

    async fn close(&mut self, code: u16, reason: &str) {
        let Some(socket) = &mut self.socket else { return };
        say_close(socket, code, reason, &self.clock).await;
        finish(socket, &self.clock).await;
    }

    /// Goes on over another connection; the one before is closed.
    async fn replace(&mut self, socket: WebSocket) {
        self.has_broken = false;
        if let Some(mut old) = self.socket.replace(socket) {
            say_close(&mut old, 3005, "another connection has taken over", &self.clock).await;
        }
    }

    /// Lets go of a connection that the browser has closed; the session lives on.
    fn let_go(&mut self) {
        let Some(mut socket) = self.socket.take() else { return };
        let clock = self.clock.clone();
        tokio::spawn(async move { finish(&mut socket, &clock).await });
    }
}

/// What came is no WebSocket, or larger than it may be.
struct Violation;

/// Whether an error is the browser's doing, and not the network's.
fn is_violation(error: &axum::Error) -> bool {
    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::error::ProtocolError;
    match std::error::Error::source(error).and_then(|it| it.downcast_ref()) {
        Some(Error::Protocol(it)) => *it != ProtocolError::ResetWithoutClosingHandshake,
        Some(Error::Capacity(_) | Error::Utf8(_)) => true,
        _ => false,
    }
}

async fn say_close(socket: &mut WebSocket, code: u16, reason: &str, clock: &Clock) {
    let close = Frame::Close(Some(CloseFrame { code, reason: reason.into() }));
    drop(clock.timeout(CLOSE_WITHIN, socket.send(close)).await); // one that is not read is cut
}

/// Waits for the other's Close frame, or sends the answer to it, so that neither side is left with a connection that was
/// cut.
async fn finish(socket: &mut WebSocket, clock: &Clock) {
    let rest = async { while let Some(Ok(_)) = socket.recv().await {} };
    clock.timeout(CLOSE_WITHIN, rest).await;
}

/// What a session has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Setup {
    Answer,
    Connected,
}

impl Setup {
    const fn name(self) -> &'static str {
        match self {
            Setup::Answer => "answer",
            Setup::Connected => "connected",
        }
    }
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    id: &'a str,
    peer: Arc<dyn Peer>,
    happened: mpsc::Receiver<PeerEvent>,
    started: Instant,
    seq: u64,
    /// How far it has come.
    stage: Option<Setup>,
    is_connected: bool,
    /// Until when media must flow, when it does not.
    connect_by: Instant,
    /// Whether another connection could be told to be this session's.
    can_detach: bool,
    /// Whether its connection is gone and another one waited for.
    is_detached: bool,
    /// The media path broke while the browser was away; it is to be mended once it is back.
    restart_due: bool,
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
    fn new(
        shared: &'a Arc<Shared>,
        id: &'a str,
        peer: Arc<dyn Peer>,
        happened: mpsc::Receiver<PeerEvent>,
        started: Instant,
    ) -> Self {
        let (wanted, wanted_by) = mpsc::channel(1);
        Session {
            shared,
            id,
            peer,
            happened,
            started,
            seq: 0,
            stage: None,
            is_connected: false,
            connect_by: started + CONNECT_WITHIN,
            can_detach: false,
            is_detached: false,
            restart_due: false,
            n_candidates: 0,
            heard: started,
            viewer: None,
            wanted,
            wanted_by: Some(wanted_by),
        }
    }

    async fn run(&mut self, wire: &mut Wire, mut mail: Mail) -> Ending {
        let clock = &self.shared.clock;
        let mut ending = self.shared.ending.subscribe();
        wire.say(&self.hello(false)).await;
        let mut mapped = self.shared.mux.mapped();
        mapped.mark_unchanged(); // the offer has it
        if let Err(ending) = self.offer(wire, false).await {
            return ending;
        }
        let give_up = self.shared.config.resume_timeout.max(AWAY_AFTER);
        let mut stopping = self.shared.stopping.subscribe();
        let mut heartbeat = clock.timer(clock.now() + HEARTBEAT);
        let mut connect = clock.timer(self.connect_by);
        let mut second = clock.now();
        let mut n_in_second = 0;
        loop {
            connect.reset(self.connect_by);
            // In this order: what a browser says counts before what it is given up for, and no media path is the
            // better reason for an end that has two.
            tokio::select! {
                biased;
                frame = wire.hear() => {
                    let now = clock.now();
                    if now - second >= Duration::from_secs(1) {
                        (second, n_in_second) = (now, 0);
                    }
                    n_in_second += 1;
                    if n_in_second > RATE {
                        return Ending::TooFast;
                    }
                    let text = match frame {
                        Some(Ok(Frame::Text(text))) => {
                            self.hears(now); // a ping of the WebSocket may come from a gateway on the way
                            text
                        }
                        Some(Ok(Frame::Close(Some(it)))) if it.code == GOING_AWAY && self.can_detach => {
                            tracing::info!(session = self.id, "A browser's page is gone; its session is kept.");
                            wire.let_go();
                            self.set_detached(true);
                            continue;
                        }
                        Some(Ok(Frame::Close(_))) => return Ending::ClosedByBrowser,
                        Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => continue,
                        Some(Ok(Frame::Binary(_)) | Err(Violation)) => return Ending::BadMessage,
                        None if !self.can_detach => return Ending::Lost,
                        None => {
                            tracing::info!(session = self.id, "A browser's connection broke; its session is kept.");
                            self.set_detached(true);
                            continue;
                        }
                    };
                    let said = match serde_json::from_str(&text) {
                        Ok(said) => said,
                        Err(error) => {
                            tracing::debug!(session = self.id, %error, "A signalling message was not understood.");
                            return Ending::BadMessage;
                        }
                    };
                    if let Err(ending) = self.hear(wire, said).await {
                        return ending;
                    }
                    if std::mem::take(&mut self.restart_due)
                        && let Err(ending) = self.restart(wire).await
                    {
                        return ending;
                    }
                }
                Some(socket) = mail.sockets.recv() => {
                    wire.replace(socket).await;
                    self.set_detached(false);
                    tracing::info!(session = self.id, "A browser has come back into its session.");
                    self.shared.metrics.streaming.resumed();
                    self.heard = clock.now();
                    self.connect_by = self.heard + CONNECT_WITHIN;
                    wire.say(&self.hello(true)).await;
                }
                Some(event) = self.happened.recv() => if let Err(ending) = self.happen(wire, event).await { return ending },
                Ok(()) = mapped.changed() => {
                    let known = *mapped.borrow_and_update();
                    if known.is_some() {
                        self.trickle(wire, known).await;
                    }
                }
                () = std::future::poll_fn(|cx| connect.poll(cx)), if !self.is_connected && !self.is_away(wire) => {
                    return if self.viewer.is_some() { Ending::MediaLost } else { Ending::NoMediaPath };
                }
                () = std::future::poll_fn(|cx| heartbeat.poll(cx)) => {
                    let now = clock.now();
                    if now - self.heard >= give_up {
                        return Ending::Lost;
                    }
                    heartbeat.reset(now + HEARTBEAT);
                    wire.say(&json!({ "type": "ping", "t": (now - self.started).as_millis() as u64 })).await;
                }
                Ok(()) = ending.changed() => return Ending::Ended,
                () = mail.ended.notified() => return Ending::Ended,
                () = stopped(&mut stopping) => return Ending::Stopping,
            }
        }
    }

    fn set_detached(&mut self, is_detached: bool) {
        if std::mem::replace(&mut self.is_detached, is_detached) == is_detached {
            return;
        }
        let n_detached = &self.shared.n_detached;
        if is_detached {
            n_detached.fetch_add(1, Ordering::Relaxed);
        } else {
            n_detached.fetch_sub(1, Ordering::Relaxed);
        }
        self.shared.metrics.streaming.session("detached", if is_detached { 1 } else { -1 });
    }

    /// A session is set up once; a restart and a page that was loaded again are no set-ups.
    fn note_setup(&mut self, stage: Setup) {
        if self.stage < Some(stage) {
            self.stage = Some(stage);
            self.shared.metrics.streaming.setup(stage.name(), self.shared.clock.now() - self.started);
        }
    }

    fn hello(&self, resumed: bool) -> Value {
        let heartbeat = HEARTBEAT.as_millis() as u64;
        json!({ "type": "hello", "v": 1, "session": self.id, "heartbeatMs": heartbeat, "resumed": resumed })
    }

    /// Whether the browser has not been heard for some time, or cannot be.
    fn is_away(&self, wire: &Wire) -> bool {
        wire.socket.is_none() || self.shared.clock.now() - self.heard >= AWAY_AFTER
    }

    /// The browser is there. Where it was away for some time, media has its time once more.
    fn hears(&mut self, now: Instant) {
        if now - self.heard >= AWAY_AFTER {
            self.connect_by = now + CONNECT_WITHIN;
        }
        self.heard = now;
    }

    async fn offer(&mut self, wire: &mut Wire, restart: bool) -> Result<(), Ending> {
        let sdp = self.peer.offer(restart).await.map_err(|error| {
            tracing::warn!(session = self.id, %error, "An offer could not be made.");
            Ending::Failed
        })?;
        self.seq += 1;
        wire.say(&json!({ "type": "offer", "seq": self.seq, "sdp": sdp })).await;
        let known = *self.shared.mux.mapped().borrow();
        self.trickle(wire, known).await;
        Ok(())
    }

    /// Offers fresh ICE credentials. Media that does not flow has its time from now on.
    async fn restart(&mut self, wire: &mut Wire) -> Result<(), Ending> {
        self.connect_by = self.shared.clock.now() + CONNECT_WITHIN;
        self.offer(wire, true).await
    }

    /// Begins again with a browser that has lost its side of the media path, as a page does that was loaded again.
    async fn anew(&mut self, wire: &mut Wire) -> Result<(), Ending> {
        let (events, happened) = mpsc::channel(64);
        let peer = self.shared.engine.open(events).await.map_err(|error| {
            tracing::error!(%error, "A media path could not be made.");
            Ending::Failed
        })?;
        std::mem::replace(&mut self.peer, peer).close().await;
        self.happened = happened;
        if let Some(viewer) = self.viewer.take() {
            viewer.abort();
        }
        let (wanted, wanted_by) = mpsc::channel(1);
        (self.wanted, self.wanted_by) = (wanted, Some(wanted_by));
        (self.is_connected, self.restart_due, self.n_candidates) = (false, false, 0);
        self.connect_by = self.shared.clock.now() + CONNECT_WITHIN;
        self.offer(wire, false).await
    }

    /// Sends the candidate that the STUN server knows, if there is one, and the end of candidates.
    async fn trickle(&self, wire: &mut Wire, mapped: Option<std::net::SocketAddr>) {
        if let Some(mapped) = mapped {
            let candidate = Candidate {
                candidate: self.shared.mux.mapped_candidate(mapped),
                sdp_mid: Some("0".into()),
                sdp_m_line_index: Some(0),
            };
            wire.say(&json!({ "type": "candidate", "candidate": candidate })).await;
        }
        // With credentials and no answer from the STUN server yet, more may follow.
        if mapped.is_some() || self.shared.creds.borrow().is_none() {
            wire.say(&json!({ "type": "candidate", "candidate": null })).await;
        }
    }

    async fn hear(&mut self, wire: &mut Wire, said: Said) -> Result<(), Ending> {
        let misunderstood = |error: crate::streaming::peer::PeerError| {
            tracing::debug!(session = self.id, %error, "A signalling message could not be used.");
            Ending::BadMessage
        };
        match said {
            Said::Answer { seq, sdp } if seq == self.seq => {
                self.peer.answer(&sdp).await.map_err(misunderstood)?;
                self.note_setup(Setup::Answer);
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
            Said::Restart | Said::Anew if self.seq > MOST_RESTARTS => return Err(Ending::TooFast),
            Said::Restart => {
                self.restart_due = false;
                self.restart(wire).await?;
            }
            Said::Anew => self.anew(wire).await?,
            Said::Keyframe => drop(self.wanted.try_send(())),
            Said::Bye => return Err(Ending::ClosedByBrowser),
        }
        Ok(())
    }

    async fn happen(&mut self, wire: &mut Wire, event: PeerEvent) -> Result<(), Ending> {
        match event {
            PeerEvent::Connected => {
                if !std::mem::replace(&mut self.is_connected, true) && self.viewer.is_none() {
                    tracing::info!(session = self.id, "Media flows.");
                }
                self.note_setup(Setup::Connected);
                if let Some(wanted) = self.wanted_by.take() {
                    let (peer, source) = (Arc::clone(&self.peer), self.shared.source.clone());
                    let (metrics, clock) = (self.shared.metrics.clone(), self.shared.clock.clone());
                    self.viewer = Some(tokio::spawn(viewer::run(peer, source, wanted, metrics, clock)));
                }
            }
            // The browser's network may have changed: fresh checks find the new way while the old session lives on.
            PeerEvent::Disconnected if wire.socket.is_none() => self.restart_due = true,
            PeerEvent::Disconnected => self.offer(wire, true).await?,
            PeerEvent::Failed if self.is_away(wire) && self.viewer.is_some() => {
                (self.restart_due, self.is_connected) = (true, false);
            }
            PeerEvent::Failed => {
                return Err(if self.viewer.is_some() { Ending::MediaLost } else { Ending::NoMediaPath });
            }
            PeerEvent::KeyframeWanted => drop(self.wanted.try_send(())),
            PeerEvent::Input(message) => {
                if let Err(error) = self.peer.send_input(message) {
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
