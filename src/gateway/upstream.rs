//! The way to the upstream: names, connections, and the WebSocket handshake there.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, Method, StatusCode};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use crate::clock::Clock;
use crate::config;
use crate::gateway::Totals;
use crate::gateway::body::Body;
use crate::gateway::conn::{Conn, Counted};
use crate::gateway::head::{self, HeadError, Limits};

/// Dials the upstream.
pub(crate) struct Dialer {
    server: config::Server,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    connect_timeout: Duration,
    handshake_timeout: Duration,
    resolved: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
    clock: Clock,
    totals: Arc<Totals>,
}

/// An upstream that has answered 101.
#[derive(Debug)]
pub(crate) struct Upgraded {
    pub(crate) conn: Conn,
    /// What came right after the head.
    pub(crate) early: Bytes,
    pub(crate) headers: HeaderMap,
    /// The subprotocol it chose.
    pub(crate) subprotocol: Option<String>,
}

/// An answer whose head was read.
pub(crate) struct Answered {
    conn: Conn,
    pub(crate) status: StatusCode,
    /// Minor version of HTTP/1.
    minor: u8,
    headers: HeaderMap,
    /// What came after the head.
    rest: BytesMut,
}

/// Why there is no upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot resolve the upstream's name: {0}")]
    Resolve(std::io::Error),
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("the process may open no further file")]
    Full,
    #[error("no connection within `upstream.connect_timeout`")]
    ConnectTimeout,
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("no answer within `upstream.handshake_timeout`")]
    Timeout,
    #[error("the connection ended before the answer: {0}")]
    Closed(std::io::Error),
    #[error("{0}")]
    Garbage(String),
    #[error("answered {status}: {body:?}")]
    Refused {
        status: StatusCode,
        /// It told the browser to forget the session: this session is gone, rather than the function.
        forgets_session: bool,
        /// The beginning of its body.
        body: String,
    },
}

/// How long a resolved name is good. Short enough to follow a moved front door.
const RESOLVED_FOR: Duration = Duration::from_secs(5);

/// A response head has NVCF's headers and an app's cookies.
const LIMITS: Limits = Limits { head: 64 << 10, headers: 128 };

/// Informational answers before the final one.
pub(crate) const MOST_INFORMATIONAL: usize = 8;

/// As much of a refusal's body as the log shows, and how long it is waited for.
const BODY: usize = 256;
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

impl Dialer {
    pub(crate) fn new(
        config: &config::Upstream,
        tls: Option<Arc<rustls::ClientConfig>>,
        clock: &Clock,
        totals: &Arc<Totals>,
    ) -> Result<Self, config::Problem> {
        let server = config.server.clone();
        let tls = match tls {
            None => None,
            Some(tls) => {
                let name = ServerName::try_from(server.host.clone()).map_err(|_| {
                    let message = format!("no certificate can be checked for the name {:?}", server.host);
                    config::Problem::new(config::Place::Nowhere, "upstream.server", message)
                })?;
                Some((TlsConnector::from(tls), name))
            }
        };
        Ok(Dialer {
            server,
            tls,
            connect_timeout: config.connect_timeout,
            handshake_timeout: config.handshake_timeout,
            resolved: Mutex::new(None),
            clock: clock.clone(),
            totals: Arc::clone(totals),
        })
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, DialError> {
        let now = self.clock.now();
        if let Some((at, addresses)) = &*self.resolved.lock().unwrap_or_else(PoisonError::into_inner)
            && now.saturating_duration_since(*at) < RESOLVED_FOR
        {
            return Ok(addresses.clone());
        }
        let found =
            lookup_host((self.server.host.as_str(), self.server.port)).await.map_err(DialError::Resolve)?;
        let addresses: Vec<SocketAddr> = found.collect();
        if addresses.is_empty() {
            return Err(DialError::Resolve(std::io::Error::other("the name has no address")));
        }
        self.totals.metrics.upstream("resolve", self.clock.now() - now);
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, addresses.clone()));
        Ok(addresses)
    }

    /// A fresh connection: no other session has used it and none will.
    async fn connect(&self) -> Result<Conn, DialError> {
        let started = self.clock.now();
        let tcp = self.connect_to(self.resolve().await?, started + self.connect_timeout).await?;
        note_failure(SockRef::from(&tcp).set_tcp_nodelay(true));
        self.totals.metrics.upstream("connect", self.clock.now() - started);
        let Some((connector, name)) = &self.tls else { return Ok(Conn::plain(tcp)) };
        let started = self.clock.now();
        let tls = connector.connect(name.clone(), tcp.into()).await.map_err(DialError::Tls)?;
        self.totals.metrics.upstream("tls", self.clock.now() - started);
        Ok(Conn::tls(tls))
    }

    /// Tries one address after the other. Each has an equal share of the time that is left, since one that is gone may swallow
    /// what it is sent; the one that answers is the first from then on.
    async fn connect_to(&self, addresses: Vec<SocketAddr>, until: Instant) -> Result<TcpStream, DialError> {
        let mut last = DialError::ConnectTimeout;
        for (n, address) in addresses.iter().enumerate() {
            let n_left = u32::try_from(addresses.len() - n).unwrap_or(u32::MAX);
            let share = until.saturating_duration_since(self.clock.now()) / n_left;
            match self.clock.timeout(share, TcpStream::connect(*address)).await {
                Some(Ok(tcp)) => {
                    if n > 0 {
                        self.prefer(*address);
                    }
                    return Ok(tcp);
                }
                Some(Err(error)) => last = DialError::Connect(error),
                None => last = DialError::ConnectTimeout,
            }
        }
        Err(last)
    }

    /// This address is the first to be tried, as long as the name stands for the same ones.
    fn prefer(&self, address: SocketAddr) {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, addresses)) = &mut *resolved
            && let Some(at) = addresses.iter().position(|it| *it == address)
        {
            addresses[..=at].rotate_right(1);
        }
    }

    /// A fresh connection, within the time for one.
    pub(crate) async fn dial(&self) -> Result<Conn, DialError> {
        let counted = Counted::beside(&self.totals).ok_or(DialError::Full)?;
        let connected = self.clock.timeout(self.connect_timeout, self.connect()).await;
        let mut conn = connected.unwrap_or(Err(DialError::ConnectTimeout)).inspect_err(|_| {
            *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = None; // it may have moved
        })?;
        conn.count(counted);
        Ok(conn)
    }

    /// Sends a request over a connection of its own and reads the answer's head.
    pub(crate) async fn ask(
        &self,
        method: &Method,
        target: &str,
        headers: &HeaderMap,
    ) -> Result<Answered, DialError> {
        let mut conn = self.dial().await?;
        let started = self.clock.now();
        let request = head::write_request(method, target, 1, headers);
        let exchange = async {
            conn.write_out(&request).await.map_err(DialError::Closed)?;
            read_answer(&mut conn).await
        };
        let answered = self.clock.timeout(self.handshake_timeout, exchange).await;
        let (head::ResponseHead { status, minor, headers }, rest) = answered.ok_or(DialError::Timeout)??;
        self.totals.metrics.upstream("answer", self.clock.now() - started);
        Ok(Answered { conn, status, minor, headers, rest })
    }

    /// Opens a WebSocket. `headers` are all but those of the handshake itself, `offer` what is offered there.
    pub(crate) async fn upgrade(
        &self,
        target: &str,
        mut headers: HeaderMap,
        offer: &str,
    ) -> Result<Upgraded, DialError> {
        let key = STANDARD.encode(uuid::Uuid::new_v4().as_bytes());
        let insert = |headers: &mut HeaderMap, name: &'static str, value: &str| {
            headers.insert(name, value.parse().expect("the handshake's headers are plain ASCII"));
        };
        for name in [CONTENT_LENGTH, EXPECT] {
            headers.remove(name); // no body follows
        }
        insert(&mut headers, "connection", "Upgrade");
        insert(&mut headers, "upgrade", "websocket");
        insert(&mut headers, "sec-websocket-version", "13");
        insert(&mut headers, "sec-websocket-key", &key);
        if !offer.is_empty() {
            insert(&mut headers, "sec-websocket-protocol", offer);
        }
        let answer = self.ask(&Method::GET, target, &headers).await?;
        if answer.status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(answer.refused(&self.clock).await);
        }
        check_upgrade(&answer, &key)?;
        let mut chosen = answer.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let subprotocol = match (chosen.next().map(http::HeaderValue::to_str), chosen.next()) {
            (None, _) => None,
            (Some(Ok(it)), None) => Some(it.trim().to_owned()),
            _ => return Err(DialError::Garbage("answered with more than one subprotocol".into())),
        };
        let Answered { conn, headers, rest, .. } = answer;
        conn.tune();
        Ok(Upgraded { conn, early: rest.freeze(), headers, subprotocol })
    }
}

impl Answered {
    /// What an answer that is not wanted says.
    pub(crate) async fn refused(mut self, clock: &Clock) -> DialError {
        let mut body = Vec::new();
        clock.timeout(BODY_TIMEOUT, self.read_body(&mut body)).await; // late or broken, what has come is enough
        let body = String::from_utf8_lossy(&body[..body.len().min(BODY)]).into_owned();
        let forgets_session = self.headers.get_all(http::header::SET_COOKIE).iter().any(|it| {
            it.to_str().is_ok_and(|it| {
                it.replace(' ', "").to_ascii_lowercase().starts_with("nvcf-request-id=;max-age=0")
            })
        });
        DialError::Refused { status: self.status, forgets_session, body }
    }

    /// Reads the beginning of its body; `None` when that breaks.
    async fn read_body(&mut self, begun: &mut Vec<u8>) -> Option<()> {
        let framed = Body::of_answer(&Method::GET, self.minor, self.status, &self.headers);
        let mut body = framed.unwrap_or(Body::Rest);
        loop {
            while let Some(piece) = body.next(&mut self.rest).ok()? {
                begun.extend_from_slice(&piece);
            }
            let is_enough = body.is_done() || begun.len() >= BODY;
            if is_enough || self.conn.read_buf(&mut self.rest).await.ok()? == 0 {
                return Some(());
            }
        }
    }
}

/// The final answer; informational ones before it are passed over.
async fn read_answer(conn: &mut Conn) -> Result<(head::ResponseHead, BytesMut), DialError> {
    let mut buf = BytesMut::new();
    for _ in 0..=MOST_INFORMATIONAL {
        let answer = read_head(conn, &mut buf).await?;
        if !answer.status.is_informational() || answer.status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok((answer, buf));
        }
    }
    Err(never_final())
}

/// An upstream that announces its answer and does not give it.
pub(crate) fn never_final() -> DialError {
    DialError::Garbage("answered again and again that the answer will come".into())
}

/// The head of an answer; `buf` has what came before and after it.
async fn read_head(conn: &mut Conn, buf: &mut BytesMut) -> Result<head::ResponseHead, DialError> {
    head::read_response(conn, buf, LIMITS).await.map_err(|error| match error {
        HeadError::Closed => DialError::Closed(std::io::ErrorKind::UnexpectedEof.into()),
        HeadError::Broken(error) => DialError::Closed(error),
        HeadError::Refused(rejection) => DialError::Garbage(rejection.cause().into_owned()),
    })
}

/// The next head of an answer in what has come, once it is whole.
pub(crate) fn next_head(
    heads: &mut head::Heads,
    buf: &mut BytesMut,
) -> Result<Option<head::ResponseHead>, DialError> {
    heads.next(buf, LIMITS).map_err(|it| DialError::Garbage(it.cause().into_owned()))
}

/// A 101 must be the answer to our handshake (RFC 6455 section 4.1).
fn check_upgrade(answer: &Answered, key: &str) -> Result<(), DialError> {
    let garbage = |what: &str| Err(DialError::Garbage(format!("answered 101, but {what}")));
    let headers = &answer.headers;
    if answer.minor == 0 {
        return garbage("in HTTP/1.0");
    }
    if !head::has_token(headers, &UPGRADE, "websocket") || !head::has_token(headers, &CONNECTION, "upgrade") {
        return garbage("not to a WebSocket");
    }
    let mut accepts = headers.get_all(SEC_WEBSOCKET_ACCEPT).iter();
    if accepts.next().is_none_or(|it| it != accept(key).as_str()) || accepts.next().is_some() {
        return garbage("with the wrong Sec-WebSocket-Accept");
    }
    if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return garbage("with an extension that was not offered");
    }
    Ok(())
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2).
pub(crate) fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// What every connection of a session has: small messages leave at once, and the kernel notices a peer that vanished
/// even when we are not the ones to speak.
pub(crate) fn tune(tcp: &impl AsFd) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let socket = SockRef::from(tcp);
    note_failure(socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)));
}

fn note_failure(result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "A connection could not be tuned.");
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn an_address_that_swallows_what_it_is_sent_costs_its_share_alone() {
        // A queue of one, and somebody stands in it: the kernel drops what else comes.
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        full.listen(0).expect("a queue");
        let gone = full.local_addr().expect("an address").as_socket().expect("an IP address");
        let _first = TcpStream::connect(gone).await.expect("the one place");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let there = listener.local_addr().expect("an address");

        let clock = Clock::system();
        let dialer = |addresses: Vec<SocketAddr>| Dialer {
            server: config::Server { tls: false, host: "upstream.invalid".into(), port: 1 },
            tls: None,
            connect_timeout: Duration::from_millis(400),
            handshake_timeout: Duration::ZERO,
            resolved: Mutex::new(Some((clock.now(), addresses))),
            clock: clock.clone(),
            totals: Arc::new(Totals::new(&Metrics::new())),
        };
        let known = |dialer: &Dialer| dialer.resolved.lock().expect("not poisoned").clone().map(|it| it.1);
        let both = dialer(vec![gone, there]);
        both.dial().await.expect("the second answers");
        assert_eq!(known(&both), Some(vec![there, gone]), "it is the first from now on");
        let alone = dialer(vec![gone]);
        assert!(matches!(alone.dial().await, Err(DialError::ConnectTimeout)));
        assert_eq!(known(&alone), None, "the name may stand for another address by now");
    }

    #[test]
    fn the_accept_key_is_that_of_the_standard() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="); // RFC 6455 section 1.3
    }
}
