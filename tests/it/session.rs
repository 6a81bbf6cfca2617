//! The life of a session: frames, pings, ends, and the way back into it.

use std::time::Duration;

use streamgate::clock::Clock;

use crate::support::process::Process;
use crate::support::raw::{close_payload, frame, from_browser};
use crate::support::upstream::Act;
use crate::support::{Client, FUNCTION, Gateway, KEY, Leg, TOKEN, Upstream, advancing, cookie, soon};

/// A session ends with either connection.
const NO_RESUME: &str = "[sessions.resume]\nmode = \"off\"";

/// Nothing is held for a browser; it comes back by a new connection.
const RECONNECT: &str = "[sessions.resume]\nmode = \"reconnect\"";

/// A session through a gateway: the browser's side and the upstream's.
async fn session(gateway: &Gateway, upstream: &mut Upstream) -> (Client, Leg) {
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    assert_eq!(client.answer().await.status, 101);
    (client, upstream.leg().await)
}

#[tokio::test]
async fn messages_of_every_size_arrive_whole_and_in_order_both_ways_at_once() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (mut client, mut leg) = session(&gateway, &mut upstream).await;
    let sizes = [0, 1, 125, 126, 127, 1000, 65535, 65536, 100_000, 3, 300_000, 5];
    let message =
        |idx: usize, size: usize| -> Vec<u8> { (0..size).map(|it| (it * 31 + idx) as u8).collect() };
    for (idx, size) in sizes.into_iter().enumerate() {
        let (up, down) = (message(idx, size), message(idx + 100, size));
        let sent = [from_browser(2, &up), from_browser(9, b"from the browser")].concat();
        tokio::join!(client.send(&sent), leg.send(2, &down));
        assert!(leg.frame().await.expect("a frame").payload == up, "size {size}");
        assert_eq!(leg.frame().await.expect("a ping").payload, b"from the browser");
        assert!(client.frame().await.expect("a frame").payload == down, "size {size}");
    }
    let total: usize = sizes.iter().sum();
    gateway.until_metric(
        "streamgate_relay_frames_total",
        &[("direction", "to_upstream"), ("kind", "data")],
        12.0,
    );
    gateway.until_metric(
        "streamgate_relay_frames_total",
        &[("direction", "to_upstream"), ("kind", "control")],
        12.0,
    );
    assert!(gateway.metric("streamgate_relay_bytes_total", &[("direction", "to_browser")]) > total as f64);
}

#[tokio::test]
async fn a_slow_browser_holds_up_its_upstream_and_nobody_else() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).env("STREAMGATE_WORKERS", "1").start().await;
    let (mut slow, mut busy) = session(&gateway, &mut upstream).await;
    let (mut other, mut other_leg) = session(&gateway, &mut upstream).await;
    // More than all buffers between the two can hold.
    let flood = tokio::spawn(async move {
        for _ in 0..32 {
            busy.send(2, &vec![7; 1 << 20]).await;
        }
        busy
    });
    for _ in 0..50 {
        other.send(&from_browser(1, b"hello")).await;
        assert_eq!(other_leg.frame().await.expect("a frame").payload, b"hello");
    }
    assert!(!flood.is_finished(), "back-pressure reaches the upstream");
    for _ in 0..32 {
        assert_eq!(slow.frame().await.expect("a frame").payload.len(), 1 << 20);
    }
    soon("the end of the flood", flood).await.expect("no panic");
}

#[tokio::test]
async fn close_codes_are_carried_over_as_they_are() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    for (code, reason) in [(1000, "bye"), (1001, ""), (3010, "terminated"), (4321, "äöü")] {
        let (mut client, mut leg) = session(&gateway, &mut upstream).await;
        client.send(&from_browser(8, &close_payload(code, reason))).await;
        let close = leg.frame().await.expect("a Close frame");
        assert_eq!((close.opcode, close.payload), (8, close_payload(code, reason)));
        assert!(close.masked, "a client's frame");
        leg.send(8, &close_payload(code, "")).await;
        assert_eq!(client.frame().await.expect("the answer").payload, close_payload(code, ""));
        assert!(client.frame().await.is_none() && leg.frame().await.is_none(), "both end");

        let (mut client, mut leg) = session(&gateway, &mut upstream).await;
        leg.send(8, &close_payload(code, reason)).await;
        let close = client.frame().await.expect("a Close frame");
        assert_eq!((close.opcode, close.payload, close.masked), (8, close_payload(code, reason), false));
        client.send(&from_browser(8, &close_payload(code, ""))).await;
        assert_eq!(leg.frame().await.expect("the answer").payload, close_payload(code, ""));
        assert!(client.frame().await.is_none() && leg.frame().await.is_none(), "both end");
    }
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "closed_by_browser")], 4.0);
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "closed_by_upstream")], 4.0);
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 0.0);
}

#[tokio::test]
async fn an_empty_close_stays_empty() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (mut client, mut leg) = session(&gateway, &mut upstream).await;
    client.send(&from_browser(8, b"")).await;
    assert_eq!(leg.frame().await.expect("a Close frame").payload, b"", "1005 is never written");
}

#[tokio::test]
async fn an_abrupt_end_is_carried_over_as_what_it_was() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).with(NO_RESUME).start().await;

    let (mut client, mut leg) = session(&gateway, &mut upstream).await;
    client.shutdown().await;
    assert!(leg.frame().await.is_none(), "no Close frame is invented");
    let (client, mut leg) = session(&gateway, &mut upstream).await;
    client.reset();
    assert!(leg.ends_with_reset().await, "a reset stays a reset");
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "browser_lost")], 2.0);

    let (mut client, mut leg) = session(&gateway, &mut upstream).await;
    leg.send(1, b"last words").await;
    leg.shutdown().await;
    assert_eq!(client.frame().await.expect("what was sent before").payload, b"last words");
    assert!(client.frame().await.is_none(), "1006 is never written");
    let (mut client, leg) = session(&gateway, &mut upstream).await;
    leg.reset();
    assert!(client.ends_with_reset().await, "a reset stays a reset");
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "upstream_lost")], 2.0);
}

#[tokio::test]
async fn an_idle_session_is_kept_alive_and_a_dead_one_is_found() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).with(NO_RESUME).on(&clock).start().await;
    let (mut client, mut leg) = session(&gateway, &mut upstream).await;
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 1.0);
    for round in 1..=30 {
        clock.advance(Duration::from_secs(10));
        let ping = client.frame().await.expect("a ping");
        assert_eq!((ping.opcode, ping.masked), (9, false));
        client.send(&from_browser(10, &ping.payload)).await;
        let ping = leg.frame().await.expect("a ping");
        assert_eq!((ping.opcode, ping.masked), (9, true));
        leg.send(10, &ping.payload).await;
        gateway.until_metric("streamgate_keepalive_pongs_total", &[("leg", "browser")], f64::from(round));
        gateway.until_metric("streamgate_keepalive_pongs_total", &[("leg", "upstream")], f64::from(round));
    }
    assert!(client.is_silent().await && leg.is_silent().await, "our own pongs are swallowed");
    assert_eq!(gateway.metric("streamgate_keepalive_pings_total", &[("leg", "browser")]), 30.0);
    assert_eq!(gateway.metric("streamgate_keepalive_rtt_seconds_count", &[("leg", "upstream")]), 30.0);

    // From here on the browser says nothing.
    for _ in 0..2 {
        clock.advance(Duration::from_secs(10));
        let ping = leg.frame().await.expect("a ping");
        leg.send(10, &ping.payload).await;
        assert_eq!(client.frame().await.expect("a ping").opcode, 9);
    }
    clock.advance(Duration::from_secs(10));
    assert!(leg.frame().await.is_none(), "the upstream sees a lost connection, not a Close");
    gateway.until_metric("streamgate_keepalive_lost_total", &[("leg", "browser")], 1.0);
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "browser_silent")], 1.0);
}

#[tokio::test]
async fn a_ping_never_stands_within_a_frame() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let (mut client, mut leg) = session(&gateway, &mut upstream).await;
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 1.0);
    let whole = frame(2, &[5; 500], None);
    for cut in [1, 3, 4, 5, 250, 503] {
        leg.send_raw(&whole[..cut]).await;
        // The part has arrived once what can be passed on is there; a header alone is held back.
        let n_passed = if cut < 4 { 0 } else { cut };
        let mut got = client.exactly(n_passed).await;
        clock.advance(Duration::from_secs(10));
        let ping = leg.frame().await.expect("the upstream is not within a frame");
        assert_eq!(ping.opcode, 9, "cut at {cut}");
        leg.send_raw(&whole[cut..]).await;
        leg.send(10, &ping.payload).await;
        got.extend(client.exactly(whole.len() - n_passed).await);
        if n_passed == 0 {
            // The ping was free to go first.
            got.extend(client.exactly(10).await);
            assert_eq!(got[..2], [0x89, 8], "cut at {cut}");
            assert!(got[10..] == whole, "cut at {cut}");
            client.send(&from_browser(10, &got[2..10])).await;
        } else {
            assert!(got == whole, "cut at {cut}");
            let ping = client.frame().await.expect("the ping, after the frame");
            assert_eq!(ping.opcode, 9, "cut at {cut}");
            client.send(&from_browser(10, &ping.payload)).await;
        }
    }
}

#[tokio::test]
async fn whoever_breaks_the_protocol_is_closed_with_the_right_code() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let cases: Vec<(Vec<u8>, u16)> = vec![
        (frame(1, b"no mask", None), 1002),
        (vec![0xc1, 0x80, 0, 0, 0, 0], 1002),
        (vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        (from_browser(8, b"\x03"), 1002),
        (from_browser(8, b"\x03\xed"), 1002),
        (from_browser(8, b"\x03\xe8\xff\xfe"), 1007),
    ];
    for (bytes, code) in cases {
        let (mut client, mut leg) = session(&gateway, &mut upstream).await;
        client.send(&bytes).await;
        let close = client.frame().await.expect("a Close frame");
        assert_eq!((close.opcode, &close.payload[..2]), (8, &code.to_be_bytes()[..]), "{bytes:x?}");
        assert!(client.frame().await.is_none());
        assert_eq!(leg.frame().await.expect("the other side is told").opcode, 8);
        assert!(leg.frame().await.is_none());
    }
    let (mut client, mut leg) = session(&gateway, &mut upstream).await;
    leg.send_raw(&from_browser(1, b"a mask")).await;
    assert_eq!(client.frame().await.expect("a Close frame").payload[..2], 1011u16.to_be_bytes());
    assert_eq!(leg.frame().await.expect("a Close frame").payload[..2], 1002u16.to_be_bytes());
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "browser_violation")], 6.0);
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "upstream_violation")], 1.0);
}

#[tokio::test]
async fn a_browser_that_comes_back_reaches_the_same_session() {
    let lines = "nvcf-reqid: 5e2b1c7d-0000-0000-0000-000000000001\r\nSet-Cookie: app=1; Path=/\r\nSet-Cookie: nvcf-request-id=5e2b1c7d-0000-0000-0000-000000000001\r\n";
    let mut upstream = Upstream::that(Act::Accept(lines.into())).await;
    let key = "[sessions]\nresume = { mode = \"reconnect\" }\n[sessions.cookie]\nkey = \"env:COOKIE_KEY\"";
    let make = || {
        Gateway::in_front_of(&upstream)
            .authenticated()
            .upstream("functions = [\"other\"]")
            .with(key)
            .env("COOKIE_KEY", "a key of at least 32 characters, shared")
    };
    let (first, replica) = (make(), make());
    let (gateway, replica) = (first.start().await, replica.start().await);
    let open = async |gateway: &Gateway, token: &str, cookie: &str, entry: &str| {
        let mut client = gateway.connect().await;
        let headers = [
            ("Authorization", &*format!("Bearer {token}")),
            ("Cookie", cookie),
            ("Sec-WebSocket-Protocol", entry),
        ];
        client.upgrade("/tenant/7/sign_in", &headers).await;
        client.answer().await
    };
    let answer = open(&gateway, TOKEN, "", "").await;
    assert_eq!(answer.status, 101);
    assert_eq!(upstream.leg().await.header("nvcf-reqid"), None, "a new session");
    assert_eq!(answer.header("nvcf-reqid"), None, "the id stays inside");
    let set = answer.all("set-cookie");
    assert_eq!(set.len(), 2, "{set:?}");
    assert_eq!(set[0], "app=1; Path=/", "the app's own cookie stays");
    let own = &set[1];
    assert!(own.starts_with("streamgate-session="), "{own}");
    assert!(own.ends_with("; Path=/tenant/7/sign_in; Max-Age=28800; HttpOnly; SameSite=Lax"), "{own}");
    assert!(!own.contains("5e2b1c7d"), "sealed: {own}");

    let id = Some("5e2b1c7d-0000-0000-0000-000000000001".to_owned());
    let mine = cookie(own);
    for place in [&gateway, &replica] {
        let answer = open(place, TOKEN, &format!("a=b; {mine}; c=d"), "").await;
        assert_eq!(answer.status, 101);
        assert_eq!(upstream.leg().await.header("nvcf-reqid"), id, "the same session");
    }
    // Somebody else's, a forged one, one for another function: as if there were none.
    let forged = format!("{}x", mine);
    let others = [
        ("token-of-bob", mine.as_str(), "function-id.only-of-bob, chat"),
        (TOKEN, forged.as_str(), ""),
        (TOKEN, mine.as_str(), "function-id.other, chat"),
        (TOKEN, "streamgate-session=; nvcf-request-id=5e2b1c7d-0000-0000-0000-000000000001", ""),
    ];
    for (token, cookie, entry) in others {
        assert_eq!(open(&gateway, token, cookie, entry).await.status, 101, "{cookie} {entry}");
        assert_eq!(upstream.leg().await.header("nvcf-reqid"), None, "{token} {cookie} {entry}");
    }
}

#[tokio::test]
async fn a_cookie_ends_with_its_time() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept("nvcf-reqid: r-1\r\n".into())).await;
    let gateway = Gateway::in_front_of(&upstream).with(RECONNECT).on(&clock).start().await;
    let (client, _) = {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[]).await;
        (client.answer().await, upstream.leg().await)
    };
    let mine = cookie(&client.header("set-cookie").expect("a cookie"));
    for (later, id) in [(0, Some("r-1")), (28_799, Some("r-1")), (28_801, None)] {
        clock.advance(Duration::from_secs(later));
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[("Cookie", &mine)]).await;
        assert_eq!(client.answer().await.status, 101);
        assert_eq!(upstream.leg().await.header("nvcf-reqid").as_deref(), id, "{later} s later");
    }
}

#[tokio::test]
async fn a_session_that_is_gone_is_replaced_by_a_new_one_once() {
    for stale in [
        "HTTP/1.1 404 Not Found\r\nSet-Cookie: nvcf-request-id=; Max-Age=0\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    ] {
        let accept = |id: &str| Act::Accept(format!("nvcf-reqid: {id}\r\n"));
        let acts = vec![accept("old"), Act::Answer(stale.into()), accept("new"), Act::Answer(stale.into())];
        let mut upstream = Upstream::that(Act::InTurn(acts)).await;
        let clock = Clock::paused();
        let gateway = Gateway::in_front_of(&upstream).with(RECONNECT).on(&clock).start().await;
        let open = async |cookie: &str| {
            clock.advance(Duration::from_secs(10)); // a young session would be asked for again
            let mut client = gateway.connect().await;
            client.upgrade("/sign_in", &[("Cookie", cookie)]).await;
            client.answer().await
        };
        let mine = cookie(&open("").await.header("set-cookie").expect("a cookie"));
        drop(upstream.leg().await);
        let again = open(&mine).await;
        assert_eq!(again.status, 101, "{stale}");
        assert_eq!(upstream.leg().await.header("nvcf-reqid"), None);
        let heads = upstream.heads();
        assert!(heads[1].contains("nvcf-reqid: old\r\n"), "{}", heads[1]);
        // Gone twice: the answer is believed, and nothing goes round in circles.
        let third = open(&cookie(&again.header("set-cookie").expect("a cookie"))).await;
        assert!(third.status >= 404, "{}", third.status);
        assert_eq!(upstream.n_connections(), 5);
    }
}

#[tokio::test]
async fn a_function_that_is_gone_is_not_asked_for_twice() {
    let gone = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let acts = vec![Act::Accept("nvcf-reqid: r-1\r\n".into()), Act::Answer(gone.into())];
    let mut upstream = Upstream::that(Act::InTurn(acts)).await;
    let gateway = Gateway::in_front_of(&upstream).with(RECONNECT).start().await;
    let open = async |cookie: &str| {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[("Cookie", cookie)]).await;
        client.answer().await
    };
    let mine = cookie(&open("").await.header("set-cookie").expect("a cookie"));
    drop(upstream.leg().await);
    assert_eq!(open(&mine).await.code(), "function.unknown");
    assert_eq!(upstream.n_connections(), 2, "only a 404 that takes the cookie away is about the session");
}

/// A peer that takes nothing is not there, whatever waits for it: two that block each other would stay for ever.
#[tokio::test]
async fn two_legs_that_take_nothing_are_given_up() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let (client, leg) = session(&gateway, &mut upstream).await;
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 1.0);
    // Each sends more than the sockets between them hold, and neither reads.
    let masked = from_browser(2, &[7; 60_000]);
    let plain = frame(2, &[7; 60_000], None);
    let floods = [
        tokio::spawn(async move { client.flood(&masked).await }),
        tokio::spawn(async move { leg.flood(&plain).await }),
    ];
    let given_up = async {
        while gateway.metric("streamgate_sessions", &[("state", "attached")]) > 0.0 {
            clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("its end", given_up).await;
    let silent = ["browser_silent", "upstream_silent"];
    let n_silent: f64 =
        silent.iter().map(|it| gateway.metric("streamgate_session_ends_total", &[("reason", it)])).sum();
    assert_eq!(n_silent, 1.0);
    floods.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_full_gateway_says_so_and_has_room_again_after_an_end() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream)
        .with("[sessions]\nmax = 2\nresume = { mode = \"off\" }")
        .start()
        .await;
    let (first, _leg) = session(&gateway, &mut upstream).await;
    let _second = session(&gateway, &mut upstream).await;
    let mut third = gateway.connect().await;
    third.upgrade("/sign_in", &[]).await;
    let answer = third.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "sessions.full"));
    assert!(answer.header("retry-after").is_some());
    first.reset();
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 1.0);
    session(&gateway, &mut upstream).await;
}

#[tokio::test]
async fn a_refused_session_gives_its_place_back() {
    let upstream = Upstream::that(Act::HangUp).await;
    let gateway = Gateway::in_front_of(&upstream).with("[sessions]\nmax = 1").start().await;
    for _ in 0..5 {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[]).await;
        assert_eq!(client.answer().await.code(), "upstream.closed");
    }
}

#[tokio::test]
async fn a_restart_tells_browsers_to_come_back() {
    let mut upstream = Upstream::start().await;
    let clock = Clock::paused();
    let mut gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let (mut client, mut leg) = session(&gateway, &mut upstream).await;
    let mut waiting = gateway.connect().await; // a connection without a request
    gateway.begin_to_stop();
    leg.send(1, b"not yet").await;
    assert_eq!(client.frame().await.expect("a message").payload, b"not yet");
    let gone = advancing(&clock, waiting.try_answer("GET")).await;
    assert!(gone.is_none(), "who asks for nothing is not waited for");
    let close = advancing(&clock, client.frame()).await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &1012u16.to_be_bytes()[..]));
    client.send(&from_browser(8, &close_payload(1012, ""))).await;
    assert!(
        leg.frame().await.is_none(),
        "the upstream sees a lost connection, so that its session can be resumed"
    );
    drop((client, leg));
    gateway.ends_while_time_stands_still();
}

#[tokio::test]
async fn a_session_ends_when_its_token_is_withdrawn_or_has_expired() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let builder = Gateway::in_front_of(&upstream)
        .authenticated()
        .on(&clock)
        .with("[sessions]\nkeepalive = { interval = \"1h\", timeout = \"2h\" }");
    let file = builder.text();
    let gateway = builder.start().await;
    let tokens = |eve: &str| {
        let text = format!("[ada]\ntoken = {TOKEN:?}\n{eve}");
        gateway.folder.write("tokens.toml", &text);
        gateway.reload(&file).expect("tokens");
    };
    let enter = async |token: &str| {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[("Authorization", &format!("Bearer {token}"))]).await;
        client
    };
    // A token that is good for a minute of this clock.
    let end = time::OffsetDateTime::from(clock.wall() + Duration::from_secs(60));
    let end = end.format(&time::format_description::well_known::Rfc3339).expect("a date");
    let eve = format!("[eve]\ntoken = \"token-of-eve\"\nexpires = {end:?}");
    tokens(&eve);
    let mut ada = enter(TOKEN).await;
    assert_eq!(ada.answer().await.status, 101);
    let mut leg_of_ada = upstream.leg().await;
    let mut other = enter("token-of-eve").await;
    assert_eq!(other.answer().await.status, 101);
    let mut leg = upstream.leg().await;
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 2.0);
    clock.advance(Duration::from_secs(31));
    let asked = [("decision", "continue"), ("phase", "session_tick"), ("plugin", "bearer-auth")];
    gateway.until_metric("streamgate_plugin_decisions_total", &asked, 2.0);
    clock.advance(Duration::from_secs(31));
    let close = other.frame().await.expect("a Close frame");
    let text = String::from_utf8_lossy(&close.payload[2..]).into_owned();
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3000u16.to_be_bytes()[..]));
    assert_eq!(text, "auth.expired_token: The bearer token is not good any more.");
    assert_eq!(leg.frame().await.expect("a Close frame").payload[..2], 1000u16.to_be_bytes());
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "refused")], 1.0);
    let late = enter("token-of-eve").await.answer().await;
    assert_eq!((late.status, late.code().as_str()), (401, "auth.expired_token"));

    // The other one goes on until its token is withdrawn, also while its browser is away.
    leg_of_ada.send(1, b"on").await;
    assert_eq!(ada.frame().await.expect("a message").payload, b"on");
    ada.reset();
    gateway.until_metric("streamgate_sessions", &[("state", "parked")], 1.0);
    gateway.folder.write("tokens.toml", "[bob]\ntoken = \"token-of-bob\"\n");
    gateway.reload(&file).expect("tokens");
    clock.advance(Duration::from_secs(31));
    assert_eq!(leg_of_ada.frame().await.expect("a Close frame").payload[..2], 1000u16.to_be_bytes());
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "refused")], 2.0);
    gateway.until_metric("streamgate_rejections_total", &[("code", "auth.unknown_token")], 1.0);
}

#[tokio::test]
async fn a_browser_that_would_take_the_last_files_is_told_so_and_the_others_go_on() {
    let mut upstream = Upstream::start().await;
    let server = format!("http://{}", upstream.address);
    let env = [
        ("NVCF_API_KEY", KEY),
        ("STREAMING_FUNCTION_ID", FUNCTION),
        ("NVCF_SERVER", &*server),
        ("STREAMGATE_LISTEN_ADDRESS", "127.0.0.1:0"),
        ("STREAMGATE_ADMIN_ADDRESS", "127.0.0.1:0"),
    ];
    let process = Process::start_with_files(200, &["run"], &env);
    let (address, admin) = (process.address("gateway").await, process.address("admin").await);
    process.stderr.line_with("may open files for about 36 sessions only").await;

    // Where there is no file even for a refusal, a connection just ends.
    let open = async || loop {
        let mut client = Client::connect(address).await;
        client.upgrade("/sign_in", &[]).await;
        if let Some(answer) = client.try_answer("GET").await {
            return (client, answer);
        }
    };
    let (mut sessions, mut legs) = (Vec::new(), Vec::new());
    let refusal = loop {
        let (client, answer) = open().await;
        if answer.status != 101 {
            break answer;
        }
        sessions.push(client);
        legs.push(upstream.leg().await);
    };
    assert_eq!(sessions.len(), 36);
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "sessions.full"));
    assert_eq!(refusal.header("retry-after").as_deref(), Some("2"));
    assert_eq!(refusal.header("access-control-allow-origin").as_deref(), Some("*"));
    for idle in (0..200).map(|_| Client::connect(address)) {
        drop(idle.await); // many who say nothing leave room for those who ask
    }
    let (_, again) = open().await;
    assert_eq!(again.status, 503);

    sessions[0].send(&from_browser(1, b"still here")).await;
    assert_eq!(legs[0].frame().await.expect("a frame").payload, b"still here");
    let mut client = Client::connect(admin).await;
    client.request("GET", "/metrics", &[], b"").await;
    let metrics = client.answer().await.text();
    let refused =
        metrics.lines().find(|it| it.starts_with("streamgate_connections_refused_total{reason=\"files\"}"));
    assert!(refused.is_some_and(|it| !it.ends_with(" 0")), "{metrics}");
    assert!(!process.stderr.text().contains("could not be accepted"), "{}", process.stderr.text());

    sessions.remove(1).send(&from_browser(8, &close_payload(1000, "done"))).await;
    assert_eq!(legs[1].frame().await.expect("a Close frame").opcode, 8);
    drop(legs.remove(1)); // both connections of the session end
    let back = async { while open().await.1.status != 101 {} };
    soon("a place", back).await;
}
