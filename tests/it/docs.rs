//! What the documents show is tried: each configuration in them is one that the gateway takes.

use std::path::{Path, PathBuf};

use streamgate::app::App;
use streamgate::clock::Clock;
use streamgate::config::{Env, Role, Sources};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::process::Process;
use crate::support::redis::COOKIE_KEY;
use crate::support::{FUNCTION, Folder, KEY, soon};

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

/// A page that a reader follows from its first block to its last, in a folder of their own.
struct Reader {
    folder: Folder,
    /// Where commands are run, after `cd`.
    here: PathBuf,
    env: Vec<(String, String)>,
    /// What the page calls an address, and what it is here: other tests run beside this one.
    addresses: Vec<(&'static str, String)>,
    gateway: Option<Process>,
    /// The upstream that the page shows; it is killed with the reader.
    echo: Option<tokio::process::Child>,
}

const GATEWAY: &str = "127.0.0.1:49100";
const ADMIN: &str = "127.0.0.1:9090";
const UPSTREAM: &str = "127.0.0.1:10081";

impl Reader {
    fn new() -> Reader {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
        let folder = Folder::new();
        Reader {
            here: folder.path().to_owned(),
            folder,
            env: Vec::new(),
            addresses: vec![(UPSTREAM, free.to_string())],
            gateway: None,
            echo: None,
        }
    }

    /// A text of the page as it is to be here.
    fn here(&self, text: &str) -> String {
        let text =
            self.addresses.iter().fold(text.to_owned(), |text, (of_page, here)| text.replace(of_page, here));
        // The gateway has not said yet where it listens.
        text.replace(GATEWAY, "127.0.0.1:0").replace(ADMIN, "127.0.0.1:0").replace(
            ", 10081)",
            &format!(", {})", self.addresses[0].1.rsplit(':').next().unwrap_or_default()),
        )
    }

    /// What was printed here, as the page would have it.
    fn of_page(&self, text: &str) -> String {
        self.addresses.iter().fold(text.to_owned(), |text, (of_page, here)| text.replace(here, of_page))
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.here.join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|it| panic!("{file}: {it}"));
        assert!(text.contains(from), "{from} is not in {file}:\n{text}");
        std::fs::write(&path, text.replace(from, to)).expect("it can be written");
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.here.join(file), self.here(text)).unwrap_or_else(|it| panic!("{file}: {it}"));
    }

    /// Runs what follows a prompt, and gives what a terminal shows then.
    async fn run(&mut self, command: &str) -> String {
        if let Some(folder) = command.strip_prefix("cd ") {
            self.here.push(folder);
            return String::new();
        }
        if let Some((name, value)) = command.strip_prefix("export ").and_then(|it| it.split_once('=')) {
            self.env.push((name.into(), value.into()));
            return String::new();
        }
        let bin = Path::new(env!("CARGO_BIN_EXE_streamgate")).parent().expect("a folder").display();
        let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
        let mut shell = tokio::process::Command::new("/bin/sh");
        // Metrics are counted a moment after the browser has its answer, and `curl` shows its progress on a pipe alone.
        shell
            .arg("-c")
            .arg(format!("exec 2>&1; {}", self.here(command).replace("curl 'http", "curl -s 'http")));
        shell.current_dir(&self.here).env_clear().envs(self.env.iter().cloned()).env("PATH", path);
        let ended = soon("its end", shell.output()).await.expect("there is a shell");
        self.of_page(&String::from_utf8_lossy(&ended.stdout))
    }

    async fn start(&mut self) {
        let args = ["run", "--config", "streamgate.toml"];
        let env: Vec<(&str, &str)> = self.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        let process = Process::start_in(&self.here, &args, &env);
        self.addresses.push((GATEWAY, process.address("gateway").await.to_string()));
        self.addresses.push((ADMIN, process.address("admin").await.to_string()));
        self.gateway = Some(process);
    }

    /// Waits until the gateway has written a line of the page.
    async fn logged(&self, line: &str) {
        let gateway = self.gateway.as_ref().expect("it runs");
        // Times and ids are others here; what is told about a request begins with its address.
        let part = match line.split_once(" GET ") {
            Some((_, rest)) => rest.split(" received=").next().unwrap_or_default().to_owned(),
            None => line.split_once("Z ").map_or(line, |(_, rest)| rest.trim_start()).to_owned(),
        };
        let part = match part.split_once(" request=\"").zip(part.split_once("\" code=")) {
            Some((_, (_, rest))) => rest.to_owned(),
            None => part,
        };
        let part = self.here(&part);
        let output = if line.contains(" GET ") { &gateway.stdout } else { &gateway.stderr };
        output.line_with(&part).await;
    }
}

/// What is different each time: ids, and the version of a program that is not ours.
fn settled(text: &str) -> String {
    let settled = text.lines().map(|line| match line.trim_start() {
        it if it.starts_with("\"request_id\"") => "  \"request_id\": …",
        it if it.starts_with("user-agent: curl/") => "user-agent: curl",
        _ => line,
    });
    settled.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// What the page shows is what a reader sees: its files are written, its commands run, their output compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_plugin_is_what_its_page_says() {
    let page = std::fs::read_to_string(root().join("docs/plugins/first-plugin.md")).expect("it is there");
    let mut reader = Reader::new();
    let mut n_compared = 0;
    // Each odd part is a block, with its language in the first line.
    for (idx, part) in page.split("```").enumerate() {
        if idx % 2 == 0 {
            // What the page tells its reader to do.
            if part.contains("Write `least = 42` there.") {
                reader.edit("streamgate.toml", "least = 0", "least = 42");
            }
            if part.contains("change the message in `schema.lua` to `\"Reload this page.\"`") {
                reader.edit(
                    "plugins/app-version/schema.lua",
                    "This page is too old. Reload it.",
                    "Reload this page.",
                );
            }
            if part.contains("Start it in a third terminal with `python3 echo.py`") {
                let mut python = tokio::process::Command::new("python3");
                python.arg("echo.py").current_dir(&reader.here).kill_on_drop(true);
                python.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
                let mut python = python.spawn().expect("there is Python");
                let said = BufReader::new(python.stdout.take().expect("it is piped"));
                let line = soon("an upstream", said.lines().next_line()).await.expect("it writes text");
                assert_eq!(line, Some(format!("listening on {}", reader.addresses[0].1)));
                reader.echo = Some(python);
            }
            continue;
        }
        let (language, block) = part.split_once('\n').expect("a block has lines");
        match language {
            "lua" => match block.strip_prefix("--- ").and_then(|it| it.split_once(':')) {
                Some((file, _)) => reader.write(&format!("plugins/app-version/{file}"), block),
                None => {
                    let line = block.trim_end();
                    reader.edit("plugins/app-version/plugin.lua", &line.replace("return ", ""), line);
                }
            },
            "python" => reader.write("echo.py", block),
            "text" if block.starts_with('[') => reader.write("streamgate.toml", block),
            "text" => {
                for line in block.lines() {
                    reader.logged(line).await;
                }
            }
            "console" => {
                for step in format!("\n{block}").split("\n$ ").skip(1) {
                    let (command, expected) = step.split_once('\n').unwrap_or((step, ""));
                    if command.starts_with("streamgate run") {
                        reader.start().await;
                        for line in expected.lines() {
                            reader.logged(line).await;
                        }
                        continue;
                    }
                    let shown = reader.run(command).await;
                    assert_eq!(settled(&shown), settled(expected), "$ {command}");
                    n_compared += usize::from(!expected.trim().is_empty());
                }
            }
            other => panic!("nobody knows how to follow {other}"),
        }
    }
    assert!(n_compared > 9, "the page shows what is printed");
    assert!(reader.folder.path().join("first/plugins/room-limit/spec.lua").is_file());
}

/// The plugin that the one page about plugins shows: its own tests, and the chain that it stands in.
#[tokio::test]
async fn the_plugin_of_the_one_page_is_what_it_says() {
    let page = std::fs::read_to_string(root().join("plugins/README.md")).expect("it is there");
    let from = page.find("## A plugin in three files").expect("it is shown");
    let shown = &page[from..page.find("## The files").expect("it goes on")];
    let mut reader = Reader::new();
    reader.run("export NVCF_API_KEY=any").await;
    reader.run("mkdir -p plugins/allow-tenants").await;
    reader.write("tokens.toml", "[ada]\ntoken = \"example-token-of-ada\"\ntenant = \"blue\"\n");
    for (_, block) in blocks(shown, "lua") {
        let file = block.strip_prefix("--- ").and_then(|it| it.split_once(':')).expect("it has a name").0;
        reader.write(&format!("plugins/allow-tenants/{file}"), &block);
    }
    let upstream = format!(
        "[upstream]\nserver = \"front.example\"\napi_key = \"env:NVCF_API_KEY\"\nfunction_id = {FUNCTION:?}\n"
    );
    reader.write("streamgate.toml", &format!("{upstream}{}", blocks(shown, "text")[0].1));
    let mut n_compared = 0;
    for (_, block) in blocks(shown, "console") {
        for step in format!("\n{block}").split("\n$ ").skip(1) {
            let (command, expected) = step.split_once('\n').unwrap_or((step, ""));
            if command.starts_with("streamgate run") || command.starts_with("curl") {
                continue; // the first page does that
            }
            assert_eq!(reader.run(command).await.trim(), expected.trim(), "$ {command}");
            n_compared += 1;
        }
    }
    assert_eq!(n_compared, 2);
}
