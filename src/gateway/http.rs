//! Plain HTTP: policies are asked, the request goes upstream, and the answer comes back.
//!
//! All of it is one task, which reads and writes both connections itself. Pingora did it before, first its proxy and then
//! its session; what that cost is in `ARCHITECTURE.md`.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::clock::Timer;
use crate::config;
use crate::gateway::admit::{self, Seat};
use crate::gateway::body::{Body, clear_length, may_have_body};
use crate::gateway::conn::Conn;
use crate::gateway::head::{self, Heads, Manner};
use crate::gateway::pool::Pool;
use crate::gateway::respond;
use crate::gateway::upstream::{self, DialError, MOST_INFORMATIONAL, never_final};
use crate::gateway::worker::{Worker, close_politely};
use crate::lua::RouteChain;
use crate::policy::{Exchange, Function, Phase, ResponseHead, Stop, passed_back};
use crate::rejection::{Code, Rejection};

/// Time between two pieces of a body, either way, and for a write of one.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes read of a body at a time, and bytes that are gathered before they are written.
const PIECE: usize = 16 << 10;

/// Bytes read of an answer first. Most heads fit, and many bodies with them.
const HEAD: usize = 4 << 10;

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
    timer: &mut Timer,
    started: Instant,
) -> Option<(Conn, BytesMut)> {
    let body = Body::of(&exchange.headers);
    let framing = match body {
        Body::Chunks(_) => Framing::Chunks,
        _ => Framing::Length,
    };
    let mut forward = Forward {
        worker,
        route: &route,
        exchange: &mut exchange,
        manner,
        own,
        timer,
        conn,
        rest,
        is_passed_on: body.is_done(),
        body,
        framing,
        n_received: 0,
        n_sent: 0,
        is_answered: false,
    };
    let served = forward.serve().await;
    let Forward { mut conn, rest, body, n_received, n_sent, is_answered, .. } = forward;
    let stop = match served {
        Err(Failure::Stopped(stop)) => stop,
        Err(Failure::Upstream(error)) => Stop::Reject(respond::rescue_dial(&error)),
        Ok(_) | Err(Failure::BrowserGone) => {
            match served {
                Err(_) if is_answered => conn.reset_on_drop(), // what has come is not all, and must not look like it
                Err(_) => {
                    tracing::debug!(request = %exchange.id, "The browser left before it was answered.");
                    worker.browser_gone(&mut exchange);
                }
                Ok(_) => {}
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
    /// The one of the browser's connection.
    timer: &'a mut Timer,
    conn: Conn,
    /// What the browser has sent beyond what was looked at.
    rest: BytesMut,
    body: Body,
    /// How the body goes upstream: as it came.
    framing: Framing,
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

/// A connection that the request goes over.
struct Upstream {
    conn: Conn,
    /// What it has said beyond what was looked at.
    buf: BytesMut,
    has_spoken: bool,
    /// What it has not taken yet.
    out: BytesMut,
    /// What was written may stand in a buffer.
    needs_flush: bool,
    /// Why it takes no more.
    failed: Option<DialError>,
    /// It takes no more. It may have said why.
    is_deaf: bool,
}

/// What has happened on the way upstream.
enum Moved {
    /// It has said something.
    Read,
    /// It has taken something.
    Written,
    /// It says no more.
    End,
}

/// An answer whose head was read.
struct Answer {
    upstream: Upstream,
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
    /// Another request may follow.
    keeps_alive: bool,
}

/// Why a request was not served to its end.
enum Failure {
    /// The browser is told, if it still can be.
    Stopped(Stop),
    /// The upstream failed.
    Upstream(DialError),
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
        let answer = self.ask(&prepared).await?;
        self.answer(answer, &prepared).await
    }

    /// Sends the request; gives the answer once its head has come.
    async fn ask(&mut self, prepared: &Prepared) -> Result<Answer, Failure> {
        let shared = &self.worker.shared;
        loop {
            let used = self.pool().and_then(|it| it.take(shared.clock.now()));
            let was_used = used.is_some();
            let conn = match used {
                Some(conn) => conn,
                None => tokio::select! {
                    conn = shared.dialer.dial() => conn?,
                    () = self.conn.gone(&mut self.rest) => return Err(Failure::BrowserGone),
                },
            };
            match self.send(conn, prepared).await {
                // A server may close a connection at the moment in which it is used again; then it has not read the request.
                Err(Failure::Upstream(DialError::Closed(_))) if was_used && self.may_repeat() => {}
                sent => return sent,
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

    fn may_repeat(&self) -> bool {
        self.n_received == 0 && self.exchange.method.is_idempotent()
    }

    /// Sends head and body until the head of the final answer has come. Whoever does not want the body may say so while it
    /// is on its way, and take no more of it.
    async fn send(&mut self, conn: Conn, prepared: &Prepared) -> Result<Answer, Failure> {
        let head = head::write_request(&self.exchange.method, &prepared.target, 1, &prepared.headers);
        let mut upstream = Upstream::new(conn, head);
        if self.is_passed_on {
            self.framing.end(&mut upstream.out); // an empty body goes once more, over another connection than before
        }
        // What has come of the body already goes along.
        self.gather(&mut upstream.out)?;
        let worker = self.worker;
        let (clock, patience) = (&worker.shared.clock, worker.shared.config.upstream.handshake_timeout);
        let (mut since, mut heads, mut n_informational) = (clock.now(), Heads::default(), 0);
        loop {
            while let Some(head) = upstream::next_head(&mut heads, &mut upstream.buf)? {
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    let what = "answered 101 to a request that is no handshake";
                    return Err(DialError::Garbage(what.into()).into());
                }
                if !head.status.is_informational() {
                    return Ok(upstream.answers(head, &self.exchange.method)?);
                }
                n_informational += 1;
                if n_informational > MOST_INFORMATIONAL {
                    return Err(never_final().into());
                }
                self.announce(head).await?;
                since = clock.now();
            }
            let is_whole = self.is_passed_on || upstream.is_deaf;
            let until = since + if is_whole { patience } else { BODY_TIMEOUT };
            let may_hear = self.is_passed_on || upstream.takes_more();
            tokio::select! {
                biased;
                moved = upstream.moves(!self.is_passed_on) => match moved? {
                    Moved::Read => {}
                    Moved::Written => since = clock.now(),
                    Moved::End => return Err(upstream.ended().into()),
                },
                said = hear(&mut self.conn, &mut self.rest, &mut self.body, self.is_passed_on), if may_hear => {
                    self.put(&mut upstream.out, &said?);
                    self.gather(&mut upstream.out)?;
                    since = clock.now();
                }
                () = poll_fn(|cx| self.timer.poll_lazily(cx, clock, until)) => {
                    return Err(if is_whole || !upstream.out.is_empty() {
                        DialError::Timeout.into()
                    } else {
                        Stop::Reject(Code::HeadTimeout.into()).into()
                    });
                }
            }
        }
    }

    /// Passes an informational answer on. It has neither a length nor a session.
    async fn announce(&mut self, head: head::ResponseHead) -> Result<(), Failure> {
        if self.manner.minor == 0 {
            return Ok(()); // HTTP/1.0 does not know them
        }
        let mut headers = passed_back(head.headers);
        headers.remove(CONTENT_LENGTH);
        admit::take_session(&mut headers);
        self.write(&mut head::write_response(head.status, &headers)).await
    }

    /// What has come of the body already goes into what goes upstream.
    fn gather(&mut self, out: &mut BytesMut) -> Result<(), Stop> {
        while out.len() < PIECE && !self.is_passed_on {
            match look(&mut self.rest, &mut self.body, self.is_passed_on)? {
                Some(said) => self.put(out, &said),
                None => break,
            }
        }
        Ok(())
    }

    /// What the browser says goes into what goes upstream.
    fn put(&mut self, out: &mut BytesMut, said: &Said) {
        match said {
            Said::Piece(piece) => {
                self.n_received += piece.len() as u64;
                self.framing.put(out, piece);
            }
            Said::End => {
                self.is_passed_on = true;
                self.framing.end(out);
            }
        }
    }

    /// Passes the answer back. True when another request may follow.
    async fn answer(&mut self, mut answer: Answer, prepared: &Prepared) -> Result<bool, Failure> {
        let (mut out, framing, keeps_alive) = self.begin(&mut answer, prepared)?;
        self.is_answered = true;
        let clock = &self.worker.shared.clock;
        loop {
            while let Some(piece) = answer.next()? {
                self.n_sent += piece.len() as u64;
                framing.put(&mut out, &piece);
                if out.len() >= PIECE {
                    self.write(&mut out).await?;
                }
            }
            if answer.body.is_done() {
                break;
            }
            let moved = match answer.upstream.moves(!self.is_passed_on).now_or_never() {
                Some(moved) => moved?,
                None => {
                    self.write(&mut out).await?; // what is there already does not wait for what is not
                    let until = clock.now() + BODY_TIMEOUT;
                    let may_hear = self.is_passed_on || answer.upstream.takes_more();
                    tokio::select! {
                        biased;
                        moved = answer.upstream.moves(!self.is_passed_on) => moved?,
                        said = hear(&mut self.conn, &mut self.rest, &mut self.body, self.is_passed_on), if may_hear => {
                            self.put(&mut answer.upstream.out, &said?);
                            self.gather(&mut answer.upstream.out)?;
                            continue;
                        }
                        () = poll_fn(|cx| self.timer.poll_lazily(cx, clock, until)) => {
                            return Err(DialError::Timeout.into());
                        }
                    }
                }
            };
            if let Moved::End = moved {
                answer.end()?;
            }
        }
        framing.end(&mut out);
        if self.is_passed_on
            && let Some(pool) = self.pool()
            && let Some(conn) = answer.reuse()
        {
            pool.put(conn, clock.now());
        }
        self.write(&mut out).await?;
        if !keeps_alive {
            close_politely(&mut self.conn, &[], clock).await;
        }
        Ok(keeps_alive)
    }

    /// The head of the answer, as the policies want it; how its end is told, and whether the connection goes on after it.
    fn begin(
        &mut self,
        answer: &mut Answer,
        prepared: &Prepared,
    ) -> Result<(BytesMut, Framing, bool), Failure> {
        let (shared, Prepared { function, seat, .. }) = (&self.worker.shared, prepared);
        let status = answer.status;
        if status == StatusCode::UNAUTHORIZED {
            // The key is the gateway's, so a browser that is told to log in could do nothing about it.
            let rejection = Rejection::because(Code::UpstreamKey, "the upstream answered 401");
            return Err(Stop::Reject(rejection).into());
        }
        let length = clear_length(&answer.headers).cloned();
        let mut headers = passed_back(std::mem::take(&mut answer.headers));
        admit::keep_session(shared, &self.route.resume, self.exchange, function, seat, &mut headers);
        self.exchange.response = ResponseHead { status, headers };
        self.route.chain.run_now(Phase::ResponseHeaders, self.exchange, &self.worker.watch)?;

        let framing = if !may_have_body(status) || self.exchange.method == Method::HEAD || length.is_some() {
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
        // A browser that is answered before it has said all would have to say the rest before its next request.
        let is_heard = self.is_passed_on;
        let keeps_alive =
            is_heard && self.manner.keeps_alive && framing != Framing::Close && !self.worker.is_draining();
        headers
            .insert(CONNECTION, HeaderValue::from_static(if keeps_alive { "keep-alive" } else { "close" }));
        if !headers.contains_key(DATE) {
            respond::stamp(headers, &shared.clock);
        }
        Ok((head::write_response(status, headers), framing, keeps_alive))
    }

    /// Writes all of `out` to the browser.
    async fn write(&mut self, out: &mut BytesMut) -> Result<(), Failure> {
        let written = self.worker.shared.clock.timeout(BODY_TIMEOUT, self.conn.write_out(out)).await;
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

impl Upstream {
    fn new(conn: Conn, out: BytesMut) -> Upstream {
        let buf = BytesMut::new();
        Upstream { conn, buf, has_spoken: false, out, needs_flush: false, failed: None, is_deaf: false }
    }

    /// Whether there is room for more to be said to it.
    fn takes_more(&self) -> bool {
        !self.is_deaf && self.out.len() < PIECE
    }

    /// Writes what is due and reads, until something has come. With `has_more` also until something was taken, since more
    /// can follow then. Nothing is lost when the future is dropped.
    async fn moves(&mut self, has_more: bool) -> Result<Moved, DialError> {
        poll_fn(|cx| self.poll_moves(cx, has_more)).await
    }

    fn poll_moves(&mut self, cx: &mut Context<'_>, has_more: bool) -> Poll<Result<Moved, DialError>> {
        match self.poll_write(cx) {
            Ok(true) if has_more => return Poll::Ready(Ok(Moved::Written)),
            Ok(_) => {}
            Err(error) => {
                self.failed = Some(DialError::Closed(error));
                self.is_deaf = true;
                self.out.clear();
            }
        }
        self.buf.reserve(if self.has_spoken { PIECE } else { HEAD });
        let read = pin!(self.conn.read_buf(&mut self.buf));
        Poll::Ready(match std::task::ready!(read.poll(cx)) {
            Ok(0) => Ok(Moved::End),
            Ok(_) => {
                self.has_spoken = true;
                Ok(Moved::Read)
            }
            Err(error) => Err(self.failed.take().unwrap_or(DialError::Closed(error))),
        })
    }

    /// Writes as much as is taken now; whether it was any of it.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> std::io::Result<bool> {
        let mut has_written = false;
        while !self.out.is_empty() {
            match Pin::new(&mut self.conn).poll_write(cx, &self.out)? {
                Poll::Ready(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => self.out.advance(n),
                Poll::Pending => return Ok(has_written),
            }
            (has_written, self.needs_flush) = (true, true);
        }
        if self.needs_flush && Pin::new(&mut self.conn).poll_flush(cx)?.is_ready() {
            self.needs_flush = false;
        }
        Ok(has_written)
    }

    /// Why it ended before the answer did.
    fn ended(&mut self) -> DialError {
        let early = || DialError::Closed(std::io::ErrorKind::UnexpectedEof.into());
        self.failed.take().unwrap_or_else(early)
    }

    /// The head of the answer was read.
    fn answers(self, head: head::ResponseHead, method: &Method) -> Result<Answer, DialError> {
        let body = Body::of_answer(method, head.minor, head.status, &head.headers)
            .map_err(|it| DialError::Garbage(it.to_string()))?;
        let keeps_alive = head.keeps_alive();
        Ok(Answer { upstream: self, status: head.status, headers: head.headers, body, keeps_alive })
    }
}

impl Answer {
    /// The next piece of the body in what has come.
    fn next(&mut self) -> Result<Option<Bytes>, DialError> {
        self.body.next(&mut self.upstream.buf).map_err(|it| DialError::Garbage(it.to_string()))
    }

    /// The connection has ended, which may be how the body ends.
    fn end(&mut self) -> Result<(), DialError> {
        if !self.body.ends_with_connection() {
            return Err(self.upstream.ended());
        }
        self.body = Body::Done;
        self.keeps_alive = false;
        Ok(())
    }

    /// The connection, if another request may use it: all of this one was taken, the answer has ended, and nothing came
    /// after it.
    fn reuse(self) -> Option<Conn> {
        let Upstream { conn, buf, out, needs_flush, is_deaf, .. } = self.upstream;
        let is_told = out.is_empty() && !needs_flush && !is_deaf;
        (is_told && self.keeps_alive && self.body.is_done() && buf.is_empty()).then_some(conn)
    }
}

/// What the browser has said already. Once all of the body has come, that is nothing more.
fn look(rest: &mut BytesMut, body: &mut Body, is_passed_on: bool) -> Result<Option<Said>, Stop> {
    let malformed = |it| Stop::Reject(Rejection::because(Code::Malformed, it));
    let piece = body.next(rest).map_err(malformed)?;
    Ok(piece.map(Said::Piece).or_else(|| (body.is_done() && !is_passed_on).then_some(Said::End)))
}

/// What the browser says next. Once all of the body has come, that is nothing, until it is gone.
async fn hear(
    conn: &mut Conn,
    rest: &mut BytesMut,
    body: &mut Body,
    is_passed_on: bool,
) -> Result<Said, Failure> {
    loop {
        if let Some(said) = look(rest, body, is_passed_on)? {
            return Ok(said);
        }
        if body.is_done() {
            conn.gone(rest).await;
            return Err(Failure::BrowserGone);
        }
        rest.reserve(PIECE);
        match conn.read_buf(rest).await {
            Ok(n) if n > 0 => {}
            Ok(_) | Err(_) => return Err(Failure::BrowserGone),
        }
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Failure::Stopped(stop)
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
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
    let seat = Seat::of(exchange, &route.resume, &function, ticket.as_ref(), shared.clock.unix());
    admit::upstream_headers(worker, &route.chain, exchange, &seat).await?;
    let mut headers = std::mem::take(&mut exchange.upstream);
    admit::sign(shared, Some(&route.resume), &mut headers, &function, ticket.as_ref())
        .map_err(Stop::Reject)?;
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
