//! Plugins that look at the messages of a session, and at no others.

use std::time::Duration;

use streamgate::clock::Clock;

use crate::support::raw::{frame, from_browser};
use crate::support::{Client, Gateway, Leg, Upstream, cookie};

/// Looks at what the browser sends: counts it, replaces, drops, and ends the session.
const JUDGE: &str = "local n = 0\nreturn { session_message = function(request, message, conf)\n  local said = message:payload()\n  if said == \"drop\" then return message:drop() end\n  if said == \"end\" then return request:reject \"message.refused\" end\n  if said == \"fail\" then error \"oh\" end\n  n = n + 1\n  message:replace((\"%d %s %s %s %s\"):format(n, message:from(), message:kind(), request:get \"principal\" and request:get(\"principal\").id or \"-\", said))\nend }";

fn schema(messages: &str) -> String {
    format!(
        "return {{ summary = \"Judges.\", phases = {{ \"session_message\" }}, messages = {messages}, rejections = {{ [\"message.refused\"] = {{ status = 403, message = \"Do not say this.\" }} }} }}"
    )
}

async fn session(messages: &str, chain: &str) -> (Gateway, Client, Leg, String) {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream)
        .with("[plugins]\npaths = [\"plugins\"]")
        .plugin("judge", &schema(messages), JUDGE)
        .chain(&format!("{{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }}, {chain}"))
        .start()
        .await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[("Authorization", "Bearer token-of-bob")]).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 101);
    let cookie = cookie(&answer.header("set-cookie").expect("a cookie"));
    let leg = upstream.leg().await;
    (gateway, client, leg, cookie)
}

fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

#[tokio::test]
async fn a_plugin_sees_whole_messages_of_the_side_that_it_asks_for() {
    let (_gateway, mut client, mut leg, _cookie) =
        session("{ from = \"browser\", max = \"64KiB\" }", "\"judge\"").await;
    // In one frame, in three with a ping between, and byte by byte.
    client.send(&from_browser(1, b"one")).await;
    assert_eq!(text(&leg.frame().await.expect("a message").payload), "1 browser text bob one");
    let mask = Some([1, 2, 3, 4]);
    let mut parts = frame(2, b"t", mask);
    parts[0] &= 0x7f;
    let mut rest = frame(0, b"w", mask);
    rest[0] &= 0x7f;
    let parts = [parts, from_browser(9, b"ping"), rest, frame(0, b"o", mask)].concat();
    for byte in parts.chunks(1) {
        client.send(byte).await;
    }
    let (mut pings, mut messages) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let frame = leg.frame().await.expect("a frame");
        if frame.opcode == 9 {
            pings.push(frame.payload)
        } else {
            messages.push((frame.opcode, text(&frame.payload)))
        }
    }
    assert_eq!((pings, messages), (vec![b"ping".to_vec()], vec![(2, "2 browser binary bob two".to_owned())]));
    client.send(&from_browser(2, &[b'x'; 40_000])).await;
    assert!(leg.frame().await.expect("a message").payload.ends_with(&[b'x'; 40_000]));
    // What the function says is not looked at, and may be of any size.
    let large = vec![7; 300_000];
    leg.send(2, &large).await;
    assert!(client.frame().await.expect("a message").payload == large);
}

#[tokio::test]
async fn a_plugin_drops_messages_and_ends_sessions() {
    let (gateway, mut client, mut leg, _cookie) =
        session("{ from = \"both\", max = \"1KiB\" }", "\"judge\"").await;
    client.send(&[from_browser(1, b"drop"), from_browser(1, b"next")].concat()).await;
    assert_eq!(text(&leg.frame().await.expect("a message").payload), "1 browser text bob next");
    leg.send(1, b"answer").await;
    assert_eq!(text(&client.frame().await.expect("a message").payload), "2 function text bob answer");
    client
        .send(&[from_browser(1, b"last"), from_browser(1, b"end"), from_browser(1, b"late")].concat())
        .await;
    assert_eq!(text(&leg.frame().await.expect("a message").payload), "3 browser text bob last");
    let close = client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3003u16.to_be_bytes()[..]));
    assert_eq!(text(&close.payload[2..]), "message.refused: Do not say this.");
    assert_eq!(leg.frame().await.expect("a Close frame").opcode, 8, "what was said after is not passed on");
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "refused")], 1.0);
    let rejected = [("decision", "reject"), ("phase", "session_message"), ("plugin", "judge")];
    assert_eq!(gateway.metric("streamgate_plugin_decisions_total", &rejected), 1.0);
}

#[tokio::test]
async fn a_message_that_is_too_large_to_look_at_ends_its_session() {
    let (_gateway, mut client, mut leg, _cookie) =
        session("{ from = \"browser\", max = \"1KiB\" }", "\"judge\"").await;
    client.send(&from_browser(2, &[0; 1025])).await;
    let close = client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &1009u16.to_be_bytes()[..]));
    assert_eq!(leg.frame().await.expect("a Close frame").opcode, 8);
}

#[tokio::test]
async fn a_plugin_that_fails_at_a_message_ends_the_session_unless_it_may_be_skipped() {
    let (_gateway, mut client, _leg, _cookie) =
        session("{ from = \"browser\", max = \"1KiB\" }", "\"judge\"").await;
    client.send(&from_browser(1, b"fail")).await;
    let close = client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &1011u16.to_be_bytes()[..]));

    let (_gateway, mut client, mut leg, _cookie) =
        session("{ from = \"browser\", max = \"1KiB\" }", "{ plugin = \"judge\", on_error = \"skip\" }")
            .await;
    client.send(&from_browser(1, b"fail")).await;
    assert_eq!(text(&leg.frame().await.expect("a message").payload), "fail", "it is passed on as it was");
}

#[tokio::test]
async fn messages_are_whole_and_kept_when_a_browser_is_lost_within_one() {
    let (gateway, mut client, mut leg, cookie) =
        session("{ from = \"both\", max = \"64KiB\" }", "\"judge\"").await;
    client.send(&from_browser(1, b"before")).await;
    assert_eq!(text(&leg.frame().await.expect("a message").payload), "1 browser text bob before");
    let half = from_browser(1, b"this does not come to its end");
    client.send(&half[..20]).await;
    client.reset();
    gateway.until_metric("streamgate_sessions", &[("state", "parked")], 1.0);
    leg.send(1, b"while away").await;
    let mut again = gateway.connect().await;
    again.upgrade("/sign_in", &[("Authorization", "Bearer token-of-bob"), ("Cookie", &cookie)]).await;
    assert_eq!(again.answer().await.status, 101);
    assert_eq!(text(&again.frame().await.expect("a message").payload), "2 function text bob while away");
    again.send(&from_browser(1, b"back")).await;
    assert_eq!(text(&leg.frame().await.expect("a message").payload), "3 browser text bob back");
    gateway.until_metric(
        "streamgate_session_resumes_total",
        &[("kind", "reattach"), ("outcome", "resumed")],
        1.0,
    );
}

#[test]
fn a_schema_says_which_messages_and_how_large() {
    for (messages, told) in [
        ("nil", "expected `messages = { from = \"browser\", max = \"64KiB\" }`"),
        ("{ from = \"browser\" }", "`max` is a size up to 1MiB"),
        ("{ from = \"browser\", max = \"2MiB\" }", "`max` is a size up to 1MiB"),
        ("{ from = \"nobody\", max = \"1KiB\" }", "`from` is \"browser\", \"function\" or \"both\""),
        ("{ from = \"both\", max = \"1KiB\", most = 7 }", "most"),
    ] {
        let problems = Gateway::before("http://127.0.0.1:1".into())
            .with("[plugins]\npaths = [\"plugins\"]")
            .plugin("judge", &schema(messages), JUDGE)
            .chain("\"judge\"")
            .problems();
        assert!(problems.contains(told), "{messages}: {problems}");
    }
}

#[tokio::test]
async fn a_ping_does_not_wait_behind_a_message_that_was_dropped() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream)
        .with("[plugins]\npaths = [\"plugins\"]")
        .plugin("judge", &schema("{ from = \"function\", max = \"1KiB\" }"), JUDGE)
        .chain("\"judge\"")
        .on(&clock)
        .start()
        .await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    assert_eq!(client.answer().await.status, 101);
    let mut leg = upstream.leg().await;
    let dropped = frame(1, b"drop", None);
    leg.send_raw(&dropped[..3]).await;
    // The part has come once the gateway has it.
    gateway.until_metric("streamgate_relay_bytes_total", &[("direction", "to_browser")], 3.0);
    clock.advance(Duration::from_secs(10));
    assert_eq!(leg.frame().await.expect("the upstream is not within a frame").opcode, 9);
    leg.send_raw(&dropped[3..]).await;
    assert_eq!(client.frame().await.expect("the ping").opcode, 9);
}
