//! A browser is lost and comes back: the function notices nothing, and no message is lost, doubled or out of order.

use std::time::Duration;

use streamgate::clock::Clock;

use crate::support::gateway::Builder;
use crate::support::life::{Browser, ID, ask, message, next, open, parked, payloads, session};
use crate::support::raw::{close_payload, frame, from_browser};
use crate::support::upstream::Act;
use crate::support::{Client, Gateway, TOKEN, Upstream, cookie};

#[tokio::test]
async fn a_browser_that_comes_back_goes_on_where_it_was() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).env("STREAMGATE_WORKERS", "3").start().await;
    let (mut browser, mut leg) = session(&gateway, &mut upstream).await;
    for round in 0..12 {
        // Something passes both ways, then the connection breaks in one of the ways that there are.
        leg.send(2, &message(round)).await;
        assert_eq!(browser.client.frame().await.expect("a message").payload, message(round));
        browser.client.send(&from_browser(1, &message(round))).await;
        assert_eq!(leg.frame().await.expect("a message").payload, message(round));
        let Browser { mut client, cookie } = browser;
        if round % 2 == 0 {
            client.shutdown().await;
        } else {
            client.reset();
        }
        parked(&gateway, 1.0);
        for n in 0..round {
            leg.send(2, &message(1000 + n)).await;
        }
        browser = open(&gateway, &cookie).await;
        let expected: Vec<Vec<u8>> = (0..round).map(|n| message(1000 + n)).collect();
        assert_eq!(next(&mut browser.client, round).await, expected, "round {round}");
    }
    assert_eq!(upstream.n_connections(), 1, "the function has noticed nothing");
    assert!(leg.is_silent().await);
    parked(&gateway, 0.0);
    gateway.until_metric("streamgate_session_parks_total", &[("cause", "closed")], 6.0);
    gateway.until_metric("streamgate_session_parks_total", &[("cause", "reset")], 6.0);
    let resumed = [("kind", "reattach"), ("outcome", "resumed")];
    gateway.until_metric("streamgate_session_resumes_total", &resumed, 12.0);
    assert_eq!(gateway.metric("streamgate_session_resume_seconds_count", &[("kind", "reattach")]), 12.0);
    assert_eq!(gateway.metric("streamgate_session_parked_seconds_count", &[]), 12.0);
    assert_eq!(gateway.metric("streamgate_session_resume_buffered_bytes", &[]), 0.0);
    assert_eq!(gateway.metric("streamgate_session_starts_total", &[("result", "resumed")]), 12.0);
    // The end is one as ever.
    browser.client.send(&from_browser(8, &close_payload(1000, "bye"))).await;
    assert_eq!(leg.frame().await.expect("a Close frame").payload, close_payload(1000, "bye"));
}

/// What a network loses: everything that was sent after it was gone, before anybody knew.
async fn what_a_dead_network_swallowed(builder: impl Fn(&Upstream) -> Builder) {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = builder(&upstream).on(&clock).start().await;
    let (Browser { mut client, cookie }, mut leg) = session(&gateway, &mut upstream).await;
    for n in 0..20 {
        leg.send(2, &message(n)).await;
    }
    let mut seen = next(&mut client, 20).await;
    client.lose_network();
    for n in 20..60 {
        leg.send(2, &message(n)).await;
    }
    gateway.until_metric(
        "streamgate_relay_frames_total",
        &[("direction", "to_browser"), ("kind", "data")],
        60.0,
    );
    assert!(leg.is_silent().await); // the kernel may take some time to acknowledge what has arrived
    // Nobody tells the gateway; it finds out by what does not come.
    for _ in 0..4 {
        clock.advance(Duration::from_secs(10));
        let pings = gateway.metric("streamgate_keepalive_pongs_total", &[("leg", "upstream")]);
        if gateway.metric("streamgate_sessions", &[("state", "parked")]) == 1.0 {
            break;
        }
        // The upstream answers its pings, or it would be lost as well.
        let ping = leg.frame().await.expect("a ping");
        leg.send(10, &ping.payload).await;
        gateway.until_metric("streamgate_keepalive_pongs_total", &[("leg", "upstream")], pings + 1.0);
    }
    parked(&gateway, 1.0);
    assert_eq!(gateway.metric("streamgate_session_parks_total", &[("cause", "silent")]), 1.0);
    assert_eq!(gateway.metric("streamgate_keepalive_lost_total", &[("leg", "browser")]), 1.0);
    seen.extend(payloads(client.frames_so_far()));
    for n in 60..80 {
        leg.send(2, &message(n)).await;
    }
    let mut browser = open(&gateway, &cookie).await;
    seen.extend(next(&mut browser.client, 80 - seen.len()).await);
    let order: Vec<Option<usize>> = seen.iter().map(|it| (0..80).find(|n| message(*n) == *it)).collect();
    assert_eq!(order, (0..80).map(Some).collect::<Vec<_>>(), "nothing lost, doubled or out of order");
}

#[tokio::test]
async fn what_a_dead_network_swallowed_is_sent_again() {
    what_a_dead_network_swallowed(Gateway::in_front_of).await;
}

#[tokio::test]
async fn a_connection_may_break_at_every_byte_of_a_message() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (mut browser, mut leg) = session(&gateway, &mut upstream).await;
    // One message in three frames, with a ping between them.
    let pieces = |mask: Option<[u8; 4]>| {
        let mut first = frame(1, b"begin ", mask);
        first[0] &= 0x7f;
        let mut middle = frame(0, &[b'm'; 130], mask);
        middle[0] &= 0x7f;
        [first, frame(9, b"ping", mask), middle, frame(0, b" end", mask)].concat()
    };
    let (from_there, from_here) = (pieces(None), pieces(Some([1, 2, 3, 4])));
    let whole = [b"begin ".as_slice(), &[b'm'; 130], b" end"].concat();
    let read = async |client: &mut Client| {
        let mut payload = Vec::new();
        loop {
            let frame = client.frame().await.expect("a frame");
            if frame.opcode < 8 {
                payload.extend(frame.payload);
                if payload.ends_with(b" end") {
                    return payload;
                }
            }
        }
    };
    for cut in 0..=from_there.len() {
        // Towards the browser: it has seen the beginning, and sees all of it again.
        leg.send_raw(&from_there[..cut]).await;
        browser.client.exactly(cut.saturating_sub(14).min(8)).await; // what surely comes, headers and pings apart
        browser.client.reset();
        parked(&gateway, 1.0);
        leg.send_raw(&from_there[cut..]).await;
        browser = open(&gateway, &browser.cookie).await;
        if cut < from_there.len() {
            assert_eq!(read(&mut browser.client).await, whole, "towards the browser, cut at {cut}");
        }
        // Towards the upstream: it sees nothing of a message that is not whole.
        if cut < from_here.len() {
            browser.client.send(&from_here[..cut]).await;
            browser.client.shutdown().await;
            parked(&gateway, 1.0);
            browser = open(&gateway, &browser.cookie).await;
            browser.client.send(&from_browser(1, b"whole")).await;
            loop {
                let seen = leg.frame().await.expect("a frame");
                if seen.opcode < 8 {
                    assert_eq!(seen.payload, b"whole", "towards the upstream, cut at {cut}");
                    break;
                }
            }
        }
    }
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn a_cookie_of_somebody_else_brings_nobody_in() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).authenticated().start().await;
    let enter = async |token: &str, cookie: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Cookie", cookie),
            ("Sec-WebSocket-Protocol", if token == TOKEN { "chat" } else { "chat, function-id.only-of-bob" }),
        ];
        ask(&gateway, "/sign_in", &headers).await
    };
    let (client, answer) = enter(TOKEN, "").await;
    let mine = cookie(&answer.header("set-cookie").expect("a cookie"));
    let _leg = upstream.leg().await;
    client.reset();
    parked(&gateway, 1.0);
    let forged = mine.replace('A', "B") + "AA";
    for (token, cookie) in
        [("token-of-bob", mine.as_str()), (TOKEN, &forged), (TOKEN, "streamgate-session=x")]
    {
        let (_client, answer) = enter(token, cookie).await;
        assert_eq!(answer.status, 101);
        assert_eq!(upstream.leg().await.header("nvcf-reqid"), None, "a new session: {token} {cookie}");
    }
    let invalid = [("kind", "unknown"), ("outcome", "invalid")];
    assert_eq!(gateway.metric("streamgate_session_resumes_total", &invalid), 3.0);
    // The owner has it still; and an old cookie of its own is worth nothing once it has come back twice.
    let mut cookies = vec![mine];
    for _ in 0..3 {
        let (client, answer) = enter(TOKEN, cookies.last().expect("one")).await;
        assert_eq!(answer.status, 101);
        cookies.push(cookie(&answer.header("set-cookie").expect("a cookie")));
        client.reset();
        parked(&gateway, 1.0);
    }
    assert_eq!(upstream.n_connections(), 4, "all three came back");
    let (_client, answer) = enter(TOKEN, &cookies[0]).await;
    assert_eq!(answer.status, 101);
    assert_eq!(upstream.leg().await.header("nvcf-reqid"), None, "a replayed cookie is none");
    let replayed = [("kind", "reattach"), ("outcome", "replayed")];
    assert_eq!(gateway.metric("streamgate_session_resumes_total", &replayed), 1.0);
}

#[tokio::test]
async fn a_token_of_its_own_brings_a_browser_without_cookies_back() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let named = "chat, streamgate-resume.3f9a1c55aa0e4d7b";
    let enter = async |entry: &str| ask(&gateway, "/sign_in", &[("Sec-WebSocket-Protocol", entry)]).await;
    let (client, answer) = enter(named).await;
    assert_eq!(
        answer.header("sec-websocket-protocol").as_deref(),
        Some("chat"),
        "the token is not told again"
    );
    let mut leg = upstream.leg().await;
    assert_eq!(leg.header("sec-websocket-protocol").as_deref(), Some("chat"), "nor does it go upstream");
    client.reset();
    parked(&gateway, 1.0);
    leg.send(1, b"while you were away").await;
    let (_other, _) = enter("chat, streamgate-resume.another-token-of-somebody").await;
    let _their_leg = upstream.leg().await;
    let (_short, _) = enter("chat, streamgate-resume.short").await;
    let _their_leg = upstream.leg().await;
    let (mut client, answer) = enter(named).await;
    assert_eq!(answer.status, 101);
    assert_eq!(client.frame().await.expect("a message").payload, b"while you were away");
    assert_eq!(upstream.n_connections(), 3);
}

#[tokio::test]
async fn a_token_may_stand_in_the_query_too() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let path = "/sign_in?a=b%20c&streamgate-resume=3f9a1c55aa0e4d7b&d";
    let (client, answer) = ask(&gateway, path, &[]).await;
    assert_eq!(answer.status, 101);
    let mut leg = upstream.leg().await;
    assert!(leg.head.starts_with("GET /sign_in?a=b%20c&d HTTP/1.1"), "it does not go upstream: {}", leg.head);
    client.reset();
    parked(&gateway, 1.0);
    leg.send(1, b"while you were away").await;
    let (mut client, answer) = ask(&gateway, path, &[]).await;
    assert_eq!(answer.status, 101);
    assert_eq!(client.frame().await.expect("a message").payload, b"while you were away");
    let (_other, _) = ask(&gateway, "/sign_in?streamgate-resume=another-token-of-mine", &[]).await;
    assert!(upstream.leg().await.head.starts_with("GET /sign_in HTTP/1.1"));
}

#[tokio::test]
async fn there_is_one_viewer() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (mut first, mut leg) = session(&gateway, &mut upstream).await;
    let mut second = open(&gateway, &first.cookie).await;
    let close = first.client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3005u16.to_be_bytes()[..]));
    leg.send(1, b"for the second").await;
    assert_eq!(second.client.frame().await.expect("a message").payload, b"for the second");
    second.client.send(&from_browser(1, b"from the second")).await;
    assert_eq!(leg.frame().await.expect("a message").payload, b"from the second");
    // Two at once: one of them is attached in the end, and the other one was told.
    let (one, other) = tokio::join!(open(&gateway, &second.cookie), open(&gateway, &second.cookie));
    let mut all = [one, other];
    leg.send(1, b"for the last").await;
    let mut n_reached = 0;
    for browser in &mut all {
        let frame = browser.client.frame().await.expect("a frame");
        if frame.opcode == 8 {
            assert_eq!(frame.payload[..2], 3005u16.to_be_bytes());
        } else {
            assert_eq!(frame.payload, b"for the last");
            n_reached += 1;
        }
    }
    assert_eq!(n_reached, 1);
    assert_eq!(upstream.n_connections(), 1);

    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let refusing = Gateway::in_front_of(&upstream).with("[sessions]\nviewer = \"refuse\"").start().await;
    let (first, mut leg) = session(&refusing, &mut upstream).await;
    for path in ["/sign_in?x=1", "/sign_in?x=2"] {
        let (_client, answer) = ask(&refusing, path, &[("Cookie", &first.cookie)]).await;
        assert_eq!((answer.status, answer.code().as_str()), (409, "session.taken"), "{path}");
    }
    leg.send(1, b"still here").await;
    let Browser { mut client, cookie } = first;
    assert_eq!(client.frame().await.expect("a message").payload, b"still here");
    client.reset();
    parked(&refusing, 1.0);
    open(&refusing, &cookie).await;
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn another_request_is_another_handshake() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (browser, mut leg) = session(&gateway, &mut upstream).await;
    let Browser { client, cookie: mine } = browser;
    client.reset();
    parked(&gateway, 1.0);
    // NVIDIA's client says that it comes back; its server wants to see that.
    let (_client, answer) = ask(&gateway, "/sign_in?x=1&reconnect=1", &[("Cookie", &mine)]).await;
    assert_eq!(answer.status, 101);
    assert!(leg.frame().await.is_none(), "the old connection made way, without a Close frame");
    let leg = upstream.leg().await;
    assert!(leg.head.starts_with("GET /sign_in?x=1&reconnect=1 "), "{}", leg.head);
    assert_eq!(leg.header("nvcf-reqid").as_deref(), Some("5e2b1c7d-0000-0000-0000-000000000001"));
    assert_eq!(leg.header("x-nvcf-reconnect-window-secs").as_deref(), Some("60"));
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "replaced")], 1.0);
    let resumed = [("kind", "reconnect"), ("outcome", "resumed")];
    gateway.until_metric("streamgate_session_resumes_total", &resumed, 1.0);
}

#[tokio::test]
async fn how_browsers_come_back_is_a_setting_also_of_a_route() {
    for mode in ["reconnect", "off"] {
        let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
        let route = format!(
            "[[route]]\npath = \"/sign_in\"\nchain = []\nresume = {{ mode = {mode:?}, window = \"90s\" }}"
        );
        let gateway = Gateway::in_front_of(&upstream).with(&route).start().await;
        let (client, answer) = ask(&gateway, "/sign_in", &[]).await;
        assert_eq!(answer.status, 101);
        let mut leg = upstream.leg().await;
        let window = leg.header("x-nvcf-reconnect-window-secs");
        assert_eq!(window.as_deref(), (mode == "reconnect").then_some("90"));
        client.reset();
        assert!(leg.ends_with_reset().await, "nothing is held");
        match answer.header("set-cookie") {
            Some(set) => {
                assert_eq!(mode, "reconnect");
                ask(&gateway, "/sign_in", &[("Cookie", &cookie(&set))]).await;
                assert!(upstream.leg().await.header("nvcf-reqid").is_some());
            }
            None => assert_eq!(mode, "off"),
        }
    }
}

#[tokio::test]
async fn whoever_stays_away_too_long_finds_a_new_session() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway =
        Gateway::in_front_of(&upstream).on(&clock).with("[sessions.resume]\nwindow = \"20s\"").start().await;
    let (Browser { client, cookie }, mut leg) = session(&gateway, &mut upstream).await;
    client.reset();
    parked(&gateway, 1.0);
    clock.advance(Duration::from_secs(10));
    let ping = leg.frame().await.expect("the upstream is kept alive meanwhile");
    assert_eq!(ping.opcode, 9);
    leg.send(9, b"and is answered").await;
    let pong = leg.frame().await.expect("a pong");
    assert_eq!((pong.opcode, pong.payload.as_slice()), (10, b"and is answered".as_slice()));
    clock.advance(Duration::from_secs(10));
    assert!(leg.ends_with_reset().await, "it ends as the browser's connection did");
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "expired")], 1.0);
    parked(&gateway, 0.0);
    open(&gateway, &cookie).await;
    assert!(upstream.leg().await.header("nvcf-reqid").is_some(), "NVCF may have it still");
}

#[tokio::test]
async fn more_than_is_kept_ends_the_session_or_drops_the_oldest() {
    let big = vec![b'y'; 10_000];
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).with("[sessions.resume]\nbuffer = \"64KiB\"").start().await;
    let (browser, mut leg) = session(&gateway, &mut upstream).await;
    browser.client.reset();
    parked(&gateway, 1.0);
    for _ in 0..5 {
        leg.send(2, &big).await;
    }
    gateway.until_metric("streamgate_session_resume_buffered_bytes", &[], 5.0 * 10_004.0);
    for _ in 0..3 {
        leg.send(2, &big).await;
    }
    let close = leg.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &1009u16.to_be_bytes()[..]));
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "overflowed")], 1.0);
    gateway.until_metric("streamgate_session_resume_buffered_bytes", &[], 0.0);

    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream)
        .with("[sessions.resume]\nbuffer = \"64KiB\"\noverflow = \"drop-oldest\"")
        .start()
        .await;
    let (Browser { client, cookie }, mut leg) = session(&gateway, &mut upstream).await;
    client.reset();
    parked(&gateway, 1.0);
    for n in 0..10u8 {
        leg.send(2, &vec![n; 10_000]).await;
    }
    leg.send(2, &vec![b'z'; 100_000]).await; // more than fits by itself
    leg.send(2, b"last").await;
    gateway.until_metric("streamgate_session_resume_dropped_total", &[], 11.0);
    let mut browser = open(&gateway, &cookie).await;
    assert_eq!(next(&mut browser.client, 1).await, [b"last".to_vec()]);
}

#[tokio::test]
async fn a_session_that_nvcf_does_not_know_yet_is_asked_for_again() {
    let unknown =
        "HTTP/1.1 404 Not Found\r\nSet-Cookie: nvcf-request-id=; Max-Age=0\r\nContent-Length: 0\r\n\r\n";
    let accept = || Act::Accept(ID.into());
    let acts = vec![accept(), Act::Answer(unknown.into()), Act::Answer(unknown.into()), accept()];
    let mut upstream = Upstream::that(Act::InTurn(acts)).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (browser, leg) = session(&gateway, &mut upstream).await;
    drop(leg);
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "upstream_lost")], 1.0);
    open(&gateway, &browser.cookie).await;
    let ids: Vec<bool> = upstream.heads().iter().map(|it| it.contains("nvcf-reqid: 5e2b1c7d")).collect();
    assert_eq!(ids, [false, true, true, true], "the third time it is known");
}

#[tokio::test]
async fn a_session_ends_when_it_is_too_old_or_idle_for_too_long() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let limits = "[sessions]\nmax_age = \"100s\"\nmax_idle = \"25s\"\nkeepalive = { interval = \"1h\", timeout = \"2h\" }";
    let gateway = Gateway::in_front_of(&upstream).on(&clock).with(limits).start().await;
    let (mut browser, mut leg) = session(&gateway, &mut upstream).await;
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 1.0);
    for _ in 0..4 {
        clock.advance(Duration::from_secs(24));
        leg.send(1, b"not idle").await;
        assert_eq!(browser.client.frame().await.expect("a message").payload, b"not idle");
    }
    clock.advance(Duration::from_secs(4));
    let close = browser.client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3010u16.to_be_bytes()[..]));
    let close = leg.frame().await.expect("a Close frame");
    assert_eq!(close.payload[..2], 1000u16.to_be_bytes(), "the function knows that it is over for good");
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "max_age")], 1.0);

    let (mut browser, _leg) = session(&gateway, &mut upstream).await;
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 1.0);
    clock.advance(Duration::from_secs(25));
    assert_eq!(browser.client.frame().await.expect("a Close frame").payload[..2], 3010u16.to_be_bytes());
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "max_idle")], 1.0);
}

#[tokio::test]
async fn what_a_browser_leaves_open_cannot_be_taken_up() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).with("[sessions.resume]\nbuffer = \"4KiB\"").start().await;
    let (browser, mut leg) = session(&gateway, &mut upstream).await;
    let Browser { mut client, cookie } = browser;
    // A message of which the upstream has the beginning: it is too long to be held back.
    let long = from_browser(2, &[7; 20_000]);
    client.send(&long[..10_000]).await;
    let mut begun = 0;
    while begun < 4096 {
        begun += leg.some().await;
    }
    client.reset();
    assert!(leg.ends_with_reset().await, "nothing may follow half a message");
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "browser_lost")], 1.0);
    open(&gateway, &cookie).await;
    assert_eq!(upstream.n_connections(), 2);
}

#[tokio::test]
async fn a_browser_asks_about_its_session_and_ends_it() {
    let deleted = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let gone =
        "HTTP/1.1 404 Not Found\r\nSet-Cookie: nvcf-request-id=; Max-Age=0\r\nContent-Length: 0\r\n\r\n";
    let acts = vec![Act::Accept(ID.into()), Act::Answer(deleted.into()), Act::Answer(gone.into())];
    let mut upstream = Upstream::that(Act::InTurn(acts)).await;
    let gateway = Gateway::in_front_of(&upstream).authenticated().start().await;
    let bearer = format!("Bearer {TOKEN}");
    let ask_about = async |method: &str, path: &str, cookie: &str, token: &str| {
        let mut client = gateway.connect().await;
        client.request(method, path, &[("Authorization", token), ("Cookie", cookie)], b"").await;
        client.answer_to(method).await
    };
    let headers = [("Authorization", bearer.as_str())];
    let (mut client, answer) = ask(&gateway, "/tenant/sign_in", &headers).await;
    let mine = cookie(&answer.header("set-cookie").expect("a cookie"));
    let mut leg = upstream.leg().await;

    let here = ask_about("HEAD", "/tenant/sign_in", &mine, &bearer).await;
    assert_eq!(here.status, 200, "it can be resumed");
    assert!(
        here.header("set-cookie").is_some_and(|it| it.contains("Path=/tenant/sign_in")),
        "and is good for longer"
    );
    for method in ["HEAD", "DELETE"] {
        let bob = ask_about(method, "/tenant/sign_in", &mine, "Bearer token-of-bob").await;
        assert_eq!(bob.status, 404, "{method}: somebody else's session is none");
        assert_eq!(ask_about(method, "/tenant/sign_in", "", &bearer).await.status, 404, "{method}");
        assert_eq!(ask_about(method, "/tenant/sign_in", &mine, "Bearer wrong").await.status, 401, "{method}");
    }
    assert_eq!(upstream.n_connections(), 1);

    let ended = ask_about("DELETE", "/tenant/sign_in", &mine, &bearer).await;
    assert_eq!(ended.status, 204);
    assert!(
        ended.header("set-cookie").is_some_and(|it| it.contains("Max-Age=0")),
        "the cookie is taken away"
    );
    assert_eq!(client.frame().await.expect("a Close frame").payload[..2], 3010u16.to_be_bytes());
    assert_eq!(leg.frame().await.expect("a Close frame").payload[..2], 1000u16.to_be_bytes());
    let told = upstream.heads()[1].to_ascii_lowercase();
    for part in [
        "delete /sign_in http/1.1",
        "x-nvcf-absorb: true",
        "cookie: nvcf-request-id=5e2b1c7d-0000-0000-0000-000000000001",
        "authorization: bearer ",
        "function-id: ",
    ] {
        assert!(told.contains(part), "{part} is missing in {told}");
    }
    let again = ask_about("DELETE", "/tenant/sign_in", &mine, &bearer).await;
    assert_eq!(again.status, 204, "what is gone already has been ended");
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "terminated")], 1.0);
}

#[tokio::test]
async fn an_operator_sees_sessions_and_ends_one() {
    let ended = "HTTP/1.1 204 No Content\r\n\r\n";
    let acts = vec![Act::Accept(ID.into()), Act::Answer(ended.into())];
    let mut upstream = Upstream::that(Act::InTurn(acts)).await;
    let gateway = Gateway::in_front_of(&upstream)
        .authenticated()
        .env("STREAMGATE_ADMIN_TOKEN", "a token of the operator")
        .start()
        .await;
    let bearer = format!("Bearer {TOKEN}");
    let (client, answer) = ask(&gateway, "/sign_in", &[("Authorization", bearer.as_str())]).await;
    assert_eq!(answer.status, 101);
    let mut leg = upstream.leg().await;
    let admin = async |method: &str, path: &str, token: &str| {
        let mut client = Client::connect(gateway.addresses.admin.expect("it has one")).await;
        client.request(method, path, &[("Authorization", token)], b"").await;
        client.answer_to(method).await
    };
    let operator = "Bearer a token of the operator";
    assert_eq!(admin("GET", "/admin/sessions", &bearer).await.status, 401);
    client.reset();
    parked(&gateway, 1.0);
    let listed = admin("GET", "/admin/sessions", operator).await;
    let listed: serde_json::Value = serde_json::from_slice(&listed.body).expect("JSON");
    let one = &listed["sessions"][0];
    assert_eq!((&one["principal"], &one["state"]), (&"ada".into(), &"parked".into()), "{listed}");
    let path = format!("/admin/sessions/{}", one["id"].as_str().expect("an id"));
    assert_eq!(admin("DELETE", &path, "").await.status, 401);
    assert_eq!(admin("DELETE", "/admin/sessions/0", operator).await.status, 404);
    assert_eq!(admin("DELETE", &path, operator).await.status, 202);
    assert_eq!(leg.frame().await.expect("a Close frame").payload[..2], 1000u16.to_be_bytes());
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "terminated")], 1.0);
    parked(&gateway, 0.0);
    let told = async {
        while upstream.heads().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    crate::support::soon("NVCF is told", told).await;
    let told = upstream.heads()[1].to_ascii_lowercase();
    for part in
        ["delete /sign_in", "x-nvcf-absorb: true", "nvcf-request-id=5e2b1c7d-0000-0000-0000-000000000001"]
    {
        assert!(told.contains(part), "{part} is missing in {told}");
    }
}

/// Two pages of one browser: each has a token of its own, and both have the cookie of the one that came last.
struct Page {
    client: Client,
    cookie: String,
}

async fn page(gateway: &Gateway, path: &str, token: &str, cookie_before: &str) -> Page {
    let entry = format!("chat, streamgate-resume.{token}");
    let headers = [("Sec-WebSocket-Protocol", entry.as_str()), ("Cookie", cookie_before)];
    let (client, answer) = ask(gateway, path, &headers).await;
    assert_eq!(answer.status, 101, "{}", answer.text());
    Page { client, cookie: cookie(&answer.header("set-cookie").expect("a cookie")) }
}

/// An upstream whose sessions have different names.
fn named() -> Act {
    let accept = |n: usize| Act::Accept(format!("nvcf-reqid: request-{n}\r\n"));
    Act::InTurn((0..8).map(accept).collect())
}

const ONE: &str = "token-of-the-first-page";
const OTHER: &str = "token-of-the-second-page";

#[tokio::test]
async fn pages_of_one_browser_do_not_end_each_others_sessions() {
    let mut upstream = Upstream::that(named()).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let one = page(&gateway, "/sign_in", ONE, "").await;
    let mut first = upstream.leg().await;
    let other = page(&gateway, "/sign_in", OTHER, &one.cookie).await;
    let mut second = upstream.leg().await;
    one.client.reset();
    other.client.reset();
    parked(&gateway, 2.0);
    first.send(1, b"for the first").await;
    second.send(1, b"for the second").await;
    let mut one = page(&gateway, "/sign_in", ONE, &other.cookie).await;
    assert_eq!(one.client.frame().await.expect("a message").payload, b"for the first");
    let mut other = page(&gateway, "/sign_in", OTHER, &one.cookie).await;
    assert_eq!(other.client.frame().await.expect("a message").payload, b"for the second");
    assert_eq!(upstream.n_connections(), 2, "neither function has noticed anything");

    // The cookie of a page that is gone says nothing about another one, however often that has come back.
    let close = close_payload(1000, "bye");
    other.client.send(&from_browser(8, &close)).await;
    second.send(8, &close).await;
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "closed_by_browser")], 1.0);
    for _ in 0..4 {
        one.client.reset();
        parked(&gateway, 1.0);
        one = page(&gateway, "/sign_in", ONE, &other.cookie).await;
    }
    assert_eq!(upstream.n_connections(), 2);
    // Another handshake is one of the page's own session.
    let again = page(&gateway, "/sign_in?reconnect=1", ONE, &other.cookie).await;
    let mut third = upstream.leg().await;
    assert_eq!(third.header("nvcf-reqid").as_deref(), Some("request-0"));
    drop(first);

    // And so is its end.
    let entry = format!("streamgate-resume.{ONE}");
    let headers = [("Sec-WebSocket-Protocol", entry.as_str()), ("Cookie", other.cookie.as_str())];
    let mut client = gateway.connect().await;
    client.request("DELETE", "/sign_in", &headers, b"").await;
    let before = upstream.heads().len();
    assert_eq!(third.frame().await.expect("a Close frame").opcode, 8);
    drop(client.answer_to("DELETE").await); // this upstream knows no DELETE
    let told = upstream.heads()[before - 1..].concat().to_ascii_lowercase();
    assert!(told.contains("cookie: nvcf-request-id=request-2"), "{told}");
    drop(again);
}

#[tokio::test]
async fn a_cookie_that_was_replayed_ends_nobodys_session() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (mut browser, _leg) = session(&gateway, &mut upstream).await;
    let first = browser.cookie.clone();
    for _ in 0..3 {
        browser.client.reset();
        parked(&gateway, 1.0);
        browser = open(&gateway, &browser.cookie).await;
    }
    for method in ["HEAD", "DELETE"] {
        let mut client = gateway.connect().await;
        client.request(method, "/sign_in", &[("Cookie", &first)], b"").await;
        assert_eq!(client.answer_to(method).await.status, 404, "{method}");
    }
    assert!(browser.client.is_silent().await);
    // One that was renewed by asking is as good as the one that it renews.
    let mut client = gateway.connect().await;
    client.request("HEAD", "/sign_in", &[("Cookie", &browser.cookie)], b"").await;
    let answer = client.answer_to("HEAD").await;
    let renewed = cookie(&answer.header("set-cookie").expect("a cookie"));
    browser.client.reset();
    parked(&gateway, 1.0);
    open(&gateway, &renewed).await;
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn a_session_is_as_old_as_it_is_over_whichever_connection() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway =
        Gateway::in_front_of(&upstream).with("[sessions]\nmax_age = \"15s\"").on(&clock).start().await;
    let (browser, leg) = session(&gateway, &mut upstream).await;
    clock.advance(Duration::from_secs(9));
    browser.client.reset();
    parked(&gateway, 1.0);
    let (mut client, answer) =
        ask(&gateway, "/sign_in?x=1&reconnect=1", &[("Cookie", &browser.cookie)]).await;
    assert_eq!(answer.status, 101);
    let _leg = upstream.leg().await;
    drop(leg);
    clock.advance(Duration::from_secs(6));
    assert_eq!(client.frame().await.expect("a Close frame").payload[..2], 3010u16.to_be_bytes());
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "max_age")], 1.0);
}

#[tokio::test]
async fn where_nobody_comes_back_a_token_names_nothing() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway =
        Gateway::in_front_of(&upstream).with("[sessions]\nresume = { mode = \"off\" }").start().await;
    let headers = [("Sec-WebSocket-Protocol", "chat, streamgate-resume.3f9a1c55aa0e4d7b")];
    let (mut one, _) = ask(&gateway, "/sign_in", &headers).await;
    let mut first = upstream.leg().await;
    let (_other, answer) = ask(&gateway, "/sign_in", &headers).await;
    assert_eq!(answer.status, 101);
    assert_eq!(upstream.leg().await.header("nvcf-reqid"), None);
    first.send(1, b"still here").await;
    assert_eq!(one.frame().await.expect("a message").payload, b"still here");
}

#[tokio::test]
async fn a_full_gateway_has_room_for_a_session_that_goes_on_over_another_connection() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).with("[sessions]\nmax = 1").start().await;
    let (mut browser, mut leg) = session(&gateway, &mut upstream).await;
    let headers = [("Cookie", browser.cookie.as_str())];
    let (_client, answer) = ask(&gateway, "/sign_in?x=1&reconnect=1", &headers).await;
    assert_eq!(answer.status, 101, "{}", answer.text());
    assert_eq!(browser.client.frame().await.expect("a Close frame").opcode, 8);
    assert!(leg.frame().await.is_none());
    upstream.leg().await;
}

#[tokio::test]
async fn a_page_that_was_closed_leaves_its_session_to_the_next_one() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut one = page(&gateway, "/sign_in", ONE, "").await;
    let mut leg = upstream.leg().await;
    one.client.send(&from_browser(8, &close_payload(1001, ""))).await;
    assert_eq!(leg.frame().await.expect("a Close frame").payload, close_payload(1001, ""));
    // The function has not answered yet; the page that is loaded again has another token.
    let _other = page(&gateway, "/sign_in", OTHER, &one.cookie).await;
    let next = upstream.leg().await;
    assert_eq!(next.header("nvcf-reqid").as_deref(), Some("5e2b1c7d-0000-0000-0000-000000000001"));
}
