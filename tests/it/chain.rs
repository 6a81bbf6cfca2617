//! How a chain asks its plugins: one of several, under conditions, on trial, and no longer than it is told.

use std::time::Duration;

use streamgate::clock::Clock;

use crate::support::gateway::Builder;
use crate::support::life::ask;
use crate::support::process::run;
use crate::support::raw::from_browser;
use crate::support::upstream::{Act, header};
use crate::support::{Folder, Gateway, Service, TOKEN, Upstream, log};

/// Where the plugins of a test are.
const PATHS: &str = "[plugins]\npaths = [\"plugins\"]";

/// A door with a lock of its own: it looks at `x-NAME`, and leaves something behind before it decides.
const DOOR: (&str, &str, &str) = (
    "door",
    "return { summary = \"A door.\", phases = { \"authenticate\" }, fields = { name = { type = \"string\", required = true, doc = \"x\" }, leaves = { type = \"boolean\", default = false, doc = \"x\" } } }",
    "return { authenticate = function(request, conf)
  local key = request:header(\"x-\" .. conf.name)
  request:set(\"principal\", { id = \"somebody before \" .. conf.name })
  request:set(\"seen\", (request:get \"seen\" or \"\") .. conf.name)
  if conf.leaves then
    request:set(\"function_id\", \"f-\" .. conf.name)
    request:set(\"function_version_id\", \"v-\" .. conf.name)
  end
  local challenge = { [\"www-authenticate\"] = conf.name .. ' realm=\"x\"' }
  if not key then return request:reject(\"auth.missing_token\", challenge) end
  if key == \"answer\" then return request:respond(302, { location = \"/\" .. conf.name }) end
  if key == \"raise\" then error \"oops\" end
  if key ~= \"good\" then return request:reject(\"auth.unknown_token\", challenge) end
  request:set(\"principal\", { id = conf.name, team = key })
end }",
);

/// Says who has come in, and what was left behind on the way.
const TELL: (&str, &str, &str) = (
    "tell",
    "return { summary = \"Tells.\", phases = { \"authorize\" } }",
    "return { authorize = function(request)
  local principal = request:get \"principal\"
  local found = { principal and principal.id or \"nobody\" }
  for _, name in ipairs { \"seen\", \"function_id\", \"function_version_id\" } do found[#found + 1] = tostring(request:get(name)) end
  return request:respond(200, {}, table.concat(found, \" \"))
end }",
);

/// Leaves a header with its name in what goes upstream.
const MARK: (&str, &str, &str) = (
    "mark",
    "return { summary = \"Marks.\", phases = { \"upstream_request\" }, fields = { name = { type = \"string\", required = true, doc = \"x\" } } }",
    "return { upstream_request = function(request, upstream, conf) upstream:set_header(\"x-mark-\" .. conf.name, \"yes\") end }",
);

/// Ends each session that it is asked about.
const ENDER: (&str, &str, &str) = (
    "ender",
    "return { summary = \"Ends.\", phases = { \"session_tick\" } }",
    "return { session_tick = function(request) return request:reject \"auth.unknown_token\" end }",
);

trait With {
    fn having(self, plugins: &[(&str, &str, &str)]) -> Self;
}

impl With for Builder {
    fn having(self, plugins: &[(&str, &str, &str)]) -> Self {
        plugins.iter().fold(self, |it, (name, schema, plugin)| it.plugin(name, schema, plugin))
    }
}

#[tokio::test]
async fn a_request_passes_when_it_passes_one_alternative() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream)
        .with(PATHS)
        .having(&[DOOR, TELL])
        .chain("{ any_of = [{ plugin = \"door\", id = \"a\", name = \"a\", leaves = true }, { all_of = [{ plugin = \"door\", id = \"b\", name = \"b\" }, { plugin = \"door\", id = \"c\", name = \"c\" }] }] }, \"tell\"")
        .start()
        .await;
    // What was sent; the status; the body, the code or the location; the challenges.
    type Case<'a> = (&'a [(&'a str, &'a str)], u16, &'a str, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&[("x-a", "good")], 200, "a a f-a v-a", &[]),
        (&[("x-b", "good"), ("x-c", "good")], 200, "c bc nil nil", &[]),
        (&[("x-a", "bad"), ("x-b", "good"), ("x-c", "good")], 200, "c bc nil nil", &[]),
        (&[("x-a", "raise"), ("x-b", "good"), ("x-c", "good")], 200, "c bc nil nil", &[]),
        (&[("x-a", "good"), ("x-b", "bad"), ("x-c", "raise")], 200, "a a f-a v-a", &[]),
        // Nobody lets it in: what tells most is told, with all ways to do better.
        (&[], 401, "auth.missing_token", &["a", "b"]),
        (&[("x-a", "bad")], 401, "auth.unknown_token", &["a", "b"]),
        (&[("x-b", "bad")], 401, "auth.unknown_token", &["a", "b"]),
        (&[("x-a", "bad"), ("x-b", "bad")], 401, "auth.unknown_token", &["a", "b"]),
        (&[("x-b", "good")], 401, "auth.missing_token", &["a", "c"]),
        (&[("x-b", "good"), ("x-c", "bad")], 401, "auth.unknown_token", &["a", "c"]),
        (&[("x-c", "good")], 401, "auth.missing_token", &["a", "b"]),
        (&[("x-a", "raise")], 500, "plugin.failed", &[]),
        (&[("x-a", "answer"), ("x-b", "bad")], 302, "/a", &[]),
        (&[("x-b", "answer"), ("x-a", "bad")], 302, "/b", &[]),
    ];
    for (sent, status, told, challenges) in cases {
        let answer = gateway.get("/x", sent).await;
        assert_eq!(answer.status, *status, "{sent:?}: {}", answer.text());
        let found = match status {
            200 => answer.text(),
            302 => answer.header("location").expect("a location"),
            _ => answer.code(),
        };
        assert_eq!(found, *told, "{sent:?}");
        let mut found = answer.all("www-authenticate");
        found.sort();
        let expected: Vec<String> = challenges.iter().map(|it| format!("{it} realm=\"x\"")).collect();
        assert_eq!(found, expected, "{sent:?}");
    }
}

/// The bcrypt hash of `hunter2`, of the least cost.
const HASH_OF_BOB: &str = "$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm";

/// A token or a password, as operators write it.
fn token_or_password(upstream: &Upstream) -> Builder {
    Gateway::in_front_of(upstream).with("[sessions]\ntick = \"1s\"").chain(&format!(
        "{{ any_of = [{{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }}, {{ plugin = \"basic-auth\", users = {{ bob = {HASH_OF_BOB:?} }} }}] }}, {{ plugin = \"inject-headers\", set = {{ x-who = \"{{principal.id}}\" }} }}"
    ))
}

#[tokio::test]
async fn a_token_or_a_password_lets_one_in() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = token_or_password(&upstream).start().await;
    let bearer = format!("Bearer {TOKEN}");
    for (authorization, who) in [(bearer.as_str(), "ada"), ("Basic Ym9iOmh1bnRlcjI=", "bob")] {
        let answer = gateway.get("/x", &[("Authorization", authorization)]).await;
        assert_eq!(header(&answer.text(), "x-who").as_deref(), Some(who), "{}", answer.text());
    }
    for (sent, code) in [
        (None, "auth.missing"),
        (Some("Bearer of-nobody"), "auth.unknown_token"),
        (Some("Basic Ym9iOndyb25n"), "auth.wrong_password"),
    ] {
        let sent: Vec<(&str, &str)> = sent.map(|it| ("Authorization", it)).into_iter().collect();
        let answer = gateway.get("/x", &sent).await;
        assert_eq!(answer.status, 401);
        assert!(answer.code().starts_with(code), "{sent:?}: {}", answer.code());
        let challenges = answer.all("www-authenticate").join(", ");
        assert!(challenges.contains("Bearer") && challenges.contains("Basic"), "{sent:?}: {challenges}");
    }
}

#[tokio::test]
async fn a_session_of_one_alternative_is_not_ended_by_the_other() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let gateway = token_or_password(&upstream).on(&clock).start().await;
    let mut clients = Vec::new();
    for authorization in [format!("Bearer {TOKEN}"), "Basic Ym9iOmh1bnRlcjI=".to_owned()] {
        let (client, answer) = ask(&gateway, "/sign_in", &[("Authorization", &authorization)]).await;
        assert_eq!(answer.status, 101, "{}", answer.text());
        clients.push((client, upstream.leg().await));
    }
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 2.0);
    for round in 1..=3 {
        clock.advance(Duration::from_secs(1));
        for plugin in ["bearer-auth", "basic-auth"] {
            let labels = [("decision", "continue"), ("phase", "session_tick"), ("plugin", plugin)];
            gateway.until_metric("streamgate_plugin_decisions_total", &labels, f64::from(2 * round));
        }
    }
    for (client, leg) in &mut clients {
        client.send(&from_browser(1, b"still here")).await;
        assert_eq!(leg.frame().await.expect("a frame").payload, b"still here");
    }
}

#[tokio::test]
async fn two_steps_of_one_plugin_take_no_session_for_their_own_that_is_the_others() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let alternative = |plugin: &str, key: &str, file: &str| {
        format!("{{ plugin = {plugin:?}, {key} = \"file:{file}.toml\" }}")
    };
    let chain = [
        alternative("bearer-auth", "tokens", "one"),
        alternative("bearer-auth", "tokens", "other"),
        alternative("key-auth", "keys", "one"),
        alternative("key-auth", "keys", "other"),
    ];
    let gateway = Gateway::in_front_of(&upstream)
        .with("[sessions]\ntick = \"1s\"")
        .file("one.toml", "[ada]\ntoken = \"token-of-ada-0\"")
        .file("other.toml", "[bob]\ntoken = \"token-of-bob-0\"")
        .chain(&format!("{{ any_of = [{}] }}", chain.join(", ")))
        .on(&clock)
        .start()
        .await;
    let mut clients = Vec::new();
    for (name, value) in [
        ("Authorization", "Bearer token-of-ada-0"),
        ("Authorization", "Bearer token-of-bob-0"),
        ("X-Api-Key", "token-of-ada-0"),
        ("X-Api-Key", "token-of-bob-0"),
    ] {
        let (client, answer) = ask(&gateway, "/sign_in", &[(name, value)]).await;
        assert_eq!(answer.status, 101, "{}", answer.text());
        clients.push((client, upstream.leg().await));
    }
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 4.0);
    clock.advance(Duration::from_secs(1));
    for plugin in ["bearer-auth", "key-auth"] {
        let labels = [("decision", "continue"), ("phase", "session_tick"), ("plugin", plugin)];
        gateway.until_metric("streamgate_plugin_decisions_total", &labels, 8.0);
    }
    for (client, leg) in &mut clients {
        client.send(&from_browser(1, b"still here")).await;
        assert_eq!(leg.frame().await.expect("a frame").payload, b"still here");
    }
}

#[tokio::test]
async fn a_plugin_is_asked_when_its_conditions_hold() {
    let upstream = Upstream::that(Act::Mirror).await;
    let conditions = [
        ("post", "{ method = \"POST\" }"),
        ("methods", "{ method = [\"POST\", \"PUT\"] }"),
        ("path", "{ path = \"/api/**\" }"),
        ("paths", "{ path = [\"/one\", \"/two/*\"] }"),
        ("header", "{ header = { x-kind = \"big\" } }"),
        ("any", "{ header = { x-kind = true } }"),
        ("values", "{ header = { x-kind = [\"big\", \"small\"] } }"),
        ("id", "{ claim = { id = \"a\" } }"),
        ("claim", "{ claim = { team = [\"good\", \"best\"] } }"),
        ("absent", "{ claim = { nothing = true } }"),
        (
            "both",
            "{ method = \"POST\", path = \"/api/**\", header = { x-kind = \"big\" }, claim = { id = \"a\" } }",
        ),
        ("not_post", "{ not = { method = \"POST\" } }"),
        ("not_api", "{ not = { path = \"/api/**\" } }"),
        ("not_a", "{ not = { claim = { id = \"a\" } } }"),
        ("but", "{ path = \"/api/**\", not = { header = { x-kind = true } } }"),
        ("always", "{ not = { path = \"/never\" } }"),
    ];
    let marks: Vec<String> = conditions
        .iter()
        .map(|(name, when)| format!("{{ plugin = \"mark\", id = {name:?}, name = {name:?}, when = {when} }}"))
        .collect();
    let door = "{ plugin = \"door\", name = \"a\", when = { header = { x-a = true } } }";
    let gateway = Gateway::in_front_of(&upstream)
        .with(PATHS)
        .having(&[DOOR, MARK])
        .chain(&format!("{door}, {}", marks.join(", ")))
        .start()
        .await;
    #[allow(clippy::type_complexity)] // a table of one test
    let cases: &[(&str, &str, &[(&str, &str)], &str)] = &[
        ("GET", "/x", &[], "not_post not_api not_a always"),
        ("POST", "/x", &[], "post methods not_api not_a always"),
        ("PUT", "/one", &[], "methods paths not_post not_api not_a always"),
        ("GET", "/two/three", &[], "paths not_post not_api not_a always"),
        ("GET", "/two/three/four", &[], "not_post not_api not_a always"),
        ("GET", "/api/x", &[], "path not_post not_a but always"),
        // Whichever way an upstream reads it, a condition is met.
        ("GET", "//api//x", &[], "path not_post not_a but always"),
        ("GET", "/%61pi/x", &[], "path not_post not_a but always"),
        ("GET", "/x", &[("X-Kind", "big")], "header any values not_post not_api not_a always"),
        ("GET", "/x", &[("X-Kind", "odd")], "any not_post not_api not_a always"),
        ("GET", "/x", &[("X-Kind", "odd"), ("X-Kind", "small")], "any values not_post not_api not_a always"),
        ("GET", "/x", &[("X-Kind", "")], "any not_post not_api not_a always"),
        ("GET", "/api/x", &[("X-Kind", "odd")], "path any not_post not_a always"),
        ("GET", "/x", &[("X-A", "good")], "id claim not_post not_api always"),
        (
            "POST",
            "/api/x",
            &[("X-A", "good"), ("X-Kind", "big")],
            "post methods path header any values id claim both always",
        ),
    ];
    for (method, path, sent, expected) in cases {
        let mut client = gateway.connect().await;
        client.request(method, path, sent, b"").await;
        let head = client.answer().await.text();
        let found: Vec<&str> = conditions
            .iter()
            .map(|(name, _)| *name)
            .filter(|it| header(&head, &format!("x-mark-{it}")).is_some())
            .collect();
        assert_eq!(found.join(" "), *expected, "{method} {path} {sent:?}: {head}");
    }
    assert_eq!(gateway.get("/x", &[("X-A", "bad")]).await.code(), "auth.unknown_token");
}

#[tokio::test]
async fn conditions_about_a_request_hold_as_long_as_its_session() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let chain = "{ plugin = \"mark\", name = \"m\", when = { method = \"POST\" } }, { plugin = \"ender\", when = { header = { x-end = \"yes\" } } }";
    let gateway = Gateway::in_front_of(&upstream)
        .with(&format!("{PATHS}\n[sessions]\ntick = \"1s\""))
        .having(&[MARK, ENDER])
        .on(&clock)
        .chain(chain)
        .start()
        .await;
    let mut sessions = Vec::new();
    for end in ["no", "yes", "yes"] {
        let (client, answer) = ask(&gateway, "/sign_in", &[("X-End", end)]).await;
        assert_eq!(answer.status, 101);
        sessions.push((client, upstream.leg().await));
    }
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 3.0);
    clock.advance(Duration::from_secs(1));
    for (client, _) in &mut sessions[1..] {
        let close = client.frame().await.expect("a Close frame");
        assert_eq!((close.opcode, &close.payload[..2]), (8, &3000_u16.to_be_bytes()[..]));
    }
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "refused")], 2.0);
    let (client, leg) = &mut sessions[0];
    client.send(&from_browser(1, b"still here")).await;
    assert_eq!(leg.frame().await.expect("a frame").payload, b"still here");
}

#[tokio::test]
async fn a_plugin_whose_neighbour_is_gone_still_looks_after_its_sessions() {
    let clock = Clock::paused();
    let mut upstream = Upstream::start().await;
    let mark = "{ plugin = \"mark\", name = \"m\", when = { method = \"POST\" } }, ";
    let builder = Gateway::in_front_of(&upstream)
        .with(&format!("{PATHS}\n[sessions]\ntick = \"1s\""))
        .having(&[MARK, ENDER])
        .env("STREAMGATE_WORKERS", "1")
        .on(&clock)
        .chain(&format!("{mark}{{ plugin = \"ender\", when = {{ header = {{ x-end = \"yes\" }} }} }}"));
    let file = builder.text();
    let gateway = builder.start().await;
    let (mut client, answer) = ask(&gateway, "/sign_in", &[("X-End", "yes")]).await;
    assert_eq!(answer.status, 101);
    let _leg = upstream.leg().await;
    gateway.until_metric("streamgate_sessions", &[("state", "attached")], 1.0);
    gateway.reload(&file.replace(mark, "")).expect("valid");
    // The worker serves by the new configuration once it has answered a request under it.
    gateway.get("/none", &[]).await;
    clock.advance(Duration::from_secs(1));
    let close = client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &3000_u16.to_be_bytes()[..]));
}

#[tokio::test]
async fn a_plugin_on_trial_changes_nothing_and_tells_what_it_would_have_done() {
    let upstream = Upstream::that(Act::Mirror).await;
    let nosy = "local M = {}
local function meddle(request) request:set(\"principal\", { id = \"mallory\" }) request:set(\"function_id\", \"of-mallory\") request:set(\"seen\", \"mallory\") end
function M.on_request(request) if request:path() == \"/respond\" then meddle(request) return request:respond(418) end end
function M.authenticate(request) meddle(request) if request:path() == \"/reject\" then return request:reject \"auth.unknown_token\" end end
function M.select(request) if request:path() == \"/raise\" then meddle(request) error \"oops\" end end
function M.upstream_request(request, upstream) upstream:set_header(\"x-mallory\", \"yes\") upstream:set_header(\"x-mark-m\", \"no\") end
function M.response_headers(request, response) response:set_header(\"x-mallory\", \"yes\") end
return M";
    let schema = "return { summary = \"Nosy.\", phases = { \"on_request\", \"authenticate\", \"select\", \"upstream_request\", \"response_headers\" } }";
    let gateway = Gateway::in_front_of(&upstream)
        .with(PATHS)
        .having(&[MARK, DOOR, ("nosy", schema, nosy)])
        .chain("{ plugin = \"door\", name = \"a\" }, { plugin = \"mark\", name = \"m\" }, { plugin = \"nosy\", dry_run = true }, { plugin = \"inject-headers\", set = { x-who = \"{principal.id}\" } }")
        .start()
        .await;
    for (path, phase, decision, detail) in [
        ("/pass", "", "", ""),
        ("/respond", "on_request", "respond", "418"),
        ("/reject", "authenticate", "reject", "auth.unknown_token"),
        ("/raise", "select", "failed", "oops"),
    ] {
        let answer = gateway.get(path, &[("X-A", "good")]).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let head = answer.text();
        assert_eq!(header(&head, "x-who").as_deref(), Some("a"), "{path}");
        assert_eq!(header(&head, "x-mark-m").as_deref(), Some("yes"), "{path}");
        assert_eq!(header(&head, "x-mallory"), None, "{path}");
        assert!(!head.contains("of-mallory"), "{path}: {head}");
        assert_eq!(answer.header("x-mallory"), None, "{path}");
        if phase.is_empty() {
            continue;
        }
        let labels = [("decision", decision), ("phase", phase), ("plugin", "nosy")];
        assert_eq!(gateway.metric("streamgate_plugin_decisions_total", &labels), 1.0, "{path}");
        let line = format!("plugin=nosy instance=nosy phase=\"{phase}\"");
        let lines = log::lines_with(&line);
        let told = lines.iter().find(|it| it.contains("would have stopped"));
        assert!(told.is_some_and(|it| it.contains(detail)), "{path}: {lines:?}");
    }
    let trials = log::lines_with("would have stopped").into_iter().filter(|it| it.contains("plugin=nosy"));
    assert_eq!(trials.count(), 3, "what it lets pass is not worth a line");
}

#[tokio::test]
async fn an_alternative_on_trial_lets_nobody_in() {
    let upstream = Upstream::that(Act::Mirror).await;
    let builder = |rest: &str| {
        Gateway::in_front_of(&upstream).with(PATHS).having(&[DOOR, TELL]).chain(&format!(
            "{{ any_of = [{{ all_of = [{{ plugin = \"door\", id = \"a\", name = \"a\", dry_run = true }}{rest}] }}, {{ plugin = \"door\", id = \"b\", name = \"b\" }}] }}, \"tell\""
        ))
    };
    let told = builder("").problems();
    assert!(told.contains("no plugin of this alternative authenticates"), "{told}");
    let gateway =
        builder(", { plugin = \"door\", id = \"c\", name = \"c\", when = { path = \"/c\" } }").start().await;
    for sent in [&[][..], &[("x-a", "good")], &[("x-a", "bad")], &[("x-c", "good")]] {
        let answer = gateway.get("/x", sent).await;
        assert_eq!(answer.status, 401, "{sent:?}: {}", answer.text());
        assert_eq!(answer.code(), "auth.missing_token", "{sent:?}");
    }
    assert_eq!(gateway.get("/x", &[("x-b", "good")]).await.text(), "b b nil nil");
    assert_eq!(gateway.get("/c", &[("x-c", "good")]).await.text(), "c c nil nil");
}

#[tokio::test]
async fn an_alternative_whose_conditions_do_not_hold_lets_nobody_in() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream)
        .with(PATHS)
        .having(&[DOOR, TELL])
        .chain("{ any_of = [{ plugin = \"door\", id = \"a\", name = \"a\", when = { path = \"/a/**\" } }, { plugin = \"door\", id = \"b\", name = \"b\", when = { path = \"/b/**\" } }] }, \"tell\"")
        .start()
        .await;
    for (path, status) in [("/a/x", 200), ("/b/x", 401), ("/c/x", 401)] {
        assert_eq!(gateway.get(path, &[("x-a", "good")]).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn a_plugin_whose_service_never_answers_is_given_up_in_time() {
    let clock = Clock::paused();
    let upstream = Upstream::that(Act::Mirror).await;
    let mut service = Service::start().await;
    let slow = "local http = require \"streamgate.http\"
return { authenticate = function(request, conf)
  if request:path():match \"^/slow\" then http.get(conf.url, { timeout = 60 }) end
end }";
    let schema = "return { summary = \"Slow.\", phases = { \"authenticate\" }, fields = { url = { type = \"url\", required = true, doc = \"x\" } } }";
    let gateway = Gateway::in_front_of(&upstream)
        .env("STREAMGATE_WORKERS", "1")
        .with("[plugins]\npaths = [\"plugins\"]\ntimeout = \"7s\"")
        .having(&[("slow", schema, slow)])
        .with(&format!("[[route]]\npath = \"/slow/own\"\nchain = [{{ plugin = \"slow\", url = {0:?}, timeout = \"3s\" }}]\n[[route]]\npath = \"/slow/skip\"\nchain = [{{ plugin = \"slow\", url = {0:?} }}]", service.url("/")))
        .chain(&format!("{{ plugin = \"slow\", url = {:?} }}", service.url("/")))
        .on(&clock)
        .start()
        .await;
    for (round, (path, seconds)) in [("/slow/own", 3), ("/slow/any", 7)].into_iter().enumerate() {
        let mut client = gateway.connect().await;
        client.request("GET", path, &[], b"").await;
        let mut asked = service.asked().await;
        clock.advance(Duration::from_secs(seconds) - Duration::from_millis(1));
        assert_eq!(gateway.get("/other", &[]).await.status, 200, "others are served meanwhile");
        assert!(client.is_silent().await, "{path}: its time is not over");
        clock.advance(Duration::from_millis(1));
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (500, "plugin.failed"), "{path}");
        asked.is_left().await;
        let labels = [("kind", "time"), ("phase", "authenticate"), ("plugin", "slow")];
        gateway.until_metric("streamgate_plugin_errors_total", &labels, (round + 1) as f64);
    }
    assert_eq!(gateway.get("/other", &[]).await.status, 200);
}

#[tokio::test]
async fn mistakes_in_a_chain_are_told_with_their_place() {
    let upstream = Upstream::that(Act::Mirror).await;
    // What is written as the chain, and what is told of it; `@` stands before what is wrong.
    for (chain, told) in [
        (
            "{ plugin = \"cors\", when = { @methods = \"GET\" } }",
            "unknown condition; did you mean `method`? There are `method`, `path`, `header`, `claim` and `not`",
        ),
        (
            "{ plugin = \"cors\", when = @\"always\" }",
            "expected a table with `method`, `path`, `header`, `claim` or `not`",
        ),
        ("{ plugin = \"cors\", when = { method = @7 } }", "expected a method or a list of them"),
        ("{ plugin = \"cors\", when = { method = @\"G E T\" } }", "expected methods, such as \"POST\""),
        ("{ plugin = \"cors\", when = { path = @[] } }", "expected a pattern of paths or a list of them"),
        ("{ plugin = \"cors\", when = { path = @\"api\" } }", "when.path"),
        ("{ plugin = \"cors\", when = { header = @\"x-a\" } }", "expected a table from names to values"),
        (
            "{ plugin = \"cors\", when = { header = { x-a = @false } } }",
            "expected a string, a list of them, or `true` for any value",
        ),
        ("{ plugin = \"cors\", when = { header = { \"x a\" = @\"b\" } } }", "not a header's name"),
        (
            "{ plugin = \"cors\", when = { claim = { id = @[] } } }",
            "expected a string, a list of them, or `true` for any value",
        ),
        ("{ plugin = \"cors\", when = { not = { @not = { method = \"GET\" } } } }", "unknown condition"),
        (
            "{ plugin = \"cors\", when = { not = @{ method = \"GET\", claim = { id = \"a\" } } } }",
            "about the request or about claims, not both",
        ),
        ("{ plugin = \"cors\", timeout = @\"0s\" }", "expected a time above zero"),
        ("{ plugin = \"cors\", timeout = @\"soon\" }", "timeout = \"soon\""),
        ("{ plugin = \"cors\", dry_run = @\"yes\" }", "expected true or false"),
        ("{ plugin = \"cors\", on_error = @\"never\" }", "expected \"reject\", \"skip\" or \"close\""),
        ("{ any_of = @[] }", "expected a list of plugins, not an empty one"),
        ("{ any_of = @\"cors\" }", "expected a list of plugins, not"),
        (
            "{ any_of = [{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }], @id = \"x\" }",
            "unknown key; a group has `any_of` alone",
        ),
        ("{ any_of = [{ all_of = @[] }] }", "expected a list of plugins, not an empty one"),
        ("{ any_of = [@{ any_of = [\"cors\"] }] }", "groups are not nested further"),
        ("{ any_of = [{ all_of = [@{ any_of = [\"cors\"] }] }] }", "groups are not nested further"),
        (
            "{ any_of = [@{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\", on_error = \"skip\" }] }",
            "its failure would let everybody in",
        ),
        ("{ any_of = [@\"no-such\"] }", "no such plugin"),
        (
            "{ any_of = [{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }, @{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }] }, { plugin = \"request-id\", id = \"bearer-auth-2\" }",
            "bearer-auth-2",
        ),
    ] {
        let at = chain.find('@').expect("a place");
        let builder = Gateway::in_front_of(&upstream).chain(&chain.replacen('@', "", 1));
        let text = builder.text();
        let line = text.lines().position(|it| it.starts_with("chain = [")).expect("a chain");
        let place = format!("streamgate.toml:{}:{} ", line + 1, "chain = [".len() + at + 1);
        let problems = builder.problems();
        assert!(problems.contains(told), "{chain}: {problems}");
        if !chain.contains("request-id") {
            assert!(problems.contains(&place), "{chain}: expected {place}in {problems}");
        }
        assert!(problems.contains("1 problem, "), "{chain}: {problems}");
    }
}

#[tokio::test]
async fn a_chain_with_everything_is_explained() {
    let folder = Folder::new();
    folder.write("tokens.toml", "[ada]\ntoken = \"token-of-ada\"\n");
    let text = format!(
        "[[route]]\npath = \"/**\"\nchain = [\n\
         \x20 {{ plugin = \"request-id\", on_error = \"close\" }},\n\
         \x20 {{ plugin = \"ip-restriction\", allow = [\"10.0.0.0/8\"], dry_run = true }},\n\
         \x20 {{ any_of = [\n\
         \x20   {{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }},\n\
         \x20   {{ all_of = [{{ plugin = \"basic-auth\", users = {{ bob = {HASH_OF_BOB:?} }} }}, {{ plugin = \"bearer-auth\", id = \"second\", tokens = \"file:tokens.toml\", when = {{ not = {{ method = \"POST\" }} }} }}] }},\n\
         \x20 ] }},\n\
         \x20 {{ plugin = \"session-limit\", total = 3, timeout = \"2s\", when = {{ path = [\"/a/**\", \"/b\"], claim = {{ team = true }} }} }},\n]\n",
    );
    let file = folder.write("streamgate.toml", &text).display().to_string();
    let env = [
        ("NVCF_API_KEY", "nvapi-x"),
        ("STREAMING_FUNCTION_ID", "11111111-2222-3333-4444-555555555555"),
        ("NVCF_SERVER", "grpc.example:443"),
    ];
    let ended = run(&["check", "--config", &file, "--explain", "/x"], &env).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let explained: Vec<&str> = ended.stdout.lines().skip_while(|it| !it.starts_with("route ")).collect();
    let phase = |name: &str| {
        let line = explained.iter().find(|it| it.trim_start().starts_with(&format!("{name} ")));
        line.and_then(|it| it.trim_start().strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    assert_eq!(phase("authenticate"), "any of (bearer-auth | basic-auth + second)", "{}", ended.stdout);
    assert_eq!(phase("upstream_request").split(" -> ").last(), Some("session-limit"), "{}", ended.stdout);
    assert!(
        ["on_request", "authorize"].into_iter().any(|it| phase(it).contains("ip-restriction?")),
        "{}",
        ended.stdout
    );
    for remark in [
        "request-id      on_error close",
        "ip-restriction  dry run: its decisions are logged alone",
        "second          is bearer-auth; when { not = { method = \"POST\" } }",
        "session-limit   when { path = [\"/a/**\", \"/b\"], claim = { team = true } }",
    ] {
        assert!(explained.iter().any(|it| it.trim() == remark), "{remark} is missing in {}", ended.stdout);
    }
}
