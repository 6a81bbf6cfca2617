//! Sign-in and tokens with a real OpenID provider: the flow, its keys and their rotation, and a provider that misbehaves.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use streamgate::clock::Clock;

use crate::support::gateway::Builder;
use crate::support::oidc::{AUDIENCE, Browser, CLIENT_SECRET, Fetches, ORIGIN, Provider};
use crate::support::redis::Redis;
use crate::support::upstream::Act;
use crate::support::{Answer, Client, Gateway, TOKEN, Upstream, log, soon};

/// What keeps idle sessions open while a test lets hours pass.
const PATIENT: &str = "[sessions]\nkeepalive = { interval = \"10h\", timeout = \"20h\" }";

/// A route for everybody, beside the one with the chain.
const OPEN: &str = "[[route]]\npath = \"/open/**\"\nchain = [\"cors\"]";

/// Tells the upstream who it is.
const INJECT: &str = "{ plugin = \"inject-headers\", set = { x-user = \"{principal.id}\", x-tenant = \"{principal.tenant}\" } }";

/// How many strangers come at once.
const CROWD: usize = 200;

/// A chain with `oidc-login`; `more` are further settings.
fn login_chain(provider: &Provider, more: &str) -> String {
    format!(
        "\"cors\", {{ plugin = \"oidc-login\", issuer = {:?}, redirect_uri = \"{ORIGIN}/oidc/callback\", \
         cookie_key = \"env:OIDC_KEY\", claims = [\"tenant\"], {more} }}, {INJECT}",
        provider.issuer
    )
}

/// The settings of the client that has a secret.
const CONFIDENTIAL: &str = "client_id = \"confidential\", client_secret = \"env:OIDC_SECRET\"";

/// A gateway where people sign in.
fn with_login(upstream: &Upstream, chain: &str) -> Builder {
    Gateway::in_front_of(upstream)
        .chain(chain)
        .env("OIDC_KEY", "a key of at least 32 characters for cookies")
        .env("OIDC_SECRET", CLIENT_SECRET)
}

/// A step with `jwt-auth` by discovery.
fn jwt_step(provider: &Provider) -> String {
    format!("{{ plugin = \"jwt-auth\", discover = {:?}, audience = [\"{AUDIENCE}\"] }}", provider.issuer)
}

/// A gateway that takes the provider's access tokens.
fn with_tokens(upstream: &Upstream, provider: &Provider) -> Builder {
    Gateway::in_front_of(upstream).with(OPEN).chain(&format!("\"cors\", {}, {INJECT}", jwt_step(provider)))
}

async fn ask(gateway: &Gateway, token: &str) -> Answer {
    gateway.get("/x", &[("Authorization", &format!("Bearer {token}"))]).await
}

/// The status and the code of an error; of other answers, who the upstream was told it is.
fn told(answer: &Answer) -> (u16, String) {
    match answer.status {
        200 => (200, user(answer)),
        status => (status, answer.code()),
    }
}

/// Whom a mirroring upstream was told.
fn user(answer: &Answer) -> String {
    crate::support::upstream::header(&answer.text(), "x-user").unwrap_or_default()
}

/// A token with other parts; what is signed is then no longer what was signed.
fn forged(token: &str, change: impl FnOnce(&mut Value, &mut Value)) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let read = |part: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON")
    };
    let (mut header, mut claims) = (read(parts[0]), read(parts[1]));
    change(&mut header, &mut claims);
    let write = |it: &Value| URL_SAFE_NO_PAD.encode(it.to_string());
    format!("{}.{}.{}", write(&header), write(&claims), parts[2])
}

/// What a crowd is told that comes at once, each with the token of its turn.
async fn crowd(gateway: &Gateway, token: impl Fn(usize) -> String) -> HashSet<(u16, String)> {
    let asked = (0..CROWD).map(|idx| {
        let token = token(idx);
        async move { told(&ask(gateway, &token).await) }
    });
    futures_util::future::join_all(asked).await.into_iter().collect()
}

/// Tokens that name keys which nobody has, each another.
fn unknown(token: &str) -> impl Fn(usize) -> String {
    let token = token.to_owned();
    move |idx| forged(&token, |header, _| header["kid"] = json!(format!("unknown-{idx}")))
}

/// One answer for all.
fn all(status: u16, code: &str) -> HashSet<(u16, String)> {
    HashSet::from([(status, code.to_owned())])
}

#[tokio::test]
async fn somebody_who_signs_in_at_the_provider_is_known_upstream_until_the_logout() {
    let (provider, clock) = (Provider::start().await, Clock::paused());
    // Each plain request has an upstream connection of its own.
    let mut upstream =
        Upstream::that(Act::InTurn(vec![Act::Mirror, Act::Mirror, Act::Accept(String::new()), Act::Mirror]))
            .await;
    let chain = login_chain(&provider, CONFIDENTIAL);
    let gateway = with_login(&upstream, &chain).with(PATIENT).on(&clock).start().await;
    provider.meets(json!({ "sub": "ada", "tenant": "blue" })).await;
    let mut browser = Browser::new(gateway.address());

    // Without a session: a script is told, and not sent anywhere.
    let answer = browser.fetch("/data").await;
    assert_eq!(told(&answer), (401, "oidc.login_needed".into()));
    assert_eq!((answer.header("location"), answer.all("set-cookie").len()), (None, 0));
    let (_, answer) = browser.websocket("/sign_in").await;
    assert_eq!(told(&answer), (401, "oidc.login_needed".into()));

    // The way through the provider, and back to where it began.
    let page = browser.open(&format!("{ORIGIN}/room?seat=7&side=left")).await;
    assert_eq!(told(&page.answer), (200, "ada".into()), "{}", page.way());
    assert_eq!(page.url().as_str(), format!("{ORIGIN}/room?seat=7&side=left"));
    let callback = page.trail[page.trail.len() - 2].clone();
    assert_eq!((page.trail[1].path(), callback.path()), ("/auth", "/oidc/callback"), "{}", page.way());
    assert!(page.trail[1].as_str().starts_with(&provider.issuer));
    for part in ["response_type=code", "code_challenge_method=S256", "code_challenge=", "nonce=", "state="] {
        assert!(page.trail[1].query().is_some_and(|it| it.contains(part)), "{part}: {}", page.trail[1]);
    }
    let session = browser.cookies("__Host-");
    assert_eq!(session.len(), 1, "the attempt's cookie is gone: {session:?}");
    assert!(session[0].is_http_only && session[0].same_site == "Lax", "{session:?}");
    assert!(!session[0].value.contains("ada"), "{session:?}");

    // With it: a script and a WebSocket are let in, and the upstream knows who it is, but not by the cookie.
    assert_eq!(told(&browser.fetch("/data").await), (200, "ada".into()));
    let (mut socket, answer) = browser.websocket("/sign_in").await;
    assert_eq!(answer.status, 101, "{}", answer.text());
    let mut leg = upstream.leg().await;
    assert_eq!(leg.header("x-user").as_deref(), Some("ada"));
    assert_eq!(leg.header("x-tenant").as_deref(), Some("blue"));
    assert_eq!(leg.header("cookie"), None);
    leg.send(1, b"hello").await;
    assert_eq!(socket.frame().await.expect("a message").payload, b"hello");
    let ticked = [("decision", "continue"), ("phase", "session_tick"), ("plugin", "oidc-login")];
    clock.advance(Duration::from_secs(31));
    gateway.until_metric("streamgate_plugin_decisions_total", &ticked, 1.0);

    // The logout ends the session here, in all copies of the browser, and at the provider.
    let mut copy = browser.clone();
    let page = browser.follow("/oidc/logout").await;
    assert!(page.url().as_str().starts_with(&provider.issuer), "{}", page.way());
    let page = browser.submit(&page).await;
    assert!(page.answer.status < 400, "{} {}", page.answer.status, page.answer.text());
    assert!(browser.cookies("__Host-").is_empty());
    assert_eq!(told(&browser.fetch("/data").await), (401, "oidc.login_needed".into()));
    assert_eq!(told(&copy.fetch("/data").await), (401, "oidc.signed_out".into()));
    assert_eq!(told(&copy.websocket("/sign_in").await.1), (401, "oidc.signed_out".into()));
    clock.advance(Duration::from_secs(31));
    let close = socket.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3000u16.to_be_bytes()[..]));
    assert!(close.payload[2..].starts_with(b"oidc.signed_out"), "{close:?}");
    assert_eq!(leg.frame().await.expect("the upstream is told").opcode, 8);

    // At the provider there is nobody signed in either, so whoever is met now is asked again.
    provider.meets(json!({ "sub": "bob" })).await;
    let page = browser.open(&format!("{ORIGIN}/")).await;
    assert_eq!(told(&page.answer), (200, "bob".into()), "{}", page.way());

    let of_answer = |name: &str| {
        let mut pairs = callback.query_pairs();
        pairs.find(|(it, _)| it == name).map(|(_, value)| value.into_owned()).expect("the answer has it")
    };
    let session = copy.cookies("__Host-")[0].value.clone();
    for secret in [CLIENT_SECRET.into(), of_answer("code"), of_answer("state"), session] {
        assert!(!log::text().contains(&secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn each_kind_of_client_signs_people_in_and_a_wrong_secret_does_not() {
    let provider = Provider::start().await;
    let upstream = Upstream::that(Act::Mirror).await;
    for (client, expected) in [
        (CONFIDENTIAL, (200, "ada")),
        (
            "client_id = \"posting\", client_secret = \"env:OIDC_SECRET\", client_auth = \"client_secret_post\"",
            (200, "ada"),
        ),
        ("client_id = \"public\", client_auth = \"none\"", (200, "ada")),
        ("client_id = \"confidential\", client_secret = \"env:OIDC_KEY\"", (502, "oidc.provider_refused")),
        ("client_id = \"confidential\", client_auth = \"none\"", (502, "oidc.provider_refused")),
    ] {
        let gateway = with_login(&upstream, &login_chain(&provider, client)).start().await;
        let page = Browser::new(gateway.address()).open(&format!("{ORIGIN}/")).await;
        assert_eq!(told(&page.answer), (expected.0, expected.1.into()), "{client}: {}", page.way());
    }
}

#[tokio::test]
async fn an_answer_of_the_provider_is_good_once_and_only_in_the_browser_that_asked() {
    let provider = Provider::start().await;
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = with_login(&upstream, &login_chain(&provider, CONFIDENTIAL)).start().await;
    let (mut ada, mut eve) = (Browser::new(gateway.address()), Browser::new(gateway.address()));
    let back = |it: &url::Url| it.path() == "/oidc/callback";

    let answer = ada.open_until(&format!("{ORIGIN}/"), back).await.url().clone();
    assert!(answer.query().is_some_and(|it| it.contains("code=")), "{answer}");
    // Eve has begun a sign-in of her own, and is given another's answer.
    eve.open_until(&format!("{ORIGIN}/"), back).await;
    assert_eq!(told(&eve.open(answer.as_str()).await.answer), (400, "oidc.attempt_unknown".into()));
    let before = ada.clone();
    assert_eq!(told(&ada.open(answer.as_str()).await.answer), (200, "ada".into()));
    let mut replaying = before;
    assert_eq!(told(&replaying.open(answer.as_str()).await.answer), (400, "oidc.attempt_unknown".into()));

    provider.meets(json!({ "deny": true })).await;
    let page = Browser::new(gateway.address()).open(&format!("{ORIGIN}/")).await;
    assert_eq!(told(&page.answer), (403, "oidc.denied".into()));
    assert!(!page.answer.text().contains("<b>"), "the provider's text is not ours: {}", page.answer.text());
}

#[tokio::test]
async fn while_nobody_can_say_who_has_signed_out_requests_pass_or_are_refused() {
    let (provider, upstream) = (Provider::start().await, Upstream::that(Act::Mirror).await);
    let redis = Redis::start().await;
    let store = format!("[plugins]\nstore = \"redis://{}\"", redis.address);
    let start = async |more: &str| {
        let chain = login_chain(&provider, &format!("{CONFIDENTIAL}, provider_logout = false{more}"));
        let gateway = with_login(&upstream, &chain).with(&store).start().await;
        let mut browser = Browser::new(gateway.address());
        assert_eq!(told(&browser.open(&format!("{ORIGIN}/")).await.answer), (200, "ada".into()));
        (gateway, browser)
    };
    let (_strict, mut of_strict) = start(", on_unavailable = \"reject\"").await;
    let (_open, mut of_open) = start("").await;
    let address = redis.kill().await;
    let away = (503, "oidc.store_away".to_owned());
    assert_eq!(told(&of_strict.fetch("/data").await), away);
    assert_eq!(told(&of_strict.fetch("/oidc/logout").await), away);
    assert_eq!(told(&of_open.fetch("/data").await), (200, "ada".into()));
    let copy = of_open.clone();
    assert_eq!(of_open.fetch("/oidc/logout").await.status, 200);
    assert!(of_open.cookies("__Host-").is_empty(), "this browser has signed out");
    assert_eq!(log::lines_with("A sign-out could not be noted").len(), 2);

    let _redis = Redis::at(address).await.expect("its port is still free");
    let back = async {
        while told(&of_strict.fetch("/data").await) == away {
            tokio::task::yield_now().await;
        }
    };
    soon("the store", back).await;
    assert_eq!(told(&{ copy }.fetch("/data").await), (200, "ada".into()), "nobody has noted it");
    let mut copy = of_strict.clone();
    assert_eq!(of_strict.fetch("/oidc/logout").await.status, 200);
    assert_eq!(told(&copy.fetch("/data").await), (401, "oidc.signed_out".into()));
}

#[tokio::test]
async fn without_the_provider_nobody_signs_in_and_whoever_has_goes_on() {
    let (provider, clock) = (Provider::start().await, Clock::paused());
    let upstream = Upstream::that(Act::Mirror).await;
    let chain = login_chain(&provider, CONFIDENTIAL);
    let gateway = with_login(&upstream, &chain).on(&clock).start().await;
    let mut ada = Browser::new(gateway.address());
    assert_eq!(told(&ada.open(&format!("{ORIGIN}/")).await.answer), (200, "ada".into()));

    clock.advance(Duration::from_secs(601)); // the documents are not fresh any more
    for mode in ["down", "error", "huge", "empty"] {
        clock.advance(Duration::from_secs(6)); // the failure before is long ago
        provider.answers("jwks", mode).await;
        provider.answers("discovery", mode).await;
        assert_eq!(told(&ada.fetch("/data").await), (200, "ada".into()), "{mode}");
        // What was known of the provider serves on, unless it says that it has no keys any more.
        let page = Browser::new(gateway.address()).open(&format!("{ORIGIN}/")).await;
        let expected = if mode == "empty" { (502, "oidc.token_invalid") } else { (200, "ada") };
        assert_eq!(told(&page.answer), (expected.0, expected.1.into()), "{mode}: {}", page.way());

        // A gateway that knows nothing of it can begin none.
        let late = with_login(&upstream, &chain).on(&clock).start().await;
        let mut bob = Browser::new(late.address());
        let page = bob.open(&format!("{ORIGIN}/")).await;
        assert_eq!(told(&page.answer), (503, "oidc.provider_away".into()), "{mode}");
        assert_eq!(told(&bob.fetch("/data").await), (401, "oidc.login_needed".into()), "{mode}");
    }
}

#[tokio::test]
async fn a_token_of_the_provider_is_taken_and_every_wrong_one_is_told_what_it_is() {
    let (provider, clock) = (Provider::start().await, Clock::paused());
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = with_tokens(&upstream, &provider).on(&clock).start().await;

    // As the token endpoint makes them: its subject is the client.
    let issued = provider.issued_token().await;
    assert_eq!(told(&ask(&gateway, &issued).await), (200, "confidential".into()));
    let good = provider.token("", json!({ "sub": "ada", "tenant": "blue" })).await;
    let answer = ask(&gateway, &good).await;
    assert_eq!(told(&answer), (200, "ada".into()));
    assert_eq!(crate::support::upstream::header(&answer.text(), "x-tenant").as_deref(), Some("blue"));
    assert!(!answer.text().contains(&good), "the token stays here");
    let elliptic = provider.token("alg=ES256", json!({ "sub": "eve" })).await;
    assert_eq!(told(&ask(&gateway, &elliptic).await), (200, "eve".into()));
    let several = json!({ "sub": "ada", "aud": ["urn:other", AUDIENCE] });
    assert_eq!(told(&ask(&gateway, &provider.token("", several).await).await), (200, "ada".into()));

    let answer = gateway.get("/x", &[]).await;
    assert_eq!(told(&answer), (401, "auth.missing_token".into()));
    assert_eq!(answer.header("www-authenticate").as_deref(), Some("Bearer realm=\"streamgate\""));

    let made = async |query: &str, claims: Value| provider.token(query, claims).await;
    let unsigned = |token: &str| {
        let token = forged(token, |header, _| header["alg"] = json!("none"));
        format!("{}.", token.rsplit_once('.').expect("it has three parts").0)
    };
    let key = provider.jwks().await["keys"][0].clone();
    for (what, token, code, reason) in [
        ("for others", made("", json!({ "aud": "urn:other" })).await, "auth.unknown_token", "audience"),
        ("for nobody", made("", json!({ "aud": null })).await, "auth.unknown_token", "audience"),
        (
            "of another",
            made("", json!({ "iss": "https://evil.example" })).await,
            "auth.unknown_token",
            "issuer",
        ),
        ("expired", made("expires_in=-31", json!({ "sub": "ada" })).await, "auth.expired_token", "expired"),
        ("without end", made("", json!({ "exp": null })).await, "auth.unknown_token", "claim"),
        (
            "of tomorrow",
            made("", json!({ "nbf": clock.unix() + 86_400 })).await,
            "auth.unknown_token",
            "not_yet_valid",
        ),
        ("of no key", made("key=unpublished", json!({})).await, "auth.unknown_token", "unknown_key"),
        ("of nobody", made("", json!({ "sub": null })).await, "auth.unknown_token", "principal"),
        ("unsigned", unsigned(&good), "auth.unknown_token", "malformed"),
        (
            "unsigned, with a signature",
            forged(&good, |header, _| header["alg"] = json!("none")),
            "auth.unknown_token",
            "algorithm",
        ),
        (
            "unsigned, in other letters",
            forged(&good, |header, _| header["alg"] = json!("nOnE")),
            "auth.unknown_token",
            "algorithm",
        ),
        ("signed by the public key", signed_by_public_key(&good, &key), "auth.unknown_token", "algorithm"),
        (
            "altered",
            forged(&good, |_, claims| claims["sub"] = json!("root")),
            "auth.unknown_token",
            "signature",
        ),
        (
            "of another key of the provider",
            forged(&good, |header, _| header["kid"] = json!("es256-1")),
            "auth.unknown_token",
            "algorithm",
        ),
        ("no token", "a.b".to_owned(), "auth.unknown_token", "malformed"),
    ] {
        let refused = || gateway.metric("streamgate_plugin_jwt_auth_rejections_total", &[("reason", reason)]);
        let before = refused();
        let answer = ask(&gateway, &token).await;
        assert_eq!(told(&answer), (401, code.into()), "{what}");
        assert_eq!(refused() - before, 1.0, "{what} is counted as {reason}");
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        assert!(challenge.ends_with("error=\"invalid_token\""), "{what}: {challenge}");
        let signature = token.rsplit('.').next().unwrap_or_default();
        assert!(signature.len() < 9 || !log::text().contains(signature), "{what}: a token is in the log");
    }
    // Ours was the second fetch.
    assert_eq!(provider.fetches().await, Fetches { discovery: 1, jwks: 2 });
}

/// The token, signed once more by HS256 with the provider's public key as the secret (RFC 8725, 2.1).
fn signed_by_public_key(token: &str, key: &Value) -> String {
    let token = forged(token, |header, _| header["alg"] = json!("HS256"));
    let (text, _) = token.rsplit_once('.').expect("it has three parts");
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.to_string().as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&secret, text.as_bytes())))
}

#[tokio::test]
async fn after_a_rotation_new_tokens_cost_one_fetch_and_those_of_dropped_keys_are_refused_in_time() {
    let (provider, clock) = (Provider::start().await, Clock::paused());
    let mut upstream = Upstream::that(Act::InTurn(vec![Act::Accept(String::new()), Act::Mirror])).await;
    let gateway = with_tokens(&upstream, &provider).with(PATIENT).on(&clock).start().await;
    let first = provider.token("expires_in=7200", json!({ "sub": "ada" })).await;
    let mut socket = gateway.connect().await;
    let entry = format!("streamgate.v1, authorization-bearer.{first}");
    socket.upgrade("/sign_in", &[("Sec-WebSocket-Protocol", &entry)]).await;
    assert_eq!(socket.answer().await.status, 101);
    let mut leg = upstream.leg().await;
    assert_eq!(leg.header("x-user").as_deref(), Some("ada"));
    assert!(!leg.head.contains(&first), "the token stays here");
    assert_eq!(provider.fetches().await, Fetches { discovery: 1, jwks: 1 });
    let ticks = |n: f64| {
        let ticked = [("decision", "continue"), ("phase", "session_tick"), ("plugin", "jwt-auth")];
        gateway.until_metric("streamgate_plugin_decisions_total", &ticked, n);
    };

    // New keys, the ones before them are still published.
    provider.rotate(true).await;
    let second = provider.token("expires_in=7200", json!({ "sub": "bob" })).await;
    clock.advance(Duration::from_secs(30));
    ticks(1.0);
    let tokens = [first.clone(), second.clone()];
    let seen = crowd(&gateway, |idx| tokens[idx % 2].clone()).await;
    assert_eq!(seen, HashSet::from([(200, "ada".to_owned()), (200, "bob".to_owned())]));
    assert_eq!(provider.fetches().await.jwks, 2, "one fetch for all");

    // New keys again, and all others are dropped: a leak, for instance.
    provider.rotate(false).await;
    let third = provider.token("expires_in=7200", json!({ "sub": "eve" })).await;
    assert_eq!(
        told(&ask(&gateway, &second).await),
        (200, "bob".into()),
        "what was fetched is good for a while"
    );
    clock.advance(Duration::from_secs(600));
    ticks(2.0);
    let seen = crowd(&gateway, |idx| if idx % 2 == 0 { first.clone() } else { third.clone() }).await;
    // Who finds keys that are no longer fresh while somebody fetches takes them (RFC 5861, 3).
    let expected =
        HashSet::from([(401, "auth.unknown_token".to_owned()), (200, "eve".into()), (200, "ada".into())]);
    assert!(seen.is_subset(&expected) && seen.contains(&(200, "eve".into())), "{seen:?}");
    for dropped in [&first, &second] {
        assert_eq!(told(&ask(&gateway, dropped).await), (401, "auth.unknown_token".into()));
    }
    assert_eq!(told(&ask(&gateway, &third).await), (200, "eve".into()));
    assert_eq!(provider.fetches().await, Fetches { discovery: 2, jwks: 3 });

    // The session that was open before all this goes on, until its token has expired.
    leg.send(1, b"still here").await;
    assert_eq!(socket.frame().await.expect("a message").payload, b"still here");
    clock.advance(Duration::from_secs(7200));
    let close = socket.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3000u16.to_be_bytes()[..]));
    assert!(close.payload[2..].starts_with(b"auth.expired_token"), "{close:?}");
}

#[tokio::test]
async fn a_crowd_with_unknown_keys_does_not_become_a_crowd_at_the_provider() {
    let (provider, clock) = (Provider::start().await, Clock::paused());
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = with_tokens(&upstream, &provider).env("STREAMGATE_WORKERS", "2").on(&clock).start().await;
    let good = provider.token("", json!({ "sub": "ada" })).await;
    let stranger = unknown(&good);
    for round in 1..=3 {
        for _ in 0..2 {
            assert_eq!(crowd(&gateway, &stranger).await, all(401, "auth.unknown_token"));
            assert_eq!(provider.fetches().await, Fetches { discovery: 1, jwks: round });
        }
        assert_eq!(told(&ask(&gateway, &good).await), (200, "ada".into()));
        clock.advance(Duration::from_secs(30));
    }
}

#[tokio::test]
async fn keys_that_cannot_be_had_cost_their_users_a_refusal_and_the_provider_one_request() {
    let provider = Provider::start().await;
    let good = provider.token("", json!({ "sub": "ada" })).await;
    let stranger = unknown(&good);
    let upstream = Upstream::that(Act::Mirror).await;
    for what in ["jwks", "discovery"] {
        for mode in ["down", "error", "huge", "empty"] {
            let clock = Clock::paused();
            let gateway =
                with_tokens(&upstream, &provider).env("STREAMGATE_WORKERS", "1").on(&clock).start().await;
            provider.answers(what, mode).await;
            let before = provider.fetches().await;
            let (seen, open) = tokio::join!(crowd(&gateway, &stranger), gateway.get("/open/x", &[]));
            assert_eq!(open.status, 200, "{what} {mode}");
            // No keys at all are an answer too: then no token has a known one.
            let expected = match (what, mode) {
                ("jwks", "empty") => all(401, "auth.unknown_token"),
                _ => all(503, "auth.keys_unavailable"),
            };
            assert_eq!(seen, expected, "{what} {mode}");
            let answer = ask(&gateway, &good).await;
            assert!(expected.contains(&told(&answer)), "{what} {mode}: {answer:?}");
            if answer.status == 503 {
                assert_eq!(answer.header("retry-after").as_deref(), Some("5"), "{what} {mode}");
            }
            let after = provider.fetches().await;
            let n_fetches = (after.discovery - before.discovery, after.jwks - before.jwks);
            let allowed = match (what, mode) {
                // A kept connection that ends without a word is no answer yet: it is asked again on a new one.
                ("jwks", "down") => [(1, 1), (1, 2)],
                ("jwks", _) => [(1, 1); 2],
                _ => [(1, 0); 2],
            };
            assert!(allowed.contains(&n_fetches), "{what} {mode}: {n_fetches:?}");

            if mode == "huge" {
                let path = if what == "jwks" { "/jwks" } else { "/openid-configuration" };
                let is_cut_off = |it: &String| it.contains(path) && it.contains("larger than `max_body`");
                assert!(
                    log::lines_with("could not be had").iter().any(is_cut_off),
                    "{what} is read to the end"
                );
            }

            // The provider is back; the gateway finds out by itself.
            provider.answers(what, "ok").await;
            clock.advance(Duration::from_secs(if mode == "empty" { 30 } else { 5 }));
            assert_eq!(told(&ask(&gateway, &good).await), (200, "ada".into()), "{what} {mode}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_says_nothing_holds_up_only_those_who_need_it_and_not_for_long() {
    let provider = Provider::start().await;
    let clock = Clock::paused();
    let good = provider.token("", json!({ "sub": "ada" })).await;
    let stranger = unknown(&good);
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = with_tokens(&upstream, &provider).env("STREAMGATE_WORKERS", "1").on(&clock).start().await;
    provider.answers("jwks", "slow").await;
    let mut waiting: Vec<Client> = Vec::new();
    for idx in 0..CROWD {
        let mut client = gateway.connect().await;
        client.request("GET", "/x", &[("Authorization", &format!("Bearer {}", stranger(idx)))], b"").await;
        waiting.push(client);
    }
    provider.until_fetched(1).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/open/x", &[]).await.status, 200, "others are served meanwhile");
    }
    assert!(
        waiting[0].is_silent().await && waiting[CROWD - 1].is_silent().await,
        "nobody is let in meanwhile"
    );
    clock.advance(Duration::from_secs(5));
    for client in &mut waiting {
        assert_eq!(told(&client.answer().await), (503, "auth.keys_unavailable".into()));
    }
    assert_eq!(provider.fetches().await, Fetches { discovery: 1, jwks: 1 });

    // With keys that have served before, nobody waits.
    provider.answers("jwks", "ok").await;
    clock.advance(Duration::from_secs(5));
    assert_eq!(told(&ask(&gateway, &good).await), (200, "ada".into()));
    provider.answers("jwks", "slow").await;
    clock.advance(Duration::from_secs(600));
    let mut first = gateway.connect().await;
    first.request("GET", "/x", &[("Authorization", &format!("Bearer {good}"))], b"").await;
    provider.until_fetched(3).await;
    let seen = soon("answers while the keys are fetched", crowd(&gateway, |_| good.clone())).await;
    assert_eq!(seen, all(200, "ada"));
    clock.advance(Duration::from_secs(5));
    assert_eq!(told(&first.answer().await), (200, "ada".into()), "the keys of before are better than none");
    assert_eq!(provider.fetches().await.jwks, 3);
}

#[tokio::test]
async fn known_keys_serve_while_the_provider_is_gone() {
    let (mut provider, clock) = (Provider::start().await, Clock::paused());
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = with_tokens(&upstream, &provider).on(&clock).start().await;
    let good = provider.token("expires_in=604800", json!({ "sub": "ada" })).await;
    assert_eq!(told(&ask(&gateway, &good).await), (200, "ada".into()));
    provider.kill().await;
    clock.advance(Duration::from_secs(23 * 3600));
    assert_eq!(crowd(&gateway, |_| good.clone()).await, all(200, "ada"));
    assert_eq!(crowd(&gateway, unknown(&good)).await, all(503, "auth.keys_unavailable"));
    clock.advance(Duration::from_secs(2 * 3600));
    assert_eq!(told(&ask(&gateway, &good).await), (503, "auth.keys_unavailable".into()));
}

#[tokio::test]
async fn of_two_ways_to_be_known_either_is_enough_and_a_wrong_one_does_not_spoil_the_other() {
    let provider = Provider::start().await;
    let upstream = Upstream::that(Act::Mirror).await;
    let good = provider.token("", json!({ "sub": "grace" })).await;
    let foreign = provider.token("", json!({ "sub": "grace", "aud": "urn:other" })).await;
    let (jwt, key) = (jwt_step(&provider), "{ plugin = \"key-auth\", keys = \"file:tokens.toml\" }");
    for steps in [format!("{jwt}, {key}"), format!("{key}, {jwt}")] {
        let clock = Clock::paused();
        let chain = format!("\"cors\", {{ any_of = [{steps}] }}, {INJECT}");
        let gateway = Gateway::in_front_of(&upstream).chain(&chain).on(&clock).start().await;
        for (token, key, expected) in [
            (Some(&good), None, (200, "grace")),
            (None, Some(TOKEN), (200, "ada")),
            (Some(&good), Some("wrong"), (200, "grace")),
            (Some(&foreign), Some(TOKEN), (200, "ada")),
            (Some(&foreign), None, (401, "auth.unknown_token")),
            (None, Some("wrong"), (401, "auth.unknown_key")),
        ] {
            let bearer = token.map(|it| format!("Bearer {it}"));
            let mut headers = Vec::new();
            headers.extend(bearer.as_deref().map(|it| ("Authorization", it)));
            headers.extend(key.map(|it| ("X-Api-Key", it)));
            let answer = gateway.get("/x", &headers).await;
            assert_eq!(told(&answer), (expected.0, expected.1.into()), "{steps}: {expected:?}");
            // What a plugin found out before another let the request in is not mixed with it.
            let tenant = crate::support::upstream::header(&answer.text(), "x-tenant");
            assert_eq!(tenant.as_deref(), (expected.1 == "ada").then_some("acme"), "{steps}");
        }
        let nothing = gateway.get("/x", &[]).await;
        assert_eq!(nothing.status, 401, "{steps}");
        let challenges = nothing.header("www-authenticate").unwrap_or_default();
        for scheme in ["Bearer realm=", "ApiKey realm="] {
            assert!(challenges.contains(scheme), "{steps}: {challenges}");
        }

        // A key works where the provider is away.
        provider.answers("jwks", "down").await;
        clock.advance(Duration::from_secs(2 * 24 * 3600));
        let answer = gateway.get("/x", &[("X-Api-Key", TOKEN), ("Authorization", "Bearer a.b.c")]).await;
        assert_eq!(told(&answer), (200, "ada".into()), "{steps}");
        provider.answers("jwks", "ok").await;
    }
}
