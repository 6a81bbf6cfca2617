//! The commands.

#[macro_use]
mod output;

mod bench;
mod demo;
mod healthcheck;
mod plugin;
mod reference;
mod reload;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::clock::Clock;
use crate::config::{Config, Env, Place, Problem, Problems, Role, Sources};
use crate::gateway::raise_limit;
use crate::telemetry;

/// The gateway between browsers and GPU streaming functions.
#[derive(Debug, Parser)]
#[command(name = "streamgate", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway.
    Run(File),
    /// Run gateway, front door and streaming function on this machine, and print the page's address.
    Demo(demo::Options),
    /// Run the streaming server alone: the container of a function.
    Stream(File),
    /// Run the local front door alone.
    Frontdoor(File),
    /// Check configuration, certificates and plugins; start nothing.
    Check(CheckOptions),
    /// Work on plugins.
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Measure how much a gateway carries.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Ask a running gateway or streaming server whether it is well; for a container's health check.
    Healthcheck(healthcheck::Options),
    /// Write the generated reference pages into a checkout.
    Reference(reference::Options),
}

#[derive(Clone, Debug, Args)]
struct File {
    /// Configuration file. Without it the environment alone is read.
    #[arg(long, short, value_name = "FILE", env = "STREAMGATE_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CheckOptions {
    #[command(flatten)]
    file: File,
    /// Print the plugins of each route in the order in which they run; with a route's pattern or a request's path, of
    /// that route alone.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "")]
    explain: Option<String>,
}

/// What people call the file. It is read only where it is named: a gateway in a container has its variables alone.
const USUAL_FILE: &str = "streamgate.toml";

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Failure { code: 1, message: message.into() }
    }

    /// 2 for a wrong command line or configuration, 1 for everything else.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Failure { code: 2, message: problems.to_string() }
    }
}

impl Cli {
    /// Runs the command to its end.
    ///
    /// # Errors
    /// With what the user must know, and an exit code.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Run(file) => serve(&file, Role::Gateway),
            Command::Stream(file) => serve(&file, Role::Stream),
            Command::Frontdoor(file) => serve(&file, Role::FrontDoor),
            Command::Demo(options) => demo::run(options),
            Command::Check(options) => check(&options),
            Command::Plugin(command) => plugin::run(command),
            Command::Bench(command) => bench::run(command),
            Command::Healthcheck(options) => healthcheck::run(&options),
            Command::Reference(options) => reference::run(&options),
        }
    }
}

impl File {
    fn sources(&self) -> Result<Sources, Problems> {
        let sources = Sources::new(Env::of_process());
        let Some(path) = &self.config else { return Ok(sources) };
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(sources.with_file(path, text)),
            Err(error) => Err(Problem::new(Place::file(path), "cannot be read", error.to_string()).into()),
        }
    }

    /// What is said to somebody who has a file here and named none.
    fn hint(&self) -> Option<String> {
        let usual = Path::new(USUAL_FILE);
        (self.config.is_none() && usual.is_file()).then(|| {
            format!(
                "{USUAL_FILE} is here and was not read, for no file was named: add `--config {USUAL_FILE}`"
            )
        })
    }

    /// The configuration that it means.
    fn resolve(&self, role: Role, clock: &Clock) -> Result<Config, Failure> {
        let resolved = self.sources().and_then(|it| App::resolve(&it, role, clock));
        resolved.map_err(|problems| {
            let mut failure = Failure::from(problems);
            if let Some(hint) = self.hint() {
                failure.message += &format!("\n{hint}");
            }
            failure
        })
    }
}

fn check(options: &CheckOptions) -> Result<(), Failure> {
    let clock = Clock::system();
    let config = options.file.resolve(Role::Gateway, &clock)?;
    let report = App::check(config, &clock)?;
    if let Some(hint) = options.file.hint() {
        outln!("warning: {hint}.");
    }
    for warning in &report.warnings {
        outln!("warning: {warning}.");
    }
    match options.explain.as_deref() {
        None => outln!("The configuration is valid; nothing was started."),
        Some("") => report.routes().for_each(|it| out!("{it}")),
        Some(path) => match report.route(path) {
            Some(route) => out!("{route}"),
            None => return Err(Failure { code: 2, message: format!("there is no route for {path:?}") }),
        },
    }
    Ok(())
}

/// Runs what a configuration asks for until a signal comes.
fn serve(file: &File, role: Role) -> Result<(), Failure> {
    let clock = Clock::system();
    let before = reload::Look::of(file, None);
    let config = file.resolve(role, &clock)?;
    let seen =
        if before.still_holds() { reload::Look::of(file, Some(&config)) } else { reload::Look::default() };
    telemetry::install_log(&config.log).map_err(Problems::from)?;
    raise_limit();
    runtime()?.block_on(async {
        let stop = stop_signal()?;
        let loaded = config.clone();
        let app = App::build(config, clock.clone()).await?;
        let it = app.addresses();
        for (service, address) in [
            ("gateway", it.gateway),
            ("admin", it.admin),
            ("replicas", it.replicas),
            ("front door", it.frontdoor),
            ("control server", it.control),
            ("signalling", it.signaling),
            ("media", it.media),
        ] {
            if let Some(address) = address {
                tracing::info!(%address, service, "Listening.");
            }
        }
        if let Some(reloader) = app.reloader() {
            tokio::spawn(reload::Watcher::new(file.clone(), loaded, seen, reloader, clock)?.run());
        }
        app.run(stop).await;
        tracing::info!("Stopped.");
        Ok(())
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|it| Failure::new(format!("an event loop could not be made: {it}")))
}

/// Comes with the first SIGTERM or SIGINT. A second one ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()> + Send, Failure> {
    let listen = |kind| signal(kind).map_err(|it| Failure::new(format!("signals cannot be received: {it}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "Stopping; a second signal stops at once.");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}
