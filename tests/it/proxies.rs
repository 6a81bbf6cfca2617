//! Where a browser is when a proxy stands in front of the gateway: `listen.proxies`.

use std::net::Ipv4Addr;

use streamgate::clock::Clock;

use crate::support::gateway::Builder;
use crate::support::haproxy::Haproxy;
use crate::support::upstream::{Act, header};
use crate::support::{Answer, Client, Gateway, Upstream, advancing};

/// Its upstream answers with what it was asked, and that says where the browser is.
fn gateway(upstream: &Upstream, listen: &str) -> Builder {
    Gateway::in_front_of(upstream)
        .listen(listen)
        .chain("{ plugin = \"inject-headers\", set = { x-client = \"{client.ip}\" } }")
}

async fn client_of(client: &mut Client, headers: &[(&str, &str)]) -> String {
    client.request("GET", "/", headers, b"").await;
    said(&client.answer().await)
}

fn said(answer: &Answer) -> String {
    header(&answer.text(), "x-client").unwrap_or_else(|| panic!("no address in {answer:?}"))
}

#[tokio::test]
async fn a_proxys_header_is_believed_and_nobody_elses() {
    let upstream = Upstream::that(Act::Mirror).await;
    let forwarded = [("X-Forwarded-For", "198.51.100.1, 192.0.2.7")];
    let behind = gateway(&upstream, "proxies = [\"127.0.0.0/8\"]").start().await;
    let mut proxy = behind.connect().await;
    assert_eq!(client_of(&mut proxy, &forwarded).await, "192.0.2.7");
    assert_eq!(client_of(&mut proxy, &[]).await, "127.0.0.1", "each request for itself");
    assert_eq!(client_of(&mut proxy, &[("X-Real-IP", "192.0.2.7")]).await, "127.0.0.1");

    let open = gateway(&upstream, "proxies = [\"10.0.0.0/8\"]").start().await;
    assert_eq!(client_of(&mut open.connect().await, &forwarded).await, "127.0.0.1");

    let other = "proxies = [\"127.0.0.1\"]\nproxy_header = \"X-Real-IP\"";
    let other = gateway(&upstream, other).start().await;
    let both = [("X-Forwarded-For", "192.0.2.1"), ("x-real-ip", "192.0.2.7")];
    assert_eq!(client_of(&mut other.connect().await, &both).await, "192.0.2.7");
}

#[tokio::test]
async fn a_proxy_header_may_come_in_pieces_and_must_be_one() {
    let upstream = Upstream::that(Act::Mirror).await;
    let listen = "proxies = [\"127.0.0.1\"]\nproxy_protocol = true";
    let gateway = gateway(&upstream, listen).start().await;
    let v2 = |command: u8, family: u8, rest: &[u8]| {
        let mut it = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        it.extend([0x20 | command, family]);
        it.extend((rest.len() as u16).to_be_bytes());
        it.extend(rest);
        it
    };
    let v4 = [192, 0, 2, 7, 192, 0, 2, 1, 0x12, 0x67, 1, 187];
    let v6 = "2001:db8::7".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let with_more = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat(); // PP2_TYPE_NOOP
    let request = b"GET / HTTP/1.1\r\nHost: gateway.example\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n";
    for (introduction, expected) in [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n".to_vec(), "2001:db8::7"),
        (v2(1, 0x11, &v4), "192.0.2.7"),
        (v2(1, 0x11, &with_more), "192.0.2.7"),
        (v2(1, 0x21, &[&v6[..], &v6, &[0, 1, 0, 2]].concat()), "2001:db8::7"),
        // A connection of the proxy itself: what its requests say of others holds.
        (b"PROXY UNKNOWN\r\n".to_vec(), "198.51.100.1"),
        (v2(0, 0, &[]), "198.51.100.1"),
    ] {
        let mut client = gateway.connect().await;
        client.send(&[&introduction[..], request].concat()).await;
        assert_eq!(said(&client.answer().await), expected, "{}", introduction.escape_ascii());
        let mut client = gateway.connect().await;
        for byte in &introduction {
            client.send(&[*byte]).await;
            tokio::task::yield_now().await;
        }
        client.send(request).await;
        assert_eq!(said(&client.answer().await), expected, "{}", introduction.escape_ascii());
    }

    let refused = |n: f64| {
        let labels = [("reason", "proxy_protocol")];
        gateway.until_metric("streamgate_connections_refused_total", &labels, n);
    };
    for (n, wrong) in [
        request.to_vec(),
        b"PROXY TCP5 192.0.2.7 192.0.2.1 4711 443\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.777 192.0.2.1 4711 443\r\n".to_vec(),
        [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(),
        v2(7, 0x11, &v4),
        [&v2(1, 0x11, &v4)[..14], &[0xff; 6000]].concat(),
        b"\x16\x03\x01\x02\x00\x01".to_vec(),
    ]
    .iter()
    .enumerate()
    {
        let mut client = gateway.connect().await;
        client.send(wrong).await;
        assert!(client.try_answer("GET").await.is_none(), "{}", wrong.escape_ascii());
        refused(n as f64 + 1.0);
    }
    // Who looks whether the port is open is no mistake.
    gateway.connect().await.shutdown().await;
    let mut client = gateway.connect().await;
    client.send(&[&v2(1, 0x11, &v4)[..], request].concat()).await;
    assert_eq!(said(&client.answer().await), "192.0.2.7");
    refused(7.0);
}

#[tokio::test]
async fn a_proxy_header_that_does_not_end_is_not_waited_for() {
    let (upstream, clock) = (Upstream::start().await, Clock::paused());
    let listen = "proxies = [\"127.0.0.1\"]\nproxy_protocol = true";
    let gateway = gateway(&upstream, listen).on(&clock).start().await;
    let mut client = gateway.connect().await;
    client.send(b"PROXY TCP4 192.0.2.7 ").await;
    assert!(advancing(&clock, client.try_answer("GET")).await.is_none());
    gateway.until_metric("streamgate_connections_refused_total", &[("reason", "proxy_protocol")], 1.0);
}

#[tokio::test]
async fn haproxy_tells_where_a_browser_is() {
    let browser = Ipv4Addr::new(127, 0, 0, 9);
    let made_up = [("X-Forwarded-For", "192.0.2.7")];
    let proxies = "proxies = [\"127.0.0.1\"]";
    let protocol = format!("{proxies}\nproxy_protocol = true");
    let encrypted = format!("{protocol}\ntls = {{ self_signed = true }}");
    for (listen, how, options) in [
        (proxies, "  mode http\n  option forwardfor", ""),
        (&protocol, "  mode tcp", "send-proxy"),
        (&protocol, "  mode tcp", "send-proxy-v2"),
        (&encrypted, "  mode http", "send-proxy-v2 ssl verify none"),
    ] {
        let accept = Act::Accept(String::new());
        let mut upstream = Upstream::that(Act::InTurn(vec![Act::Mirror, accept])).await;
        let gateway = gateway(&upstream, listen).start().await;
        let haproxy = Haproxy::before(gateway.address(), how, options).await;
        let mut client = haproxy.connect_from(browser).await;
        assert_eq!(client_of(&mut client, &made_up).await, "127.0.0.9", "{how} {options}");
        let mut client = haproxy.connect_from(browser).await;
        client.upgrade("/sign_in", &made_up).await;
        assert_eq!(client.answer().await.status, 101, "{how} {options}");
        let leg = upstream.leg().await;
        assert_eq!(header(&leg.head, "x-client").as_deref(), Some("127.0.0.9"), "{how} {options}");
    }
}

#[tokio::test]
async fn proxies_that_are_none_are_told() {
    let upstream = Upstream::start().await;
    let wrong = gateway(&upstream, "proxies = [\"10.0.0.0/8\", \"balancer\"]\nproxy_header = \"a b\"");
    let problems = wrong.problems();
    assert!(problems.contains("expected an address or a network such as \"10.0.0.0/8\""), "{problems}");
    assert!(problems.contains("not a header's name: \"a b\""), "{problems}");
    for alone in ["proxy_protocol = true", "proxy_header = \"x-real-ip\""] {
        let problems = gateway(&upstream, alone).problems();
        assert!(problems.contains("no proxy would be believed: name them in `listen.proxies`"), "{problems}");
    }
}
