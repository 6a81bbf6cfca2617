//! The library for authors, in a gateway at work: what waits, what is shared, what ends with a reload.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use streamgate::clock::Clock;

use crate::support::gateway::Builder;
use crate::support::life::{ID, ask, open, parked};
use crate::support::process::Process;
use crate::support::raw::{close_payload, from_browser};
use crate::support::upstream::Act;
use crate::support::{Answer, Client, FUNCTION, Folder, Gateway, KEY, Service, Upstream, log, soon};

const PATHS: &str = "[plugins]\npaths = [\"plugins\"]";

/// Does what the path says, and names its VM.
const SCRIBE: &str = r#"
local cache, http, kv, ratelimit = require "streamgate.cache", require "streamgate.http", require "streamgate.kv", require "streamgate.ratelimit"
local me = require("streamgate.uuid").v4()

local function ask(url)
  local answer, reason = http.get(url, { timeout = 60 })
  if not answer then return nil, reason end
  return answer.status .. " " .. answer.body
end

local doors = {
  ["/vm"] = function() return "here" end,
  ["/incr"] = function() return kv.incr "n" end,
  ["/cache"] = function() return cache.get("kept", 3600, function() return kv.incr "loads" end) end,
  ["/rate"] = function() return ratelimit.take("taken", { rate = 5, per = 86400 }) end,
  ["/ask"] = function(_, conf) return ask(conf.url) end,
  ["/ask-other"] = function(request) return ask(request:parameter "url") end,
  ["/cached"] = function(_, conf) return cache.get("answer", 60, function() return ask(conf.url) end) end,
}

return { authorize = function(request, conf)
  local door = doors[request:path()]
  if door then
    local value, reason = door(request, conf)
    return request:respond(200, { ["x-vm"] = me }, tostring(value or reason))
  end
end }
"#;

const SCRIBE_SCHEMA: &str = "return { summary = \"Writes.\", phases = { \"authorize\" }, fields = { url = { type = \"url\", required = true, doc = \"x\" } } }";

fn scribe(upstream: &Upstream, url: &str, n_workers: usize) -> Builder {
    Gateway::in_front_of(upstream)
        .env("STREAMGATE_WORKERS", &n_workers.to_string())
        .with(PATHS)
        .plugin("scribe", SCRIBE_SCHEMA, SCRIBE)
        .chain(&format!("{{ plugin = \"scribe\", url = {url:?} }}"))
}

/// A request that was sent and has no answer yet.
async fn sent(gateway: &Gateway, path: &str) -> Client {
    let mut client = gateway.connect().await;
    client.request("GET", path, &[], b"").await;
    client
}

/// Asks until so many workers have answered that are not known yet; gives their answers, and what named the workers.
async fn of_workers(
    gateway: &Gateway,
    path: &str,
    n_workers: usize,
    known: &BTreeSet<String>,
) -> (Vec<Answer>, BTreeSet<String>) {
    let (mut answers, mut seen) = (Vec::new(), BTreeSet::new());
    let began = Instant::now();
    while seen.len() < n_workers {
        assert!(began.elapsed() < crate::support::PATIENCE, "only {} workers answer", seen.len());
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(sent(gateway, path).await);
        }
        for mut client in clients {
            let answer = client.answer().await;
            let vm = answer.header("x-vm").expect("the plugin answers");
            if !known.contains(&vm) {
                seen.insert(vm);
            }
            answers.push(answer);
        }
    }
    (answers, seen)
}

#[tokio::test]
async fn a_hundred_requests_wait_for_one_service_and_hold_up_nobody() {
    let upstream = Upstream::that(Act::Mirror).await;
    let mut service = Service::start().await;
    let gateway = scribe(&upstream, &service.url("/"), 1).start().await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(sent(&gateway, "/ask").await);
    }
    // As many are asked at once as one worker asks one service.
    let mut asked = Vec::new();
    for _ in 0..64 {
        asked.push(service.asked().await);
    }
    for path in ["/vm", "/incr", "/else"] {
        assert_eq!(gateway.get(path, &[]).await.status, 200, "{path} is answered meanwhile");
    }
    assert!(service.asked_now().is_none(), "the service is not asked by all at once");
    for n in 0..100 {
        let next = if asked.is_empty() { service.asked().await } else { asked.remove(0) };
        next.answer(200, &n.to_string()).await;
    }
    let mut answers = BTreeSet::new();
    for mut client in clients {
        answers.insert(client.answer().await.text());
    }
    assert_eq!(answers, (0..100).map(|it| format!("200 {it}")).collect(), "each has an answer of its own");
}

#[tokio::test]
async fn who_waited_for_an_answer_hears_too_that_there_is_none() {
    let upstream = Upstream::that(Act::Mirror).await;
    let mut service = Service::start().await;
    let gateway = scribe(&upstream, &service.url("/"), 1).start().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(sent(&gateway, "/cached").await);
    }
    let asked = service.asked().await;
    assert_eq!(gateway.get("/vm", &[]).await.text(), "here", "all of them are at work");
    drop(asked);
    for mut client in clients {
        assert_eq!(client.answer().await.text(), "broken");
    }
    assert!(service.asked_now().is_none(), "only one has asked");
    let later = sent(&gateway, "/cached").await;
    service.asked().await.answer(200, "well").await;
    assert_eq!({ later }.answer().await.text(), "200 well", "nothing was kept");
}

/// Every function that waits, as it may be called.
const WAITING: &[(&str, &str)] = &[
    ("time.sleep", "m.time.sleep(0)"),
    (
        "password.verify",
        "m.password.verify(\"x\", \"$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm\")",
    ),
    ("jwt.verify", "m.jwt.verify(\"a.b.c\", { algorithms = { \"HS256\" }, secret = (\"s\"):rep(32) })"),
    ("oidc.discover", "m.oidc.discover \"https://127.0.0.1:1/\""),
    ("http.request", "m.http.request { url = \"http://127.0.0.1:1/\" }"),
    ("http.get", "m.http.get \"http://127.0.0.1:1/\""),
    ("http.post", "m.http.post \"http://127.0.0.1:1/\""),
    ("kv.get", "m.kv.get \"a\""),
    ("kv.set", "m.kv.set(\"a\", \"b\")"),
    ("kv.add", "m.kv.add(\"a\", \"b\")"),
    ("kv.delete", "m.kv.delete \"a\""),
    ("kv.incr", "m.kv.incr \"n\""),
    ("cache.get", "m.cache.get(\"a\", 1, function() return 1 end)"),
    ("cache.delete", "m.cache.delete \"a\""),
    ("ratelimit.take", "m.ratelimit.take(\"a\", { rate = 1, per = 1 })"),
    ("lease.take", "m.lease.take(\"a\", \"b\", 1, 1)"),
    ("lease.count", "m.lease.count \"a\""),
];

/// The phases in which nothing may wait, and those in which it may.
const HURRIED: [&str; 4] = ["on_request", "response_headers", "session_message", "log"];
const PATIENT: [&str; 10] = [
    "init",
    "authenticate",
    "authorize",
    "select",
    "upstream_request",
    "session_open",
    "session_tick",
    "session_park",
    "session_resume",
    "session_end",
];

#[test]
fn every_function_that_waits_is_in_the_table() {
    let page = std::fs::read_to_string("docs/reference/lua.md").expect("the reference page");
    let mut documented = BTreeSet::new();
    let mut name = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("### `") {
            name = rest.split('(').next().unwrap_or_default();
        }
        if line == "- Phases: those that may wait" {
            documented.insert(name);
        }
    }
    assert_eq!(documented, WAITING.iter().map(|(name, _)| *name).collect());
}

#[tokio::test]
async fn a_function_that_waits_says_where_it_may_be_called() {
    let clock = Clock::paused();
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let modules: BTreeSet<&str> = WAITING.iter().filter_map(|(name, _)| name.split('.').next()).collect();
    let mut plugin = "local log = require \"streamgate.log\"\nlocal m, M, calls = {}, {}, {}\n".to_owned();
    for module in modules {
        plugin += &format!("m.{module} = require \"streamgate.{module}\"\n");
    }
    plugin += "m.metrics, m.timer = require \"streamgate.metrics\", require \"streamgate.timer\"\n";
    for (name, call) in WAITING {
        plugin += &format!("calls[#calls + 1] = {{ {name:?}, function() {call} end }}\n");
    }
    plugin += "calls[#calls + 1] = { \"timer.every\", function() m.timer.every(3600, function() end) end }
calls[#calls + 1] = { \"metrics.counter\", function() m.metrics.counter(\"probes_total\", \"x\") end }
local function probe(place)
  for _, call in ipairs(calls) do
    local ok, reason = pcall(call[2])
    log.info((\"probe %s %s %s;\"):format(place, call[1], ok and \"passed\" or tostring(reason):match \"^[^\\n]*\"))
  end
end
probe \"loading\"
function M.configure() probe \"configure\" end
function M.self_test() probe \"self_test\" end\n";
    let phases: Vec<&str> = PATIENT.into_iter().chain(HURRIED).collect();
    for phase in &phases {
        plugin += &format!("function M.{phase}() probe {phase:?} end\n");
    }
    plugin += "return M";
    let schema = format!(
        "return {{ summary = \"Probes.\", phases = {{ \"{}\" }}, messages = {{ from = \"browser\", max = \"64KiB\" }}, fields = {{ issuer = {{ type = \"url\", required = true, doc = \"x\" }} }} }}",
        phases.join("\", \"")
    );
    let gateway = Gateway::in_front_of(&upstream)
        .env("STREAMGATE_WORKERS", "1")
        .with("[plugins]\npaths = [\"plugins\"]\nbudget = \"1s\"\n[sessions]\ntick = \"1s\"")
        .plugin("probe", &schema, &plugin)
        .chain("{ plugin = \"probe\", issuer = \"https://127.0.0.1:1/\" }")
        .on(&clock)
        .start()
        .await;
    let asked = |phase: &str, n: f64| {
        let labels = [("decision", "continue"), ("phase", phase), ("plugin", "probe")];
        gateway.until_metric("streamgate_plugin_decisions_total", &labels, n);
    };
    let mut browser = open(&gateway, "").await;
    let mut leg = upstream.leg().await;
    asked("session_open", 1.0);
    browser.client.send(&from_browser(1, b"a message")).await;
    assert_eq!(leg.frame().await.expect("a frame").payload, b"a message");
    asked("session_message", 1.0);
    clock.advance(Duration::from_secs(1));
    asked("session_tick", 1.0);
    browser.client.reset();
    parked(&gateway, 1.0);
    asked("session_park", 1.0);
    let mut browser = open(&gateway, &browser.cookie).await;
    asked("session_resume", 1.0);
    browser.client.send(&from_browser(8, &close_payload(1000, "bye"))).await;
    assert_eq!(leg.frame().await.expect("a Close frame").opcode, 8);
    leg.send(8, &close_payload(1000, "bye")).await;
    asked("session_end", 1.0);
    asked("log", 2.0);

    let mut found: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for line in log::lines_with("probe ") {
        let Some((_, probe)) = line.split_once(" probe ") else { continue };
        let mut words = probe.splitn(3, ' ').map(str::to_owned);
        if let (Some(place), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) {
            let outcome = rest.split(';').next().unwrap_or_default().to_owned();
            found.entry((place, name)).or_default().insert(outcome);
        }
    }
    let expected = |place: &str, name: &str| match (name, place) {
        ("timer.every", "init") => "passed".to_owned(),
        ("timer.every", _) => "timer.every can be called in init alone".to_owned(),
        ("metrics.counter", "loading" | "configure" | "self_test") => "passed".to_owned(),
        ("metrics.counter", _) => {
            "metrics are declared while the plugin is loaded, not in a phase".to_owned()
        }
        (_, place) if PATIENT.contains(&place) => "passed".to_owned(),
        (_, place) => {
            let place = match place {
                "loading" | "configure" | "self_test" => "while the plugin is loaded".to_owned(),
                phase => format!("in {phase}"),
            };
            format!("{name} can be called in {}, not {place}", PATIENT.join(", "))
        }
    };
    let names: Vec<&str> =
        WAITING.iter().map(|(name, _)| *name).chain(["timer.every", "metrics.counter"]).collect();
    for place in phases.iter().chain(&["loading", "configure", "self_test"]) {
        for name in &names {
            let outcomes = found.get(&((*place).to_owned(), (*name).to_owned()));
            let outcomes: Vec<&String> = outcomes.into_iter().flatten().collect();
            assert_eq!(outcomes, [&expected(place, name)], "{name} in {place}");
        }
    }
}

#[tokio::test]
async fn what_is_kept_is_shared_by_workers_and_outlives_reloads() {
    let upstream = Upstream::that(Act::Mirror).await;
    let builder = scribe(&upstream, "http://127.0.0.1:1/", 2);
    let file = builder.text();
    let gateway = builder.start().await;
    let (mut known, mut n, mut n_allowed) = (BTreeSet::new(), 0, 0);
    for round in 0..3 {
        let (answers, now) = of_workers(&gateway, "/incr", 2, &known).await;
        let numbers: BTreeSet<usize> =
            answers.iter().map(|it| it.text().parse().expect("a number")).collect();
        assert_eq!(numbers, (n + 1..=n + answers.len()).collect(), "round {round}");
        n += answers.len();
        let (answers, _) = of_workers(&gateway, "/cache", 2, &known).await;
        assert!(answers.iter().all(|it| it.text() == "1" || round == 0), "it was loaded before");
        let (answers, _) = of_workers(&gateway, "/cache", 2, &known).await;
        let kept: BTreeSet<String> = answers.iter().map(Answer::text).collect();
        assert_eq!(kept.len(), 1, "what one worker has loaded all workers have");
        let (answers, _) = of_workers(&gateway, "/rate", 2, &known).await;
        n_allowed += answers.iter().filter(|it| it.text() == "true").count();
        assert_eq!(n_allowed, 5, "the rate is that of all");
        known.extend(now);
        gateway.reload(&file).expect("valid");
    }
}

#[tokio::test]
async fn of_many_who_want_the_same_one_asks() {
    let upstream = Upstream::that(Act::Mirror).await;
    let mut service = Service::start().await;
    let gateway = scribe(&upstream, &service.url("/"), 3).start().await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(sent(&gateway, "/cached").await);
    }
    let asked = service.asked().await;
    assert_eq!(gateway.get("/vm", &[]).await.status, 200);
    asked.answer(200, "once").await;
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "200 once");
    }
    assert_eq!(gateway.get("/cached", &[]).await.text(), "200 once");
    assert_eq!(service.n_connections(), 1);
}

#[tokio::test]
async fn when_the_one_who_asks_leaves_another_one_asks() {
    let upstream = Upstream::that(Act::Mirror).await;
    let mut service = Service::start().await;
    let gateway = scribe(&upstream, &service.url("/"), 1).start().await;
    let first = sent(&gateway, "/cached").await;
    let mut asked = service.asked().await;
    let mut second = sent(&gateway, "/cached").await;
    assert_eq!(gateway.get("/vm", &[]).await.status, 200);
    assert!(service.asked_now().is_none());
    first.reset();
    asked.is_left().await;
    service.asked().await.answer(200, "twice").await;
    assert_eq!(second.answer().await.text(), "200 twice");
}

#[tokio::test]
async fn a_plugin_reaches_the_hosts_of_its_settings_and_no_others() {
    let upstream = Upstream::that(Act::Mirror).await;
    let (mut service, stranger) = (Service::start().await, Service::start().await);
    let gateway = scribe(&upstream, &service.url("/base?key=1"), 1).start().await;
    let port = service.address.port();
    for (url, told) in [
        (stranger.url("/"), "not_allowed"),
        (format!("http://localhost:{port}/"), "not_allowed"),
        (format!("https://127.0.0.1:{port}/"), "not_allowed"),
        (format!("http://127.0.0.1:{port}@{}/", stranger.address), "not_allowed"),
        (format!("http://127.0.0.2:{port}/"), "not_allowed"),
        (format!("http://[::1]:{port}/"), "not_allowed"),
        (format!("http://{}/", upstream.address), "not_allowed"),
        ("file:///etc/passwd".into(), "not_allowed"),
        ("nothing".into(), "not_allowed"),
    ] {
        let query: String = url.bytes().map(|it| format!("%{it:02x}")).collect();
        assert_eq!(gateway.get(&format!("/ask-other?url={query}"), &[]).await.text(), told, "{url}");
    }
    assert_eq!((service.n_connections(), stranger.n_connections()), (0, 0));
    // Another path of the same host is fine; where it points to is not followed.
    let mut client =
        sent(&gateway, &format!("/ask-other?url=http%3A%2F%2F{}%2Fother", service.address)).await;
    let asked = service.asked().await;
    assert_eq!(asked.path(), "/other");
    asked
        .send(&format!(
            "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 4\r\n\r\ngone",
            stranger.url("/")
        ))
        .await;
    assert_eq!(client.answer().await.text(), "302 gone");
    assert_eq!(stranger.n_connections(), 0);
}

/// Counts its beginnings and the runs of its timers.
const TICKER: &str = r#"
local metrics, timer = require "streamgate.metrics", require "streamgate.timer"
local me = require("streamgate.uuid").v4()
local begun = metrics.counter("begun_total", "x")
local ticks = metrics.counter("ticks_total", "x", { "kind" })
local ballast = {}
for idx = 1, 20 do ballast[idx] = (tostring(idx) .. " "):rep(20000) end
return {
  init = function()
    begun:add(1)
    timer.every(1, function() ticks:add(1, "each") end)
    timer.every(1, function() ticks:add(1, "once") end, { once = true })
  end,
  on_request = function(request) return request:respond(200, { ["x-vm"] = me }, tostring(#ballast)) end,
}
"#;

fn ticker(upstream: &Upstream, clock: &Clock, n_workers: usize) -> Builder {
    Gateway::in_front_of(upstream)
        .env("STREAMGATE_WORKERS", &n_workers.to_string())
        .with(PATHS)
        .plugin("ticker", "return { summary = \"Ticks.\", phases = { \"init\", \"on_request\" } }", TICKER)
        .chain("\"ticker\"")
        .on(clock)
}

#[tokio::test]
async fn timers_run_once_for_all_or_in_each_worker_and_end_with_a_reload() {
    let (clock, n_workers) = (Clock::paused(), 2);
    let upstream = Upstream::that(Act::Mirror).await;
    let builder = ticker(&upstream, &clock, n_workers);
    let file = builder.text();
    let gateway = builder.start().await;
    let n_ticks = |kind| gateway.metric("streamgate_plugin_ticker_ticks_total", &[("kind", kind)]);
    let until_begun = |n: usize| {
        gateway.until_metric("streamgate_plugin_ticker_begun_total", &[], (n * n_workers) as f64);
    };
    until_begun(1);
    let (mut n_seconds, nobody) = (0, BTreeSet::new());
    let mut each_second_counts_once = async || {
        for _ in 0..3 {
            // Once each worker has answered, its timers wait for the next second.
            of_workers(&gateway, "/x", n_workers, &nobody).await;
            n_seconds += 1;
            clock.advance(Duration::from_secs(1));
            let labels = [("kind", "each")];
            let expected = (n_seconds * n_workers) as f64;
            gateway.until_metric("streamgate_plugin_ticker_ticks_total", &labels, expected);
            gateway.until_metric(
                "streamgate_plugin_ticker_ticks_total",
                &[("kind", "once")],
                n_seconds as f64,
            );
        }
        of_workers(&gateway, "/x", n_workers, &nobody).await;
        assert_eq!((n_ticks("each"), n_ticks("once")), ((n_seconds * n_workers) as f64, n_seconds as f64));
    };
    each_second_counts_once().await;
    let mut kept = Vec::new();
    for n in 1..=20 {
        // Connections that stay open are of the configuration before.
        for _ in 0..2 {
            let mut client = sent(&gateway, "/x").await;
            assert_eq!(client.answer().await.status, 200);
            kept.push(client);
        }
        gateway.reload(&file).expect("valid");
        until_begun(n + 1);
    }
    each_second_counts_once().await;
    for client in &mut kept {
        client.request("GET", "/x", &[], b"").await;
        assert_eq!(client.answer().await.status, 200, "it is still good");
    }
}

/// The memory of this process, in bytes.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let n_pages: f64 = text.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("a number");
    n_pages * 4096.0
}

#[tokio::test]
async fn a_thousand_reloads_leave_the_memory_as_it_was() {
    let clock = Clock::paused();
    let upstream = Upstream::that(Act::Mirror).await;
    let builder = ticker(&upstream, &clock, 1);
    let file = builder.text();
    let gateway = builder.start().await;
    gateway.until_metric("streamgate_plugin_ticker_begun_total", &[], 1.0);
    let began = Instant::now();
    let mut measured = Vec::new();
    for n in 1..=1000 {
        gateway.reload(&file).expect("valid");
        gateway.until_metric("streamgate_plugin_ticker_begun_total", &[], f64::from(n + 1));
        if n == 100 || n == 1000 {
            // Once the worker has answered, its timers wait for the next second.
            assert_eq!(gateway.get("/x", &[]).await.status, 200);
            clock.advance(Duration::from_secs(5));
            assert_eq!(gateway.get("/x", &[]).await.status, 200);
            gateway.until_metric(
                "streamgate_plugin_ticker_ticks_total",
                &[("kind", "once")],
                if n == 100 { 1.0 } else { 2.0 },
            );
            let lua = gateway.metric("streamgate_lua_memory_bytes", &[("worker", "0")]);
            measured.push((lua, resident()));
        }
    }
    let [(lua_before, before), (lua_after, after)] = measured[..] else { unreachable!("two measurements") };
    assert!(lua_before > 1e6, "the ballast of one VM: {lua_before}");
    assert!(lua_after / lua_before < 1.2, "{lua_before} bytes of Lua became {lua_after}");
    assert!(after / before < 1.3, "{before} bytes became {after}");
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_a_plugin_counts_is_shown_and_bounded() {
    let upstream = Upstream::that(Act::Mirror).await;
    let plugin = r#"
local metrics = require "streamgate.metrics"
local seen = metrics.counter("seen_total", "Who was seen.", { "who", "how" })
local level = metrics.gauge("level", "How high it is.")
local took = metrics.histogram("seconds", "How long it took.", { "what" }, { 0.5, 1 })
local rare = metrics.counter("rare_total", "What has not happened yet.")
local n = 0
return { on_request = function(request)
  n = n + 1
  for idx = 1, 250 do seen:add(1, "visitor-" .. idx, "by foot") end
  seen:add(2, ("long"):rep(100), "quote\" and \\ and \n")
  level:set(n / 2)
  for _, it in ipairs { 0.1, 0.7, 5 } do took:observe(it, "walk") end
  return request:respond(200)
end }"#;
    let gateway = Gateway::in_front_of(&upstream)
        .env("STREAMGATE_WORKERS", "1")
        .with(PATHS)
        .plugin("guest-book", "return { summary = \"Counts.\", phases = { \"on_request\" } }", plugin)
        .chain("\"guest-book\"")
        .start()
        .await;
    let shown = async || {
        let mut client = Client::connect(gateway.addresses.admin.expect("it has one")).await;
        client.request("GET", "/metrics", &[], b"").await;
        let text = client.answer().await.text();
        text.lines().filter(|it| it.contains("guest_book")).map(str::to_owned).collect::<Vec<_>>()
    };
    // Without labels there is one value, and it is there from the start.
    let lines = shown().await;
    for line in [
        "# HELP streamgate_plugin_guest_book_rare_total What has not happened yet.",
        "streamgate_plugin_guest_book_rare_total 0",
        "streamgate_plugin_guest_book_level 0",
    ] {
        assert!(lines.iter().any(|it| it == line), "{line} is missing in {lines:#?}");
    }
    for round in 1..=2 {
        assert_eq!(gateway.get("/x", &[]).await.status, 200);
        let lines = shown().await;
        let has = |line: String| assert!(lines.contains(&line), "{line} is missing in {lines:#?}");
        has("# HELP streamgate_plugin_guest_book_seen_total Who was seen.".into());
        has("# TYPE streamgate_plugin_guest_book_seen_total counter".into());
        has(format!("streamgate_plugin_guest_book_seen_total{{how=\"by foot\",who=\"visitor-1\"}} {round}"));
        has(format!(
            "streamgate_plugin_guest_book_seen_total{{how=\"by foot\",who=\"visitor-200\"}} {round}"
        ));
        // 50 visitors too many, and the two of another kind.
        has(format!("streamgate_plugin_guest_book_seen_total{{how=\"other\",who=\"other\"}} {}", 52 * round));
        let n_series = lines.iter().filter(|it| it.starts_with("streamgate_plugin_guest_book_seen_total{"));
        assert_eq!(n_series.count(), 201);
        let level = if round == 1 { "0.5" } else { "1" };
        has(format!("streamgate_plugin_guest_book_level {level}"));
        for (bound, n) in [("0.5", 1), ("1", 2), ("+Inf", 3)] {
            has(format!(
                "streamgate_plugin_guest_book_seconds_bucket{{what=\"walk\",le=\"{bound}\"}} {}",
                n * round
            ));
        }
        has(format!("streamgate_plugin_guest_book_seconds_count{{what=\"walk\"}} {}", 3 * round));
    }
}

#[tokio::test]
async fn a_plugin_that_refuses_its_settings_refuses_the_reload() {
    let upstream = Upstream::that(Act::Mirror).await;
    let folder = Folder::new();
    folder.write(
        "plugins/picky/schema.lua",
        "return { summary = \"Picky.\", phases = { \"on_request\" }, fields = { size = { type = \"integer\", required = true, doc = \"x\" } } }",
    );
    folder.write(
        "plugins/picky/plugin.lua",
        "return {\n  configure = function(conf) if conf.size == 0 then error(\"size: nothing fits in it\", 0) end return { size = conf.size * 2 } end,\n  self_test = function(conf) if conf.size > 20 then error \"it does not fit in here\" end end,\n  on_request = function(request, conf) return request:respond(200, {}, tostring(conf.size)) end,\n}",
    );
    let text = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[upstream]\nserver = \"http://{}\"\napi_key = \"env:KEY\"\nfunction_id = {FUNCTION:?}\n[plugins]\npaths = [\"plugins\"]\n[[route]]\npath = \"/**\"\nchain = [{{ plugin = \"picky\", size = SIZE }}]\n",
        upstream.address
    );
    let write =
        |size: &str| folder.write("streamgate.toml", &text.replace("SIZE", size)).display().to_string();
    let mut process = Process::start(&["run", "--config", &write("4")], &[("KEY", KEY)]);
    let (address, admin) = (process.address("gateway").await, process.address("admin").await);
    let get = async |address, path: &str| {
        let mut client = Client::connect(address).await;
        client.request("GET", path, &[], b"").await;
        client.answer().await.text()
    };
    assert_eq!(get(address, "/x").await, "8");
    for (n, (size, told)) in [("0", "size: nothing fits in it"), ("11", "plugin.lua:3"), ("\"many\"", "size")]
        .into_iter()
        .enumerate()
    {
        write(size);
        process.signal("HUP").await;
        process.stderr.line_with(told).await;
        // One such line for each.
        let refusals = async {
            while process.stderr.text().matches("stays as it was").count() <= n {
                tokio::task::yield_now().await;
            }
        };
        soon("a refusal", refusals).await;
        assert_eq!(get(address, "/x").await, "8", "{size}: the old one serves");
        let metrics = get(admin, "/metrics").await;
        for line in [
            format!("streamgate_reloads_total{{result=\"failed\"}} {}", n + 1),
            "streamgate_generation 1".into(),
        ] {
            assert!(metrics.lines().any(|it| it == line), "{size}: {line} is missing");
        }
    }
    write("10");
    process.signal("HUP").await;
    let is_loaded = async {
        while !get(admin, "/metrics").await.contains("streamgate_reloads_total{result=\"ok\"} 1\n") {
            tokio::task::yield_now().await;
        }
    };
    soon("a reload", is_loaded).await;
    assert_eq!(get(address, "/x").await, "20");
    process.signal("TERM").await;
    assert!(process.ended().await.success());
}

#[tokio::test]
async fn who_leaves_while_a_plugin_waits_is_waited_for_no_more() {
    let upstream = Upstream::that(Act::Mirror).await;
    let mut service = Service::start().await;
    let gateway = scribe(&upstream, &service.url("/"), 1).start().await;
    for (n, (is_websocket, is_reset)) in
        [(false, false), (false, true), (true, false), (true, true)].into_iter().enumerate()
    {
        let mut client = gateway.connect().await;
        match is_websocket {
            true => client.upgrade("/ask", &[]).await,
            false => client.request("GET", "/ask", &[], b"").await,
        }
        let mut asked = service.asked().await;
        match is_reset {
            true => client.reset(),
            false => drop(client),
        }
        asked.is_left().await;
        let labels = [("route", "/**"), ("status", "499")];
        gateway.until_metric("streamgate_requests_total", &labels, (n + 1) as f64);
    }
    gateway.until_metric("streamgate_session_starts_total", &[("result", "browser_gone")], 2.0);
    assert_eq!(gateway.get("/vm", &[]).await.status, 200);
    assert!(upstream.heads().is_empty(), "nothing of it went upstream");
}

/// What a browser sends while a plugin waits is not lost.
#[tokio::test]
async fn what_comes_while_a_plugin_waits_is_kept() {
    let mut upstream = Upstream::that(Act::Accept(ID.into())).await;
    let mut service = Service::start().await;
    let plugin = "local http = require \"streamgate.http\"\nreturn { authorize = function(request, conf) http.get(conf.url) end }";
    let gateway = Gateway::in_front_of(&upstream)
        .with(PATHS)
        .plugin("waits", SCRIBE_SCHEMA, plugin)
        .chain(&format!("{{ plugin = \"waits\", url = {:?} }}", service.url("/")))
        .start()
        .await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    let asked = service.asked().await;
    client.send(&from_browser(1, b"early")).await;
    asked.answer(200, "").await;
    assert_eq!(client.answer().await.status, 101);
    let mut leg = upstream.leg().await;
    assert_eq!(leg.frame().await.expect("a frame").payload, b"early");

    let mirror = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&mirror)
        .with(PATHS)
        .plugin("waits", SCRIBE_SCHEMA, plugin)
        .chain(&format!("{{ plugin = \"waits\", url = {:?} }}", service.url("/")))
        .start()
        .await;
    // A body in two parts, far more than is kept, and the next request after it.
    let body: String = (0..20_000).map(|it| format!("{it},")).collect();
    let mut client = gateway.connect().await;
    let head = format!("POST /x HTTP/1.1\r\nHost: gateway.example\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send(format!("{head}{}", &body[..10]).as_bytes()).await;
    let asked = service.asked().await;
    let (answer, ()) = tokio::join!(
        async {
            client.send(&body.as_bytes()[10..]).await;
            client.answer().await
        },
        asked.answer(200, "")
    );
    assert_eq!(answer.status, 200);
    assert!(answer.text().ends_with(&body), "the whole body has arrived");
    client.request("GET", "/next", &[], b"").await;
    service.asked().await.answer(200, "").await;
    assert!(client.answer().await.text().starts_with("GET /next "));
    let (_, answer) = ask(&gateway, "/sign_in", &[("Connection", "close"), ("Upgrade", "")]).await;
    assert_eq!(answer.status, 400, "a broken handshake asks no plugin");
}
