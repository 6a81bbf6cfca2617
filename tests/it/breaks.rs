//! Connections that break, or stand still, at the worst moment: nothing that was taken from a peer is lost, and nobody who
//! is there is given up.

use std::time::Duration;

use streamgate::clock::Clock;

use crate::support::life::{Browser, ID, ask, message, next, open, parked, session};
use crate::support::raw::{close_payload, frame, from_browser};
use crate::support::upstream::Act;
use crate::support::{Client, Gateway, Leg, Upstream, soon};

const TO_UPSTREAM: [(&str, &str); 2] = [("direction", "to_upstream"), ("kind", "data")];
const TO_BROWSER: [(&str, &str); 2] = [("direction", "to_browser"), ("kind", "data")];

/// Messages that say which they are, and of which a few hundred fill all buffers between two peers.
fn large(n: usize) -> Vec<u8> {
    let mut message = n.to_be_bytes().to_vec();
    message.resize(60_000, 7);
    message
}

/// Sends messages until the gateway reads no more of them; gives how many were sent.
async fn fill(gateway: &Gateway, direction: &[(&str, &str)], mut send: impl AsyncFnMut(usize)) -> usize {
    let mut n_sent = 0;
    loop {
        send(n_sent).await;
        n_sent += 1;
        let mut n_waits = 0;
        while gateway.metric("streamgate_relay_frames_total", direction) < n_sent as f64 {
            if n_waits == 40 {
                return n_sent;
            }
            n_waits += 1;
            // That it reads no more is no event; only time shows it.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A browser that sends until its function, which reads nothing, stops it.
async fn stopped(gateway: &Gateway, client: &mut Client) -> usize {
    fill(gateway, &TO_UPSTREAM, async |n| client.send(&from_browser(2, &large(n))).await).await
}

/// A session into which nobody comes back.
async fn unkept(gateway: &Gateway, upstream: &mut Upstream) -> (Client, Leg) {
    let (client, answer) = ask(gateway, "/sign_in", &[]).await;
    assert_eq!(answer.status, 101);
    (client, upstream.leg().await)
}

async fn all_of(leg: &mut Leg, n: usize) {
    let mut expected = 0;
    while expected < n {
        let frame = leg.frame().await.expect("a message");
        if frame.opcode == 2 {
            assert_eq!(frame.payload, large(expected), "message {expected} of {n}");
            expected += 1;
        }
    }
}

#[tokio::test]
async fn a_message_that_a_broken_connection_did_not_take_is_sent_again() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (Browser { mut client, cookie }, mut leg) = session(&gateway, &mut upstream).await;
    // The browser is not read, so that the gateway learns of its end by a write that fails.
    let n = stopped(&gateway, &mut client).await;
    leg.send(2, &message(1)).await;
    assert_eq!(client.frame().await.expect("a message").payload, message(1));
    assert!(client.is_silent().await);
    client.reset();
    for it in 2..5 {
        leg.send(2, &message(it)).await;
    }
    all_of(&mut leg, n).await;
    parked(&gateway, 1.0);
    let mut browser = open(&gateway, &cookie).await;
    assert_eq!(next(&mut browser.client, 3).await, [message(2), message(3), message(4)]);
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn what_a_browser_had_said_before_it_was_lost_still_arrives() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let (Browser { mut client, .. }, mut leg) = session(&gateway, &mut upstream).await;
    let n = stopped(&gateway, &mut client).await;
    client.reset();
    let pings = [("leg", "browser")];
    clock.advance(Duration::from_secs(10));
    gateway.until_metric("streamgate_keepalive_pings_total", &pings, 1.0); // it cannot be written
    all_of(&mut leg, n).await;
    parked(&gateway, 1.0);
}

#[tokio::test]
async fn what_a_browser_had_said_before_it_came_back_still_arrives() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (Browser { mut client, cookie }, mut leg) = session(&gateway, &mut upstream).await;
    let n = stopped(&gateway, &mut client).await;
    assert!(client.is_silent().await);
    client.reset();
    // It is back before its function has taken what it had said, and before anybody knows that it was gone.
    let mut browser = open(&gateway, &cookie).await;
    browser.client.send(&from_browser(2, &large(n))).await;
    all_of(&mut leg, n + 1).await;
    leg.send(2, &message(1)).await;
    assert_eq!(next(&mut browser.client, 1).await, [message(1)]);
    assert_eq!(upstream.n_connections(), 1);
}

#[tokio::test]
async fn what_a_function_had_said_before_it_ended_still_arrives() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let (Browser { mut client, .. }, mut leg) = session(&gateway, &mut upstream).await;
    let n = fill(&gateway, &TO_BROWSER, async |n| leg.send(2, &large(n)).await).await;
    leg.send(8, &close_payload(1000, "done")).await;
    drop(leg);
    // The first ping brings its RST, the second one cannot be written.
    for n in 1..=2 {
        clock.advance(Duration::from_secs(10));
        gateway.until_metric("streamgate_keepalive_pings_total", &[("leg", "upstream")], f64::from(n));
    }
    for it in 0..n {
        assert_eq!(next(&mut client, 1).await, [large(it)], "message {it} of {n}");
    }
    let mut last = client.frame().await.expect("the Close frame");
    while last.opcode == 9 {
        last = client.frame().await.expect("the Close frame");
    }
    assert_eq!((last.opcode, last.payload), (8, close_payload(1000, "done")));
}

#[tokio::test]
async fn a_frame_may_take_longer_than_a_silent_peer_is_waited_for() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).with("[sessions]\nresume = { mode = \"off\" }").on(&clock);
    let gateway = gateway.start().await;
    let (mut client, mut leg) = unkept(&gateway, &mut upstream).await;
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 1.0);
    let (down, up) = (frame(2, &[5; 1000], None), from_browser(2, &[6; 1000]));
    let (mut seen_down, mut seen_up) = (Vec::new(), 0);
    for round in 0..10 {
        // Neither can be pinged within a frame, and neither has anything else to say.
        leg.send_raw(&down[round * 100..][..100]).await;
        seen_down.extend(client.exactly(100).await);
        client.send(&up[round * 100..][..100]).await;
        while seen_up < (round + 1) * 100 {
            seen_up += leg.some().await;
        }
        clock.advance(Duration::from_secs(10));
        tokio::task::yield_now().await;
    }
    client.send(&up[1000..]).await;
    leg.send_raw(&down[1000..]).await;
    seen_down.extend(client.exactly(down.len() - 1000).await);
    assert!(seen_down == down);
    assert_eq!(leg.frame().await.expect("a frame").payload, [6; 1000]);
    assert_eq!(client.frame().await.expect("the ping that has waited").opcode, 9);
    assert_eq!(leg.frame().await.expect("the ping that has waited").opcode, 9);
    assert_eq!(gateway.metric("streamgate_sessions", &[("state", "attached")]), 1.0);
}

#[tokio::test]
async fn what_was_said_before_a_violation_arrives_whole() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    for mode in ["off", "reattach"] {
        let gateway = Gateway::in_front_of(&upstream);
        let gateway = gateway.with(&format!("[sessions]\nresume = {{ mode = {mode:?} }}")).start().await;
        let whole = frame(2, &[5; 100], None);
        let (mut client, mut leg) = unkept(&gateway, &mut upstream).await;
        leg.send_raw(&whole[..50]).await;
        let mut got = client.exactly(50).await;
        leg.send_raw(&[&whole[50..], b"\xc1\x01a"].concat()).await;
        got.extend(client.exactly(whole.len() - 50).await);
        assert!(got == whole);
        assert_eq!(client.frame().await.expect("a Close frame").payload[..2], 1011u16.to_be_bytes());

        let (mut client, mut leg) = unkept(&gateway, &mut upstream).await;
        client.send(&[from_browser(1, b"whole"), b"\xc1\x80aaaa".to_vec()].concat()).await;
        assert_eq!(leg.frame().await.expect("a message").payload, b"whole");
        assert_eq!(leg.frame().await.expect("a Close frame").opcode, 8);
    }
}

#[tokio::test]
async fn a_function_that_floods_an_absent_browser_with_pings_is_held_up() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let (Browser { client, .. }, mut leg) = session(&gateway, &mut upstream).await;
    client.reset();
    parked(&gateway, 1.0);
    let pings = frame(9, &[1; 125], None).repeat(1000);
    let mut n_taken = 0;
    // It does not read the answers, so that they stand in buffers, which have an end.
    while tokio::time::timeout(Duration::from_millis(500), leg.send_raw(&pings)).await.is_ok() {
        n_taken += pings.len();
        assert!(n_taken < 100 << 20, "{n_taken} bytes of pings were taken");
    }
    // And when it reads them, all goes on.
    let mut n_answers = 0;
    while n_answers < 1000 {
        n_answers += usize::from(leg.frame().await.expect("a pong").opcode == 10);
    }
    parked(&gateway, 1.0);
}

#[tokio::test]
async fn a_functions_ping_is_answered_for_a_browser_that_is_lost() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let gateway = Gateway::in_front_of(&upstream).on(&clock).start().await;
    let (Browser { mut client, cookie }, mut leg) = session(&gateway, &mut upstream).await;
    leg.send(9, b"before it is lost").await;
    assert_eq!(client.frame().await.expect("the function's ping").payload, b"before it is lost");
    client.reset();
    let pong = leg.frame().await.expect("a pong");
    assert_eq!((pong.opcode, pong.payload.as_slice()), (10, &b"before it is lost"[..]));
    parked(&gateway, 1.0);

    // One whose network is gone is not known to be lost for a while; the function need not wait so long.
    let Browser { client, .. } = open(&gateway, &cookie).await;
    client.lose_network();
    leg.send(9, b"in the dark").await;
    gateway.until_metric(
        "streamgate_relay_frames_total",
        &[("direction", "to_browser"), ("kind", "control")],
        2.0,
    );
    clock.advance(Duration::from_secs(10));
    let answered = async {
        loop {
            let frame = leg.frame().await.expect("a frame");
            if frame.opcode == 10 {
                return frame.payload;
            }
        }
    };
    assert_eq!(soon("the pong", answered).await, b"in the dark");
}
