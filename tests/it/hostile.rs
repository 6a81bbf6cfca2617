//! Scripts that never end, or never stop growing: each is stopped within its budget, and nobody else notices.

use std::time::{Duration, Instant};

use crate::support::raw::from_browser;
use crate::support::upstream::Act;
use crate::support::{Gateway, Upstream, log};

/// What a call may take here. Much more than the default, so that a busy machine is no reason to fail, and still nothing
/// against what the scripts would take.
const BUDGET: &str = "[plugins]\npaths = [\"plugins\"]\nbudget = \"50ms\"";

/// Each script, by what it does, and the kind of failure that it is.
const SCRIPTS: &[(&str, &str, &str)] = &[
    ("an endless loop", "while true do end", "time"),
    ("a loop that catches its own end", "while true do pcall(function() while true do end end) end", "time"),
    ("a loop in a loop of pcall", "local function f() while true do pcall(f) end end f()", "time|runtime"),
    ("a message handler without end", "xpcall(error, function() while true do end end)", "time"),
    (
        "a coroutine without end",
        "coroutine.resume(coroutine.create(function() while true do end end))",
        "time",
    ),
    ("a wrapped coroutine without end", "coroutine.wrap(function() while true do end end)()", "time"),
    (
        "coroutines in coroutines",
        "local function f() coroutine.wrap(function() pcall(f) while true do end end)() end f()",
        "time|runtime",
    ),
    (
        "a coroutine that resumes others for ever",
        "local co = coroutine.wrap(function() while true do coroutine.yield() end end) while true do co() end",
        "time",
    ),
    (
        "a coroutine whose close has no end",
        "local co = coroutine.create(function() local x <close> = setmetatable({}, { __close = function() while true do end end }) coroutine.yield() end) coroutine.resume(co) coroutine.close(co)",
        "time",
    ),
    (
        "a variable whose close has no end",
        "do local x <close> = setmetatable({}, { __close = function() while true do end end }) end",
        "time",
    ),
    (
        "an index without end",
        "local t = setmetatable({}, { __index = function(t, k) while true do end end }) local x = t.y",
        "time",
    ),
    ("a comparison without end", "table.sort({ 1, 2, 3 }, function() while true do end end)", "time"),
    ("a pattern that backtracks", "(\"x\"):rep(5000):find \".-.-b\"", "time"),
    ("a pattern that backtracks in gsub", "(\"x\"):rep(20000):gsub(\".-.-b\", \"\")", "time"),
    ("a pattern that backtracks in gmatch", "for _ in (\"x\"):rep(20000):gmatch \".-.-b\" do end", "time"),
    ("a pattern of many stars", "(\"a\"):rep(30):match((\"a*\"):rep(30) .. \"b\")", "time"),
    (
        "a pattern that is caught",
        "while true do pcall(string.find, (\"x\"):rep(5000), \".-.-b\") end",
        "time",
    ),
    ("a move over all integers", "table.move({}, 1, math.maxinteger - 1, 2)", "time"),
    (
        "an insert into what says it is huge",
        "table.insert(setmetatable({}, { __len = function() return 1 << 60 end }), 1, 1)",
        "time",
    ),
    (
        "a remove from what says it is huge",
        "table.remove(setmetatable({}, { __len = function() return 1 << 60 end }), 1)",
        "time",
    ),
    (
        "a concat of what never ends",
        "table.concat(setmetatable({}, { __index = function() return \"x\" end }), \"\", 1, 1 << 40)",
        "time|memory",
    ),
    ("a repetition of a gigabyte", "local s = (\"x\"):rep(1 << 30)", "runtime"),
    ("a repetition that a string counts", "local s = (\"x\"):rep(\"1e9\")", "runtime"),
    ("a repetition that is too large for a number", "local s = (\"abcd\"):rep(1 << 62)", "runtime"),
    ("nothing, repeated for years", "while true do local s = (\"\"):rep(1 << 62, \"\") end", "time"),
    (
        "a table that is in itself a thousand million times",
        "local t = {} for _ = 1, 30 do t = { t, t } end require(\"streamgate.json\").encode(t)",
        "contract|time",
    ),
    (
        "one string in a table three hundred times",
        "local t, s = {}, (\"x\"):rep(1 << 20) for i = 1, 300 do t[i] = s end require(\"streamgate.json\").encode(t)",
        "contract",
    ),
    (
        "a string of more than there may be",
        "local s = (\"x\"):rep(1 << 20) for _ = 1, 4 do s = s .. s .. s .. s end",
        "memory|time",
    ),
    ("a string that doubles", "local s = \"x\" while true do s = s .. s end", "memory|time"),
    ("a table that grows", "local t = {} while true do t[#t + 1] = { #t } end", "memory|time"),
    ("many coroutines", "local t = {} while true do t[#t + 1] = coroutine.create(print) end", "memory|time"),
    ("a recursion without end", "local function f() return 1 + f() end f()", "runtime|time|memory"),
    (
        "a recursion of metamethods",
        "local t = setmetatable({}, {}) getmetatable(t).__index = function(t, k) return t[k .. k] end local x = t.y",
        "runtime|time|memory",
    ),
];

fn schema() -> String {
    "return { summary = \"Hostile.\", phases = { \"authenticate\" } }".into()
}

/// The plugin runs the script that the path names; in the second form the phase may wait.
fn plugin(waits: bool) -> String {
    let mut text = String::new();
    if waits {
        text += "local time = require \"streamgate.time\"\nlocal kv = require \"streamgate.kv\"\n";
    }
    text += "local scripts = {\n";
    for (_, script, _) in SCRIPTS {
        text += &format!("  function() {script} end,\n");
    }
    text += "}\nreturn { authenticate = function(request)\n  local n = request:path():match \"^/script/(%d+)$\"\n  if n then\n";
    if waits {
        text += "    time.sleep(0)\n    kv.get \"x\"\n";
    }
    text + "    scripts[tonumber(n)]()\n  end\nend }"
}

async fn each_is_stopped(waits: bool) {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream)
        .env("STREAMGATE_WORKERS", "1")
        .with(BUDGET)
        .plugin("hostile", &schema(), &plugin(waits))
        .chain("\"hostile\"")
        .start()
        .await;
    for (idx, (what, _, kinds)) in SCRIPTS.iter().enumerate() {
        let answer = gateway.get(&format!("/script/{}", idx + 1), &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (500, "plugin.failed"), "{what}");
        let id = answer.json("request_id");
        let text = log::text();
        let at = text.find(&format!("request={id} kind=")).unwrap_or_else(|| panic!("{what}: an entry"));
        let kind = text[at..].split("kind=").nth(1).and_then(|it| it.split([' ', '\n']).next());
        assert!(
            kind.is_some_and(|it| kinds.split('|').any(|kind| it.trim_matches('"') == kind)),
            "{what}: expected {kinds}, got {kind:?}"
        );
        assert_eq!(gateway.get("/well", &[]).await.status, 200, "after {what} the next request is served");
    }
}

#[tokio::test]
async fn every_hostile_script_is_stopped() {
    each_is_stopped(false).await;
}

#[tokio::test]
async fn every_hostile_script_is_stopped_where_a_phase_may_wait() {
    each_is_stopped(true).await;
}

/// How long the slowest of some echoes through an open session takes, while requests for a path keep the worker busy. The
/// slowest one is the ninety-ninth percentile of as few as these.
async fn slowest_echo(gateway: &Gateway, upstream: &mut Upstream, path: &str) -> Duration {
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    assert_eq!(client.answer().await.status, 101);
    let mut leg = upstream.leg().await;
    let busy = async {
        loop {
            assert_eq!(gateway.get(path, &[]).await.status, if path == "/legal" { 200 } else { 500 });
        }
    };
    let echoes = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..40 {
            let began = Instant::now();
            client.send(&from_browser(1, b"still here")).await;
            let sent = leg.frame().await.expect("a frame");
            leg.send(1, &sent.payload).await;
            assert_eq!(client.frame().await.expect("a frame").payload, b"still here");
            slowest = slowest.max(began.elapsed());
        }
        slowest
    };
    tokio::select! {
        slowest = echoes => slowest,
        () = busy => unreachable!("requests have no end"),
    }
}

#[tokio::test]
async fn a_session_beside_a_hostile_script_waits_no_longer_than_beside_one_within_its_budget() {
    let mut upstream = Upstream::start().await;
    let legal = "local time = require \"streamgate.time\"\nreturn { authenticate = function(request)\n  if request:path() == \"/legal\" then\n    local over = time.monotonic() + 0.04\n    while time.monotonic() < over do end\n    return request:respond(200)\n  end\nend }";
    let gateway = Gateway::in_front_of(&upstream)
        .env("STREAMGATE_WORKERS", "1")
        .with(BUDGET)
        .plugin("legal", &schema(), legal)
        .plugin("hostile", &schema(), &plugin(false))
        .chain("\"legal\", \"hostile\"")
        .start()
        .await;
    // Budgets end within 50 ms of CPU time, so a hostile script may cost its neighbours what a slow one costs them.
    for idx in [0, 4, 12] {
        let mut ratios = Vec::new();
        // What else the machine does makes an echo slower, so the best of a few tries counts.
        while ratios.len() < 3 && !ratios.iter().any(|it| *it < 4.0) {
            let beside_legal = slowest_echo(&gateway, &mut upstream, "/legal").await;
            let beside_hostile = slowest_echo(&gateway, &mut upstream, &format!("/script/{}", idx + 1)).await;
            ratios.push(beside_hostile.as_secs_f64() / beside_legal.as_secs_f64());
        }
        let name = SCRIPTS[idx].0;
        assert!(
            ratios.iter().any(|it| *it < 4.0),
            "{name}: the slowest echo took {ratios:.1?} times as long"
        );
    }
}

#[tokio::test]
async fn a_plugin_that_never_ends_is_not_loaded() {
    let upstream = Upstream::that(Act::Mirror).await;
    let loading = "while true do end";
    for (schema, plugin) in [
        (schema().as_str(), loading),
        (
            schema().as_str(),
            "return { authenticate = function() end, configure = function() while true do end end }",
        ),
        (
            schema().as_str(),
            "return { authenticate = function() end, self_test = function() (\"x\"):rep(20000):find \".-.-b\" end }",
        ),
        ("while true do end", "return {}"),
    ] {
        let told = Gateway::in_front_of(&upstream)
            .with("[plugins]\npaths = [\"plugins\"]")
            .plugin("endless", schema, plugin)
            .chain("\"endless\"")
            .problems();
        assert!(told.contains("the script has used up its time"), "{told}");
    }
}
