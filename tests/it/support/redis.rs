//! A real redis-server, which a test may pause, kill and start again.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use redis::TlsCertificates;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::soon;

/// What the replicas of a test seal with.
pub const COOKIE_KEY: &str = "a key that all the replicas share";

/// A server that keeps nothing on disk; it is killed with the test.
pub struct Redis {
    pub address: SocketAddr,
    /// The authority that has signed its certificate, where it speaks TLS.
    ca: Option<String>,
    child: Child,
}

impl Redis {
    pub async fn start() -> Redis {
        // It takes no socket from us, so a port that was free a moment ago may be taken: then it is another one's turn.
        loop {
            let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
            if let Some(redis) = Redis::at(free.expect("a port")).await {
                return redis;
            }
        }
    }

    /// One that asks for a password.
    pub async fn protected(password: &str) -> Redis {
        loop {
            let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
            let (address, port) = free.map(|it| (it, it.port().to_string())).expect("a port");
            let options = ["--port", &port, "--requirepass", password];
            if let Some(redis) = Redis::listening(address, &options).await {
                return redis;
            }
        }
    }

    /// One at an address where another one was.
    pub async fn at(address: SocketAddr) -> Option<Redis> {
        Redis::listening(address, &["--port", &address.port().to_string()]).await
    }

    /// One that speaks TLS alone, with a certificate and its key in PEM files, signed by this authority.
    pub async fn encrypted(certificate: &Path, key: &Path, ca: &str) -> Redis {
        let path = |it: &Path| it.to_str().expect("a path in UTF-8").to_owned();
        let (certificate, key) = (path(certificate), path(key));
        loop {
            let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
            let (address, port) = free.map(|it| (it, it.port().to_string())).expect("a port");
            let options = ["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"];
            let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
            if let Some(redis) = Redis::listening(address, &[&options[..], &files].concat()).await {
                return Redis { ca: Some(ca.to_owned()), ..redis };
            }
        }
    }

    async fn listening(address: SocketAddr, options: &[&str]) -> Option<Redis> {
        let mut child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("redis-server is installed by `make test`");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let is_ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("Ready to accept connections") {
                    return true;
                }
            }
            false
        };
        if !soon("redis-server", is_ready).await {
            return None;
        }
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Redis { address, ca: None, child })
    }

    pub fn url(&self) -> String {
        format!("redis{}://{}", if self.ca.is_some() { "s" } else { "" }, self.address)
    }

    /// The tables of a gateway that shares it; its authority is in `ca.pem`.
    pub fn tables(&self) -> String {
        let ca = if self.ca.is_some() { "ca = \"ca.pem\"\n" } else { "" };
        format!(
            "[directory]\nurl = \"{}\"\n{ca}listen = \"127.0.0.1:0\"\n[sessions.cookie]\nkey = \"env:COOKIE_KEY\"",
            self.url()
        )
    }

    /// Stops it as a machine stops: no connection is closed in good order.
    pub async fn kill(mut self) -> SocketAddr {
        self.child.kill().await.expect("it can be killed");
        self.address
    }

    /// Answers no more and keeps its connections, until `CONT`.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().await;
        assert!(sent.expect("kill can be started").success());
    }

    /// Asks it something.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let command: Vec<&[u8]> = command.iter().map(|it| it.as_bytes()).collect();
        self.ask_bytes(&command).await
    }

    /// The same with arguments that may be no text.
    pub async fn ask_bytes<T: redis::FromRedisValue>(&self, command: &[&[u8]]) -> T {
        let client = match &self.ca {
            None => redis::Client::open(self.url()),
            Some(ca) => {
                let root_cert = Some(ca.clone().into_bytes());
                redis::Client::build_with_tls(self.url(), TlsCertificates { client_tls: None, root_cert })
            }
        };
        let client = client.expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("it is there");
        let mut asked = redis::Cmd::new();
        asked.arg(command);
        asked.query_async(&mut connection).await.unwrap_or_else(|it| panic!("{it}"))
    }

    /// Waits until it knows of so many sessions, and gives their keys.
    pub async fn sessions(&self, n: usize) -> Vec<String> {
        let known = async {
            loop {
                let keys: Vec<String> = self.ask(&["KEYS", "streamgate:session:*"]).await;
                if keys.len() == n {
                    return keys;
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        soon(&format!("{n} sessions in the directory"), known).await
    }
}
