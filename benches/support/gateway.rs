//! A gateway of one worker in this process, and what the kernel says that worker has used.
#![allow(dead_code)] // each bench needs a part of it

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use streamgate::app::{App, Reloader};
use streamgate::clock::Clock;
use streamgate::config::{Config, Env, Role, Sources};

/// A gateway that serves until it is dropped.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) reloader: Reloader,
    sources: Sources,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    running: Option<std::thread::JoinHandle<()>>,
}

impl Gateway {
    /// Serves before `upstream`; `routes` is the part of the configuration that has them.
    pub(crate) fn start(upstream: SocketAddr, routes: &str) -> Gateway {
        let server = format!("http://{upstream}");
        let env: Env = [("NVCF_API_KEY", "key"), ("STREAMING_FUNCTION_ID", "f"), ("NVCF_SERVER", &server)]
            .into_iter()
            .collect();
        let file = format!(
            "workers = 1\n[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[log]\naccess = false\n{routes}"
        );
        let path = std::env::current_dir().expect("there is a folder").join("streamgate.toml");
        let sources = Sources::new(env).with_file(path, file);
        let config = resolve(&sources);
        let (told, tell) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let app = App::build(config, Clock::system()).await.expect("a gateway");
                let address = app.addresses().gateway.expect("it is a gateway");
                let reloader = app.reloader().expect("it is a gateway");
                told.send((address, reloader)).expect("somebody waits");
                app.run(async { drop(stopped.await) }).await;
            });
        });
        let (address, reloader) = tell.recv().expect("the gateway starts");
        Gateway { address, reloader, sources, stop: Some(stop), running: Some(running) }
    }

    /// Its configuration, resolved once more.
    pub(crate) fn config(&self) -> Config {
        resolve(&self.sources)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(running) = self.running.take() {
            running.join().expect("the gateway ends");
        }
    }
}

fn resolve(sources: &Sources) -> Config {
    match sources.resolve(Role::Gateway) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}"),
    }
}

/// CPU time that the gateway's worker has used so far.
pub(crate) fn worker_cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("this is Linux");
    let worker = tasks
        .filter_map(|it| Some(it.ok()?.path()))
        .find(|it| std::fs::read_to_string(it.join("comm")).is_ok_and(|it| it.trim() == "worker-0"));
    let account = std::fs::read_to_string(worker.expect("a gateway runs").join("schedstat"));
    let nanos = account.ok().and_then(|it| it.split(' ').next()?.parse().ok());
    Duration::from_nanos(nanos.expect("the kernel accounts for threads"))
}

/// A port where WebSockets are accepted; each is served by `serve` on a thread of its own.
pub(crate) fn upstream(serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            std::thread::spawn(move || {
                if let Some(tcp) = accept(tcp) {
                    serve(tcp);
                }
            });
        }
    });
    address
}

/// Answers a WebSocket handshake.
fn accept(mut tcp: TcpStream) -> Option<TcpStream> {
    let key = read_head(&mut tcp).into_iter().find_map(|it| {
        it.to_ascii_lowercase().starts_with("sec-websocket-key:").then(|| it[18..].trim().to_owned())
    });
    let accept = streamgate::internals::websocket_accept(&key?);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).ok()?;
    Some(tcp)
}

/// Opens a session.
pub(crate) fn browser(gateway: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(gateway).expect("the gateway listens");
    tcp.set_nodelay(true).expect("a socket can be tuned");
    let head = "GET /sign_in HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    tcp.write_all(head.as_bytes()).expect("the gateway reads");
    let answer = read_head(&mut tcp);
    assert!(answer[0].contains(" 101 "), "{answer:?}");
    tcp
}

/// The lines of a head.
fn read_head(tcp: &mut TcpStream) -> Vec<String> {
    let lines = BufReader::with_capacity(1, tcp).lines().map_while(Result::ok); // what follows is not its
    lines.take_while(|it| !it.is_empty()).collect()
}
