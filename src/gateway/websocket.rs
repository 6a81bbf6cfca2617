//! A browser opens a WebSocket: its handshake is checked, policies are asked, the upstream is dialled, and only then
//! is the browser answered.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use http::header::{
    CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::Refusal;
use crate::gateway::conn::Conn;
use crate::gateway::head::{self, RequestHead};
use crate::gateway::relay::{self, Record};
use crate::gateway::respond;
use crate::gateway::upstream::{DialError, Upgraded, accept};
use crate::gateway::worker::{Worker, close_politely};
use crate::gateway::{Shared, admit};
use crate::lua::RouteChain;
use crate::policy::{CLOSE_ON_REFUSAL, Exchange, Function, LocalResponse, Offer, Phase, Stop};
use crate::rejection::{Code, Rejection};
use crate::session::Control;

/// Bytes that a browser may send before it is answered. They wait; none goes upstream before its 101 (CVE-2026-2833).
const EARLY: usize = 16 << 10;

/// Whether a request means to open a WebSocket, well formed or not.
pub(crate) fn is_meant(head: &RequestHead) -> bool {
    head::has_token(&head.headers, &UPGRADE, "websocket") || head.headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// Checks the handshake (RFC 6455 section 4.2.1) and gives the accept key.
fn check_handshake(head: &RequestHead) -> Result<String, Rejection> {
    let headers = &head.headers;
    if head.method != Method::GET {
        return Err(Code::WebSocketMethod.into());
    }
    let upgrades =
        head::has_token(headers, &UPGRADE, "websocket") && head::has_token(headers, &CONNECTION, "upgrade");
    if head.minor == 0 || !upgrades {
        return Err(Code::WebSocketConnection.into());
    }
    if head.has_body() {
        return Err(Code::WebSocketBody.into());
    }
    let mut versions = headers.get_all(SEC_WEBSOCKET_VERSION).iter();
    if !matches!((versions.next(), versions.next()), (Some(version), None) if version == "13") {
        let mut rejection = Rejection::new(Code::WebSocketVersion);
        rejection.headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(rejection);
    }
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    match (keys.next().and_then(|it| it.to_str().ok()), keys.next()) {
        (Some(key), None) if STANDARD.decode(key).is_ok_and(|it| it.len() == 16) => Ok(accept(key)),
        _ => Err(Code::WebSocketKey.into()),
    }
}

/// Serves a WebSocket request to its end or until the relay has taken over.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    mut conn: Conn,
    mut early: BytesMut,
    head: RequestHead,
    mut exchange: Exchange,
    route: RouteChain,
) {
    let started = worker.shared.clock.now();
    let mut stage = Stage { policy: started, dialled: started };
    let opened = open(worker, &mut conn, &mut early, &head, &mut exchange, &route, &mut stage).await;
    let shared = &worker.shared;
    match opened {
        Ok(Opened { accept_key, function, upgraded, place }) => {
            let answer = answer(worker, &mut exchange, &route, &function, &accept_key, &upgraded);
            let (bytes, session) = match answer {
                Ok(answer) => answer,
                Err(rejection) => {
                    drop((upgraded, place));
                    let stop = Stop::Reject(rejection);
                    return refuse(worker, conn, &mut exchange, &route, stop, Some(accept_key), started)
                        .await;
                }
            };
            let written = async {
                conn.write_all(&bytes).await?;
                conn.flush().await
            };
            if let Err(error) = written.await {
                tracing::debug!(request = %exchange.id, %error, "The browser left before it was answered.");
                return left(worker, &mut exchange, &route, started);
            }
            let now = shared.clock.now();
            shared.metrics.session_start("opened");
            shared.metrics.session_setup("policy", stage.policy - started);
            shared.metrics.session_setup("upstream", stage.dialled - stage.policy);
            shared.metrics.session_setup("total", now - started);
            shared.metrics.request(&exchange.route, 101);
            tracing::info!(request = %exchange.id, principal = exchange.principal_id(), function = %function.id, resumed = session.resumed, "A session was opened.");
            exchange.retire(route.chain.has(Phase::Log));
            let record = Record { exchange, route, function: function.id, started: now, _place: place };
            let Upgraded { conn: upstream, early: from_upstream, .. } = upgraded;
            tokio::task::spawn_local(relay::run(
                Rc::clone(worker),
                conn,
                early.freeze(),
                upstream,
                from_upstream,
                Box::new(record),
            ));
        }
        Err(Failure::Stopped(stop, accept_key)) => {
            refuse(worker, conn, &mut exchange, &route, stop, accept_key, started).await;
        }
        Err(Failure::BrowserGone) => {
            tracing::debug!(request = %exchange.id, "The browser left before it was answered.");
            left(worker, &mut exchange, &route, started);
        }
    }
}

/// The last line about a browser that has left before it was answered.
fn left(worker: &Worker, exchange: &mut Exchange, route: &RouteChain, started: Instant) {
    worker.shared.metrics.session_start("browser_gone");
    worker.browser_gone(exchange);
    worker.finish_request(exchange, &route.chain, 0, 0, started);
}

/// When each stage of an opening ended.
struct Stage {
    policy: Instant,
    dialled: Instant,
}

struct Opened {
    accept_key: String,
    function: Function,
    upgraded: Upgraded,
    place: Place,
}

/// One of the places for sessions, given back when it is dropped.
pub(crate) struct Place(Arc<Shared>);

enum Failure {
    /// Nothing was opened. With the accept key, the refusal may also be a Close frame.
    Stopped(Stop, Option<String>),
    /// Nobody is there to be told.
    BrowserGone,
}

async fn open(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    early: &mut BytesMut,
    head: &RequestHead,
    exchange: &mut Exchange,
    route: &RouteChain,
    stage: &mut Stage,
) -> Result<Opened, Failure> {
    let shared = &worker.shared;
    let reject = |rejection: Rejection| Failure::Stopped(Stop::Reject(rejection), None);
    let accept_key = check_handshake(head).map_err(reject)?;
    exchange.offer = Offer::parse(&head.headers).map_err(|code| reject(code.into()))?;
    if !exchange.offer.is_empty() {
        exchange.offer.answer(None).map_err(|code| reject(code.into()))?;
    }
    check_origin(shared.config.parts.origins.as_deref(), head).map_err(|code| reject(code.into()))?;

    let stop = |stop: Stop| Failure::Stopped(stop, Some(accept_key.clone()));
    let function = admit::admit(worker, &route.chain, exchange).await.map_err(stop)?;
    exchange.function = Some(function.id.clone());
    let ticket = admit::ticket(shared, exchange, &function);
    admit::upstream_headers(worker, &route.chain, exchange).await.map_err(stop)?;
    stage.policy = shared.clock.now();
    let place = Place::claim(shared).map_err(|code| stop(Stop::Reject(code.into())))?;

    let offer = exchange.offer.passed_on().collect::<Vec<_>>().join(", ");
    let target = admit::target(exchange);
    let mut ticket = ticket;
    loop {
        let mut headers = exchange.upstream.clone();
        admit::sign(shared, &mut headers, &function, ticket.as_ref()).map_err(|it| stop(Stop::Reject(it)))?;
        let dialled = tokio::select! {
            dialled = shared.dialer.upgrade(&target, headers, &offer) => dialled,
            () = gone(conn, early) => return Err(Failure::BrowserGone),
        };
        match dialled {
            Ok(upgraded) => {
                stage.dialled = shared.clock.now();
                return Ok(Opened { accept_key, function, upgraded, place });
            }
            Err(error) if ticket.is_some() && is_stale(&error) => {
                // The session is gone; the browser gets a new one. Once: the next answer is believed.
                tracing::info!(request = %exchange.id, %error, "A session could not be resumed; a new one is started.");
                ticket = None;
            }
            Err(error) => return Err(stop(Stop::Reject(respond::rescue_dial(&error)))),
        }
    }
}

/// Whether an upstream's refusal means that the session to come back into is gone (NVCF: 504, 500 mismatch, and a 404
/// that takes the cookie away; another 404 means that the function is gone).
fn is_stale(error: &DialError) -> bool {
    let DialError::Refused { status, forgets_session, .. } = error else { return false };
    matches!(status.as_u16(), 500 | 504) || (*status == StatusCode::NOT_FOUND && *forgets_session)
}

/// A page of an origin that is not on the list may not open a WebSocket: browsers do not ask before they do (RFC 6455
/// section 10.2). A client without an origin is no browser.
fn check_origin(allowed: Option<&[String]>, head: &RequestHead) -> Result<(), Code> {
    let Some(allowed) = allowed else { return Ok(()) };
    let mut origins = head.headers.get_all(ORIGIN).iter();
    match (origins.next().map(HeaderValue::to_str), origins.next()) {
        (None, _) => Ok(()),
        (Some(Ok(origin)), None) if allowed.iter().any(|it| it.eq_ignore_ascii_case(origin)) => Ok(()),
        _ => Err(Code::OriginRefused),
    }
}

/// Waits until the browser is gone, and keeps what it says meanwhile.
async fn gone(conn: &mut Conn, early: &mut BytesMut) {
    while early.len() < EARLY {
        early.reserve(1024);
        if !matches!(conn.read_buf(early).await, Ok(n) if n > 0) {
            return;
        }
    }
    std::future::pending().await
}

impl Place {
    fn claim(shared: &Arc<Shared>) -> Result<Place, Code> {
        let one_more = |n| (n < shared.config.sessions.max).then_some(n + 1);
        if *shared.draining.borrow() {
            return Err(Code::Draining);
        }
        match shared.n_sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Place(Arc::clone(shared))),
            Err(_) => Err(Code::SessionsFull),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.n_sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Session {
    resumed: bool,
}

/// The browser's 101.
fn answer(
    worker: &Worker,
    exchange: &mut Exchange,
    route: &RouteChain,
    function: &Function,
    accept_key: &str,
    upgraded: &Upgraded,
) -> Result<(BytesMut, Session), Rejection> {
    let shared = &worker.shared;
    let subprotocol = exchange.offer.answer(upgraded.subprotocol.as_deref());
    let subprotocol = subprotocol.map_err(|code| match code {
        Code::UpstreamGarbage => {
            Rejection::because(code, "the upstream chose a subprotocol that was not offered")
        }
        code => code.into(),
    })?;
    let subprotocol = subprotocol.and_then(|it| HeaderValue::from_str(it).ok());
    let mut headers = crate::policy::passed_on_response(&upgraded.headers);
    let before = admit::ticket(shared, exchange, function).map(|it| it.request);
    let id = admit::keep_session(shared, exchange, function, &mut headers);
    let resumed = before.is_some() && before == id;
    let response =
        LocalResponse { status: StatusCode::SWITCHING_PROTOCOLS, headers, body: bytes::Bytes::new() };
    let mut response = respond::dress(response, Some(&route.chain), exchange, &worker.watch);
    if response.status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Rejection::because(Code::PluginFailed, "a plugin failed on the 101"));
    }
    handshake_headers(&mut response.headers, accept_key, subprotocol);
    Ok((head::write_response(response.status, &response.headers), Session { resumed }))
}

fn handshake_headers(headers: &mut http::HeaderMap, accept_key: &str, subprotocol: Option<HeaderValue>) {
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers
        .insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(accept_key).expect("base64 is a header value"));
    if let Some(subprotocol) = subprotocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
}

/// Tells the browser that nothing was opened: by a status, or by a Close frame where it can only read those.
async fn refuse(
    worker: &Rc<Worker>,
    mut conn: Conn,
    exchange: &mut Exchange,
    route: &RouteChain,
    stop: Stop,
    accept_key: Option<String>,
    started: Instant,
) {
    let shared = &worker.shared;
    let by_close =
        shared.config.sessions.refusal == Refusal::Close || exchange.offer.contains(CLOSE_ON_REFUSAL);
    let (response, close) = match stop {
        Stop::Reject(rejection) => {
            shared.metrics.rejection(rejection.code.as_str());
            shared.metrics.session_start("refused");
            let reason = format!("{}: {}", rejection.code.as_str(), rejection.code.message());
            let close = Control::close(respond::close_code(&rejection), &reason);
            (respond::reject(rejection, exchange), Some(close))
        }
        Stop::Respond(response) => {
            shared.metrics.session_start("answered");
            (*response, None)
        }
    };
    let subprotocol =
        exchange.offer.answer(None).ok().map(|it| it.and_then(|it| HeaderValue::from_str(it).ok()));
    let bytes = match (by_close, accept_key, close, subprotocol) {
        (true, Some(accept_key), Some(close), Some(subprotocol)) => {
            let accepted = LocalResponse {
                status: StatusCode::SWITCHING_PROTOCOLS,
                headers: http::HeaderMap::new(),
                body: bytes::Bytes::new(),
            };
            let mut accepted = respond::dress(accepted, Some(&route.chain), exchange, &worker.watch);
            handshake_headers(&mut accepted.headers, &accept_key, subprotocol);
            let mut bytes = head::write_response(StatusCode::SWITCHING_PROTOCOLS, &accepted.headers);
            let (frame, len) = close.encode(None);
            bytes.extend_from_slice(&frame[..len]);
            bytes
        }
        _ => {
            let response = respond::dress(response, Some(&route.chain), exchange, &worker.watch);
            exchange.response.status = response.status;
            respond::encode(&response, &exchange.method, false, &shared.clock)
        }
    };
    worker.finish_request(exchange, &route.chain, bytes.len() as u64, 0, started);
    close_politely(&mut conn, &bytes, &shared.clock).await;
}
