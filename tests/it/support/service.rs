//! A service that plugins ask: it answers when a test says so, and knows when nobody waits for the answer any more.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::soon;
use super::upstream::header;

/// A service.
pub struct Service {
    pub address: SocketAddr,
    asked: mpsc::UnboundedReceiver<Asked>,
    connections: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

/// A request that waits for its answer; each has a connection of its own.
pub struct Asked {
    pub head: String,
    pub body: Vec<u8>,
    stream: TcpStream,
}

impl Service {
    pub async fn start() -> Service {
        Service::at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// One at an address where another one was.
    pub async fn at(address: SocketAddr) -> Service {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, asked) = mpsc::unbounded_channel();
        let connections = Arc::new(Mutex::new(0));
        let n_connections = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *n_connections.lock().expect("not poisoned") += 1;
                tokio::spawn(read(stream, sender.clone()));
            }
        });
        Service { address, asked, connections, task }
    }

    /// An address where nobody listens, until [`Service::at`].
    pub async fn nowhere() -> SocketAddr {
        let service = Service::start().await;
        let address = service.address;
        service.stop().await;
        address
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The next request.
    pub async fn asked(&mut self) -> Asked {
        soon("a request to the service", self.asked.recv()).await.expect("the service lives")
    }

    /// The next request, if one has come.
    pub fn asked_now(&mut self) -> Option<Asked> {
        self.asked.try_recv().ok()
    }

    /// How many connections were made.
    pub fn n_connections(&self) -> usize {
        *self.connections.lock().expect("not poisoned")
    }

    /// Listens no more.
    pub async fn stop(mut self) {
        self.task.abort();
        drop((&mut self.task).await); // it was told to end
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asked {
    /// The target of the request.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    /// Answers, and ends the connection.
    pub async fn answer(self, status: u16, body: &str) {
        let answer = format!(
            "HTTP/1.1 {status} As The Test Says\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        self.send(&answer).await;
    }

    /// Answers these bytes, and ends the connection.
    pub async fn send(mut self, answer: &str) {
        drop(self.stream.write_all(answer.as_bytes()).await); // whoever has left is found out by `is_left`
        drop(self.stream.shutdown().await);
    }

    /// Waits until whoever asked has closed the connection.
    pub async fn is_left(&mut self) {
        let mut chunk = [0; 1024];
        let left = async { while matches!(self.stream.read(&mut chunk).await, Ok(n) if n > 0) {} };
        soon("the end of the connection to the service", left).await;
    }
}

async fn read(mut stream: TcpStream, asked: mpsc::UnboundedSender<Asked>) {
    stream.set_nodelay(true).expect("a socket option");
    let mut buf = Vec::new();
    let end = loop {
        match buf.windows(4).position(|it| it == b"\r\n\r\n") {
            Some(at) => break at + 4,
            None if matches!(stream.read_buf(&mut buf).await, Ok(n) if n > 0) => {}
            None => return,
        }
    };
    let head = String::from_utf8_lossy(&buf[..end]).into_owned();
    let length: usize = header(&head, "content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    while buf.len() < end + length && matches!(stream.read_buf(&mut buf).await, Ok(n) if n > 0) {}
    drop(asked.send(Asked { head, body: buf.split_off(end), stream })); // a test that is over asks nothing
}
