//! A browser opens a WebSocket: what is refused, what is answered, and what the upstream gets to see.

use crate::support::raw::{WEBSOCKET_ACCEPT, from_browser};
use crate::support::upstream::Act;
use crate::support::{FUNCTION, Gateway, KEY, TOKEN, Upstream};

#[tokio::test]
async fn a_malformed_upgrade_is_told_what_is_wrong_with_it() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let check = async |method: &str, headers: &[(&str, &str)], code: &str| {
        let mut client = gateway.connect().await;
        if method == "GET" {
            client.upgrade("/sign_in", headers).await;
        } else {
            let own = [
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ];
            client.request(method, "/sign_in", &own, b"").await;
        }
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{method} {headers:?}");
        assert!(answer.json("detail").ends_with('.'), "a sentence says what is wrong");
        assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("*"));
        assert!(!client.buf.starts_with(b"HTTP"), "one answer");
    };
    check("POST", &[], "websocket.method").await;
    check("GET", &[("Connection", "keep-alive")], "websocket.connection").await;
    check("GET", &[("Upgrade", "")], "websocket.connection").await;
    check("GET", &[("Sec-WebSocket-Version", "8")], "websocket.version").await;
    check("GET", &[("Sec-WebSocket-Version", "")], "websocket.version").await;
    check("GET", &[("Sec-WebSocket-Key", "")], "websocket.key").await;
    check("GET", &[("Sec-WebSocket-Key", "c2hvcnQ=")], "websocket.key").await;
    check("GET", &[("Sec-WebSocket-Key", "not base64 at all")], "websocket.key").await;
    check("GET", &[("Content-Length", "5")], "websocket.body").await;
    check("GET", &[("Sec-WebSocket-Protocol", "a b")], "websocket.subprotocol_malformed").await;
    check("GET", &[("Sec-WebSocket-Protocol", "authorization-bearer.x")], "websocket.subprotocol_missing")
        .await;
    assert_eq!(upstream.n_connections(), 0, "none of them reached the upstream");
}

#[tokio::test]
async fn the_upstream_sees_what_nvcf_wants_to_see() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).upstream("function_version_id = \"v7\"").start().await;
    let mut client = gateway.connect().await;
    let query = "peer_id=peer-7&version=2&x=%2f%20+&y";
    client
        .upgrade(
            &format!("/api/sessions/9/sign_in?{query}"),
            &[("User-Agent", "browser"), ("Origin", "https://app.example")],
        )
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("sec-websocket-accept").as_deref(), Some(WEBSOCKET_ACCEPT));
    assert_eq!(answer.header("upgrade").as_deref(), Some("websocket"));

    let leg = upstream.leg().await;
    assert_eq!(
        leg.head.lines().next(),
        Some(format!("GET /sign_in?{query} HTTP/1.1").as_str()),
        "the query byte for byte"
    );
    let check = |name: &str, value: Option<&str>| assert_eq!(leg.header(name).as_deref(), value, "{name}");
    check("host", Some(&upstream.address.to_string()));
    check("authorization", Some(&format!("Bearer {KEY}")));
    check("function-id", Some(FUNCTION));
    check("nvcf-function-id", Some(FUNCTION));
    check("function-version-id", Some("v7"));
    check("nvcf-reqid", None);
    check("user-agent", Some("browser"));
    check("upgrade", Some("websocket"));
    check("sec-websocket-version", Some("13"));
    assert_ne!(
        leg.header("sec-websocket-key").as_deref(),
        Some("dGhlIHNhbXBsZSBub25jZQ=="),
        "a handshake of its own"
    );
}

#[tokio::test]
async fn nothing_that_a_browser_may_not_say_reaches_the_upstream() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let smuggled = [
        ("Authorization", "Bearer smuggled"),
        ("authorization", "smuggled"),
        ("Proxy-Authorization", "smuggled"),
        ("Cookie", "nvcf-request-id=smuggled"),
        ("nvcf-reqid", "smuggled"),
        ("NVCF-Reqid", "smuggled"),
        ("nvcf-request-id", "smuggled"),
        ("nvcf-anything", "smuggled"),
        ("X-NVCF-ABSORB", "smuggled"),
        ("x-nvcf-reconnect-window-secs", "smuggled"),
        ("Function-ID", "smuggled"),
        ("function-version-id", "smuggled"),
        ("nvcf-function-id", "smuggled"),
        ("function-anything", "smuggled"),
        ("Keep-Alive", "smuggled"),
        ("TE", "smuggled"),
        ("Sec-WebSocket-Extensions", "smuggled"),
        ("X-Nominated", "smuggled"),
        // To servers that make variables of headers, an underscore is a dash.
        ("Proxy_Authorization", "smuggled"),
        ("Nvcf_Reqid", "smuggled"),
        ("X_NVCF_Absorb", "smuggled"),
        ("Function_ID", "smuggled"),
        ("Transfer_Encoding", "smuggled"),
        ("Content_Length", "smuggled"),
        ("Sec_WebSocket_Extensions", "smuggled"),
        ("X_Nominated", "smuggled"),
    ];
    for (name, value) in smuggled {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[(name, value), ("Connection", "Upgrade, X-Nominated")]).await;
        assert_eq!(client.answer().await.status, 101, "{name}");
        let head = upstream.leg().await.head;
        assert!(!head.contains("smuggled"), "{name}: {head}");
    }
    let entries = [
        "authorization.smuggled",
        "Authorization.smuggled",
        "authorization-bearer.smuggled",
        "Authorization-Bearer.smuggled",
        "nvcf-reqid.smuggled",
        "NVCF-REQID.smuggled",
        "function-version-id.smuggled",
        "x-nvcf-absorb.smuggled",
        "nvcf-request-id.smuggled",
        "cookie.smuggled",
        "function-name.smuggled",
    ];
    for entry in entries {
        // Spaces that NVCF would trim differently, and a second header line.
        for (first, second) in
            [(format!("chat, {entry}"), ""), (format!("chat,\t  {entry}"), ""), ("chat".into(), entry)]
        {
            let mut client = gateway.connect().await;
            client
                .upgrade(
                    "/sign_in",
                    &[("Sec-WebSocket-Protocol", &first), ("sec-websocket-protocol", second)],
                )
                .await;
            let answer = client.answer().await;
            assert_eq!(answer.status, 101, "{entry}");
            assert_eq!(answer.all("sec-websocket-protocol"), ["chat"], "{entry}");
            let leg = upstream.leg().await;
            assert_eq!(leg.header("sec-websocket-protocol").as_deref(), Some("chat"), "{entry}");
            assert!(!leg.head.contains("smuggled"), "{entry}: {}", leg.head);
        }
    }
    // The same over plain HTTP.
    let mirror = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&mirror).start().await;
    for (name, value) in smuggled {
        let seen = gateway.get("/page", &[(name, value), ("Connection", "keep-alive, X-Nominated")]).await;
        assert_eq!(seen.status, 200, "{name}");
        assert!(!seen.text().contains("smuggled"), "{name}: {}", seen.text());
    }
}

#[tokio::test]
async fn a_handshake_upstream_announces_no_body() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    let headers = [("Expect", "100-continue"), ("Content-Length", "0"), ("X_Mine", "kept")];
    client.upgrade("/sign_in", &headers).await;
    assert_eq!(client.answer().await.status, 101);
    let leg = upstream.leg().await;
    assert_eq!((leg.header("expect"), leg.header("content-length")), (None, None));
    assert_eq!(leg.header("x_mine").as_deref(), Some("kept"));
}

#[tokio::test]
async fn what_a_101_says_for_its_connection_alone_stays_there() {
    let lines = "Connection: X-Nominated, \u{e9}\r\nX-Nominated: 1\r\nProxy-Authenticate: Basic\r\nTE: 1\r\nTrailer: 1\r\nX-Mine: kept\r\n";
    let upstream = Upstream::that(Act::Accept(lines.into())).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("x-mine").as_deref()), (101, Some("kept")));
    for name in ["x-nominated", "proxy-authenticate", "te", "trailer"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn one_harmless_subprotocol_is_answered() {
    let check = async |chosen: &str, offered: &str, answered: Option<&str>| {
        let lines =
            if chosen.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {chosen}\r\n") };
        let upstream = Upstream::that(Act::Accept(lines)).await;
        let gateway = Gateway::in_front_of(&upstream).authenticated().start().await;
        let mut client = gateway.connect().await;
        client
            .upgrade(
                "/sign_in",
                &[("Sec-WebSocket-Protocol", offered), ("Authorization", &format!("Bearer {TOKEN}"))],
            )
            .await;
        let answer = client.answer().await;
        match answered {
            Some(answered) => {
                assert_eq!(answer.status, 101, "{offered}: {}", answer.text());
                assert_eq!(answer.all("sec-websocket-protocol"), [answered], "{offered}");
            }
            None => {
                assert_eq!((answer.status, answer.code().as_str()), (502, "upstream.garbage"), "{offered}")
            }
        }
    };
    let bearer = format!("authorization-bearer.{TOKEN}");
    check("", &format!("{bearer}, streamgate.v1"), Some("streamgate.v1")).await;
    check("", &format!("streamgate.v1, x-nv-sessionid.1-2, {bearer}"), Some("x-nv-sessionid.1-2")).await;
    check("chat", &format!("streamgate.v1, chat, {bearer}"), Some("chat")).await;
    check("other", "streamgate.v1", None).await;
    check(&bearer, &format!("streamgate.v1, {bearer}"), None).await;
}

#[tokio::test]
async fn a_browser_chooses_among_the_functions_that_are_its_own() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream)
        .upstream("functions = [\"other\"]\nfunction_version_id = \"v7\"")
        .authenticated()
        .start()
        .await;
    let mut ask = async |token: &str, entry: &str| {
        let mut client = gateway.connect().await;
        let offer = format!("streamgate.v1{}{entry}", if entry.is_empty() { "" } else { ", " });
        client
            .upgrade(
                "/sign_in",
                &[("Authorization", &format!("Bearer {token}")), ("Sec-WebSocket-Protocol", &offer)],
            )
            .await;
        let answer = client.answer().await;
        match answer.status {
            101 => {
                let leg = upstream.leg().await;
                assert_eq!(leg.header("function-id"), leg.header("nvcf-function-id"));
                (101, leg.header("function-id").unwrap_or_default(), leg.header("function-version-id"))
            }
            status => (status, answer.code(), None),
        }
    };
    assert_eq!(ask(TOKEN, "").await, (101, FUNCTION.into(), Some("v7".into())));
    assert_eq!(
        ask(TOKEN, "function-id.other").await,
        (101, "other".into(), None),
        "a version belongs to its function"
    );
    assert_eq!(ask(TOKEN, "nvcf-function-id.other").await, (101, "other".into(), None));
    assert_eq!(ask(TOKEN, "function-id.only-of-bob").await, (403, "function.forbidden".into(), None));
    assert_eq!(ask("token-of-bob", "function-id.only-of-bob").await, (101, "only-of-bob".into(), None));
    assert_eq!(ask("token-of-bob", "").await, (101, "only-of-bob".into(), None));
    assert_eq!(
        ask("token-of-bob", &format!("function-id.{FUNCTION}")).await,
        (403, "function.forbidden".into(), None)
    );
    assert_eq!(
        ask(TOKEN, "function-id.other, nvcf-function-id.other").await,
        (400, "function.ambiguous".into(), None)
    );
}

#[tokio::test]
async fn nothing_of_a_browser_goes_on_before_the_upstream_has_answered() {
    let upstream = Upstream::that(Act::Silence).await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    let request = "GET /sign_in HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let smuggled = "POST /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(format!("{request}{smuggled}").as_bytes()).await;
    while upstream.heads().is_empty() {
        tokio::task::yield_now().await;
    }
    client.send(smuggled.as_bytes()).await;
    assert!(client.is_silent().await);
    assert_eq!(upstream.heads().len(), 1, "CVE-2026-2833: {:?}", upstream.heads());

    // What was said early arrives once the upstream has answered, and first.
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).start().await;
    let mut client = gateway.connect().await;
    client.send(&[request.as_bytes(), &from_browser(1, b"early")].concat()).await;
    assert_eq!(client.answer().await.status, 101);
    client.send(&from_browser(1, b"later")).await;
    let mut leg = upstream.leg().await;
    assert_eq!(leg.frame().await.expect("a frame").payload, b"early");
    assert_eq!(leg.frame().await.expect("a frame").payload, b"later");
}

#[tokio::test]
async fn a_page_of_another_origin_opens_nothing() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).listen("origins = [\"https://app.example\"]").start().await;
    let ask = async |origin: &str| {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[("Origin", origin)]).await;
        client.answer().await
    };
    assert_eq!(ask("https://app.example").await.status, 101);
    assert_eq!(ask("").await.status, 101, "a client without an origin is no browser");
    let n = upstream.n_connections();
    for origin in [
        "https://evil.example",
        "null",
        "https://app.example.evil.example",
        "http://app.example",
        "https://app.example:444",
    ] {
        let answer = ask(origin).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "origin.refused"), "{origin}");
    }
    assert_eq!(upstream.n_connections(), n, "no upstream was asked");
    assert_eq!(gateway.metric("streamgate_rejections_total", &[("code", "origin.refused")]), 5.0);
}

#[tokio::test]
async fn who_is_not_known_is_told_how_to_be() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::in_front_of(&upstream).authenticated().start().await;
    for (headers, code) in
        [(vec![], "auth.missing_token"), (vec![("Authorization", "Bearer guess")], "auth.unknown_token")]
    {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &headers).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (401, code));
        assert!(
            answer
                .header("www-authenticate")
                .expect("a challenge")
                .starts_with("Bearer realm=\"streamgate\"")
        );
        assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("*"));
    }
    assert_eq!(upstream.n_connections(), 0);
}

#[tokio::test]
async fn a_refusal_can_be_a_close_frame_that_scripts_can_read() {
    let upstream =
        Upstream::that(Act::Answer("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone".into())).await;
    let by_wish = Gateway::in_front_of(&upstream).authenticated().start().await;
    let by_setting = Gateway::in_front_of(&upstream).with("[sessions]\nrefusal = \"close\"").start().await;
    let check = async |gateway: &Gateway, offer: &str, code: u16, reason: &str| {
        let mut client = gateway.connect().await;
        client.upgrade("/sign_in", &[("Sec-WebSocket-Protocol", offer)]).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 101);
        assert_eq!(answer.all("sec-websocket-protocol"), ["streamgate.v1"]);
        let frame = client.frame().await.expect("a Close frame");
        assert_eq!(frame.opcode, 8);
        assert_eq!(u16::from_be_bytes([frame.payload[0], frame.payload[1]]), code);
        let text = String::from_utf8_lossy(&frame.payload[2..]).into_owned();
        assert!(text.starts_with(reason) && frame.payload.len() <= 125, "{text}");
        assert!(client.frame().await.is_none(), "and then the connection ends");
    };
    check(&by_wish, "streamgate.v1, streamgate.close-on-refusal", 3000, "auth.missing_token: ").await;
    check(
        &by_wish,
        &format!("streamgate.v1, streamgate.close-on-refusal, authorization-bearer.{TOKEN}"),
        3004,
        "function.unknown: ",
    )
    .await;
    check(&by_setting, "streamgate.v1", 3004, "function.unknown: ").await;
}
