//! The binary itself, as a user starts it: with variables and arguments, ended by signals.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;

use super::soon;

/// A running binary; it is killed with the test.
pub struct Process {
    child: Child,
    pub stdout: Output,
    pub stderr: Output,
}

/// Lines that a process has written so far.
#[derive(Clone, Default)]
pub struct Output {
    text: Arc<Mutex<String>>,
    changed: Arc<Notify>,
}

/// A binary that has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The binary with these arguments, and no variables but these.
fn command(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamgate"));
    command.args(args).env_clear().envs(env.iter().copied()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs the binary to its end.
pub async fn run(args: &[&str], env: &[(&str, &str)]) -> Ended {
    ended(&mut command(args, env)).await
}

/// The same, with a reader of its output that is gone before the first line.
pub async fn run_unread(args: &[&str], env: &[(&str, &str)]) -> Ended {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    ended(command(args, env).stdout(writer)).await
}

/// The same in a folder.
pub async fn run_in(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> Ended {
    ended(command(args, env).current_dir(folder)).await
}

async fn ended(command: &mut Command) -> Ended {
    let output = soon("its end", command.output()).await.expect("the binary can be started");
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Process {
    /// Starts the binary.
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Process {
        Process::spawn(command(args, env))
    }

    /// The same, with both outputs on a disk that is full.
    pub fn start_without_room(args: &[&str], env: &[(&str, &str)]) -> Process {
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let mut command = command(args, env);
        command.stdout(full()).stderr(full());
        Process::spawn(command)
    }

    /// The same in a folder.
    pub fn start_in(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> Process {
        let mut command = command(args, env);
        command.current_dir(folder);
        Process::spawn(command)
    }

    /// The same, in a process that may open so many files only.
    pub fn start_with_files(n: u32, args: &[&str], env: &[(&str, &str)]) -> Process {
        let script = format!("ulimit -n {n} && exec \"$0\" \"$@\"");
        let inner = command(args, env);
        let mut outer = Command::new("/bin/sh");
        outer.args(["-c", &script]).arg(inner.as_std().get_program()).args(args);
        outer.env_clear().envs(env.iter().copied()).stdin(Stdio::null());
        outer.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Process::spawn(outer)
    }

    fn spawn(mut command: Command) -> Process {
        let mut child = command.spawn().expect("the binary can be started");
        let stdout = child.stdout.take().map(Output::of).unwrap_or_default();
        let stderr = child.stderr.take().map(Output::of).unwrap_or_default();
        Process { child, stdout, stderr }
    }

    /// The address that a service has said it listens on.
    pub async fn address(&self, service: &str) -> SocketAddr {
        let line = self.stderr.line_with(&format!("service=\"{service}\"")).await;
        let address = line.split("address=").nth(1).and_then(|it| it.split(' ').next());
        address.and_then(|it| it.parse().ok()).unwrap_or_else(|| panic!("no address in {line}"))
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal, such as `TERM`.
    pub async fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().await;
        assert!(sent.expect("kill can be started").success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        soon("its end", self.child.wait()).await.expect("it can be waited for")
    }
}

impl Output {
    fn of(stream: impl AsyncRead + Unpin + Send + 'static) -> Output {
        let output = Output::default();
        let into = output.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                *into.text.lock().unwrap_or_else(PoisonError::into_inner) += &format!("{line}\n");
                into.changed.notify_waiters();
            }
        });
        output
    }

    /// All so far.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a line with a text in it.
    pub async fn line_with(&self, needle: &str) -> String {
        let line = async {
            loop {
                let changed = self.changed.notified();
                if let Some(line) = self.text().lines().find(|it| it.contains(needle)) {
                    return line.to_owned();
                }
                changed.await;
            }
        };
        match tokio::time::timeout(super::PATIENCE, line).await {
            Ok(line) => line,
            Err(_) => panic!("no line with {needle:?}, but:\n{}", self.text()),
        }
    }
}
