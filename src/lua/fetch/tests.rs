//! The client against servers that do what servers should not, over real sockets and on a clock that stands still.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A fetcher as a worker has it.
struct Bench {
    fetcher: Rc<Fetcher>,
    clock: Clock,
    allowed: Hosts,
}

/// A server on a port of its own.
struct Server {
    url: Url,
    /// Connections accepted so far, those open now, the most at once.
    seen: watch::Sender<Seen>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    n_accepted: usize,
    n_open: usize,
    most_open: usize,
    n_requests: usize,
}

/// A connection on the server's side.
struct Peer {
    io: Box<dyn Both>,
    idx: usize,
    seen: watch::Sender<Seen>,
}

trait Both: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

const TIMEOUT: Duration = Duration::from_secs(5);

/// What a test may take before it is taken for stuck.
const STUCK: Duration = Duration::from_secs(60);

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Runs a test as a worker runs a plugin.
fn on_a_worker<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an event loop can be made");
    let test = async { tokio::time::timeout(STUCK, test).await.expect("the test is not stuck") };
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

impl Bench {
    fn new<'a>(servers: impl IntoIterator<Item = &'a Server>) -> Self {
        Bench::trusting(&[], servers)
    }

    fn trusting<'a>(
        roots: &[CertificateDer<'static>],
        servers: impl IntoIterator<Item = &'a Server>,
    ) -> Self {
        let mut store = rustls::RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).expect("it is a certificate");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("the provider has suites").with_root_certificates(store);
        let clock = Clock::paused();
        let fetcher = Rc::new(Fetcher::new(Arc::new(builder.with_no_client_auth()), &clock));
        let mut allowed = Hosts::default();
        for server in servers {
            assert!(allowed.add(&server.url));
        }
        Bench { fetcher, clock, allowed }
    }

    async fn send(&self, request: Request) -> Result<Response, Reason> {
        self.fetcher.send(request, &self.allowed).await
    }

    async fn get(&self, server: &Server) -> Result<Response, Reason> {
        self.send(get(&server.url)).await
    }

    async fn reason(&self, server: &Server) -> Reason {
        self.get(server).await.expect_err("the server does what it should not")
    }

    /// A request that runs beside the test.
    fn begin(&self, request: Request) -> tokio::task::JoinHandle<Result<Response, Reason>> {
        let (fetcher, allowed) = (Rc::clone(&self.fetcher), self.allowed.clone());
        tokio::task::spawn_local(async move { fetcher.send(request, &allowed).await })
    }

    /// Lets the time of a request pass that has reached the stage at which it is to be stuck.
    async fn stage_of_timeout(&self, request: tokio::task::JoinHandle<Result<Response, Reason>>) -> Stage {
        assert!(!request.is_finished());
        self.clock.advance(TIMEOUT);
        match request.await.expect("it does not panic") {
            Err(Reason::Timeout(stage)) => stage,
            other => panic!("{other:?}"),
        }
    }
}

impl Server {
    async fn start<F: Future<Output = ()> + 'static>(answer: impl Fn(Peer) -> F + 'static) -> Self {
        Server::listen("http", None, answer).await
    }

    /// One that answers each request with the same.
    async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = Rc::new(answer.into());
        Server::start(move |mut peer| {
            let answer = Rc::clone(&answer);
            async move {
                while peer.request().await.is_some() {
                    peer.say(&*answer).await;
                }
            }
        })
        .await
    }

    async fn listen<F: Future<Output = ()> + 'static>(
        scheme: &str,
        tls: Option<TlsAcceptor>,
        answer: impl Fn(Peer) -> F + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
        let port = listener.local_addr().expect("it is bound").port();
        let url = Url::parse(&format!("{scheme}://127.0.0.1:{port}/")).expect("it is a URL");
        let seen = watch::Sender::new(Seen::default());
        let answer = Rc::new(answer);
        tokio::task::spawn_local({
            let seen = seen.clone();
            async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    let idx = seen.borrow().n_accepted;
                    seen.send_modify(|it| {
                        it.n_accepted += 1;
                        it.n_open += 1;
                        it.most_open = it.most_open.max(it.n_open);
                    });
                    let (tls, seen, answer) = (tls.clone(), seen.clone(), Rc::clone(&answer));
                    tokio::task::spawn_local(async move {
                        let io: Option<Box<dyn Both>> = match tls {
                            None => Some(Box::new(tcp)),
                            Some(tls) => tls.accept(tcp).await.ok().map(|it| Box::new(it) as Box<dyn Both>),
                        };
                        if let Some(io) = io {
                            answer(Peer { io, idx, seen: seen.clone() }).await;
                        }
                        seen.send_modify(|it| it.n_open -= 1);
                    });
                }
            }
        });
        Server { url, seen }
    }

    fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    async fn until(&self, condition: impl FnMut(&Seen) -> bool) {
        self.seen.subscribe().wait_for(condition).await.expect("the server lives as long as the test");
    }
}

impl Peer {
    /// The next request, as text; `None` when the connection has ended.
    async fn request(&mut self) -> Option<String> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            text.push(self.io.read_u8().await.ok()?);
        }
        let mut text = String::from_utf8(text).expect("the client writes text");
        let length = text.lines().find_map(|it| it.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |it| it.parse().expect("it is a number"))];
        self.io.read_exact(&mut body).await.ok()?;
        text.push_str(&String::from_utf8(body).expect("the tests send text"));
        self.seen.send_modify(|it| it.n_requests += 1);
        Some(text)
    }

    async fn say(&mut self, text: impl AsRef<[u8]>) {
        // A client that has read enough is gone, which is its right.
        drop(self.io.write_all(text.as_ref()).await);
        drop(self.io.flush().await);
    }

    /// Waits until the client has gone.
    async fn ended(&mut self) {
        while self.io.read_u8().await.is_ok() {}
    }
}

fn get(url: &Url) -> Request {
    Request {
        method: Method::GET,
        url: url.clone(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        timeout: TIMEOUT,
        max_body: 1 << 10,
    }
}

fn post(url: &Url) -> Request {
    Request { method: Method::POST, body: "a=b".into(), ..get(url) }
}

/// An authority and an acceptor with a certificate of it for these names.
fn certified(names: &[&str]) -> (CertificateDer<'static>, TlsAcceptor) {
    let key = KeyPair::generate().expect("a key can be generated");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).expect("the parameters are complete").der().clone();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key can be generated");
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let params = CertificateParams::new(names).expect("they are names");
    let leaf = params.signed_by(&key, &issuer).expect("the parameters are complete").der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has suites").with_no_client_auth();
    let config = builder.with_single_cert(vec![leaf], key).expect("they were made for each other");
    (root, TlsAcceptor::from(Arc::new(config)))
}

#[test]
fn a_response_comes_with_status_headers_and_body() {
    on_a_worker(async {
        let server =
            Server::answering("HTTP/1.1 418 Teapot\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 5\r\n\r\nhello")
                .await;
        let response = Bench::new([&server]).get(&server).await.expect("the server answers");
        assert_eq!(response.status, 418);
        assert_eq!(response.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(response.body, "hello");
    });
}

#[test]
fn a_request_is_sent_as_it_was_asked_for_and_with_the_headers_of_the_client() {
    on_a_worker(async {
        let server = Server::start(|mut peer| async move {
            while let Some(request) = peer.request().await {
                let length = request.len();
                peer.say(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{request}")).await;
            }
        })
        .await;
        let bench = Bench::new([&server]);
        let authority = format!("127.0.0.1:{}", server.url.port().expect("it has one"));
        let url = server.url.join("/a%20b?c=d&e#f").expect("it is a URL");
        let mut request = post(&url);
        request.headers.append("x-a", HeaderValue::from_static("1"));
        request.headers.append("x-a", HeaderValue::from_static("2"));
        let echoed = bench.send(request).await.expect("the server answers").body;
        let agent = format!("streamgate/{}", env!("CARGO_PKG_VERSION"));
        let expected = format!(
            "POST /a%20b?c=d&e HTTP/1.1\r\nhost: {authority}\r\nuser-agent: {agent}\r\ncontent-length: 3\r\n\
             x-a: 1\r\nx-a: 2\r\n\r\na=b"
        );
        assert_eq!(echoed, expected);

        let mut request = get(&server.url);
        request.headers.insert(USER_AGENT, HeaderValue::from_static("mine"));
        let echoed = bench.send(request).await.expect("the server answers").body;
        assert_eq!(echoed, format!("GET / HTTP/1.1\r\nhost: {authority}\r\nuser-agent: mine\r\n\r\n"));
    });
}

#[test]
fn a_body_may_be_chunked_or_end_with_the_connection_or_be_left_out() {
    on_a_worker(async {
        for (answer, body) in [
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nx: y\r\n\r\n",
                "abc",
            ),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", "to the end"),
            ("HTTP/1.0 200 OK\r\n\r\nold", "old"),
            ("HTTP/1.1 204 No Content\r\n\r\n", ""),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", "x"),
        ] {
            let server = Server::start(move |mut peer| async move {
                peer.request().await;
                peer.say(answer).await;
            })
            .await;
            assert_eq!(
                Bench::new([&server]).get(&server).await.expect("it is HTTP").body,
                body,
                "{answer:?}"
            );
        }
        let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
        let request = Request { method: Method::HEAD, ..get(&server.url) };
        assert_eq!(Bench::new([&server]).send(request).await.expect("HEAD has no body").body, "");
    });
}

#[test]
fn a_redirect_is_a_response_like_others() {
    on_a_worker(async {
        let target = Server::answering(OK).await;
        let redirect = format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", target.url);
        let server = Server::answering(redirect).await;
        let response = Bench::new([&server, &target]).get(&server).await.expect("the server answers");
        assert_eq!(response.status, 302);
        assert_eq!(target.seen(), Seen::default());
    });
}

#[test]
fn a_connection_is_used_again_until_it_was_idle_for_too_long() {
    on_a_worker(async {
        let server = Server::answering(OK).await;
        let bench = Bench::new([&server]);
        for _ in 0..10 {
            bench.get(&server).await.expect("the server answers");
            bench.clock.advance(IDLE / 2);
        }
        assert_eq!(server.seen().n_accepted, 1);
        bench.clock.advance(IDLE);
        server.until(|it| it.n_open == 0).await;
        bench.get(&server).await.expect("the server answers");
        assert_eq!(server.seen().n_accepted, 2);
        bench.clock.advance(IDLE);
        bench.get(&server).await.expect("the server answers"); // and nothing has closed the old one meanwhile
        assert_eq!(server.seen().n_accepted, 3);
    });
}

#[test]
fn connections_end_with_their_fetcher() {
    on_a_worker(async {
        let server = Server::answering(OK).await;
        let bench = Bench::new([&server]);
        bench.get(&server).await.expect("the server answers");
        drop(bench);
        server.until(|it| it.n_open == 0).await;
    });
}

#[test]
fn a_request_that_is_given_up_takes_its_connection_along() {
    on_a_worker(async {
        let server = Server::start(|mut peer| async move { peer.ended().await }).await;
        let bench = Bench::new([&server]);
        let request = bench.begin(get(&server.url));
        server.until(|it| it.n_open == 1).await;
        request.abort();
        server.until(|it| it.n_open == 0).await;
    });
}

#[test]
fn time_covers_every_stage() {
    on_a_worker(async {
        let other = Server::answering(OK).await;

        let (_full, address) = silent().await;
        let url = Url::parse(&format!("http://{address}/")).expect("it is a URL");
        let server = Server { url, seen: watch::Sender::default() };
        let bench = Bench::new([&server, &other]);
        let request = bench.begin(get(&server.url));
        bench.get(&other).await.expect("it answers");
        assert_eq!(bench.stage_of_timeout(request).await, Stage::Connect);

        let server = Server::listen("https", None, |mut peer| async move { peer.ended().await }).await;
        let bench = Bench::new([&server]);
        let request = bench.begin(get(&server.url));
        server.until(|it| it.n_open == 1).await;
        assert_eq!(bench.stage_of_timeout(request).await, Stage::Handshake);

        let server = Server::start(|mut peer| async move {
            peer.request().await;
            peer.ended().await;
        })
        .await;
        let bench = Bench::new([&server]);
        let request = bench.begin(get(&server.url));
        server.until(|it| it.n_requests == 1).await;
        assert_eq!(bench.stage_of_timeout(request).await, Stage::Head);
        server.until(|it| it.n_open == 0).await;

        let server = Server::start(|mut peer| async move {
            peer.request().await;
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab").await;
            peer.request().await;
        })
        .await;
        let bench = Bench::new([&server, &other]);
        let request = bench.begin(get(&server.url));
        server.until(|it| it.n_requests == 1).await;
        bench.get(&other).await.expect("it answers"); // by then what the first server said has come too
        bench.get(&other).await.expect("it answers");
        assert_eq!(bench.stage_of_timeout(request).await, Stage::Body);
    });
}

#[test]
fn a_body_that_is_too_large_is_refused_when_it_is_declared_and_when_it_comes() {
    on_a_worker(async {
        let exact = format!("HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n{}", "x".repeat(1024));
        let server = Server::answering(exact).await;
        assert_eq!(Bench::new([&server]).get(&server).await.expect("it fits").body.len(), 1024);

        let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 1025\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551000\r\n\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}1\r\nx\r\n"),
            format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1025)),
        ] {
            let server = Server::answering(answer).await;
            let bench = Bench::new([&server]);
            assert_eq!(bench.reason(&server).await.word(), "too_large");
            server.until(|it| it.n_open == 0).await;
        }
    });
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    on_a_worker(async {
        let many = |n| format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", "a: b\r\n".repeat(n - 1));
        let server = Server::answering(many(MOST_HEADERS)).await;
        assert!(Bench::new([&server]).get(&server).await.is_ok());
        for answer in [
            many(MOST_HEADERS + 1),
            format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(MOST_HEAD)),
            format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(1 << 20)),
            format!("HTTP/1.1 200 {}", "x".repeat(1 << 20)),
        ] {
            let server = Server::answering(answer).await;
            let bench = Bench::new([&server]);
            assert_eq!(bench.reason(&server).await.word(), "too_large");
            server.until(|it| it.n_open == 0).await;
        }
    });
}

#[test]
fn what_is_not_http_or_ends_early_is_broken() {
    on_a_worker(async {
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\ncontent-len",
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            "SSH-2.0-OpenSSH_9.9\r\n",
            "<html>no status line</html>\r\n\r\n",
            "\u{16}\u{3}\u{1}\0\u{2}\u{2}\u{28}",
            "HTTP/2 200\r\n\r\n",
        ] {
            let server = Server::start(move |mut peer| async move {
                peer.request().await;
                peer.say(answer).await;
            })
            .await;
            let reason = Bench::new([&server]).reason(&server).await;
            assert_eq!(reason.word(), "broken", "{answer:?}: {reason:?}");
            assert_eq!(server.seen().n_accepted, 1, "{answer:?}");
        }
    });
}

#[test]
fn an_answer_nobody_asked_for_is_nobodys() {
    on_a_worker(async {
        let server = Server::answering(format!("{OK}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")).await;
        let bench = Bench::new([&server]);
        for _ in 0..3 {
            assert_eq!(bench.get(&server).await.expect("the server answers").body, "ok");
        }
        assert_eq!(server.seen().n_accepted, 3);
    });
}

#[test]
fn only_allowed_origins_are_asked_and_only_as_they_are_written() {
    on_a_worker(async {
        let server = Server::answering(OK).await;
        let bench = Bench::new([&server]);
        let port = server.url.port().expect("it has one");
        for url in [
            format!("https://127.0.0.1:{port}/"),
            format!("http://127.0.0.1:{}/", port ^ 1),
            format!("http://127.0.0.2:{port}/"),
            format!("http://localhost:{port}/"),
            format!("http://user@127.0.0.1:{port}/"),
            format!("http://:secret@127.0.0.1:{port}/"),
            format!("http://127.0.0.1:{port}@localhost/"),
            format!("ftp://127.0.0.1:{port}/"),
            "data:text/plain,hello".to_owned(),
        ] {
            let request = get(&Url::parse(&url).expect("it is a URL"));
            let reason = bench.send(request).await.expect_err("it is not allowed");
            assert_eq!(reason.word(), "not_allowed", "{url}");
            assert!(!reason.to_string().contains("secret"), "{reason}");
        }
        for name in ["host", "content-length", "transfer-encoding", "connection", "upgrade", "keep-alive"] {
            let mut request = get(&server.url);
            request.headers.insert(name, HeaderValue::from_static("1"));
            let reason = bench.send(request).await.expect_err("it is not the caller's");
            assert_eq!(reason.word(), "not_allowed", "{name}");
        }
        let mut request = get(&server.url);
        request.headers.extend((0..=MOST_HEADERS).map(|it| {
            let name = HeaderName::try_from(format!("x-{it}")).expect("it is a name");
            (name, HeaderValue::from_static("1"))
        }));
        assert_eq!(bench.send(request).await.expect_err("they are too many").word(), "not_allowed");
        let request = Request { method: Method::CONNECT, ..get(&server.url) };
        assert_eq!(bench.send(request).await.expect_err("it is no request").word(), "not_allowed");
        assert_eq!(server.seen(), Seen::default());
        assert!(!Hosts::default().add(&Url::parse("ftp://example.com/").expect("it is a URL")));
        let mut allowed = Hosts::default();
        assert!(allowed.add(&Url::parse("https://EXAMPLE.com").expect("it is a URL")));
        let spelt = Origin::of(&Url::parse("https://example.com:443/x").expect("it is a URL"));
        assert!(allowed.0.contains(&spelt.expect("it is one of HTTP")));
    });
}

/// A port where nobody listens and that nobody else gets as long as the socket lives.
fn deaf() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("there is a port");
    let address = socket.local_addr().expect("it is bound").as_socket().expect("it is of IP");
    (socket, address)
}

/// A port that answers no attempt to connect: it has room for one connection, which is taken.
async fn silent() -> ((socket2::Socket, TcpStream), SocketAddr) {
    let (socket, address) = deaf();
    socket.listen(0).expect("it can listen");
    let first = TcpStream::connect(address).await.expect("there is room for one");
    ((socket, first), address)
}

#[test]
fn nobody_there_is_unreachable() {
    on_a_worker(async {
        let (_bound, address) = deaf();
        let url = Url::parse(&format!("http://{address}/")).expect("it is a URL");
        let server = Server { url, seen: watch::Sender::default() };
        assert_eq!(Bench::new([&server]).reason(&server).await.word(), "unreachable");
    });
}

#[test]
fn a_name_is_reached_by_the_address_that_answers() {
    on_a_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
        let answers = listener.local_addr().expect("it is bound");
        let (_bound, refuses) = deaf();
        let clock = Clock::paused();
        let tcp = dial(&[refuses, answers], &clock).await.expect("the second answers");
        assert_eq!(tcp.peer_addr().expect("it is connected"), answers);
        let (_full, silent) = silent().await;
        let attempt = tokio::task::spawn_local({
            let clock = clock.clone();
            async move { dial(&[silent, answers], &clock).await }
        });
        tokio::task::yield_now().await; // to let it begin
        clock.advance(HEAD_START);
        let tcp = attempt.await.expect("it does not panic").expect("the second answers");
        assert_eq!(tcp.peer_addr().expect("it is connected"), answers);
        assert!(dial(&[refuses, refuses], &clock).await.is_err());
        assert!(dial(&[], &clock).await.is_err());
    });
}

#[test]
fn a_certificate_is_checked_against_the_roots_and_the_name() {
    on_a_worker(async {
        let answer = |mut peer: Peer| async move {
            while peer.request().await.is_some() {
                peer.say(OK).await;
            }
        };
        let (root, acceptor) = certified(&["127.0.0.1", "localhost"]);
        let server = Server::listen("https", Some(acceptor), answer).await;
        let bench = Bench::trusting(std::slice::from_ref(&root), [&server]);
        for _ in 0..2 {
            assert_eq!(bench.get(&server).await.expect("it is trusted").body, "ok");
        }
        assert_eq!(server.seen().n_accepted, 1);
        let reason = Bench::new([&server]).reason(&server).await;
        assert_eq!(reason.word(), "tls");
        assert!(reason.to_string().contains("UnknownIssuer"), "{reason}");

        let (root, acceptor) = certified(&["example.com"]);
        let server = Server::listen("https", Some(acceptor), answer).await;
        assert_eq!(Bench::trusting(&[root], [&server]).reason(&server).await.word(), "tls");

        let server = Server::listen("https", None, |mut peer| async move { peer.say(OK).await }).await;
        assert_eq!(Bench::new([&server]).reason(&server).await.word(), "tls");
    });
}

#[test]
fn a_body_over_tls_that_was_cut_is_broken() {
    on_a_worker(async {
        let (root, acceptor) = certified(&["127.0.0.1"]);
        let server = Server::listen("https", Some(acceptor), |mut peer| async move {
            peer.request().await;
            peer.say("HTTP/1.1 200 OK\r\n\r\nthe beginning").await; // and no close_notify
        })
        .await;
        assert_eq!(Bench::trusting(&[root], [&server]).reason(&server).await.word(), "broken");
    });
}

/// One that answers the first request of a connection, reads the next, and goes.
async fn forgetful() -> Server {
    Server::start(|mut peer| async move {
        peer.request().await;
        peer.say(OK).await;
        peer.request().await;
    })
    .await
}

#[test]
fn a_request_on_a_connection_that_ends_is_repeated_only_if_it_may_be() {
    on_a_worker(async {
        let server = forgetful().await;
        let bench = Bench::new([&server]);
        bench.get(&server).await.expect("the server answers");
        assert_eq!(bench.get(&server).await.expect("it is asked again").body, "ok");
        assert_eq!((server.seen().n_accepted, server.seen().n_requests), (2, 3));

        let server = forgetful().await;
        let bench = Bench::new([&server]);
        bench.get(&server).await.expect("the server answers");
        let reason = bench.send(post(&server.url)).await.expect_err("it may have been carried out");
        assert_eq!(reason.word(), "broken");
        assert_eq!((server.seen().n_accepted, server.seen().n_requests), (1, 2));

        let server = Server::start(|mut peer| async move {
            peer.request().await;
            if peer.idx == 0 {
                peer.say(OK).await;
                peer.request().await;
                peer.say("HTTP/1.1 2").await; // an answer has begun
            }
        })
        .await;
        let bench = Bench::new([&server]);
        bench.get(&server).await.expect("the server answers");
        assert_eq!(bench.reason(&server).await.word(), "broken");
        assert_eq!(server.seen().n_accepted, 1);

        let server = Server::start(|mut peer| async move {
            peer.request().await;
            if peer.idx == 0 {
                peer.say(OK).await;
                peer.request().await;
            }
        })
        .await;
        let bench = Bench::new([&server]);
        bench.get(&server).await.expect("the server answers");
        assert_eq!(bench.reason(&server).await.word(), "broken"); // the new connection ended too
        assert_eq!(server.seen().n_accepted, 2);
    });
}

#[test]
fn a_connection_that_ended_while_it_was_idle_is_not_used_again() {
    on_a_worker(async {
        let other = Server::answering(OK).await;
        let server = Server::start(|mut peer| async move {
            peer.request().await;
            peer.say(OK).await;
        })
        .await;
        let bench = Bench::new([&server, &other]);
        for n in 1..=3 {
            bench.send(post(&server.url)).await.expect("the server answers");
            server.until(|it| it.n_open == 0).await;
            bench.get(&other).await.expect("it answers"); // by then the end of the connection has come too
            assert_eq!(server.seen().n_accepted, n);
        }
    });
}

#[test]
fn a_thousand_requests_share_the_connections_of_a_host() {
    on_a_worker(async {
        let server = Server::start(|mut peer| async move {
            let mut seen = peer.seen.subscribe();
            while peer.request().await.is_some() {
                let all = seen.wait_for(|it| it.n_requests >= MOST_CONNECTIONS).await;
                drop(all.expect("the server lives as long as the test"));
                peer.say(OK).await;
            }
        })
        .await;
        let bench = Bench::new([&server]);
        let requests: Vec<_> = (0..1000).map(|_| bench.begin(get(&server.url))).collect();
        for request in requests {
            request.await.expect("it does not panic").expect("the server answers");
        }
        let seen = server.seen();
        assert_eq!((seen.n_accepted, seen.most_open, seen.n_requests), (64, 64, 1000));
        server.until(|it| it.n_open == MOST_IDLE).await;
        bench.clock.advance(IDLE);
        server.until(|it| it.n_open == 0).await;
    });
}

#[test]
fn whoever_waits_for_a_connection_waits_inside_its_own_time() {
    on_a_worker(async {
        let server = Server::start(|mut peer| async move {
            peer.request().await;
            let mut seen = peer.seen.subscribe();
            drop(seen.wait_for(|it| it.n_requests > MOST_CONNECTIONS).await); // which is never
        })
        .await;
        let bench = Bench::new([&server]);
        let slow: Vec<_> = (0..MOST_CONNECTIONS)
            .map(|_| bench.begin(Request { timeout: 2 * TIMEOUT, ..get(&server.url) }))
            .collect();
        server.until(|it| it.n_requests == MOST_CONNECTIONS).await;
        let request = bench.begin(get(&server.url));
        tokio::task::yield_now().await; // to let it begin to wait
        assert_eq!(bench.stage_of_timeout(request).await, Stage::Queue);
        assert!(slow.iter().all(|it| !it.is_finished()));
        bench.clock.advance(TIMEOUT);
        for request in slow {
            assert_eq!(request.await.expect("it does not panic").expect_err("it is late").word(), "timeout");
        }
    });
}

#[test]
fn hosts_that_are_no_longer_asked_are_forgotten() {
    on_a_worker(async {
        let server = Server::answering(OK).await;
        let bench = Bench::new([&server]);
        bench.get(&server).await.expect("the server answers");
        assert_eq!(bench.fetcher.pool.hosts.borrow().len(), 1);
        bench.clock.advance(IDLE);
        server.until(|it| it.n_open == 0).await;
        assert_eq!(bench.fetcher.pool.hosts.borrow().len(), 0);
        assert!(!bench.fetcher.pool.is_tended.get());
    });
}
