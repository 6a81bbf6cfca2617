//! The local front door against NVCF's contract. Names `F…` are the numbers of the conformance list.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use streamgate::clock::Clock;
use streamgate::config::{Env, Role, Sources};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use crate::support::raw::from_browser;
use crate::support::upstream::{Act, header};
use crate::support::{Answer, Client, Folder, Gateway, Leg, Upstream, advancing, gateway, soon};

const ACCESS: &str = "the-key-of-the-account";

/// A front door.
struct Door {
    running: Gateway,
}

/// The container of a function: a control server, and whatever serves its inference port.
struct Container {
    control: u16,
    inference: u16,
    is_ready: Arc<AtomicBool>,
    creds: Arc<Mutex<Vec<String>>>,
    /// What it was asked about the end of sessions, and what it answers.
    asked: Arc<Mutex<Vec<String>>>,
    says: Arc<Mutex<&'static str>>,
}

impl Door {
    async fn start(lines: &str) -> Door {
        Door::on(lines, Clock::system()).await
    }

    async fn on(lines: &str, clock: Clock) -> Door {
        Door::at("127.0.0.1:0", lines, clock).await
    }

    async fn at(address: &str, lines: &str, clock: Clock) -> Door {
        let file = format!("[frontdoor]\naddress = \"{address}\"\n{lines}\n");
        let config = Sources::new(Env::default())
            .with_file("door.toml", file)
            .resolve(Role::FrontDoor)
            .expect("valid");
        let running = gateway::run(move || config, clock, Folder::new()).await.expect("it starts");
        Door { running }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.running.addresses.frontdoor.expect("it is one")).await
    }

    async fn api(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut client = self.connect().await;
        let headers = [("Authorization", &*format!("Bearer {ACCESS}")), ("Content-Type", "application/json")];
        client.request(method, path, &headers, body.as_bytes()).await;
        client.answer_to(method).await
    }

    /// A function, not deployed: its id and its version's.
    async fn create(&self, kind: &str, container: &Container) -> (String, String) {
        self.create_at(kind, container.control, container.inference).await
    }

    async fn create_at(&self, kind: &str, control: u16, inference: u16) -> (String, String) {
        let body = json!({
            "name": "my-stream", "inferenceUrl": "/sign_in", "inferencePort": inference, "functionType": kind,
            "health": { "protocol": "HTTP", "uri": "/v1/streaming/ready", "port": control, "timeout": "PT10S", "expectedStatusCode": 200 },
            "containerImage": "registry.example/stream:1", "apiBodyFormat": "CUSTOM",
        });
        let created = self.api("POST", "/v2/nvcf/functions", &body.to_string()).await;
        assert_eq!(created.status, 200, "{}", created.text());
        let created: Value = serde_json::from_slice(&created.body).expect("JSON");
        assert_eq!(created["function"]["status"], "INACTIVE");
        let text = |it: &Value| it.as_str().expect("an id").to_owned();
        (text(&created["function"]["id"]), text(&created["function"]["versionId"]))
    }

    async fn status(&self, function: &str, version: &str) -> String {
        let answer = self.api("GET", &format!("/v2/nvcf/functions/{function}/versions/{version}"), "").await;
        let json: Value = serde_json::from_slice(&answer.body).expect("JSON");
        json["function"]["status"].as_str().unwrap_or_default().to_owned()
    }

    async fn until_status(&self, function: &str, version: &str, expected: &str) {
        let waits = async { while self.status(function, version).await != expected {} };
        soon(expected, waits).await;
    }

    async fn deploy(&self, function: &str, version: &str, specification: Value) -> Answer {
        let body = json!({ "deploymentSpecifications": [specification] });
        self.api("POST", &deployment(function, version), &body.to_string()).await
    }

    /// Whether a session is known, asked without connecting to it: by somebody whose it is not (F14).
    async fn knows(&self, function: &str, id: &str) -> bool {
        let headers = [("Authorization", "Bearer a stranger"), ("Function-ID", function), ("nvcf-reqid", id)];
        match self.ask("GET", &headers).await.status {
            500 => true,
            404 => false,
            status => panic!("a stranger was answered {status}"),
        }
    }

    /// A function at work.
    async fn function(&self, container: &Container) -> String {
        let (function, version) = self.create("STREAMING", container).await;
        self.deploy(&function, &version, json!({ "gpu": "L40", "maxRequestConcurrency": 8 })).await;
        self.until_status(&function, &version, "ACTIVE").await;
        function
    }

    async fn ask(&self, method: &str, headers: &[(&str, &str)]) -> Answer {
        let mut client = self.connect().await;
        client.request(method, "/sign_in?peer_id=1", headers, b"").await;
        client.answer_to(method).await
    }
}

impl Container {
    /// A container whose inference port is `upstream`'s.
    async fn before(upstream: &Upstream) -> Container {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let control = listener.local_addr().expect("an address").port();
        let (is_ready, creds) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
        let (asked, says) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new("")));
        let shared = (Arc::clone(&is_ready), Arc::clone(&creds), Arc::clone(&asked), Arc::clone(&says));
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let (ready, posted, asked, says) = shared.clone();
                tokio::spawn(async move {
                    let mut text = String::new();
                    let mut buf = [0; 4096];
                    loop {
                        let Ok(n @ 1..) = tcp.read(&mut buf).await else { return };
                        text += &String::from_utf8_lossy(&buf[..n]);
                        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                        let length =
                            header(head, "content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
                        if body.len() >= length {
                            break;
                        }
                    }
                    let sent = text.split_once("\r\n\r\n").expect("a body").1.to_owned();
                    if text.starts_with("POST /v1/streaming/endsession") {
                        asked.lock().expect("not poisoned").push(sent);
                        let body = format!("{{\"sessionStatus\":{:?}}}", says.lock().expect("not poisoned"));
                        let length = body.len();
                        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
                        return drop(tcp.write_all(answer.as_bytes()).await);
                    }
                    let status = match text.starts_with("POST /v1/streaming/creds") {
                        true => {
                            posted.lock().expect("not poisoned").push(sent);
                            "200 OK"
                        }
                        false if ready.load(Ordering::Relaxed) => "200 OK",
                        false => "500 Internal Server Error",
                    };
                    drop(
                        tcp.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                            .await,
                    );
                });
            }
        });
        Container { control, inference: upstream.address.port(), is_ready, creds, asked, says }
    }

    /// Waits until it has heard that a session is over.
    async fn is_told_to_end(&self, id: &str) {
        let expected = json!({ "sessionId": id, "gracefulShutdown": true });
        let is_told = || {
            let asked = self.asked.lock().expect("not poisoned");
            asked.iter().any(|it| serde_json::from_str::<Value>(it).expect("JSON") == expected)
        };
        let told = async {
            while !is_told() {
                tokio::task::yield_now().await;
            }
        };
        soon("a graceful end", told).await;
    }

    fn n_creds(&self) -> usize {
        self.creds.lock().expect("not poisoned").len()
    }

    fn last_creds(&self) -> Value {
        let creds = self.creds.lock().expect("not poisoned");
        serde_json::from_str(creds.last().expect("it has some")).expect("JSON")
    }

    /// Waits until it was asked so often about the end of sessions, while time passes; gives the last question.
    async fn asked(&self, n: usize, clock: &Clock) -> Value {
        let passes = async {
            loop {
                let asked = self.asked.lock().expect("not poisoned").clone();
                if asked.len() >= n {
                    return serde_json::from_str(&asked[n - 1]).expect("JSON");
                }
                clock.advance(Duration::from_millis(500));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon("a question", passes).await
    }
}

/// The path of a deployment.
fn deployment(function: &str, version: &str) -> String {
    format!("/v2/nvcf/deployments/functions/{function}/versions/{version}")
}

fn bearer() -> (&'static str, String) {
    ("Authorization", format!("Bearer {ACCESS}"))
}

#[tokio::test]
async fn the_seeds_request_creates_a_function_once_its_stray_brace_is_gone() {
    let door = Door::start("").await;
    let seed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/seed-function.json"))
        .expect("the seed's body");
    let refused = door.api("POST", "/v2/nvcf/functions", &seed).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.header("content-type").as_deref(), Some("application/problem+json"));
    assert!(refused.json("detail").contains("trailing characters at line 17 column 5"), "{}", refused.text());
    let (good, _) = seed.trim_end().rsplit_once('}').expect("a brace");
    let created = door.api("POST", "/v2/nvcf/functions", good).await;
    assert_eq!(created.status, 200, "{}", created.text());
    let created: Value = serde_json::from_slice(&created.body).expect("JSON");
    let (id, version) = (
        created["function"]["id"].as_str().expect("an id"),
        created["function"]["versionId"].as_str().expect("an id"),
    );

    let list: Value =
        serde_json::from_slice(&door.api("GET", "/v2/nvcf/functions", "").await.body).expect("JSON");
    assert_eq!(list["functions"][0]["name"], "my-stream");
    let one = door.api("GET", &format!("/v2/nvcf/functions/{id}/versions/{version}"), "").await;
    assert_eq!(one.status, 200);
    let versions: Value =
        serde_json::from_slice(&door.api("GET", &format!("/v2/nvcf/functions/{id}/versions"), "").await.body)
            .expect("JSON");
    assert_eq!(versions["functions"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        door.api("DELETE", &format!("/v2/nvcf/functions/{id}/versions/{version}"), "").await.status,
        204
    );
    for path in [
        format!("/v2/nvcf/functions/{id}/versions/{version}"),
        format!("/v2/nvcf/deployments/functions/{id}/versions/{version}"),
    ] {
        assert_eq!(door.api("GET", &path, "").await.status, 404, "{path}");
    }
    assert_eq!(door.api("GET", "/v2/nvcf/no-such-thing", "").await.status, 404);
}

/// F21, and F22: the credentials come before the first WebSocket.
#[tokio::test]
async fn a_function_is_active_once_its_container_is_ready_and_gets_its_credentials_first() {
    let mut upstream = Upstream::start().await;
    let container = Container::before(&upstream).await;
    container.is_ready.store(false, Ordering::Relaxed);
    let door = Door::start("").await;
    let (function, version) = door.create("STREAMING", &container).await;
    let answer = door.deploy(&function, &version, json!({ "gpu": "L40" })).await;
    assert_eq!((answer.status, door.status(&function, &version).await.as_str()), (200, "DEPLOYING"));
    container.is_ready.store(true, Ordering::Relaxed);
    door.until_status(&function, &version, "ACTIVE").await;
    let n_before = container.n_creds(); // those that were to make it ready

    let mut client = door.connect().await;
    let (name, value) = bearer();
    client.upgrade("/sign_in?x=1", &[(name, &value), ("Function-ID", &function)]).await;
    assert_eq!(client.answer().await.status, 101);
    let leg = upstream.leg().await;
    assert_eq!(container.n_creds(), n_before + 1, "before the WebSocket, and once");
    let creds = container.last_creds();
    assert!(
        creds["stunIp"].is_string()
            && creds["stunPort"].is_u64()
            && creds["username"].is_string()
            && creds["password"].is_string()
    );
    assert_eq!(creds["privateSharedPort"], 5004);
    assert!(leg.head.starts_with("GET /sign_in?x=1 HTTP/1.1"), "{}", leg.head);

    container.is_ready.store(false, Ordering::Relaxed);
    door.until_status(&function, &version, "ERROR").await;
}

/// A front door on all addresses sends the one under which the container reaches it.
#[tokio::test]
async fn a_container_can_reach_the_stun_server_it_is_told_of() {
    let upstream = Upstream::that(Act::Mirror).await;
    let container = Container::before(&upstream).await;
    let door = Door::at("0.0.0.0:0", "", Clock::system()).await;
    let function = door.function(&container).await;
    let (name, value) = bearer();
    assert_eq!(door.ask("GET", &[(name, &value), ("Function-ID", &function)]).await.status, 200);
    let creds = container.last_creds();
    assert_eq!(creds["stunIp"], "127.0.0.1", "the way to the container is on this machine");
    let address = format!("127.0.0.1:{}", creds["stunPort"]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    // A Binding that proves nothing; it is answered all the same.
    let binding = [&b"\x00\x01\x00\x00\x21\x12\xa4\x42"[..], &[7; 12]].concat();
    socket.send_to(&binding, address).await.expect("room to write");
    let mut answer = [0; 64];
    let (_, from) = soon("an answer", socket.recv_from(&mut answer)).await.expect("an answer");
    assert_eq!((from.ip().to_string().as_str(), &answer[8..20]), ("127.0.0.1", &[7; 12][..]));
}

/// `streaming.require_creds`: ready once there are credentials, which come once it is ready?
#[tokio::test]
async fn a_container_that_waits_for_its_credentials_becomes_ready() {
    let file = "[streaming]\ncontrol = \"127.0.0.1:0\"\nsignaling = \"127.0.0.1:0\"\nrequire_creds = true\n";
    let config =
        Sources::new(Env::default()).with_file("stream.toml", file).resolve(Role::Stream).expect("valid");
    let server = gateway::run(move || config, Clock::system(), Folder::new()).await.expect("it starts");
    let stream = &server.addresses;
    let port = |it: Option<std::net::SocketAddr>| it.expect("it has one").port();
    let door = Door::start("").await;
    let (function, version) = door.create_at("STREAMING", port(stream.control), port(stream.signaling)).await;
    door.deploy(&function, &version, json!({})).await;
    door.until_status(&function, &version, "ACTIVE").await;
    let (name, value) = bearer();
    let mut client = door.connect().await;
    client
        .upgrade(
            "/sign_in?peer_id=peer-1&version=2",
            &[(name, &value), ("Function-ID", &function), ("Sec-WebSocket-Protocol", "streamgate.v1")],
        )
        .await;
    assert_eq!(client.answer().await.status, 101);
}

/// Time stands still here, so no poll of its health tells that a container has restarted.
#[tokio::test]
async fn every_session_brings_its_credentials() {
    let upstream = Upstream::that(Act::Mirror).await;
    let container = Container::before(&upstream).await;
    let door = Door::on("", Clock::paused()).await;
    let function = door.function(&container).await;
    let (name, value) = bearer();
    let headers = [(name, value.as_str()), ("Function-ID", function.as_str())];
    let session = async |more: &[(&str, &str)]| {
        let answer = door.ask("GET", &headers.iter().chain(more).copied().collect::<Vec<_>>()).await;
        assert_eq!(answer.status, 200);
        answer.header("nvcf-reqid").expect("an id")
    };
    let id = session(&[]).await;
    session(&[]).await;
    assert_eq!(container.n_creds(), 2, "it may have restarted before the second one");
    session(&[("nvcf-reqid", &id)]).await;
    assert_eq!(container.n_creds(), 2, "whoever comes back is in a session that has them");
    // A session that was had in advance brings them to the container that runs when it is used.
    let absorbed = door.ask("POST", &[headers.as_slice(), &[("X-NVCF-ABSORB", "true")]].concat()).await;
    assert_eq!((absorbed.status, container.n_creds()), (200, 2));
    let id = absorbed.header("nvcf-reqid").expect("an id");
    assert_eq!(session(&[("nvcf-reqid", &id)]).await, id);
    assert_eq!(container.n_creds(), 3);
}

/// F2 to F8, F13.
#[tokio::test]
async fn headers_are_read_as_nvcf_reads_them() {
    let upstream = Upstream::that(Act::Mirror).await;
    let container = Container::before(&upstream).await;
    let door = Door::start(&format!("token = \"file:{}\"", Folder::leaked("key", ACCESS).display())).await;
    let mut stranger = door.connect().await;
    stranger.request("GET", "/v2/nvcf/functions", &[("Authorization", "Bearer another")], b"").await;
    assert_eq!(stranger.answer().await.status, 401, "the key is for the API too");
    let function = door.function(&container).await;
    let (_, bearer) = bearer();
    let refused = |answer: Answer, status: u16, text: &str| {
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(text), "{}", answer.text());
    };
    refused(
        door.ask("GET", &[("Function-ID", &function)]).await,
        401,
        "no authorization was passed in the metadata",
    );
    refused(
        door.ask("GET", &[("Authorization", "Basic x"), ("Function-ID", &function)]).await,
        401,
        "no authorization was passed in the metadata",
    );
    refused(door.ask("GET", &[("Authorization", "Bearer wrong"), ("Function-ID", &function)]).await, 401, "");
    refused(
        door.ask("GET", &[("Authorization", &bearer)]).await,
        400,
        "no function-id was passed in the metadata",
    );
    refused(
        door.ask("GET", &[("Authorization", &bearer), ("nvcf-function-id", &function)]).await,
        400,
        "no function-id was passed in the metadata",
    );
    refused(door.ask("GET", &[("Authorization", "Bearer wrong")]).await, 400, "no function-id"); // what is missing comes first
    let none = "00000000-0000-0000-0000-000000000000";
    let answer = door.ask("GET", &[("Authorization", &bearer), ("Function-ID", none)]).await;
    assert_eq!(answer.header("set-cookie"), None, "a function that is gone takes no cookie away");
    refused(answer, 404, "not found");

    // F3: a browser can only use the subprotocol, and cannot send a space in it.
    for entries in [
        format!("authorization.{ACCESS}, function-id.{function}"),
        format!("AUTHORIZATION.{ACCESS},FUNCTION-ID.{function}"),
    ] {
        let answer = door.ask("GET", &[("Sec-WebSocket-Protocol", &entries)]).await;
        assert_eq!(answer.status, 200, "{entries}: {}", answer.text());
    }
    // F7 and F8.
    let answer =
        door.ask("GET", &[("Authorization", &bearer), ("function-id", &function), ("Cookie", "app=1")]).await;
    let id = answer.header("nvcf-reqid").expect("an id");
    assert_eq!(answer.all("set-cookie"), [format!("nvcf-request-id={id}")], "without attributes");
    for (name, value) in [("nvcf-reqid", id.as_str()), ("authorization", &bearer), ("cookie", "app=1")] {
        assert_eq!(header(&answer.text(), name).as_deref(), Some(value), "the app sees {name}");
    }
    // F4: header, then subprotocol, then cookie; one that is no UUID is ignored.
    let ask = async |headers: &[(&str, &str)]| {
        let all: Vec<(&str, &str)> = [("Authorization", bearer.as_str()), ("function-id", function.as_str())]
            .into_iter()
            .chain(headers.iter().copied())
            .collect();
        door.ask("GET", &all).await.header("nvcf-reqid")
    };
    let same = Some(id.clone());
    assert_eq!(ask(&[("nvcf-reqid", &id)]).await, same);
    assert_eq!(ask(&[("Cookie", &format!("a=b; nvcf-request-id={id}"))]).await, same);
    assert_eq!(ask(&[("Sec-WebSocket-Protocol", &format!("chat, nvcf-reqid.{id}"))]).await, same);
    assert_eq!(ask(&[("nvcf-reqid", &id), ("Cookie", &format!("nvcf-request-id={none}"))]).await, same);
    let fresh = ask(&[("nvcf-reqid", "not-a-uuid")]).await;
    assert!(fresh.is_some() && fresh != same, "a new session");
    // F13: a session that is gone.
    let answer = door
        .ask(
            "GET",
            &[
                ("Authorization", &bearer),
                ("function-id", &function),
                ("nvcf-reqid", none),
                ("Origin", "https://app.example"),
            ],
        )
        .await;
    assert_eq!(answer.header("set-cookie").as_deref(), Some("nvcf-request-id=; Max-Age=0"));
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("https://app.example"), "F19");
    refused(answer, 404, "no existing session found");
}

/// F9: a connection keeps its session, whatever later requests on it say.
#[tokio::test]
async fn a_session_is_a_connection() {
    let upstream = Upstream::that(Act::Mirror).await;
    let container = Container::before(&upstream).await;
    let door = Door::start("").await;
    let function = door.function(&container).await;
    let (_, bearer) = bearer();
    let mut client = door.connect().await;
    let mut ids = Vec::new();
    for headers in [
        vec![("Authorization", bearer.as_str()), ("function-id", function.as_str())],
        vec![("function-id", function.as_str())],
        vec![("function-id", function.as_str()), ("nvcf-reqid", "00000000-0000-0000-0000-000000000000")],
    ] {
        client.request("GET", "/x", &headers, b"").await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        ids.push((answer.header("nvcf-reqid"), answer.header("set-cookie").is_some()));
    }
    assert_eq!(ids[0].0, ids[1].0);
    assert_eq!(ids[0].0, ids[2].0);
    assert_eq!(
        ids.iter().map(|it| it.1).collect::<Vec<_>>(),
        [true, false, false],
        "F7: the cookie is given once"
    );
    assert_eq!(upstream.n_connections(), 1, "F10: the tunnel is dialled once");
}

/// F11, F25: what either side does is passed on untouched, and an end ends the other at once.
#[tokio::test]
async fn a_tunnel_is_untouched() {
    let mut upstream = Upstream::start().await;
    let container = Container::before(&upstream).await;
    let door = Door::start("").await;
    let function = door.function(&container).await;
    let (name, value) = bearer();
    let open = async |upstream: &mut Upstream| {
        let mut client = door.connect().await;
        client
            .upgrade(
                "/sign_in",
                &[(name, &value), ("Function-ID", &function), ("Sec-WebSocket-Protocol", "chat")],
            )
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 101);
        assert!(answer.header("nvcf-reqid").is_some(), "F7: on the 101 too");
        (client, upstream.leg().await)
    };
    let (mut client, mut leg) = open(&mut upstream).await;
    assert_eq!(leg.header("sec-websocket-protocol").as_deref(), Some("chat"));
    client.send(&from_browser(1, b"up")).await;
    assert_eq!(leg.frame().await.expect("a frame").payload, b"up");
    leg.send(8, b"\x0f\xc2bye").await;
    assert_eq!(client.frame().await.expect("a frame").payload, b"\x0f\xc2bye");
    client.shutdown().await;
    assert!(leg.frame().await.is_none(), "no frame of its own");
    let (client, mut leg) = open(&mut upstream).await;
    client.reset();
    assert!(leg.frame().await.is_none());
    let (mut client, mut leg) = open(&mut upstream).await;
    leg.shutdown().await;
    assert!(client.frame().await.is_none());
}

/// F12, F26: one session for each instance; the next one waits, and not for ever.
#[tokio::test]
async fn a_session_waits_for_a_free_instance() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let container = Container::before(&upstream).await;
    let door = Door::on("", clock.clone()).await;
    let (function, version) = door.create("STREAMING", &container).await;
    door.deploy(&function, &version, json!({ "gpu": "L40" })).await;
    let asks_again = async {
        while door.status(&function, &version).await != "ACTIVE" {
            clock.advance(Duration::from_secs(1));
        }
    };
    soon("ACTIVE", asks_again).await;
    let (name, value) = bearer();
    let headers = [(name, value.as_str()), ("Function-ID", function.as_str())];
    let mut first = door.connect().await;
    first.upgrade("/sign_in", &headers).await;
    assert_eq!(first.answer().await.status, 101);
    let leg = upstream.leg().await;
    let mut second = door.connect().await;
    second.upgrade("/sign_in", &headers).await;
    let mut answer = Box::pin(second.answer());
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            () = tokio::time::sleep(Duration::from_millis(5)) => clock.advance(Duration::from_secs(1)),
        }
    };
    assert_eq!((answer.status, answer.text().as_str()), (504, "failed to establish link to worker"));
    drop((first, leg));
}

/// F9, F20: a session without the app is its connection's like any other.
#[tokio::test]
async fn a_session_made_by_absorb_is_its_connections_and_ends_without_being_named() {
    let upstream = Upstream::that(Act::Mirror).await;
    let container = Container::before(&upstream).await;
    // Time stands still: who waits for a place waits for ever.
    let door = Door::on("", Clock::paused()).await;
    let (function, version) = door.create("STREAMING", &container).await;
    door.deploy(&function, &version, json!({ "maxRequestConcurrency": 1 })).await;
    door.until_status(&function, &version, "ACTIVE").await;
    let (name, value) = bearer();
    let unnamed = [(name, value.as_str()), ("Function-ID", function.as_str()), ("X-NVCF-ABSORB", "true")];
    let mut client = door.connect().await;
    let mut ask = async |method: &str, headers: &[(&str, &str)]| {
        client.request(method, "/sign_in", headers, b"").await;
        client.answer_to(method).await
    };
    let mut given = Vec::new();
    for _ in 0..3 {
        let answer = ask("POST", &unnamed).await;
        assert_eq!(answer.status, 200);
        given.push((answer.header("nvcf-reqid").expect("an id"), answer.header("set-cookie").is_some()));
    }
    let id = given[0].0.clone();
    let expected = [true, false, false].map(|has_cookie| (id.clone(), has_cookie));
    assert_eq!(given, expected, "one session, and its cookie once (F7)");
    let answer = ask("GET", &unnamed[1..2]).await;
    assert_eq!((answer.status, answer.header("nvcf-reqid").as_ref()), (200, Some(&id)));
    assert_eq!(upstream.heads().len(), 1, "the app is asked only now");

    // Another connection ends only what it names.
    let refused = door.ask("DELETE", &unnamed).await;
    assert_eq!(refused.status, 404, "{}", refused.text());
    assert!(refused.text().contains("nvcf-reqid"), "{}", refused.text());
    assert_eq!(door.ask("DELETE", &unnamed[1..]).await.status, 401);
    assert!(door.knows(&function, &id).await);

    // This one is in the session that it ends; the app is not asked.
    let ended = ask("DELETE", &unnamed).await;
    assert_eq!((ended.status, ended.text().as_str()), (200, ""));
    assert_eq!(upstream.heads().len(), 1);
    assert!(!door.knows(&function, &id).await);
    // Nor is it bound any more.
    assert_eq!(ask("DELETE", &unnamed).await.status, 404);
    let next = ask("POST", &unnamed).await;
    assert_eq!((next.status, next.header("nvcf-reqid") == Some(id)), (200, false));
}

/// F26: a container has the places that it has, whoever describes it anew.
#[tokio::test]
async fn a_deployment_that_changes_keeps_the_sessions_of_containers_that_stay_and_ends_the_others() {
    let clock = Clock::paused();
    let (mut upstream, mut elsewhere) = (Upstream::start().await, Upstream::start().await);
    let (container, other) = (Container::before(&upstream).await, Container::before(&elsewhere).await);
    for it in [&container, &other] {
        *it.says.lock().expect("not poisoned") = "COMPLETE";
    }
    let door = Door::on("", clock.clone()).await;
    let (function, version) = door.create("STREAMING", &container).await;
    let path = deployment(&function, &version);
    let put = async |specification: Value| {
        let body = json!({ "deploymentSpecifications": [specification] });
        let answer = door.api("PUT", &path, &body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        door.until_status(&function, &version, "ACTIVE").await;
    };
    let (name, value) = bearer();
    let headers = [(name, value.as_str()), ("Function-ID", function.as_str())];
    let open = async || {
        let mut client = door.connect().await;
        client.upgrade("/sign_in", &headers).await;
        let answer = advancing(&clock, client.answer()).await;
        (client, answer.status, answer.header("nvcf-reqid").unwrap_or_default())
    };
    put(json!({ "gpu": "L40" })).await;
    let (mut first, status, id) = open().await;
    assert_eq!(status, 101);
    let mut leg = upstream.leg().await;
    assert_eq!(open().await.1, 504, "there is one place");
    put(json!({ "gpu": "H100" })).await;
    assert_eq!(open().await.1, 504, "and it is taken, after a new deployment too");
    leg.send(1, b"still here").await;
    assert_eq!(first.frame().await.expect("a frame").payload, b"still here");
    put(json!({ "maxRequestConcurrency": 2 })).await;
    let (mut second, status, second_id) = open().await;
    assert_eq!(status, 101, "another place");

    // Another container in its stead.
    let endpoint = json!({ "inferencePort": other.inference, "healthPort": other.control });
    put(json!({ "endpoints": [endpoint] })).await;
    assert!(first.frame().await.is_none() && second.frame().await.is_none(), "both are ended");
    for id in [&id, &second_id] {
        assert!(!door.knows(&function, id).await);
        container.is_told_to_end(id).await;
    }
    let (mut third, status, id) = open().await;
    assert_eq!(status, 101);
    let _leg = elsewhere.leg().await;
    assert_eq!(door.api("DELETE", &path, "").await.status, 200);
    assert!(third.frame().await.is_none(), "no deployment, no session");
    assert!(!door.knows(&function, &id).await);
    other.is_told_to_end(&id).await;
    // The version goes with its deployment.
    put(json!({})).await;
    let (mut fourth, status, _) = open().await;
    assert_eq!(status, 101);
    let gone = door.api("DELETE", &format!("/v2/nvcf/functions/{function}/versions/{version}"), "").await;
    assert_eq!(gone.status, 204);
    assert!(fourth.frame().await.is_none());
}

/// F14, F15, F18, F20.
#[tokio::test]
async fn a_session_belongs_to_its_function_and_account_and_can_be_ended() {
    let upstream = Upstream::that(Act::Mirror).await;
    let container = Container::before(&upstream).await;
    let door = Door::start("").await;
    let (function, other) = (door.function(&container).await, door.function(&container).await);
    let (_, bearer) = bearer();
    let mine = [("Authorization", bearer.as_str()), ("function-id", function.as_str())];
    let ask = async |method: &str, base: &[(&str, &str)], more: &[(&str, &str)]| {
        door.ask(method, &base.iter().chain(more).copied().collect::<Vec<_>>()).await
    };
    let created = ask("POST", &mine, &[("X-NVCF-ABSORB", "true")]).await;
    assert_eq!(created.status, 200);
    assert_eq!(upstream.n_connections(), 0, "F20: the app is not asked");
    let cookie = created.header("set-cookie").expect("a cookie");
    let id = cookie.strip_prefix("nvcf-request-id=").expect("the id").to_owned();
    let back = [("Cookie", cookie.as_str())];
    assert_eq!(
        ask("GET", &mine, &back).await.header("nvcf-reqid"),
        Some(id.clone()),
        "F15: as often as one likes"
    );
    assert_eq!(ask("GET", &mine, &back).await.header("nvcf-reqid"), Some(id.clone()));

    let foreign = [("Authorization", "Bearer another account"), ("function-id", function.as_str())];
    let elsewhere = [("Authorization", bearer.as_str()), ("function-id", other.as_str())];
    for (base, text) in [
        (foreign, "invoker NCA ID mismatch for request id"),
        (elsewhere, "function ID mismatch for request id"),
    ] {
        let answer = ask("GET", &base, &back).await;
        assert_eq!(answer.status, 500);
        assert!(answer.text().contains(text) && answer.text().contains(&id), "{}", answer.text());
    }
    let absorb = [("X-NVCF-ABSORB", "true"), back[0]];
    assert_eq!(ask("DELETE", &mine, &absorb).await.status, 200);
    assert_eq!(ask("DELETE", &mine, &absorb).await.status, 404, "it is gone");
    let next = ask("POST", &mine, &[("X-NVCF-ABSORB", "true")]).await;
    assert_eq!(next.status, 200, "its place is free at once");
    assert_eq!(ask("GET", &mine, &back).await.status, 404);

    let (plain, _) = door.create("DEFAULT", &container).await;
    let answer = door.ask("GET", &[("Authorization", &bearer), ("function-id", &plain)]).await;
    assert_eq!(answer.status, 501, "F18");

    let (refusing, version) = door.create("STREAMING", &container).await;
    let path = format!("/v2/nvcf/deployments/functions/{refusing}/versions/{version}");
    for (status, text) in [(403, "denied"), (429, "exceeded rate limit"), (503, "unavailable")] {
        let deployed = door.api("PUT", &path, &json!({ "refuse": status }).to_string()).await;
        assert_eq!(deployed.status, 200, "{}", deployed.text());
        let answer = door.ask("GET", &[("Authorization", &bearer), ("function-id", &refusing)]).await;
        assert!(answer.status == status && answer.text().contains(text), "F18: {}", answer.text());
    }
    let wrong = door.api("PUT", &path, r#"{"refuse":200}"#).await;
    assert!(wrong.status == 400 && wrong.text().contains("refuse"), "{}", wrong.text());
}

/// A worker waits 30 s for its browser, counted from the last time that it left.
#[tokio::test]
async fn a_session_is_held_from_its_last_connection_on() {
    let clock = Clock::paused();
    let upstream = Upstream::that(Act::Mirror).await;
    let container = Container::before(&upstream).await;
    let door = Door::on("", clock.clone()).await;
    let (function, version) = door.create("STREAMING", &container).await;
    door.deploy(&function, &version, json!({})).await;
    let asks_again = async {
        while door.status(&function, &version).await != "ACTIVE" {
            clock.advance(Duration::from_secs(1));
        }
    };
    soon("ACTIVE", asks_again).await;
    let (name, value) = bearer();
    let created = door.ask("GET", &[(name, &value), ("Function-ID", &function)]).await;
    let id = created.header("nvcf-reqid").expect("a session");
    let back = async || {
        door.ask("GET", &[(name, &value), ("Function-ID", &function), ("nvcf-reqid", &id)]).await.status
    };
    for _ in 0..5 {
        clock.advance(Duration::from_secs(26));
        assert_eq!(back().await, 200, "each return begins the hold anew");
    }
    let is_gone = async {
        while door.knows(&function, &id).await {
            clock.advance(Duration::from_secs(10));
        }
    };
    soon("its end", is_gone).await;
}

/// RFC 9457, whoever finds the mistake.
#[tokio::test]
async fn every_error_of_the_api_is_a_problem_document() {
    let door = Door::start("").await;
    let none = "00000000-0000-0000-0000-000000000000";
    for (method, path, status, told) in [
        ("GET", "/v2/nvcf/no-such-thing".to_owned(), 404, "No static resource"),
        ("PATCH", "/v2/nvcf/functions".to_owned(), 405, "'PATCH' is not supported"),
        ("POST", deployment(none, none).replace("deployments/", ""), 405, "'POST' is not supported"),
        ("DELETE", "/v2/nvcf/faults".to_owned(), 405, "'DELETE' is not supported"),
        ("GET", "/v2/nvcf/functions/seven/versions".to_owned(), 400, "`seven`"),
        ("GET", deployment("seven", none), 400, "`seven`"),
        ("GET", deployment(none, "eight"), 400, "`eight`"),
        ("POST", "/v2/nvcf/faults/%ff".to_owned(), 400, "UTF-8"),
        ("GET", deployment(none, none), 404, "not found"),
    ] {
        let answer = door.api(method, &path, "").await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert_eq!(
            answer.header("content-type").as_deref(),
            Some("application/problem+json"),
            "{method} {path}"
        );
        assert_eq!(answer.json("status"), status.to_string(), "{method} {path}");
        assert!(answer.json("detail").contains(told), "{method} {path}: {}", answer.text());
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}");
    }
}

/// F1, F19, F29.
#[tokio::test]
async fn some_requests_are_the_front_doors_own() {
    let door = Door::start("").await;
    let mut client = door.connect().await;
    client.request("GET", "/health", &[], b"").await;
    assert_eq!(client.answer().await.text(), "OK");
    client.request("GET", "/info", &[], b"").await;
    assert_eq!(client.answer().await.status, 200);
    let preflight = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "x-mine"),
    ];
    client.request("OPTIONS", "/sign_in", &preflight, b"").await;
    let answer = client.answer_to("OPTIONS").await;
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("https://app.example"));
    assert_eq!(answer.header("access-control-allow-credentials").as_deref(), Some("true"));
    assert_eq!(answer.header("access-control-max-age").as_deref(), Some("3600"));
    client.request("POST", "/x", &[("Content-Type", "application/grpc")], b"").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("grpc-status").as_deref()), (200, Some("16")));
    assert!(answer.header("grpc-message").expect("a message").contains("no authorization"));
}

/// The gateway before the front door: a browser that comes back is in the same session.
#[tokio::test]
async fn gateway_and_front_door_agree_about_sessions() {
    let mut upstream = Upstream::start().await;
    let container = Container::before(&upstream).await;
    let door = Door::start("").await;
    let function = door.function(&container).await;
    let address = door.running.addresses.frontdoor.expect("it is one");
    let gateway = Gateway::before(format!("http://{address}"))
        .upstream(&format!("functions = [{function:?}]"))
        .with("[sessions.resume]\nmode = \"reconnect\"")
        .start()
        .await;
    let open = async |cookie: &str| {
        let mut client = gateway.connect().await;
        client
            .upgrade(
                "/sign_in",
                &[("Sec-WebSocket-Protocol", &format!("chat, function-id.{function}")), ("Cookie", cookie)],
            )
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 101, "{}", answer.text());
        (client, answer)
    };
    let (client, answer) = open("").await;
    let first = upstream.leg().await.header("nvcf-reqid").expect("an id");
    let cookie =
        answer.header("set-cookie").expect("a cookie").split(';').next().expect("a value").to_owned();
    client.reset();
    let (_client, _) = open(&cookie).await;
    assert_eq!(upstream.leg().await.header("nvcf-reqid"), Some(first.clone()), "the same session");
    let (_other, _) = open("").await;
    assert_ne!(upstream.leg().await.header("nvcf-reqid"), Some(first), "somebody else has another");

    // A function that does not exist.
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "function.unknown"));
}

/// F23, F24: the app says how long a session waits, the window how long it may.
#[tokio::test]
async fn a_session_is_held_as_long_as_the_app_waits_and_the_window_is_open() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let container = Container::before(&upstream).await;
    let door = Door::on("", clock.clone()).await;
    let function = door.function(&container).await;
    let authorization = format!("Bearer {ACCESS}");
    let enter = async |id: &str| {
        let mut client = door.connect().await;
        let headers = [
            ("Authorization", authorization.as_str()),
            ("Function-ID", function.as_str()),
            ("X-NVCF-RECONNECT-WINDOW-SECS", "20"),
            ("nvcf-reqid", id),
        ];
        client.upgrade("/sign_in", &headers).await;
        let answer = client.answer().await;
        (client, answer)
    };
    *container.says.lock().expect("not poisoned") = "AWAITING_RESUME";
    let (client, answer) = enter("").await;
    let id = answer.header("nvcf-reqid").expect("an id");
    drop((upstream.leg().await, client));
    let question = container.asked(5, &clock).await;
    assert_eq!((&question["sessionId"], &question["gracefulShutdown"]), (&json!(id), &json!(false)));
    let (client, answer) = enter(&id).await;
    assert_eq!((answer.status, answer.header("nvcf-reqid")), (101, Some(id.clone())), "it waits");
    drop((upstream.leg().await, client));
    // Nobody comes within the window: the app is told to end it, and it is forgotten.
    let ended = async {
        let mut n = 6;
        while container.asked(n, &clock).await["gracefulShutdown"] != true {
            n += 1;
        }
        n
    };
    let n_asked = soon("the end", ended).await;
    assert!(
        (15..=32).contains(&n_asked),
        "asked each second for 20 s, after 5 and some more before: {n_asked}"
    );
    let gone = async { while enter(&id).await.1.status != 404 {} };
    soon("a session that is forgotten", gone).await;

    *container.says.lock().expect("not poisoned") = "COMPLETE";
    let (client, answer) = enter("").await;
    let id = answer.header("nvcf-reqid").expect("an id");
    drop((upstream.leg().await, client));
    container.asked(n_asked + 1, &clock).await;
    let gone = async { while enter(&id).await.1.status != 404 {} };
    soon("a session that is complete", gone).await;
}

/// A gateway before a front door that can be made to fail, and a browser of it.
struct Stage {
    upstream: Upstream,
    door: Door,
    gateway: Gateway,
    function: String,
}

impl Stage {
    async fn set(lines: &str, tables: &str) -> Stage {
        let upstream = Upstream::start().await;
        let container = Container::before(&upstream).await;
        let door = Door::start(lines).await;
        let function = door.function(&container).await;
        let address = door.running.addresses.frontdoor.expect("it is one");
        let gateway = Gateway::before(format!("http://{address}"))
            .upstream(&format!("functions = [{function:?}]"))
            .with(tables)
            .start()
            .await;
        Stage { upstream, door, gateway, function }
    }

    async fn fault(&self, method: &str, path: &str, body: &str) -> Answer {
        self.door.api(method, &format!("/v2/nvcf/faults{path}"), body).await
    }

    /// Opens a session, or comes back into one by another handshake; gives what NVCF called it.
    async fn open(&mut self, cookie: &str) -> (Client, String, Leg, String) {
        let mut client = self.gateway.connect().await;
        let offer = format!("chat, function-id.{}", self.function);
        let path = if cookie.is_empty() { "/sign_in" } else { "/sign_in?reconnect=1" };
        client.upgrade(path, &[("Sec-WebSocket-Protocol", &offer), ("Cookie", cookie)]).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 101, "{}", answer.text());
        let leg = self.upstream.leg().await;
        let id = leg.header("nvcf-reqid").expect("an id");
        (client, crate::support::cookie(&answer.header("set-cookie").expect("a cookie")), leg, id)
    }
}

#[tokio::test]
async fn a_session_may_be_registered_late() {
    let mut stage = Stage::set("", "").await;
    let wrong = stage.fault("PUT", "", "{\"registrationDelay\":7,\"sleep\":true}").await;
    assert_eq!(wrong.status, 400);
    for part in ["registrationDelay: expected a duration", "sleep: there are registrationDelay,"] {
        assert!(wrong.text().contains(part), "{}", wrong.text());
    }
    let set = stage.fault("PUT", "", "{\"registrationDelay\":\"700ms\"}").await;
    assert_eq!((set.status, set.json("registrationDelay").as_str()), (200, "700ms"));
    let (_client, cookie, _leg, first) = stage.open("").await;
    // At once NVCF does not know it; the gateway asks again until it does (F16).
    let (_client, _, _leg, second) = stage.open(&cookie).await;
    assert_eq!(first, second);
    let resumed = [("kind", "reconnect"), ("outcome", "resumed")];
    stage.gateway.until_metric("streamgate_session_resumes_total", &resumed, 1.0);
    // Nobody waits for ever for one that stays unknown.
    stage.fault("PUT", "", "{\"registrationDelay\":\"1h\"}").await;
    let (_client, cookie, _leg, first) = stage.open("").await;
    let (_client, _, _leg, second) = stage.open(&cookie).await;
    assert_ne!(first, second, "a new session in its place");
}

#[tokio::test]
async fn a_dead_worker_is_waited_for_in_vain() {
    let mut stage = Stage::set("worker_timeout = \"200ms\"", "").await;
    let (_client, cookie, _leg, first) = stage.open("").await;
    stage.fault("PUT", "", "{\"deadWorkers\":true}").await;
    let bearer = format!("Bearer {}", crate::support::KEY);
    let headers =
        [("authorization", bearer.as_str()), ("function-id", &stage.function), ("nvcf-reqid", &first)];
    let answer = stage.door.ask("GET", &headers).await;
    assert_eq!((answer.status, answer.text().as_str()), (504, "failed to establish link to worker"));
    assert_eq!(
        answer.header("set-cookie"),
        None,
        "the cookie stays, unlike that of an unknown session (F17)"
    );
    // The gateway believes the 504 once, and the browser has a new session.
    let (_client, _, _leg, second) = stage.open(&cookie).await;
    assert_ne!(first, second);
    let gone = [("kind", "reconnect"), ("outcome", "gone")];
    stage.gateway.until_metric("streamgate_session_resumes_total", &gone, 1.0);
}

#[tokio::test]
async fn connections_fail_on_demand() {
    let keepalive = "[sessions.keepalive]\ninterval = \"200ms\"\ntimeout = \"1s\"";
    let mut stage = Stage::set("", keepalive).await;
    let ends = |stage: &Stage, reason: &str, n: f64| {
        stage.gateway.until_metric("streamgate_session_ends_total", &[("reason", reason)], n);
    };
    // FIN and RST, both without a Close frame: the browser sees the same, and may come back.
    let (mut client, cookie, _leg, first) = stage.open("").await;
    assert_eq!(stage.fault("POST", "/drop", "").await.status, 204);
    assert!(!client.ends_with_reset().await);
    ends(&stage, "upstream_lost", 1.0);
    let (mut client, cookie, _leg, second) = stage.open(&cookie).await;
    assert_eq!(stage.fault("POST", "/reset", "").await.status, 204);
    assert!(client.ends_with_reset().await);
    ends(&stage, "upstream_lost", 2.0);
    let (mut client, cookie, leg, third) = stage.open(&cookie).await;
    assert_eq!((&first, &first), (&second, &third), "the session outlives its connections");
    // Late, but whole.
    let mut leg = leg;
    stage.fault("PUT", "", "{\"delay\":\"50ms\"}").await;
    leg.send(1, b"late").await;
    while client.frame().await.expect("a frame").payload != b"late" {}
    stage.fault("PUT", "", "{}").await;
    // A front door that restarts knows nobody any more.
    assert_eq!(stage.fault("POST", "/restart", "").await.status, 204);
    assert!(client.ends_with_reset().await);
    let (_client, _, leg, fourth) = stage.open(&cookie).await;
    assert_ne!(first, fourth);
    // Nothing passes and nobody is told: the gateway finds out by its pings.
    assert_eq!(stage.fault("PUT", "", "{\"halfOpen\":true}").await.status, 200);
    assert_eq!(stage.fault("POST", "/explode", "").await.status, 404);
    ends(&stage, "upstream_silent", 1.0);
    drop(leg);
}
