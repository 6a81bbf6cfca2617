//! `streamgate bench`: what it measures, through gateways of ours and past them, and how it tells what went wrong.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::{Ended, Process, run};
use crate::support::{Folder, Service, soon};

/// A short fan-in with these further arguments; its report, if one was written.
async fn fan_in(folder: &Folder, more: &[&str]) -> (Ended, Value) {
    let json = folder.path().join("report.json").display().to_string();
    let short = [
        "bench",
        "fan-in",
        "--ramp",
        "300",
        "--idle",
        "0.5",
        "--messages",
        "300",
        "--echo",
        "1",
        "--within",
        "0.5",
    ];
    let args: Vec<&str> =
        short.into_iter().chain(["--quiet", "--json", &json]).chain(more.iter().copied()).collect();
    let ended = run(&args, &[]).await;
    let report =
        std::fs::read_to_string(&json).map_or(Value::Null, |it| serde_json::from_str(&it).expect("JSON"));
    (ended, report)
}

fn number(report: &Value, pointer: &str) -> f64 {
    report
        .pointer(pointer)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("no number {pointer} in {report:#}"))
}

/// The built-in upstream, in a process of its own.
async fn upstream() -> (Process, SocketAddr) {
    let process = Process::start(&["bench", "upstream", "--listen", "127.0.0.1:0"], &[]);
    let line = process.stdout.line_with("listening on ").await;
    let address = line.trim_start_matches("listening on ").parse().expect("an address");
    (process, address)
}

#[tokio::test]
async fn a_fan_in_through_a_gateway_of_its_own_measures_all_phases() {
    let folder = Folder::new();
    let page = folder.path().join("report.html");
    let (ended, report) = fan_in(&folder, &["-n", "60", "--html", &page.display().to_string()]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (pointer, wanted) in [
        ("/sessions", 60.0),
        ("/ramp/opened", 60.0),
        ("/ramp/failed", 0.0),
        ("/ramp/wanted_per_second", 300.0),
        ("/ramp/latency/n", 60.0),
        ("/idle/lost", 0.0),
        ("/echo/sent", 300.0),
        ("/echo/received", 300.0),
        ("/echo/wanted_per_second", 300.0),
        ("/echo/latency/n", 300.0),
        ("/storm/within_seconds", 0.5),
        ("/storm/lost", 60.0),
        ("/storm/returned", 60.0),
        ("/storm/resumed", 60.0),
        ("/storm/failed", 0.0),
        ("/storm/latency/n", 60.0),
    ] {
        assert_eq!(number(&report, pointer), wanted, "{pointer} in {report:#}");
    }
    for pointer in [
        "/machine/cores",
        "/ramp/achieved_per_second",
        "/ramp/cpu_us_per_session",
        "/idle/seconds",
        "/idle/pss_bytes_per_session",
        "/idle/cpu_percent_of_core",
        "/idle/pings",
        "/echo/achieved_per_second",
        "/echo/late",
        "/echo/cpu_us_per_message",
        "/storm/cpu_us_per_session",
    ] {
        number(&report, pointer);
    }
    for latency in ["/ramp/latency", "/echo/latency", "/storm/latency"] {
        let all = ["p50", "p90", "p99", "p999", "max"].map(|it| number(&report, &format!("{latency}/{it}")));
        assert!(
            all.is_sorted() && all[0] > 0.0 && number(&report, &format!("{latency}/mean")) > 0.0,
            "{all:?}"
        );
    }
    for errors in ["/ramp/errors", "/echo/errors", "/storm/errors"] {
        assert_eq!(report.pointer(errors), Some(&serde_json::json!({})));
    }
    assert_eq!((&report["tls"], &report["resumable"]), (&Value::Bool(false), &Value::Bool(true)));
    assert!(
        report["url"]
            .as_str()
            .is_some_and(|it| it.starts_with("ws://127.0.0.1:") && it.ends_with("/sign_in"))
    );
    let series = report["series"].as_array().expect("a series");
    let phases: Vec<&str> = series.iter().filter_map(|it| it["phase"].as_str()).collect();
    assert!(["ramp", "echo", "storm"].iter().all(|it| phases.contains(it)), "{phases:?}");
    assert!(series.iter().any(|it| number(it, "/open") == 60.0 && number(it, "/pss_bytes") > 0.0));
    for name in ["at_ms", "cpu_us", "sent", "received", "errors"] {
        let values: Vec<f64> = series.iter().map(|it| number(it, &format!("/{name}"))).collect();
        assert!(values.is_sorted(), "{name} only grows: {values:?}");
    }
    assert!(ended.stdout.contains("60, 0 failed") && ended.stdout.contains("300 of 300"), "{}", ended.stdout);

    let page = std::fs::read_to_string(page).expect("a page");
    assert_eq!(page.matches("<svg").count(), 4, "sessions, CPU, memory, latency");
    for outside in
        ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<iframe", "<img"]
    {
        assert!(!page.contains(outside), "the page has {outside}");
    }
}

#[tokio::test]
async fn refusals_of_a_full_gateway_are_counted_by_their_status() {
    let folder = Folder::new();
    let config = folder.write("full.toml", "[listen]\ntls = { self_signed = true }\n[sessions]\nmax = 10\n");
    let (ended, report) = fan_in(&folder, &["-n", "60", "--config", &config.display().to_string()]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(number(&report, "/ramp/opened"), 10.0);
    assert_eq!(report["ramp"]["errors"], serde_json::json!({ "http_503": 50 }), "{report:#}");
    assert_eq!((number(&report, "/echo/received"), number(&report, "/storm/resumed")), (300.0, 10.0));
    assert_eq!(report["tls"], Value::Bool(true));
}

#[tokio::test]
async fn another_gateway_is_measured_by_its_address_and_its_process() {
    // No gateway at all: what a browser gets from one that only passes bytes on.
    let (process, address) = upstream().await;
    let folder = Folder::new();
    let (url, pid) = (format!("ws://{address}/any/path"), process.id().to_string());
    let args = ["-n", "20", "--url", &url, "--pid", &pid, "--subprotocol", "some.v1"];
    let (ended, report) = fan_in(&folder, &args).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!((number(&report, "/ramp/opened"), number(&report, "/echo/received")), (20.0, 300.0));
    assert_eq!((number(&report, "/storm/returned"), number(&report, "/storm/resumed")), (20.0, 0.0));
    assert_eq!(report["resumable"], Value::Bool(false));
    assert!(number(&report, "/ramp/cpu_us_per_session") > 0.0);

    let args = [
        "bench", "fan-in", "-n", "2", "--url", &url, "--idle", "0.1", "--echo", "0", "--quiet", "--json", "-",
    ];
    let ended = run(&args, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON alone");
    for unknown in ["/ramp/cpu_us_per_session", "/idle/pss_bytes_per_session", "/echo", "/storm/resumed"] {
        assert_eq!(report.pointer(unknown), Some(&Value::Null), "{unknown} in {report:#}");
    }
    assert!(ended.stderr.contains("No process was named"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_session_with_signalling_is_open_once_it_has_heard_hello() {
    let folder = Folder::new();
    let (ended, report) = fan_in(&folder, &["-n", "5", "--upstream", "signaling"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!((number(&report, "/ramp/opened"), number(&report, "/storm/resumed")), (5.0, 5.0));
    assert_eq!(report["echo"], Value::Null);
    assert!(ended.stdout.contains("no echoes were measured"), "{}", ended.stdout);
}

#[tokio::test]
async fn an_upstream_answers_plain_requests_and_stops_when_it_is_told_to() {
    let (mut process, address) = upstream().await;
    let mut tcp = TcpStream::connect(address).await.expect("it listens");
    tcp.write_all(b"GET /page HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("it reads");
    let mut answer = String::new();
    soon("an answer", tcp.read_to_string(&mut answer)).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
    process.signal("TERM").await;
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_an_error_of_each_session() {
    let folder = Folder::new();
    let nowhere = format!("ws://{}/sign_in", Service::nowhere().await);
    let (ended, report) = fan_in(&folder, &["-n", "7", "--url", &nowhere]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(report["ramp"]["errors"], serde_json::json!({ "connect": 7 }), "{report:#}");
    assert_eq!((&report["ramp"]["latency"], &report["resumable"]), (&Value::Null, &Value::Null));
    for phase in ["idle", "echo", "storm"] {
        assert_eq!(report[phase], Value::Null);
    }

    for (args, code, word) in [
        (&["--url", "http://127.0.0.1/"][..], 2, "not a ws:// or wss:// URL"),
        (&["--url", &nowhere, "--pid", "4194304"], 1, "there is no process 4194304"), // the kernel has none beyond
        (&["--size", "3"], 2, "17..=65536"),
        (&["--config", "nowhere.toml"], 1, "nowhere.toml"),
        (&["--header", "no header"], 2, "Name: value"),
    ] {
        let folder = Folder::new();
        let (ended, report) = fan_in(&folder, args).await;
        assert_eq!((ended.code, &report), (Some(code), &Value::Null), "{ended:?}");
        assert!(ended.stderr.contains(word), "{word} is missing in {}", ended.stderr);
    }
}

#[tokio::test]
async fn more_sessions_than_files_are_refused_before_anything_starts() {
    let limited = format!("ulimit -n 200; exec {} bench fan-in -n 100", env!("CARGO_BIN_EXE_streamgate"));
    let output = tokio::process::Command::new("sh").args(["-c", &limited]).output();
    let output = soon("its end", output).await.expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("100 sessions need 264 open files and 200 are allowed"), "{said}");
}

#[tokio::test]
async fn what_was_measured_is_reported_when_it_is_interrupted() {
    let folder = Folder::new();
    let json: PathBuf = folder.path().join("report.json");
    let path = json.display().to_string();
    let args = ["bench", "fan-in", "-n", "5", "--ramp", "100", "--idle", "600", "--json", &path];
    let mut process = Process::start(&args, &[]);
    process.stderr.line_with("idle").await;
    process.signal("INT").await;
    assert_eq!(process.ended().await.code(), Some(1));
    let report = std::fs::read_to_string(json).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(number(&report, "/ramp/opened"), 5.0);
    assert!(number(&report, "/idle/seconds") < 600.0 && report["storm"].is_null(), "{report:#}");
    assert!(report["notes"][0].as_str().is_some_and(|it| it.contains("stopped")), "{report:#}");
}

#[tokio::test]
async fn what_a_bench_cannot_do_is_told_before_it_measures() {
    let fan_in = |more: &[&str]| {
        let args: Vec<String> = ["bench", "fan-in", "-n", "1000000", "--idle", "3600"]
            .iter()
            .chain(more)
            .map(|it| (*it).to_owned())
            .collect();
        async move { run(&args.iter().map(String::as_str).collect::<Vec<_>>(), &[]).await }
    };
    for (wrong, code, told) in [
        (&["--json", "/not/there/x.json"][..], 1, "/not/there/x.json: No such file"),
        (&["--html", "/not/there/x.html"], 1, "/not/there/x.html: No such file"),
        (&["--insecure"], 2, "--url"),
        (&["--ca", "ca.pem"], 2, "--url"),
    ] {
        let ended = fan_in(wrong).await;
        assert_eq!(ended.code, Some(code), "{wrong:?}: {ended:?}");
        assert!(ended.stderr.contains(told), "{wrong:?}: {ended:?}");
    }
}
