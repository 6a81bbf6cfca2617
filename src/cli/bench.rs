//! `streamgate bench`: how much a gateway carries, ours or another one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::bench::{self, BenchError, Place, Plan, Progress, Trust, Upstream, UpstreamKind};
use crate::cli::{Failure, runtime, stop_signal};
use crate::clock::Clock;
use crate::gateway;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Lead many sessions through a gateway, and report what they take and what they cost.
    FanIn(Box<FanIn>),
    /// Serve an upstream for a gateway under test.
    Upstream(UpstreamOptions),
}

#[derive(Debug, clap::Args)]
pub(super) struct FanIn {
    /// The gateway's signalling path, ws:// or wss://. Without it a gateway of this binary is started for the measurement.
    #[arg(long, value_parser = url)]
    url: Option<Url>,
    /// Configuration of the gateway that is started; its upstream and its address are overridden.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// What the built-in upstream does.
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    upstream: Kind,
    /// Serve the built-in upstream here, for a gateway at --url that was pointed at it.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "url")]
    upstream_listen: Option<SocketAddr>,
    /// Bearer token of every handshake.
    #[arg(long)]
    token: Option<String>,
    /// Header of every handshake, as `Name: value`; may be given several times.
    #[arg(long = "header", value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Subprotocol that every handshake offers; may be given several times.
    #[arg(long = "subprotocol", value_name = "NAME")]
    subprotocols: Vec<String>,
    /// PEM file of the authorities that a wss:// gateway is verified against, instead of the system's.
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
    /// Believe any certificate.
    #[arg(long, conflicts_with = "ca", requires = "url")]
    insecure: bool,
    /// Process on this machine whose memory and CPU time are measured, with its descendants.
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// Sessions.
    #[arg(long, short = 'n', default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: u32,
    /// Sessions started in a second.
    #[arg(long, default_value_t = 500.0, value_name = "RATE", value_parser = rate)]
    ramp: f64,
    /// Seconds during which all sessions are idle; 0 leaves that out.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = seconds)]
    idle: f64,
    /// Messages in a second, over all sessions.
    #[arg(long, default_value_t = 2000.0, value_name = "RATE", value_parser = rate)]
    messages: f64,
    /// Size of a message.
    #[arg(long, default_value_t = 120, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(17..=65_536))]
    size: u32,
    /// Seconds during which messages are sent; 0 leaves that out.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = seconds)]
    echo: f64,
    /// Leave out the loss of all browsers and their return.
    #[arg(long)]
    no_storm: bool,
    /// Seconds within which all browsers come back.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = rate)]
    within: f64,
    /// Threads for browsers and upstream; by default one for each core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Write the report as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Do not show how far it is.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct UpstreamOptions {
    /// Where it listens; port 0 lets the system choose.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// What it does.
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Kind {
    /// Sends each message back.
    #[default]
    Echo,
    /// The signalling of the streaming server.
    Signaling,
}

impl From<Kind> for UpstreamKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Echo => UpstreamKind::Echo,
            Kind::Signaling => UpstreamKind::Signaling,
        }
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        Failure::new(error.to_string())
    }
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::FanIn(options) => fan_in(&options),
        Command::Upstream(options) => upstream(&options),
    }
}

fn upstream(options: &UpstreamOptions) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let stop = stop_signal()?;
        gateway::raise_limit();
        let upstream =
            Upstream::start(options.kind.into(), options.listen, MOST_SESSIONS, &Clock::system()).await?;
        outln!("listening on {}", upstream.address());
        stop.await;
        Ok(())
    })
}

fn fan_in(options: &FanIn) -> Result<(), Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = options.threads {
        builder.worker_threads(threads.into());
    }
    // Before anything is measured, so that no figures are lost for a path that is wrong.
    let is_json_shown = options.json.as_deref() == Some(Path::new("-"));
    let json = options.json.as_deref().filter(|_| !is_json_shown).map(Output::open).transpose()?;
    let html = options.html.as_deref().map(Output::open).transpose()?;
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(|it| Failure::new(format!("an event loop could not be made: {it}")))?;
    let report = runtime.block_on(async {
        let stop = stop_signal()?;
        let progress = Line::new(options.quiet);
        let report = bench::run(plan(options), Clock::system(), stop, move |it| progress.tell(it)).await;
        Ok::<_, Failure>(report?)
    })?;
    if is_json_shown {
        out!("{}", report.json());
        err!("{}", report.table());
    } else {
        out!("{}", report.table());
    }
    if let Some(output) = json {
        output.write(&report.json())?;
    }
    if let Some(output) = html {
        output.write(&report.html())?;
    }
    if report.is_whole() {
        Ok(())
    } else {
        Err(Failure::new("Not everything went well; the report has what did not."))
    }
}

/// A file for a report. One that was made for nothing is taken away.
struct Output<'a> {
    path: &'a Path,
    is_left_over: bool,
}

impl<'a> Output<'a> {
    /// Finds out whether it can be written.
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let is_new = !path.exists();
        let opened = File::options().append(true).create(true).open(path);
        opened.map_err(|it| Failure::new(format!("{}: {it}", path.display())))?;
        Ok(Output { path, is_left_over: is_new })
    }

    fn write(mut self, text: &str) -> Result<(), Failure> {
        self.is_left_over = false;
        std::fs::write(self.path, text).map_err(|it| Failure::new(format!("{}: {it}", self.path.display())))
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        if self.is_left_over {
            drop(std::fs::remove_file(self.path)); // an empty file harms nobody
        }
    }
}

fn plan(options: &FanIn) -> Plan {
    let place = match &options.url {
        None => Place::Own { config: options.config.clone() },
        Some(url) => Place::There { url: url.clone(), upstream: options.upstream_listen, pid: options.pid },
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &options.headers {
        headers.append(name, value.clone());
    }
    let trust = match &options.ca {
        Some(path) => Trust::File(path.clone()),
        None if options.insecure => Trust::Anybody,
        None => Trust::System,
    };
    Plan {
        place,
        upstream: options.upstream.into(),
        headers,
        token: options.token.clone(),
        subprotocols: options.subprotocols.clone(),
        trust,
        sessions: options.sessions as usize,
        ramp: options.ramp,
        idle: Duration::from_secs_f64(options.idle),
        echo: Duration::from_secs_f64(options.echo),
        messages: options.messages,
        size: options.size as usize,
        within: (!options.no_storm).then(|| Duration::from_secs_f64(options.within)),
        words: words(options),
    }
}

/// The options that make a difference to the figures. The token and the headers may be secrets, so they are not among
/// them.
fn words(options: &FanIn) -> BTreeMap<&'static str, String> {
    let upstream = match (&options.url, options.upstream_listen) {
        (Some(_), None) => "the gateway's own".to_owned(),
        _ => format!("{:?}, built in", options.upstream).to_lowercase(),
    };
    let config = options.config.as_ref().map_or("none".to_owned(), |it| it.display().to_string());
    let gateway = if options.url.is_some() {
        "one that ran".into()
    } else {
        format!("started with configuration: {config}")
    };
    let storm =
        if options.no_storm { "left out".into() } else { format!("all back within {} s", options.within) };
    BTreeMap::from([
        ("gateway", gateway),
        ("upstream", upstream),
        ("ramp", format!("{} sessions per second", options.ramp)),
        ("idle", format!("{} s", options.idle)),
        (
            "echo",
            format!(
                "{} messages per second of {} bytes for {} s",
                options.messages, options.size, options.echo
            ),
        ),
        ("storm", storm),
    ])
}

/// How far it is: one line of a terminal, or a line for each phase.
struct Line {
    is_quiet: bool,
    is_terminal: bool,
    phase: Mutex<Option<&'static str>>,
}

impl Line {
    fn new(is_quiet: bool) -> Self {
        Line { is_quiet, is_terminal: std::io::stderr().is_terminal(), phase: Mutex::new(None) }
    }

    fn tell(&self, it: Progress) {
        if self.is_quiet {
            return;
        }
        let phase = it.phase.name();
        let text = format!(
            "{:>6.1} s  {phase:<6} {} of {} sessions, {} messages sent, {} back, {} errors",
            it.elapsed.as_secs_f64(),
            it.open,
            it.sessions,
            it.sent,
            it.received,
            it.errors
        );
        if self.is_terminal {
            err!("\r\x1b[K{text}");
        } else if self.phase.lock().is_ok_and(|mut told| told.replace(phase) != Some(phase)) {
            err!("{text}\n");
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_terminal && !self.is_quiet {
            err!("\r\x1b[K");
        }
    }
}

fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|it| it.to_string())?;
    match url.scheme() {
        "ws" | "wss" if url.has_host() => Ok(url),
        _ => Err("not a ws:// or wss:// URL".into()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected `Name: value`")?;
    let name = name.trim().parse().map_err(|_| "not a header name")?;
    Ok((name, value.trim().parse().map_err(|_| "not a header value")?))
}

/// More than zero.
fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number")?;
    if rate > 0.0 && rate <= 1e6 { Ok(rate) } else { Err("expected more than 0, at most 1000000".into()) }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number")?;
    if (0.0..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("expected 0 to 86400".into()) }
}

/// Sessions that a signalling upstream takes.
const MOST_SESSIONS: usize = 1_000_000;
