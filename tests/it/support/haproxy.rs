//! A real HAProxy in front of a gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use super::{Folder, soon};

/// HAProxy with one server; it is killed with the test.
pub struct Haproxy {
    pub address: SocketAddr,
    _child: Child,
    _folder: Folder,
}

impl Haproxy {
    /// Passes on to `server`: `how` are lines of its `listen` section, `options` stand behind the server.
    pub async fn before(server: SocketAddr, how: &str, options: &str) -> Haproxy {
        // It takes no socket from us, so a port that was free a moment ago may be taken: then it is another one's turn.
        loop {
            let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
            if let Some(haproxy) = Haproxy::at(free.expect("a port"), server, how, options).await {
                return haproxy;
            }
        }
    }

    async fn at(address: SocketAddr, server: SocketAddr, how: &str, options: &str) -> Option<Haproxy> {
        let folder = Folder::new();
        let file = folder.write(
            "haproxy.cfg",
            &format!(
                "global\n  maxconn 100\nlisten gateway\n  bind {address}\n  timeout connect 10s\n  timeout client 1m\n  timeout server 1m\n{how}\n  server s1 {server} {options}\n"
            ),
        );
        // As to systemd, it says over this socket when it serves.
        let notices = folder.path().join("notices");
        let socket = UnixDatagram::bind(&notices).expect("a socket");
        let mut child = Command::new("haproxy")
            .arg("-Ws")
            .arg("-f")
            .arg(&file)
            .env("NOTIFY_SOCKET", &notices)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("haproxy is installed by `make test`");
        let serves = async {
            let mut buf = [0; 1024];
            loop {
                let n = socket.recv(&mut buf).await.expect("a notice");
                if buf[..n].split(|it| *it == b'\n').any(|it| it == b"READY=1") {
                    return true;
                }
            }
        };
        let serves = tokio::select! {
            serves = soon("HAProxy", serves) => serves,
            _ = child.wait() => false,
        };
        serves.then_some(Haproxy { address, _child: child, _folder: folder })
    }

    /// A browser's connection from another address of this machine.
    pub async fn connect_from(&self, ip: Ipv4Addr) -> super::Client {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((ip, 0).into()).expect("all of 127.0.0.0/8 is this machine");
        super::Client::over(
            soon("a connection", socket.connect(self.address)).await.expect("HAProxy listens"),
        )
    }
}
