//! Session ingress: what NVCF's grpc-proxy does with a connection.
//!
//! A session is a TCP connection: the first request on it chooses the worker, and later ones go to the same worker
//! whatever they say. F-numbers are those of the conformance list.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::IntoResponse;
use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_TYPE, COOKIE, ORIGIN, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use ring::digest::{SHA256, digest};
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower_service::Service;
use uuid::Uuid;

use crate::clock::Instant;
use crate::frontdoor::Shared;
use crate::frontdoor::faults::Cut;
use crate::frontdoor::functions::{self, Version};
use crate::frontdoor::health::{Awaited, Instance, Place};
use crate::frontdoor::problem::ApiError;
use crate::secret::Secret;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// The sessions that workers have registered.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<Uuid, Arc<Session>>>);

/// A session with a worker.
pub(crate) struct Session {
    id: Uuid,
    function: Uuid,
    version: Uuid,
    account: [u8; 32],
    instance: Arc<Instance>,
    /// Its place at the instance, until it ends.
    place: Mutex<Option<Place>>,
    connections: Mutex<Connections>,
    ended: watch::Sender<bool>,
    began: Instant,
    /// How long it waits for its browser, in seconds: the reconnect window.
    window: AtomicU64,
}

/// The connections that a session has.
#[derive(Default)]
struct Connections {
    n: usize,
    /// Whether the app has had its credentials for this session.
    has_creds: bool,
    /// Whether one of them has reached the app.
    has_reached_app: bool,
    /// How often the last one has left: a hold is over when nobody has come and gone since.
    n_holds: u64,
}

/// What one TCP connection is bound to.
struct Connection {
    /// The socket once more, to cut it.
    socket: Arc<Socket>,
    bound: tokio::sync::Mutex<HashMap<(Uuid, Option<Uuid>), Tunnel>>,
}

/// A connection's way to its worker.
struct Tunnel {
    attached: Attached,
    line: Line,
    /// The cookie is given once for each connection (F7).
    has_cookie: bool,
}

/// The connection to the app, which can be dialled only once (F10).
enum Line {
    /// So far nobody has asked the app (F20).
    Undialled,
    Free(SendRequest<Incoming>),
    /// It carries an answer, or has become a WebSocket.
    Taken,
}

/// What a request is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    App,
    /// The session itself, without the app (F20).
    Session,
    /// Its end, without the app.
    End,
}

/// A connection that counts for its session as long as this lives.
struct Attached {
    shared: Arc<Shared>,
    session: Arc<Session>,
}

/// Why a request did not reach a worker.
struct Refusal {
    status: StatusCode,
    text: String,
    /// The session is gone, rather than the function: its cookie is taken away (F13).
    forgets_session: bool,
}

/// How long a session waits for its browser after its last connection when an app gives no answer of its own.
const HOLD: Duration = Duration::from_secs(30);

/// The reconnect window where the request names none, and the longest, in seconds.
const WINDOW: u64 = 300;
const LONGEST_WINDOW: u64 = 1800;

/// How often an app is asked within it.
const ASK: Duration = Duration::from_secs(1);

/// How long the end of a tunnel's last answer is waited for.
const FREE_WITHIN: Duration = Duration::from_secs(1);

const COOKIE_NAME: &str = "nvcf-request-id";

/// Serves one TCP connection.
pub(crate) async fn serve(shared: Arc<Shared>, tcp: TcpStream) {
    drop(tcp.set_nodelay(true));
    let Ok(socket) = SockRef::from(&tcp).try_clone() else {
        return tracing::error!("The front door is out of files.");
    };
    let connection = Arc::new(Connection { socket: Arc::new(socket), bound: Default::default() });
    let service = service_fn(move |request| {
        let (shared, connection) = (Arc::clone(&shared), Arc::clone(&connection));
        async move { Ok::<_, Infallible>(answer(&shared, &connection, request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new()); // HTTP/1.1 and h2c (F1)
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(tcp), service).await {
        tracing::debug!(%error, "A connection of the front door ended.");
    }
}

async fn answer(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path();
    if path == "/health" {
        return text(StatusCode::OK, "OK");
    }
    if path == "/info" && request.method() == Method::GET {
        return text(StatusCode::OK, concat!("{\"version\":\"", env!("CARGO_PKG_VERSION"), "\"}"));
    }
    if path.starts_with("/v2/nvcf/") {
        let is_known = |token: &Secret| bearer(request.headers()).is_some_and(|it| token.matches(it));
        let response = if shared.config.token.as_ref().is_none_or(is_known) {
            let request = request.map(axum::body::Body::new);
            let Ok(response) = functions::router(Arc::clone(shared)).call(request).await;
            response
        } else {
            ApiError::new(StatusCode::UNAUTHORIZED, "the authorization is not valid").into_response()
        };
        return response
            .map(|body| body.map_err(|_| unreachable!("the API's bodies are whole")).boxed_unsync());
    }
    if request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return preflight(request.headers());
    }
    let (origin, is_grpc) = (request.headers().get(ORIGIN).cloned(), is_grpc(request.headers()));
    match proxy(shared, connection, request).await {
        Ok(response) => response,
        Err(refusal) => refuse(refusal, origin, is_grpc),
    }
}

/// Sends a request to the worker of its connection, which it chooses if it is the first.
async fn proxy(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let said = Said::of(request.headers());
    let about = About::of(&request);
    let Some(key) = said.routing() else {
        said.check()?; // says what is missing
        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "unreachable"));
    };
    let mut bound = connection.bound.lock().await;
    // F9: on a bound connection neither the request id nor the authorization is looked at again, unless its session is over.
    bound.retain(|_, it| !it.attached.session.has_ended());
    let session = match bound.get(&key) {
        Some(tunnel) => Arc::clone(&tunnel.attached.session),
        None => open(shared, &said, about).await?,
    };
    if about == About::End {
        shared.sessions.end(&session);
        bound.remove(&key);
        let mut response = text(StatusCode::OK, "");
        response.headers_mut().insert("nvcf-reqid", id_header(session.id));
        return Ok(response);
    }
    if let Some(window) = window(request.headers()) {
        session.window.store(window, Ordering::Relaxed);
    }
    let tunnel = bound.entry(key).or_insert_with(|| Tunnel::new(Attached::new(shared, &session)));
    if about == About::Session {
        let mut response = text(StatusCode::OK, "");
        tunnel.sign(response.headers_mut());
        return Ok(response);
    }
    request.headers_mut().insert("nvcf-reqid", id_header(session.id)); // F8
    let upgrades = request.headers().contains_key(http::header::UPGRADE);
    let client = upgrades.then(|| hyper::upgrade::on(&mut request));
    // F10: a tunnel that still carries another answer would have to be dialled a second time.
    let dial_again = || Refusal::new(StatusCode::BAD_GATEWAY, "can only dial once");
    if matches!(tunnel.line, Line::Undialled) {
        match reach(shared, &session).await {
            Ok(sender) => tunnel.line = Line::Free(sender),
            Err(refusal) => {
                bound.remove(&key);
                return Err(refusal);
            }
        }
    }
    let Line::Free(mut sender) = std::mem::replace(&mut tunnel.line, Line::Taken) else {
        return Err(dial_again());
    };
    if !matches!(shared.clock.timeout(FREE_WITHIN, sender.ready()).await, Some(Ok(()))) {
        return Err(dial_again());
    }
    let mut response = sender
        .send_request(request)
        .await
        .map_err(|it| Refusal::new(StatusCode::BAD_GATEWAY, format!("the worker's tunnel failed: {it}")))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let worker = hyper::upgrade::on(&mut response);
        let attached = Attached::new(shared, &session);
        let socket = Arc::clone(&connection.socket);
        tokio::spawn(async move {
            if let (Ok(client), Ok(worker)) = (client.await, worker.await) {
                relay(TokioIo::new(client), TokioIo::new(worker), &attached, &socket).await;
            }
            drop(attached);
        });
    } else {
        tunnel.line = Line::Free(sender);
    }
    tunnel.sign(response.headers_mut());
    Ok(response.map(BodyExt::boxed_unsync))
}

impl About {
    fn of(request: &Request<Incoming>) -> About {
        match request.headers().get("x-nvcf-absorb").is_some_and(|it| it == "true") {
            false => About::App,
            true if request.method() == Method::DELETE => About::End,
            true => About::Session,
        }
    }
}

impl Tunnel {
    fn new(attached: Attached) -> Self {
        Tunnel { attached, line: Line::Undialled, has_cookie: false }
    }

    /// Says in a response whose session it is of (F7).
    fn sign(&mut self, headers: &mut HeaderMap) {
        let id = self.attached.session.id;
        headers.insert("nvcf-reqid", id_header(id));
        if !std::mem::replace(&mut self.has_cookie, true) {
            let cookie = format!("{COOKIE_NAME}={id}");
            headers.append(SET_COOKIE, HeaderValue::from_str(&cookie).expect("a UUID is a header value"));
        }
    }
}

/// What a request says about its session: headers first, then the entries of `Sec-WebSocket-Protocol` (F2, F3).
struct Said {
    authorization: Option<String>,
    has_subprotocol: bool,
    function: Option<String>,
    version: Option<String>,
    request_id: Option<Uuid>,
}

impl Said {
    fn of(headers: &HeaderMap) -> Said {
        let header = |name: &str| {
            headers.get(name).and_then(|it| it.to_str().ok()).filter(|it| !it.is_empty()).map(str::to_owned)
        };
        let subprotocols: Vec<&str> =
            headers.get_all("sec-websocket-protocol").iter().filter_map(|it| it.to_str().ok()).collect();
        let entry = |key: &str| {
            let entries = subprotocols.iter().flat_map(|it| it.split(','));
            entries
                .map(|it| it.strip_prefix(' ').unwrap_or(it))
                .filter_map(|it| it.split_once('.'))
                .find(|(k, _)| k.eq_ignore_ascii_case(key))
                .map(|(_, v)| v.to_owned())
        };
        let cookies =
            headers.get_all(COOKIE).iter().filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(';'));
        let mut cookies = cookies.filter_map(|it| it.trim().split_once('='));
        let cookie = cookies.find(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value.to_owned());
        let request_id = header("nvcf-reqid").or_else(|| entry("nvcf-reqid")).or(cookie);
        Said {
            authorization: header(AUTHORIZATION.as_str()).or_else(|| entry("authorization")),
            has_subprotocol: !subprotocols.is_empty(),
            function: header("function-id").or_else(|| entry("function-id")),
            version: header("function-version-id").or_else(|| entry("function-version-id")),
            request_id: request_id.and_then(|it| Uuid::parse_str(&it).ok()), // F4: one that is none is ignored
        }
    }

    /// The function headers: what distinguishes the sessions of one connection.
    fn routing(&self) -> Option<(Uuid, Option<Uuid>)> {
        let function = Uuid::parse_str(self.function.as_deref()?).ok()?;
        Some((function, self.version.as_deref().and_then(|it| Uuid::parse_str(it).ok())))
    }

    /// Is it said who asks, and for what (F5)?
    fn check(&self) -> Result<(String, Uuid), Refusal> {
        let authorization = self.authorization.as_deref().unwrap_or_default();
        let token = match authorization.strip_prefix("Bearer ") {
            Some(token) => token,
            None if self.has_subprotocol && !authorization.is_empty() => authorization,
            None => {
                return Err(Refusal::new(
                    StatusCode::UNAUTHORIZED,
                    "no authorization was passed in the metadata",
                ));
            }
        };
        let Some(function) = &self.function else {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "no function-id was passed in the metadata"));
        };
        let function = Uuid::parse_str(function).map_err(|_| {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("Invalid UUID string: {function}"))
        })?;
        Ok((token.to_owned(), function))
    }
}

/// Finds the session to come back into, or opens one. The order of the checks is NVCF's (F6).
async fn open(shared: &Arc<Shared>, said: &Said, about: About) -> Result<Arc<Session>, Refusal> {
    let (token, function) = said.check()?;
    if shared.config.token.as_ref().is_some_and(|it| !it.matches(&token)) {
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "the authorization is not valid"));
    }
    let account: [u8; 32] =
        digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
    let version = said.version.as_deref().and_then(|it| Uuid::parse_str(it).ok());
    let Some(found) = shared.functions.find(function, version) else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, format!("function {function} not found")));
    };
    if !found.is_streaming {
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "the function is not of type STREAMING")); // F18
    }
    if let Some(status) = found.refuses() {
        let text = match status {
            StatusCode::TOO_MANY_REQUESTS => "exceeded rate limit",
            StatusCode::FORBIDDEN => "the access was denied",
            _ => "the service is unavailable",
        };
        return Err(Refusal::new(status, text)); // F18
    }
    let Some(id) = said.request_id else {
        if about == About::End {
            let text =
                format!("no session to end: neither nvcf-reqid nor the cookie {COOKIE_NAME} names one");
            return Err(Refusal::new(StatusCode::NOT_FOUND, text));
        }
        return begin(shared, &found, account, about).await;
    };
    let faults = shared.faults.now();
    let is_registered = |it: &Arc<Session>| shared.clock.now() - it.began >= faults.registration_delay; // F16
    let Some(session) = shared.sessions.find(id).filter(is_registered) else {
        let error = Uuid::new_v4();
        let text = format!(
            "failed to open stateful work request: error_id:\"{error}\" reason:\"no existing session found\" for request id {id}"
        );
        return Err(Refusal { forgets_session: true, ..Refusal::new(StatusCode::NOT_FOUND, text) });
    };
    let mismatch = |what: &str| {
        Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("existing session {what} mismatch for request id {id}"),
        ))
    }; // F14
    if session.function != function {
        return mismatch("function ID");
    }
    if version.is_some_and(|it| it != session.version) {
        return mismatch("function version ID");
    }
    if session.account != account {
        return mismatch("invoker NCA ID");
    }
    if faults.dead_workers {
        shared.clock.sleep(shared.config.worker_timeout).await; // F17
        return Err(Refusal::no_worker());
    }
    Ok(session)
}

/// Waits for an instance that is ready and has a place (F12, F26). Its app gets its credentials, unless it is not asked.
async fn begin(
    shared: &Arc<Shared>,
    version: &Version,
    account: [u8; 32],
    about: About,
) -> Result<Arc<Session>, Refusal> {
    let asks_app = about == About::App;
    let found = async {
        loop {
            for instance in version.instances() {
                if instance.is_healthy()
                    && let Some(place) = instance.take_place()
                {
                    if !asks_app {
                        return (instance, place);
                    }
                    match instance.prepare(&shared.stun, &shared.clock).await {
                        Ok(()) => return (instance, place),
                        Err(error) => tracing::warn!(error, "A worker could not be prepared."),
                    }
                }
            }
            shared.clock.sleep(Duration::from_millis(50)).await; // NVCF asks its queue again each second
        }
    };
    let Some((instance, place)) = shared.clock.timeout(shared.config.worker_timeout, found).await else {
        return Err(Refusal::no_worker());
    };
    let session = Arc::new(Session {
        id: Uuid::new_v4(),
        function: version.function,
        version: version.id,
        account,
        instance,
        place: Mutex::new(Some(place)),
        connections: Mutex::new(Connections { has_creds: asks_app, ..Connections::default() }),
        ended: watch::Sender::new(false),
        began: shared.clock.now(),
        window: AtomicU64::new(WINDOW),
    });
    shared.sessions.lock().insert(session.id, Arc::clone(&session));
    // Whoever dismisses an instance ends the sessions that are known by then.
    if session.instance.is_dismissed() {
        shared.sessions.end(&session);
        return Err(Refusal::no_worker());
    }
    Ok(session)
}

/// Dials the app of a session. One that has not had its credentials for it gets them before (F22).
async fn reach(shared: &Shared, session: &Session) -> Result<SendRequest<Incoming>, Refusal> {
    if !session.connections().has_creds {
        let prepared = session.instance.prepare(&shared.stun, &shared.clock).await;
        prepared.map_err(|it| Refusal::new(StatusCode::BAD_GATEWAY, it))?;
        session.connections().has_creds = true;
    }
    let sender = dial(&session.instance).await?;
    session.connections().has_reached_app = true;
    Ok(sender)
}

async fn dial(instance: &Instance) -> Result<SendRequest<Incoming>, Refusal> {
    let failed = |it: &dyn std::fmt::Display| {
        Refusal::new(StatusCode::BAD_GATEWAY, format!("the worker's tunnel failed: {it}"))
    };
    let tcp = TcpStream::connect((instance.host.as_str(), instance.port)).await.map_err(|it| failed(&it))?;
    drop(tcp.set_nodelay(true));
    let (sender, connection) = handshake(TokioIo::new(tcp)).await.map_err(|it| failed(&it))?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// Passes bytes both ways, untouched, until either side ends; then the other is ended at once (F11, F25).
async fn relay(
    client: impl AsyncRead + AsyncWrite + Unpin,
    worker: impl AsyncRead + AsyncWrite + Unpin,
    attached: &Attached,
    socket: &Socket,
) {
    let Attached { shared, session } = attached;
    let mut cuts = shared.faults.cuts();
    let (mut client_in, mut client_out) = tokio::io::split(client);
    let (mut worker_in, mut worker_out) = tokio::io::split(worker);
    let mut ended = session.ended.subscribe();
    tokio::select! {
        biased;
        cut = cuts.recv() => if cut == Ok(Cut::Reset) {
            drop(socket.set_linger(Some(Duration::ZERO))); // F30: closing it is a reset now
            return;
        },
        () = pump(&mut client_in, &mut worker_out, shared) => {}
        () = pump(&mut worker_in, &mut client_out, shared) => {}
        _ = ended.wait_for(|it| *it) => {}
    }
    drop(worker_out.shutdown().await);
    drop(client_out.shutdown().await);
}

async fn pump(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), shared: &Shared) {
    let mut buf = vec![0; 16 << 10];
    let mut faults = shared.faults.watch();
    while let Ok(n) = from.read(&mut buf).await {
        let delay = faults.borrow().delay; // F30
        if !delay.is_zero() {
            shared.clock.sleep(delay).await;
        }
        if faults.wait_for(|it| !it.half_open).await.is_err() {
            return;
        }
        if n == 0 || to.write_all(&buf[..n]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

impl Attached {
    fn new(shared: &Arc<Shared>, session: &Arc<Session>) -> Self {
        session.connections().n += 1;
        Attached { shared: Arc::clone(shared), session: Arc::clone(session) }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut connections = self.session.connections();
        connections.n -= 1;
        if connections.n > 0 {
            return;
        }
        connections.n_holds += 1;
        let (number, has_reached_app) = (connections.n_holds, connections.has_reached_app);
        tokio::spawn(hold(Arc::clone(&self.shared), Arc::clone(&self.session), number, has_reached_app));
    }
}

/// Waits for the browser of a session that everybody has left, as long as the app does and the window is open (F23). A
/// session that the app has ended, or whose app has gone, is forgotten (F24).
async fn hold(shared: Arc<Shared>, session: Arc<Session>, number: u64, has_reached_app: bool) {
    let is_left = || {
        let connections = session.connections();
        connections.n == 0 && connections.n_holds == number
    };
    let clock = &shared.clock;
    let began = clock.now();
    let window = Duration::from_secs(session.window.load(Ordering::Relaxed));
    let name = session.id.to_string();
    loop {
        let answer = match has_reached_app {
            true => session.instance.end_session(&name, false, clock).await,
            false => Awaited::Unknown, // the app has not heard of it
        };
        let patience = match answer {
            Awaited::Resume => window,
            Awaited::Unknown => HOLD.min(window),
            Awaited::Complete | Awaited::Gone => Duration::ZERO,
        };
        if !is_left() {
            return;
        }
        if clock.now() - began >= patience {
            if answer == Awaited::Resume {
                session.instance.end_session(&name, true, clock).await; // it goes either way
            }
            return shared.sessions.end(&session);
        }
        clock.sleep(ASK).await;
    }
}

/// What the gateway says of the reconnect window; NVCF caps it without a word.
fn window(headers: &HeaderMap) -> Option<u64> {
    let window: u64 = headers.get("x-nvcf-reconnect-window-secs")?.to_str().ok()?.parse().ok()?;
    Some(window.min(LONGEST_WINDOW))
}

impl Session {
    fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: Uuid) -> Option<Arc<Session>> {
        self.lock().get(&id).cloned()
    }

    /// Forgets all, as a front door that restarts.
    pub(crate) fn forget(&self) {
        let all: Vec<Arc<Session>> = self.lock().values().cloned().collect();
        all.iter().for_each(|it| self.end(it));
    }

    /// Ends those whose instance is dismissed. Its container may run on, so the app is told to be free for others.
    pub(crate) fn end_dismissed(&self, shared: &Arc<Shared>) {
        let all: Vec<Arc<Session>> = self.lock().values().cloned().collect();
        for session in all.into_iter().filter(|it| it.instance.is_dismissed()) {
            self.end(&session);
            if session.connections().has_reached_app {
                let shared = Arc::clone(shared);
                tokio::spawn(async move {
                    session.instance.end_session(&session.id.to_string(), true, &shared.clock).await
                });
            }
        }
    }

    fn end(&self, session: &Session) {
        self.lock().remove(&session.id);
        session.ended.send_replace(true);
        drop(session.place.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Refusal { status, text: text.into(), forgets_session: false }
    }

    fn no_worker() -> Self {
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, "failed to establish link to worker")
    }
}

/// An error of the front door itself: text, CORS (F19), and for gRPC a status of its own (F29).
fn refuse(refusal: Refusal, origin: Option<HeaderValue>, is_grpc: bool) -> Response<Body> {
    let mut response = if is_grpc {
        let code = match refusal.status.as_u16() {
            400 => 3,
            401 => 16,
            403 => 7,
            404 => 5,
            429 => 8,
            501 => 12,
            503 => 14,
            504 => 4,
            _ => 13,
        };
        let mut response = text(StatusCode::OK, "");
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(code));
        if let Ok(message) = HeaderValue::from_str(&refusal.text) {
            headers.insert("grpc-message", message);
        }
        response
    } else {
        text(refusal.status, refusal.text)
    };
    if refusal.forgets_session {
        let cookie = format!("{COOKIE_NAME}=; Max-Age=0");
        response.headers_mut().append(SET_COOKIE, HeaderValue::from_str(&cookie).expect("it is plain text"));
    }
    allow(response.headers_mut(), origin);
    response
}

fn preflight(asked: &HeaderMap) -> Response<Body> {
    let mut response = text(StatusCode::NO_CONTENT, "");
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("HEAD, GET, POST, PUT, PATCH, DELETE"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    allow(headers, asked.get(ORIGIN).cloned());
    response
}

fn allow(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(VARY, HeaderValue::from_static("Origin"));
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn id_header(id: Uuid) -> HeaderValue {
    HeaderValue::from_str(&id.to_string()).expect("a UUID is a header value")
}
