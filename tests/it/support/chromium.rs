//! Chromium without a window, driven over its DevTools protocol.

use std::process::Stdio;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{Folder, PATIENCE, soon};

/// A browser; it ends with the test.
pub struct Chromium {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next_id: u64,
    child: Child,
    profile: Folder,
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Its folder can be removed once nobody writes to it.
        let is_told = self.child.start_kill().is_ok();
        while is_told && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for _ in 0..100 {
            match std::fs::remove_dir_all(self.profile.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    std::thread::sleep(std::time::Duration::from_millis(5)); // its own children are still going
                }
                _ => return,
            }
        }
    }
}

/// A tab of a browser.
#[derive(Clone, Debug)]
pub struct Page {
    session: String,
}

const FLAGS: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--ignore-certificate-errors", // the demo's certificate is its own
    "--remote-debugging-port=0",
];

impl Chromium {
    pub async fn start() -> Chromium {
        let profile = Folder::new();
        let mut child = Command::new("chromium")
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium is installed by `make test` (package chromium)");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let listening = async {
            loop {
                let line = lines.next_line().await.expect("output").expect("chromium runs");
                if let Some(url) = line.strip_prefix("DevTools listening on ") {
                    return url.to_owned();
                }
            }
        };
        let url = soon("a browser", listening).await;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = connect_async(url).await.expect("its DevTools");
        Chromium { socket, next_id: 0, child, profile }
    }

    /// Opens a page and waits until it is loaded.
    pub async fn open(&mut self, url: &str) -> Page {
        let target = self.call(None, "Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call(None, "Target.attachToTarget", attach).await;
        let page = Page { session: attached["sessionId"].as_str().expect("a session").to_owned() };
        self.call(Some(&page), "Page.enable", json!({})).await;
        let navigated = self.call(Some(&page), "Page.navigate", json!({ "url": url })).await;
        assert!(navigated["errorText"].is_null(), "{url}: {navigated}");
        soon("the page", self.event(&page, "Page.loadEventFired")).await;
        page
    }

    /// Loads the page again.
    pub async fn reload(&mut self, page: &Page) {
        self.call(Some(page), "Page.reload", json!({})).await;
        soon("the page", self.event(page, "Page.loadEventFired")).await;
    }

    /// The value of an expression; a promise is waited for.
    pub async fn value(&mut self, page: &Page, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let result = self.call(Some(page), "Runtime.evaluate", parameters).await;
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Waits until a condition holds on the page; tells what the page says when it never does.
    pub async fn until(&mut self, page: &Page, condition: &str) {
        let expression = format!(
            "new Promise((resolve) => {{
               const give_up = setTimeout(() => {{ clearInterval(asking); resolve(false); }}, {});
               const asking = setInterval(() => {{
                 if ({condition}) {{ clearInterval(asking); clearTimeout(give_up); resolve(true); }}
               }}, 20);
             }})",
            PATIENCE.as_millis()
        );
        if self.value(page, &expression).await != true {
            let text = self.value(page, "document.body.innerText").await;
            panic!("{condition} never came; the page says:\n{}", text.as_str().unwrap_or_default());
        }
    }

    /// Moves the mouse to a point of the page and clicks.
    pub async fn click(&mut self, page: &Page, x: f64, y: f64) {
        for (kind, buttons) in [("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)] {
            let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1 });
            self.call(Some(page), "Input.dispatchMouseEvent", event).await;
        }
    }

    /// Presses a key that writes a letter, or types a text where the focus is.
    pub async fn press(&mut self, page: &Page, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": format!("Key{}", key.to_uppercase()), "text": key });
            self.call(Some(page), "Input.dispatchKeyEvent", event).await;
        }
    }

    async fn call(&mut self, page: Option<&Page>, method: &str, parameters: Value) -> Value {
        self.next_id += 1;
        let mut message = json!({ "id": self.next_id, "method": method, "params": parameters });
        if let Some(page) = page {
            message["sessionId"] = json!(page.session);
        }
        self.socket.send(Message::text(message.to_string())).await.expect("the browser listens");
        let answer = async {
            loop {
                let message = self.next().await;
                if message["id"] == self.next_id {
                    return message;
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE * 2, answer).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to {method}"));
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }

    async fn event(&mut self, page: &Page, method: &str) {
        loop {
            let message = self.next().await;
            if message["method"] == method && message["sessionId"] == json!(page.session) {
                return;
            }
        }
    }

    async fn next(&mut self) -> Value {
        loop {
            let message = self.socket.next().await.expect("the browser runs").expect("a message");
            if let Message::Text(text) = message {
                return serde_json::from_str(&text).expect("JSON");
            }
        }
    }
}
