//! `streamgate demo`: browser -> gateway -> front door -> streaming function -> WebRTC, on one machine.
//!
//! The three parts are those of `run`, `stream` and `frontdoor`, in one process but over real sockets: the function is
//! created and deployed through the front door's API, as one would do it with NVCF.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{Addresses, App};
use crate::cli::{Failure, runtime, stop_signal};
use crate::clock::Clock;
use crate::config::{Env, Role, Sources};
use crate::telemetry;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Where the page is served. `0.0.0.0:49100` lets a phone in the same network see it too.
    #[arg(long, default_value = "127.0.0.1:49100", value_name = "ADDRESS:PORT")]
    listen: String,
    /// Serve the page with TLS and a self-signed certificate.
    #[arg(long)]
    tls: bool,
    /// The token that the page must show; random when it is not given.
    #[arg(long, value_parser = token)]
    token: Option<String>,
    /// Print more of what happens (a log level or filter).
    #[arg(long, default_value = "warn")]
    log: String,
}

/// How many browsers may watch at once.
const VIEWERS: usize = 64;

/// How long the function may take to become active.
const ACTIVE_WITHIN: Duration = Duration::from_secs(20);

/// The key with which the gateway comes to the front door. It never leaves this process.
fn key() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

pub(super) fn run(options: Options) -> Result<(), Failure> {
    let token = options.token.clone().unwrap_or_else(|| key()[..12].to_owned());
    let folder = Folder::new(&token)?;
    let clock = Clock::system();
    runtime()?.block_on(async {
        let stop = stop_signal()?;
        let api_key = key();
        let back = back(&options, &api_key)?;
        telemetry::install_log(&back.log).map_err(crate::config::Problems::from)?;
        let back = App::build(back, clock.clone()).await?;
        let behind = back.addresses();
        let (stop_back, stopped) = tokio::sync::oneshot::channel::<()>();
        let back = tokio::spawn(back.run(async move { drop(stopped.await) }));

        outln!("front door  http://{}", address(behind.frontdoor));
        outln!(
            "function    control http://{}, signalling ws://{}/sign_in, media udp {}",
            address(behind.control),
            address(behind.signaling),
            address(behind.media)
        );
        let function = deploy(behind, &api_key, &clock).await?;
        outln!("deployed    function {function}");

        let front = front(&options, &folder, behind, &api_key, &function)?;
        let front = App::build(front, clock.clone()).await?;
        let here = front.addresses();
        let gateway = here.gateway.expect("the demo has a gateway");
        outln!("gateway     {gateway}, metrics http://{}/metrics", address(here.admin));
        outln!("\nOpen  {}\n\nStop with Ctrl-C.", url(&options, gateway, &token));
        front.run(stop).await;
        stop_back.send(()).ok(); // it has stopped by itself otherwise
        drop(back.await);
        Ok(())
    })
}

/// A token that stands in the URL and in a subprotocol as it is.
fn token(text: &str) -> Result<String, String> {
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || b"-._~".contains(&it);
    if (1..=128).contains(&text.len()) && text.bytes().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 128 letters, digits, `-`, `.`, `_` and `~`".into())
    }
}

/// The token file of one demo, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(token: &str) -> Result<Folder, Failure> {
        let path = std::env::temp_dir().join(format!("streamgate-demo-{}", std::process::id()));
        let failed = |it: std::io::Error| Failure::new(format!("{}: {it}", path.display()));
        std::fs::create_dir_all(&path).map_err(failed)?;
        let file = path.join("tokens.toml");
        std::fs::write(&file, format!("[guest]\ntoken = {token:?}\n")).map_err(failed)?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, private).map_err(failed)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0)); // the system clears its own temporary folder too
    }
}

/// Front door and streaming function.
fn back(options: &Options, api_key: &str) -> Result<crate::config::Config, Failure> {
    let is_local = listen_ip(options).is_loopback();
    let media = if is_local { "127.0.0.1" } else { "0.0.0.0" };
    let file = format!(
        "[streaming]\ncontrol = \"127.0.0.1:0\"\nsignaling = \"127.0.0.1:0\"\nmedia_address = \"{media}\"\nmax_sessions = {VIEWERS}\n\
         [frontdoor]\naddress = \"127.0.0.1:0\"\ntoken = \"env:KEY\"\n\
         [log]\nlevel = {:?}\n",
        options.log
    );
    let env: Env = [("KEY", api_key)].into_iter().collect();
    Ok(Sources::new(env).with_file("demo", file).resolve(Role::Stream)?)
}

/// The gateway.
fn front(
    options: &Options,
    folder: &Folder,
    behind: Addresses,
    api_key: &str,
    function: &str,
) -> Result<crate::config::Config, Failure> {
    let file = format!(
        "require_auth = true\n\
         [listen]\naddress = {:?}\npage = true\ntls = {{ self_signed = {} }}\n\
         [admin]\naddress = \"127.0.0.1:0\"\n\
         [sessions]\ndrain = {{ timeout = \"0s\" }}\n\
         [upstream]\nserver = \"http://{}\"\napi_key = \"env:KEY\"\nfunction_id = {function:?}\n\
         [log]\nlevel = {:?}\naccess = false\n\
         [[route]]\npath = \"/**\"\nchain = [\"cors\", {{ plugin = \"bearer-auth\", tokens = \"file:{}\" }}]\n",
        options.listen,
        options.tls,
        address(behind.frontdoor),
        options.log,
        folder.0.join("tokens.toml").display(),
    );
    let env: Env = [("KEY", api_key)].into_iter().collect();
    Ok(Sources::new(env).with_file("demo", file).resolve(Role::Gateway)?)
}

fn listen_ip(options: &Options) -> IpAddr {
    let host = options.listen.rsplit_once(':').map_or("", |(host, _)| host);
    host.trim_matches(['[', ']']).parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The address to open. The token stands behind the `#`, so it reaches no server and no log.
fn url(options: &Options, gateway: SocketAddr, token: &str) -> String {
    let scheme = if options.tls { "https" } else { "http" };
    let host = if gateway.ip().is_unspecified() { "localhost".to_owned() } else { gateway.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("{scheme}://{host}:{}/#token={token}", gateway.port())
}

/// Creates the function and points it at the running streaming server, with the requests that NVCF takes.
async fn deploy(behind: Addresses, api_key: &str, clock: &Clock) -> Result<String, Failure> {
    let door = behind.frontdoor.expect("the demo has a front door");
    let (control, signaling) =
        (behind.control.map_or(0, |it| it.port()), behind.signaling.map_or(0, |it| it.port()));
    let function = json!({
        "name": "demo",
        "inferenceUrl": "/sign_in",
        "inferencePort": signaling,
        "health": { "protocol": "HTTP", "uri": "/v1/streaming/ready", "port": control, "timeout": "PT10S", "expectedStatusCode": 200 },
        "containerImage": "streamgate",
        "apiBodyFormat": "CUSTOM",
        "functionType": "STREAMING",
    });
    let created = call(door, "POST", "/v2/nvcf/functions", api_key, &function).await?;
    let id = text(&created, "/function/id")?;
    let version = text(&created, "/function/versionId")?;
    let deployment =
        json!({ "deploymentSpecifications": [{ "gpu": "none", "maxRequestConcurrency": VIEWERS }] });
    call(
        door,
        "POST",
        &format!("/v2/nvcf/deployments/functions/{id}/versions/{version}"),
        api_key,
        &deployment,
    )
    .await?;
    let active = async {
        let path = format!("/v2/nvcf/functions/{id}/versions/{version}");
        loop {
            let function = call(door, "GET", &path, api_key, &Value::Null).await?;
            if function.pointer("/function/status") == Some(&json!("ACTIVE")) {
                return Ok(());
            }
            clock.sleep(Duration::from_millis(100)).await;
        }
    };
    let outcome: Option<Result<(), Failure>> = clock.timeout(ACTIVE_WITHIN, active).await;
    outcome.ok_or_else(|| Failure::new("the function did not become active"))??;
    Ok(id)
}

/// One request to the front door's API.
async fn call(door: SocketAddr, method: &str, path: &str, key: &str, body: &Value) -> Result<Value, Failure> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {door}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut tcp = TcpStream::connect(door).await?;
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = exchange.await.map_err(|it| Failure::new(format!("the front door: {it}")))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if !head.starts_with("HTTP/1.1 200") {
        return Err(Failure::new(format!(
            "the front door: {} {body}",
            head.lines().next().unwrap_or_default()
        )));
    }
    serde_json::from_str(body).map_err(|it| Failure::new(format!("the front door: {it}")))
}

fn text(value: &Value, pointer: &str) -> Result<String, Failure> {
    let text = value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| Failure::new(format!("the front door gave no {pointer}")))
}

fn address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "-".into(), |it| it.to_string())
}
