//! Policies in Lua, as a gateway runs them.

use crate::support::upstream::{Act, header};
use crate::support::{FUNCTION, Gateway, TOKEN, Upstream, log};

/// Says how its answer ends, in every way in which that is not for it to say.
const FRAMES: &str = r#"
local M = {}
function M.on_request(request)
  local status = tonumber(request:path():sub(2))
  local headers = { ["Transfer-Encoding"] = "chunked", ["content-length"] = { "5", "99" }, connection = "x", upgrade = "h2c" }
  if status == 401 then return request:reject("auth.missing_token", headers) end
  return request:respond(status, headers, "hello")
end
return M
"#;

const SCHEMA: &str = "return { summary = \"A plugin of a test.\", phases = { \"PHASE\" } }";

fn schema(phase: &str) -> String {
    SCHEMA.replace("PHASE", phase)
}

#[tokio::test]
async fn what_a_plugin_answers_ends_where_the_gateway_says() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream)
        .plugin("frames", &schema("on_request"), FRAMES)
        .with("[plugins]\npaths = [\"plugins\"]")
        .chain("\"frames\"")
        .start()
        .await;
    // One connection: the next answer begins where the last one has ended.
    let mut client = gateway.connect().await;
    for (status, method, length, body) in [
        (200, "GET", Some("5"), "hello"),
        (200, "HEAD", Some("5"), ""),
        (204, "GET", None, ""),
        (205, "GET", Some("0"), ""),
        (304, "GET", None, ""),
        (418, "GET", Some("5"), "hello"),
    ] {
        client.request(method, &format!("/{status}"), &[], b"").await;
        let answer = client.answer_to(method).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, body), "{method}");
        assert_eq!(answer.header("content-length").as_deref(), length, "{status}");
        assert_eq!(answer.header("connection").as_deref(), Some("keep-alive"), "{status}");
        assert_eq!((answer.header("transfer-encoding"), answer.header("upgrade")), (None, None), "{status}");
    }
    client.request("GET", "/401", &[], b"").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "auth.missing_token"));
    assert_eq!(answer.all("content-length"), [answer.body.len().to_string()]);
    assert_eq!(answer.header("transfer-encoding"), None);
    assert!(client.buf.is_empty());
}

#[tokio::test]
async fn a_plugin_that_raises_tells_the_browser_nothing_and_the_log_everything() {
    for phase in ["on_request", "authenticate", "authorize", "upstream_request", "response_headers"] {
        let upstream = Upstream::that(Act::Mirror).await;
        let plugin = format!(
            "local M = {{}}\nlocal function inner(request)\n  local missing\n  return missing.field\nend\nfunction M.{phase}(request)\n  local found = inner(request)\n  return found\nend\nreturn M\n"
        );
        let gateway = Gateway::in_front_of(&upstream)
            .plugin("broken", &schema(phase), &plugin)
            .with("[plugins]\npaths = [\"plugins\"]")
            .chain("\"cors\", \"broken\"")
            .start()
            .await;
        for websocket in [false, true] {
            let mut client = gateway.connect().await;
            match websocket {
                true => client.upgrade("/sign_in", &[]).await,
                false => client.request("GET", "/x", &[], b"").await,
            }
            if websocket && phase == "response_headers" {
                continue; // the mirror opens no WebSocket
            }
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.code().as_str()), (500, "plugin.failed"), "{phase}");
            for inner in ["lua", "missing", "broken", "field", "nil"] {
                assert!(!answer.text().contains(inner), "{phase}: {}", answer.text());
            }
            let id = answer.json("request_id");
            let text = log::text();
            let at =
                text.find(&format!("request={id}")).unwrap_or_else(|| panic!("{phase}: nothing in the log"));
            let entry = &text[at.saturating_sub(400)..(at + 1500).min(text.len())];
            for part in [
                "plugins/broken/plugin.lua:4:",
                "attempt to index a nil value (local 'missing')",
                "stack traceback",
                "plugin.lua:7:",
                &format!("phase=\"{phase}\""),
            ] {
                assert!(entry.contains(part), "{phase}: {part} is missing in {entry}");
            }
        }
        let errors = gateway.metric(
            "streamgate_plugin_errors_total",
            &[("kind", "runtime"), ("phase", phase), ("plugin", "broken")],
        );
        assert!(errors >= 1.0, "{phase}: {errors}");
    }
}

#[tokio::test]
async fn a_plugin_that_fails_in_the_log_phase_harms_nobody() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream)
        .plugin("broken", &schema("log"), "return { log = function() error(\"oops\") end }")
        .with("[plugins]\npaths = [\"plugins\"]")
        .chain("\"broken\"")
        .start()
        .await;
    assert_eq!(gateway.get("/x", &[]).await.status, 200);
    gateway.until_metric(
        "streamgate_plugin_errors_total",
        &[("kind", "runtime"), ("phase", "log"), ("plugin", "broken")],
        1.0,
    );
}

#[tokio::test]
async fn the_log_phase_sees_what_the_browser_was_told() {
    let upstream = Upstream::that(Act::InTurn(vec![Act::Mirror, Act::Accept("X-Own: yes\r\n".into())])).await;
    let plugin = "local names = { \"x-own\", \"access-control-allow-origin\", \"content-type\" }\n\
         return { log = function(request, response)\n\
           local seen = { response:status(), request:path() }\n\
           for _, name in ipairs(names) do seen[#seen + 1] = response:header(name) or \"none\" end\n\
           seen[#seen + 1] = request:get \"function_id\" or \"none\"\n\
           require(\"streamgate.log\").warn(table.concat(seen, \" \"))\n\
         end }";
    let gateway = Gateway::in_front_of(&upstream)
        .plugin("witness", &schema("log"), plugin)
        .with("[plugins]\npaths = [\"plugins\"]\n[sessions.resume]\nmode = \"off\"")
        .chain("\"cors\", \"witness\"")
        .start()
        .await;
    assert_eq!(gateway.get("/x", &[]).await.status, 200);
    let mut browser = gateway.connect().await;
    browser.upgrade("/log", &[]).await;
    assert_eq!(browser.answer().await.status, 101);
    browser.reset();
    let mut odd = gateway.connect().await;
    odd.upgrade("/log", &[("Sec-WebSocket-Key", "short")]).await;
    assert_eq!(odd.answer().await.status, 400);
    gateway.until_metric("streamgate_session_ends_total", &[("reason", "browser_lost")], 1.0);
    for line in [
        format!("200 /x none * text/plain {FUNCTION}"),
        format!("101 /log yes * none {FUNCTION}"),
        "400 /log none * application/problem+json none".into(),
    ] {
        assert!(log::text().contains(&line), "{line} is missing in {:#?}", log::lines_with("A plugin"));
    }
}

#[tokio::test]
async fn what_a_plugin_may_not_do_fails_closed() {
    for (what, phase, body, told) in [
        (
            "a forgotten return",
            "authenticate",
            "request:reject \"auth.missing_token\"",
            "did not return what request:reject",
        ),
        ("a wrong return", "authenticate", "return true", "returned a boolean"),
        (
            "an unknown code",
            "authenticate",
            "return request:reject \"no.such_code\"",
            "neither the gateway's nor in schema.lua",
        ),
        (
            "two decisions",
            "authenticate",
            "request:reject \"auth.missing_token\" return request:respond(200)",
            "once",
        ),
        ("a split header", "upstream_request", "local u = ... ", ""),
        (
            "a rejection of a response",
            "response_headers",
            "return request:reject \"auth.missing_token\"",
            "request:reject can be called in on_request, authenticate, authorize, select, upstream_request, session_message, session_tick, not in response_headers",
        ),
        (
            "a principal without id",
            "authenticate",
            "request:set(\"principal\", { name = \"x\" })",
            "whose `id` is a string",
        ),
        (
            "a finaliser",
            "authenticate",
            "setmetatable({}, { __gc = function() end })",
            "`__gc` is not available",
        ),
        (
            "a global of Lua that is not there",
            "authenticate",
            "os.execute(\"true\")",
            "attempt to call a nil value (field 'execute')",
        ),
        ("a module that is not there", "authenticate", "require \"socket\"", "no module \"socket\""),
        ("bytecode", "authenticate", "load(\"\\27Lua\")", "attempt to call a nil value (global 'load')"),
    ] {
        if told.is_empty() {
            continue;
        }
        let upstream = Upstream::that(Act::Mirror).await;
        let plugin = format!("return {{ {phase} = function(request) {body} end }}");
        let gateway = Gateway::in_front_of(&upstream)
            .plugin("odd", &schema(phase), &plugin)
            .with("[plugins]\npaths = [\"plugins\"]")
            .chain("\"odd\"")
            .start()
            .await;
        let answer = gateway.get("/x", &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (500, "plugin.failed"), "{what}");
        let id = answer.json("request_id");
        let text = log::text();
        let at = text.find(&format!("request={id}")).expect("an entry");
        let entry = &text[at.saturating_sub(400)..(at + 1500).min(text.len())];
        assert!(entry.contains(told), "{what}: {entry}");
    }
}

#[tokio::test]
async fn a_memory_bomb_costs_its_own_request_alone() {
    let upstream = Upstream::that(Act::Mirror).await;
    let bomb = "local kept = {}\nreturn { authenticate = function(request)\n  if request:path() == \"/bomb\" then\n    local s = \"x\"\n    while true do s = s .. s; kept[#kept + 1] = s end\n  end\nend }";
    let gateway = Gateway::in_front_of(&upstream)
        .env("STREAMGATE_WORKERS", "1")
        .with("[plugins]\npaths = [\"plugins\"]\nbudget = \"10s\"")
        .plugin("bomb", &schema("authenticate"), bomb)
        .chain("\"bomb\"")
        .start()
        .await;
    for round in 1..=3 {
        assert_eq!(gateway.get("/bomb", &[]).await.code(), "plugin.failed");
        assert_eq!(gateway.get("/x", &[]).await.status, 200, "a fresh VM serves the next request");
        let kills = gateway.metric(
            "streamgate_plugin_errors_total",
            &[("kind", "memory"), ("phase", "authenticate"), ("plugin", "bomb")],
        );
        assert_eq!(kills, f64::from(round));
    }
}

#[tokio::test]
async fn plugins_do_not_see_each_others_globals() {
    let upstream = Upstream::that(Act::Mirror).await;
    let first = "leak = \"first\"\nstring.upper = function() return \"hijacked\" end\nreturn { on_request = function() _G.other = 1 end }";
    let second = "return { on_request = function(request) return request:respond(200, {}, tostring(leak) .. tostring(other) .. (\"x\"):upper() .. string.upper(\"y\")) end }";
    let gateway = Gateway::in_front_of(&upstream)
        .with("[plugins]\npaths = [\"plugins\"]")
        .plugin("first", &schema("on_request"), first)
        .plugin("second", &schema("on_request"), second)
        .chain("\"first\", \"second\"")
        .start()
        .await;
    assert_eq!(gateway.get("/x", &[]).await.text(), "nilnilXY");
}

#[tokio::test]
async fn a_handle_that_was_kept_is_of_no_use_later() {
    let upstream = Upstream::that(Act::Mirror).await;
    let keeper = "local kept\nreturn { on_request = function(request) kept = kept or request end, log = function() kept = kept end }";
    let thief = "local stolen = {}\nreturn { response_headers = function(request, response) stolen.response = response end, on_request = function(request)\n  if stolen.response then return request:respond(200, {}, tostring(pcall(stolen.response.status, stolen.response))) end\nend }";
    let two = "return { summary = \"x\", phases = { \"on_request\", \"log\" } }";
    let three = "return { summary = \"x\", phases = { \"on_request\", \"response_headers\" } }";
    let gateway = Gateway::in_front_of(&upstream)
        .env("STREAMGATE_WORKERS", "1")
        .with("[plugins]\npaths = [\"plugins\"]")
        .plugin("keeper", two, keeper)
        .plugin("thief", three, thief)
        .chain("\"keeper\", \"thief\"")
        .start()
        .await;
    assert_eq!(gateway.get("/x", &[]).await.status, 200);
    assert!(
        gateway.get("/x", &[]).await.text().starts_with("false"),
        "response:status is not for on_request"
    );
}

#[tokio::test]
async fn requests_at_once_do_not_mix() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream).env("STREAMGATE_WORKERS", "1").chain("\"cors\", { plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }, { plugin = \"inject-headers\", set = { x-who = \"{principal.id}\", x-tenant = \"{principal.tenant}\", x-path = \"{request.path}\" } }").start().await;
    let mut clients = Vec::new();
    for idx in 0..40 {
        let mut client = gateway.connect().await;
        let token = if idx % 2 == 0 { TOKEN } else { "token-of-bob" };
        client
            .request(
                "GET",
                &format!("/{idx}"),
                &[
                    ("Authorization", &format!("Bearer {token}")),
                    ("X-Who", "forged"),
                    ("Sec-WebSocket-Protocol", "function-id.only-of-bob"),
                ],
                b"",
            )
            .await;
        clients.push(client);
    }
    for (idx, mut client) in clients.into_iter().enumerate() {
        let answer = client.answer().await;
        if idx % 2 == 0 {
            assert_eq!(answer.code(), "function.forbidden", "ada may not use bob's function");
            continue;
        }
        let head = answer.text();
        assert_eq!(header(&head, "x-who").as_deref(), Some("bob"));
        assert_eq!(header(&head, "x-tenant"), None, "bob has no tenant");
        assert_eq!(header(&head, "x-path"), Some(format!("/{idx}")));
    }
}

#[tokio::test]
async fn no_spelling_of_a_path_goes_around_its_route() {
    let upstream = Upstream::that(Act::Mirror).await;
    let gateway = Gateway::in_front_of(&upstream)
        .file("tokens.toml", "[ada]\ntoken = \"of-ada\"\n")
        .with("[[route]]\npath = \"/api/**\"\nchain = [{ plugin = \"bearer-auth\", tokens = \"file:tokens.toml\" }]")
        .start()
        .await;
    for (path, status) in [
        ("/open", 200),
        ("/apis", 200),
        ("/api", 401),
        ("/api/x", 401),
        ("/%61pi/x", 401),
        ("/%61%70%69", 401),
        ("//api/x", 401),
        ("/api//x", 401),
        ("///%61pi", 401),
        ("http://gateway.example/api/x", 401),
        // An upstream may take these for one or for the other.
        ("/api%2fx", 400),
        ("/api%5Cx", 400),
        ("/api\\x", 400),
        ("/open%2f..%2fapi", 400),
        ("/open/%2e%2e/api", 400),
        ("/open%2fx", 200),
    ] {
        let answer = gateway.get(path, &[]).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        if status == 200 {
            assert!(
                answer.text().starts_with(&format!("GET {path} HTTP/1.1\r\n")),
                "it is passed on as it was"
            );
        }
    }
}

#[tokio::test]
async fn mistakes_in_plugins_are_told_with_file_and_line_before_anything_starts() {
    let upstream = Upstream::that(Act::Mirror).await;
    let check = |schema: &str, plugin: &str, chain: &str, parts: &[&str]| {
        let builder = Gateway::in_front_of(&upstream)
            .with("[plugins]\npaths = [\"plugins\"]")
            .plugin("odd", schema, plugin)
            .chain(chain);
        let told = builder.problems();
        for part in parts {
            assert!(told.contains(part), "{part} is missing in:\n{told}");
        }
    };
    let good = schema("authenticate");
    let plugin = "return { authenticate = function() end }";
    check(
        &good,
        "return {\n  authenticate = function(\n}",
        "\"odd\"",
        &["plugins/odd/plugin.lua:3", "1 problem, nothing was started"],
    );
    check(
        &good,
        "local x = nil\nlocal y = x.z\nreturn {}",
        "\"odd\"",
        &["plugins/odd/plugin.lua:2", "attempt to index a nil value"],
    );
    check(&good, "return 7", "\"odd\"", &["returned integer, expected the table of its phase functions"]);
    check(
        &good,
        "return { authentikate = function() end }",
        "\"odd\"",
        &[
            "plugins/odd/plugin.lua:1",
            "\"authentikate\", which is not a phase function; did you mean `authenticate`? Phases are init, on_request",
        ],
    );
    check(
        &good,
        "return { authenticate = function() end, log = function() end }",
        "\"odd\"",
        &["plugins/odd/plugin.lua:1", "has a function log, which schema.lua does not list"],
    );
    check(
        &schema("sometimes"),
        plugin,
        "\"odd\"",
        &["plugins/odd/schema.lua:1", "unknown phase \"sometimes\""],
    );
    check("return 7", plugin, "\"odd\"", &["plugins/odd/schema.lua", "expected a table"]);
    check("return {", plugin, "\"odd\"", &["plugins/odd/schema.lua:1"]);
    let fields = "return {\n  summary = \"x\",\n  phases = { \"authenticate\" },\n  fields = {\n    realm = { type = \"string\", default = 7, doc = \"x\" },\n    size = { type = \"colour\", doc = \"x\" },\n    id = { type = \"string\" },\n  },\n}";
    check(
        fields,
        plugin,
        "\"odd\"",
        &[
            "plugins/odd/schema.lua:5",
            "field `realm`: default is a whole number, the type is string",
            "schema.lua:6",
            "`type` is missing or unknown",
            "schema.lua:7",
            "belongs to the chain",
        ],
    );
    check(
        &good,
        plugin,
        "\"odd\", \"nowhere\"",
        &["streamgate.toml:", "no such plugin: searched", "the built-in ones ("],
    );
    check(
        &good,
        plugin,
        "{ plugin = \"odd\", colour = \"red\" }",
        &["streamgate.toml:", "unknown setting; this plugin has none"],
    );
    check(&good, plugin, "\"oddd\"", &["no such plugin: did you mean `odd`? Searched"]);
    check(&good, plugin, "\"core\"", &["no such plugin: did you mean `cors`?"]);
    check(
        &good,
        plugin,
        "{ plugin = \"cors\", max_ages = \"1h\" }",
        &["unknown setting; did you mean `max_age`? This plugin has allow_methods, "],
    );
    check(&schema("autenticate"), plugin, "\"odd\"", &["did you mean `authenticate`? There are init, "]);
    check(&good, plugin, "\"../odd\"", &["not a plugin's name"]);
    check(
        &good,
        plugin,
        "{ plugin = \"odd\", on_error = \"skip\" }",
        &["streamgate.toml:", "its failure would let everybody in"],
    );
    check(
        &schema("on_request"),
        "return { on_request = function() end }",
        "{ plugin = \"odd\", on_error = \"never\" }",
        &["on_error = \"never\"", "expected \"reject\", \"skip\" or \"close\""],
    );
    check(&good, plugin, "{ plugin = \"bearer-auth\" }", &["tokens", "missing: TOML file"]);
    check(
        &good,
        plugin,
        "{ plugin = \"bearer-auth\", tokens = \"secret-token\" }",
        &["expected the path of a token file"],
    );
    check(
        &good,
        plugin,
        "{ plugin = \"bearer-auth\", tokens = \"file:none.toml\" }",
        &["none.toml", "No such file"],
    );
    check(
        &good,
        plugin,
        "{ plugin = \"inject-headers\", set = 7 }",
        &["expected a map to strings, not a whole number"],
    );
    check(&good, plugin, "{ plugin = \"cors\", max_age = \"soon\" }", &["expected a duration"]);
    check(
        &good,
        plugin,
        "{ plugin = \"cors\", allow_methods = [\"GET\", 1] }",
        &["allow_methods[2] = 1", "expected a string, not a whole number"],
    );
    check(
        &good,
        plugin,
        "{ plugin = \"cors\", allow_methods = \"GET\" }",
        &["expected a list of strings, not a string"],
    );
    check(
        &good,
        plugin,
        "{ plugin = \"session-limit\", per_principal = 1.5 }",
        &["expected a whole number, not a number with a fraction"],
    );
    let bounds = "return {\n  summary = \"x\",\n  phases = { \"authenticate\" },\n  fields = {\n    opens = { type = \"integer\", default = 88, max = 23, doc = \"x\" },\n    rate = { type = \"number\", min = 2, max = 1, doc = \"x\" },\n    every = { type = \"duraton\", doc = \"x\" },\n  },\n}";
    check(
        bounds,
        plugin,
        "\"odd\"",
        &[
            "plugins/odd/schema.lua:5",
            "field `opens`: default is 88: expected at most 23",
            "schema.lua:6",
            "field `rate`: `min` is 2, `max` is 1: nothing lies between",
            "did you mean `duration`? There are string, ",
        ],
    );
}

#[tokio::test]
async fn a_token_file_that_is_none_is_told_without_its_tokens() {
    let upstream = Upstream::that(Act::Mirror).await;
    let file = "[ada]\ntoken = \"hunter2-same\"\n[bob]\ntoken = \"hunter2-same\"\n[eve]\nfunctions = \"hunter2\"\n[mal]\ntoken = 7\n[pat]\ntoken_sha256 = \"hunter2\"\n[-]\ntoken = \"hunter2-of-nobody\"\n";
    let told = Gateway::in_front_of(&upstream)
        .file("bad.toml", file)
        .chain("{ plugin = \"bearer-auth\", tokens = \"file:bad.toml\" }")
        .problems();
    for part in [
        "bad.toml:3",
        "another principal of this file has the same token",
        "eve.functions",
        "eve.token",
        "mal.token",
        "pat.token_sha256",
        "which stands for nobody",
        "6 problems",
    ] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
    assert!(!told.contains("hunter2"), "{told}");
}

#[tokio::test]
async fn a_gateway_that_must_authenticate_refuses_to_start_without() {
    let upstream = Upstream::that(Act::Mirror).await;
    let told = Gateway::in_front_of(&upstream).env("STREAMGATE_REQUIRE_AUTH", "true").problems();
    assert!(
        told.contains("route \"/**\"")
            && told.contains("authenticates nobody")
            && told.contains("bearer-auth"),
        "{told}"
    );
    assert_eq!(
        Gateway::in_front_of(&upstream).env("STREAMGATE_REQUIRE_AUTH", "true").authenticated().problems(),
        ""
    );
}

/// What a plugin does when it is loaded, and what its author is told, with the line.
const AT_LOAD: &[(&str, &str, &str)] = &[
    (
        "local metrics = require \"streamgate.metrics\"\nlocal refused = metrics.counter(\"refused\", \"x\")",
        "plugin.lua:2",
        "a counter's name ends with `_total`: refused_total",
    ),
    (
        "local m = require \"metrics\"",
        "plugin.lua:1",
        "no module \"metrics\"; did you mean `streamgate.metrics`? There are streamgate.base64, ",
    ),
    ("local m = require \"streamgate.tim\"", "plugin.lua:1", "did you mean `streamgate.time`?"),
    (
        "\nfor _ in ipairs(nil) do end",
        "plugin.lua:2",
        "attempt to index a nil value, which is what the loop goes over",
    ),
    ("\ntable.sort { 1, \"x\" }", "plugin.lua:2", "attempt to compare"),
    ("\nstring.rep()", "plugin.lua:2", "bad argument #1 to 'rep'"),
    ("\nerror { a = 1 }", "plugin.lua:2", "`error` got a table, and nobody can read that: give it a string"),
    ("\nerror()", "plugin.lua:2", "`error` got nil"),
    (
        "local n = require(\"streamgate.metrics\").counter(\"n_total\", \"x\")\nn.add(1)",
        "plugin.lua:2",
        "meter:add was called with a dot, it needs a colon: `meter:add(…)`",
    ),
    (
        "local n = require(\"streamgate.metrics\").counter(\"n_total\", \"x\")\nn:add {}",
        "plugin.lua:2",
        "meter:add: argument 1 is a table, expected a number",
    ),
    (
        "\nrequire(\"streamgate.metrics\").counter {}",
        "plugin.lua:2",
        "counter: argument 1 is a table, expected a string",
    ),
    (
        "local digits = require(\"streamgate.regex\").new \"[0-9]\"\ndigits.find \"7\"",
        "plugin.lua:2",
        "pattern:find was called with a dot",
    ),
    (
        "local M = {\n  helper = function() end,\n}\nreturn M",
        "plugin.lua:2",
        "\"helper\", which is not a phase function",
    ),
    ("local M = {}\nM.limit = 7\nreturn M", "plugin.lua:2", "\"limit\", which is not a phase function"),
    (
        "local M = { authenticate = print }\n\nfunction M.log() end\nreturn M",
        "plugin.lua:3",
        "has a function log, which",
    ),
    (
        "local M = {}\n\n-- The end is missing.\n",
        "plugin.lua:3",
        "returned nothing, expected the table of its phase functions: the last line is `return M`",
    ),
    (
        "return {\n  authenticate = function() end,\n  configure = function() error(\"too low\") end,\n}",
        "plugin.lua:3",
        "too low",
    ),
    // `error(…, 0)` is for operators, and they look at their own file.
    (
        "local function check()\n  error(\"it opens when it closes\", 0)\nend\nreturn {\n  authenticate = function() end,\n  configure = function() check() end,\n}",
        "streamgate.toml:",
        "it opens when it closes",
    ),
];

#[tokio::test]
async fn an_author_is_told_the_line_and_no_more_than_helps() {
    let upstream = Upstream::that(Act::Mirror).await;
    for (plugin, place, what) in AT_LOAD {
        let told = Gateway::in_front_of(&upstream)
            .with("[plugins]\npaths = [\"plugins\"]")
            .plugin("odd", &schema("authenticate"), plugin)
            .chain("\"odd\"")
            .problems();
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines[0].contains(place) && lines[0].ends_with("   odd"), "{place} is missing in:\n{told}");
        assert!(lines[1].contains(what), "{what} is missing in:\n{told}");
        assert_eq!(lines[2..], ["1 problem, nothing was started"], "{told}");
    }
    // Where a helper failed, who called it is told as well.
    let told = Gateway::in_front_of(&upstream)
        .with("[plugins]\npaths = [\"plugins\"]")
        .plugin("odd", &schema("authenticate"), "local function helper()\n  return nil + 1\nend\nhelper()")
        .chain("\"odd\"")
        .problems();
    assert!(told.contains("plugin.lua:2   odd") && told.contains("plugin.lua:4: in main chunk"), "{told}");
}
