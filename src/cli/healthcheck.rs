//! `streamgate healthcheck`: one request to a health path, for images that have no `curl`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::cli::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// What to ask: `address:port/path`.
    #[arg(default_value = "127.0.0.1:9090/healthz")]
    target: String,
}

/// Docker gives a check 30 s; a healthy process answers at once.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let (address, path) = options.target.split_once('/').unwrap_or((&options.target, "healthz"));
    let address: SocketAddr =
        address.parse().map_err(|_| Failure::new(format!("not an address: {address:?}")))?;
    let status = ask(address, path).map_err(|it| Failure::new(format!("{}: {it}", options.target)))?;
    match status.as_str() {
        "200" => Ok(()),
        other => Err(Failure::new(format!("{}: answered {other}", options.target))),
    }
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut tcp = TcpStream::connect_timeout(&address, TIMEOUT)?;
    tcp.set_read_timeout(Some(TIMEOUT))?;
    write!(tcp, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; 12];
    tcp.read_exact(&mut head)?;
    Ok(String::from_utf8_lossy(&head[9..]).into_owned())
}
