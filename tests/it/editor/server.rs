//! A language server, asked as an editor asks it: the Language Server Protocol (3.17) over its input and output.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::OnceCell;

use crate::support::{Folder, soon};

/// A server that has read the folder that an editor has opened; it is killed with the test.
pub struct Server {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    folder: PathBuf,
    /// Where it finds no settings of the machine's user, and writes its log.
    _home: Folder,
    n_requests: u64,
    n_changes: u64,
    /// What it has said last about each file.
    marks: BTreeMap<String, Vec<Mark>>,
}

/// A mark in an editor's margin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The file's path in the folder.
    pub file: String,
    pub line: u64,
    pub code: String,
}

/// The program, installed by the first test that needs it.
async fn program() -> &'static Path {
    static INSTALLED: OnceCell<PathBuf> = OnceCell::const_new();
    let install = || async {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("target/it/emmylua");
        let script = root.join("tests/it/support/emmylua/install");
        let ended = Command::new(script).arg(&folder).stdin(Stdio::null()).output().await;
        let ended = ended.expect("a shell is there");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        folder.join("bin/emmylua_ls")
    };
    INSTALLED.get_or_init(install).await
}

impl Server {
    /// Opens a folder, and waits until the server has looked at all that is in it.
    pub async fn of(folder: &Folder) -> Server {
        let folder = folder.path().canonicalize().expect("it is there");
        let home = Folder::new();
        let mut child = Command::new(program().await)
            .args(["--resources-path", "none", "--log-level", "error", "--log-path"])
            .arg(home.path())
            .env_clear()
            .env("HOME", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it was installed");
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut server = Server {
            child,
            input,
            output,
            folder,
            _home: home,
            n_requests: 0,
            n_changes: 0,
            marks: BTreeMap::new(),
        };
        let uri = server.uri("");
        let about_us = json!({
            "processId": std::process::id(),
            "workspaceFolders": [{ "uri": uri, "name": "plugins" }],
            // It reads no folder for an editor without `workspace`, and tells of its progress only where it is wanted.
            "capabilities": { "workspace": {}, "window": { "workDoneProgress": true } },
        });
        server.ask("initialize", about_us).await;
        server.tell("initialized", json!({})).await;
        let is_ready = |it: &Value| it["params"]["value"]["message"] == "Diagnosis complete";
        server.until("the end of reading", is_ready).await;
        server
    }

    /// What is marked in all files.
    pub fn marks(&self) -> Vec<Mark> {
        self.marks.values().flatten().cloned().collect()
    }

    /// Opens a file in the editor, and waits until the server has looked at it.
    pub async fn open(&mut self, file: &str) {
        let uri = self.uri(file);
        let text = std::fs::read_to_string(self.folder.join(file)).expect("it can be read");
        let document = json!({ "uri": uri, "languageId": "lua", "version": 0, "text": text });
        self.tell("textDocument/didOpen", json!({ "textDocument": document })).await;
        let is_marked = |it: &Value| it["method"] == MARKS && it["params"]["uri"] == uri;
        self.until("what it says of a file", is_marked).await;
    }

    /// Changes the text of an open file.
    pub async fn change(&mut self, file: &str, text: &str) {
        self.n_changes += 1;
        let document = json!({ "uri": self.uri(file), "version": self.n_changes });
        let change = json!({ "textDocument": document, "contentChanges": [{ "text": text }] });
        self.tell("textDocument/didChange", change).await;
    }

    /// Changes the text of an open file, and asks about the place where it has a `¦`.
    pub async fn ask_at(&mut self, method: &str, file: &str, text: &str) -> Value {
        let (before, after) = text.split_once('¦').expect("the cursor is somewhere");
        self.change(file, &format!("{before}{after}")).await;
        let line = before.rsplit('\n').next().unwrap_or_default();
        let place = json!({ "line": before.matches('\n').count(), "character": line.encode_utf16().count() });
        self.ask(method, json!({ "textDocument": { "uri": self.uri(file) }, "position": place })).await
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.n_requests += 1;
        let id = self.n_requests;
        self.send(json!({ "id": id, "method": method, "params": params })).await;
        // The server has numbers of its own for what it asks.
        let is_answer = |it: &Value| it["id"] == id && it.get("method").is_none();
        let mut answer = self.until(method, is_answer).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    /// Waits until these lines of a file are marked, and no others.
    pub async fn until_marked(&mut self, file: &str, expected: &[(u64, &str)]) {
        let found = |it: &Server| -> Vec<(u64, String)> {
            it.marks[file].iter().map(|it| (it.line, it.code.clone())).collect()
        };
        let expected: Vec<(u64, String)> =
            expected.iter().map(|(line, code)| (*line, (*code).to_owned())).collect();
        while found(self) != expected {
            let what = format!("{expected:?} in place of {:?}", found(self));
            soon(&what, self.take()).await;
        }
    }

    /// Ends it as an editor does that is closed.
    pub async fn close(mut self) {
        self.ask("shutdown", Value::Null).await;
        self.tell("exit", Value::Null).await;
        let status = soon("its end", self.child.wait()).await.expect("it can be waited for");
        assert!(status.success(), "{status}");
    }

    async fn tell(&mut self, method: &str, params: Value) {
        self.send(json!({ "method": method, "params": params })).await;
    }

    async fn send(&mut self, mut message: Value) {
        message["jsonrpc"] = "2.0".into();
        let text = message.to_string();
        let message = format!("Content-Length: {}\r\n\r\n{text}", text.len());
        self.input.write_all(message.as_bytes()).await.expect("the server reads");
    }

    /// Takes what the server says until it is what is waited for. The limit is between two messages: a folder with much in
    /// it takes its time, in which there are many.
    async fn until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = soon(what, self.take()).await;
            if is_it(&message) {
                return message;
            }
        }
    }

    /// The next message; what an editor does about any is done.
    async fn take(&mut self) -> Value {
        let mut length = None;
        loop {
            let mut line = String::new();
            self.output.read_line(&mut line).await.expect("the server writes lines");
            assert!(!line.is_empty(), "the server has ended");
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", it)) => length = it.parse().ok(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length.expect("a message says how long it is")];
        self.output.read_exact(&mut body).await.expect("it is that long");
        let message: Value = serde_json::from_slice(&body).expect("JSON");
        if message["method"] == MARKS {
            self.note(&message["params"]);
        } else if message.get("method").is_some() && message.get("id").is_some() {
            // It asks whether it may show its progress.
            self.send(json!({ "id": message["id"], "result": null })).await;
        }
        message
    }

    fn note(&mut self, published: &Value) {
        let uri = published["uri"].as_str().expect("a file has a URI");
        let file = uri.strip_prefix(&self.uri("")).unwrap_or(uri).to_owned();
        let mark = |it: &Value| Mark {
            file: file.clone(),
            line: it["range"]["start"]["line"].as_u64().expect("a number") + 1,
            code: it["code"].as_str().unwrap_or_default().to_owned(),
        };
        let is_warning = |it: &&Value| it["severity"].as_u64().is_none_or(|it| it <= WARNING);
        let all = published["diagnostics"].as_array().expect("a list");
        let mut marks: Vec<Mark> = all.iter().filter(is_warning).map(mark).collect();
        marks.sort();
        self.marks.insert(file, marks);
    }

    /// A file of the folder. Its path has nothing that a URI would escape.
    fn uri(&self, file: &str) -> String {
        format!("file://{}/{file}", self.folder.display())
    }
}

/// What the server sends of its own when it has looked at a file.
const MARKS: &str = "textDocument/publishDiagnostics";

/// Errors are 1; what is above are hints.
const WARNING: u64 = 2;
