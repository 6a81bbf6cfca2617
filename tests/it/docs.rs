//! What the documents show is tried: each configuration in them is one that the gateway takes.

use std::path::{Path, PathBuf};

use streamgate::app::App;
use streamgate::clock::Clock;
use streamgate::config::{Env, Role, Sources};

use crate::support::redis::COOKIE_KEY;
use crate::support::{FUNCTION, KEY};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder with an extension.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|it| panic!("{}: {it}", folder.display())).flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Resolves a configuration as `streamgate check` does, with the variables that a user has set.
fn check(path: &Path, text: &str) -> Result<(), String> {
    let env: Env = [
        ("NVCF_API_KEY", KEY),
        ("STREAMING_FUNCTION_ID", FUNCTION),
        ("NVCF_SERVER", "grpc.nvcf.example"),
        ("COOKIE_KEY", COOKIE_KEY),
        ("DIRECTORY_URL", "redis://redis.example:6379/0"),
        ("OIDC_SECRET", "the-secret-of-the-client"),
        ("OIDC_COOKIE_KEY", COOKIE_KEY),
    ]
    .into_iter()
    .collect();
    let sources = Sources::new(env).with_file(path, text);
    let config = sources.resolve(Role::Gateway).map_err(|it| it.to_string())?;
    App::check(config, &Clock::system()).map(drop).map_err(|it| it.to_string())
}

/// The blocks of a language in a document, with the line where each begins.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (idx, line) in text.lines().enumerate() {
        match (&mut open, line.trim_end()) {
            (None, fence) if fence == format!("```{language}") => open = Some((idx + 1, String::new())),
            (Some(_), "```") => found.extend(open.take()),
            (Some((_, block)), line) => *block += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    found
}

#[test]
fn every_example_is_a_configuration() {
    let found = files("examples", "toml");
    let mut n_checked = 0;
    for path in found.iter().filter(|it| it.file_name().is_some_and(|it| it == "streamgate.toml")) {
        let text = std::fs::read_to_string(path).expect("it can be read");
        check(path, &text).unwrap_or_else(|it| panic!("{it}"));
        n_checked += 1;
    }
    assert!(n_checked > 1, "there are examples");
}

/// A block with the language `toml` is a whole file; what it refers to is taken from `examples/nvcf`.
#[test]
fn every_configuration_in_a_document_is_one() {
    let mut documents = files("docs", "md");
    documents.extend(files("plugins", "md"));
    documents.extend(files("examples", "md"));
    documents.extend(["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].map(|it| root().join(it)));
    let mut n_checked = 0;
    for document in documents {
        let text =
            std::fs::read_to_string(&document).unwrap_or_else(|it| panic!("{}: {it}", document.display()));
        for (line, block) in blocks(&text, "toml") {
            let path = root().join("examples/nvcf/streamgate.toml");
            check(&path, &block).unwrap_or_else(|it| panic!("{}:{line}: {it}", document.display()));
            n_checked += 1;
        }
    }
    assert!(n_checked > 3, "the documents show configurations");
}
