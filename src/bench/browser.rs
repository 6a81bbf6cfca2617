//! One browser: it opens a WebSocket, sends when it is told to, and comes back when it was lost.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{Sink, StreamExt};
use http::header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Request, generate_key};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use url::Url;

use crate::bench::BenchError;
use crate::bench::tally::{Failed, Phase, Tally};
use crate::bench::upstream::{CONNECTION, WHICH};
use crate::clock::Clock;
use crate::config::Problems;
use crate::gateway;

/// What a browser opens, and how it knows that it is there.
pub(super) struct Target {
    request: Request,
    addresses: Vec<std::net::SocketAddr>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// The upstream says `hello` first, with the name of its session.
    says_hello: bool,
    /// Bytes of a message.
    size: usize,
}

/// Whom a wss:// gateway is trusted to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Whoever an authority of the system vouches for.
    System,
    /// Whoever an authority in this file vouches for.
    File(PathBuf),
    /// Anybody.
    Anybody,
}

/// What a browser is told to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Send the message with this number, which was due then.
    Send { number: u64, due: Instant },
    /// Ask the upstream which connection this is.
    Ask,
    /// Lose the connection as a machine does that is cut off.
    Lose,
    /// Come back, which was due then.
    Return { due: Instant },
    /// Leave politely.
    Close,
}

/// A browser.
pub(super) struct Browser {
    idx: usize,
    target: Arc<Target>,
    tally: Arc<Tally>,
    clock: Clock,
    commands: mpsc::UnboundedReceiver<Command>,
    link: Option<Box<Link>>,
    /// The gateway's cookies.
    cookie: Option<HeaderValue>,
    /// The upstream's connection or session, as far as it tells.
    upstream: Option<String>,
    /// Whether it has come back, and it is not known yet to what.
    is_back: bool,
    echoes: Echoes,
}

/// Messages that are on their way, and when each was due.
#[derive(Debug, Default)]
pub(super) struct Echoes(VecDeque<(u64, Instant)>);

struct Link {
    socket: WebSocketStream<Box<dyn Io>>,
    is_flushed: bool,
}

enum Event {
    Message(Message),
    Over(Failed),
    Command(Command),
    /// Nobody tells it anything any more.
    Released,
}

trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

impl Target {
    /// # Errors
    /// With what is wrong with the URL, a header or a file.
    pub(super) async fn new(
        url: &Url,
        headers: &HeaderMap,
        token: Option<&str>,
        subprotocols: &[String],
        trust: &Trust,
        says_hello: bool,
        size: usize,
    ) -> Result<Target, BenchError> {
        let bad = |what: &str, why: &dyn std::fmt::Display| BenchError::new(format!("{what}: {why}"));
        let mut request =
            url.as_str().into_client_request().map_err(|it| bad(&format!("the URL {url}"), &it))?;
        let own = request.headers_mut();
        for name in headers.keys() {
            own.remove(name); // a `Host` of the user's takes the place of the URL's
        }
        for (name, value) in headers {
            own.append(name, value.clone());
        }
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| bad("the token", &"it cannot be a header"))?;
            value.set_sensitive(true);
            own.insert(AUTHORIZATION, value);
        }
        if !subprotocols.is_empty() {
            let value = HeaderValue::from_str(&subprotocols.join(", "));
            let value = value.map_err(|_| bad("the subprotocol", &"it cannot be a header"))?;
            own.insert(SEC_WEBSOCKET_PROTOCOL, value);
        }
        let host = url.host_str().ok_or_else(|| bad(&format!("the URL {url}"), &"it has no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().unwrap_or(80);
        let found = tokio::net::lookup_host((host.as_str(), port)).await;
        let addresses: Vec<_> = found.map_err(|it| bad(&host, &it))?.collect();
        let tls = match url.scheme() {
            "wss" => {
                let name = ServerName::try_from(host.clone()).map_err(|it| bad(&host, &it))?;
                Some((TlsConnector::from(Arc::new(trusting(trust)?)), name))
            }
            _ => None,
        };
        Ok(Target { request, addresses, tls, says_hello, size })
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// Every handshake is a full one: the browsers of a fan-in are different machines.
fn trusting(trust: &Trust) -> Result<ClientConfig, BenchError> {
    let config = match trust {
        Trust::System => gateway::tls::system_client(),
        Trust::File(path) => {
            let config = gateway::tls::client(Some((path, "--ca")));
            config.map_err(|it| BenchError::new(Problems::from(it).to_string()))?
        }
        Trust::Anybody => return Ok(trusting_anybody()),
    };
    let mut config = ClientConfig::clone(&config);
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn trusting_anybody() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has suites for all versions").dangerous();
    let mut config =
        builder.with_custom_certificate_verifier(Arc::new(Anybody(algorithms))).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Believes every certificate, as `--insecure` asks; signatures are checked, so that the work is the same.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

impl Browser {
    pub(super) fn new(
        idx: usize,
        target: &Arc<Target>,
        tally: &Arc<Tally>,
        clock: &Clock,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Browser {
            idx,
            target: Arc::clone(target),
            tally: Arc::clone(tally),
            clock: clock.clone(),
            commands,
            link: None,
            cookie: None,
            upstream: None,
            is_back: false,
            echoes: Echoes::default(),
        }
    }

    /// Opens the session that was due then, and does what it is told until it is released.
    pub(super) async fn live(mut self, due: Instant) {
        self.tally.ramp.lag.record(self.idx, self.clock.now() - due);
        // In a box, which is gone once it is open: a handshake needs much more than a session.
        let opened = Box::pin(self.open(self.target.says_hello)).await;
        let now = self.clock.now();
        match opened {
            Ok(()) => self.tally.ramp.succeed(self.idx, now - due, now),
            Err(why) => self.tally.ramp.fail(why),
        }
        loop {
            let event = match &mut self.link {
                Some(link) => {
                    let commands = &mut self.commands;
                    std::future::poll_fn(|cx| link.poll(cx, commands)).await
                }
                None => self.commands.recv().await.map_or(Event::Released, Event::Command),
            };
            match event {
                Event::Message(message) => self.hear(&message),
                Event::Over(why) => self.lost(why),
                Event::Command(Command::Send { number, due }) => self.send(number, due),
                Event::Command(Command::Ask) => self.ask(),
                Event::Command(Command::Lose) => {
                    if self.link.take().is_some() {
                        self.tally.set_open(self.idx, false);
                        self.tally.loss.succeed(self.idx, Duration::ZERO, self.clock.now());
                    } else {
                        self.tally.loss.give_up();
                    }
                }
                Event::Command(Command::Return { due }) => Box::pin(self.come_back(due)).await,
                Event::Command(Command::Close) => return Box::pin(self.close()).await,
                Event::Released => return,
            }
        }
    }

    async fn come_back(&mut self, due: Instant) {
        self.tally.storm.lag.record(self.idx, self.clock.now() - due);
        let opened = self.open(false).await;
        let now = self.clock.now();
        match opened {
            Ok(()) => {
                self.tally.storm.succeed(self.idx, now - due, now);
                self.is_back = true;
                if self.upstream.is_none() {
                    self.compare(None);
                } else if !self.target.says_hello {
                    self.say(WHICH);
                }
            }
            Err(why) => {
                self.tally.storm.fail(why);
                self.tally.resume.give_up();
            }
        }
    }

    /// Opens a WebSocket, within a time that begins now.
    async fn open(&mut self, wait_for_hello: bool) -> Result<(), Failed> {
        let clock = self.clock.clone();
        let attempt = async {
            let (mut link, headers) = self.connect().await?;
            let said = if wait_for_hello { Some(link.hello().await?) } else { None };
            Ok((link, headers, said))
        };
        let (link, headers, said) =
            clock.timeout(OPEN_WITHIN, attempt).await.unwrap_or(Err(Failed::Timeout))?;
        if said.is_some() {
            self.upstream = said;
        }
        if let Some(cookie) = cookie(&headers) {
            if self.cookie.is_none() {
                self.tally.cookies.fetch_add(1, Ordering::Relaxed);
            }
            self.cookie = Some(cookie);
        }
        self.link = Some(Box::new(link));
        self.tally.set_open(self.idx, true);
        Ok(())
    }

    async fn connect(&self) -> Result<(Link, HeaderMap), Failed> {
        let tcp = TcpStream::connect(&self.target.addresses[..]).await.map_err(|_| Failed::Connect)?;
        tcp.set_nodelay(true).map_err(|_| Failed::Connect)?;
        // A connection that is dropped is cut off, as that of a machine that is gone; and its port is free at once.
        SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).map_err(|_| Failed::Connect)?;
        let io: Box<dyn Io> = match &self.target.tls {
            None => Box::new(tcp),
            Some((connector, name)) => {
                Box::new(connector.connect(name.clone(), tcp).await.map_err(|_| Failed::Tls)?)
            }
        };
        let mut request = self.target.request.clone();
        let key = HeaderValue::from_str(&generate_key()).expect("base64 is a header's value");
        request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
        if let Some(cookie) = &self.cookie {
            request.headers_mut().append(COOKIE, cookie.clone());
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(4 << 10)
            .write_buffer_size(0)
            .max_write_buffer_size(2 * LARGEST)
            .max_message_size(Some(LARGEST))
            .max_frame_size(Some(LARGEST));
        match client_async_with_config(request, io, Some(config)).await {
            Ok((socket, response)) => {
                Ok((Link { socket, is_flushed: true }, response.into_parts().0.headers))
            }
            Err(error) => Err(failed(&error)),
        }
    }

    fn hear(&mut self, message: &Message) {
        match message {
            Message::Text(text) if self.target.says_hello => {
                let name = hello(text);
                if self.is_back {
                    // Whatever comes first in a new session is `hello`.
                    let is_same = name.is_none() || name == self.upstream;
                    self.compare(Some(is_same));
                }
            }
            Message::Text(text) => match text.strip_prefix(CONNECTION) {
                Some(number) if self.is_back => {
                    let is_same = self.upstream.as_deref() == Some(number);
                    self.compare(Some(is_same));
                }
                Some(number) => {
                    let number: String = number.chars().take(LONGEST_NAME).collect();
                    self.upstream = Some(number);
                    self.tally.ask.succeed(self.idx, Duration::ZERO, self.clock.now());
                }
                None if text.as_str() == WHICH => self.tally.ask.give_up(), // an echo that does not know the question
                None => self.heard(text),
            },
            Message::Ping(_) => drop(self.tally.pings.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
    }

    fn heard(&mut self, text: &str) {
        let now = self.clock.now();
        if let Some(due) = number(text).and_then(|it| self.echoes.came(it)) {
            let latency = now - due;
            if latency >= LATE {
                self.tally.late.fetch_add(1, Ordering::Relaxed);
            }
            self.tally.received.fetch_add(1, Ordering::Relaxed);
            self.tally.echo.succeed(self.idx, latency, now);
        } else if self.tally.phase() == Phase::Echo {
            self.tally.echo.note(Failed::Protocol, 1); // what nobody has sent, or what came twice
        }
    }

    fn send(&mut self, number: u64, due: Instant) {
        if self.link.is_none() {
            return self.tally.echo.give_up(); // why was noted when it was lost
        }
        self.tally.sent.fetch_add(1, Ordering::Relaxed);
        self.echoes.sent(number, due);
        self.say(&payload(number, self.target.size));
        self.tally.echo.lag.record(self.idx, self.clock.now() - due);
    }

    fn ask(&mut self) {
        if self.link.is_some() { self.say(WHICH) } else { self.tally.ask.give_up() }
    }

    fn say(&mut self, text: &str) {
        if let Some(link) = &mut self.link
            && let Err(why) = link.say(text)
        {
            self.lost(why);
        }
    }

    fn lost(&mut self, why: Failed) {
        if self.link.take().is_none() {
            return;
        }
        self.tally.set_open(self.idx, false);
        self.tally.lose(why);
        for _ in 0..self.echoes.forget() {
            self.tally.echo.give_up();
        }
        if self.is_back {
            self.is_back = false;
            self.tally.resume.give_up();
        }
    }

    /// It is known whether it is back where it was, or never will be.
    fn compare(&mut self, is_same: Option<bool>) {
        self.is_back = false;
        match is_same {
            Some(true) => self.tally.resume.succeed(self.idx, Duration::ZERO, self.clock.now()),
            Some(false) | None => self.tally.resume.give_up(),
        }
    }

    /// Says that it leaves, and waits a moment for the gateway to hang up.
    async fn close(mut self) {
        let Some(mut link) = self.link.take() else { return };
        let frame = CloseFrame { code: 1000.into(), reason: "".into() };
        let leave = async {
            drop(link.socket.close(Some(frame)).await);
            while let Some(Ok(_)) = link.socket.next().await {}
        };
        self.clock.timeout(CLOSE_WITHIN, leave).await;
        self.tally.set_open(self.idx, false);
    }
}

impl Link {
    /// What comes next. While the kernel takes no more bytes, no further command is taken: its message waits, and its
    /// latency grows.
    fn poll(&mut self, cx: &mut Context<'_>, commands: &mut mpsc::UnboundedReceiver<Command>) -> Poll<Event> {
        if !self.is_flushed
            && let Poll::Ready(flushed) = std::pin::Pin::new(&mut self.socket).poll_flush(cx)
        {
            match flushed {
                Ok(()) => self.is_flushed = true,
                Err(error) => return Poll::Ready(Event::Over(failed(&error))),
            }
        }
        match self.socket.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(Message::Close(frame)))) => {
                let code = frame.map_or(1005, |it| it.code.into());
                return Poll::Ready(Event::Over(Failed::Closed(code)));
            }
            Poll::Ready(Some(Ok(message))) => return Poll::Ready(Event::Message(message)),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Event::Over(failed(&error))),
            Poll::Ready(None) => return Poll::Ready(Event::Over(Failed::Reset)),
            Poll::Pending => {}
        }
        if !self.is_flushed {
            return Poll::Pending;
        }
        commands.poll_recv(cx).map(|it| it.map_or(Event::Released, Event::Command))
    }

    fn say(&mut self, text: &str) -> Result<(), Failed> {
        let message = Message::text(text);
        let sent = std::pin::Pin::new(&mut self.socket).start_send(message);
        self.is_flushed = false;
        sent.map_err(|it| failed(&it))
    }

    /// Waits for `hello`, and gives the name of the session.
    async fn hello(&mut self) -> Result<String, Failed> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return hello(&text).ok_or(Failed::Protocol),
                Some(Ok(Message::Close(frame))) => {
                    return Err(Failed::Closed(frame.map_or(1005, |it| it.code.into())));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(failed(&error)),
                None => return Err(Failed::Reset),
            }
        }
    }
}

impl Echoes {
    /// A message leaves.
    pub(super) fn sent(&mut self, number: u64, due: Instant) {
        self.0.push_back((number, due));
    }

    /// A message came back; gives when it was due, unless nobody waits for it.
    pub(super) fn came(&mut self, number: u64) -> Option<Instant> {
        let idx = self.0.iter().position(|it| it.0 == number)?;
        self.0.remove(idx).map(|it| it.1)
    }

    /// None of them will come any more; gives how many.
    fn forget(&mut self) -> usize {
        std::mem::take(&mut self.0).len()
    }
}

/// A message of this size that begins with its number.
fn payload(number: u64, size: usize) -> String {
    let mut text = format!("{number:016x} ");
    let rest = size.saturating_sub(text.len());
    text.extend(std::iter::repeat_n('x', rest));
    text
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.get(..16)?, 16).ok()
}

/// The name of the session in a `hello` of the streaming server.
fn hello(text: &str) -> Option<String> {
    let said: serde_json::Value = serde_json::from_str(text).ok()?;
    let name = said.get("session")?.as_str()?;
    (said.get("type")?.as_str()? == "hello").then(|| name.chars().take(LONGEST_NAME).collect())
}

/// The cookies that an answer sets, as a request brings them back.
fn cookie(headers: &HeaderMap) -> Option<HeaderValue> {
    let set = headers.get_all(SET_COOKIE).iter();
    let pairs: Vec<&str> = set.filter_map(|it| it.to_str().ok()?.split(';').next()).map(str::trim).collect();
    if pairs.is_empty() { None } else { HeaderValue::from_str(&pairs.join("; ")).ok() }
}

fn failed(error: &Error) -> Failed {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    use tokio_tungstenite::tungstenite::error::ProtocolError;
    match error {
        Error::Http(response) => Failed::Http(response.status().as_u16()),
        Error::Io(error)
            if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof) =>
        {
            Failed::Reset
        }
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::HandshakeIncomplete) => {
            Failed::Reset
        }
        _ => Failed::Protocol,
    }
}

/// Time for an attempt to open a session.
pub(super) const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// Time for a gateway to hang up on a browser that has left.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// An echo that took longer counts as late.
pub(super) const LATE: Duration = Duration::from_millis(100);
/// Largest message of an upstream.
const LARGEST: usize = 1 << 20;
/// Longest name of an upstream's session.
const LONGEST_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use futures_util::SinkExt;
    use tokio::net::TcpListener;
    use tokio_tungstenite::accept_async;

    use super::*;

    /// A browser with a clock that stands still, and the upstream's side of its connection.
    async fn browser() -> (mpsc::UnboundedSender<Command>, Arc<Tally>, Clock, WebSocketStream<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("ws://{}/sign_in", listener.local_addr().expect("an address"));
        let url = Url::parse(&url).expect("a URL");
        let target = Target::new(&url, &HeaderMap::new(), None, &[], &Trust::System, false, 40).await;
        let (target, tally, clock) = (target.expect("a target"), Arc::new(Tally::new(1)), Clock::paused());
        let (sender, commands) = mpsc::unbounded_channel();
        let browser = Browser::new(0, &Arc::new(target), &tally, &clock, commands);
        tokio::spawn(browser.live(clock.now()));
        let (tcp, _) = listener.accept().await.expect("a browser");
        let upstream = accept_async(tcp).await.expect("a handshake");
        tally.ramp.ended(1).await;
        (sender, tally, clock, upstream)
    }

    /// Messages that are due each millisecond from now on.
    fn send(sender: &mpsc::UnboundedSender<Command>, clock: &Clock, n: u64) {
        for number in 0..n {
            let due = clock.now() + Duration::from_millis(number);
            sender.send(Command::Send { number, due }).expect("the browser lives");
        }
    }

    async fn read(upstream: &mut WebSocketStream<TcpStream>, n: u64) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < n as usize {
            messages.push(upstream.next().await.expect("a message").expect("a message"));
        }
        messages
    }

    #[tokio::test]
    async fn each_message_that_was_due_during_a_pause_is_late() {
        let (sender, tally, clock, mut upstream) = browser().await;
        send(&sender, &clock, 300);
        let messages = read(&mut upstream, 300).await;
        clock.advance(Duration::from_millis(300)); // the upstream pauses
        for message in messages {
            upstream.send(message).await.expect("the browser lives");
        }
        tally.echo.ended(300).await;
        // Those that were due in the first 200 ms of it; a browser that waits for each echo would have seen one.
        assert_eq!(tally.late.load(Ordering::Relaxed), 201);
        let summary = tally.echo.latencies.summary().expect("samples");
        assert_eq!(summary.n, 300);
        assert!((299_000..=301_000).contains(&summary.max) && summary.p50 >= 149_000, "{summary:?}");
    }

    #[tokio::test]
    async fn a_browser_that_is_held_up_itself_counts_from_when_it_was_due() {
        let (sender, tally, clock, mut upstream) = browser().await;
        let begun = clock.now();
        clock.advance(Duration::from_millis(300)); // nobody has told the browser in time
        for number in 0..300 {
            let due = begun + Duration::from_millis(number);
            sender.send(Command::Send { number, due }).expect("the browser lives");
        }
        for message in read(&mut upstream, 300).await {
            upstream.send(message).await.expect("the browser lives");
        }
        tally.echo.ended(300).await;
        assert_eq!(tally.late.load(Ordering::Relaxed), 201);
        let lag = tally.echo.lag.summary().expect("samples");
        assert!((299_000..=301_000).contains(&lag.max), "{lag:?}");
    }

    #[tokio::test]
    async fn what_nobody_has_sent_is_no_echo() {
        let (sender, tally, clock, mut upstream) = browser().await;
        tally.begin(Phase::Echo);
        send(&sender, &clock, 1);
        let message = read(&mut upstream, 1).await.remove(0);
        for message in [Message::text("x"), Message::text(payload(7, 40)), message.clone(), message] {
            upstream.send(message).await.expect("the browser lives");
        }
        upstream
            .close(Some(CloseFrame { code: 3010.into(), reason: "".into() }))
            .await
            .expect("the browser lives");
        sender.send(Command::Send { number: 1, due: clock.now() }).expect("the browser lives");
        tally.echo.ended(2).await;
        let errors = tally.echo.errors().0;
        assert_eq!((errors.get("protocol"), errors.get("closed_3010")), (Some(&3), Some(&1)), "{errors:?}");
        assert_eq!(
            (tally.echo.succeeded.load(Ordering::Relaxed), tally.open.load(Ordering::Relaxed)),
            (1, 0)
        );
    }

    #[test]
    fn a_message_is_known_by_its_number() {
        assert_eq!(payload(255, 40).len(), 40);
        assert_eq!(number(&payload(255, 40)), Some(255));
        for text in ["", "streamgate", "é000000000000000", "00000000000000fg "] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn cookies_are_brought_back_without_their_attributes() {
        let mut headers = HeaderMap::new();
        assert_eq!(cookie(&headers), None);
        headers.append(SET_COOKIE, HeaderValue::from_static("a=1; Path=/; HttpOnly"));
        headers.append(SET_COOKIE, HeaderValue::from_static("b=2"));
        assert_eq!(cookie(&headers), Some(HeaderValue::from_static("a=1; b=2")));
    }

    #[test]
    fn only_hello_names_a_session() {
        assert_eq!(hello(r#"{"type":"hello","session":"s-1"}"#), Some("s-1".into()));
        for text in ["", "{}", r#"{"type":"ping","t":3000}"#, r#"{"type":"bye","session":"s-1"}"#] {
            assert_eq!(hello(text), None, "{text}");
        }
    }
}
