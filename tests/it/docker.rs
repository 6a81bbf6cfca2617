//! The Dockerfile, as far as it can be tried without an engine.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::process::{Process, run};
use crate::support::{FUNCTION, Folder, KEY};

const DOCKERFILE: &str = include_str!("../../Dockerfile");

/// The instructions of the last stage, or of all, with continued lines joined.
fn instructions(text: &str) -> Vec<(String, String)> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|it| !it.is_empty() && !it.starts_with('#'));
    lines
        .map(|it| it.split_once(' ').expect("an instruction has arguments"))
        .map(|(name, arguments)| (name.to_owned(), arguments.trim().to_owned()))
        .collect()
}

fn last_stage() -> Vec<(String, String)> {
    let all = instructions(DOCKERFILE);
    let start = all.iter().rposition(|(name, _)| name == "FROM").expect("an image is built from one");
    all[start..].to_vec()
}

fn last(name: &str) -> String {
    let stage = last_stage();
    let found = stage.iter().rev().find(|(it, _)| it == name);
    found.unwrap_or_else(|| panic!("the image has no {name}")).1.clone()
}

/// An instruction in its exec form.
fn exec(text: &str) -> Vec<String> {
    serde_json::from_str(&text[text.find('[').expect("the exec form")..]).expect("the exec form is JSON")
}

/// What the context contributes: the sources of all COPY that take from it.
fn copied() -> Vec<String> {
    let all = instructions(DOCKERFILE);
    let copies = all.iter().filter(|(name, arguments)| name == "COPY" && !arguments.starts_with("--from"));
    copies
        .flat_map(|(_, arguments)| {
            let words: Vec<&str> = arguments.split_whitespace().collect();
            words[..words.len() - 1].iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_path_that_is_copied_exists_and_is_not_ignored() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignore = std::fs::read_to_string(root.join(".dockerignore")).expect("there is one");
    assert!(!copied().is_empty());
    for path in copied() {
        assert!(root.join(&path).exists(), "{path} does not exist");
        assert!(ignore.lines().any(|it| it == format!("!{path}")), "{path} is ignored");
    }
    for needed in ["plugins", "lua"] {
        let inside =
            last_stage().iter().any(|(name, it)| name == "COPY" && it.starts_with(&format!("{needed} ")));
        assert!(inside, "{needed} is not in the image");
    }
}

/// A file that the sources include and the build does not have would break the image alone.
#[test]
fn the_build_has_every_file_that_the_sources_include() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut n_found = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("it can be read").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|it| it != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("it can be read");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let is_test = path.ends_with("tests.rs");
            for included in code.split("include_").skip(1).filter(|_| !is_test) {
                let Some(file) = included.split('"').nth(1).filter(|_| included.contains("!(\"")) else {
                    continue;
                };
                let target = folder.join(file).canonicalize().unwrap_or_else(|it| panic!("{file}: {it}"));
                let top = target.strip_prefix(root).expect("it is ours").iter().next().expect("a name");
                assert!(copied().iter().any(|it| Path::new(it) == top), "{} is not copied", target.display());
                n_found += 1;
            }
        }
    }
    assert!(n_found > 5, "the sources include files");
}

/// Cargo reads the whole manifest, also when it builds one binary: each target that stands there must have its file.
#[test]
fn the_build_has_every_target_that_the_manifest_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignore = std::fs::read_to_string(root.join(".dockerignore")).expect("there is one");
    let context = Folder::new();
    let copied: BTreeSet<String> = copied().into_iter().collect();
    for path in copied.iter().filter(|path| ignore.lines().any(|it| it == format!("!{path}"))) {
        copy(&root.join(path), &context.path().join(path));
    }
    // Cargo looks for the files of all targets before it knows which of them it is to build; `cargo metadata` does not.
    let asked = std::process::Command::new(env!("CARGO"))
        .args(["build", "--locked", "--offline", "--bin", "none"])
        .current_dir(context.path())
        .env("CARGO_TARGET_DIR", context.path().join("target"))
        .output()
        .expect("cargo runs this test");
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("no bin target named `none`"), "{said}");
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        std::fs::copy(from, to).expect("it can be copied");
        return;
    }
    std::fs::create_dir(to).expect("it is not there yet");
    for entry in std::fs::read_dir(from).expect("it can be read").flatten() {
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

#[test]
fn the_image_is_what_users_of_the_sample_expect() {
    let user = last("USER");
    let uid: u32 =
        user.split(':').next().and_then(|it| it.parse().ok()).expect("a number, which Kubernetes can check");
    assert_ne!(uid, 0);
    let exposed = last("EXPOSE");
    for port in ["49100/tcp", "8011/tcp", "47998-48020/udp"] {
        assert!(exposed.split(' ').any(|it| it == port), "{port} is not exposed");
    }
    assert_eq!(exec(&last("HEALTHCHECK")), ["streamgate", "healthcheck"]);
    assert_eq!(
        (exec(&last("ENTRYPOINT")), exec(&last("CMD"))),
        (vec!["streamgate".into()], vec!["run".to_owned()])
    );
    assert!(!last_stage().iter().any(|(name, it)| name == "ENV" && it.contains("KEY")), "no key in an image");
}

/// What the engine would start: the entry point with its arguments and the variables of `docker run -e`.
#[tokio::test]
async fn the_entry_point_starts_with_the_samples_variables_and_stops_on_both_signals() {
    let entry_point = exec(&last("ENTRYPOINT"));
    let own = [
        ("NVCF_API_KEY", KEY),
        ("STREAMING_FUNCTION_ID", FUNCTION),
        ("STREAMING_FUNCTION_VERSION_ID", ""), // what an unset shell variable becomes
        ("NVCF_SERVER", ""),
        ("GATEWAY_ADDR", "gateway.example"),
        ("PROXY_SSL_INSECURE", "true"),
        ("STREAMGATE_LISTEN_ADDRESS", "127.0.0.1:0"),
        ("STREAMGATE_ADMIN_ADDRESS", "127.0.0.1:0"),
    ];
    let stream =
        [("STREAMGATE_STREAMING_CONTROL", "127.0.0.1:0"), ("STREAMGATE_STREAMING_SIGNALING", "127.0.0.1:0")];
    for signal in ["TERM", "INT"] {
        for (command, env, health) in [
            (exec(&last("CMD")), &own[..], "admin"),
            (vec!["stream".to_owned()], &stream[..], "control server"),
        ] {
            let arguments: Vec<&str> = entry_point[1..].iter().chain(&command).map(String::as_str).collect();
            let mut process = Process::start(&arguments, env);
            let address = process.address(health).await.to_string();
            let checked =
                if health == "admin" { "STREAMGATE_ADMIN_ADDRESS" } else { "STREAMGATE_STREAMING_CONTROL" };
            let well = run(&["healthcheck"], &[(checked, &address)]).await;
            assert_eq!(well.code, Some(0), "{command:?}: {well:?}");
            process.signal(signal).await;
            assert!(process.ended().await.success(), "{command:?} on SIG{signal}");
        }
    }
}
