//! `streamgate plugin bench`: what the phases of a plugin cost.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::cli::plugin::configured;
use crate::cli::{Failure, File};
use crate::config::{self, Node, Problems};
use crate::lua::{Measured, Subject, run_bench};
use crate::policy::{Exchange, Offer};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// The plugin's name, or its folder.
    name: String,
    /// Its settings, as TOML: `'tokens = "file:tokens.toml"'`; several in lines, or as in a chain with commas. Paths start
    /// from the configuration file's folder, or from this one.
    #[arg(long, value_name = "TOML", default_value = "")]
    settings: String,
    /// How long all phases together are measured.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// The method of the request that it is asked about.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// The path of that request, with its query.
    #[arg(long, default_value = "/sign_in")]
    path: String,
    /// A header of that request; may be given several times.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The bearer token of that request.
    #[arg(long)]
    token: Option<String>,
    #[command(flatten)]
    file: File,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let parts = configured(&options.file)?;
    let settings = settings(&options.settings)?;
    let measured = run_bench(Subject {
        name: &options.name,
        paths: &parts.plugins.paths,
        settings,
        from: &parts,
        request: request(options)?,
        time: Duration::from_secs(options.seconds),
    })?;
    show(options, &measured);
    Ok(())
}

/// Settings in lines, as in a file, or with commas, as in a step of a chain.
fn settings(text: &str) -> Result<config::Table, Problems> {
    let name = Arc::new(PathBuf::from("--settings"));
    config::parse(&name, text).or_else(|problems| {
        let step = config::parse(&name, &format!("step = {{ {text} }}")).map_err(|_| problems)?;
        Ok(step.get("step").and_then(Node::as_table).cloned().unwrap_or_default())
    })
}

fn show(options: &Options, measured: &[Measured]) {
    outln!("{} {}, CPU time and memory of a call\n", options.method, options.path);
    outln!(
        "{:<18}{:>10}{:>12}{:>12}{:>13}   how it ends",
        "phase",
        "ns",
        "ns, empty",
        "bytes",
        "allocations"
    );
    for it in measured {
        let total: usize = it.outcomes.iter().map(|(_, n)| n).sum();
        let mut ends: Vec<String> = it
            .outcomes
            .iter()
            .map(|(what, n)| match it.outcomes.len() {
                1 => what.clone(),
                _ => format!("{what} ({} %)", n * 100 / total.max(1)),
            })
            .collect();
        if ends.len() > MOST_ENDS {
            ends.truncate(MOST_ENDS);
            ends.push("…".into());
        }
        let (call, empty) = (it.call.as_nanos(), it.empty.as_nanos());
        let (name, ends) = (it.phase.name(), ends.join(", "));
        outln!("{name:<18}{call:>10}{empty:>12}{:>12}{:>13}   {ends}", it.bytes, it.allocations);
    }
    outln!(
        "\n\"empty\" is a plugin that does nothing. Bytes are those of the VM; allocations count there and outside of it. There is\n\
         no network, and the clock stands still: a plugin that asks a service is refused at once, and what it costs to wait\n\
         for an answer is not in these figures."
    );
}

/// How many ways of ending are shown.
const MOST_ENDS: usize = 3;

/// The request of a browser that opens a session, with what the user wants to be otherwise.
fn request(options: &Options) -> Result<Exchange, Failure> {
    let usual = [
        ("host", "stream.example.com"),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
        ),
        ("origin", "https://app.example.com"),
        ("accept-language", "en-GB,en;q=0.9"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("cache-control", "no-cache"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "streamgate.v1"),
    ];
    let mut headers: HeaderMap = usual
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    if let Some(token) = &options.token {
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let value =
            value.map_err(|_| Failure { code: 2, message: "--token: not a header's value".into() })?;
        headers.insert(http::header::AUTHORIZATION, value);
    }
    for (idx, (name, value)) in options.headers.iter().enumerate() {
        match options.headers[..idx].iter().any(|(it, _)| it == name) {
            true => headers.append(name, value.clone()),
            false => headers.insert(name, value.clone()).is_some(),
        };
    }
    let (path, query) = match options.path.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (options.path.as_str(), None),
    };
    let offer = Offer::parse(&headers);
    let offer = offer.map_err(|it| Failure { code: 2, message: format!("--header: {}", it.message()) })?;
    Ok(Exchange {
        id: "0123456789abcdef0123456789abcdef".into(),
        client: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)), 50000),
        tls: true,
        websocket: headers.contains_key(http::header::UPGRADE),
        method: options.method.clone(),
        path: path.to_owned(),
        query,
        offer,
        headers,
        route: "/**".into(),
        ..Exchange::default()
    })
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let name = HeaderName::try_from(name).map_err(|_| "not a header's name")?;
    let value = HeaderValue::try_from(value).map_err(|_| "not a header's value")?;
    Ok((name, value))
}
