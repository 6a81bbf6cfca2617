//! A browser that has come to one replica while its session is in another: what passes between the two.
//!
//! Towards the browser bytes go as they are. Back they go in pieces, because the owner of the session also has to hear
//! what the browser's kernel has acknowledged, and how its connection ended; otherwise it could not tell which messages
//! have arrived.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsStream;

use crate::clock::{Clock, Timer};
use crate::gateway::conn::{Conn, Tcp};
use crate::session::{Control, Sender, Sent, Tracker};

/// The owner's side: stands in the place of a browser's connection.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(super) stream: TlsStream<Tcp>,
    /// Bytes written for the browser.
    pub(super) written: u64,
    /// As many of them have arrived.
    pub(super) acknowledged: u64,
    head: [u8; HEAD],
    n_head: usize,
    /// Bytes of data that are still to come before the next head.
    n_data: usize,
    ended: bool,
}

/// The browser's side: carries until either connection ends.
pub(crate) struct Carrier {
    browser: Conn,
    owner: Conn,
    /// Bytes for the browser that it has not taken yet.
    to_browser: Vec<u8>,
    to_owner: Vec<u8>,
    /// Bytes that came from the owner.
    n_received: u64,
    /// As many of them as are still to come of the browser's 101, and where its frames end.
    n_head: usize,
    frames: Tracker,
    /// Where encrypted ones stand in the browser's TCP stream that are not known to have arrived.
    marks: VecDeque<Mark>,
    /// As many bytes are known to have arrived, and the owner was told of as many.
    arrived: u64,
    told: u64,
    timer: Timer,
    clock: Clock,
}

#[derive(Clone, Copy)]
struct Mark {
    /// Bytes that came from the owner.
    n_received: u64,
    /// The place in the TCP stream at which they have all arrived.
    at: u64,
}

/// What a piece is: data, how much has arrived, or how the browser's connection ended.
const DATA: u8 = 1;
const ARRIVED: u8 = 2;
const CLOSED: u8 = 3;
const BROKEN: u8 = 4;

/// What kind a piece is of, and a number: the length of the data, or of what has arrived.
const HEAD: usize = 9;

/// How often it is looked at what has arrived, while something is on its way.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes carried at a time.
const PIECE: usize = 16 << 10;

/// Marks that are kept; with more on their way, what has arrived is known a little later.
const MARKS: usize = 64;

impl Tunnel {
    pub(crate) fn new(stream: TlsStream<Tcp>) -> Self {
        Tunnel { stream, written: 0, acknowledged: 0, head: [0; HEAD], n_head: 0, n_data: 0, ended: false }
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while !self.ended {
            if self.n_data > 0 {
                let len = buf.remaining().min(self.n_data);
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
                ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
                let n = part.filled().len();
                if n == 0 && len > 0 {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                buf.advance(n);
                self.n_data -= n;
                return Poll::Ready(Ok(()));
            }
            let mut part = ReadBuf::new(&mut self.head[self.n_head..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
            match part.filled().len() {
                // Whoever carries says how the browser went; one that does not is gone itself.
                0 => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                n => self.n_head += n,
            }
            if self.n_head < HEAD {
                continue;
            }
            self.n_head = 0;
            let (kind, number) = self.head.split_first().expect("a head has a kind");
            let number = u64::from_be_bytes(number.try_into().expect("a head has a number"));
            match *kind {
                DATA => self.n_data = usize::try_from(number).unwrap_or(usize::MAX),
                ARRIVED => self.acknowledged = number.clamp(self.acknowledged, self.written),
                CLOSED => self.ended = true,
                BROKEN => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                _ => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written += n as u64;
        Poll::Ready(Ok(n))
    }
}

impl Carrier {
    /// `early` is what the browser has sent after its request, and `n_head` the length of its 101. The owner has said so
    /// far that it takes the browser.
    pub(crate) fn new(browser: Conn, early: &[u8], n_head: usize, owner: Conn, clock: &Clock) -> Self {
        let timer = clock.timer(clock.now() + LOOK);
        let mut carrier = Carrier {
            browser,
            owner,
            to_browser: Vec::new(),
            to_owner: Vec::new(),
            n_received: 1, // the byte that said so
            n_head,
            frames: Tracker::new(Sender::Server),
            marks: VecDeque::new(),
            arrived: 1,
            told: 0,
            timer,
            clock: clock.clone(),
        };
        if !early.is_empty() {
            carrier.send_data(early);
        }
        carrier
    }

    /// Carries until either connection has ended, or until `stop`.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut piece = vec![0; PIECE].into_boxed_slice();
        let mut stop = std::pin::pin!(stop);
        let ended = poll_fn(|cx| {
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ended::Stopped);
            }
            self.poll(cx, &mut piece)
        })
        .await;
        match ended {
            Ended::Owner(Ok(())) => self.finish().await,
            Ended::Owner(Err(_)) => self.browser.reset_on_drop(),
            Ended::Browser(kind) => self.say_goodbye(kind).await,
            Ended::Stopped => self.leave(&mut piece).await,
        }
    }

    /// This replica ends. A browser that has all that was sent to it is told to come back; of one that takes too long the
    /// connection breaks, so that it does not get what is sent again twice.
    async fn leave(&mut self, piece: &mut [u8]) {
        let clock = self.clock.clone();
        let has_all = clock.timeout(LEAVE, poll_fn(|cx| self.poll_leave(cx, piece))).await;
        self.say_goodbye(BROKEN).await;
        if !matches!(has_all, Some(Ok(()))) {
            return self.browser.reset_on_drop();
        }
        let (bytes, len) = Control::restart().encode(None);
        let last = async {
            self.browser.write_out(&bytes[..len]).await?;
            self.browser.shutdown().await
        };
        if let Some(Ok(())) = clock.timeout(LAST, last).await {
            self.browser.linger(&clock).await;
        }
    }

    /// Reads to the end of the frame that has begun, and waits until it has arrived.
    fn poll_leave(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_to_browser(cx))?;
            let n_due = self.frames.n_due() as usize + self.n_head;
            if n_due > 0 {
                let len = n_due.min(piece.len());
                let mut buf = ReadBuf::new(&mut piece[..len]);
                ready!(Pin::new(&mut self.owner).poll_read(cx, &mut buf))?;
                if buf.filled().is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                self.receive(buf.filled())?;
                continue;
            }
            self.look();
            if self.arrived >= self.n_received {
                return Poll::Ready(Ok(()));
            }
            ready!(self.timer.poll(cx));
            self.timer.reset(self.clock.now() + LOOK);
        }
    }

    /// Takes what came from the owner.
    fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.n_received += bytes.len() as u64;
        self.to_browser.extend_from_slice(bytes);
        let n_head = self.n_head.min(bytes.len());
        self.n_head -= n_head;
        let (mut rest, mut ends) = (&bytes[n_head..], Vec::new());
        loop {
            match self.frames.next(&mut rest, &mut ends) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(_) => return Err(io::ErrorKind::InvalidData.into()), // from another replica: never
            }
        }
    }

    /// The owner has said everything. It hears at once what has arrived so far, since another browser may wait for that;
    /// the rest is passed on.
    async fn finish(&mut self) {
        self.say_goodbye(CLOSED).await;
        let clock = self.clock.clone();
        let last = poll_fn(|cx| {
            ready!(self.poll_to_browser(cx))?;
            Pin::new(&mut self.browser).poll_shutdown(cx)
        });
        if let Some(Ok(())) = clock.timeout(LAST, last).await {
            self.browser.linger(&clock).await;
        }
    }

    /// Tells the owner what has arrived, and how the browser went.
    async fn say_goodbye(&mut self, kind: u8) {
        self.look();
        self.tell();
        self.send_head(kind, 0);
        let clock = self.clock.clone();
        let last = poll_fn(|cx| {
            ready!(self.poll_to_owner(cx))?;
            Pin::new(&mut self.owner).poll_shutdown(cx)
        });
        if !matches!(clock.timeout(LAST, last).await, Some(Ok(()))) {
            tracing::debug!("The owner of a session could not be told how its browser went.");
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<Ended> {
        for _ in 0..TURNS {
            let mut moved = false;
            // What is kept goes first; while a side does not take it, the other one is not read.
            match self.poll_to_browser(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(Ended::Browser(BROKEN)),
                Poll::Ready(Ok(())) => {
                    let mut buf = ReadBuf::new(piece);
                    match Pin::new(&mut self.owner).poll_read(cx, &mut buf) {
                        Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                            return Poll::Ready(Ended::Owner(Ok(())));
                        }
                        Poll::Ready(Ok(())) => {
                            if let Err(error) = self.receive(buf.filled()) {
                                return Poll::Ready(Ended::Owner(Err(error)));
                            }
                            if let Poll::Ready(Err(_)) = self.poll_to_browser(cx) {
                                return Poll::Ready(Ended::Browser(BROKEN));
                            }
                            moved = true;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Ended::Owner(Err(error))),
                        Poll::Pending => {}
                    }
                }
                Poll::Pending => {}
            }
            match self.poll_to_owner(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Ended::Owner(Err(error))),
                Poll::Ready(Ok(())) => {
                    let mut buf = ReadBuf::new(piece);
                    match Pin::new(&mut self.browser).poll_read(cx, &mut buf) {
                        Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                            return Poll::Ready(Ended::Browser(CLOSED));
                        }
                        Poll::Ready(Ok(())) => {
                            self.look();
                            self.tell();
                            self.send_data(buf.filled());
                            if let Poll::Ready(Err(error)) = self.poll_to_owner(cx) {
                                return Poll::Ready(Ended::Owner(Err(error)));
                            }
                            moved = true;
                        }
                        Poll::Ready(Err(_)) => return Poll::Ready(Ended::Browser(BROKEN)),
                        Poll::Pending => {}
                    }
                }
                Poll::Pending => {}
            }
            if !moved {
                return self.poll_look(cx);
            }
        }
        cx.waker().wake_by_ref(); // others get their turn
        Poll::Pending
    }

    /// Looks at what has arrived now and then, while something is on its way.
    fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        while self.told < self.n_received {
            ready!(self.timer.poll(cx));
            self.timer.reset(self.clock.now() + LOOK);
            self.look();
            if self.tell()
                && let Poll::Ready(Err(error)) = self.poll_to_owner(cx)
            {
                return Poll::Ready(Ended::Owner(Err(error)));
            }
        }
        Poll::Pending
    }

    fn poll_to_browser(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = poll_drain(&mut self.browser, &mut self.to_browser, cx);
        let is_new = || self.marks.back().map_or(self.arrived, |it| it.n_received) < self.n_received;
        if done.is_ready()
            && is_new()
            && let Sent::Sealed(at) = self.browser.sent(0)
        {
            let mark = Mark { n_received: self.n_received, at };
            if self.marks.len() >= MARKS {
                self.marks.pop_back();
            }
            self.marks.push_back(mark);
        }
        done
    }

    fn poll_to_owner(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_drain(&mut self.owner, &mut self.to_owner, cx)
    }

    /// Looks at what the browser's kernel has acknowledged.
    fn look(&mut self) {
        let acknowledged = self.browser.acknowledged();
        if let Sent::Plain(at) = self.browser.sent(self.to_browser.len()) {
            let n_on_the_way = at.saturating_sub(acknowledged);
            self.arrived = self.arrived.max(self.n_received.saturating_sub(n_on_the_way));
        }
        while let Some(mark) = self.marks.front().filter(|it| it.at <= acknowledged) {
            self.arrived = mark.n_received;
            self.marks.pop_front();
        }
    }

    /// Tells the owner, if there is news.
    fn tell(&mut self) -> bool {
        if self.arrived == self.told {
            return false;
        }
        self.told = self.arrived;
        self.send_head(ARRIVED, self.arrived);
        true
    }

    fn send_data(&mut self, bytes: &[u8]) {
        self.send_head(DATA, bytes.len() as u64);
        self.to_owner.extend_from_slice(bytes);
    }

    fn send_head(&mut self, kind: u8, number: u64) {
        self.to_owner.push(kind);
        self.to_owner.extend_from_slice(&number.to_be_bytes());
    }
}

/// What ended first.
enum Ended {
    /// The connection of the session's owner.
    Owner(io::Result<()>),
    /// The browser's, in this way.
    Browser(u8),
    /// This replica ends.
    Stopped,
}

/// How long a browser may take for what was sent to it, when this replica ends.
const LEAVE: Duration = Duration::from_secs(1);

/// How long a peer may take over the last bytes.
const LAST: Duration = Duration::from_secs(5);

/// Pieces carried before other connections get their turn.
const TURNS: usize = 8;

/// Writes what is kept. Ready once nothing is.
fn poll_drain(
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    if bytes.is_empty() {
        return Pin::new(to).poll_flush(cx);
    }
    let mut n = 0;
    while n < bytes.len() {
        match Pin::new(&mut *to).poll_write(cx, &bytes[n..]) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => n += written,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                bytes.drain(..n);
                return Poll::Pending;
            }
        }
    }
    *bytes = Vec::new(); // an idle connection keeps no buffer
    Pin::new(to).poll_flush(cx)
}
