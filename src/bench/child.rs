//! A gateway of this same binary, started for one measurement.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::bench::BenchError;
use crate::clock::Clock;
use crate::config::{Env, Role, Sources};

/// A running gateway; it is killed when it is dropped.
pub(super) struct Child {
    process: tokio::process::Child,
    pub(super) pid: u32,
    pub(super) address: SocketAddr,
    pub(super) is_tls: bool,
}

impl Child {
    /// Starts one with this configuration, or with none, in front of an upstream.
    ///
    /// # Errors
    /// With what it said when it did not start.
    pub(super) async fn start(
        config: Option<&Path>,
        upstream: SocketAddr,
        clock: &Clock,
    ) -> Result<Child, BenchError> {
        let env = environment(upstream);
        let mut sources = Sources::new(env.iter().cloned().collect());
        if let Some(path) = config {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|it| BenchError::new(format!("{}: {it}", path.display())))?;
            sources = sources.with_file(path, text);
        }
        let resolved = sources.resolve(Role::Gateway).map_err(|it| BenchError::new(it.to_string()))?;
        let gateway =
            resolved.gateway.ok_or_else(|| BenchError::new("the configuration asks for no gateway"))?;
        if gateway.listen.handover.is_some() {
            let message = "a configuration with `listen.handover` cannot be measured so: the gateway that serves would give its port away";
            return Err(BenchError::new(message));
        }
        let program = std::env::current_exe();
        let program = program.map_err(|it| BenchError::new(format!("this program is not found: {it}")))?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .env_clear()
            .envs(env)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // A group of its own: Ctrl-C is for the bench, which ends its gateway when it has measured.
        command.kill_on_drop(true).process_group(0);
        if let Some(path) = config {
            command.arg("--config").arg(path);
        }
        let failed = |it: std::io::Error| BenchError::new(format!("the gateway cannot be started: {it}"));
        let mut process = command.spawn().map_err(failed)?;
        let pid = process.id().ok_or_else(|| BenchError::new("the gateway has ended at once"))?;
        let stderr = process.stderr.take().expect("it is piped");
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (found, address) = oneshot::channel();
        tokio::spawn(listen(stderr, Arc::clone(&said), found));
        match clock.timeout(START_WITHIN, address).await {
            Some(Ok(address)) => Ok(Child { process, pid, address, is_tls: gateway.parts.tls.is_some() }),
            _ => {
                let said = said.lock().unwrap_or_else(PoisonError::into_inner);
                let said: Vec<&str> = said.iter().map(String::as_str).collect();
                Err(BenchError::new(format!("the gateway did not start:\n{}", said.join("\n"))))
            }
        }
    }

    /// Ends it, and waits for that.
    pub(super) async fn end(mut self, clock: &Clock) {
        if let Some(pid) = self.process.id().and_then(|it| Pid::from_raw(it.try_into().ok()?)) {
            kill_process(pid, Signal::TERM).ok(); // it may have ended by itself
        }
        if clock.timeout(END_WITHIN, self.process.wait()).await.is_none() {
            drop(self.process.kill().await);
        }
    }
}

/// The variables of this process, and those that make a gateway of it that is for this measurement alone.
fn environment(upstream: SocketAddr) -> Vec<(String, String)> {
    let server = format!("http://{upstream}");
    let own = [
        ("NVCF_API_KEY", "bench"),
        ("STREAMING_FUNCTION_ID", "bench"),
        ("NVCF_SERVER", server.as_str()),
        ("STREAMGATE_UPSTREAM_SERVER", server.as_str()),
        ("STREAMGATE_LISTEN_ADDRESS", "127.0.0.1:0"),
        ("STREAMGATE_ADMIN_ADDRESS", "127.0.0.1:0"),
        ("STREAMGATE_LOG_ACCESS", "false"),
        ("STREAMGATE_LOG_FORMAT", "text"),
        ("STREAMGATE_LOG_LEVEL", "error,streamgate::cli=info"), // the line that tells the port
        ("STREAMGATE_SESSIONS_DRAIN_TIMEOUT", "0s"),
    ];
    let inherited = Env::of_process();
    let others =
        inherited.names().filter(|name| *name != "STREAMGATE_CONFIG" && own.iter().all(|it| it.0 != *name));
    let others = others.filter_map(|it| Some((it.to_owned(), inherited.get(it)?.to_owned())));
    own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).chain(others).collect()
}

/// Reads what it says to the end, so that it is never held up; keeps the last lines.
async fn listen(
    stderr: tokio::process::ChildStderr,
    said: Arc<Mutex<VecDeque<String>>>,
    found: oneshot::Sender<SocketAddr>,
) {
    let mut found = Some(found);
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.contains("service=\"gateway\"")
            && let Some(address) =
                line.split("address=").nth(1).and_then(|it| it.split(' ').next()?.parse().ok())
            && let Some(found) = found.take()
        {
            found.send(address).ok(); // whoever waited has given up
        }
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == LINES {
            said.pop_front();
        }
        said.push_back(line);
    }
}

const START_WITHIN: Duration = Duration::from_secs(20);
const END_WITHIN: Duration = Duration::from_secs(10);
/// Lines of its log that are kept.
const LINES: usize = 20;
