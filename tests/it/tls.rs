//! TLS towards browsers and towards the upstream.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::{self, cipher_suite};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, SupportedCipherSuite,
    SupportedProtocolVersion,
};
use socket2::{SockFilter, SockRef};
use streamgate::clock::Clock;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::life::{Browser, ID, message, open, parked, session};
use crate::support::raw::accept;
use crate::support::redis::{COOKIE_KEY, Redis};
use crate::support::upstream::{Act, header};
use crate::support::{Client, Folder, Gateway, Leg, Upstream, advancing, cookie as cookie_of, log};

/// Trusts every certificate, as a developer's browser is told to.
#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client(suites: Vec<SupportedCipherSuite>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let provider = rustls::crypto::CryptoProvider { cipher_suites: suites, ..ring::default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .expect("suites for the version");
    builder.dangerous().with_custom_certificate_verifier(Arc::new(Trusting)).with_no_client_auth()
}

async fn secure(
    gateway: &Gateway,
    config: ClientConfig,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(gateway.address()).await?;
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").expect("a name"), tcp)
        .await
}

#[tokio::test]
async fn a_self_signed_gateway_speaks_the_intermediate_profile() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).listen("tls = { self_signed = true }").start().await;
    for (suite, version) in [
        (cipher_suite::TLS13_AES_128_GCM_SHA256, &TLS13),
        (cipher_suite::TLS13_AES_256_GCM_SHA384, &TLS13),
        (cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, &TLS13),
        (cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, &TLS12),
        (cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, &TLS12),
        (cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, &TLS12),
    ] {
        let tls = secure(&gateway, client(vec![suite], &[version]))
            .await
            .unwrap_or_else(|it| panic!("{suite:?}: {it}"));
        assert_eq!(tls.get_ref().1.negotiated_cipher_suite().map(|it| it.suite()), Some(suite.suite()));
        let mut browser = Client::over(tls);
        browser.upgrade("/sign_in", &[]).await;
        let answer = browser.answer().await;
        assert_eq!(answer.status, 101, "{suite:?}");
        let mut leg = upstream.leg().await;
        browser.send(&crate::support::raw::from_browser(1, b"over tls")).await;
        assert_eq!(leg.frame().await.expect("a frame").payload, b"over tls");
    }
}

#[tokio::test]
async fn no_session_ticket_is_given_and_the_cookie_is_secure() {
    let upstream =
        Upstream::that(Act::Answer("HTTP/1.1 200 OK\r\nnvcf-reqid: r-1\r\nContent-Length: 0\r\n\r\n".into()))
            .await;
    let gateway = Gateway::in_front_of(&upstream).listen("tls = { self_signed = true }").start().await;
    let mut tls = secure(&gateway, client(ring::default_provider().cipher_suites, &[&TLS13]))
        .await
        .expect("a handshake");
    tls.write_all(b"GET /sign_in HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("room");
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.expect("an answer");
    let set = header(&answer, "set-cookie").expect("a cookie");
    assert!(set.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{set}");
    assert_eq!(tls.get_ref().1.tls13_tickets_received(), 0);
}

#[tokio::test]
async fn behind_something_that_ends_tls_the_cookie_is_secure_too() {
    let upstream =
        Upstream::that(Act::Answer("HTTP/1.1 200 OK\r\nnvcf-reqid: r-1\r\nContent-Length: 0\r\n\r\n".into()))
            .await;
    let gateway = Gateway::in_front_of(&upstream)
        .listen("behind_tls = true")
        .with("[sessions.cookie]\nsame_site = \"none\"")
        .start()
        .await;
    let set = gateway.get("/sign_in", &[]).await.header("set-cookie").expect("a cookie");
    assert!(set.ends_with("; HttpOnly; SameSite=None; Secure"), "{set}");
}

#[tokio::test]
async fn a_handshake_that_is_none_is_given_up() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream)
        .listen("tls = { self_signed = true }\nhead_timeout = \"200ms\"")
        .start()
        .await;
    for bytes in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"\x16\x03\x01", b""] {
        let mut browser = gateway.connect().await;
        browser.send(bytes).await;
        assert!(!browser.ends_with_reset().await || bytes.len() > 3);
    }
    gateway.until_metric("streamgate_connections", &[], 0.0);
}

/// An authority, and a server's certificate that it has signed.
struct Authority {
    ca: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    chain_pem: String,
    key_pem: String,
}

fn authority(names: &[&str]) -> Authority {
    authority_until(names, rcgen::date_time_ymd(4096, 1, 1))
}

/// One whose certificate ends then.
fn authority_until(names: &[&str], end: OffsetDateTime) -> Authority {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca_params = CertificateParams::new(Vec::new()).expect("parameters");
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca_params.self_signed(&ca_key).expect("a certificate");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
        .expect("parameters");
    params.not_after = end;
    let issuer = rcgen::Issuer::from_params(&ca_params, &ca_key);
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    Authority {
        ca: ca.pem(),
        chain: vec![certificate.der().clone()],
        chain_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
    }
}

/// An upstream with TLS that accepts WebSockets; it gives its port and counts handshakes by their ALPN.
async fn secure_upstream(authority: &Authority) -> u16 {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("versions");
    let mut config = builder
        .with_no_client_auth()
        .with_single_cert(authority.chain.clone(), authority.key.clone_key())
        .expect("a pair");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                assert_eq!(
                    tls.get_ref().1.alpn_protocol(),
                    Some(&b"http/1.1"[..]),
                    "NVCF is spoken to in HTTP/1.1"
                );
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match tls.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let answer = match header(&head, "sec-websocket-key") {
                    Some(key) => format!(
                        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                        accept(&key)
                    ),
                    None => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
                };
                drop(tls.write_all(answer.as_bytes()).await);
                let mut sink = [0; 1024];
                while matches!(tls.read(&mut sink).await, Ok(n) if n > 0) {}
            });
        }
    });
    port
}

#[tokio::test]
async fn the_upstream_is_verified() {
    let (good, other) = (authority(&["localhost"]), authority(&["localhost"]));
    let wrong_name = authority(&["elsewhere.example"]);
    let check = async |server: &Authority, trusted: Option<&Authority>, works: bool| {
        let port = secure_upstream(server).await;
        let mut builder = Gateway::before(format!("localhost:{port}"));
        if let Some(trusted) = trusted {
            builder = builder.file("ca.pem", &trusted.ca).upstream("ca = \"ca.pem\"");
        }
        let gateway = builder.start().await;
        let mut browser = gateway.connect().await;
        browser.upgrade("/sign_in", &[]).await;
        let (websocket, plain) = (browser.answer().await, gateway.get("/x", &[]).await);
        if works {
            assert_eq!((websocket.status, plain.text().as_str()), (101, "ok"));
        } else {
            assert_eq!((websocket.status, websocket.code().as_str()), (502, "upstream.tls"));
            assert_eq!((plain.status, plain.code().as_str()), (502, "upstream.tls"));
        }
    };
    check(&good, Some(&good), true).await;
    check(&good, Some(&other), false).await;
    check(&good, None, false).await;
    check(&wrong_name, Some(&wrong_name), false).await;
}

/// Counts in the store of the plugins.
const COUNTER: &str = r#"
local kv = require "streamgate.kv"
return { authorize = function(request)
  if request:path() == "/count" then
    local n, reason = kv.incr "n"
    return request:respond(200, {}, tostring(n or reason))
  end
end }
"#;

const COUNTER_SCHEMA: &str = "return { summary = \"Counts.\", phases = { \"authorize\" }, fields = {} }";

#[tokio::test]
async fn a_directory_and_a_store_behind_tls_are_verified() {
    let (pair, other) = (authority(&["127.0.0.1"]), authority(&["127.0.0.1"]));
    let folder = Folder::new();
    let (certificate, key) =
        (folder.write("cert.pem", &pair.chain_pem), folder.write("key.pem", &pair.key_pem));
    let redis = Redis::encrypted(&certificate, &key, &pair.ca).await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let trusting = |authority: &Authority, upstream: &Upstream| {
        let store = format!("[plugins]\npaths = [\"plugins\"]\nca = \"ca.pem\"\nstore = \"{}\"", redis.url());
        Gateway::in_front_of(upstream)
            .with(&format!("{store}\n{}", redis.tables()))
            .file("ca.pem", &authority.ca)
            .env("COOKIE_KEY", COOKIE_KEY)
            .plugin("counter", COUNTER_SCHEMA, COUNTER)
            .chain("\"counter\"")
    };
    let owner = trusting(&pair, &upstream).start().await;
    let second = trusting(&pair, &upstream).start().await;
    assert_eq!(owner.get("/count", &[]).await.text(), "1");
    assert_eq!(second.get("/count", &[]).await.text(), "2", "they share a store");
    let (Browser { client, cookie }, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    client.reset();
    parked(&owner, 1.0);
    let mut browser = open(&second, &cookie).await;
    leg.send(2, &message(1)).await;
    assert_eq!(browser.client.frame().await.expect("a message").payload, message(1), "and a directory");
    for gateway in [&owner, &second] {
        assert_eq!(gateway.metric("streamgate_directory_up", &[]), 1.0);
    }

    // Whoever trusts another authority does not speak with it, and serves all the same.
    let stranger = trusting(&other, &upstream).start().await;
    stranger.until_metric("streamgate_directory_up", &[], 0.0);
    assert_eq!(stranger.get("/count", &[]).await.text(), "unavailable");
    let _session = session(&stranger, &mut upstream).await;
    let told = log::lines_with("cannot be asked");
    assert!(told.len() == 2 && told.iter().all(|it| it.contains("invalid peer certificate")), "{told:?}");

    let told = trusting(&pair, &upstream).file("ca.pem", "nothing").problems();
    assert!(told.contains("directory.ca") && told.contains("plugins.ca"), "{told}");
    let told = Gateway::in_front_of(&upstream)
        .with("[directory]\nurl = \"redis://127.0.0.1:1\"\nca = \"ca.pem\"\n[sessions.cookie]\nkey = \"env:COOKIE_KEY\"")
        .env("COOKIE_KEY", COOKIE_KEY)
        .problems();
    assert!(told.contains("write `rediss://` into `directory.url`"), "{told}");
}

#[tokio::test]
async fn a_certificate_can_come_from_files_and_bad_ones_are_told() {
    let upstream = Upstream::start().await;
    let pair = authority(&["localhost"]);
    let tls = "tls = { certificate = \"cert.pem\", key = \"key.pem\" }";
    let gateway = Gateway::in_front_of(&upstream)
        .listen(tls)
        .file("cert.pem", &pair.chain_pem)
        .file("key.pem", &pair.key_pem)
        .start()
        .await;
    secure(&gateway, client(ring::default_provider().cipher_suites, &[&TLS13])).await.expect("a handshake");

    let other = authority(&["localhost"]);
    let told = Gateway::in_front_of(&upstream)
        .listen(tls)
        .file("cert.pem", &pair.chain_pem)
        .file("key.pem", &other.key_pem)
        .problems();
    assert!(told.contains("certificate and key cannot be used"), "{told}");
    let told = Gateway::in_front_of(&upstream)
        .listen(tls)
        .file("cert.pem", "nothing")
        .file("key.pem", &pair.key_pem)
        .problems();
    assert!(told.contains("cert.pem") && told.contains("not a readable PEM file"), "{told}");
    let told = Gateway::in_front_of(&upstream).listen(tls).problems();
    assert!(told.contains("cert.pem"), "{told}");
}

#[tokio::test]
async fn a_certificate_that_ends_is_told() {
    let upstream = Upstream::start().await;
    let now = OffsetDateTime::from(Clock::system().wall());
    for (hours, said) in [(-2, "has expired on"), (24 * 3 + 2, "3 days from now"), (24 * 15, "")] {
        let end = now + time::Duration::hours(hours);
        let pair = authority_until(&["localhost"], end);
        let builder = Gateway::in_front_of(&upstream)
            .listen("tls = { certificate = \"cert.pem\", key = \"key.pem\" }")
            .file("cert.pem", &pair.chain_pem)
            .file("key.pem", &pair.key_pem);
        let file = builder.text();
        let gateway = builder.start().await;
        let told = gateway.reload(&file).expect("it can be used").join("\n");
        let setting = [("setting", "listen.tls.certificate")];
        let shown = gateway.metric("streamgate_tls_certificate_expiry_timestamp_seconds", &setting);
        assert_eq!(shown, end.unix_timestamp() as f64);
        assert_eq!(told.contains("cert.pem"), !said.is_empty(), "{told}");
        assert!(told.contains(said), "{told}");
        assert!(said.is_empty() || told.contains(&end.date().to_string()), "{told}");
    }
}

#[tokio::test]
async fn handshakes_that_fail_are_counted() {
    let upstream = Upstream::start().await;
    let clock = Clock::paused();
    let gateway =
        Gateway::in_front_of(&upstream).listen("tls = { self_signed = true }").on(&clock).start().await;
    let failed = |reason, n| {
        gateway.until_metric("streamgate_tls_handshakes_failed_total", &[("reason", reason)], n);
    };
    let mut client = gateway.connect().await;
    client.request("GET", "/", &[], b"").await;
    failed("error", 1.0);
    drop(gateway.connect().await);
    failed("left", 1.0);
    let mut says_nothing = TcpStream::connect(gateway.address()).await.expect("it listens");
    assert_eq!(advancing(&clock, says_nothing.read(&mut [0])).await.expect("its end"), 0);
    failed("timeout", 1.0);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_after_a_reload() {
    let upstream = Upstream::start().await;
    let (old, new) = (authority(&["localhost"]), authority(&["localhost"]));
    let builder = Gateway::in_front_of(&upstream)
        .listen("tls = { certificate = \"cert.pem\", key = \"key.pem\" }")
        .file("cert.pem", &old.chain_pem)
        .file("key.pem", &old.key_pem);
    let file = builder.text();
    let gateway = builder.start().await;
    let shown = async || {
        let config = client(ring::default_provider().cipher_suites, &[&TLS13]);
        let tls = secure(&gateway, config).await.expect("a handshake");
        tls.get_ref().1.peer_certificates().expect("one")[0].clone()
    };
    assert_eq!(shown().await, old.chain[0]);
    gateway.folder.write("cert.pem", &new.chain_pem);
    let told = gateway.reload(&file).expect_err("a key of another certificate").to_string();
    assert!(told.contains("listen.tls"), "{told}");
    assert_eq!(shown().await, old.chain[0]);
    gateway.folder.write("key.pem", &new.key_pem);
    gateway.reload(&file).expect("a pair");
    assert_eq!(shown().await, new.chain[0]);
}

/// What a network loses between a browser and the gateway `entry`, where the session is in `owner`, whose time is `clock`.
async fn what_a_dead_network_swallowed(
    entry: &Gateway,
    owner: &Gateway,
    clock: &Clock,
    cookie: &str,
    upstream: &mut Upstream,
    leg: Option<Leg>,
) {
    let open = async |cookie: &str| {
        let config = client(ring::default_provider().cipher_suites, &[&TLS13]);
        let tls = secure(entry, config).await.expect("a handshake");
        let tcp = SockRef::from(tls.get_ref().0).try_clone().expect("a copy");
        let mut browser = Client::over(tls);
        browser.upgrade("/sign_in?x=1", &[("Cookie", cookie)]).await;
        let answer = browser.answer().await;
        assert_eq!(answer.status, 101);
        (browser, tcp, cookie_of(&answer.header("set-cookie").expect("a cookie")))
    };
    let (mut browser, tcp, cookie) = open(cookie).await;
    let mut leg = match leg {
        Some(leg) => leg,
        None => upstream.leg().await,
    };
    let mut seen = Vec::new();
    for n in 0..20 {
        leg.send(2, &message(n)).await;
        seen.push(browser.frame().await.expect("a message").payload);
    }
    // A program that keeps 0 bytes of each packet: the network is gone.
    tcp.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).expect("a socket option");
    for n in 20..40 {
        leg.send(2, &message(n)).await;
    }
    owner.until_metric(
        "streamgate_relay_frames_total",
        &[("direction", "to_browser"), ("kind", "data")],
        40.0,
    );
    assert!(leg.is_silent().await); // the kernel may take some time to acknowledge what has arrived
    while owner.metric("streamgate_sessions", &[("state", "parked")]) < 1.0 {
        clock.advance(std::time::Duration::from_secs(10));
        if let Some(ping) = leg.frame_now().await {
            leg.send(10, &ping.payload).await;
        }
    }
    let (mut browser, _, _) = open(&cookie).await;
    while seen.len() < 40 {
        let frame = browser.frame().await.expect("a message");
        if frame.opcode < 8 {
            seen.push(frame.payload);
        }
    }
    let order: Vec<Option<usize>> = seen.iter().map(|it| (0..40).find(|n| message(*n) == *it)).collect();
    assert_eq!(order, (0..40).map(Some).collect::<Vec<_>>(), "nothing lost, doubled or out of order");
}

#[tokio::test]
async fn what_a_dead_network_swallowed_is_sent_again_over_tls_too() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let gateway =
        Gateway::in_front_of(&upstream).listen("tls = { self_signed = true }").on(&clock).start().await;
    what_a_dead_network_swallowed(&gateway, &gateway, &clock, "", &mut upstream, None).await;
}

#[tokio::test]
async fn and_where_its_session_is_in_another_replica() {
    let redis = Redis::start().await;
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let replica = || Gateway::in_front_of(&upstream).with(&redis.tables()).env("COOKIE_KEY", COOKIE_KEY);
    let owner = replica().on(&clock).start().await;
    let entry = replica().listen("tls = { self_signed = true }").start().await;
    let (browser, leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    browser.client.reset();
    parked(&owner, 1.0);
    what_a_dead_network_swallowed(&entry, &owner, &clock, &browser.cookie, &mut upstream, Some(leg)).await;
    assert_eq!(upstream.n_connections(), 1);
}
