//! Plugins that live with sessions: what they are told, in which order, and what they keep.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use streamgate::clock::Clock;

use crate::support::gateway::Builder;
use crate::support::life::{ID, ask};
use crate::support::process::Process;
use crate::support::raw::{close_payload, from_browser};
use crate::support::redis::{COOKIE_KEY, Redis};
use crate::support::service::Asked;
use crate::support::upstream::Act;
use crate::support::{
    Answer, Client, FUNCTION, Folder, Gateway, KEY, Leg, Service, TOKEN, Upstream, advancing, cookie,
};

/// What the messages of these tests are signed with.
const SECRET: &[u8] = b"a secret of thirty-two bytes, so";

const ECHO: &[u8] = b"still here";

/// A gateway that tells a receiver, without pauses worth mentioning.
fn told(upstream: &Upstream, receiver: SocketAddr) -> Builder {
    Gateway::in_front_of(upstream)
        .file("webhook.txt", &format!("whsec_{}", STANDARD.encode(SECRET)))
        .chain(&format!("{BEARER}, {}", webhook(receiver)))
}

const BEARER: &str = "{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }";

fn webhook(receiver: SocketAddr) -> String {
    format!(
        "{{ plugin = \"webhook-events\", url = \"http://{receiver}/hooks\", secret = \"file:webhook.txt\", attributes = [\"tenant\"], interval = \"100ms\", backoff = \"100ms\", backoff_max = \"100ms\", attempts = 100, request_timeout = \"2s\" }}"
    )
}

/// An event, once its signature has been looked at.
struct Event {
    id: String,
    kind: String,
    data: serde_json::Value,
}

/// Reads a message as a receiver of Standard Webhooks does.
fn verified(asked: &Asked) -> Event {
    assert_eq!((asked.head.split(' ').next(), asked.path()), (Some("POST"), "/hooks"));
    assert_eq!(asked.header("content-type").as_deref(), Some("application/json"));
    let [id, timestamp, signature] = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .map(|it| asked.header(it).unwrap_or_else(|| panic!("no {it} in {}", asked.head)));
    let signed = [format!("{id}.{timestamp}.").as_bytes(), &asked.body].concat();
    let signature = signature.strip_prefix("v1,").and_then(|it| STANDARD.decode(it).ok());
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET);
    ring::hmac::verify(&key, &signed, &signature.expect("a signature")).expect("the right one");
    let event: serde_json::Value = serde_json::from_slice(&asked.body).expect("JSON");
    let text = String::from_utf8_lossy(&asked.body);
    for secret in [TOKEN, KEY, "x=1"] {
        assert!(!text.contains(secret), "{text}");
    }
    Event { id, kind: event["type"].as_str().expect("a type").to_owned(), data: event["data"].clone() }
}

/// The next event, which is taken.
async fn event(receiver: &mut Service) -> Event {
    let asked = receiver.asked().await;
    let event = verified(&asked);
    asked.answer(204, "").await;
    event
}

async fn open_as(gateway: &Gateway, path: &str, cookie: &str, token: &str) -> (Client, Answer) {
    let authorization = format!("Bearer {token}");
    ask(gateway, path, &[("Cookie", cookie), ("Authorization", &authorization)]).await
}

/// A session of ada's.
async fn session(gateway: &Gateway, upstream: &mut Upstream) -> (Client, Leg, String) {
    let (client, answer) = open_as(gateway, "/sign_in?x=1", "", TOKEN).await;
    assert_eq!(answer.status, 101, "{}", answer.text());
    let cookie = cookie(&answer.header("set-cookie").expect("a cookie"));
    (client, upstream.leg().await, cookie)
}

/// Ends a session from the browser's side.
async fn close(mut client: Client, mut leg: Leg) {
    client.send(&from_browser(8, &close_payload(1000, "bye"))).await;
    assert_eq!(leg.frame().await.expect("a Close frame").opcode, 8);
    leg.send(8, &close_payload(1000, "bye")).await;
    assert_eq!(client.frame().await.expect("a Close frame").opcode, 8);
}

async fn echoes(client: &mut Client, leg: &mut Leg) {
    client.send(&from_browser(1, ECHO)).await;
    assert_eq!(leg.frame().await.expect("a frame").payload, ECHO);
    leg.send(1, ECHO).await;
    assert_eq!(client.frame().await.expect("a frame").payload, ECHO);
}

/// Waits until a plugin was asked so often in a phase.
#[track_caller]
fn until_asked(gateway: &Gateway, plugin: &str, phase: &str, n: f64) {
    let labels = [("decision", "continue"), ("phase", phase), ("plugin", plugin)];
    gateway.until_metric("streamgate_plugin_decisions_total", &labels, n);
}

#[tokio::test]
async fn a_receiver_hears_of_each_step_of_a_session_once_and_in_order() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let mut receiver = Service::start().await;
    let gateway = told(&upstream, receiver.address).start().await;
    let (mut client, mut leg, cookie) = session(&gateway, &mut upstream).await;
    let opened = event(&mut receiver).await;
    assert_eq!(opened.kind, "session.opened");
    let name = opened.data["session"].as_str().expect("a name").to_owned();
    assert!(name.len() >= 32 && !cookie.contains(&name), "{name}");
    let about = |event: &Event| {
        let data = &event.data;
        [
            &data["session"],
            &data["function"],
            &data["route"],
            &data["principal"],
            &data["attributes"]["tenant"],
        ]
        .map(|it| it.as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(about(&opened), [name.as_str(), FUNCTION, "/**", "ada", "acme"]);
    assert_eq!(opened.data.get("cause"), None);
    echoes(&mut client, &mut leg).await;

    client.reset();
    let parked = event(&mut receiver).await;
    assert_eq!((parked.kind.as_str(), parked.data["cause"].as_str()), ("session.parked", Some("reset")));
    assert_eq!(parked.data["received"], (2 + 4 + ECHO.len()) as u64, "a frame of the browser");
    assert_eq!(parked.data["sent"], (2 + ECHO.len()) as u64, "a frame to the browser");

    let (client, answer) = open_as(&gateway, "/sign_in?x=1", &cookie, TOKEN).await;
    assert_eq!(answer.status, 101);
    let resumed = event(&mut receiver).await;
    assert_eq!(
        (resumed.kind.as_str(), resumed.data["cause"].as_str()),
        ("session.resumed", Some("reattach"))
    );
    close(client, leg).await;
    let closed = event(&mut receiver).await;
    assert_eq!(
        (closed.kind.as_str(), closed.data["cause"].as_str()),
        ("session.closed", Some("closed_by_browser"))
    );
    for event in [&parked, &resumed, &closed] {
        assert_eq!(about(event), about(&opened));
        assert!(event.data["age"].as_f64().is_some_and(|it| (0.0..20.0).contains(&it)), "{}", event.data);
    }
    let ids = [&opened.id, &parked.id, &resumed.id, &closed.id];
    assert!((1..4).all(|it| !ids[..it].contains(&ids[it])), "each message has an id of its own: {ids:?}");
    gateway.until_metric("streamgate_plugin_webhook_events_sent_total", &[], 4.0);
    gateway.until_metric("streamgate_plugin_webhook_events_waiting", &[], 0.0);
    assert!(receiver.asked_now().is_none(), "each came once");
}

#[tokio::test]
async fn a_browser_that_reconnects_is_resumed_and_its_session_ends_once() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let mut receiver = Service::start().await;
    // Two workers would tell the end of the old connection and the beginning of the new one each in its own time.
    let gateway = told(&upstream, receiver.address).env("STREAMGATE_WORKERS", "1").start().await;
    let (client, leg, cookie) = session(&gateway, &mut upstream).await;
    let name = event(&mut receiver).await.data["session"].clone();
    client.reset();
    assert_eq!(event(&mut receiver).await.kind, "session.parked");
    // Another query than before: that needs a connection of its own.
    let (client, answer) = open_as(&gateway, "/sign_in?x=2", &cookie, TOKEN).await;
    assert_eq!(answer.status, 101);
    let new_leg = upstream.leg().await;
    drop(leg);
    close(client, new_leg).await;
    let mut seen = Vec::new();
    while !seen.iter().any(|(_, cause): &(String, String)| cause == "closed_by_browser") {
        let event = event(&mut receiver).await;
        assert_eq!(event.data["session"], name, "it is the same session");
        seen.push((event.kind, event.data["cause"].as_str().unwrap_or_default().to_owned()));
    }
    let expected = [
        ("session.closed", "replaced"),
        ("session.resumed", "reconnect"),
        ("session.closed", "closed_by_browser"),
    ];
    assert_eq!(seen, expected.map(|(kind, cause)| (kind.to_owned(), cause.to_owned())));
}

#[tokio::test]
async fn events_come_in_order_though_another_plugin_of_the_chain_waits() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let (mut receiver, mut slow) = (Service::start().await, Service::start().await);
    let schema = "return { summary = \"Waits.\", phases = { \"session_open\" }, fields = { url = { type = \"url\", required = true, doc = \"x\" } } }";
    let plugin = "local http = require \"streamgate.http\"\nreturn { session_open = function(request, session, conf) http.get(conf.url) end }";
    let gateway = told(&upstream, receiver.address)
        .with("[plugins]\npaths = [\"plugins\"]")
        .plugin("waits", schema, plugin)
        .chain(&format!(
            "{BEARER}, {{ plugin = \"waits\", url = {:?} }}, {}",
            slow.url("/"),
            webhook(receiver.address)
        ))
        .start()
        .await;
    let (client, leg, cookie) = session(&gateway, &mut upstream).await;
    let asked = slow.asked().await;
    client.reset();
    gateway.until_metric("streamgate_session_parks_total", &[("cause", "reset")], 1.0);
    let (client, answer) = open_as(&gateway, "/sign_in?x=1", &cookie, TOKEN).await;
    assert_eq!(answer.status, 101);
    close(client, leg).await;
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "closed_by_browser")], 1.0);
    asked.answer(200, "").await;
    for kind in ["session.opened", "session.parked", "session.resumed", "session.closed"] {
        assert_eq!(event(&mut receiver).await.kind, kind);
    }
}

/// Opens and closes some sessions; gives their names as events have them, in order.
async fn some_sessions(gateway: &Gateway, upstream: &mut Upstream, before: usize, n: usize) {
    for idx in before..before + n {
        let (client, leg, _) = session(gateway, upstream).await;
        until_asked(gateway, "webhook-events", "session_open", (idx + 1) as f64);
        close(client, leg).await;
        until_asked(gateway, "webhook-events", "session_end", (idx + 1) as f64);
    }
}

/// Takes what came of some sessions, each of which was opened and then closed before the next was opened.
async fn all_in_order(receiver: &mut Service, n: usize) {
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let (opened, closed) = (event(receiver).await, event(receiver).await);
        assert_eq!((opened.kind.as_str(), closed.kind.as_str()), ("session.opened", "session.closed"));
        assert_eq!(opened.data["session"], closed.data["session"]);
        names.push(opened.data["session"].to_string());
        ids.extend([opened.id, closed.id]);
    }
    let n_ids = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), n_ids, "each came once");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), n, "each session was told of");
}

#[tokio::test]
async fn a_receiver_that_was_away_gets_all_in_order_and_a_reload_loses_nothing() {
    let mut upstream = Upstream::start().await;
    let address = Service::nowhere().await;
    let builder = told(&upstream, address);
    let file = builder.text();
    let gateway = builder.start().await;
    some_sessions(&gateway, &mut upstream, 0, 3).await;
    // Somebody has tried, and nobody was there.
    let failures = [("reason", "unreachable")];
    let is_tried = async || {
        let before = gateway.metric("streamgate_plugin_webhook_events_failed_total", &failures);
        let more = async {
            while gateway.metric("streamgate_plugin_webhook_events_failed_total", &failures) <= before {
                tokio::task::yield_now().await;
            }
        };
        crate::support::soon("another attempt", more).await;
    };
    is_tried().await;
    for n in 1..=3 {
        gateway.reload(&file.replace("attempts = 100", &format!("attempts = {}", 100 - n))).expect("valid");
        some_sessions(&gateway, &mut upstream, 2 + n, 1).await;
        is_tried().await;
    }
    let mut receiver = Service::at(address).await;
    // It is there, and still in no state to take anything.
    let first = receiver.asked().await;
    let refused = verified(&first);
    first.answer(503, "").await;
    let again = receiver.asked().await;
    assert_eq!(verified(&again).id, refused.id, "the same message");
    assert_eq!(verified(&again).kind, "session.opened");
    again.answer(500, "").await;
    all_in_order(&mut receiver, 6).await;
    gateway.until_metric("streamgate_plugin_webhook_events_sent_total", &[], 12.0);
    assert_eq!(
        gateway.metric("streamgate_plugin_webhook_events_dropped_total", &[("reason", "attempts")]),
        0.0
    );
    assert!(receiver.asked_now().is_none(), "each came once");
}

#[tokio::test]
async fn a_reload_while_a_message_is_on_its_way_sends_it_again() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let mut receiver = Service::start().await;
    let builder = told(&upstream, receiver.address).env("STREAMGATE_WORKERS", "1").on(&clock);
    let file = builder.text();
    let gateway = builder.start().await;
    some_sessions(&gateway, &mut upstream, 0, 2).await;
    let mut under_way = advancing(&clock, receiver.asked()).await;
    let first = verified(&under_way);
    gateway.reload(&file).expect("valid");
    under_way.is_left().await;
    let again = advancing(&clock, receiver.asked()).await;
    assert_eq!(verified(&again).id, first.id, "the same message, by which a receiver knows it");
    again.answer(200, "").await;
    let mut kinds = vec![first.kind];
    while kinds.len() < 4 {
        kinds.push(advancing(&clock, event(&mut receiver)).await.kind);
    }
    assert_eq!(kinds, ["session.opened", "session.closed", "session.opened", "session.closed"]);
}

/// How many sessions ada may have.
fn limited(upstream: &Upstream, limit: u32) -> Builder {
    Gateway::in_front_of(upstream).chain(&format!(
        "{BEARER}, {{ plugin = \"session-limit\", per_principal = {limit}, lease = \"10s\" }}"
    ))
}

async fn refused(gateway: &Gateway) {
    let (_, answer) = open_as(gateway, "/sign_in?x=1", "", TOKEN).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "sessions.too_many"));
}

#[tokio::test]
async fn a_principal_has_as_many_sessions_as_it_may() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = limited(&upstream, 1).start().await;
    let (client, leg, cookie) = session(&gateway, &mut upstream).await;
    refused(&gateway).await;
    let (of_bob, answer) = open_as(&gateway, "/sign_in", "", "token-of-bob").await;
    assert_eq!(answer.status, 101, "it is the limit of one principal: {}", answer.text());
    close(of_bob, upstream.leg().await).await;
    until_asked(&gateway, "session-limit", "session_end", 1.0);
    // Away or back, it is one session.
    client.reset();
    gateway.until_metric("streamgate_sessions", &[("state", "parked")], 1.0);
    refused(&gateway).await;
    let (client, answer) = open_as(&gateway, "/sign_in?x=1", &cookie, TOKEN).await;
    assert_eq!(answer.status, 101, "{}", answer.text());
    until_asked(&gateway, "session-limit", "session_resume", 1.0);
    refused(&gateway).await;
    client.reset();
    gateway.until_metric("streamgate_sessions", &[("state", "parked")], 1.0);
    // The same by a new connection.
    let (client, answer) = open_as(&gateway, "/sign_in?x=2", &cookie, TOKEN).await;
    assert_eq!(answer.status, 101, "{}", answer.text());
    let new_leg = upstream.leg().await;
    drop(leg);
    until_asked(&gateway, "session-limit", "session_resume", 2.0);
    until_asked(&gateway, "session-limit", "session_end", 2.0);
    refused(&gateway).await;
    close(client, new_leg).await;
    until_asked(&gateway, "session-limit", "session_end", 3.0);
    let (client, leg, _) = session(&gateway, &mut upstream).await;
    refused(&gateway).await;
    close(client, leg).await;
}

#[tokio::test]
async fn a_request_that_becomes_no_session_takes_no_place() {
    let refusal = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let mut upstream =
        Upstream::that(Act::InTurn(vec![Act::Answer(refusal.into()), Act::Accept(String::new())])).await;
    let gateway = limited(&upstream, 1).start().await;
    let (_, answer) = open_as(&gateway, "/sign_in?x=1", "", TOKEN).await;
    assert_eq!(answer.code(), "function.unknown");
    let (client, leg, _) = session(&gateway, &mut upstream).await;
    close(client, leg).await;
}

#[tokio::test]
async fn replicas_count_sessions_together() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::start().await;
    let store = format!("[plugins]\nstore = \"redis://{}\"", redis.address);
    let one = limited(&upstream, 2).with(&store).start().await;
    let two = limited(&upstream, 2).with(&store).start().await;
    let (first, first_leg, _) = session(&one, &mut upstream).await;
    let (second, second_leg, _) = session(&two, &mut upstream).await;
    refused(&one).await;
    refused(&two).await;
    close(first, first_leg).await;
    until_asked(&one, "session-limit", "session_end", 1.0);
    // The release is on its way: whoever comes a moment later finds the place free.
    let keys: Vec<String> = redis.ask(&["KEYS", "streamgate:store:lease:*"]).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    let is_released = async {
        while redis.ask::<usize>(&["ZCARD", &keys[0]]).await != 1 {
            tokio::task::yield_now().await;
        }
    };
    crate::support::soon("the release", is_released).await;
    let (third, third_leg, _) = session(&two, &mut upstream).await;
    refused(&one).await;
    close(second, second_leg).await;
    close(third, third_leg).await;
}

#[tokio::test]
async fn the_places_of_a_replica_that_was_killed_come_free() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::start().await;
    let folder = Folder::new();
    folder.write("tokens.toml", &format!("[ada]\ntoken = {TOKEN:?}\n"));
    let text = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[upstream]\nserver = \"http://{}\"\napi_key = \"env:KEY\"\nfunction_id = {FUNCTION:?}\n[plugins]\nstore = \"redis://{}\"\n[[route]]\npath = \"/**\"\nchain = [{BEARER}, {{ plugin = \"session-limit\", per_principal = 1, lease = \"10s\" }}]\n",
        upstream.address, redis.address
    );
    let file = folder.write("streamgate.toml", &text).display().to_string();
    let mut doomed = Process::start(&["run", "--config", &file], &[("KEY", KEY), ("COOKIE_KEY", COOKIE_KEY)]);
    let mut client = Client::connect(doomed.address("gateway").await).await;
    client.upgrade("/sign_in", &[("Authorization", &format!("Bearer {TOKEN}"))]).await;
    assert_eq!(client.answer().await.status, 101);
    let _leg = upstream.leg().await;
    let other = limited(&upstream, 1)
        .with(&format!("[plugins]\nstore = \"redis://{}\"", redis.address))
        .start()
        .await;
    refused(&other).await;
    doomed.signal("KILL").await;
    doomed.ended().await;
    refused(&other).await;
    // A lease has an end, and no more than its time. That time is the server's, so it is taken from what it keeps.
    let keys: Vec<String> = redis.ask(&["KEYS", "streamgate:store:lease:*"]).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    let left: i64 = redis.ask(&["PTTL", &keys[0]]).await;
    assert!((1..=10_000).contains(&left), "{left}");
    let holders: Vec<(String, f64)> = redis.ask(&["ZRANGE", &keys[0], "0", "-1", "WITHSCORES"]).await;
    let (time, micros): (i64, i64) = redis.ask(&["TIME"]).await;
    let now = (time * 1000 + micros / 1000) as f64;
    assert_eq!(holders.len(), 1, "{holders:?}");
    assert!(holders[0].1 > now - 1.0 && holders[0].1 <= now + 10_000.0, "{holders:?} at {now}");
    let _: i64 = redis.ask(&["ZADD", &keys[0], "XX", "CH", &format!("{}", now - 1.0), &holders[0].0]).await;
    let (client, leg, _) = session(&other, &mut upstream).await;
    close(client, leg).await;
}

/// What becomes of a session whose `session_open` failed.
async fn after_a_failure(on_error: &str) -> (Gateway, Client, Leg) {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream)
        .plugin(
            "broken",
            "return { summary = \"Broken.\", phases = { \"session_open\" } }",
            "return { session_open = function() error \"oops\" end }",
        )
        .with("[plugins]\npaths = [\"plugins\"]")
        .chain(&format!("{{ plugin = \"broken\"{on_error} }}"))
        .start()
        .await;
    let (client, answer) = ask(&gateway, "/sign_in", &[]).await;
    assert_eq!(answer.status, 101);
    let leg = upstream.leg().await;
    let labels = [("kind", "runtime"), ("phase", "session_open"), ("plugin", "broken")];
    gateway.until_metric("streamgate_plugin_errors_total", &labels, 1.0);
    (gateway, client, leg)
}

#[tokio::test]
async fn a_session_goes_on_when_a_plugin_fails_to_hear_of_it() {
    for on_error in ["", ", on_error = \"reject\"", ", on_error = \"skip\""] {
        let (_gateway, mut client, mut leg) = after_a_failure(on_error).await;
        echoes(&mut client, &mut leg).await;
    }
}

#[tokio::test]
async fn a_session_ends_when_a_plugin_must_hear_of_it() {
    let (gateway, mut client, mut leg) = after_a_failure(", on_error = \"close\"").await;
    let frame = client.frame().await.expect("a Close frame");
    assert_eq!((frame.opcode, &frame.payload[..2]), (8, &1011_u16.to_be_bytes()[..]));
    let reason = String::from_utf8_lossy(&frame.payload[2..]).into_owned();
    assert!(reason.starts_with("plugin.failed") && !reason.contains("oops"), "{reason}");
    assert_eq!(leg.frame().await.expect("a Close frame").opcode, 8);
    client.send(&from_browser(8, &close_payload(1011, ""))).await;
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "refused")], 1.0);
}

/// A plugin waits for its service while the session is at work; the session does not.
#[tokio::test]
async fn a_session_does_not_wait_for_who_is_told_of_it() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let mut slow = Service::start().await;
    let schema = "return { summary = \"Waits.\", phases = { \"session_open\" }, fields = { url = { type = \"url\", required = true, doc = \"x\" } } }";
    let plugin = "local http = require \"streamgate.http\"\nreturn { session_open = function(request, session, conf) http.get(conf.url, { timeout = 60 }) end }";
    let gateway = Gateway::in_front_of(&upstream)
        .env("STREAMGATE_WORKERS", "1")
        .plugin("waits", schema, plugin)
        .with("[plugins]\npaths = [\"plugins\"]\ntimeout = \"5s\"")
        .chain(&format!("{{ plugin = \"waits\", url = {:?}, on_error = \"close\" }}", slow.url("/")))
        .on(&clock)
        .start()
        .await;
    let (mut client, answer) = ask(&gateway, "/sign_in", &[]).await;
    assert_eq!(answer.status, 101);
    let mut leg = upstream.leg().await;
    let mut asked = slow.asked().await;
    echoes(&mut client, &mut leg).await;
    clock.advance(Duration::from_secs(5));
    let frame = client.frame().await.expect("a Close frame");
    assert_eq!((frame.opcode, &frame.payload[..2]), (8, &1011_u16.to_be_bytes()[..]));
    asked.is_left().await;
}
