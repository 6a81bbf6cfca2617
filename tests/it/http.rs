//! Plain HTTP: it goes through as it is, within bounds, and every answer has its CORS headers.

use std::collections::BTreeSet;
use std::time::Duration;

use streamgate::clock::Clock;

use crate::support::upstream::{Act, header};
use crate::support::{Client, FUNCTION, Gateway, KEY, Leg, TOKEN, Upstream, advancing};

#[tokio::test]
async fn requests_go_through_whole() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    for (method, path, body) in [
        ("GET", "/v2/some/path?a=b%20c", ""),
        ("POST", "/submit", "hello"),
        ("PUT", "/x", "0123456789"),
        ("POST", "/tenant/sign_in", "again"),
        ("DELETE", "/x", ""),
        ("PATCH", "/x", "y"),
        ("OPTIONS", "/x", ""),
    ] {
        client.request(method, path, &[("X-Mine", "kept")], body.as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{method} {path}");
        let (head, got) =
            answer.text().split_once("\r\n\r\n").map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a head");
        let target = path.replace("/tenant/sign_in", "/sign_in");
        assert!(head.starts_with(&format!("{method} {target} HTTP/1.1")), "{head}");
        assert_eq!(got, body, "{method} {path}");
        for (name, value) in [
            ("x-mine", "kept"),
            ("authorization", &*format!("Bearer {KEY}")),
            ("function-id", FUNCTION),
            ("nvcf-function-id", FUNCTION),
        ] {
            assert_eq!(header(&head, name).as_deref(), Some(value), "{method} {name}");
        }
        assert_eq!(header(&head, "host").as_deref(), Some(&*upstream.address.to_string()));
        assert_eq!(answer.header("access-control-expose-headers").as_deref(), Some("*"));
    }
    client.request("HEAD", "/x", &[], b"").await;
    let answer = client.answer_to("HEAD").await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    gateway.until_metric("streamgate_requests_total", &[("route", "/**"), ("status", "200")], 8.0);
}

#[tokio::test]
async fn a_body_in_chunks_goes_through() {
    let upstream = Upstream::that(Act::Answer(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n".into(),
    ))
    .await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client
        .send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "abcdefgh"));
}

#[tokio::test]
async fn a_body_that_pauses_is_seen_as_far_as_it_has_come() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
    let upstream = Upstream::that(Act::Begin(format!("{head}half"))).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.request("GET", "/x", &[], b"").await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"half") {
        seen.extend(client.exactly(1).await);
    }
    assert!(seen.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&seen));
}

#[tokio::test]
async fn a_body_without_a_length_ends_as_the_browser_can_see_it() {
    let upstream = Upstream::that(Act::Answer("HTTP/1.1 200 OK\r\n\r\nuntil the end".into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let answer = gateway.get("/x", &[]).await;
    assert_eq!(answer.header("transfer-encoding").as_deref(), Some("chunked"));
    assert_eq!(answer.text(), "until the end");
    // HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
    let mut client = gateway.connect().await;
    client.send(b"GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"until the end") {
        seen.extend(client.exactly(1).await);
    }
    let seen = String::from_utf8(seen).expect("text");
    assert!(seen.contains("connection: close\r\n") && !seen.contains("chunked"), "{seen}");
    assert!(client.try_answer("GET").await.is_none(), "the connection ends");
}

#[tokio::test]
async fn an_answer_that_is_cut_is_not_taken_for_whole() {
    for (body, framing) in [("half", "Content-Length: 9"), ("4\r\nhalf\r\n", "Transfer-Encoding: chunked")] {
        let upstream =
            Upstream::that(Act::Answer(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{body}"))).await;
        let gateway = Gateway::in_front_of(&upstream).start().await;
        let mut client = gateway.connect().await;
        client.request("GET", "/x", &[], b"").await;
        assert!(client.ends_with_reset().await, "{framing}");
        gateway.until_metric("streamgate_rejections_total", &[("code", "upstream.closed")], 1.0);
    }
}

#[tokio::test]
async fn no_body_follows_where_none_may() {
    for (method, head, body, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "", Some("5")),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n", "", Some("5")),
        ("GET", "HTTP/1.1 204 No Content\r\n", "", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", "", Some("0")),
        // A length that is none is not passed on.
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: abc\r\n", "", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n", "", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", "", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5, 5\r\n", "", None),
    ] {
        let upstream = Upstream::that(Act::Begin(format!("{head}\r\n{body}"))).await;
        let gateway = Gateway::in_front_of(&upstream).start().await;
        let mut client = gateway.connect().await;
        for _ in 0..2 {
            // The second answer begins where the first has ended.
            client.request(method, "/x", &[], b"").await;
            let answer = client.answer_to(if head.contains(" 200 ") { method } else { "HEAD" }).await;
            assert!(head.contains(&format!(" {} ", answer.status)), "{head}");
            assert_eq!(answer.header("content-length").as_deref(), length, "{head}");
            assert_eq!(answer.header("transfer-encoding"), None);
        }
    }
}

#[tokio::test]
async fn an_informational_answer_comes_before_the_one_proper() {
    let both = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let upstream = Upstream::that(Act::Answer(both.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert!(client.exactly(25).await.starts_with(b"HTTP/1.1 100 Continue\r\n\r\n"));
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    let unasked =
        Upstream::that(Act::Begin("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".into())).await;
    let gateway = Gateway::in_front_of(&unasked).start().await;
    assert_eq!(
        gateway.get("/x", &[("Upgrade", "x"), ("Connection", "upgrade")]).await.code(),
        "upstream.garbage"
    );
}

#[tokio::test]
async fn who_does_not_want_the_body_may_say_so_at_once() {
    let refusal = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!";
    let upstream = Upstream::that(Act::Answer(refusal.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nthe beginning").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (413, "no!"));
    assert!(client.try_answer("GET").await.is_none(), "what is left of the body is no request");
}

#[tokio::test]
async fn a_body_that_is_none_is_refused_before_more_of_it_goes_upstream() {
    let upstream = Upstream::that(Act::Silence).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    for body in ["zz\r\n", "1;a\nb\r\na\r\n", "0\r\n\nGET /y HTTP/1.1\r\n", "0\r\nX: a\rb\r\n"] {
        let mut client = gateway.connect().await;
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}{body}").as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "request.malformed"), "{body:?}");
        assert!(client.try_answer("GET").await.is_none(), "{body:?}");
    }
}

#[tokio::test]
async fn upload_and_answer_go_both_ways_at_once() {
    let mut upstream = Upstream::that(Act::Give).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nabcd").await;
    let mut leg = upstream.leg().await;
    leg.until(b"abcd").await;
    leg.send_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none").await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\none") {
        seen.extend(client.exactly(1).await);
    }
    // Whoever is answered before it has said all would have to say the rest before it can ask again.
    assert!(String::from_utf8_lossy(&seen).contains("connection: close\r\n"));
    client.send(b"efgh").await;
    leg.until(b"abcdefgh").await;
    leg.send_raw(b"two").await;
    assert_eq!(client.exactly(3).await, b"two");
    assert!(client.try_answer("GET").await.is_none());
}

#[tokio::test]
async fn an_upstream_that_does_not_read_is_heard_all_the_same() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Give).await;
    let (gateway, mut client, mut deaf) = stalled(&mut upstream, &clock).await;
    deaf.send_raw(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (413, "no!"), "no time has passed");
    assert_eq!(answer.header("connection").as_deref(), Some("close"));
    // What is left of its request would be the beginning of the next one.
    let mut other = gateway.connect().await;
    other.request("GET", "/other", &[], b"").await;
    assert!(upstream.leg().await.head.starts_with("GET /other "));
    assert_eq!(upstream.n_connections(), 2, "the first connection serves no other request");
}

#[tokio::test]
async fn nothing_follows_a_hole_in_a_body() {
    for begins in [false, true] {
        let clock = Clock::paused();
        let mut upstream = Upstream::that(Act::Give).await;
        let (_gateway, mut client, mut leg) = stalled(&mut upstream, &clock).await;
        if begins {
            leg.send_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe").await;
            assert!(advancing(&clock, client.ends_with_reset()).await, "the answer is not whole");
        } else {
            let answer = advancing(&clock, client.answer()).await;
            assert_eq!((answer.status, answer.code().as_str()), (504, "upstream.timeout"));
        }
        leg.send_raw(b"llo").await;
        while leg.some().await > 0 {}
        let n_heads = leg.buf.windows(5).filter(|it| it == b"HTTP/").count();
        assert_eq!((n_heads, leg.buf.len() < LARGE), (0, true), "the connection ends within the body");
    }
}

#[tokio::test]
async fn an_empty_body_in_chunks_goes_again_whole() {
    let mut upstream = Upstream::that(Act::Give).await;
    let gateway = Gateway::in_front_of(&upstream).upstream("pool = \"per-client\"").start().await;
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut client = gateway.connect().await;
    client.request("GET", "/x", &[], b"").await;
    let mut first = upstream.leg().await;
    first.send_raw(ok).await;
    assert_eq!(client.answer().await.status, 200);
    client.send(b"PUT /y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    first.until(b"0\r\n\r\n").await;
    drop(first); // a server that gives the connection up at this moment
    let mut second = upstream.leg().await;
    assert!(second.head.starts_with("PUT /y "), "{}", second.head);
    second.until(b"0\r\n\r\n").await;
    assert_eq!(second.buf, b"0\r\n\r\n");
    second.send_raw(ok).await;
    assert_eq!(client.answer().await.text(), "ok");
}

#[tokio::test]
async fn chunks_of_one_byte_are_gathered() {
    let mut upstream = Upstream::that(Act::Give).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut leg = upstream.leg().await;
    let chunks = "1\r\na\r\n".repeat(20_000);
    client.send_meanwhile(format!("{chunks}0\r\n\r\n").into_bytes());
    leg.until(b"0\r\n\r\n").await;
    assert_eq!(leg.buf.windows(6).filter(|it| it == b"1\r\na\r\n").count(), 20_000);
}

#[tokio::test]
async fn a_browser_that_pauses_in_its_body_is_told_that_it_was_late() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Give).await;
    let gateway =
        Gateway::in_front_of(&upstream).upstream("handshake_timeout = \"1s\"").on(&clock).start().await;
    let mut client = gateway.connect().await;
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
    let mut leg = upstream.leg().await;
    leg.until(b"abc").await;
    clock.advance(Duration::from_secs(59));
    assert!(client.is_silent().await, "the upstream waits for the browser, so nobody waits for the upstream");
    client.send(b"de").await;
    leg.until(b"abcde").await;
    clock.advance(Duration::from_secs(59));
    assert!(client.is_silent().await, "the time is for each piece");
    let answer = advancing(&clock, client.answer()).await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "request.head_timeout"));
    while leg.some().await > 0 {}
}

#[tokio::test]
async fn an_answer_may_pause_for_a_minute() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Give).await;
    let gateway =
        Gateway::in_front_of(&upstream).upstream("handshake_timeout = \"1s\"").on(&clock).start().await;
    let mut client = gateway.connect().await;
    client.request("GET", "/x", &[], b"").await;
    let mut leg = upstream.leg().await;
    leg.send_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"abc") {
        seen.extend(client.exactly(1).await);
    }
    clock.advance(Duration::from_secs(59));
    assert!(client.is_silent().await);
    leg.send_raw(b"d").await;
    assert_eq!(client.exactly(1).await, b"d");
    assert!(advancing(&clock, client.ends_with_reset()).await, "what is missing does not come");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_does_not_look_whole() {
    let clock = Clock::paused();
    let body = "z".repeat(LARGE);
    let upstream = Upstream::that(Act::Answer(format!("HTTP/1.1 200 OK\r\n\r\n{body}"))).await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let mut client = gateway.connect().await;
    // Its end is the end of the connection.
    client.send(b"GET /x HTTP/1.0\r\n\r\n").await;
    client.exactly(1).await;
    let given_up = async {
        while gateway.metric("streamgate_connections", &[]) > 0.0 {
            tokio::task::yield_now().await;
        }
    };
    advancing(&clock, given_up).await;
    assert!(client.ends_with_reset().await);
}

#[tokio::test]
async fn a_browser_that_leaves_is_noticed_however_large_its_head_is() {
    let mut upstream = Upstream::that(Act::Give).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.request("GET", "/x", &[("X-Large", &"x".repeat(17 << 10))], b"").await;
    let mut leg = upstream.leg().await;
    client.reset();
    assert_eq!(leg.some().await, 0, "its connection upstream ends as well");
}

/// More than stands in the kernel's buffers on the way.
const LARGE: usize = 40 << 20;

/// A large upload of which its upstream reads nothing, over a connection that others may have afterwards.
async fn stalled(upstream: &mut Upstream, clock: &Clock) -> (Gateway, Client, Leg) {
    let gateway = Gateway::in_front_of(upstream)
        .upstream("pool = \"shared\"")
        .env("STREAMGATE_WORKERS", "1")
        .on(clock)
        .start()
        .await;
    let mut client = gateway.connect().await;
    client.send(&upload("")).await;
    client.send_meanwhile(vec![b'z'; LARGE]);
    let leg = upstream.leg().await;
    (gateway, client, leg)
}

/// The head of a large upload, with these lines in it.
fn upload(lines: &str) -> Vec<u8> {
    format!("POST /x HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: {LARGE}\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_turn() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).upstream("pool = \"per-client\"").start().await;
    let mut client = gateway.connect().await;
    let one = |n: usize| format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{n:03}");
    client.send((0..20).map(one).collect::<String>().as_bytes()).await;
    for n in 0..20 {
        let text = client.answer().await.text();
        assert!(text.starts_with(&format!("POST /{n} ")) && text.ends_with(&format!("{n:03}")), "{text}");
    }
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_costs_nobody_a_request() {
    // The first connection answers once and is closed by the upstream when it is used again.
    let once = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for pool in ["per-client", "shared"] {
        let upstream = Upstream::that(Act::Answer(once.into())).await;
        let gateway = Gateway::in_front_of(&upstream).upstream(&format!("pool = {pool:?}")).start().await;
        let mut client = gateway.connect().await;
        for n in 1..=5 {
            client.request("GET", "/x", &[], b"").await;
            assert_eq!(client.answer().await.status, 200, "{pool}");
            assert_eq!(upstream.n_connections(), n, "each served one request");
        }
    }
}

#[tokio::test]
async fn a_key_that_the_upstream_refuses_is_not_the_browsers() {
    let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\n\r\n";
    let upstream = Upstream::that(Act::Answer(refusal.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let answer = gateway.get("/x", &[]).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream.key_refused"));
    assert_eq!(answer.header("www-authenticate"), None);
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("*"));
}

#[tokio::test]
async fn an_upstream_connection_is_shared_as_the_setting_says() {
    let requests = async |pool: &str| {
        let upstream = Upstream::that(Act::Mirror).await;
        let gateway = Gateway::in_front_of(&upstream)
            .upstream(&format!("pool = {pool:?}"))
            .env("STREAMGATE_WORKERS", "1")
            .start()
            .await;
        for _ in 0..2 {
            let mut client = gateway.connect().await;
            for _ in 0..3 {
                client.request("GET", "/x", &[], b"").await;
                assert_eq!(client.answer().await.status, 200);
            }
        }
        upstream.n_connections()
    };
    assert_eq!(requests("never").await, 6, "one for each request: NVCF binds a worker to a connection");
    assert_eq!(requests("per-client").await, 2, "one for each browser connection");
    assert_eq!(requests("shared").await, 1, "one for all");
}

#[tokio::test]
async fn a_preflight_is_answered_before_anybody_is_asked_who_it_is() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).authenticated().start().await;
    let mut client = gateway.connect().await;
    let preflight = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    client.request("OPTIONS", "/sign_in", &preflight, b"").await;
    let answer = client.answer_to("OPTIONS").await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("*"));
    assert!(answer.header("access-control-allow-headers").expect("a list").contains("authorization"));
    // The connection goes on; without credentials the request itself is refused, readably.
    client.request("GET", "/x", &[("Origin", "https://app.example")], b"").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("*"));
    client.request("GET", "/x", &[("Authorization", &format!("Bearer {TOKEN}"))], b"").await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn with_credentials_the_origin_is_echoed_from_the_list() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).listen("origins = [\"https://app.example\"]").start().await;
    let answer = gateway.get("/x", &[("Origin", "https://app.example")]).await;
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("https://app.example"));
    assert_eq!(answer.header("access-control-allow-credentials").as_deref(), Some("true"));
    assert_eq!(answer.header("vary").as_deref(), Some("Origin"));
    let answer = gateway.get("/x", &[("Origin", "https://evil.example")]).await;
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn what_is_no_request_is_refused_within_bounds_and_readably() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let check = async |what: &str, bytes: Vec<u8>, status: u16, code: &str| {
        let mut client = gateway.connect().await;
        client.send(&bytes).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}");
        assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("*"), "{what}");
        assert_eq!(answer.header("connection").as_deref(), Some("close"), "{what}");
        assert!(client.try_answer("GET").await.is_none(), "{what}: the connection ends");
    };
    let request = |rest: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{rest}\r\n").into_bytes();
    check(
        "noise",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls to a plain port".to_vec(),
        400,
        "request.malformed",
    )
    .await;
    check("http/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 505, "request.version_unsupported").await;
    check("no host", b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400, "request.host_invalid").await;
    let trace = b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    check("an answer with the key", trace, 405, "request.method_not_allowed").await;
    check("two hosts", request("Host: b\r\n"), 400, "request.host_invalid").await;
    check("two lengths", request("Content-Length: 1\r\nContent-Length: 2\r\n"), 400, "request.body_framing")
        .await;
    check(
        "length and coding",
        request("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
        400,
        "request.body_framing",
    )
    .await;
    check("odd coding", request("Transfer-Encoding: xchunked\r\n"), 400, "request.body_framing").await;
    check("a space before the colon", request("X : y\r\n"), 400, "request.malformed").await;
    check("a folded line", request("X: y\r\n z\r\n"), 400, "request.malformed").await;
    check("dots", b"GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400, "request.malformed").await;
    check(
        "a tunnel",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        405,
        "request.method_not_allowed",
    )
    .await;
    check(
        "a long path",
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(40_000)).into_bytes(),
        414,
        "request.uri_too_long",
    )
    .await;
    check(
        "a cookie of 1 MB",
        request(&format!("Cookie: {}\r\n", "x".repeat(1 << 20))),
        431,
        "request.head_too_large",
    )
    .await;
    check("10,000 headers", request(&"x: y\r\n".repeat(10_000)), 431, "request.too_many_headers").await;
    check("200 headers", request(&"x: y\r\n".repeat(200)), 431, "request.too_many_headers").await;
    assert_eq!(upstream.n_connections(), 0, "none of it went upstream");
    let cookie = format!("Cookie: {}\r\n", "x".repeat(17 << 10));
    let mut client = gateway.connect().await;
    client.send(&request(&cookie)).await;
    assert_eq!(client.answer().await.status, 200, "16 KB of cookies are ordinary");
}

#[tokio::test]
async fn a_slow_head_is_given_up_after_its_time() {
    let clock = Clock::paused();
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let mut client = gateway.connect().await;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").await;
    let mut quiet = gateway.connect().await;
    for _ in 0..9 {
        clock.advance(Duration::from_secs(1));
        client.send(b"y").await;
    }
    assert!(client.is_silent().await, "nine seconds are not ten");
    // The time may have begun a moment after the connection.
    let answer = advancing(&clock, client.answer()).await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "request.head_timeout"));
    assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("*"));
    assert!(
        advancing(&clock, quiet.try_answer("GET")).await.is_none(),
        "whoever says nothing is told nothing"
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let clock = Clock::paused();
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let mut client = gateway.connect().await;
    client.request("GET", "/x", &[], b"").await;
    assert_eq!(client.answer().await.status, 200);
    assert!(client.is_silent().await);
    clock.advance(Duration::from_secs(59));
    assert!(client.is_silent().await);
    assert!(advancing(&clock, client.try_answer("GET")).await.is_none());
    gateway.until_metric("streamgate_connections", &[], 0.0);
}

#[tokio::test]
async fn too_many_connections_are_closed_at_once() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).listen("max_connections = 2").start().await;
    let (first, _second) = (gateway.connect().await, gateway.connect().await);
    gateway.until_metric("streamgate_connections", &[], 2.0);
    assert!(gateway.connect().await.try_answer("GET").await.is_none());
    assert_eq!(gateway.metric("streamgate_connections_refused_total", &[("reason", "max_connections")]), 1.0);
    drop(first);
    gateway.until_metric("streamgate_connections", &[], 1.0);
    assert_eq!(gateway.get("/x", &[]).await.status, 200);
}

#[tokio::test]
async fn an_answer_that_says_goodbye_is_the_last() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.request("GET", "/x", &[("Connection", "close")], b"").await;
    assert_eq!(client.answer().await.status, 200);
    assert!(client.try_answer("GET").await.is_none());
    let mut old = gateway.connect().await;
    old.send(b"GET /x HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.answer().await.status, 200, "HTTP/1.0 needs no Host");
    assert!(old.try_answer("GET").await.is_none());
}

#[tokio::test]
async fn nvcfs_id_stays_inside_over_plain_http_too() {
    let answer = "HTTP/1.1 200 OK\r\nnvcf-reqid: r-1\r\nSet-Cookie: app=1\r\nSet-Cookie: nvcf-request-id=r-1\r\nContent-Length: 0\r\n\r\n";
    let upstream = Upstream::that(Act::Answer(answer.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let answer = gateway.get("/sign_in", &[]).await;
    assert_eq!(answer.header("nvcf-reqid"), None);
    let cookies = answer.all("set-cookie");
    assert_eq!(cookies[0], "app=1");
    assert!(cookies[1].starts_with("streamgate-session="), "{cookies:?}");
    let own = cookies[1].split(';').next().expect("a cookie");
    gateway.get("/sign_in", &[("Cookie", own)]).await;
    assert_eq!(
        header(&upstream.heads()[1], "nvcf-reqid").as_deref(),
        Some("r-1"),
        "it comes back into its session"
    );
}

#[tokio::test]
async fn nvcfs_id_stays_inside_in_every_answer_and_spelling() {
    let hints = "HTTP/1.1 103 Early Hints\r\nnvcf-reqid: hidden\r\nSet-Cookie: nvcf-request-id=hidden\r\nContent-Length: 5\r\nLink: <x>\r\n\r\n";
    let cookies: String =
        ["nvcf-request-id =hidden", " NVCF-Request-ID= hidden; Path=/", "nvcf-request-id=hidden\u{e9}"]
            .map(|it| format!("Set-Cookie: {it}\r\n"))
            .concat();
    let head = format!("HTTP/1.1 200 OK\r\n{cookies}Set-Cookie: app=\u{e9}\r\nContent-Length: 0\r\n\r\n");
    let upstream = Upstream::that(Act::Answer(format!("{hints}{head}"))).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.request("GET", "/sign_in", &[], b"").await;
    let early = client.answer_to("HEAD").await;
    assert_eq!(early.headers, [("link".to_owned(), "<x>".to_owned())], "{}", early.status);
    let answer = client.answer().await;
    let cookies = answer.all("set-cookie");
    assert!(cookies.iter().all(|it| !it.contains("hidden")), "{cookies:?}");
    assert!(cookies.iter().any(|it| it == "app=\u{e9}"), "an app's cookies stay: {cookies:?}");
}

#[tokio::test]
async fn a_route_is_for_its_paths() {
    let upstream = Upstream::that(Act::Mirror).await;
    let tables = "[[route]]\npath = \"/open/*\"\nchain = [\"cors\"]\n[[route]]\npath = \"/private/**\"\nchain = [{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }]";
    let gateway = Gateway::in_front_of(&upstream)
        .with(tables)
        .chain("\"cors\", { plugin = \"bearer-auth\", id = \"last\", tokens = \"file:tokens.toml\" }")
        .start()
        .await;
    let statuses: Vec<u16> = {
        let mut all = Vec::new();
        for path in ["/open/a", "/open/a/b", "/private", "/private/a/b", "/other"] {
            all.push(gateway.get(path, &[]).await.status);
        }
        all
    };
    assert_eq!(statuses, [200, 401, 401, 401, 401]);
}

#[tokio::test]
async fn the_page_is_there_when_the_file_says_so() {
    let upstream = Upstream::that(Act::Mirror).await;
    let without = Gateway::in_front_of(&upstream).start().await;
    assert!(without.get("/", &[]).await.text().starts_with("GET / HTTP/1.1"), "every path goes upstream");
    let with = Gateway::in_front_of(&upstream).listen("page = true").authenticated().start().await;
    let page = with.get("/", &[]).await;
    assert_eq!(page.header("content-type").as_deref(), Some("text/html; charset=utf-8"));
    let mut links = BTreeSet::new();
    let text = page.text();
    for part in text.split(['"']).filter(|it| it.starts_with('/') && it.contains('.')) {
        links.insert(part.to_owned());
    }
    assert!(links.len() >= 3, "{links:?}");
    for link in links {
        let file = with.get(&link, &[]).await;
        assert_eq!(file.status, 200, "{link}");
        assert!(file.header("content-security-policy").is_some());
    }
    assert_eq!(with.get("/anything", &[]).await.status, 401, "the rest is guarded");
}
