//! Rules of this repository that no other tool checks.
#![allow(missing_docs)] // a test program has no readers of its interface

use std::path::{Path, PathBuf};

/// Crates that only one module may know, so that one place has to change with them. `streaming` speaks WebRTC,
/// `telemetry` counts, `bench` has browsers and percentiles, `lua` runs plugins, `gateway` serves HTTP. Redis has two: the
/// directory of sessions, and the store of plugins.
const HOMES: &[(&str, &str)] = &[
    ("hdrhistogram", "src/bench"),
    ("mlua", "src/lua"),
    ("prometheus", "src/telemetry"),
    ("proxy_header", "src/gateway"),
    ("redis", "src/gateway|src/store"),
    ("rtc", "src/streaming"),
    ("tokio_tungstenite", "src/bench|src/streaming"),
    ("toml", "src/config"),
    ("webrtc", "src/streaming"),
];

/// Files that may be `unsafe`, each with its reason at the place.
const UNSAFE: &[&str] = &["src/allocations.rs", "src/gateway/tcp_info.rs", "src/lua/budget.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files that git knows or would add, below the root.
fn files() -> Vec<String> {
    let listed = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is there, for the checkout was made with it");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).expect("paths are text");
    listed.lines().filter(|it| root().join(it).is_file()).map(str::to_owned).collect()
}

fn with_extension(extension: &str) -> Vec<(String, String)> {
    let ends = format!(".{extension}");
    let found: Vec<(String, String)> =
        files().into_iter().filter(|it| it.ends_with(&ends)).map(|it| (it.clone(), read(&it))).collect();
    assert!(!found.is_empty(), "there are files with {ends}");
    found
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|it| panic!("{path}: {it}"))
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for (path, text) in with_extension("rs") {
        assert!(text.starts_with("//! "), "{path} does not begin with `//!`");
    }
    for (path, text) in with_extension("lua").iter().filter(|(path, _)| !path.starts_with("tests/")) {
        assert!(text.starts_with("---"), "{path} does not begin with `---`");
    }
}

#[test]
fn foreign_crates_stay_where_they_belong() {
    for (path, text) in with_extension("rs").iter().filter(|(path, _)| path.starts_with("src/")) {
        for (name, home) in HOMES {
            let is_home =
                home.split('|').any(|it| path.strip_prefix(it).is_some_and(|it| it.starts_with(['/', '.'])));
            for (idx, line) in text.lines().enumerate().filter(|_| !is_home) {
                let code = line.split("//").next().unwrap_or_default();
                let is_named = code.match_indices(&format!("{name}::")).any(|(at, _)| {
                    !code[..at].ends_with(|it: char| it.is_alphanumeric() || it == '_' || it == ':')
                });
                assert!(!is_named, "{path}:{}: {name} belongs to {home}", idx + 1);
            }
        }
    }
}

#[test]
fn unsafe_code_is_listed() {
    for (path, text) in with_extension("rs").iter().filter(|(path, _)| path.starts_with("src/")) {
        let is_allowed = text.contains("allow(unsafe_code)");
        assert_eq!(is_allowed, UNSAFE.contains(&path.as_str()), "{path}: allowed to be unsafe, or listed so");
    }
}

#[test]
fn nothing_is_left_for_later_or_for_one_machine() {
    let marks = ["TO\u{44}O", "FIX\u{4d}E", "#[ig\u{6e}ore", "todo\u{21}(", "unimplemented\u{21}("];
    let machine = ["/ho\u{6d}e/", "/wo\u{72}k/", "/ro\u{6f}t/"];
    let texts = ["rs", "lua", "md", "js", "css", "html", "toml", "yaml", "py"];
    for (path, text) in texts.iter().flat_map(|it| with_extension(it)) {
        for mark in marks.iter().chain(&machine) {
            assert!(!text.contains(mark), "{path} has {mark}");
        }
    }
}

#[test]
fn every_shipped_plugin_is_whole_and_built_in() {
    let built_in = read("src/lua/bundle.rs");
    let listed = read("plugins/README.md");
    let mut n_plugins = 0;
    for entry in std::fs::read_dir(root().join("plugins")).expect("it can be read").flatten() {
        let name = entry.file_name().into_string().expect("a name is text");
        if !entry.path().is_dir() || name.starts_with('_') {
            continue; // `_template` is what `plugin new` copies
        }
        for file in ["plugin.lua", "schema.lua", "spec.lua", "README.md"] {
            assert!(entry.path().join(file).is_file(), "plugins/{name} has no {file}");
        }
        let line = built_in.lines().find(|it| it.starts_with(&format!("    \"{name}\": ")));
        let line = line.unwrap_or_else(|| panic!("{name} is not built in"));
        for file in std::fs::read_dir(entry.path()).expect("it can be read").flatten() {
            let file = file.file_name().into_string().expect("a name is text");
            let is_listed = !file.ends_with(".lua") || line.contains(&format!("{file:?}"));
            assert!(is_listed, "plugins/{name}/{file} is not built in");
        }
        assert!(listed.contains(&format!("({name}/README.md)")), "plugins/README.md does not link {name}");
        n_plugins += 1;
    }
    assert_eq!(
        built_in.matches(": \"plugin.lua\", ").count(),
        n_plugins,
        "built in and shipped are the same"
    );
}

/// The targets of the links in a document.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
        for part in outside.split("](").skip(1).filter(|_| !in_code) {
            found.extend(part.split(')').next().map(str::to_owned));
        }
    }
    found
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().trim_start_matches('#').trim().to_lowercase();
    kept.chars()
        .filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'))
        .map(|it| if it == ' ' { '-' } else { it })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    for (path, text) in with_extension("md") {
        let folder = PathBuf::from(&path).parent().map(Path::to_path_buf).unwrap_or_default();
        for link in links(&text) {
            if link.starts_with("http://") || link.starts_with("https://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { root().join(&path) } else { root().join(&folder).join(file) };
            assert!(target.exists(), "{path}: {link} leads nowhere");
            if !heading.is_empty() {
                let document =
                    std::fs::read_to_string(&target).unwrap_or_else(|it| panic!("{path}: {link}: {it}"));
                let has = document.lines().any(|it| it.starts_with('#') && anchor(it) == heading);
                assert!(has, "{path}: {link} has no such heading");
            }
        }
    }
}
