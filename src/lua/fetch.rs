//! The HTTP client behind `streamgate.http`: what plugins ask of other services.
//!
//! A [`Fetcher`] belongs to one worker and cannot leave its thread. Its connections are driven by the futures of the
//! requests that use them, there is no task for each, so a connection is never used from another runtime than the one
//! that drives it, and a request that is given up takes its socket along at once.
//!
//! It speaks HTTP/1.1 alone (RFC 9112): the services that plugins ask (keys, tokens, introspection) all do, and the
//! bounds on connections, heads and bodies stay what they say.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::{Position, Url};

use crate::clock::{Clock, Instant};

/// Sends requests and keeps connections for the next ones.
pub(crate) struct Fetcher {
    pool: Rc<Pool>,
}

/// What is asked.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Those that [`is_reserved`] are refused.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// From the first step, the wait for a free connection, to the last byte of the body. An hour at most.
    pub(crate) timeout: Duration,
    /// How long the response's body may be, in bytes.
    pub(crate) max_body: usize,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no response. Its text is for the operator's log and has nothing of the URL's path, query or headers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("the time was over {0}")]
    Timeout(Stage),
    #[error("{0}")]
    Unreachable(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("{0}")]
    NotAllowed(&'static str),
    #[error("{0}")]
    TooLarge(&'static str),
    #[error("{0}")]
    Broken(String),
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Queue,
    Resolve,
    Connect,
    Handshake,
    Head,
    Body,
}

/// The origins (scheme, host and port, RFC 6454) that may be asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(HashSet<Origin>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Origin {
    is_tls: bool,
    host: url::Host,
    port: u16,
}

struct Pool {
    tls: TlsConnector,
    clock: Clock,
    hosts: RefCell<HashMap<Origin, Rc<Host>>>,
    /// Whether [`tend`] runs.
    is_tended: Cell<bool>,
}

/// A host's connections. Those in use and the idle ones together are never more than [`MOST_CONNECTIONS`]: whoever
/// opens one has a slot, and either found no idle one or has just lost one.
struct Host {
    origin: Origin,
    slots: Semaphore,
    n_waiting: Cell<usize>,
    /// The one used last comes last.
    idle: RefCell<Vec<Idle>>,
    /// The lock makes one lookup of many that would be made at once.
    resolved: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

struct Idle {
    link: Link,
    since: Instant,
}

/// A request that waits for a slot.
struct Waiting<'a> {
    host: &'a Host,
    has_entered: bool,
}

/// A connection, and what drives it. It is driven only by [`Link::drive`] and [`Link::is_ready`].
struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    conn: Option<http1::Connection<TokioIo<Io>, Full<Bytes>>>,
    traffic: Rc<Traffic>,
}

/// What happened on a connection since its last request began.
#[derive(Default)]
struct Traffic {
    /// Something was given to the socket, or may have been.
    has_written: Cell<bool>,
    has_read: Cell<bool>,
}

struct Io {
    stream: Stream,
    traffic: Rc<Traffic>,
}

enum Stream {
    Plain(TcpStream),
    /// Boxed: its state is large.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A request that was checked and has its headers. It can be sent more than once.
struct Prepared {
    origin: Origin,
    method: Method,
    target: Uri,
    headers: HeaderMap,
    body: Bytes,
    max_body: usize,
}

/// How an exchange failed.
struct Failure {
    reason: Reason,
    /// The connection ended, rather than that the answer was wrong.
    is_end: bool,
}

/// For each worker and origin. A service that cannot stand so many is asked too often, and more would only wait there.
const MOST_CONNECTIONS: usize = 64;

/// Unused connections of a host, and how long they stay so. Servers close theirs after 5 s to 75 s.
const MOST_IDLE: usize = 8;
const IDLE: Duration = Duration::from_secs(30);

/// The same as what the gateway accepts from an upstream.
const MOST_HEAD: usize = 64 << 10;
const MOST_HEADERS: usize = 128;

/// Keeps the sum with the present time within what an instant can hold.
const MOST_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a resolved name is good. Short enough to follow a service that moves.
const RESOLVED_FOR: Duration = Duration::from_secs(5);

/// How many of a name's addresses are tried, and the head start of each before the next (RFC 8305 section 5): an
/// address that swallows packets must not use up the time of a name that has a better one.
const MOST_ADDRESSES: usize = 16;
const HEAD_START: Duration = Duration::from_millis(250);

const AGENT: &str = concat!("streamgate/", env!("CARGO_PKG_VERSION"));

/// Whether a header is the client's own to set: those that frame a message or belong to the connection.
pub(crate) fn is_reserved(name: &HeaderName) -> bool {
    [CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
        || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

impl Fetcher {
    /// A client without connections.
    ///
    /// What it trusts is in `tls`; the protocol offered there is set here.
    pub(crate) fn new(tls: Arc<rustls::ClientConfig>, clock: &Clock) -> Self {
        let mut tls = Arc::unwrap_or_clone(tls);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Fetcher {
            pool: Rc::new(Pool {
                tls: TlsConnector::from(Arc::new(tls)),
                clock: clock.clone(),
                hosts: RefCell::default(),
                is_tended: Cell::new(false),
            }),
        }
    }

    /// Sends a request to one of the `allowed` hosts and reads the whole response. Redirects are responses like others.
    ///
    /// A request that finds its kept connection closed is sent once more, on a new one: when nothing of it was sent, or
    /// when its method may be repeated and nothing of an answer had come (RFC 9110 section 9.2.2).
    ///
    /// # Panics
    /// Outside of a `LocalSet`, when it is polled.
    pub(crate) fn send<'a>(
        &'a self,
        request: Request,
        allowed: &Hosts,
    ) -> impl Future<Output = Result<Response, Reason>> + use<'a> {
        let timeout = request.timeout.min(MOST_TIMEOUT);
        let prepared = Prepared::new(request, allowed); // here, so that `allowed` is not held while it waits
        async move {
            let prepared = prepared?;
            let stage = Cell::new(Stage::Queue);
            let answered = self.pool.clock.timeout(timeout, self.pool.send(&prepared, &stage)).await;
            answered.unwrap_or_else(|| Err(Reason::Timeout(stage.get())))
        }
    }
}

impl Reason {
    /// The word that a plugin gets.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Reason::Timeout(_) => "timeout",
            Reason::Unreachable(_) => "unreachable",
            Reason::Tls(_) => "tls",
            Reason::NotAllowed(_) => "not_allowed",
            Reason::TooLarge(_) => "too_large",
            Reason::Broken(_) => "broken",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Queue => "before one of the host's connections was free",
            Stage::Resolve => "before the name was resolved",
            Stage::Connect => "before there was a connection",
            Stage::Handshake => "before the TLS handshake was done",
            Stage::Head => "before the head of the answer had come",
            Stage::Body => "before the body of the answer had come",
        })
    }
}

impl Hosts {
    /// Allows the origin of `url`; false when it has none that speaks HTTP.
    pub(crate) fn add(&mut self, url: &Url) -> bool {
        let origin = Origin::of(url);
        let is_http = origin.is_some();
        self.0.extend(origin);
        is_http
    }

    /// Whether the origin of `url` is allowed.
    pub(crate) fn has(&self, url: &Url) -> bool {
        Origin::of(url).is_some_and(|it| self.0.contains(&it))
    }
}

impl Origin {
    fn of(url: &Url) -> Option<Self> {
        let is_tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Origin { is_tls, host: url.host()?.to_owned(), port: url.port_or_known_default()? })
    }
}

impl Prepared {
    fn new(request: Request, allowed: &Hosts) -> Result<Self, Reason> {
        let Request { method, url, headers: asked, body, max_body, timeout: _ } = request;
        let origin = Origin::of(&url).ok_or(Reason::NotAllowed("the URL is not one of HTTP"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Reason::NotAllowed("the URL has a user name or a password in it"));
        }
        if !allowed.0.contains(&origin) {
            return Err(Reason::NotAllowed("the host is none that the plugin may reach"));
        }
        if method == Method::CONNECT {
            return Err(Reason::NotAllowed("the method makes a tunnel"));
        }
        if asked.len() > MOST_HEADERS {
            return Err(Reason::NotAllowed("there are more than 128 headers"));
        }
        if asked.keys().any(is_reserved) {
            return Err(Reason::NotAllowed("one of the headers is not the caller's to set"));
        }
        let target = &url[Position::BeforePath..Position::AfterQuery];
        let target = PathAndQuery::try_from(target)
            .map_err(|_| Reason::NotAllowed("the URL's path or query is none of HTTP"))?;
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let mut headers = HeaderMap::with_capacity(asked.len() + 3);
        let host =
            HeaderValue::try_from(host).map_err(|_| Reason::NotAllowed("the URL's host is none of HTTP"))?;
        headers.insert(HOST, host);
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if !body.is_empty() || [Method::POST, Method::PUT, Method::PATCH].contains(&method) {
            headers.insert(CONTENT_LENGTH, body.len().into()); // RFC 9110 section 8.6
        }
        headers.extend(asked); // which replaces the user agent
        Ok(Prepared { origin, method, target: target.into(), headers, body, max_body })
    }

    fn to_http(&self) -> http::Request<Full<Bytes>> {
        let mut request = http::Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

impl Pool {
    async fn send(self: &Rc<Self>, request: &Prepared, stage: &Cell<Stage>) -> Result<Response, Reason> {
        let host = self.host(&request.origin);
        let _slot = host.enter().await; // given back after the connection is
        if let Some(mut link) = host.take(&self.clock).await {
            match link.exchange(request, stage).await {
                Ok(response) => {
                    self.keep(&host, link).await;
                    return Ok(response);
                }
                Err(failure) if link.may_repeat(&failure, &request.method) => {
                    tracing::debug!(reason = %failure.reason, "A kept connection had ended; a new one is made.");
                }
                Err(failure) => return Err(failure.reason),
            }
        }
        let mut link = self.connect(&host, stage).await?;
        let response = link.exchange(request, stage).await.map_err(|failure| failure.reason)?;
        self.keep(&host, link).await;
        Ok(response)
    }

    fn host(&self, origin: &Origin) -> Rc<Host> {
        let mut hosts = self.hosts.borrow_mut();
        let host = hosts.entry(origin.clone()).or_insert_with(|| {
            Rc::new(Host {
                origin: origin.clone(),
                slots: Semaphore::new(MOST_CONNECTIONS),
                n_waiting: Cell::new(0),
                idle: RefCell::default(),
                resolved: Mutex::default(),
            })
        });
        Rc::clone(host)
    }

    /// Keeps a connection for the next request if it can be used again.
    async fn keep(self: &Rc<Self>, host: &Host, mut link: Link) {
        if poll_fn(|cx| Poll::Ready(link.is_ready(cx))).await {
            host.idle.borrow_mut().push(Idle { link, since: self.clock.now() });
            host.trim();
            if !self.is_tended.replace(true) {
                tokio::task::spawn_local(tend(Rc::downgrade(self), self.clock.clone()));
            }
        }
    }

    async fn connect(&self, host: &Host, stage: &Cell<Stage>) -> Result<Link, Reason> {
        stage.set(Stage::Resolve);
        let addresses = host.resolve(&self.clock).await?;
        stage.set(Stage::Connect);
        let tcp = match dial(&addresses, &self.clock).await {
            Ok(tcp) => tcp,
            Err(error) => {
                *host.resolved.lock().await = None;
                return Err(Reason::Unreachable(format!("cannot connect: {error}")));
            }
        };
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "A connection could not be tuned.");
        }
        let stream = if host.origin.is_tls {
            stage.set(Stage::Handshake);
            let name = host.origin.server_name()?;
            let tls = self.tls.connect(name, tcp).await.map_err(|error| Reason::Tls(explain(&error)))?;
            Stream::Tls(Box::new(tls))
        } else {
            Stream::Plain(tcp)
        };
        let traffic = Rc::new(Traffic::default());
        let io = TokioIo::new(Io { stream, traffic: Rc::clone(&traffic) });
        let mut http = http1::Builder::new();
        http.max_header_size(MOST_HEAD).max_buf_size(MOST_HEAD).max_headers(MOST_HEADERS);
        let (sender, conn) = http.handshake(io).await.map_err(|error| Failure::from(error).reason)?;
        Ok(Link { sender, conn: Some(conn), traffic })
    }
}

/// Closes connections that were idle for too long, until there is none.
async fn tend(pool: Weak<Pool>, clock: Clock) {
    loop {
        let Some(pool) = pool.upgrade() else { return };
        let now = clock.now();
        let mut oldest = None;
        pool.hosts.borrow_mut().retain(|_, host| {
            let mut idle = host.idle.borrow_mut();
            idle.retain(|it| it.is_fresh(now));
            oldest = oldest.into_iter().chain(idle.first().map(|it| it.since)).min();
            !idle.is_empty() || Rc::strong_count(host) > 1
        });
        let Some(oldest) = oldest else {
            pool.is_tended.set(false);
            return;
        };
        drop(pool);
        clock.sleep_until(clock.coarse(oldest + IDLE)).await;
    }
}

impl Origin {
    fn server_name(&self) -> Result<ServerName<'static>, Reason> {
        Ok(match &self.host {
            url::Host::Domain(name) => ServerName::try_from(name.clone())
                .map_err(|_| Reason::Tls("no certificate can be checked for the host's name".into()))?,
            url::Host::Ipv4(address) => ServerName::IpAddress((*address).into()),
            url::Host::Ipv6(address) => ServerName::IpAddress((*address).into()),
        })
    }
}

impl Host {
    /// Waits for one of the slots.
    async fn enter(&self) -> SemaphorePermit<'_> {
        let mut waiting = Waiting::new(self);
        let slot = self.slots.acquire().await.expect("the semaphore is never closed");
        waiting.has_entered = true;
        slot
    }

    /// An idle connection that still lives, the one used last.
    async fn take(&self, clock: &Clock) -> Option<Link> {
        let now = clock.now();
        poll_fn(|cx| {
            loop {
                let Some(mut idle) = self.idle.borrow_mut().pop() else { return Poll::Ready(None) };
                if idle.is_fresh(now) && idle.link.is_ready(cx) {
                    return Poll::Ready(Some(idle.link));
                }
            }
        })
        .await
    }

    /// Closes the idle connections that are too many. There may be one more for each who waits and will take it.
    fn trim(&self) {
        let mut idle = self.idle.borrow_mut();
        let surplus = idle.len().saturating_sub(MOST_IDLE + self.n_waiting.get());
        idle.drain(..surplus);
    }

    async fn resolve(&self, clock: &Clock) -> Result<Vec<SocketAddr>, Reason> {
        let port = self.origin.port;
        let name = match &self.origin.host {
            url::Host::Ipv4(address) => return Ok(vec![(*address, port).into()]),
            url::Host::Ipv6(address) => return Ok(vec![(*address, port).into()]),
            url::Host::Domain(name) => name.as_str(),
        };
        let mut resolved = self.resolved.lock().await;
        let now = clock.now();
        if let Some((at, addresses)) = &*resolved
            && now.saturating_duration_since(*at) < RESOLVED_FOR
        {
            return Ok(addresses.clone());
        }
        let found = lookup_host((name, port))
            .await
            .map_err(|error| Reason::Unreachable(format!("cannot resolve the name: {error}")))?;
        let addresses: Vec<SocketAddr> = found.take(MOST_ADDRESSES).collect();
        *resolved = Some((now, addresses.clone()));
        Ok(addresses)
    }
}

/// A connection to the first of these addresses that answers.
async fn dial(addresses: &[SocketAddr], clock: &Clock) -> io::Result<TcpStream> {
    let mut failure = io::Error::other("the name has no address");
    let mut attempts = FuturesUnordered::new();
    let mut left = addresses.iter();
    loop {
        let next = left.next();
        attempts.extend(next.map(|address| TcpStream::connect(*address)));
        let ended = match next {
            Some(_) if left.len() > 0 => clock.timeout(HEAD_START, attempts.next()).await,
            _ => Some(attempts.next().await),
        };
        match ended {
            Some(Some(Ok(tcp))) => return Ok(tcp),
            Some(Some(Err(error))) => failure = error,
            Some(None) => return Err(failure), // the last one has failed
            None => {}                         // the next one's turn
        }
    }
}

impl<'a> Waiting<'a> {
    fn new(host: &'a Host) -> Self {
        host.n_waiting.set(host.n_waiting.get() + 1);
        Waiting { host, has_entered: false }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.host.n_waiting.set(self.host.n_waiting.get() - 1);
        if !self.has_entered {
            self.host.trim(); // what was kept for it
        }
    }
}

impl Idle {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < IDLE
    }
}

impl Link {
    /// Sends a request and reads the whole response.
    async fn exchange(&mut self, request: &Prepared, stage: &Cell<Stage>) -> Result<Response, Failure> {
        stage.set(Stage::Head);
        self.traffic.has_written.set(false);
        self.traffic.has_read.set(false);
        let answer = self.sender.send_request(request.to_http());
        let (head, mut incoming) = self.drive(answer).await?.into_parts();
        stage.set(Stage::Body);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(
                Reason::Broken("answered 101 to a request that asked for no other protocol".into()).into()
            );
        }
        if incoming.size_hint().lower() > request.max_body as u64 {
            return Err(Reason::TooLarge("the body is declared larger than `max_body`").into());
        }
        let mut body = BytesMut::new();
        while let Some(frame) = self.drive(incoming.frame()).await {
            let Ok(data) = frame?.into_data() else { continue }; // trailers
            if data.len() > request.max_body - body.len() {
                return Err(Reason::TooLarge("the body is larger than `max_body`").into());
            }
            body.extend_from_slice(&data);
        }
        Ok(Response { status: head.status, headers: head.headers, body: body.freeze() })
    }

    /// Waits for what the connection is to bring, and drives it meanwhile.
    async fn drive<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let conn = &mut self.conn;
        poll_fn(|cx| {
            poll_connection(conn, cx);
            future.as_mut().poll(cx)
        })
        .await
    }

    /// Whether the connection can take a request now: it lives, and nothing of the last one is left.
    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        poll_connection(&mut self.conn, cx);
        self.conn.is_some() && self.sender.is_ready()
    }

    fn may_repeat(&self, failure: &Failure, method: &Method) -> bool {
        failure.is_end
            && !self.traffic.has_read.get()
            && (method.is_idempotent() || !self.traffic.has_written.get())
    }
}

/// Drives a connection one step. What it fails with it also tells whoever waits for it, in more words than here, and to
/// whom nobody waits it does not matter.
fn poll_connection<C: Future<Output = hyper::Result<()>> + Unpin>(
    conn: &mut Option<C>,
    cx: &mut Context<'_>,
) {
    if let Some(running) = conn
        && let Poll::Ready(_) = Pin::new(running).poll(cx)
    {
        *conn = None; // which ends what waits for it
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Failure { reason, is_end: false }
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let is_tls = sources(&error).any(|it| it.is::<rustls::Error>());
        let reason = if error.is_parse_too_large() {
            Reason::TooLarge("the head of the answer has more than 64 KiB or 128 headers")
        } else if is_tls {
            Reason::Tls(explain(&error))
        } else {
            Reason::Broken(explain(&error))
        };
        Failure { is_end: !is_tls && !error.is_parse() && !error.is_user(), reason }
    }
}

/// An error and what caused it, in one line.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    for text in sources(error).map(ToString::to_string) {
        if words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
    }
    words.join(": ")
}

/// An error, its cause, the cause's cause. What an [`io::Error`] wraps is one of them, which its `source` passes over.
fn sources<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |it| match it.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
        None => it.source(),
    })
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            self.traffic.has_read.set(true);
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.traffic.has_written.set(true);
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.traffic.has_written.set(true);
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
