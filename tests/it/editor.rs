//! What an editor says to authors of plugins: a language server, run on their folders.
//!
//! It is EmmyLua, which reads the settings and annotations of LuaLS.

mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::support::Folder;
use crate::support::process::run_in;
use server::{Mark, Server};

/// The plugin that is written.
const FILE: &str = "plugins/my-plugin/plugin.lua";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder that an editor opens, made ready as `docs/plugins/editor.md` says.
async fn workspace() -> Folder {
    let folder = Folder::new();
    let told = run_in(folder.path(), &["plugin", "types"], &[]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    folder
}

/// Makes a plugin that is asked in these phases, as its author does; gives the text of its `plugin.lua`.
async fn new_plugin(folder: &Folder, phases: &str) -> String {
    let made = run_in(folder.path(), &["plugin", "new", "my-plugin", "--phase", phases], &[]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    std::fs::read_to_string(folder.path().join(FILE)).expect("it was made")
}

/// What is marked in the files of a workspace.
async fn marks(workspace: &Folder) -> Vec<Mark> {
    let server = Server::of(workspace).await;
    let marks = server.marks();
    server.close().await;
    marks
}

/// A plugin in which its author begins a phase with a line.
fn begun(plugin: &str, phase: &str, line: &str) -> String {
    let at = plugin.find(&format!("function M.{phase}(")).unwrap_or_else(|| panic!("no {phase} in {plugin}"));
    let (before, after) = plugin.split_at(at);
    let (head, body) = after.split_once('\n').expect("a function has lines");
    format!("{before}{head}\n  {line}\n{body}")
}

/// The functions of `docs/reference/lua.md`, by what they are called on: what each is said to do.
fn reference() -> BTreeMap<String, BTreeMap<String, String>> {
    let page = std::fs::read_to_string(root().join("docs/reference/lua.md")).expect("it can be read");
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for section in page.split("\n### `").skip(1) {
        let (call, rest) = section.split_once('(').expect("it is a function");
        let (owner, name) = call.split_once([':', '.']).expect("it is called on something");
        let does = rest.split("\n\n").nth(1).expect("it does something");
        found.entry(owner.to_owned()).or_default().insert(name.to_owned(), does.to_owned());
    }
    found
}

/// What is offered where the cursor stands.
async fn offered(server: &mut Server, text: &str) -> BTreeSet<String> {
    let answer = server.ask_at("textDocument/completion", FILE, text).await;
    let items = answer.as_array().or(answer["items"].as_array()).expect("a list");
    items.iter().map(|it| it["label"].as_str().expect("it has a name").to_owned()).collect()
}

const PHASES: &str = "init,on_request,authenticate,authorize,select,upstream_request,response_headers,\
                      session_open,session_message,session_tick,session_park,session_resume,session_end,log";

#[tokio::test]
async fn a_new_plugin_has_no_marks() {
    let folder = workspace().await;
    new_plugin(&folder, PHASES).await;
    assert_eq!(marks(&folder).await, []);
}

#[tokio::test]
async fn functions_are_completed_as_the_reference_has_them() {
    let folder = workspace().await;
    let plugin = new_plugin(&folder, PHASES).await;
    let mut server = Server::of(&folder).await;
    server.open(FILE).await;

    let reference = reference();
    let handles = [
        ("request", "on_request", "request:¦"),
        ("upstream", "upstream_request", "upstream:¦"),
        ("response", "response_headers", "response:¦"),
        ("session", "session_tick", "if session:¦"),
        ("message", "session_message", "local text = message:¦"),
        ("answer", "authorize", r#"local answer = require("streamgate.http").get "https://a/"; answer:¦"#),
        ("set", "authorize", r#"local set = require("streamgate.ip").set {}; set:¦"#),
        ("pattern", "authorize", r#"local pattern = require("streamgate.regex").new "^a"; pattern:¦"#),
        (
            "meter",
            "authorize",
            r#"local meter = require("streamgate.metrics").counter("a_total", "A."); meter:¦"#,
        ),
        ("tokens", "authorize", "local tokens = conf.tokens --[[@as streamgate.Tokens]]; tokens:¦"),
    ];
    for (owner, functions) in &reference {
        let handle = handles.iter().find(|it| it.0 == owner);
        let (phase, line) = match handle {
            Some((_, phase, line)) => (*phase, (*line).to_owned()),
            None => ("authorize", format!("local module = require \"streamgate.{owner}\"; module.¦")),
        };
        let mut expected: BTreeSet<&str> = functions.keys().map(String::as_str).collect();
        if owner == "json" {
            expected.insert("null");
        }
        let offered = offered(&mut server, &begun(&plugin, phase, &line)).await;
        assert!(offered.iter().eq(expected.iter()), "{line}: {offered:?} in place of {expected:?}");
    }
    server.close().await;
}

#[tokio::test]
async fn phases_settings_and_modules_are_completed() {
    let folder = workspace().await;
    let plugin = new_plugin(&folder, "authorize,session_tick").await;
    let mut server = Server::of(&folder).await;
    server.open(FILE).await;

    let phases: BTreeSet<String> =
        PHASES.split(',').chain(["configure", "self_test"]).map(str::to_owned).collect();
    let another = plugin.replace("\nreturn M", "\nfunction M.¦\n\nreturn M");
    assert_eq!(offered(&mut server, &another).await, phases);

    let settings = ["header", "longest"].map(str::to_owned).into();
    assert_eq!(offered(&mut server, &begun(&plugin, "session_tick", "local limit = conf.¦")).await, settings);

    let line = r#"local module = require "streamgate.¦""#;
    let modules = offered(&mut server, &begun(&plugin, "authorize", line)).await;
    let stubs = std::fs::read_dir(folder.path().join("lua/types/streamgate")).expect("it was written");
    let stub = |it: std::fs::DirEntry| it.path().file_stem().map(|it| it.to_string_lossy().into_owned());
    assert_eq!(modules, stubs.flatten().filter_map(stub).collect());
    for module in ["http", "jwt", "kv", "spec", "token"] {
        assert!(modules.contains(module), "{module} is not in {modules:?}");
    }
    server.close().await;
}

/// What an editor shows of a function where the mouse rests on it, in a list of what can come next, and behind its
/// parenthesis.
#[tokio::test]
async fn a_function_is_shown_with_what_the_reference_says() {
    let folder = workspace().await;
    let plugin = new_plugin(&folder, "authorize").await;
    let mut server = Server::of(&folder).await;
    server.open(FILE).await;
    let reference = reference();

    for (owner, name, line, shape) in [
        (
            "request",
            "reject",
            "return request:rej¦ect()",
            "reject(code: string, headers: table?) -> streamgate.Decision",
        ),
        ("request", "parameter", "request:par¦ameter 'key'", "parameter(name: string) -> string?"),
        ("json", "decode", "require('streamgate.json').dec¦ode '1'", "decode(text: string) -> any, string?"),
    ] {
        let shown = server.ask_at("textDocument/hover", FILE, &begun(&plugin, "authorize", line)).await;
        let shown = shown["contents"]["value"].as_str().unwrap_or_default();
        assert!(shown.contains(shape) && shown.contains(&reference[owner][name]), "{line}: {shown}");
    }

    let list =
        server.ask_at("textDocument/completion", FILE, &begun(&plugin, "authorize", "request:rej¦")).await;
    let item =
        list.as_array().and_then(|it| it.iter().find(|it| it["label"] == "reject")).expect("it is offered");
    let shown = server.ask("completionItem/resolve", item.clone()).await;
    let shown = shown["documentation"]["value"].as_str().unwrap_or_default();
    assert!(shown.contains(&reference["request"]["reject"]), "{shown}");

    let call = begun(&plugin, "authorize", "request:reject(¦)");
    let shown = server.ask_at("textDocument/signatureHelp", FILE, &call).await;
    let parameters = shown["signatures"][0]["parameters"].as_array().expect("a list");
    let parameters: Vec<&Value> = parameters.iter().map(|it| &it["label"]).collect();
    assert_eq!(parameters, ["code: string", "headers: table?"]);
    server.close().await;
}

#[tokio::test]
async fn a_wrong_call_is_marked_while_it_is_written() {
    let folder = workspace().await;
    let plugin = new_plugin(&folder, "authorize").await;
    let mut server = Server::of(&folder).await;
    server.open(FILE).await;
    assert_eq!(server.marks(), []);

    let wrong = begun(&plugin, "authorize", "if conf.header == '' then return request:reject(7) end");
    let line = wrong.lines().position(|it| it.contains("reject(7)")).expect("it is there") as u64 + 1;
    server.change(FILE, &wrong).await;
    server.until_marked(FILE, &[(line, "param-type-mismatch")]).await;

    server.change(FILE, &wrong.replace("reject(7)", "reject 'auth.forbidden'")).await;
    server.until_marked(FILE, &[]).await;
    server.close().await;
}

#[tokio::test]
async fn a_wrong_call_is_marked_at_its_line() {
    let folder = workspace().await;
    folder.write(
        "plugins/wrong/plugin.lua",
        r#"--- plugin.lua: what authors get wrong.
local http = require "streamgate.http"
local json = require "streamgate.json"
local meter = require("streamgate.metrics").counter("calls_total", "Calls.", { "kind" })

--- @type streamgate.Plugin
local M = {}

function M.authorize(request, _conf)
  meter:add(1, "right")
  request:no_such_function()
  json.encod {}
  return request:reject(7)
end

function M.upstream_request(request, upstream, _conf)
  upstream:set_header("x-a")
  upstream:set_header("x-b", request:id(), "and more")
  local answer = http.get "https://service.example/"
  return answer.status
end

function M.session_tick(request, session, _conf)
  if session:cause():len() > 0 and session:age() > "1h" then
    return request:reject "auth.forbidden"
  end
end

function M.on_requst(_request, _conf) end

return M
"#,
    );
    let found = marks(&folder).await;
    assert!(found.iter().all(|it| it.file == "plugins/wrong/plugin.lua"), "{found:?}");
    let found: Vec<(u64, &str)> = found.iter().map(|it| (it.line, it.code.as_str())).collect();
    for expected in [
        (11, "undefined-field"),
        (12, "undefined-field"),
        (13, "param-type-mismatch"),
        (17, "missing-parameter"),
        (18, "redundant-parameter"),
        (20, "need-check-nil"),
        (20, "return-type-mismatch"),
        (24, "need-check-nil"),
        (29, "undefined-field"),
    ] {
        assert!(found.contains(&expected), "{expected:?} is not marked: {found:?}");
    }
    assert!(!found.iter().any(|(line, _)| *line < 11), "what is right is marked: {found:?}");
}

/// Marks that say the stubs are wrong, when plugins that have tests get them. What the language server infers of the
/// plugins' own code is not about the stubs.
#[tokio::test]
async fn the_stubs_know_all_that_the_shipped_plugins_call() {
    let folder = workspace().await;
    for plugin in std::fs::read_dir(root().join("plugins")).expect("it can be read").flatten() {
        let name = plugin.file_name().into_string().expect("a name is text");
        if !plugin.path().is_dir() || name.starts_with('_') {
            continue;
        }
        for file in std::fs::read_dir(plugin.path()).expect("it can be read").flatten() {
            let file_name = file.file_name().into_string().expect("a name is text");
            if file_name.ends_with(".lua") && file_name != "spec.lua" {
                let text = std::fs::read_to_string(file.path()).expect("it can be read");
                folder.write(&format!("plugins/{name}/{file_name}"), &text);
            }
        }
    }
    let of_stubs = ["undefined-field", "missing-parameter", "redundant-parameter", "type-not-found"];
    let found: Vec<Mark> =
        marks(&folder).await.into_iter().filter(|it| of_stubs.contains(&it.code.as_str())).collect();
    assert_eq!(found, []);
}
