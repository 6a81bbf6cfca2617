//! The streaming server: its control server, its signalling, its media port.

use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use streamgate::clock::Clock;
use streamgate::config::{Env, Role, Sources};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::{Answer, Client, Folder, Gateway, gateway, soon};

/// A streaming server.
struct Server {
    running: Gateway,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Server {
    async fn start(lines: &str) -> Server {
        Server::on(lines, Clock::system(), "").await
    }

    async fn on(lines: &str, clock: Clock, tables: &str) -> Server {
        let file = format!(
            "[streaming]\ncontrol = \"127.0.0.1:0\"\nsignaling = \"127.0.0.1:0\"\n{lines}\n{tables}\n"
        );
        let config =
            Sources::new(Env::default()).with_file("stream.toml", file).resolve(Role::Stream).expect("valid");
        let running =
            gateway::run(move || config, clock, Folder::new()).await.unwrap_or_else(|it| panic!("{it}"));
        Server { running }
    }

    async fn control(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut client = Client::connect(self.running.addresses.control.expect("it has one")).await;
        client.request(method, path, headers, body).await;
        client.answer_to(method).await
    }

    async fn ready(&self) -> (u16, String) {
        let answer = self.control("GET", "/v1/streaming/ready", &[], b"").await;
        (answer.status, answer.json("statusMessage"))
    }

    async fn creds(&self, body: &[u8]) -> Answer {
        self.control(
            "POST",
            "/v1/streaming/creds",
            &[("Content-Type", "application/json; charset=utf-8")],
            body,
        )
        .await
    }

    async fn sign_in(&self) -> Socket {
        let url = format!(
            "ws://{}/sign_in?peer_id=peer-1&version=2",
            self.running.addresses.signaling.expect("it has one")
        );
        let mut request = url.into_client_request().expect("a request");
        request.headers_mut().insert("sec-websocket-protocol", "streamgate.v1".parse().expect("a header"));
        let (socket, response) = soon("an upgrade", connect_async(request)).await.expect("a session");
        assert_eq!(response.headers()["sec-websocket-protocol"], "streamgate.v1");
        socket
    }
}

async fn hear(socket: &mut Socket) -> Option<Value> {
    loop {
        match soon("a message", socket.next()).await? {
            Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).expect("JSON")),
            Ok(Message::Close(_)) => return None,
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

async fn say(socket: &mut Socket, message: &Value) {
    socket.send(Message::text(message.to_string())).await.expect("room to write");
}

/// Hears until a message of a kind.
async fn until(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let message = hear(socket).await.unwrap_or_else(|| panic!("the session ended before {kind}"));
        if message["type"] == kind {
            return message;
        }
    }
}

const CREDS: &str = r#"{"stunIp":"127.0.0.1","stunPort":3478,"username":"user","password":"hunter2hunter2"}"#;

#[tokio::test]
async fn the_control_server_says_when_it_is_ready() {
    let server = Server::start("").await;
    assert_eq!(server.ready().await, (200, "Status: Ready for connection".into()));
    assert_eq!(server.control("GET", "/v1/streaming/startup", &[], b"").await.status, 200);
    assert_eq!(server.control("POST", "/v1/streaming/ready", &[], b"{}").await.status, 405);
    assert_eq!(server.control("GET", "/v1/streaming/creds", &[], b"").await.status, 405);
    assert_eq!(server.control("GET", "/v1/other", &[], b"").await.status, 404);
    let _socket = server.sign_in().await;
    assert_eq!(server.ready().await, (200, "Status: Streaming session active (keep alive)".into()));
    let metrics = server.control("GET", "/metrics", &[], b"").await.text();
    assert!(metrics.contains("nvcf_worker_service_stream_streaming_app_ready 1"), "{metrics}");

    let waiting = Server::start("require_creds = true").await;
    assert_eq!(waiting.ready().await.0, 500);
    assert_eq!(waiting.creds(CREDS.as_bytes()).await.status, 200);
    assert_eq!(waiting.ready().await.0, 200);
}

#[tokio::test]
async fn credentials_that_are_none_are_refused_and_the_old_ones_kept() {
    let server = Server::start("require_creds = true").await;
    assert_eq!(server.creds(CREDS.as_bytes()).await.text(), r#"{"errorMessage":null,"success":true}"#);
    let large = format!("{{\"stunIp\":\"{}\"}}", "x".repeat(5000));
    for (body, status, told) in [
        ("", 400, "not JSON"),
        ("{", 400, "not JSON at line 1"),
        ("[]", 400, "expected an object"),
        (
            r#"{"stunIp":1,"stunPort":3478,"username":"u","password":"hunter2"}"#,
            400,
            "stunIp: expected a string",
        ),
        (
            r#"{"stunIp":"h","stunPort":"x","username":"u","password":"hunter2"}"#,
            400,
            "stunPort: expected a number",
        ),
        (
            r#"{"stunIp":"h","stunPort":70000,"username":"u","password":"hunter2"}"#,
            400,
            "stunPort: expected a port",
        ),
        (&large, 413, "at most 4096 bytes"),
    ] {
        let answer = server.creds(body.as_bytes()).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(
            answer.json("errorMessage").contains(told) && answer.json("success") == "false",
            "{}",
            answer.text()
        );
        assert!(!answer.text().contains("hunter2"));
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let answer =
            server.control("POST", "/v1/streaming/creds", &[("Content-Type", kind)], CREDS.as_bytes()).await;
        assert_eq!(answer.status, 415, "{kind}");
    }
    assert_eq!(server.ready().await.0, 200, "it still has the old ones");
    let count =
        |result| server.running.metric("streamgate_streaming_creds_updates_total", &[("result", result)]);
    assert_eq!((count("accepted"), count("refused")), (1.0, 10.0));
    assert!(!crate::support::log::text().contains("hunter2"), "no log has a password");
}

#[tokio::test]
async fn the_server_offers_and_candidates_trickle() {
    let server = Server::start("advertise = [\"192.0.2.1\", \"127.0.0.1\"]").await;
    let media = server.running.addresses.media.expect("it has one");
    assert!((47998..=48020).contains(&media.port()), "{media}");
    let mut socket = server.sign_in().await;
    let hello = hear(&mut socket).await.expect("hello");
    assert_eq!(
        (&hello["type"], &hello["v"], &hello["heartbeatMs"]),
        (&json!("hello"), &json!(1), &json!(3000))
    );
    let offer = hear(&mut socket).await.expect("an offer");
    assert_eq!((&offer["type"], &offer["seq"]), (&json!("offer"), &json!(1)));
    let sdp = offer["sdp"].as_str().expect("SDP");
    for part in [
        "m=video",
        "VP8/90000",
        "m=application",
        "a=rtcp-fb:96 nack pli",
        "a=setup:actpass",
        "a=fingerprint:sha-256",
    ] {
        assert!(sdp.contains(part), "{part} is missing in {sdp}");
    }
    for ip in ["192.0.2.1", "127.0.0.1"] {
        assert!(sdp.contains(&format!(" {ip} {} typ host", media.port())), "{sdp}");
    }
    let end = hear(&mut socket).await.expect("a candidate");
    assert_eq!(
        end,
        json!({ "type": "candidate", "candidate": null }),
        "without a STUN server there is nothing more"
    );
    say(&mut socket, &json!({ "type": "restart" })).await;
    let again = until(&mut socket, "offer").await;
    assert_eq!(again["seq"], 2);
    let ufrag = |sdp: &str| sdp.lines().find(|it| it.starts_with("a=ice-ufrag:")).map(str::to_owned);
    assert_ne!(ufrag(sdp), ufrag(again["sdp"].as_str().expect("SDP")), "new ICE credentials");
    assert_eq!(hear(&mut socket).await.expect("a candidate"), end);
    say(&mut socket, &json!({ "type": "bye" })).await;
    assert!(hear(&mut socket).await.is_none());
    server.running.until_metric("streamgate_streaming_sessions_total", &[("result", "closed")], 1.0);
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_session_with_a_reason() {
    let server = Server::start("").await;
    for (message, code) in [
        ("hello", "bad_message"),
        ("{}", "bad_message"),
        (r#"{"type":"answer","seq":1,"sdp":"v=nonsense"}"#, "bad_message"),
        (r#"{"type":"candidate","candidate":7}"#, "bad_message"),
    ] {
        let mut socket = server.sign_in().await;
        until(&mut socket, "offer").await;
        socket.send(Message::text(message)).await.expect("room");
        assert_eq!(until(&mut socket, "bye").await["code"], code, "{message}");
        assert!(hear(&mut socket).await.is_none());
    }
    let mut socket = server.sign_in().await;
    until(&mut socket, "offer").await;
    for _ in 0..100 {
        drop(socket.send(Message::text(r#"{"type":"pong"}"#)).await);
    }
    assert_eq!(until(&mut socket, "bye").await["code"], "too_fast");
    let mut socket = server.sign_in().await;
    drop(socket.send(Message::text("x".repeat(100_000))).await);
    while hear(&mut socket).await.is_some() {}
    server.running.until_metric("streamgate_streaming_sessions", &[("state", "active")], 0.0);
}

#[tokio::test]
async fn a_browser_without_a_media_path_is_told_and_a_silent_one_given_up() {
    let clock = Clock::paused();
    let server = Server::on("resume_timeout = \"10s\"", clock.clone(), "").await;
    let passing = async |socket: &mut Socket, answers: bool| {
        let mut last = None;
        loop {
            tokio::select! {
                message = hear(socket) => match message {
                    Some(message) => {
                        if answers && message["type"] == "ping" {
                            say(socket, &json!({ "type": "pong", "t": message["t"] })).await;
                        }
                        last = Some(message);
                    }
                    None => return last,
                },
                () = tokio::time::sleep(Duration::from_millis(5)) => clock.advance(Duration::from_millis(500)),
            }
        }
    };
    let mut socket = server.sign_in().await;
    let last = passing(&mut socket, true).await.expect("a last word");
    assert_eq!((&last["type"], &last["code"]), (&json!("bye"), &json!("no_media_path")));
    let mut socket = server.sign_in().await;
    let last = passing(&mut socket, false).await.expect("a last word");
    assert_eq!(last["type"], "ping", "whoever is gone is told nothing");
    server.running.until_metric("streamgate_streaming_sessions_total", &[("result", "lost")], 1.0);
}

#[tokio::test]
async fn too_many_and_foreign_clients_are_refused() {
    let server = Server::start("max_sessions = 1").await;
    let _first = server.sign_in().await;
    let signaling = server.running.addresses.signaling.expect("it has one");
    let mut second = Client::connect(signaling).await;
    second.upgrade("/sign_in", &[("Sec-WebSocket-Protocol", "streamgate.v1")]).await;
    assert_eq!(second.answer().await.status, 503);
    let mut foreign = Client::connect(signaling).await;
    foreign.upgrade("/sign_in", &[("Sec-WebSocket-Protocol", "x-nv-sessionid.1")]).await;
    let answer = foreign.answer().await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("streamgate.v1"));
    let mut elsewhere = Client::connect(signaling).await;
    elsewhere.upgrade("/other", &[]).await;
    assert_eq!(elsewhere.answer().await.status, 404);
}

#[tokio::test]
async fn a_container_for_one_session_ends_with_it_and_says_so_before() {
    let clock = Clock::paused();
    let server = Server::on("exit_after_session = true", clock.clone(), "").await;
    let mut socket = server.sign_in().await;
    until(&mut socket, "offer").await;
    assert_eq!(server.ready().await.0, 200, "the session is served");
    let signaling = server.running.addresses.signaling.expect("it has one");
    let mut second = Client::connect(signaling).await;
    second.upgrade("/sign_in", &[]).await;
    assert_eq!(second.answer().await.status, 503, "and no other");
    say(&mut socket, &json!({ "type": "bye" })).await;
    while hear(&mut socket).await.is_some() {}
    let says_no =
        async { while server.ready().await != (500, "Streaming session ended (recycle instance)".into()) {} };
    soon("500", says_no).await;
    let ended = tokio::task::spawn_blocking(move || server.running.wait());
    soon("the end of the process", ended).await.expect("no panic");
}

#[tokio::test]
async fn a_port_outside_the_range_is_never_taken() {
    // Two neighbours that are free.
    let first = loop {
        let bind = |port| std::net::UdpSocket::bind(("127.0.0.1", port));
        let port = bind(0).expect("a port").local_addr().expect("an address").port();
        if port < u16::MAX && bind(port).is_ok() && bind(port + 1).is_ok() {
            break port;
        }
    };
    let range = &format!("ports = \"{first}-{}\"", first + 1);
    let servers = (Server::start(range).await, Server::start(range).await);
    let ports = [&servers.0, &servers.1].map(|it| it.running.addresses.media.expect("it has one").port());
    assert_eq!(ports, [first, first + 1]);
    let file = format!("[streaming]\ncontrol = \"127.0.0.1:0\"\nsignaling = \"127.0.0.1:0\"\n{range}\n");
    let config =
        Sources::new(Env::default()).with_file("stream.toml", file).resolve(Role::Stream).expect("valid");
    let third = gateway::run(move || config, Clock::system(), Folder::new()).await;
    let told = third.err().expect("the range is used up").to_string();
    assert!(told.contains(&format!("streaming.{range}")) && told.contains("no free UDP port"), "{told}");
}

/// The candidate that a STUN server has opened, once it has. It belongs to each offer.
async fn mapped(server: &Server) -> String {
    let mut socket = server.sign_in().await;
    let candidate = async |socket: &mut Socket| {
        loop {
            let message = until(socket, "candidate").await;
            if let Some(candidate) = message["candidate"]["candidate"].as_str() {
                return candidate.to_owned();
            }
        }
    };
    let first = candidate(&mut socket).await;
    for kind in ["restart", "anew"] {
        say(&mut socket, &json!({ "type": kind })).await;
        until(&mut socket, "offer").await;
        assert_eq!(candidate(&mut socket).await, first, "after {kind}");
    }
    first
}

/// A STUN server that has seen everybody at 192.0.2.9:4711, whatever they prove.
async fn stun_server() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    let answers = tokio::spawn(async move {
        let mut buf = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buf).await {
            let mut answer = vec![0x01, 0x01, 0, 12];
            answer.extend(&buf[4..20]); // the cookie and the transaction
            answer.extend([0x00, 0x20, 0, 8, 0, 1]);
            answer.extend((4711u16 ^ 0x2112).to_be_bytes());
            answer.extend([192 ^ 0x21, 0x12, 2 ^ 0xa4, 9 ^ 0x42]);
            socket.send_to(&answer, from).await.expect("it is sent");
        }
    });
    (address, answers)
}

#[tokio::test]
async fn new_credentials_are_used_while_the_server_of_the_old_ones_says_nothing() {
    // Time stands still, so nobody gives up waiting.
    let server = Server::on("", Clock::paused(), "").await;
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let (stun, answers) = stun_server().await;
    let creds = |port: u16| CREDS.replace("3478", &port.to_string());
    assert_eq!(
        server.creds(creds(silent.local_addr().expect("an address").port()).as_bytes()).await.status,
        200
    );
    soon("a request", silent.recv_from(&mut [0; 2048])).await.expect("it came");
    assert_eq!(server.creds(creds(stun.port()).as_bytes()).await.status, 200);
    let candidate = mapped(&server).await;
    assert!(candidate.contains(" 192.0.2.9 4711 typ srflx"), "{candidate}");
    // What one server has seen is not offered for another one.
    assert_eq!(
        server.creds(creds(silent.local_addr().expect("an address").port()).as_bytes()).await.status,
        200
    );
    soon("a request", silent.recv_from(&mut [0; 2048])).await.expect("it came");
    let mut socket = server.sign_in().await;
    until(&mut socket, "offer").await;
    say(&mut socket, &json!({ "type": "restart" })).await;
    let next = hear(&mut socket).await.expect("a message");
    assert_eq!(next["type"], "offer", "there is no candidate to tell: {next}");
    answers.abort();
}

#[tokio::test]
async fn a_port_is_opened_at_a_stun_server_with_long_term_credentials() {
    let folder = Folder::new();
    // coturn, which asks for long-term credentials before it answers a Binding.
    let port =
        std::net::UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let mut turnserver = Command::new("turnserver")
        .args([
            "-n",
            "--secure-stun",
            "--lt-cred-mech",
            "--user=user:hunter2hunter2",
            "--realm=streamgate.example",
        ])
        .args([
            "--listening-ip=127.0.0.1",
            "--relay-ip=127.0.0.1",
            "--no-cli",
            "--no-tcp", // the port is free for UDP; a connection of another test may have it for TCP
            "--no-tls",
            "--no-dtls",
            "--log-file=stdout",
            "-v",
        ])
        .arg(format!("--listening-port={port}"))
        .arg(format!("--pidfile={}", folder.path().join("pid").display()))
        .arg(format!("--userdb={}", folder.path().join("db").display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("turnserver is installed by `make setup` (package coturn)");
    let mut lines = BufReader::new(turnserver.stdout.take().expect("it is piped")).lines();
    let listens = async {
        while !lines
            .next_line()
            .await
            .expect("output")
            .is_some_and(|it| it.contains("IPv4. UDP listener opened"))
        {}
    };
    soon("a STUN server", listens).await;
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });

    let server = Server::start("").await;
    let creds = format!(
        r#"{{"stunIp":"127.0.0.1","stunPort":{port},"username":"user","password":"hunter2hunter2"}}"#
    );
    assert_eq!(server.creds(creds.as_bytes()).await.status, 200);
    let media = server.running.addresses.media.expect("it has one").port();
    let candidate = mapped(&server).await;
    assert!(candidate.contains(&format!(" 127.0.0.1 {media} typ srflx")), "{candidate}");

    let server = Server::start("").await;
    let wrong = creds.replace("hunter2hunter2", "a wrong password");
    assert_eq!(server.creds(wrong.as_bytes()).await.status, 200);
    server.running.until_metric("streamgate_streaming_stun_binding_total", &[("result", "failed")], 1.0);
    turnserver.kill().await.expect("it ends");
}

#[tokio::test]
async fn a_port_is_opened_at_the_front_doors_stun_server_with_short_term_credentials() {
    let server = Server::on("", Clock::system(), "[frontdoor]\naddress = \"127.0.0.1:0\"").await;
    // The front door posts its credentials before the first session, so one is opened through it.
    let at = |it: Option<std::net::SocketAddr>| it.expect("it has one");
    let (door, control, signaling) = (
        at(server.running.addresses.frontdoor),
        at(server.running.addresses.control),
        at(server.running.addresses.signaling),
    );
    let api = async |method: &str, path: &str, body: Value| {
        let mut client = Client::connect(door).await;
        client
            .request(method, path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
            .await;
        serde_json::from_slice::<Value>(&client.answer().await.body).expect("JSON")
    };
    let body = json!({ "name": "x", "inferenceUrl": "/sign_in", "inferencePort": signaling.port(), "functionType": "STREAMING", "containerImage": "x",
        "health": { "protocol": "HTTP", "uri": "/v1/streaming/ready", "port": control.port(), "timeout": "PT10S", "expectedStatusCode": 200 } });
    let created = api("POST", "/v2/nvcf/functions", body).await;
    let (id, version) = (
        created["function"]["id"].as_str().expect("an id"),
        created["function"]["versionId"].as_str().expect("an id"),
    );
    api("POST", &format!("/v2/nvcf/deployments/functions/{id}/versions/{version}"), json!({})).await;
    let mut through = Client::connect(door).await;
    through
        .upgrade(
            "/sign_in",
            &[
                ("Authorization", "Bearer x"),
                ("Function-ID", id),
                ("Sec-WebSocket-Protocol", "streamgate.v1"),
            ],
        )
        .await;
    assert_eq!(through.answer().await.status, 101);
    let media = at(server.running.addresses.media).port();
    let candidate = mapped(&server).await;
    assert!(candidate.contains(&format!(" 127.0.0.1 {media} typ srflx")), "{candidate}");
}

/// Garbage from strangers is counted, not answered, and harms no session.
#[tokio::test]
async fn strangers_on_the_media_port_are_not_answered() {
    let server = Server::start("").await;
    let media = server.running.addresses.media.expect("it has one");
    let mut socket = server.sign_in().await;
    until(&mut socket, "offer").await;
    let stranger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let mut request = vec![0, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    request.extend([0, 6, 0, 5, b'u', b':', b'v', b'w', b'x', 0, 0, 0]);
    for datagram in [&request[..], b"", b"\x80garbage", b"\x16\xfe\xfd", &[0; 40], &[0xff; 1400]] {
        for _ in 0..50 {
            stranger.send_to(datagram, media).await.expect("room");
        }
    }
    // An empty datagram is dropped by nobody: 300 are counted.
    server.running.until_metric("streamgate_streaming_mux_datagrams_total", &[("kind", "unknown")], 300.0);
    let mut byte = [0; 8];
    let heard = tokio::time::timeout(Duration::from_millis(100), stranger.recv(&mut byte)).await;
    assert!(heard.is_err(), "no answer: {heard:?}");
    say(&mut socket, &json!({ "type": "restart" })).await;
    until(&mut socket, "offer").await;
}

impl Server {
    /// A connection of the session that NVCF calls by this name.
    async fn sign_in_as(&self, name: &str) -> Socket {
        let url = format!("ws://{}/sign_in", self.running.addresses.signaling.expect("it has one"));
        let mut request = url.into_client_request().expect("a request");
        request.headers_mut().insert("sec-websocket-protocol", "streamgate.v1".parse().expect("a header"));
        request.headers_mut().insert("nvcf-reqid", name.parse().expect("a header"));
        soon("an upgrade", connect_async(request)).await.expect("a session").0
    }

    async fn end_session(&self, body: &str) -> (u16, String) {
        let headers = [("Content-Type", "application/json")];
        let answer = self.control("POST", "/v1/streaming/endsession", &headers, body.as_bytes()).await;
        (answer.status, answer.json("sessionStatus"))
    }
}

#[tokio::test]
async fn a_session_outlives_its_connection_and_ends_with_its_time() {
    let clock = Clock::paused();
    let server = Server::on("resume_timeout = \"30s\"", clock.clone(), "").await;
    assert_eq!(server.end_session("{}").await, (200, "COMPLETE".into()), "nothing is waited for");
    let mut socket = server.sign_in_as("one").await;
    let hello = until(&mut socket, "hello").await;
    assert_eq!(hello["resumed"], json!(false));
    until(&mut socket, "offer").await;
    drop(socket); // without a Close frame
    let detached = |n: f64| {
        server.running.until_metric("streamgate_streaming_sessions", &[("state", "detached")], n);
    };
    detached(1.0);
    assert_eq!(server.ready().await, (200, "Status: Awaiting session resume (keep alive)".into()));
    assert_eq!(server.end_session(r#"{"sessionId":"x","more":1}"#).await, (200, "AWAITING_RESUME".into()));
    let mut other = server.sign_in_as("two").await;
    assert_ne!(
        until(&mut other, "hello").await["session"],
        hello["session"],
        "another name, another session"
    );

    let mut back = server.sign_in_as("one").await;
    let again = until(&mut back, "hello").await;
    assert_eq!((&again["session"], &again["resumed"]), (&hello["session"], &json!(true)));
    detached(0.0);
    say(&mut back, &json!({ "type": "restart" })).await;
    assert_eq!(until(&mut back, "offer").await["seq"], json!(2), "an offer for the media path that was kept");
    until(&mut back, "candidate").await;
    // A page that was loaded again has none; a third connection takes the place of the second.
    let mut page = server.sign_in_as("one").await;
    assert_eq!(until(&mut page, "hello").await["session"], hello["session"]);
    assert!(hear(&mut back).await.is_none(), "there is one connection for a session");
    say(&mut page, &json!({ "type": "anew" })).await;
    let offer = until(&mut page, "offer").await;
    assert_eq!(offer["seq"], json!(3));
    assert_eq!(server.running.metric("streamgate_streaming_resumes_total", &[]), 2.0);

    drop(page);
    detached(1.0);
    drop(other);
    detached(2.0);
    for _ in 0..11 {
        clock.advance(Duration::from_secs(3));
        tokio::task::yield_now().await;
    }
    server.running.until_metric("streamgate_streaming_sessions_total", &[("result", "lost")], 2.0);
    detached(0.0);
    assert_eq!(server.end_session("").await, (200, "COMPLETE".into()));
    assert_eq!(server.end_session(r#"{"gracefulShutdown":"yes"}"#).await.0, 400);
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_a_session_and_is_no_broken_connection() {
    let server = Server::start("").await;
    let mut socket = server.sign_in_as("one").await;
    until(&mut socket, "offer").await;
    let too_large = json!({ "type": "pong", "t": "x".repeat(70 << 10) });
    drop(socket.send(Message::text(too_large.to_string())).await); // it may be cut before it has all of it
    server.running.until_metric("streamgate_streaming_sessions_total", &[("result", "bad_message")], 1.0);
    server.running.until_metric("streamgate_streaming_sessions", &[("state", "active")], 0.0);
}

#[tokio::test]
async fn a_page_that_goes_away_may_come_back_and_one_that_closes_may_not() {
    let server = Server::start("resume_timeout = \"60s\"").await;
    let with = async |socket: &mut Socket, code: u16| {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        socket.close(Some(frame)).await.expect("room");
        while let Some(Ok(message)) = soon("the answer", socket.next()).await {
            if let Message::Close(Some(answer)) = message {
                return u16::from(answer.code);
            }
        }
        panic!("the Close frame was not answered");
    };
    let mut page = server.sign_in_as("one").await;
    let hello = until(&mut page, "hello").await;
    assert_eq!(with(&mut page, 1001).await, 1001);
    server.running.until_metric("streamgate_streaming_sessions", &[("state", "detached")], 1.0);
    assert_eq!(server.end_session(r#"{"sessionId":"one"}"#).await, (200, "AWAITING_RESUME".into()));
    let mut again = server.sign_in_as("one").await;
    let second = until(&mut again, "hello").await;
    assert_eq!((&second["session"], &second["resumed"]), (&hello["session"], &json!(true)));
    say(&mut again, &json!({ "type": "anew" })).await;
    assert_eq!(until(&mut again, "offer").await["seq"], json!(2));
    assert_eq!(with(&mut again, 1000).await, 1000);
    let ended = |n: f64| {
        server.running.until_metric("streamgate_streaming_sessions_total", &[("result", "closed")], n);
    };
    ended(1.0);
    // Nobody could come back into a session without a name.
    let mut nameless = server.sign_in().await;
    until(&mut nameless, "offer").await;
    assert_eq!(with(&mut nameless, 1001).await, 1001);
    ended(2.0);
}

#[tokio::test]
async fn a_browser_that_comes_back_late_has_its_time_for_a_media_path_once_more() {
    let clock = Clock::paused();
    let server = Server::on("resume_timeout = \"60s\"", clock.clone(), "").await;
    let secs = Duration::from_secs;
    let mut socket = server.sign_in_as("one").await;
    until(&mut socket, "offer").await;
    drop(socket); // before media flowed
    server.running.until_metric("streamgate_streaming_sessions", &[("state", "detached")], 1.0);
    clock.advance(secs(20));
    let mut back = server.sign_in_as("one").await;
    assert_eq!(until(&mut back, "hello").await["resumed"], json!(true));
    // A ping shows that the session goes on: no media path would be said before it.
    clock.advance(secs(8));
    until(&mut back, "ping").await;
    say(&mut back, &json!({ "type": "restart" })).await;
    assert_eq!(until(&mut back, "offer").await["seq"], json!(2));
    clock.advance(secs(8));
    until(&mut back, "ping").await;
    // Behind a gateway that holds the connection, a browser that was away is no more than silent.
    for _ in 0..5 {
        clock.advance(secs(4));
        until(&mut back, "ping").await;
    }
    say(&mut back, &json!({ "type": "restart" })).await;
    assert_eq!(until(&mut back, "offer").await["seq"], json!(3));
    until(&mut back, "candidate").await;
    // That time has an end too.
    let last = loop {
        clock.advance(secs(3));
        let message = hear(&mut back).await.expect("a last word");
        if message["type"] != "ping" {
            break message;
        }
        say(&mut back, &json!({ "type": "pong" })).await;
    };
    assert_eq!(last["code"], json!("no_media_path"));
}

#[tokio::test]
async fn the_front_door_can_end_a_session() {
    let server = Server::start("").await;
    let mut sockets = Vec::new();
    for name in ["one", "two", "three"] {
        let mut socket = server.sign_in_as(name).await;
        until(&mut socket, "offer").await;
        sockets.push(socket);
    }
    assert_eq!(server.end_session(r#"{"sessionId":"one"}"#).await, (200, "AWAITING_RESUME".into()));
    assert_eq!(server.end_session(r#"{"sessionId":"gone"}"#).await, (200, "COMPLETE".into()));
    let one = r#"{"sessionId":"one","gracefulShutdown":true}"#;
    assert_eq!(server.end_session(one).await, (200, "COMPLETE".into()));
    assert_eq!(until(&mut sockets[0], "bye").await["code"], json!("ended"));
    server.running.until_metric("streamgate_streaming_sessions_total", &[("result", "ended")], 1.0);
    assert_eq!(server.end_session(r#"{"gracefulShutdown":true}"#).await, (200, "COMPLETE".into()));
    for socket in &mut sockets[1..] {
        assert_eq!(until(socket, "bye").await["code"], json!("ended"));
    }
    server.running.until_metric("streamgate_streaming_sessions_total", &[("result", "ended")], 3.0);
}
