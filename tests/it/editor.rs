//! What an editor says to authors of plugins: the analysis of a language server, run on their folders.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::support::Folder;
use crate::support::process::run;

/// A mark in an editor's margin.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    /// The file's path in the workspace.
    file: String,
    line: u64,
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program that checks, installed by the first test that needs it.
async fn checker() -> &'static Path {
    static INSTALLED: OnceCell<PathBuf> = OnceCell::const_new();
    let install = || async {
        let folder = root().join("target/it/emmylua");
        let script = root().join("tests/it/support/emmylua/install");
        let ended = Command::new(script).arg(&folder).stdin(Stdio::null()).output().await;
        let ended = ended.expect("a shell is there");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        folder.join("bin/emmylua_check")
    };
    INSTALLED.get_or_init(install).await
}

/// A folder that an editor opens, as `plugin types` has prepared it.
async fn workspace() -> Folder {
    let folder = Folder::new();
    let (types, workspace) = (folder.path().join("lua/types"), folder.path().display().to_string());
    let told =
        run(&["plugin", "types", types.to_str().expect("a path"), "--workspace", &workspace], &[]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    folder
}

/// What is marked in the files of a workspace.
async fn marks(workspace: &Folder) -> Vec<Mark> {
    let folder = workspace.path().canonicalize().expect("it is there");
    let output = folder.join("marks.json");
    let mut check = Command::new(checker().await);
    check.arg(&folder).args(["--severity", "warn", "--output-format", "json", "--output"]).arg(&output);
    let ended = check.stdin(Stdio::null()).output().await.expect("it was installed");
    let text = std::fs::read_to_string(&output)
        .unwrap_or_else(|it| panic!("{it}: {}", String::from_utf8_lossy(&ended.stderr)));
    let files: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let mut marks: Vec<Mark> = files
        .iter()
        .flat_map(|it| it["diagnostics"].as_array().into_iter().flatten().map(move |mark| (it, mark)))
        .map(|(file, mark)| {
            let path = Path::new(file["file"].as_str().expect("a path"));
            let path = path.strip_prefix(&folder).unwrap_or(path);
            Mark {
                file: path.display().to_string(),
                line: mark["range"]["start"]["line"].as_u64().expect("a number") + 1,
                code: mark["code"].as_str().unwrap_or_default().to_owned(),
            }
        })
        .collect();
    marks.sort_by(|a, b| (&a.file, a.line, &a.code).cmp(&(&b.file, b.line, &b.code)));
    marks
}

#[tokio::test]
async fn a_new_plugin_has_no_marks() {
    let folder = workspace().await;
    let plugins = folder.path().join("plugins").display().to_string();
    let phases = "init,on_request,authenticate,authorize,select,upstream_request,response_headers,\
                  session_open,session_message,session_tick,session_park,session_resume,session_end,log";
    let made = run(&["plugin", "new", "my-plugin", "--phase", phases, "--in", &plugins], &[]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    assert_eq!(marks(&folder).await, []);
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
