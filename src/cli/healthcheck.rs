//! `streamgate healthcheck`: one request to a health path, for images that have no `curl`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::cli::{Failure, File};
use crate::config::{Env, Role, Sources};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: File,
    /// What to ask: `address:port/path`. Without it the admin server is asked, then the control server, then the front
    /// door; one that is well is enough.
    target: Option<String>,
}

/// Docker gives a check 30 s; a healthy process answers at once.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let targets = match &options.target {
        Some(target) => {
            let (address, path) = target.split_once('/').unwrap_or((target, "healthz"));
            let parsed = address.parse().map_err(|_| Failure::new(format!("not an address: {address:?}")))?;
            vec![(parsed, path.to_owned())]
        }
        None => configured(&options.file),
    };
    let mut failures = Vec::new();
    for (address, path) in targets {
        match ask(address, &path) {
            Ok(status) if status == "200" => return Ok(()),
            Ok(status) => failures.push(format!("{address}/{path}: answered {status}")),
            Err(error) => failures.push(format!("{address}/{path}: {error}")),
        }
    }
    Err(Failure::new(failures.join("\n")))
}

/// The health paths of the process that this configuration is for. Which command it runs is not written there, so all
/// three are asked. A process goes on with the configuration that it has when the file gets a mistake, so a mistake is no
/// reason to call it ill.
fn configured(file: &File) -> Vec<(SocketAddr, String)> {
    let read = file.sources();
    let resolved = read.clone().and_then(|it| {
        it.resolve(Role::Stream)?;
        it.resolve(Role::FrontDoor)
    });
    if let Err(problems) = resolved {
        err!(
            "warning: the configuration has mistakes; what is found of the addresses is asked.\n{}",
            problems.told()
        );
    }
    let found = read.unwrap_or_else(|_| Sources::new(Env::of_process())).health();
    let paths = ["healthz", "healthz", "health"];
    found.into_iter().map(local).zip(paths.map(str::to_owned)).collect()
}

/// The address under which this machine reaches itself.
fn local(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => address,
        IpAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(_) => SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), address.port()),
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
