//! Many sessions on one UDP port.
//!
//! `webrtc` opens a socket for each connection; under its `Runtime` trait that socket is ours, and virtual. What comes in
//! is told apart by the ICE user name of a STUN request, which names the session, and then by the address that the
//! session has answered: a session learns an address only from its own Binding success, which its ICE agent sends after
//! it has verified the request's MESSAGE-INTEGRITY, so nobody can steal another's address.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use webrtc::runtime::{
    AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, RecvMeta, Runtime,
    TokioRuntime, Transmit,
};

use crate::clock::Clock;
use crate::telemetry::Metrics;

/// The shared port.
pub(crate) struct Mux {
    socket: UdpSocket,
    advertised: Vec<IpAddr>,
    table: Mutex<Table>,
    /// The address under which a STUN server sees this port.
    mapped: watch::Sender<Option<SocketAddr>>,
    /// Answers of the STUN server, by its address.
    stun: Mutex<Option<(SocketAddr, mpsc::Sender<Bytes>)>>,
    metrics: Metrics,
    clock: Clock,
}

#[derive(Default)]
struct Table {
    by_ufrag: HashMap<String, Weak<VirtualSocket>>,
    by_address: HashMap<SocketAddr, Weak<VirtualSocket>>,
}

/// The part of the port that belongs to one session.
pub(crate) struct VirtualSocket {
    mux: Arc<Mux>,
    /// Where `webrtc` believes the socket to be; its candidates carry the real address.
    local: SocketAddr,
    inbox: Mutex<Inbox>,
    /// What is known by its names: the latest ones.
    known: Mutex<Known>,
}

/// The names of a session in the table, oldest first.
#[derive(Default)]
struct Known {
    ufrags: VecDeque<String>,
    addresses: VecDeque<SocketAddr>,
    /// Checks of addresses that have not answered, since when.
    n_checks: u32,
    checking_since: Option<Instant>,
}

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<(SocketAddr, Bytes)>,
    waker: Option<Waker>,
}

/// The runtime of one session: tokio, but for the socket.
pub(crate) struct MuxRuntime {
    inner: TokioRuntime,
    mux: Arc<Mux>,
    socket: Mutex<Option<Arc<VirtualSocket>>>,
}

/// Datagrams that a session may leave unread before they are dropped.
const INBOX: usize = 256;

/// Addresses that one session is known by: a browser with several interfaces has a few.
const MOST_ADDRESSES: usize = 32;

/// ICE user names that one session is known by: checks for an offer go on while the next one is on its way.
const MOST_UFRAGS: usize = 2;

/// Checks that a session sends to addresses that have not answered, in so much time: a browser may name any. All of
/// the 32 that are tried have one in it.
const CHECKS: u32 = 50;
const CHECKS_IN: Duration = Duration::from_millis(250);

/// Largest datagram.
const LARGEST: usize = 2048;

/// What a datagram is, by its first byte (RFC 9443 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datagram {
    Stun,
    Dtls,
    Rtp,
    Unknown,
}

impl Datagram {
    pub(crate) fn of(bytes: &[u8]) -> Datagram {
        match bytes.first() {
            Some(0..=3) if bytes.len() >= 20 => Datagram::Stun,
            Some(20..=63) => Datagram::Dtls,
            Some(128..=191) => Datagram::Rtp,
            _ => Datagram::Unknown,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Datagram::Stun => "stun",
            Datagram::Dtls => "dtls",
            Datagram::Rtp => "rtp",
            Datagram::Unknown => "unknown",
        }
    }
}

impl Mux {
    pub(crate) fn new(
        socket: std::net::UdpSocket,
        advertised: Vec<IpAddr>,
        metrics: &Metrics,
        clock: &Clock,
    ) -> io::Result<Arc<Mux>> {
        socket.set_nonblocking(true)?;
        // A burst of keyframes for many viewers must fit; the system may grant less.
        let buffers = socket2::SockRef::from(&socket);
        drop(buffers.set_send_buffer_size(4 << 20));
        drop(buffers.set_recv_buffer_size(4 << 20));
        Ok(Arc::new(Mux {
            socket: UdpSocket::from_std(socket)?,
            advertised,
            table: Mutex::default(),
            mapped: watch::Sender::new(None),
            stun: Mutex::default(),
            metrics: metrics.clone(),
            clock: clock.clone(),
        }))
    }

    /// Where the port is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("a bound socket has an address")
    }

    /// The candidates of this port as SDP has them.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let port = self.address().port();
        let host = |(idx, ip): (usize, &IpAddr)| {
            format!("candidate:{} 1 udp {} {ip} {port} typ host", idx + 1, 2_130_706_431 - idx as u64)
        };
        self.advertised.iter().enumerate().map(host).collect()
    }

    /// The address that the STUN server has seen, as a candidate; and its changes.
    pub(crate) fn mapped(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.mapped.subscribe()
    }

    /// The candidate for an address that a STUN server has seen.
    pub(crate) fn mapped_candidate(&self, mapped: SocketAddr) -> String {
        let (base, port) =
            (self.advertised.first().copied().unwrap_or(self.address().ip()), self.address().port());
        format!(
            "candidate:100 1 udp 1694498815 {} {} typ srflx raddr {base} rport {port}",
            mapped.ip(),
            mapped.port()
        )
    }

    /// Notes what the STUN server has seen.
    pub(crate) fn set_mapped(&self, mapped: Option<SocketAddr>) {
        self.mapped.send_if_modified(|it| std::mem::replace(it, mapped) != mapped);
    }

    /// Sends a datagram that belongs to no session.
    pub(crate) async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(bytes, to).await.map(drop)
    }

    /// From now on, STUN responses from this address come out of the receiver.
    pub(crate) fn listen_to_stun(&self, server: SocketAddr) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(8);
        *self.stun.lock().unwrap_or_else(PoisonError::into_inner) = Some((server, sender));
        receiver
    }

    /// Reads the port for all sessions.
    pub(crate) async fn run(self: Arc<Mux>) {
        let counters = [Datagram::Stun, Datagram::Dtls, Datagram::Rtp, Datagram::Unknown];
        let counters = counters.map(|it| self.metrics.streaming.datagrams(it.name()));
        let mut buf = [0; LARGEST];
        loop {
            match self.socket.recv_from(&mut buf).await {
                Ok((len, from)) => {
                    let bytes = &buf[..len];
                    let kind = Datagram::of(bytes);
                    match self.owner(kind, bytes, from) {
                        Some(session) => {
                            counters[kind as usize].inc();
                            session.deliver(from, Bytes::copy_from_slice(bytes));
                        }
                        None if self.is_stun_answer(kind, bytes, from) => {
                            counters[Datagram::Stun as usize].inc()
                        }
                        None => counters[Datagram::Unknown as usize].inc(), // and no answer: nobody is told what is here
                    }
                }
                // A peer that is gone shows up as an error of our next read; others are served.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    tracing::warn!(%error, "The media port could not be read.");
                    self.clock.sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// The session that a datagram is for.
    fn owner(&self, kind: Datagram, bytes: &[u8], from: SocketAddr) -> Option<Arc<VirtualSocket>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let is_request = kind == Datagram::Stun && bytes[..2] == [0x00, 0x01];
        if is_request {
            return table.by_ufrag.get(local_ufrag(bytes)?)?.upgrade();
        }
        if kind == Datagram::Unknown {
            return None;
        }
        table.by_address.get(&from)?.upgrade()
    }

    fn is_stun_answer(&self, kind: Datagram, bytes: &[u8], from: SocketAddr) -> bool {
        let stun = self.stun.lock().unwrap_or_else(PoisonError::into_inner);
        match &*stun {
            Some((server, sender)) if kind == Datagram::Stun && *server == from => {
                sender.try_send(Bytes::copy_from_slice(bytes)).is_ok()
            }
            _ => false,
        }
    }

    /// Registers the ICE user name of a session's offer; the one of the offer before stays good.
    pub(crate) fn register(&self, ufrag: &str, socket: &Arc<VirtualSocket>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = socket.known.lock().unwrap_or_else(PoisonError::into_inner);
        if table.by_ufrag.insert(ufrag.to_owned(), Arc::downgrade(socket)).is_none() {
            known.ufrags.push_back(ufrag.to_owned());
        }
        if known.ufrags.len() > MOST_UFRAGS
            && let Some(oldest) = known.ufrags.pop_front()
        {
            table.by_ufrag.remove(&oldest);
        }
    }

    /// Forgets a session.
    pub(crate) fn forget(&self, socket: &Arc<VirtualSocket>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = Arc::downgrade(socket);
        table.by_ufrag.retain(|_, it| !it.ptr_eq(&gone));
        table.by_address.retain(|_, it| !it.ptr_eq(&gone));
    }

    fn learn(&self, address: SocketAddr, socket: &Arc<VirtualSocket>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.by_address.get(&address).is_some_and(|it| it.ptr_eq(&Arc::downgrade(socket))) {
            return;
        }
        table.by_address.insert(address, Arc::downgrade(socket));
        let mut known = socket.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.addresses.retain(|it| *it != address);
        known.addresses.push_back(address);
        if known.addresses.len() > MOST_ADDRESSES
            && let Some(oldest) = known.addresses.pop_front()
            && table.by_address.get(&oldest).is_some_and(|it| it.ptr_eq(&Arc::downgrade(socket)))
        {
            table.by_address.remove(&oldest); // another session may have it by now
        }
    }

    /// Whether a session may send a check to this address now.
    fn may_check(&self, address: SocketAddr, socket: &VirtualSocket) -> bool {
        let mut known = socket.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.addresses.contains(&address) {
            return true;
        }
        let now = self.clock.now();
        if known.checking_since.is_none_or(|it| now - it >= CHECKS_IN) {
            (known.checking_since, known.n_checks) = (Some(now), 0);
        }
        known.n_checks += 1;
        known.n_checks <= CHECKS
    }

    /// How many sessions and addresses are known.
    #[cfg(test)]
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        (table.by_ufrag.len(), table.by_address.len())
    }
}

/// The part before the colon of a STUN request's USERNAME: the user name that the receiver gave out (RFC 8445 section
/// 7.2.2).
fn local_ufrag(bytes: &[u8]) -> Option<&str> {
    let mut rest = bytes.get(20..)?;
    while let [t0, t1, l0, l1, value @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        if [*t0, *t1] == [0x00, 0x06] {
            let name = std::str::from_utf8(value.get(..len)?).ok()?;
            return Some(name.split_once(':')?.0).filter(|it| it.len() <= 256);
        }
        rest = value.get(len.next_multiple_of(4)..)?;
    }
    None
}

impl VirtualSocket {
    fn deliver(&self, from: SocketAddr, bytes: Bytes) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.datagrams.len() == INBOX {
            self.mux.metrics.streaming.rtp_dropped("inbox", 1);
            return;
        }
        inbox.datagrams.push_back((from, bytes));
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }
}

impl std::fmt::Debug for VirtualSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VirtualSocket({})", self.local)
    }
}

/// A session's socket as `webrtc` uses it. It knows itself, to be learnt.
#[derive(Debug)]
struct Handle(Arc<VirtualSocket>);

impl AsyncUdpSocket for Handle {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local)
    }

    fn poll_send(&self, _: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        let mux = &self.0.mux;
        if transmit.contents.starts_with(&[0x01, 0x01]) {
            mux.learn(transmit.destination, &self.0); // a Binding success: its request was verified
        }
        if transmit.contents.starts_with(&[0x00, 0x01]) && !mux.may_check(transmit.destination, &self.0) {
            return Poll::Ready(Ok(transmit.contents.len())); // lost, as a check may be
        }
        // A full socket drops the datagram, as a network would: waiting would hold up every other session's driver.
        match mux.socket.try_send_to(transmit.contents, transmit.destination) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                mux.metrics.streaming.rtp_dropped("wouldblock", 1);
            }
            Err(error) => {
                tracing::trace!(%error, to = %transmit.destination, "A datagram could not be sent.")
            }
        }
        Poll::Ready(Ok(transmit.contents.len()))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut n = 0;
        while n < bufs.len().min(meta.len()) {
            let Some((from, bytes)) = inbox.datagrams.pop_front() else { break };
            let len = bytes.len().min(bufs[n].len());
            bufs[n][..len].copy_from_slice(&bytes[..len]);
            meta[n] = RecvMeta::default();
            meta[n].addr = from;
            meta[n].len = len;
            meta[n].stride = len.max(1); // a stride of zero would be divided by
            n += 1;
        }
        if n == 0 {
            inbox.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(n))
    }

    fn max_gso_segments(&self) -> usize {
        1
    }
}

impl MuxRuntime {
    pub(crate) fn new(mux: &Arc<Mux>) -> Arc<MuxRuntime> {
        Arc::new(MuxRuntime { inner: TokioRuntime, mux: Arc::clone(mux), socket: Mutex::default() })
    }

    /// The session's part of the port, once `webrtc` has asked for it.
    pub(crate) fn socket(&self) -> Option<Arc<VirtualSocket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for MuxRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MuxRuntime")
    }
}

impl Runtime for MuxRuntime {
    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let local = socket.local_addr()?;
        drop(socket); // a placeholder: its address is all that is wanted
        let made = Arc::new(VirtualSocket {
            mux: Arc::clone(&self.mux),
            local,
            inbox: Mutex::default(),
            known: Mutex::default(),
        });
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&made));
        Ok(Arc::new(Handle(made)))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn JoinHandle> {
        self.inner.spawn(future)
    }

    fn wrap_tcp_listener(&self, listener: std::net::TcpListener) -> io::Result<Arc<dyn AsyncTcpListener>> {
        self.inner.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(
        &'a self,
        remote: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<Arc<dyn AsyncTcpStream>>> + Send + 'a>> {
        self.inner.connect_tcp(remote)
    }

    fn resolve_host<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        self.inner.resolve_host(host)
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        self.inner.sleep(duration)
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        self.inner.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        self.inner.block_on(future);
    }

    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        self.inner.yield_now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(username: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x00, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        bytes.extend([7; 12]);
        bytes.extend([0x80, 0x22, 0, 3, b'a', b'b', b'c', 0]); // SOFTWARE, padded
        bytes.extend([0x00, 0x06]);
        bytes.extend((username.len() as u16).to_be_bytes());
        bytes.extend(username);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let len = (bytes.len() - 20) as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    #[test]
    fn a_request_names_its_session() {
        assert_eq!(local_ufrag(&request(b"mine:yours")), Some("mine"));
        assert_eq!(local_ufrag(&request(b"mine")), None);
        assert_eq!(local_ufrag(&request(b"\xff:x")), None);
        let whole = request(b"mine:yours");
        for end in 0..whole.len() - 2 {
            assert_eq!(local_ufrag(&whole[..end]), None, "cut at {end}");
        }
        let mut lying = whole.clone();
        lying[30..32].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(local_ufrag(&lying), None, "a length beyond the end");
    }

    #[test]
    fn a_datagram_is_told_by_its_first_byte() {
        assert_eq!(Datagram::of(&[0; 20]), Datagram::Stun);
        assert_eq!(Datagram::of(&[0; 19]), Datagram::Unknown);
        assert_eq!(Datagram::of(&[22]), Datagram::Dtls);
        assert_eq!(Datagram::of(&[0x80]), Datagram::Rtp);
        assert_eq!(Datagram::of(&[]), Datagram::Unknown);
        assert_eq!(Datagram::of(&[0x40; 40]), Datagram::Unknown);
    }

    /// A port with two sessions, `a` and `b`.
    fn shared_port() -> (Arc<Mux>, [Handle; 2]) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let mux =
            Mux::new(socket, Vec::new(), &Metrics::new(), &Clock::paused()).expect("a port can be shared");
        let session = |ufrag: &str| {
            let placeholder = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
            let runtime = MuxRuntime::new(&mux);
            runtime.wrap_udp_socket(placeholder).expect("a socket");
            let socket = runtime.socket().expect("it was asked for");
            mux.register(ufrag, &socket);
            Handle(socket)
        };
        let sessions = [session("a"), session("b")];
        (mux, sessions)
    }

    /// A session sends a datagram.
    fn send(session: &Handle, to: SocketAddr, contents: &[u8]) {
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: None };
        let sent = session.poll_send(&mut Context::from_waker(Waker::noop()), &transmit);
        assert!(matches!(sent, Poll::Ready(Ok(_))));
    }

    #[tokio::test]
    async fn an_address_belongs_to_the_session_that_has_verified_it() {
        let (mux, [a, b]) = shared_port();
        let browser: SocketAddr = "127.0.0.1:9".parse().expect("an address");
        let rtp = [0x80; 40];
        let owner = |bytes: &[u8]| mux.owner(Datagram::of(bytes), bytes, browser);
        let is = |it: Option<Arc<VirtualSocket>>, session: &Handle| {
            it.is_some_and(|it| Arc::ptr_eq(&it, &session.0))
        };
        assert!(owner(&rtp).is_none(), "nobody has verified it");
        assert!(is(owner(&request(b"a:x")), &a) && is(owner(&request(b"b:x")), &b));
        assert!(owner(&rtp).is_none(), "a request alone proves nothing");
        send(&a, browser, &rtp);
        assert!(owner(&rtp).is_none(), "nor does what a session sends on its own");
        send(&a, browser, &[0x01, 0x01, 0, 0]);
        assert!(is(owner(&rtp), &a));
        send(&b, browser, &[0x01, 0x01, 0, 0]);
        assert!(is(owner(&rtp), &b), "the latest that was verified");
        mux.forget(&b.0);
        assert!(owner(&rtp).is_none() && owner(&request(b"b:x")).is_none());
        assert_eq!(mux.sizes(), (1, 0));
    }

    #[tokio::test]
    async fn whoever_has_not_answered_is_sent_few_checks() {
        let (mux, [a, b]) = shared_port();
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        stranger.set_nonblocking(true).expect("a socket option");
        let address = stranger.local_addr().expect("an address");
        let come = || {
            let mut buf = [0; 64];
            std::iter::from_fn(|| stranger.recv(&mut buf).ok()).count() as u32
        };
        let check = [0x00, 0x01, 0, 0];
        let many =
            |session: &Handle, contents: &[u8]| (0..150).for_each(|_| send(session, address, contents));
        mux.socket.writable().await.expect("a socket");
        many(&a, &check);
        assert_eq!(come(), CHECKS);
        many(&b, &check);
        assert_eq!(come(), CHECKS, "each session has its own");
        mux.clock.advance(CHECKS_IN);
        many(&a, &check);
        assert_eq!(come(), CHECKS);
        send(&a, address, &[0x01, 0x01, 0, 0]);
        many(&a, &check);
        assert_eq!(come(), 151, "it has answered");
    }

    #[tokio::test]
    async fn a_session_is_known_by_its_latest_names_alone() {
        let (mux, [a, _b]) = shared_port();
        for port in 1..1000 {
            send(&a, SocketAddr::from(([127, 0, 0, 1], port)), &[0x01, 0x01, 0, 0]);
        }
        assert_eq!(mux.sizes(), (2, MOST_ADDRESSES));
        let latest = SocketAddr::from(([127, 0, 0, 1], 999));
        assert!(mux.owner(Datagram::Rtp, &[0x80; 40], latest).is_some(), "the latest ones count");
        for n in 0..100 {
            mux.register(&format!("a{n}"), &a.0);
        }
        assert_eq!(mux.sizes(), (1 + MOST_UFRAGS, MOST_ADDRESSES));
    }
}
