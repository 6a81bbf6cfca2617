//! A browser at the level of bytes: what it sends is what the test says, good or bad.

use std::net::SocketAddr;

use base64::Engine;
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

/// Both directions of a connection, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

enum Either {
    Plain(TcpStream),
    Other(Box<dyn Stream>),
}

impl Either {
    fn as_dyn(&mut self) -> &mut dyn Stream {
        match self {
            Either::Plain(it) => it,
            Either::Other(it) => it,
        }
    }
}

/// A browser's connection.
pub struct Client {
    stream: Either,
    /// What came and was not read yet.
    pub buf: Vec<u8>,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// A WebSocket frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
    pub masked: bool,
}

/// The key of the standard's example.
pub const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const WEBSOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let tcp = soon("a connection", TcpStream::connect(address)).await.expect("the gateway listens");
        tcp.set_nodelay(true).expect("a socket option");
        Client { stream: Either::Plain(tcp), buf: Vec::new() }
    }

    pub fn over(stream: impl Stream + 'static) -> Client {
        Client { stream: Either::Other(Box::new(stream)), buf: Vec::new() }
    }

    /// Sends bytes as they are. A server that has hung up is for the test to notice by what it reads.
    pub async fn send(&mut self, bytes: &[u8]) {
        let sent = async {
            self.stream.as_dyn().write_all(bytes).await?;
            self.stream.as_dyn().flush().await
        };
        drop(soon("room to write", sent).await);
    }

    /// Sends bytes again and again, for as long as somebody takes them.
    pub async fn flood(mut self, bytes: &[u8]) {
        while self.stream.as_dyn().write_all(bytes).await.is_ok() {}
    }

    /// Sends bytes for as long as somebody takes them, while answers are read here.
    pub fn send_meanwhile(&self, bytes: Vec<u8>) {
        let Either::Plain(tcp) = &self.stream else { panic!("only a plain connection can be shared") };
        let copy = SockRef::from(tcp).try_clone().expect("a descriptor");
        let mut copy = TcpStream::from_std(copy.into()).expect("the socket does not block");
        tokio::spawn(async move { drop(copy.write_all(&bytes).await) });
    }

    /// Sends a request with a `Host`, and a `Content-Length` when it has a body.
    pub async fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: gateway.example\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        self.send(&[head.as_bytes(), body].concat()).await;
    }

    /// Asks for a WebSocket. A header given here replaces the handshake's own of that name; an empty one leaves it out.
    pub async fn upgrade(&mut self, path: &str, headers: &[(&str, &str)]) {
        let own = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", WEBSOCKET_KEY),
        ];
        let given = |name: &str| headers.iter().any(|(it, _)| it.eq_ignore_ascii_case(name));
        let all: Vec<(&str, &str)> = own
            .into_iter()
            .filter(|(name, _)| !given(name))
            .chain(headers.iter().copied().filter(|(_, it)| !it.is_empty()))
            .collect();
        self.request("GET", path, &all, b"").await;
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        match soon("more bytes", self.stream.as_dyn().read(&mut chunk)).await {
            Ok(n) if n > 0 => {
                self.buf.extend_from_slice(&chunk[..n]);
                true
            }
            _ => false,
        }
    }

    /// Reads a response, its body too when it says how long it is.
    pub async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    /// The same, to a method that may have no body in its answer.
    pub async fn answer_to(&mut self, method: &str) -> Answer {
        let answer = self.try_answer(method).await;
        answer.unwrap_or_else(|| panic!("no answer, but {:?}", String::from_utf8_lossy(&self.buf)))
    }

    /// Reads a response; `None` when the connection ends before.
    pub async fn try_answer(&mut self, method: &str) -> Option<Answer> {
        let end = loop {
            match self.buf.windows(4).position(|it| it == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if self.more().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8(self.buf.drain(..end).collect()).expect("a head is text");
        let mut lines = head.trim_end().lines();
        let status = lines
            .next()
            .and_then(|it| it.split(' ').nth(1))
            .and_then(|it| it.parse().ok())
            .expect("a status");
        let headers: Vec<(String, String)> = lines
            .map(|it| it.split_once(':').expect("a header"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").map(|it| it.parse::<usize>().expect("a length"));
        if method != "HEAD" && status != 101 && status != 204 && status != 304 {
            if answer.header("transfer-encoding").is_some() {
                answer.body = self.chunked().await;
            } else {
                while length.is_none_or(|it| self.buf.len() < it) && self.more().await {}
                let length = length.unwrap_or(self.buf.len()).min(self.buf.len());
                answer.body = self.buf.drain(..length).collect();
            }
        }
        Some(answer)
    }

    async fn chunked(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                match self.buf.windows(2).position(|it| it == b"\r\n") {
                    Some(at) => break at,
                    None => assert!(self.more().await, "the body ends early"),
                }
            };
            let size = String::from_utf8_lossy(&self.buf[..line]).into_owned();
            let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
            while self.buf.len() < line + 2 + size + 2 {
                assert!(self.more().await, "the body ends early");
            }
            body.extend_from_slice(&self.buf[line + 2..line + 2 + size]);
            self.buf.drain(..line + 2 + size + 2);
            if size == 0 {
                return body;
            }
        }
    }

    /// Reads exactly so many bytes.
    pub async fn exactly(&mut self, n: usize) -> Vec<u8> {
        while self.buf.len() < n {
            assert!(self.more().await, "the connection ended after {:?}", self.buf);
        }
        self.buf.drain(..n).collect()
    }

    /// Reads a frame; `None` when the connection ends.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, len)) = parse_frame(&self.buf) {
                self.buf.drain(..len);
                return Some(frame);
            }
            if !self.more().await {
                assert!(self.buf.is_empty(), "the connection ended within a frame: {:?}", self.buf);
                return None;
            }
        }
    }

    /// Reads until the connection ends, and says whether it ended with RST.
    pub async fn ends_with_reset(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        loop {
            match soon("the end", self.stream.as_dyn().read(&mut chunk)).await {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Whether nothing is there to be read now.
    pub async fn is_silent(&mut self) -> bool {
        let (stream, buf) = (self.stream.as_dyn(), &mut self.buf);
        buf.is_empty()
            && tokio::time::timeout(std::time::Duration::from_millis(100), stream.read_buf(buf))
                .await
                .is_err()
    }

    /// Sends FIN.
    pub async fn shutdown(&mut self) {
        drop(self.stream.as_dyn().shutdown().await);
    }

    /// From now on nothing that is sent to this connection arrives, as in a network that is gone.
    pub fn lose_network(&self) {
        let Either::Plain(tcp) = &self.stream else { panic!("only a plain connection can be filtered") };
        // A program that keeps 0 bytes of each packet: `BPF_RET | BPF_K, 0`.
        SockRef::from(tcp).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).expect("a socket option");
    }

    /// The frames that have arrived so far.
    pub fn frames_so_far(&mut self) -> Vec<Frame> {
        let Either::Plain(tcp) = &self.stream else { panic!("only a plain connection tells") };
        let mut chunk = [0; 16 << 10];
        while let Ok(n @ 1..) = tcp.try_read(&mut chunk) {
            self.buf.extend_from_slice(&chunk[..n]);
        }
        let mut frames = Vec::new();
        while let Some((frame, len)) = parse_frame(&self.buf) {
            self.buf.drain(..len);
            frames.push(frame);
        }
        frames
    }

    /// Ends the connection with RST.
    pub fn reset(self) {
        let Either::Plain(tcp) = &self.stream else { panic!("only a plain connection can be reset") };
        SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO)).expect("a socket option");
    }
}

impl Answer {
    /// The value of a header; the values of several of that name joined as HTTP joins them.
    pub fn header(&self, name: &str) -> Option<String> {
        let values = self.all(name);
        if values.is_empty() { None } else { Some(values.join(", ")) }
    }

    pub fn all(&self, name: &str) -> Vec<String> {
        self.headers.iter().filter(|(it, _)| it == name).map(|(_, value)| value.clone()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A field of a JSON body.
    pub fn json(&self, field: &str) -> String {
        let json: serde_json::Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()));
        match &json[field] {
            serde_json::Value::String(it) => it.clone(),
            other => other.to_string(),
        }
    }

    /// The code of an error.
    pub fn code(&self) -> String {
        self.json("code")
    }
}

/// A frame at the front of `bytes`, and how many bytes it has.
pub fn parse_frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let masked = second & 0x80 != 0;
    let (len, mut at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        len => (u64::from(len), 2),
    };
    let mask: [u8; 4] = if masked { bytes.get(at..at + 4)?.try_into().ok()? } else { [0; 4] };
    if masked {
        at += 4;
    }
    let end = at + usize::try_from(len).ok()?;
    let payload = bytes.get(at..end)?.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b).collect();
    Some((Frame { opcode: first & 0x0f, payload, masked }, end))
}

/// A frame as a peer sends it.
pub fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        n @ 0..=125 => bytes.push(masked | n as u8),
        n @ 126..=0xffff => {
            bytes.push(masked | 126);
            bytes.extend((n as u16).to_be_bytes());
        }
        n => {
            bytes.push(masked | 127);
            bytes.extend((n as u64).to_be_bytes());
        }
    }
    bytes.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
    bytes
}

/// A browser's frame.
pub fn from_browser(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(opcode, payload, Some([0x37, 0xfa, 0x21, 0x3d]))
}

/// The payload of a Close frame.
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// `Sec-WebSocket-Accept` for a key.
pub fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(hash)
}
