//! A browser opens a WebSocket: its handshake is checked, policies are asked, the upstream is dialled, and only then
//! is the browser answered.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use http::header::{
    CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Method, StatusCode};
use tokio::sync::oneshot;

use crate::config::{Refusal, ResumeMode, Viewer};
use crate::gateway::admit::{self, Earlier, Seat};
use crate::gateway::conn::{Conn, Counted};
use crate::gateway::cookie::Ticket;
use crate::gateway::directory::{
    About, Attach, Entry, Found, Handed, Identity, Listed, Mail, Offered, Refused,
};
use crate::gateway::head::{self, Manner, RequestHead};
use crate::gateway::relay::{self, Record};
use crate::gateway::respond;
use crate::gateway::tunnel::Carrier;
use crate::gateway::upstream::{DialError, Upgraded, accept};
use crate::gateway::worker::{LAST_BYTES, Slot, Worker, close_politely};
use crate::gateway::{Shared, Totals};
use crate::lua::RouteChain;
use crate::policy::{CLOSE_ON_REFUSAL, Exchange, Function, LocalResponse, Offer, Stop};
use crate::rejection::{Code, Rejection};
use crate::session;

/// A session of fewer seconds may not be known to all of NVCF yet.
const YOUNG: u64 = 5;

/// How long each further try waits until then.
const REGISTRATION: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1)];

/// Whether a request means to open a WebSocket, well formed or not.
pub(crate) fn is_meant(head: &RequestHead) -> bool {
    head::has_token(&head.headers, &UPGRADE, "websocket") || head.headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// Checks the handshake (RFC 6455 section 4.2.1) and gives the accept key.
fn check_handshake(manner: Manner, exchange: &Exchange) -> Result<String, Rejection> {
    let headers = &exchange.headers;
    if exchange.method != Method::GET {
        return Err(Code::WebSocketMethod.into());
    }
    let upgrades =
        head::has_token(headers, &UPGRADE, "websocket") && head::has_token(headers, &CONNECTION, "upgrade");
    if manner.minor == 0 || !upgrades {
        return Err(Code::WebSocketConnection.into());
    }
    if manner.has_body {
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

/// Serves a WebSocket request to its end or until a relay has taken over.
pub(crate) async fn serve(
    slot: &Rc<Slot>,
    worker: &Rc<Worker>,
    mut conn: Conn,
    mut early: BytesMut,
    manner: Manner,
    mut exchange: Exchange,
    route: RouteChain,
) {
    let shared = &worker.shared;
    let started = shared.clock.now();
    let admitted = tokio::select! {
        biased;
        admitted = admit_browser(worker, manner, &mut exchange, &route) => admitted,
        () = conn.gone(&mut early) => return left(worker, &mut exchange, &route, started),
    };
    let admitted = match admitted {
        Ok(it) => it,
        Err((stop, key)) => return refuse(worker, conn, &mut exchange, &route, stop, key, started).await,
    };
    let policy = shared.clock.now();
    let admitted = match come_back(slot, worker, conn, early, &mut exchange, &route, admitted, started).await
    {
        Back::No(back, bytes, admitted, earlier) => {
            (conn, early) = (back, bytes);
            let headers = tokio::select! {
                biased;
                headers = admit::upstream_headers(worker, &route.chain, &mut exchange, &admitted.seat) => headers,
                () = conn.gone(&mut early) => return left(worker, &mut exchange, &route, started),
            };
            if let Err(stop) = headers {
                let key = Some(admitted.accept_key);
                return refuse(worker, conn, &mut exchange, &route, stop, key, started).await;
            }
            if let Some(earlier) = earlier {
                earlier.make_way(session::Stop::Replaced, &shared.clock).await;
            }
            admitted
        }
        Back::Taken => return,
        Back::Refused(back, code, admitted) => {
            let (stop, key) = (Stop::Reject(code.into()), Some(admitted.accept_key));
            return refuse(worker, back, &mut exchange, &route, stop, key, started).await;
        }
    };
    let opened = dial(worker, &mut conn, &mut early, &exchange, &route, &admitted).await;
    let dialled = shared.clock.now();
    let Admitted { accept_key, function, .. } = &admitted;
    match opened {
        Ok(Opened { upgraded, place }) => {
            let answer = answer(worker, &mut exchange, &route, &admitted, &upgraded);
            let answer = match answer {
                Ok(it) if !is_ours(shared, &it.listed, &admitted.seat, &route).await => {
                    Err(Code::SessionTaken.into())
                }
                answer => answer,
            };
            let Answer { bytes, listed, resumed } = match answer {
                Ok(answer) => answer,
                Err(rejection) => {
                    drop((upgraded, place));
                    let (stop, key) = (Stop::Reject(rejection), Some(accept_key.clone()));
                    return refuse(worker, conn, &mut exchange, &route, stop, key, started).await;
                }
            };
            // A browser that does not read would hold its place and its worker for ever.
            if !matches!(shared.clock.timeout(LAST_BYTES, conn.write_out(&bytes)).await, Some(Ok(()))) {
                tracing::debug!(request = %exchange.id, "The browser left before it was answered.");
                return left(worker, &mut exchange, &route, started);
            }
            let now = shared.clock.now();
            shared.metrics.session_start("opened");
            shared.metrics.session_setup("policy", policy - started);
            shared.metrics.session_setup("upstream", dialled - policy);
            shared.metrics.session_setup("total", now - started);
            worker.requests.count(&exchange.route, 101);
            if admitted.ticket.is_some() {
                shared.metrics.resume("reconnect", if resumed { "resumed" } else { "gone" });
                shared.metrics.resume_took("reconnect", now - started);
            }
            let session = exchange.session.id.as_deref();
            tracing::info!(request = %exchange.id, session, principal = exchange.principal_id(), function = %function.id, resumed, "A session was opened.");
            let record = Record::new(exchange, &route.chain, now, listed, place);
            let Upgraded { conn: upstream, early: from_upstream, .. } = upgraded;
            let legs = ((conn, &early[..]), (upstream, &from_upstream[..]));
            relay::start(slot, route.resume, legs.0, legs.1, Box::new(record), resumed);
        }
        Err(Failure::Stopped(stop)) => {
            if admitted.ticket.is_some() {
                shared.metrics.resume("reconnect", "failed");
            }
            let key = Some(accept_key.clone());
            refuse(worker, conn, &mut exchange, &route, stop, key, started).await;
        }
        Err(Failure::BrowserGone) => {
            tracing::debug!(request = %exchange.id, "The browser left before it was answered.");
            left(worker, &mut exchange, &route, started);
        }
    }
}

/// Tells the other replicas of a session; false when a browser is attached to it at another one, and stays.
async fn is_ours(shared: &Shared, listed: &Listed, seat: &Seat, route: &RouteChain) -> bool {
    if route.resume.mode == ResumeMode::Off {
        return true; // nobody comes back into it
    }
    if seat.is_new {
        shared.directory.announce(&listed.entry);
        return true;
    }
    shared.directory.take_over(&listed.entry, shared.config.sessions.viewer).await
}

/// The last line about a browser that has left before it was answered.
fn left(worker: &Worker, exchange: &mut Exchange, route: &RouteChain, started: Instant) {
    worker.shared.metrics.session_start("browser_gone");
    worker.browser_gone(exchange);
    worker.finish_request(exchange, &route.chain, 0, 0, started);
}

/// A browser that policies have let through.
struct Admitted {
    accept_key: String,
    function: Function,
    /// The session that its cookie names.
    ticket: Option<Ticket>,
    seat: Seat,
    /// The request target upstream.
    target: String,
}

struct Opened {
    upgraded: Upgraded,
    place: Place,
}

/// One of the places for sessions, given back when it is dropped.
pub(crate) struct Place(Arc<Totals>);

enum Failure {
    /// Nothing was opened.
    Stopped(Stop),
    /// Nobody is there to be told.
    BrowserGone,
}

/// Checks the handshake and asks the policies. With the accept key, a refusal may also be a Close frame.
async fn admit_browser(
    worker: &Rc<Worker>,
    manner: Manner,
    exchange: &mut Exchange,
    route: &RouteChain,
) -> Result<Admitted, (Stop, Option<String>)> {
    let shared = &worker.shared;
    let reject = |rejection: Rejection| (Stop::Reject(rejection), None);
    let accept_key = check_handshake(manner, exchange).map_err(reject)?;
    exchange.offer = Offer::parse(&exchange.headers).map_err(|code| reject(code.into()))?;
    if !exchange.offer.is_empty() {
        exchange.offer.answer(None).map_err(|code| reject(code.into()))?;
    }
    check_origin(shared.config.parts.origins.as_deref(), exchange).map_err(|code| reject(code.into()))?;

    let stop = |stop: Stop| (stop, Some(accept_key.clone()));
    let function = admit::admit(worker, &route.chain, exchange).await.map_err(stop)?;
    exchange.function = Some(function.id.clone());
    let ticket = admit::ticket(shared, &route.resume, exchange, &function);
    let seat = Seat::of(exchange, &route.resume, &function, ticket.as_ref(), shared.clock.unix());
    let target = admit::target(exchange);
    Ok(Admitted { accept_key, function, ticket, seat, target })
}

/// What became of a browser that may have a session already.
enum Back {
    /// There is none that it could go on with: it needs a connection upstream, and its earlier session makes way for it.
    No(Conn, BytesMut, Admitted, Option<Found>),
    /// It is back in its session.
    Taken,
    /// Another browser is there.
    Refused(Conn, Code, Admitted),
}

/// Puts a browser back into its session, if that is still here and wants the same as before.
#[allow(clippy::too_many_arguments)] // all that belongs to one request
async fn come_back(
    slot: &Rc<Slot>,
    worker: &Rc<Worker>,
    conn: Conn,
    early: BytesMut,
    exchange: &mut Exchange,
    route: &RouteChain,
    mut admitted: Admitted,
    started: Instant,
) -> Back {
    let shared = &worker.shared;
    let earlier = Earlier::seek(&shared.directory, &admitted.seat, admitted.ticket.take()).await;
    admitted.ticket = earlier.ticket;
    if let Some(other) = earlier.other {
        other.make_way(session::Stop::Replaced, &shared.clock).await;
    }
    let Some(found) = earlier.found else {
        return Back::No(conn, early, admitted, None);
    };
    let kind = found.kind();
    if earlier.is_replayed {
        shared.metrics.resume(kind, "replayed");
        admitted.ticket = None;
        admitted.seat = Seat::new(shared.clock.unix());
        return Back::No(conn, early, admitted, None);
    }
    let offer = &exchange.offer;
    let about = found.about();
    let is_offered = about.subprotocol.as_deref().map_or(offer.is_empty(), |it| offer.contains(it));
    let is_same = about.identity == identity(exchange, &admitted) && is_offered;
    let (conn, early) = if is_same && route.resume.mode == ResumeMode::Reattach {
        match attach(slot, worker, conn, early, exchange, route, &admitted, &found).await {
            Attached::Taken => {
                shared.metrics.session_start("resumed");
                shared.metrics.resume(kind, "resumed");
                shared.metrics.resume_took(kind, shared.clock.now() - started);
                exchange.response.status = StatusCode::SWITCHING_PROTOCOLS;
                exchange.code = Some("resumed".into());
                let session = admitted.seat.session.public_name();
                tracing::info!(request = %exchange.id, %session, principal = exchange.principal_id(), "A browser has come back into its session.");
                exchange.session.id = Some(session);
                worker.finish_request(exchange, &route.chain, 0, 0, started);
                return Back::Taken;
            }
            Attached::Lost => {
                left(worker, exchange, route, started);
                return Back::Taken;
            }
            Attached::Refused(Refused { conn, is_taken: true, .. }) => {
                shared.metrics.resume(kind, "taken");
                return Back::Refused(conn, Code::SessionTaken, admitted);
            }
            Attached::Refused(Refused { conn, early, .. }) => {
                shared.metrics.resume(kind, "gone");
                (conn, early)
            }
        }
    } else {
        (conn, early)
    };
    if shared.config.sessions.viewer == Viewer::Refuse && found.is_attached() {
        return Back::Refused(conn, Code::SessionTaken, admitted);
    }
    if admitted.ticket.is_none() && !about.request.is_empty() {
        admitted.ticket = Some(ticket_of(about, &admitted.seat)); // the browser named the session by its token
    }
    Back::No(conn, early, admitted, Some(found))
}

/// What became of a browser that was handed to a session.
enum Attached {
    Taken,
    Refused(Refused),
    /// Its session ended with it.
    Lost,
}

/// Hands a browser to its session, with the 101 that it will get there.
#[allow(clippy::too_many_arguments)] // all that belongs to one request
async fn attach(
    slot: &Rc<Slot>,
    worker: &Rc<Worker>,
    conn: Conn,
    early: BytesMut,
    exchange: &mut Exchange,
    route: &RouteChain,
    admitted: &Admitted,
    found: &Found,
) -> Attached {
    let shared = &worker.shared;
    let generation = found.generation() + 1;
    let About { subprotocol, request, began, .. } = found.about();
    let seat = Seat { session: admitted.seat.session, generation, began: *began, is_new: false };
    let mut headers = http::HeaderMap::new();
    admit::give_cookie(shared, exchange, &admitted.function, &seat, request, &mut headers);
    let Some(answer) = accepted(worker, exchange, route, admitted, headers, subprotocol.as_deref()) else {
        return Attached::Refused(Refused { conn, early, is_taken: false });
    };
    let entry = match found {
        Found::Here(entry) => entry,
        Found::There(there) => {
            let Some(counted) = Counted::beside(&shared.totals) else {
                return Attached::Refused(Refused { conn, early, is_taken: false });
            };
            let offered = Offered { identity: identity(exchange, admitted), generation, answer };
            return match there.hand_over(&offered).await {
                Handed::Taken(owner) => {
                    let mut owner = Conn::tls(*owner);
                    owner.count(counted);
                    let carrier = Carrier::new(conn, &early, offered.answer.len(), owner, &shared.clock);
                    slot.carry(worker, carrier);
                    Attached::Taken
                }
                Handed::Occupied => Attached::Refused(Refused { conn, early, is_taken: true }),
                Handed::Gone => Attached::Refused(Refused { conn, early, is_taken: false }),
            };
        }
    };
    let (reply, taken) = oneshot::channel();
    let mail = Mail::Attach(Box::new(Attach { conn, early, answer, generation, reply }));
    if let Err(Mail::Attach(unread)) = entry.post(mail) {
        unread.refuse(false);
    }
    match taken.await {
        Ok(Ok(())) => Attached::Taken,
        Ok(Err(refused)) => Attached::Refused(refused),
        Err(_) => Attached::Lost,
    }
}

/// What the cookie of a session would say.
fn ticket_of(about: &About, seat: &Seat) -> Ticket {
    let Identity { principal, function, .. } = &about.identity;
    let (principal, function) = (principal.to_string(), function.to_string());
    let Seat { session, generation, .. } = *seat;
    let (began, request) = (about.began, about.request.to_string());
    Ticket { session, generation, began, request, principal, function, expires: u64::MAX }
}

fn identity(exchange: &Exchange, admitted: &Admitted) -> Identity {
    Identity {
        principal: exchange.principal_id().into(),
        function: admitted.function.id.as_str().into(),
        target: admitted.target.as_str().into(),
    }
}

/// Opens the connection upstream.
async fn dial(
    worker: &Worker,
    conn: &mut Conn,
    early: &mut BytesMut,
    exchange: &Exchange,
    route: &RouteChain,
    admitted: &Admitted,
) -> Result<Opened, Failure> {
    let shared = &worker.shared;
    let stop = |rejection: Rejection| Failure::Stopped(Stop::Reject(rejection));
    let place = Place::claim(shared).map_err(|code| stop(code.into()))?;
    let offer = exchange.offer.passed_on().collect::<Vec<_>>().join(", ");
    let mut ticket = admitted.ticket.as_ref();
    let mut pauses = REGISTRATION.iter();
    loop {
        let mut headers = exchange.upstream.clone();
        admit::sign(shared, Some(&route.resume), &mut headers, &admitted.function, ticket).map_err(stop)?;
        let dialled = tokio::select! {
            dialled = shared.dialer.upgrade(&admitted.target, headers, &offer) => dialled,
            () = conn.gone(early) => return Err(Failure::BrowserGone),
        };
        let (error, stale) = match (dialled, ticket) {
            (Ok(upgraded), _) => return Ok(Opened { upgraded, place }),
            (Err(error), Some(stale)) if is_stale(&error) => (error, stale),
            (Err(error), _) => return Err(stop(respond::rescue_dial(&error))),
        };
        let age = shared.clock.unix().saturating_sub(stale.began);
        match pauses.next() {
            // NVCF registers a session after it has answered, so a young one may not be known yet.
            Some(pause) if age < YOUNG && forgets(&error) => {
                tokio::select! {
                    () = shared.clock.sleep(*pause) => {}
                    () = conn.gone(early) => return Err(Failure::BrowserGone),
                }
            }
            _ => {
                // The session is gone; the browser gets a new one. Once: the next answer is believed.
                tracing::info!(request = %exchange.id, %error, "A session could not be resumed; a new one is started.");
                ticket = None;
            }
        }
    }
}

/// Whether an upstream's refusal means that the session to come back into is gone (NVCF: 504, 500 mismatch, and a 404
/// that takes the cookie away; another 404 means that the function is gone).
fn is_stale(error: &DialError) -> bool {
    let DialError::Refused { status, forgets_session, .. } = error else { return false };
    matches!(status.as_u16(), 500 | 504) || (*status == StatusCode::NOT_FOUND && *forgets_session)
}

/// Whether NVCF says that it does not know the session.
fn forgets(error: &DialError) -> bool {
    matches!(error, DialError::Refused { forgets_session: true, .. })
}

/// A page of an origin that is not on the list may not open a WebSocket: browsers do not ask before they do (RFC 6455
/// section 10.2). A client without an origin is no browser.
fn check_origin(allowed: Option<&[String]>, exchange: &Exchange) -> Result<(), Code> {
    let Some(allowed) = allowed else { return Ok(()) };
    let mut origins = exchange.headers.get_all(ORIGIN).iter();
    match (origins.next().map(HeaderValue::to_str), origins.next()) {
        (None, _) => Ok(()),
        (Some(Ok(origin)), None) if allowed.iter().any(|it| it.eq_ignore_ascii_case(origin)) => Ok(()),
        _ => Err(Code::OriginRefused),
    }
}

impl Place {
    fn claim(shared: &Shared) -> Result<Place, Code> {
        let one_more = |n| (n < shared.config.sessions.max).then_some(n + 1);
        if *shared.draining.borrow() {
            return Err(Code::Draining);
        }
        let totals = &shared.totals;
        match totals.n_sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Place(Arc::clone(totals))),
            Err(_) => Err(Code::SessionsFull),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.n_sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The browser's 101 for a new session.
struct Answer {
    bytes: BytesMut,
    listed: Listed,
    /// Whether NVCF has taken up the session that the browser's cookie names.
    resumed: bool,
}

fn answer(
    worker: &Worker,
    exchange: &mut Exchange,
    route: &RouteChain,
    admitted: &Admitted,
    upgraded: &Upgraded,
) -> Result<Answer, Rejection> {
    let shared = &worker.shared;
    let subprotocol = exchange.offer.answer(upgraded.subprotocol.as_deref());
    let subprotocol = subprotocol.map_err(|code| match code {
        Code::UpstreamGarbage => {
            Rejection::because(code, "the upstream chose a subprotocol that was not offered")
        }
        code => code.into(),
    })?;
    let subprotocol = subprotocol.map(str::to_owned);
    let mut headers = crate::policy::passed_on_response(&upgraded.headers);
    let (request, forgets) = admit::take_session(&mut headers);
    let before = admitted.ticket.as_ref().map(|it| it.request.as_str());
    let resumed = before.is_some() && before == request.as_deref();
    let mut seat = admitted.seat.clone();
    seat.generation += 1;
    if !resumed {
        seat.began = shared.clock.unix();
    }
    let has_name = request.is_some();
    let request = request.unwrap_or_default();
    match route.resume.mode {
        ResumeMode::Reconnect if !has_name => {}
        ResumeMode::Off => {}
        ResumeMode::Reattach | ResumeMode::Reconnect => {
            admit::give_cookie(shared, exchange, &admitted.function, &seat, &request, &mut headers);
        }
    }
    if forgets && !has_name && route.resume.mode != ResumeMode::Reattach {
        admit::take_cookie(shared, exchange, &mut headers);
    }
    let bytes = accepted(worker, exchange, route, admitted, headers, subprotocol.as_deref())
        .ok_or_else(|| Rejection::because(Code::PluginFailed, "a plugin failed on the 101"))?;
    let about = About {
        identity: identity(exchange, admitted),
        subprotocol: subprotocol.map(Into::into),
        request: request.into(),
        began: seat.began,
    };
    let entry = Entry::new(seat.session, about, seat.generation);
    let listed = shared.directory.list(entry, shared.config.sessions.viewer);
    Ok(Answer { bytes, listed: listed.ok_or(Code::SessionTaken)?, resumed })
}

/// A 101 with what the plugins add to it; `None` when one of them failed.
fn accepted(
    worker: &Worker,
    exchange: &mut Exchange,
    route: &RouteChain,
    admitted: &Admitted,
    headers: http::HeaderMap,
    subprotocol: Option<&str>,
) -> Option<BytesMut> {
    let response =
        LocalResponse { status: StatusCode::SWITCHING_PROTOCOLS, headers, body: bytes::Bytes::new() };
    let mut response = respond::dress(response, Some(&route.chain), exchange, &worker.watch);
    if response.status != StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    let subprotocol = subprotocol.and_then(|it| HeaderValue::from_str(it).ok());
    handshake_headers(&mut response.headers, &admitted.accept_key, subprotocol);
    Some(head::write_response(response.status, &response.headers))
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
            let close = respond::close(&rejection);
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
