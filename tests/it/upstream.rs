//! An upstream that fails: the browser gets a status with a code, the operator the cause, and nobody waits for ever.

use std::time::Duration;

use socket2::{Domain, Socket, Type};
use streamgate::clock::Clock;
use tokio::net::TcpStream;

use crate::support::raw::accept;
use crate::support::upstream::Act;
use crate::support::{Answer, Gateway, Upstream, advancing, log};

/// The answers to a WebSocket and to a plain request.
async fn both(gateway: &Gateway) -> [Answer; 2] {
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    [client.answer().await, gateway.get("/page", &[]).await]
}

fn check(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}");
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("*"), "{what}");
    assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"), "{what}");
    let id = answer.json("request_id");
    assert_eq!(answer.header("x-request-id").as_deref(), Some(id.as_str()), "{what}");
    assert!(!log::lines_with(&id).is_empty(), "the log has the cause under the request's id: {what}");
}

#[tokio::test]
async fn a_refusal_is_translated() {
    for (status, expected, code) in [
        (400, 502, "upstream.refused"),
        (401, 502, "upstream.key_refused"),
        (403, 502, "upstream.key_refused"),
        (404, 404, "function.unknown"),
        (429, 502, "upstream.limit"),
        (500, 502, "upstream.refused"),
        (501, 502, "upstream.refused"),
        (502, 502, "upstream.refused"),
        (503, 502, "upstream.limit"),
        (504, 504, "upstream.no_worker"),
        (200, 502, "upstream.refused"),
        (302, 502, "upstream.refused"),
    ] {
        let body = "secret of the upstream";
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let upstream = Upstream::that(Act::Answer(answer)).await;
        let gateway = Gateway::in_front_of(&upstream).start().await;
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[]).await;
        let answer = client.answer().await;
        check(&answer, expected, code, &format!("{status}"));
        assert!(!answer.text().contains("secret"), "the browser is not told what the upstream says");
        let logged = log::lines_with(&answer.json("request_id")).join("\n");
        assert!(logged.contains("secret of the upstream"), "the operator is: {logged}");
        let is_blamed = logged.contains("WARN") && logged.contains("is `upstream.function_id` right?");
        assert_eq!(is_blamed, status == 404, "a function that nobody has chosen is the operator's: {logged}");
    }
    let upstream = Upstream::that(Act::Answer("HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n".into())).await;
    let gateway = Gateway::in_front_of(&upstream).upstream("functions = [\"other\"]").start().await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[("Sec-WebSocket-Protocol", "function-id.other")]).await;
    let id = client.answer().await.json("request_id");
    assert!(log::lines_with(&id).iter().all(|it| !it.contains("WARN")), "this one a browser has chosen");
}

#[tokio::test]
async fn a_refusal_is_known_once_all_of_it_has_come() {
    for (framing, body) in [
        ("Content-Length: 7", "because"),
        ("Transfer-Encoding: chunked", "3\r\nbec\r\n4\r\nause\r\n0\r\n\r\n"),
    ] {
        let clock = Clock::paused();
        // It keeps the connection.
        let upstream = Upstream::that(Act::Begin(format!("HTTP/1.1 404 X\r\n{framing}\r\n\r\n{body}"))).await;
        let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[]).await;
        let answer = client.answer().await;
        check(&answer, 404, "function.unknown", framing);
        let logged = log::lines_with(&answer.json("request_id")).join("\n");
        assert!(logged.contains("because"), "{framing}: {logged}");
    }
}

#[tokio::test]
async fn a_websocket_is_no_matter_of_http_1_0() {
    let mut upstream = Upstream::that(Act::Give).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    let mut leg = upstream.leg().await;
    let key = accept(&leg.header("sec-websocket-key").expect("a key"));
    let lines = format!("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n");
    leg.send_raw(format!("HTTP/1.0 101 Switching Protocols\r\n{lines}\r\n").as_bytes()).await;
    check(&client.answer().await, 502, "upstream.garbage", "HTTP/1.0");
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let gateway = Gateway::before(format!("http://{port}")).start().await;
    for answer in both(&gateway).await {
        check(&answer, 502, "upstream.unreachable", "nobody listens");
    }
    let gateway = Gateway::before("http://no-such-host.invalid:80".into()).start().await;
    for answer in both(&gateway).await {
        check(&answer, 502, "upstream.unreachable", "no such name");
    }
}

#[tokio::test]
async fn an_upstream_that_takes_no_connection_is_a_504() {
    // A queue of one, and somebody stands in it: the kernel drops what else comes.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(0).expect("a queue");
    let address = socket.local_addr().expect("an address").as_socket().expect("an IP address");
    let _first = TcpStream::connect(address).await.expect("the one place");
    let gateway =
        Gateway::before(format!("http://{address}")).upstream("connect_timeout = \"300ms\"").start().await;
    for answer in both(&gateway).await {
        check(&answer, 504, "upstream.connect_timeout", "a full queue");
    }
}

#[tokio::test]
async fn an_upstream_that_says_nothing_is_a_504_after_its_time() {
    let clock = Clock::paused();
    let upstream = Upstream::that(Act::Silence).await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    while upstream.heads().is_empty() {
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(34));
    assert!(client.is_silent().await, "NVCF answers after 30 s, so 35 s are waited");
    // Their time began when the request was written, maybe after it was read.
    check(&advancing(&clock, client.answer()).await, 504, "upstream.timeout", "silence");

    let mut client = gateway.connect().await;
    client.send(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    while upstream.heads().len() < 2 {
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(34));
    assert!(client.is_silent().await, "the same for plain HTTP");
    check(&advancing(&clock, client.answer()).await, 504, "upstream.timeout", "silence over plain HTTP");
}

#[tokio::test]
async fn an_upstream_that_speaks_garbage_or_hangs_up_is_a_502() {
    let many = "X: y\r\n".repeat(5000);
    let cases: Vec<(Act, &str)> = vec![
        (Act::HangUp, "upstream.closed"),
        (Act::Answer(String::new()), "upstream.closed"),
        (Act::Answer("HTTP/1.1 101 Swi".into()), "upstream.closed"),
        (Act::Answer("SSH-2.0-OpenSSH_9.2\r\n\r\n".into()), "upstream.garbage"),
        (Act::Answer("\0\u{1}\u{2}\u{3}\r\n\r\n".into()), "upstream.garbage"),
        (Act::Answer(format!("HTTP/1.1 101 X\r\n{many}\r\n")), "upstream.garbage"),
        (Act::Answer(format!("HTTP/1.1 101 X\r\nX: {}\r\n\r\n", "y".repeat(200_000))), "upstream.garbage"),
        (Act::Answer("HTTP/1.1 101 X\r\n\r\n".into()), "upstream.garbage"),
        (Act::Answer("HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n".into()), "upstream.garbage"),
        (Act::Accept("Sec-WebSocket-Extensions: permessage-deflate\r\n".into()), "upstream.garbage"),
        (Act::Accept("Sec-WebSocket-Accept: another\r\n".into()), "upstream.garbage"),
        (Act::Accept("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n".into()), "upstream.garbage"),
        (Act::Accept("Sec-WebSocket-Protocol: never-offered\r\n".into()), "upstream.garbage"),
        (Act::Answer("HTTP/1.1 100 Continue\r\n\r\n".repeat(20)), "upstream.garbage"),
    ];
    for (act, code) in cases {
        let upstream = Upstream::that(act).await;
        let gateway = Gateway::in_front_of(&upstream).start().await;
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[]).await;
        check(&client.answer().await, 502, code, code);
    }
    for (act, code) in [
        (Act::HangUp, "upstream.closed"),
        (Act::Answer("SSH-2.0-OpenSSH_9.2\r\n\r\n".into()), "upstream.garbage"),
        (answer("Content-Length: 1\r\nTransfer-Encoding: chunked"), "upstream.garbage"),
        (answer("Content-Length: 1\r\nContent-Length: 2"), "upstream.garbage"),
        (answer("Transfer-Encoding: gzip"), "upstream.garbage"),
    ] {
        let upstream = Upstream::that(act).await;
        let gateway = Gateway::in_front_of(&upstream).start().await;
        check(&gateway.get("/page", &[]).await, 502, code, "plain HTTP");
    }
}

fn answer(headers: &str) -> Act {
    Act::Answer(format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n0\r\n\r\n"))
}

#[tokio::test]
async fn an_upstream_that_announces_its_answer_for_ever_is_a_502() {
    let hints = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let upstream = Upstream::that(Act::Answer(hints.repeat(100))).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.request("GET", "/page", &[], b"").await;
    assert_eq!(client.exactly(hints.len() * 8).await, hints.repeat(8).as_bytes());
    check(&client.answer().await, 502, "upstream.garbage", "many hints");
}

#[tokio::test]
async fn an_informational_answer_is_passed_over() {
    let mut upstream = Upstream::that(Act::AcceptAfter("HTTP/1.1 102 Processing\r\n\r\n".repeat(3))).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    assert_eq!(client.answer().await.status, 101, "the first that the browser sees");
    let mut leg = upstream.leg().await;
    leg.send(1, b"hello").await;
    assert_eq!(client.frame().await.expect("a frame").payload, b"hello");
}

#[tokio::test]
async fn a_browser_that_leaves_takes_its_upstream_with_it() {
    let upstream = Upstream::that(Act::Silence).await;
    let gateway = Gateway::in_front_of(&upstream).with("[sessions]\nmax = 1").start().await;
    for n in 1..4 {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[]).await;
        while upstream.heads().len() < n {
            tokio::task::yield_now().await;
        }
        client.reset();
        gateway.until_metric("streamgate_session_starts_total", &[("result", "browser_gone")], n as f64);
    }
}
