//! Several gateways share a directory: a browser that comes to another one than before finds its session.

use std::time::Duration;

use streamgate::clock::Clock;

use crate::support::gateway::Builder;
use crate::support::life::{Browser, ID, ask, message, next, open, parked, payloads, session};
use crate::support::raw::{close_payload, frame, from_browser};
use crate::support::redis::{COOKIE_KEY, Redis};
use crate::support::upstream::Act;
use crate::support::{Answer, Client, Gateway, TOKEN, Upstream, cookie, log, soon};

/// One more gateway that shares the directory.
fn replica(upstream: &Upstream, redis: &Redis) -> Builder {
    Gateway::in_front_of(upstream).with(&redis.tables()).env("COOKIE_KEY", COOKIE_KEY)
}

async fn two(upstream: &Upstream, redis: &Redis) -> [Gateway; 2] {
    [replica(upstream, redis).start().await, replica(upstream, redis).start().await]
}

fn handed_over(gateway: &Gateway, outcome: &str, n: f64) {
    let labels = [("kind", "handover"), ("outcome", outcome)];
    gateway.until_metric("streamgate_session_resumes_total", &labels, n);
}

#[tokio::test]
async fn a_browser_goes_on_at_another_replica_where_it_was() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (mut browser, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    for round in 0..12 {
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
        parked(&owner, 1.0);
        for n in 0..round {
            leg.send(2, &message(1000 + n)).await;
        }
        // Two rounds at the other one, then one at home.
        browser = open(if round % 3 == 2 { &owner } else { &other }, &cookie).await;
        let expected: Vec<Vec<u8>> = (0..round).map(|n| message(1000 + n)).collect();
        assert_eq!(next(&mut browser.client, round).await, expected, "round {round}");
    }
    assert_eq!(upstream.n_connections(), 1, "the function has noticed nothing");
    handed_over(&other, "resumed", 8.0);
    assert_eq!(other.metric("streamgate_session_resume_seconds_count", &[("kind", "handover")]), 8.0);
    assert_eq!(other.metric("streamgate_sessions", &[("state", "attached")]), 0.0, "it has none of its own");
    assert_eq!(other.metric("streamgate_directory_up", &[]), 1.0);
    assert!(
        other.metric("streamgate_directory_requests_total", &[("request", "locate"), ("result", "ok")])
            >= 8.0
    );
    // At home again since the last round; once more over there, and to the end.
    let Browser { client, cookie } = browser;
    client.reset();
    parked(&owner, 1.0);
    let mut browser = open(&other, &cookie).await;
    other.until_metric("streamgate_carried_browsers", &[], 1.0);
    browser.client.send(&from_browser(8, &close_payload(1000, "bye"))).await;
    assert_eq!(leg.frame().await.expect("a Close frame").payload, close_payload(1000, "bye"));
    leg.send(8, &close_payload(1000, "bye")).await;
    assert_eq!(browser.client.frame().await.expect("a Close frame").payload, close_payload(1000, "bye"));
    assert!(browser.client.frame().await.is_none(), "and the end of the connection");
    owner.until_metric("streamgate_session_ends_total", &[("reason", "closed_by_browser")], 1.0);
    other.until_metric("streamgate_carried_browsers", &[], 0.0);
    redis.sessions(0).await;
}

#[tokio::test]
async fn a_frame_that_has_begun_goes_before_the_end_of_the_replica_that_carries_it() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let owner = replica(&upstream, &redis).start().await;
    let (mut browser, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    for comes_in_time in [true, false] {
        let mut other = replica(&upstream, &redis).with("[sessions.drain]\ntimeout = \"0s\"").start().await;
        browser.client.reset();
        parked(&owner, 1.0);
        browser = open(&other, &browser.cookie).await;
        let whole = frame(2, &message(7), None);
        let (half, rest) = whole.split_at(whole.len() / 2);
        leg.send_raw(half).await;
        assert_eq!(browser.client.exactly(half.len()).await, half);
        other.begin_to_stop();
        if comes_in_time {
            leg.send_raw(rest).await;
            assert_eq!(browser.client.exactly(rest.len()).await, rest);
            let close = browser.client.frame().await.expect("a Close frame");
            assert_eq!((close.opcode, &close.payload[..2]), (8, &1012u16.to_be_bytes()[..]));
            assert!(browser.client.frame().await.is_none(), "the end of the connection");
        } else {
            assert!(browser.client.ends_with_reset().await, "what it has of the frame is worth nothing");
            leg.send_raw(rest).await;
        }
        parked(&owner, 1.0);
        browser = open(&owner, &browser.cookie).await;
        leg.send(2, &message(8)).await;
        if !comes_in_time {
            assert_eq!(browser.client.frame().await.expect("a message").payload, message(7));
        }
        assert_eq!(browser.client.frame().await.expect("a message").payload, message(8));
    }
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn large_messages_pass_both_ways_at_once() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (Browser { client, cookie }, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    client.reset();
    parked(&owner, 1.0);
    let mut browser = open(&other, &cookie).await;
    for (idx, size) in [0, 125, 126, 65_535, 65_536, 300_000, 3].into_iter().enumerate() {
        let of = |from: usize| -> Vec<u8> { (0..size).map(|it| (it * 31 + from) as u8).collect() };
        let (up, down) = (of(idx), of(idx + 100));
        let sent = from_browser(2, &up);
        tokio::join!(browser.client.send(&sent), leg.send(2, &down));
        assert!(leg.frame().await.expect("a frame").payload == up, "size {size}");
        assert!(browser.client.frame().await.expect("a frame").payload == down, "size {size}");
    }
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn what_a_dead_network_swallowed_behind_another_replica_is_sent_again() {
    let redis = Redis::start().await;
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let owner = replica(&upstream, &redis).on(&clock).start().await;
    let other = replica(&upstream, &redis).start().await;
    let (Browser { client, cookie }, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    client.reset();
    parked(&owner, 1.0);
    let Browser { mut client, cookie } = open(&other, &cookie).await;
    for n in 0..20 {
        leg.send(2, &message(n)).await;
    }
    let mut seen = next(&mut client, 20).await;
    client.lose_network();
    for n in 20..60 {
        leg.send(2, &message(n)).await;
    }
    owner.until_metric(
        "streamgate_relay_frames_total",
        &[("direction", "to_browser"), ("kind", "data")],
        60.0,
    );
    assert!(leg.is_silent().await);
    for _ in 0..4 {
        let pings = owner.metric("streamgate_keepalive_pongs_total", &[("leg", "upstream")]);
        clock.advance(Duration::from_secs(10));
        if owner.metric("streamgate_sessions", &[("state", "parked")]) == 1.0 {
            break;
        }
        let ping = leg.frame().await.expect("a ping");
        leg.send(10, &ping.payload).await;
        owner.until_metric("streamgate_keepalive_pongs_total", &[("leg", "upstream")], pings + 1.0);
    }
    parked(&owner, 1.0);
    seen.extend(payloads(client.frames_so_far()));
    for n in 60..80 {
        leg.send(2, &message(n)).await;
    }
    let mut browser = open(&other, &cookie).await;
    seen.extend(next(&mut browser.client, 80 - seen.len()).await);
    let order: Vec<Option<usize>> = seen.iter().map(|it| (0..80).find(|n| message(*n) == *it)).collect();
    assert_eq!(order, (0..80).map(Some).collect::<Vec<_>>(), "nothing lost, doubled or out of order");
    assert_eq!(upstream.n_connections(), 1);
}

/// A browser that changes its network is back long before anybody knows that its connection is dead.
#[tokio::test]
async fn a_browser_comes_back_before_its_loss_is_known() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (Browser { client, cookie }, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    client.reset();
    parked(&owner, 1.0);
    let mut browser = open(&other, &cookie).await;
    let (mut seen, mut lost) = (Vec::new(), Vec::new());
    for round in 0..3 {
        for n in 0..10 {
            leg.send(2, &message(round * 100 + n)).await;
        }
        seen.extend(next(&mut browser.client, 10).await);
        browser.client.lose_network();
        for n in 10..20 {
            leg.send(2, &message(round * 100 + n)).await;
        }
        let back = open(&other, &browser.cookie).await;
        lost.push(std::mem::replace(&mut browser, back));
        seen.extend(next(&mut browser.client, 10).await);
    }
    let expected: Vec<Vec<u8>> = (0..60).map(|it| message(it / 20 * 100 + it % 20)).collect();
    assert!(seen == expected, "nothing lost, doubled or out of order");
    handed_over(&other, "resumed", 4.0);
    assert_eq!(upstream.n_connections(), 1, "the function has noticed nothing");
}

#[tokio::test]
async fn a_replica_that_ends_gives_its_guests_back() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let owner = replica(&upstream, &redis).start().await;
    let mut other = replica(&upstream, &redis).with("[sessions.drain]\ntimeout = \"0s\"").start().await;
    let (Browser { client, cookie }, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    client.reset();
    parked(&owner, 1.0);
    let mut guest = open(&other, &cookie).await;
    leg.send(1, b"before").await;
    assert_eq!(guest.client.frame().await.expect("a message").payload, b"before");
    other.begin_to_stop();
    let close = guest.client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &1012u16.to_be_bytes()[..]));
    assert!(guest.client.frame().await.is_none(), "the end of the connection");
    parked(&owner, 1.0);
    leg.send(1, b"after").await;
    let mut browser = open(&owner, &guest.cookie).await;
    assert_eq!(browser.client.frame().await.expect("a message").payload, b"after");
    drop(other);
    redis.sessions(1).await;
    // The owner ends as well: its session is over, and nobody looks for it there.
    let mut owner = owner;
    owner.begin_to_stop();
    drop(browser);
    drop(owner);
    redis.sessions(0).await;
    assert_eq!(
        redis.ask::<Vec<String>>(&["KEYS", "*"]).await,
        Vec::<String>::new(),
        "nothing is left behind"
    );
}

#[tokio::test]
async fn another_handshake_at_another_replica_reconnects() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (mut browser, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    let (mut client, answer) = ask(&other, "/sign_in?x=1&reconnect=1", &[("Cookie", &browser.cookie)]).await;
    assert_eq!(answer.status, 101);
    let close = browser.client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3005u16.to_be_bytes()[..]), "there is one viewer");
    assert!(leg.frame().await.is_none(), "the old connection made way");
    let mut leg = upstream.leg().await;
    assert_eq!(leg.header("nvcf-reqid").as_deref(), Some("5e2b1c7d-0000-0000-0000-000000000001"));
    leg.send(1, b"here").await;
    assert_eq!(client.frame().await.expect("a message").payload, b"here");
    owner.until_metric("streamgate_session_ends_total", &[("reason", "replaced")], 1.0);
    // The directory knows who has it now.
    redis.sessions(1).await;
    let cookie = cookie(&answer.header("set-cookie").expect("a cookie"));
    client.reset();
    parked(&other, 1.0);
    let (_client, answer) = ask(&owner, "/sign_in?x=1&reconnect=1", &[("Cookie", &cookie)]).await;
    assert_eq!(answer.status, 101);
    handed_over(&owner, "resumed", 1.0);
    assert_eq!(upstream.n_connections(), 2);
}

#[tokio::test]
async fn there_is_one_viewer_among_replicas() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (mut first, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    let mut second = open(&other, &first.cookie).await;
    let close = first.client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3005u16.to_be_bytes()[..]));
    leg.send(1, b"for the second").await;
    assert_eq!(second.client.frame().await.expect("a message").payload, b"for the second");
    // Three at once, at both replicas: one of them is attached in the end, and the others are told.
    let headers = [("Cookie", second.cookie.as_str())];
    let (one, two, three) = tokio::join!(
        ask(&owner, "/sign_in?x=1", &headers),
        ask(&other, "/sign_in?x=1", &headers),
        ask(&other, "/sign_in?x=1", &headers)
    );
    leg.send(1, b"for the last").await;
    let mut n_reached = 0;
    for (mut client, answer) in [one, two, three] {
        if answer.status == 409 {
            continue; // it waited for its turn when a later one came
        }
        let frame = client.frame().await.expect("a frame");
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
    let refusing = |redis| replica(&upstream, redis).with("[sessions]\nviewer = \"refuse\"");
    let [owner, other] = [refusing(&redis).start().await, refusing(&redis).start().await];
    let (first, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(2).await;
    for path in ["/sign_in?x=1", "/sign_in?x=2"] {
        let (_client, answer) = ask(&other, path, &[("Cookie", &first.cookie)]).await;
        assert_eq!((answer.status, answer.code().as_str()), (409, "session.taken"), "{path}");
    }
    leg.send(1, b"still here").await;
    let Browser { mut client, cookie } = first;
    assert_eq!(client.frame().await.expect("a message").payload, b"still here");
    client.reset();
    parked(&owner, 1.0);
    open(&other, &cookie).await;
    assert_eq!(upstream.n_connections(), 1);
}

/// The owner is gone: both browsers come with its cookie, to two replicas, and both are let in by NVCF.
#[tokio::test]
async fn two_that_reconnect_at_once_never_both_win() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gone = replica(&upstream, &redis).start().await;
    let (browser, leg) = session(&gone, &mut upstream).await;
    drop((browser.client, leg, gone));
    let [one, other] = two(&upstream, &redis).await;
    let (mut first, mut second) = tokio::join!(open(&one, &browser.cookie), open(&other, &browser.cookie));
    // One of them is told that the session goes on elsewhere, and the other one has it.
    async fn told(browser: &mut Browser) {
        let close = browser.client.frame().await.expect("a Close frame");
        assert_eq!((close.opcode, &close.payload[..2]), (8, &3005u16.to_be_bytes()[..]));
    }
    let is_first_told = tokio::select! {
        () = told(&mut first) => true,
        () = told(&mut second) => false,
    };
    let winner = if is_first_told { &mut second } else { &mut first };
    let mut legs = Vec::new();
    for _ in 1..upstream.n_connections() {
        legs.push(upstream.leg().await);
    }
    for leg in &mut legs {
        leg.send(1, b"who is there?").await;
    }
    assert_eq!(winner.client.frame().await.expect("a message").payload, b"who is there?");
    redis.sessions(1).await;
}

#[tokio::test]
async fn a_session_is_ended_from_any_replica() {
    let redis = Redis::start().await;
    let deleted = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let acts = vec![Act::Accept(ID.into()), Act::Answer(deleted.into()), Act::Accept(ID.into())];
    let mut upstream = Upstream::that(Act::InTurn(acts)).await;
    let owner = replica(&upstream, &redis).authenticated().start().await;
    let other = replica(&upstream, &redis).authenticated().start().await;
    let bearer = format!("Bearer {TOKEN}");
    let ask_about = async |method: &str, cookie: &str, token: &str| -> Answer {
        let mut client = other.connect().await;
        client.request(method, "/sign_in", &[("Authorization", token), ("Cookie", cookie)], b"").await;
        client.answer_to(method).await
    };
    let (mut client, answer) = ask(&owner, "/sign_in", &[("Authorization", &bearer)]).await;
    let mine = cookie(&answer.header("set-cookie").expect("a cookie"));
    let mut leg = upstream.leg().await;
    redis.sessions(1).await;
    assert_eq!(ask_about("HEAD", &mine, &bearer).await.status, 200);
    assert_eq!(ask_about("DELETE", &mine, "Bearer token-of-bob").await.status, 404);
    assert_eq!(ask_about("DELETE", &mine, &bearer).await.status, 204);
    assert_eq!(client.frame().await.expect("a Close frame").payload[..2], 3010u16.to_be_bytes());
    assert_eq!(leg.frame().await.expect("a Close frame").payload[..2], 1000u16.to_be_bytes());
    redis.sessions(0).await;

    let (mut client, answer) = ask(&owner, "/sign_in", &[("Authorization", &bearer)]).await;
    assert_eq!(answer.status, 101);
    let key = redis.sessions(1).await.remove(0);
    let mut operator = Client::connect(other.addresses.admin.expect("it has one")).await;
    let id = key.rsplit(':').next().expect("an id");
    operator.request("DELETE", &format!("/admin/sessions/{id}"), &[], b"").await;
    assert_eq!(operator.answer_to("DELETE").await.status, 202);
    assert_eq!(client.frame().await.expect("a Close frame").payload[..2], 3010u16.to_be_bytes());
}

#[tokio::test]
async fn a_replica_that_dies_leaves_no_session_stuck() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let server = format!("http://{}", upstream.address);
    let url = format!("redis://{}", redis.address);
    let env = [
        ("NVCF_SERVER", server.as_str()),
        ("NVCF_API_KEY", crate::support::KEY),
        ("STREAMING_FUNCTION_ID", crate::support::FUNCTION),
        ("STREAMGATE_LISTEN_ADDRESS", "127.0.0.1:0"),
        ("STREAMGATE_ADMIN_ADDRESS", "127.0.0.1:0"),
        ("STREAMGATE_DIRECTORY_URL", &url),
        ("STREAMGATE_DIRECTORY_LISTEN", "127.0.0.1:0"),
        ("STREAMGATE_SESSIONS_COOKIE_KEY", COOKIE_KEY),
    ];
    let mut dying = crate::support::process::Process::start(&["run"], &env);
    let mut client = Client::connect(dying.address("gateway").await).await;
    client.upgrade("/sign_in?x=1", &[]).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 101);
    let mine = cookie(&answer.header("set-cookie").expect("a cookie"));
    let _leg = upstream.leg().await;
    redis.sessions(1).await;
    dying.signal("KILL").await;
    dying.ended().await;
    // Its lease is good for a while yet, and nobody answers there.
    let other = replica(&upstream, &redis).start().await;
    let mut browser = open(&other, &mine).await;
    let mut leg = upstream.leg().await;
    assert_eq!(leg.header("nvcf-reqid").as_deref(), Some("5e2b1c7d-0000-0000-0000-000000000001"));
    leg.send(1, b"back").await;
    assert_eq!(browser.client.frame().await.expect("a message").payload, b"back");
    handed_over(&other, "gone", 1.0);
    // It is the other one's session now, also for a third.
    let third = replica(&upstream, &redis).start().await;
    redis.sessions(1).await;
    browser.client.reset();
    parked(&other, 1.0);
    open(&third, &browser.cookie).await;
    assert_eq!(upstream.n_connections(), 2);
}

#[tokio::test]
async fn the_log_says_why_a_server_cannot_be_asked_and_where_it_is() {
    log::collect();
    let redis = Redis::protected("hunter2").await;
    let upstream = Upstream::start().await;
    let address = redis.address;
    for (login, database, said) in [
        ("", "0", "NOAUTH Authentication required."),
        (":hunter3@", "0", "the server does not take the user or the password of the URL"),
        (":hunter2@", "99", "ERR DB index is out of range"),
    ] {
        let gateway = Gateway::in_front_of(&upstream)
            .with("[plugins]\npaths = [\"plugins\"]\nstore = \"env:URL\"\n[directory]\nurl = \"env:URL\"\nlisten = \"127.0.0.1:0\"\n[sessions.cookie]\nkey = \"env:COOKIE_KEY\"")
            .env("COOKIE_KEY", COOKIE_KEY)
            .env("URL", &format!("redis://{login}{address}/{database}"))
            .plugin(
                "asks",
                "return { summary = \"Asks.\", phases = { \"authorize\" } }",
                "local kv = require \"streamgate.kv\"\n\
                 return { authorize = function(request)\n\
                   local _, reason = kv.get \"n\"\n\
                   return request:respond(200, {}, tostring(reason))\n\
                 end }",
            )
            .chain("\"asks\"")
            .start()
            .await;
        assert_eq!(gateway.get("/", &[]).await.text(), "unavailable");
        let both = async {
            let lines = || log::lines_with(said).into_iter().filter(|it| it.contains("cannot be asked"));
            while lines().count() < 2 {
                tokio::task::yield_now().await;
            }
            lines().collect::<Vec<String>>()
        };
        for line in soon(said, both).await {
            assert!(line.contains(&format!("server={address} ")), "{line}");
        }
    }
    for secret in ["hunter2", "hunter3", "redis://"] {
        assert!(!log::text().contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn sessions_live_on_when_the_directory_is_gone() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (mut browser, mut leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    let address = redis.kill().await;
    leg.send(1, b"live").await;
    assert_eq!(browser.client.frame().await.expect("a message").payload, b"live");
    // What this replica knows is enough for its own sessions.
    browser.client.reset();
    parked(&owner, 1.0);
    browser = open(&owner, &browser.cookie).await;
    leg.send(1, b"again").await;
    assert_eq!(browser.client.frame().await.expect("a message").payload, b"again");
    assert_eq!(upstream.n_connections(), 1);
    // New ones are opened.
    let (_new, _leg_of_new) = session(&owner, &mut upstream).await;
    // Another replica knows nothing, and reconnects.
    browser.client.reset();
    let mut at_other = open(&other, &browser.cookie).await;
    let mut leg = upstream.leg().await;
    assert!(leg.header("nvcf-reqid").is_some());
    assert_eq!(other.metric("streamgate_directory_up", &[]), 0.0);
    for n in 0..5 {
        let (_new, _its_leg) = session(&other, &mut upstream).await;
        let token = format!("chat, streamgate-resume.a-token-of-page-{n}");
        ask(&other, "/sign_in?x=2", &[("Sec-WebSocket-Protocol", &token)]).await;
        upstream.leg().await;
    }
    let said = log::lines_with("The directory cannot be asked");
    assert_eq!(said.len(), 2, "one line for each of the two replicas: {said:?}");
    assert!(
        other.metric("streamgate_directory_requests_total", &[("request", "locate"), ("result", "skipped")])
            > 0.0
    );
    // It is there again, and has forgotten everything: it is told.
    let redis = Redis::at(address).await.expect("the port is free");
    redis.sessions(2).await;
    owner.until_metric("streamgate_session_ends_total", &[("reason", "replaced")], 1.0);
    leg.send(1, b"still").await;
    assert_eq!(next(&mut at_other.client, 1).await, [b"still".to_vec()]);
    at_other.client.reset();
    parked(&other, 1.0);
    let n = upstream.n_connections();
    open(&owner, &at_other.cookie).await;
    handed_over(&owner, "resumed", 1.0);
    assert_eq!(upstream.n_connections(), n);
}

#[tokio::test]
async fn nobody_waits_for_a_directory_that_says_nothing() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (_browser, _leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    redis.signal("STOP").await;
    // The first one waits for `directory.timeout`, the others do not wait at all.
    for n in 0..4 {
        let token = format!("chat, streamgate-resume.a-token-of-page-{n}");
        let (_client, answer) = ask(&other, "/sign_in", &[("Sec-WebSocket-Protocol", &token)]).await;
        assert_eq!(answer.status, 101);
        upstream.leg().await;
        let failed = [("request", "locate"), ("result", "failed")];
        assert!(other.metric("streamgate_directory_requests_total", &failed) <= 1.0 + f64::from(n));
    }
    assert_eq!(other.metric("streamgate_directory_up", &[]), 0.0);
    redis.signal("CONT").await;
    other.until_metric("streamgate_directory_up", &[], 1.0);
}

#[tokio::test]
async fn the_directory_is_put_right_now_and_then() {
    let redis = Redis::start().await;
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let patient = "[sessions.keepalive]\ninterval = \"1h\"\ntimeout = \"2h\"";
    let owner = replica(&upstream, &redis).with(patient).on(&clock).start().await;
    let (mut browser, _leg) = session(&owner, &mut upstream).await;
    let key = redis.sessions(1).await.remove(0);
    // An answer that is still under way when the clock jumps would be late.
    let answered = |request, n| {
        let labels = [("request", request), ("result", "ok")];
        owner.until_metric("streamgate_directory_requests_total", &labels, n);
    };
    answered("tell", 1.0);
    // It was forgotten there: it is told again.
    redis.ask::<i64>(&["DEL", &key]).await;
    clock.advance(Duration::from_secs(181));
    assert_eq!(redis.sessions(1).await[0], key);
    answered("refresh", 1.0);
    answered("tell", 2.0);
    // It was taken over, and the owner could not be told at once.
    redis.ask::<i64>(&["HSET", &key, "owner", "another"]).await;
    clock.advance(Duration::from_secs(181));
    assert_eq!(browser.client.frame().await.expect("a Close frame").payload[..2], 3005u16.to_be_bytes());
    owner.until_metric("streamgate_session_ends_total", &[("reason", "replaced")], 1.0);
    assert_eq!(
        redis.ask::<String>(&["HGET", &key, "owner"]).await,
        "another",
        "it is not the owner's to forget"
    );
}

#[tokio::test]
async fn strangers_reach_nothing_through_the_directory() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (browser, mut leg) = session(&owner, &mut upstream).await;
    let key = redis.sessions(1).await.remove(0);
    // A gateway with another key sees neither the session nor the replica.
    let foreign =
        replica(&upstream, &redis).env("COOKIE_KEY", "another key of somebody else, long").start().await;
    open(&foreign, &browser.cookie).await;
    assert_eq!(upstream.leg().await.header("nvcf-reqid"), None);
    // What somebody writes into the directory is not believed.
    let owner_id: String = redis.ask(&["HGET", &key, "owner"]).await;
    let foreign_lease = format!("streamgate:replica:{owner_id}");
    let record: Vec<u8> = redis.ask(&["HGET", &key, "record"]).await;
    let forgeries = [(0, "a nonce"), (20, "a byte"), (record.len() - 1, "a tag")];
    for (n, (at, what)) in forgeries.into_iter().enumerate() {
        let mut forged = record.clone();
        forged[at] ^= 1;
        redis.ask_bytes::<i64>(&[b"HSET", key.as_bytes(), b"record", &forged]).await;
        let (mut client, answer) = ask(&other, "/sign_in?x=1", &[("Cookie", &browser.cookie)]).await;
        assert_eq!(answer.status, 101, "{what}");
        let mut leg = upstream.leg().await;
        assert!(leg.header("nvcf-reqid").is_some(), "{what}: it reconnects");
        client.send(&from_browser(8, &close_payload(1000, ""))).await;
        assert_eq!(leg.frame().await.expect("a Close frame").opcode, 8);
        drop(leg);
        let closed = [("reason", "closed_by_browser")];
        other.until_metric("streamgate_session_ends_total", &closed, n as f64 + 1.0);
        redis.ask::<i64>(&["DEL", &key]).await;
        redis.ask::<i64>(&["HSET", &key, "owner", &owner_id, "attached", "0"]).await;
    }
    redis.ask::<()>(&["SET", &foreign_lease, "127.0.0.1:1"]).await;
    open(&other, &browser.cookie).await;
    upstream.leg().await;
    // The session itself has come to no harm but that others have taken its name.
    drop(leg.frame_now().await);
    // Nor does a port that answers replicas speak with anybody else.
    let address = owner.addresses.replicas.expect("it has other replicas");
    for bytes in
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), vec![0; 70_000], vec![0x16, 3, 1, 0xff, 0xff]]
    {
        let stranger = Client::connect(address).await;
        stranger.flood(&bytes).await;
    }
}

#[tokio::test]
async fn a_replayed_cookie_is_none_at_another_replica_either() {
    let redis = Redis::start().await;
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let [owner, other] = two(&upstream, &redis).await;
    let (browser, _leg) = session(&owner, &mut upstream).await;
    redis.sessions(1).await;
    let mut cookies = vec![browser.cookie];
    for _ in 0..3 {
        let back = open(&other, cookies.last().expect("one")).await;
        cookies.push(back.cookie);
        back.client.reset();
        parked(&owner, 1.0);
    }
    // The directory hears of it a moment later.
    let is_replayed = async {
        loop {
            let (_client, answer) = ask(&other, "/sign_in?x=1", &[("Cookie", &cookies[0])]).await;
            assert_eq!(answer.status, 101);
            let replayed = [("kind", "handover"), ("outcome", "replayed")];
            if other.metric("streamgate_session_resumes_total", &replayed) > 0.0 {
                return;
            }
        }
    };
    crate::support::soon("a replay that is found", is_replayed).await;
}

#[tokio::test]
async fn mistakes_in_the_directory_are_told() {
    let upstream = Upstream::start().await;
    let of = |tables: &str| Gateway::in_front_of(&upstream).with(tables).problems();
    let key = "[sessions.cookie]\nkey = \"env:KEY_OF_COOKIES\"\n";
    for (tables, expected) in [
        ("[directory]\nurl = \"redis://127.0.0.1\"", "set `sessions.cookie.key`"),
        ("[directory]\nurl = \"http://127.0.0.1\"", "expected `memory:`, `redis://host:port`"),
        ("[directory]\nurl = \"redis://:a-word@127.0.0.1\"", "has a password in it"),
        ("[directory]\ntimeout = \"0s\"", "longer than zero"),
        ("[directory]\nadvertise = \"here\"", "directory.advertise"),
    ] {
        let problems = of(tables);
        assert!(problems.contains(expected), "{tables}: {problems}");
        assert!(!problems.contains("a-word"), "{problems}");
    }
    let with_key = Gateway::in_front_of(&upstream)
        .with(&format!("{key}[directory]\nurl = \"redis://127.0.0.1:not-a-port\""))
        .env("KEY_OF_COOKIES", COOKIE_KEY)
        .problems();
    assert!(with_key.contains("not the URL of a Redis server"), "{with_key}");
}
