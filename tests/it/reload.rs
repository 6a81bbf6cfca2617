//! Configuration, plugins and certificates change while sessions run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::process::Process;
use crate::support::raw::from_browser;
use crate::support::upstream::Act;
use crate::support::{Client, FUNCTION, Folder, Gateway, KEY, Leg, Upstream, cookie, soon};

const SCHEMA: &str = "return { summary = \"Says which it is.\", phases = { \"response_headers\" } }";

/// A plugin that names itself in each response.
fn named(name: &str) -> String {
    format!(
        "return {{ response_headers = function(request, response) response:set_header(\"x-plugin\", {name:?}) end }}"
    )
}

async fn plugin_of(gateway: &Gateway) -> Option<String> {
    gateway.get("/x", &[]).await.header("x-plugin")
}

#[tokio::test]
async fn a_reload_changes_what_comes_and_leaves_what_runs() {
    let mut upstream = Upstream::that(Act::InTurn(vec![Act::Accept(String::new()), Act::Mirror])).await;
    let builder = Gateway::in_front_of(&upstream)
        .plugin("witness", SCHEMA, &named("first"))
        .with("[plugins]\npaths = [\"plugins\"]")
        .chain("\"cors\", \"witness\"");
    let file = builder.text();
    let gateway = builder.start().await;
    let mut client = gateway.connect().await;
    client.upgrade("/sign_in", &[]).await;
    assert_eq!(client.answer().await.header("x-plugin").as_deref(), Some("first"));
    let mut leg = upstream.leg().await;
    let mut kept = gateway.connect().await; // a connection that stays open between two requests
    kept.request("GET", "/x", &[], b"").await;
    assert_eq!(kept.answer().await.header("x-plugin").as_deref(), Some("first"));

    gateway.folder.write("plugins/witness/plugin.lua", &named("second"));
    gateway.reload(&file).expect("valid");
    assert_eq!(plugin_of(&gateway).await.as_deref(), Some("second"));
    kept.request("GET", "/x", &[], b"").await;
    assert_eq!(kept.answer().await.header("x-plugin").as_deref(), Some("second"));
    gateway.until_metric("streamgate_generation", &[], 2.0);

    // What is wrong is told, and changes nothing.
    gateway.folder.write("plugins/witness/plugin.lua", "return { response_headers = function( }");
    let told = gateway.reload(&file).expect_err("a mistake").to_string();
    assert!(told.contains("plugins/witness/plugin.lua:1"), "{told}");
    let told = gateway.reload("[listen]\naddress = 7\n").expect_err("a mistake").to_string();
    assert!(told.contains("listen.address"), "{told}");
    assert_eq!(plugin_of(&gateway).await.as_deref(), Some("second"));
    gateway.until_metric("streamgate_reloads_total", &[("result", "ok")], 1.0);
    gateway.until_metric("streamgate_reloads_total", &[("result", "failed")], 1.0);

    gateway.folder.write("plugins/witness/plugin.lua", &named("third"));
    let another = file.replace("[log]", "[sessions]\nmax = 1\n[log]").replace("\"cors\", ", "");
    let warnings = gateway.reload(&another).expect("valid");
    assert!(warnings.iter().any(|it| it.contains("authenticates nobody")), "{warnings:?}");
    let answer = gateway.get("/x", &[]).await;
    assert_eq!(answer.header("x-plugin").as_deref(), Some("third"));
    assert_eq!(answer.header("access-control-allow-origin"), None, "the chain is another one");
    let mut second = gateway.connect().await;
    second.upgrade("/sign_in", &[]).await;
    assert_eq!(second.answer().await.code(), "sessions.full", "the session from before counts");

    client.send(&from_browser(1, b"still here")).await;
    assert_eq!(leg.frame().await.expect("a message").payload, b"still here");
    client.reset();
    gateway.until_metric("streamgate_sessions", &[("state", "parked")], 1.0);
}

async fn echo(mut leg: Leg) {
    while let Some(frame) = leg.frame().await {
        let opcode = if frame.opcode == 9 { 10 } else { frame.opcode };
        leg.send(opcode, &frame.payload).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sessions_notice_nothing_of_two_hundred_reloads() {
    const N_SESSIONS: usize = 1000;
    let mut upstream = Upstream::start().await;
    let builder = Gateway::in_front_of(&upstream)
        .plugin("witness", SCHEMA, &named("0"))
        .with("[plugins]\npaths = [\"plugins\"]")
        .chain("\"cors\", \"witness\"");
    let file = builder.text();
    let gateway = builder.start().await;
    let address = gateway.address();
    let (enough, n_echoed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut browsers = tokio::task::JoinSet::new();
    for _ in 0..N_SESSIONS {
        let mut client = Client::connect(address).await;
        client.upgrade("/sign_in", &[]).await;
        assert_eq!(client.answer().await.status, 101);
        tokio::spawn(echo(upstream.leg().await));
        let (enough, n_echoed) = (Arc::clone(&enough), Arc::clone(&n_echoed));
        browsers.spawn(async move {
            let mut n = 0_u32;
            while !enough.load(Ordering::Relaxed) || n < 3 {
                client.send(&from_browser(2, &n.to_be_bytes())).await;
                let frame = loop {
                    let frame = client.frame().await.expect("no session is dropped");
                    match frame.opcode {
                        9 => client.send(&from_browser(10, &frame.payload)).await,
                        _ => break frame,
                    }
                };
                assert_eq!(frame.payload, n.to_be_bytes());
                n += 1;
                n_echoed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await; // some load, not all there can be
            }
        });
    }
    for n in 1..=200 {
        let before = n_echoed.load(Ordering::Relaxed);
        gateway.folder.write("plugins/witness/plugin.lua", &named(&n.to_string()));
        let file = if n % 4 == 0 {
            file.replace("[log]", &format!("[sessions]\nmax = {}\n[log]", 2000 + n))
        } else {
            file.clone()
        };
        gateway.reload(&file).unwrap_or_else(|it| panic!("{it}"));
        let goes_on = async {
            while n_echoed.load(Ordering::Relaxed) < before + 10 {
                tokio::task::yield_now().await;
            }
        };
        soon("some echoes", goes_on).await;
    }
    enough.store(true, Ordering::Relaxed);
    while let Some(ended) = browsers.join_next().await {
        ended.expect("no session is dropped");
    }
    gateway.until_metric("streamgate_generation", &[], 201.0);
    assert_eq!(gateway.metric("streamgate_session_starts_total", &[("result", "opened")]), N_SESSIONS as f64);
    let losses = ["upstream_lost", "upstream_silent", "drained", "upstream_violation", "browser_violation"];
    for reason in losses {
        assert_eq!(gateway.metric("streamgate_session_ends_total", &[("reason", reason)]), 0.0, "{reason}");
    }
}

#[tokio::test]
async fn a_changed_file_and_a_hangup_reload() {
    let upstream = Upstream::that(Act::Mirror).await;
    let folder = Folder::new();
    folder.write("plugins/witness/schema.lua", SCHEMA);
    folder.write("plugins/witness/plugin.lua", &named("first"));
    let text = format!(
        "reload = RELOAD\n[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[upstream]\nserver = \"http://{}\"\napi_key = \"env:KEY\"\nfunction_id = {FUNCTION:?}\n[plugins]\npaths = [\"plugins\"]\n[[route]]\npath = \"/**\"\nchain = [\"witness\"]\n",
        upstream.address
    );
    let file = folder.write("streamgate.toml", &text.replace("RELOAD", "true")).display().to_string();
    let mut process = Process::start(&["run", "--config", &file], &[("KEY", KEY)]);
    let address = process.address("gateway").await;
    let named_by = async || {
        let mut client = Client::connect(address).await;
        client.request("GET", "/x", &[], b"").await;
        client.answer().await.header("x-plugin")
    };
    assert_eq!(named_by().await.as_deref(), Some("first"));
    folder.write("plugins/witness/plugin.lua", &named("second, by a changed file"));
    process.stderr.line_with("a changed file").await;
    assert_eq!(named_by().await.as_deref(), Some("second, by a changed file"));

    folder.write("streamgate.toml", &text.replace("RELOAD", "false"));
    folder.write("plugins/witness/plugin.lua", &named("third"));
    process.signal("HUP").await;
    process.stderr.line_with("SIGHUP").await;
    assert_eq!(named_by().await.as_deref(), Some("third"));
    folder.write("streamgate.toml", "[listen]\naddress = \"nowhere\"\n");
    process.signal("HUP").await;
    let line = process.stderr.line_with("stays as it was").await;
    assert!(line.ends_with("the new one has mistakes. why=\"SIGHUP\" mistakes="), "{line}");
    process.stderr.line_with("listen.address = \"nowhere\"").await;
    let line = process.stderr.line_with(" problems").await;
    assert_eq!(line, "4 problems", "nothing was about to start");
    assert_eq!(named_by().await.as_deref(), Some("third"));
    process.signal("TERM").await;
    assert!(process.ended().await.success());
}

/// A new process starts while connections come in; the old one's sessions come back into theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_refuses_nobody() {
    let id = "nvcf-reqid: 5e2b1c7d-0000-0000-0000-000000000001\r\n";
    let mut upstream = Upstream::that(Act::InTurn(vec![Act::Accept(id.into()), Act::Mirror])).await;
    let folder = Folder::new();
    let text = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\nhandover = \"next.sock\"\n[admin]\naddress = \"127.0.0.1:0\"\n[upstream]\nserver = \"http://{}\"\napi_key = \"env:KEY\"\nfunction_id = {FUNCTION:?}\n[sessions]\ndrain = {{ timeout = \"1s\" }}\ncookie = {{ key = \"env:COOKIE_KEY\" }}\n[log]\naccess = false\n",
        upstream.address
    );
    let file = folder.write("streamgate.toml", &text).display().to_string();
    let env = [("KEY", KEY), ("COOKIE_KEY", "a key of at least 32 characters, shared")];
    let mut old = Process::start(&["run", "--config", &file], &env);
    let address = old.address("gateway").await;
    let mut client = Client::connect(address).await;
    client.upgrade("/sign_in", &[]).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 101);
    let mine = cookie(&answer.header("set-cookie").expect("a cookie"));
    let mut leg = upstream.leg().await;

    let (n_answered, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let load = tokio::spawn({
        let (n_answered, enough) = (Arc::clone(&n_answered), Arc::clone(&enough));
        async move {
            let mut visitors = tokio::task::JoinSet::new();
            for _ in 0..4000 {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                let n_answered = Arc::clone(&n_answered);
                visitors.spawn(async move {
                    let mut client = Client::connect(address).await;
                    client.request("GET", "/x", &[], b"").await;
                    assert_eq!(client.answer().await.status, 200);
                    n_answered.fetch_add(1, Ordering::Relaxed);
                });
                tokio::time::sleep(Duration::from_millis(5)).await; // 200 new connections each second
            }
            while let Some(visitor) = visitors.join_next().await {
                visitor.expect("nobody is refused");
            }
        }
    });
    let answered = async |n: usize| {
        let some = async {
            while n_answered.load(Ordering::Relaxed) < n {
                tokio::task::yield_now().await;
            }
        };
        soon("some answers", some).await;
    };
    answered(50).await;
    // An address that is another one now waits for a stop and a start, and that is told.
    let moved = text.replacen("[admin]\naddress = \"127.0.0.1:0\"", "[admin]\naddress = \"127.0.0.2:0\"", 1);
    folder.write("streamgate.toml", &moved);
    let mut new = Process::start(&["run", "--config", &file], &env);
    new.stderr.line_with("`admin.address` is 127.0.0.2:0, but this process has taken over 127.0.0.1:").await;
    new.stderr.line_with("were taken over").await;
    assert!(!new.stderr.text().contains("`listen.address` is"), "{}", new.stderr.text());
    assert_eq!(new.address("gateway").await, address);
    let close = client.frame().await.expect("a Close frame");
    assert_eq!((close.opcode, &close.payload[..2]), (8, &1012_u16.to_be_bytes()[..]));
    drop(client);
    assert!(leg.frame().await.is_none(), "the upstream sees a lost connection");
    assert!(old.ended().await.success(), "{}", old.stderr.text());
    answered(n_answered.load(Ordering::Relaxed) + 50).await;
    enough.store(true, Ordering::Relaxed);
    load.await.expect("nobody is refused");

    let mut client = Client::connect(address).await;
    client.request("GET", "/sign_in", &[("Cookie", &mine)], b"").await;
    let seen = client.answer().await.text();
    assert!(seen.contains("nvcf-reqid: 5e2b1c7d-"), "the new process knows the session: {seen}");
    // A port that nobody takes over is closed at once.
    new.signal("TERM").await;
    assert!(new.ended().await.success());
}
