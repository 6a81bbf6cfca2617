//! Plain HTTP: policies are asked, the request goes upstream, and the answer comes back.
//!
//! All of it is one task. The upstream's side of the protocol is Pingora's HTTP/1 session. Pingora's proxy is not used:
//! its two tasks and two channels for each request took as much CPU as all the rest (`ARCHITECTURE.md`).

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::{Error, ErrorType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config;
use crate::gateway::admit::{self, Seat};
use crate::gateway::body::Body;
use crate::gateway::conn::Conn;
use crate::gateway::head::{self, Manner};
use crate::gateway::pool::Pool;
use crate::gateway::respond;
use crate::gateway::worker::{Worker, close_politely};
use crate::lua::RouteChain;
use crate::policy::{Exchange, Function, Phase, ResponseHead, Stop, passed_back};
use crate::rejection::{Code, Rejection};

/// Time between two pieces of a body, and for a write of one.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes read of a request's body at a time, and bytes of an answer that are gathered before they are written.
const PIECE: usize = 16 << 10;

/// Serves one request; gives the connection back when another may follow. `own` has the connections upstream that this
/// browser's connection may use again.
#[allow(clippy::too_many_arguments)] // what a connection knows at this point, used once
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    conn: Conn,
    rest: BytesMut,
    manner: Manner,
    mut exchange: Exchange,
    route: RouteChain,
    own: &Pool,
    started: Instant,
) -> Option<(Conn, BytesMut)> {
    let body = Body::of(&exchange.headers);
    let mut forward = Forward {
        worker,
        route: &route,
        exchange: &mut exchange,
        manner,
        own,
        conn,
        rest,
        is_passed_on: body.is_done(),
        body,
        n_received: 0,
        n_sent: 0,
        is_answered: false,
    };
    let served = forward.serve().await;
    let Forward { mut conn, rest, body, n_received, n_sent, is_answered, .. } = forward;
    let stop = match served {
        Err(Failure::Stopped(stop)) => stop,
        Err(Failure::Upstream(error)) => Stop::Reject(respond::rescue(&error)),
        Ok(_) | Err(Failure::BrowserGone) => {
            if served.is_err() && !is_answered {
                tracing::debug!(request = %exchange.id, "The browser left before it was answered.");
                worker.browser_gone(&mut exchange);
            }
            worker.finish_request(&mut exchange, &route.chain, n_sent, n_received, started);
            return matches!(served, Ok(true)).then_some((conn, rest));
        }
    };
    let response = match stop {
        Stop::Reject(rejection) if is_answered => {
            // The head is on its way; that the connection breaks in the middle is all that can be said.
            exchange.code = Some(rejection.code.as_str().to_owned());
            drop(worker.rejected(rejection));
            conn.reset_on_drop();
            worker.finish_request(&mut exchange, &route.chain, n_sent, n_received, started);
            return None;
        }
        Stop::Reject(rejection) => respond::reject(worker.rejected(rejection), &mut exchange),
        Stop::Respond(response) => *response,
    };
    let keep_alive = manner.keeps_alive && body.is_done();
    conn = worker.answer(conn, response, Some(&route), &mut exchange, keep_alive, started).await?;
    Some((conn, rest))
}

/// A request on its way.
struct Forward<'a> {
    worker: &'a Rc<Worker>,
    route: &'a RouteChain,
    exchange: &'a mut Exchange,
    manner: Manner,
    own: &'a Pool,
    conn: Conn,
    /// What the browser has sent beyond what was looked at.
    rest: BytesMut,
    body: Body,
    /// All of the body went upstream.
    is_passed_on: bool,
    /// Bytes of bodies.
    n_received: u64,
    n_sent: u64,
    /// The head of the answer was written.
    is_answered: bool,
}

/// What goes upstream.
struct Prepared {
    target: String,
    headers: HeaderMap,
    function: Function,
    seat: Seat,
}

/// Why a request was not served to its end.
enum Failure {
    /// The browser is told, if it still can be.
    Stopped(Stop),
    /// The upstream failed.
    Upstream(Box<Error>),
    /// Nobody is there to be told.
    BrowserGone,
}

/// What a browser says while its request is on its way.
enum Said {
    /// More of the body.
    Piece(Bytes),
    /// The end of the body.
    End,
}

/// How the end of an answer is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Its length is in the head, or it has no body.
    Length,
    Chunks,
    /// It ends with the connection.
    Close,
}

impl Forward<'_> {
    /// True when another request may follow.
    async fn serve(&mut self) -> Result<bool, Failure> {
        let prepared = tokio::select! {
            biased;
            prepared = prepare(self.worker, self.manner, self.exchange, self.route) => prepared?,
            () = self.conn.gone(&mut self.rest) => return Err(Failure::BrowserGone),
        };
        let upstream = self.ask(&prepared).await?;
        self.answer(upstream, &prepared).await
    }

    /// Sends the request; gives the connection once the head of the answer has come.
    async fn ask(&mut self, prepared: &Prepared) -> Result<HttpSession, Failure> {
        let shared = &self.worker.shared;
        loop {
            let used = self.pool().and_then(|it| it.take(shared.clock.now()));
            let was_used = used.is_some();
            let conn = match used {
                Some(conn) => conn,
                None => tokio::select! {
                    conn = shared.dialer.dial() => {
                        conn.map_err(|error| Stop::Reject(respond::rescue_dial(&error)))?
                    }
                    () = self.conn.gone(&mut self.rest) => return Err(Failure::BrowserGone),
                },
            };
            let mut upstream = HttpSession::new(Box::new(conn));
            upstream.read_timeout = Some(shared.config.upstream.handshake_timeout);
            upstream.write_timeout = Some(BODY_TIMEOUT);
            match self.send(&mut upstream, prepared).await {
                Ok(()) => return Ok(upstream),
                // A server may close a connection at the moment in which it is used again; then it has not read the request.
                Err(Failure::Upstream(error)) if was_used && self.may_repeat(&error) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Where the connection comes from and goes to afterwards.
    fn pool(&self) -> Option<&Pool> {
        match self.worker.shared.config.upstream.pool {
            config::Pool::Never => None,
            config::Pool::PerClient => Some(self.own),
            config::Pool::Shared => Some(&self.worker.pool),
        }
    }

    fn may_repeat(&self, error: &Error) -> bool {
        let is_closed = matches!(
            error.etype(),
            ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError
        );
        is_closed && self.n_received == 0 && self.exchange.method.is_idempotent()
    }

    /// Sends head and body until the head of the final answer has come.
    async fn send(&mut self, upstream: &mut HttpSession, prepared: &Prepared) -> Result<(), Failure> {
        upstream.write_request_header(prepared.head(&self.exchange.method)?).await?;
        loop {
            tokio::select! {
                biased;
                read = upstream.read_response() => {
                    read?;
                    match upstream.get_status() {
                        Some(StatusCode::SWITCHING_PROTOCOLS) => {
                            let what = "answered 101 to a request that is no handshake";
                            return Err(Stop::Reject(Rejection::because(Code::UpstreamGarbage, what)).into());
                        }
                        Some(status) if status.is_informational() => self.inform(upstream, status).await?,
                        _ => return Ok(()),
                    }
                }
                said = self.hear() => {
                    if let Err(failure) = self.pass_on(upstream, said?).await {
                        // Whoever does not want the body may say so, and read no more of it.
                        upstream.read_response().await.map_err(|_| failure)?;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What the browser says next. Once all of the body has come, that is nothing, until it is gone.
    async fn hear(&mut self) -> Result<Said, Failure> {
        let malformed = |it| Stop::Reject(Rejection::because(Code::Malformed, it));
        loop {
            if let Some(piece) = self.body.next(&mut self.rest).map_err(malformed)? {
                return Ok(Said::Piece(piece));
            }
            if self.body.is_done() {
                if !self.is_passed_on {
                    return Ok(Said::End);
                }
                self.conn.gone(&mut self.rest).await;
                return Err(Failure::BrowserGone);
            }
            self.rest.reserve(PIECE);
            let read = self.conn.read_buf(&mut self.rest);
            match self.worker.shared.clock.timeout(BODY_TIMEOUT, read).await {
                Some(Ok(n)) if n > 0 => {}
                Some(_) => return Err(Failure::BrowserGone),
                None => return Err(Stop::Reject(Code::HeadTimeout.into()).into()),
            }
        }
    }

    async fn pass_on(&mut self, upstream: &mut HttpSession, said: Said) -> Result<(), Failure> {
        match said {
            Said::Piece(piece) => {
                self.n_received += piece.len() as u64;
                upstream.write_body(&piece).await?;
            }
            Said::End => {
                self.is_passed_on = true;
                upstream.finish_body().await?;
            }
        }
        Ok(())
    }

    /// An informational answer, before the one proper.
    async fn inform(&mut self, upstream: &HttpSession, status: StatusCode) -> Result<(), Failure> {
        let Some(response) = upstream.resp_header().filter(|_| self.manner.minor > 0) else { return Ok(()) };
        self.write(&mut head::write_response(status, &passed_back(&response.headers))).await
    }

    /// Passes the answer back. True when another request may follow.
    async fn answer(&mut self, mut upstream: HttpSession, prepared: &Prepared) -> Result<bool, Failure> {
        let (mut out, framing, keeps_alive) = self.begin(&upstream, prepared)?;
        self.is_answered = true;
        while !upstream.is_body_done() {
            let piece = match upstream.read_body_bytes().now_or_never() {
                Some(piece) => piece,
                None => {
                    self.write(&mut out).await?; // what is there already does not wait for what is not
                    tokio::select! {
                        biased;
                        piece = upstream.read_body_bytes() => piece,
                        said = self.hear() => {
                            self.pass_on(&mut upstream, said?).await?;
                            continue;
                        }
                    }
                }
            };
            let Some(piece) = piece? else { break };
            self.n_sent += piece.len() as u64;
            framing.put(&mut out, &piece);
            if out.len() >= PIECE {
                self.write(&mut out).await?;
            }
        }
        framing.end(&mut out);
        let worker = self.worker;
        let (clock, is_whole) = (&worker.shared.clock, self.is_passed_on);
        if is_whole && self.pool().is_some() {
            upstream.respect_keepalive();
            if let Some(stream) = upstream.reuse().await
                && let Ok(conn) = stream.into_any().downcast::<Conn>()
                && let Some(pool) = self.pool()
            {
                pool.put(*conn, clock.now());
            }
        }
        if keeps_alive && is_whole {
            self.write(&mut out).await?;
            return Ok(true);
        }
        close_politely(&mut self.conn, &out, clock).await;
        Ok(false)
    }

    /// The head of the answer, as the policies want it; how its end is told, and whether the connection goes on after it.
    fn begin(
        &mut self,
        upstream: &HttpSession,
        prepared: &Prepared,
    ) -> Result<(BytesMut, Framing, bool), Failure> {
        let (shared, Prepared { function, seat, .. }) = (&self.worker.shared, prepared);
        let response = upstream.resp_header().expect("it was waited for");
        let status = response.status;
        if status == StatusCode::UNAUTHORIZED {
            // The key is the gateway's, so a browser that is told to log in could do nothing about it.
            let rejection = Rejection::because(Code::UpstreamKey, "the upstream answered 401");
            return Err(Stop::Reject(rejection).into());
        }
        let mut headers = passed_back(&response.headers);
        let length = headers.remove(CONTENT_LENGTH);
        admit::keep_session(shared, &self.route.resume, self.exchange, function, seat, &mut headers);
        self.exchange.response = ResponseHead { status, headers };
        self.route.chain.run_now(Phase::ResponseHeaders, self.exchange, &self.worker.watch)?;

        let has_none = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let framing = if has_none || self.exchange.method == Method::HEAD || length.is_some() {
            Framing::Length
        } else if self.manner.minor > 0 {
            Framing::Chunks
        } else {
            Framing::Close
        };
        let headers = &mut self.exchange.response.headers;
        for name in [CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(name); // not for a plugin to say
        }
        match (framing, length) {
            (Framing::Length, Some(length)) if status != StatusCode::NO_CONTENT => {
                headers.insert(CONTENT_LENGTH, length);
            }
            (Framing::Chunks, _) => {
                headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            _ => {}
        }
        let keeps_alive = self.manner.keeps_alive && framing != Framing::Close && !self.worker.is_draining();
        headers
            .insert(CONNECTION, HeaderValue::from_static(if keeps_alive { "keep-alive" } else { "close" }));
        if !headers.contains_key(DATE) {
            respond::stamp(headers, &shared.clock);
        }
        Ok((head::write_response(status, headers), framing, keeps_alive))
    }

    /// Writes all of `out` to the browser.
    async fn write(&mut self, out: &mut BytesMut) -> Result<(), Failure> {
        let written = async {
            self.conn.write_all(out).await?;
            self.conn.flush().await
        };
        let written = self.worker.shared.clock.timeout(BODY_TIMEOUT, written).await;
        out.clear();
        match written {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => Err(Failure::BrowserGone),
        }
    }
}

impl Framing {
    fn put(self, out: &mut BytesMut, piece: &[u8]) {
        match self {
            Framing::Chunks if piece.is_empty() => {} // it would be the end
            Framing::Chunks => {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            Framing::Length | Framing::Close => out.extend_from_slice(piece),
        }
    }

    fn end(self, out: &mut BytesMut) {
        if self == Framing::Chunks {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }
}

impl Prepared {
    fn head(&self, method: &Method) -> Result<Box<RequestHeader>, Failure> {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = method.clone();
        parts.headers = self.headers.clone();
        let mut head = RequestHeader::from(parts);
        let set = head.set_raw_path(self.target.as_bytes());
        set.map_err(|it| Stop::Reject(Rejection::because(Code::Malformed, it)))?;
        Ok(Box::new(head))
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Failure::Stopped(stop)
    }
}

impl From<Box<Error>> for Failure {
    fn from(error: Box<Error>) -> Self {
        Failure::Upstream(error)
    }
}

/// Asks the policies; gives what goes upstream.
async fn prepare(
    worker: &Rc<Worker>,
    manner: Manner,
    exchange: &mut Exchange,
    route: &RouteChain,
) -> Result<Prepared, Stop> {
    let shared = &worker.shared;
    let function = admit::admit(worker, &route.chain, exchange).await?;
    exchange.function = Some(function.id.clone());
    let ticket = admit::ticket(shared, &route.resume, exchange, &function);
    let seat = Seat::of(exchange, &function, ticket.as_ref(), shared.clock.unix());
    admit::upstream_headers(worker, &route.chain, exchange, &seat).await?;
    let mut headers = std::mem::take(&mut exchange.upstream);
    admit::sign(shared, &route.resume, &mut headers, &function, ticket.as_ref()).map_err(Stop::Reject)?;
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING] {
        match exchange.headers.get(&name) {
            Some(value) => drop(headers.insert(name, value.clone())),
            None => drop(headers.remove(name)),
        }
    }
    let connection = if manner.keeps_alive { "keep-alive" } else { "close" };
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
    Ok(Prepared { target: admit::target(exchange), headers, function, seat })
}
