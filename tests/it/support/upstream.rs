//! An upstream that does what a test says, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::raw::{Frame, accept, frame};
use super::soon;

/// What an upstream does with a connection once it has read a head.
#[derive(Clone)]
pub enum Act {
    /// Opens the WebSocket, with these lines in the 101, and gives the connection to the test.
    Accept(String),
    /// Says these bytes first, then opens the WebSocket.
    AcceptAfter(String),
    /// Answers these bytes, then closes.
    Answer(String),
    /// Answers these bytes and no more, and keeps the connection.
    Begin(String),
    /// Answers a plain request with its own head as the body, again and again.
    Mirror,
    /// Says nothing and gives the connection to the test.
    Give,
    /// Says nothing and keeps the connection.
    Silence,
    /// Closes without a word.
    HangUp,
    /// Does these in turn, the last one for ever.
    InTurn(Vec<Act>),
}

/// An upstream.
pub struct Upstream {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    legs: mpsc::UnboundedReceiver<Leg>,
    connections: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

/// The upstream's side of a session.
pub struct Leg {
    pub head: String,
    stream: TcpStream,
    pub buf: Vec<u8>,
}

impl Upstream {
    /// An upstream that accepts every WebSocket.
    pub async fn start() -> Upstream {
        Upstream::that(Act::Accept(String::new())).await
    }

    pub async fn that(act: Act) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (heads, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let (sender, legs) = mpsc::unbounded_channel();
        let task = tokio::spawn({
            let (heads, connections) = (Arc::clone(&heads), Arc::clone(&connections));
            async move {
                let mut n = 0;
                loop {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    let act = match &act {
                        Act::InTurn(acts) => acts[n.min(acts.len() - 1)].clone(),
                        act => act.clone(),
                    };
                    n += 1;
                    *connections.lock().expect("not poisoned") += 1;
                    tokio::spawn(serve(stream, act, Arc::clone(&heads), sender.clone()));
                }
            }
        });
        Upstream { address, heads, legs, connections, task }
    }

    /// The next session that was opened.
    pub async fn leg(&mut self) -> Leg {
        soon("a session upstream", self.legs.recv()).await.expect("the upstream lives")
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("not poisoned").clone()
    }

    /// How many connections were made.
    pub fn n_connections(&self) -> usize {
        *self.connections.lock().expect("not poisoned")
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads a head; `None` at the end of the connection.
async fn read_head(stream: &mut TcpStream, buf: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = buf.windows(4).position(|it| it == b"\r\n\r\n") {
            return Some(String::from_utf8_lossy(&buf.drain(..at + 4).collect::<Vec<_>>()).into_owned());
        }
        if stream.read_buf(buf).await.ok()? == 0 {
            return None;
        }
    }
}

async fn serve(
    mut stream: TcpStream,
    act: Act,
    heads: Arc<Mutex<Vec<String>>>,
    legs: mpsc::UnboundedSender<Leg>,
) {
    stream.set_nodelay(true).expect("a socket option");
    let mut buf = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut buf).await {
        heads.lock().expect("not poisoned").push(head.clone());
        match &act {
            Act::Accept(_) | Act::AcceptAfter(_) => {
                let (before, lines) = match &act {
                    Act::AcceptAfter(before) => (before.as_str(), ""),
                    Act::Accept(lines) => ("", lines.as_str()),
                    _ => unreachable!("one of the two"),
                };
                let key = header(&head, "sec-websocket-key").unwrap_or_default();
                let answer = format!(
                    "{before}HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n{lines}\r\n",
                    accept(&key)
                );
                drop(stream.write_all(answer.as_bytes()).await);
                drop(legs.send(Leg { head, stream, buf }));
                return;
            }
            Act::Answer(bytes) => {
                drop(stream.write_all(bytes.as_bytes()).await);
                drop(stream.shutdown().await);
                // Until the other side has read it; a reset would take it away.
                while matches!(stream.read_buf(&mut buf).await, Ok(n) if n > 0) {}
                return;
            }
            Act::Mirror => {
                let length = header(&head, "content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
                while buf.len() < length && matches!(stream.read_buf(&mut buf).await, Ok(n) if n > 0) {}
                let body = format!(
                    "{head}{}",
                    String::from_utf8_lossy(&buf.drain(..length.min(buf.len())).collect::<Vec<_>>())
                );
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let body = if head.starts_with("HEAD ") { "" } else { &body };
                drop(stream.write_all(format!("{answer}{body}").as_bytes()).await);
            }
            Act::Begin(bytes) => {
                drop(stream.write_all(bytes.as_bytes()).await);
                while matches!(stream.read_buf(&mut buf).await, Ok(n) if n > 0) {}
                return;
            }
            Act::Give => {
                drop(legs.send(Leg { head, stream, buf }));
                return;
            }
            Act::Silence => {
                while matches!(stream.read_buf(&mut buf).await, Ok(n) if n > 0) {}
                return;
            }
            Act::HangUp => return,
            Act::InTurn(_) => unreachable!("a turn was chosen"),
        }
    }
}

/// The value of a header in a head; several are joined.
pub fn header(head: &str, name: &str) -> Option<String> {
    let lines = head.lines().skip(1).filter_map(|it| it.split_once(':'));
    let values: Vec<&str> =
        lines.filter(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect();
    if values.is_empty() { None } else { Some(values.join(", ")) }
}

impl Leg {
    /// The value of a header of the handshake.
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    /// Reads a frame; `None` when the connection ends.
    pub async fn frame(&mut self) -> Option<Frame> {
        let mut client = Wrapped { stream: &mut self.stream, buf: &mut self.buf };
        client.frame().await
    }

    /// Reads until what has come ends with these bytes.
    pub async fn until(&mut self, end: &[u8]) {
        while !self.buf.ends_with(end) {
            assert!(self.some().await > 0, "the connection ended after {} bytes", self.buf.len());
        }
    }

    /// Reads some bytes, and tells how many.
    pub async fn some(&mut self) -> usize {
        soon("some bytes", self.stream.read_buf(&mut self.buf)).await.unwrap_or(0)
    }

    /// A frame, if one is there or comes in a moment.
    pub async fn frame_now(&mut self) -> Option<Frame> {
        if self.is_silent().await { None } else { self.frame().await }
    }

    /// Sends a frame as a server.
    pub async fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.send_raw(&frame(opcode, payload, None)).await;
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes).await);
    }

    /// Sends bytes again and again, for as long as somebody takes them.
    pub async fn flood(mut self, bytes: &[u8]) {
        while self.stream.write_all(bytes).await.is_ok() {}
    }

    /// Sends FIN.
    pub async fn shutdown(&mut self) {
        drop(self.stream.shutdown().await);
    }

    /// Ends the connection with RST.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).expect("a socket option");
    }

    /// Reads until the connection ends, and says whether it ended with RST.
    pub async fn ends_with_reset(&mut self) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match soon("the end", self.stream.read(&mut chunk)).await {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Whether nothing is there to be read now.
    pub async fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        self.buf.is_empty()
            && tokio::time::timeout(std::time::Duration::from_millis(100), self.stream.peek(&mut byte))
                .await
                .is_err()
    }
}

struct Wrapped<'a> {
    stream: &'a mut TcpStream,
    buf: &'a mut Vec<u8>,
}

impl Wrapped<'_> {
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, len)) = super::raw::parse_frame(self.buf) {
                self.buf.drain(..len);
                return Some(frame);
            }
            match soon("a frame", self.stream.read_buf(self.buf)).await {
                Ok(n) if n > 0 => {}
                _ => return None,
            }
        }
    }
}
