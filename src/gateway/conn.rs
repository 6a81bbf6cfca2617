//! A browser's or an upstream's connection, encrypted or not.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::clock::Clock;
use crate::gateway::Totals;
use crate::gateway::tcp_info;
use crate::gateway::tunnel::Tunnel;
use crate::gateway::upstream;
use crate::session::Sent;

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    io: Io,
    /// What it counts as, as long as it lives.
    counted: Option<Counted>,
}

#[derive(Debug)]
enum Io {
    Plain(Tcp),
    /// Boxed: its state is large, and most of a gateway's connections may be plain.
    Tls(Box<TlsStream<Tcp>>),
    /// A browser that has come to another replica.
    Tunnel(Box<Tunnel>),
}

/// A TCP connection that counts what was written to it.
#[derive(Debug)]
pub(crate) struct Tcp {
    stream: TcpStream,
    written: u64,
}

/// A connection that is counted as long as this lives.
pub(crate) struct Counted {
    totals: Arc<Totals>,
    counts: Counts,
}

/// What a connection counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// A browser's.
    Browser,
    /// A browser's that is only told that there is no room.
    Refusal,
    /// One upstream, or to another replica.
    Upstream,
}

/// Bytes that a browser may send before it is answered. They wait; none goes upstream before its 101 (CVE-2026-2833).
const EARLY: usize = 16 << 10;

/// How long a peer may go on sending after our end, and how much; then the connection is cut.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

impl Conn {
    /// A clear-text connection.
    pub(crate) fn plain(tcp: TcpStream) -> Self {
        Conn { io: Io::Plain(tcp.into()), counted: None }
    }

    /// An encrypted connection.
    pub(crate) fn tls(tls: impl Into<TlsStream<Tcp>>) -> Self {
        Conn { io: Io::Tls(Box::new(tls.into())), counted: None }
    }

    /// A browser's connection at another replica.
    pub(crate) fn tunnel(tunnel: Tunnel) -> Self {
        Conn { io: Io::Tunnel(Box::new(tunnel)), counted: None }
    }

    /// Is counted from now on.
    pub(crate) fn count(&mut self, counted: Counted) {
        self.counted = Some(counted);
    }

    /// Whether the browser is at another replica.
    pub(crate) fn is_tunnel(&self) -> bool {
        matches!(self.io, Io::Tunnel(_))
    }

    fn tcp(&self) -> &Tcp {
        match &self.io {
            Io::Plain(tcp) => tcp,
            Io::Tls(tls) => tls.get_ref().0,
            Io::Tunnel(tunnel) => tunnel.stream.get_ref().0,
        }
    }

    /// Where the last byte stands in the TCP stream when `n_waiting` more are still to be written.
    pub(crate) fn sent(&self, n_waiting: usize) -> Sent {
        match &self.io {
            Io::Plain(tcp) => Sent::Plain(tcp.written + n_waiting as u64),
            Io::Tls(tls) if n_waiting == 0 && !tls.get_ref().1.wants_write() => {
                Sent::Sealed(tls.get_ref().0.written)
            }
            Io::Tls(_) => Sent::Unknown,
            Io::Tunnel(tunnel) => Sent::Plain(tunnel.written + n_waiting as u64),
        }
    }

    /// Where the last byte stands that the peer's kernel has acknowledged; also right after the connection broke.
    pub(crate) fn acknowledged(&self) -> u64 {
        if let Io::Tunnel(tunnel) = &self.io {
            return tunnel.acknowledged;
        }
        tcp_info::acknowledged(&self.tcp().stream)
    }

    /// How many bytes the peer's kernel has acknowledged, and how many were written.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let written = match &self.io {
            Io::Tunnel(tunnel) => tunnel.written,
            Io::Plain(_) | Io::Tls(_) => self.tcp().written,
        };
        (self.acknowledged(), written)
    }

    /// Is one of a session from now on.
    pub(crate) fn tune(&self) {
        upstream::tune(&self.tcp().stream);
    }

    /// Belongs to the event loop of this thread from now on.
    pub(crate) fn move_here(&mut self) -> io::Result<()> {
        let tcp = match &mut self.io {
            Io::Plain(tcp) => tcp,
            Io::Tls(tls) => tls.get_mut().0,
            Io::Tunnel(tunnel) => tunnel.stream.get_mut().0,
        };
        let copy = SockRef::from(&tcp.stream).try_clone()?;
        tcp.stream = TcpStream::from_std(copy.into())?;
        Ok(())
    }

    /// Ends the connection with RST instead of FIN once it is dropped.
    pub(crate) fn reset_on_drop(&self) {
        if let Err(error) = SockRef::from(&self.tcp().stream).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "A connection could not be marked for a reset.");
        }
    }

    /// Writes all of it, and lets none of it stand in a buffer.
    pub(crate) async fn write_out(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    /// Waits for the peer's end once ours is sent, for a bounded time: a peer that is still sending would otherwise be
    /// reset before it has read what was sent last (RFC 9112 section 9.6).
    pub(crate) async fn linger(&mut self, clock: &Clock) {
        let end = async {
            let mut sink = [0; 4096];
            let mut left = LINGER_BYTES;
            while left > 0 {
                match self.read(&mut sink).await {
                    Ok(n) if n > 0 => left = left.saturating_sub(n),
                    _ => break,
                }
            }
        };
        clock.timeout(LINGER, end).await;
    }

    /// Waits until the peer is gone, and keeps what it says meanwhile. One that has said very much is not heard any more.
    pub(crate) async fn gone(&mut self, early: &mut BytesMut) {
        // On the stack: nearly every browser waits for its answer and says nothing.
        let mut said = [0; 1024];
        while early.len() < EARLY {
            match self.read(&mut said).await {
                Ok(n) if n > 0 => early.extend_from_slice(&said[..n]),
                _ => return,
            }
        }
        std::future::pending().await
    }
}

impl Counted {
    /// One more that is made for a browser; none when there is no room for it.
    pub(crate) fn beside(totals: &Arc<Totals>) -> Option<Counted> {
        totals.files.hold().then(|| Counted::new(totals, Counts::Upstream))
    }

    /// A connection that was counted just now, and its descriptor too.
    pub(crate) fn new(totals: &Arc<Totals>, counts: Counts) -> Counted {
        if counts != Counts::Upstream {
            totals.metrics.connection(1);
        }
        Counted { totals: Arc::clone(totals), counts }
    }

    /// Whether there is no room for it.
    pub(crate) fn is_refusal(&self) -> bool {
        self.counts == Counts::Refusal
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Counted { totals, counts } = self;
        match counts {
            Counts::Browser | Counts::Upstream => totals.files.release(),
            Counts::Refusal => totals.files.refused(),
        }
        if *counts != Counts::Upstream {
            totals.n_connections.fetch_sub(1, Ordering::Relaxed);
            totals.metrics.connection(-1);
        }
    }
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.counts.fmt(f)
    }
}

impl From<TcpStream> for Tcp {
    fn from(stream: TcpStream) -> Self {
        Tcp { stream, written: 0 }
    }
}

impl Tcp {
    fn count(&mut self, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &poll {
            self.written += *n as u64;
        }
        poll
    }
}

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.count(poll)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write_vectored(cx, parts);
        this.count(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Io::Tunnel(tunnel) => tunnel.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Io::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
            Io::Tunnel(tunnel) => tunnel.poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Io::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Io::Tunnel(tunnel) => Pin::new(&mut tunnel.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Io::Tunnel(tunnel) => Pin::new(&mut tunnel.stream).poll_shutdown(cx),
        }
    }
}
