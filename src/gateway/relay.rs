//! Carries a session's frames between its two legs and does what the session wants.
//!
//! One task for both directions. No buffer belongs to a session: all sessions of a worker read into one scratch buffer,
//! and bytes are kept only while a peer does not take them. Payloads pass as they are.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::clock::{Clock, Timer};
use crate::gateway::conn::Conn;
use crate::gateway::websocket::Place;
use crate::gateway::worker::{LAST_BYTES, Worker};
use crate::lua::RouteChain;
use crate::policy::{Exchange, Phase};
use crate::session::{
    Action, Control, End, Ending, Event, Leg, Loss, Piece, Reason, Sender, Session, Tracker,
};
use crate::telemetry::Line;

/// What is known about a session, for its last line in the log.
pub(crate) struct Record {
    pub(crate) exchange: Exchange,
    pub(crate) route: RouteChain,
    pub(crate) function: String,
    pub(crate) started: Instant,
    /// Its place among the sessions, held as long as it lives.
    pub(crate) _place: Place,
}

/// Bytes read at a time.
const SCRATCH: usize = 32 << 10;

/// Reads of one leg before other sessions get their turn.
const TURNS: usize = 8;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Relays until the session ends.
pub(crate) async fn run(
    worker: Rc<Worker>,
    browser: Conn,
    from_browser: Bytes,
    upstream: Conn,
    from_upstream: Bytes,
    mut record: Box<Record>,
) {
    let guard = worker.relay_begins();
    let shared = std::sync::Arc::clone(&worker.shared);
    let clock = &shared.clock;
    let now = clock.now();
    shared.metrics.session_attached(1);
    let session = Session::new(shared.config.sessions.keepalive, rand_nonce(), now);
    let mut relay = Relay {
        worker,
        legs: [LegState::new(browser, Sender::Client), LegState::new(upstream, Sender::Server)],
        session,
        timer: clock.timer(now),
    };
    // What came with the heads is first.
    let mut end =
        relay.take_in(Leg::Browser, &from_browser).or_else(|| relay.take_in(Leg::Upstream, &from_upstream));
    drop((from_browser, from_upstream));
    if end.is_none() {
        let mut draining = shared.draining.clone();
        let mut drain = std::pin::pin!(drained(&mut draining));
        let mut is_draining = false;
        end = Some(
            poll_fn(|cx| {
                if !is_draining && drain.as_mut().poll(cx).is_ready() {
                    is_draining = true;
                    if let Some(end) = relay.handle(Event::Drain) {
                        return Poll::Ready(end);
                    }
                }
                relay.poll(cx)
            })
            .await,
        );
    }
    let end = end.expect("the relay has ended");
    relay.report(&mut record, end);
    // Boxed, so that a session at work does not carry what only its end needs.
    Box::pin(relay.finish(end)).await;
    drop(record); // its place is free once its connections are at their end
    shared.metrics.session_attached(-1);
    drop(guard);
}

async fn drained(draining: &mut watch::Receiver<bool>) {
    if draining.wait_for(|it| *it).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Both legs of a session.
struct Relay {
    worker: Rc<Worker>,
    legs: [LegState; 2],
    session: Session,
    timer: Timer,
}

struct LegState {
    conn: Conn,
    /// Reads what comes from this leg.
    tracker: Tracker,
    /// Bytes for this leg that it has not taken yet.
    out: Vec<u8>,
    /// Control frames for this leg that wait for the end of a data frame.
    waiting: Vec<Control>,
    /// Bytes of frames that came from this leg.
    n_bytes: u64,
    /// Encrypted bytes may stand in the connection itself.
    needs_flush: bool,
}

impl LegState {
    fn new(conn: Conn, sender: Sender) -> Self {
        let tracker = Tracker::new(sender);
        LegState { conn, tracker, out: Vec::new(), waiting: Vec::new(), n_bytes: 0, needs_flush: false }
    }

    /// Sends bytes, keeping those that the peer does not take now.
    fn send(&mut self, cx: Option<&mut Context<'_>>, mut bytes: &[u8]) -> std::io::Result<()> {
        if self.out.is_empty()
            && let Some(cx) = cx
        {
            self.needs_flush = true;
            while !bytes.is_empty() {
                match Pin::new(&mut self.conn).poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => bytes = &bytes[n..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends what is kept. Ready once nothing is.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut written = 0;
        while written < self.out.len() {
            match Pin::new(&mut self.conn).poll_write(cx, &self.out[written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => written += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.out.drain(..written);
                    return Poll::Pending;
                }
            }
            self.needs_flush = true;
        }
        self.out = Vec::new(); // an idle session keeps no buffer
        if self.needs_flush {
            std::task::ready!(Pin::new(&mut self.conn).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the connection. A peer that does not take its last bytes is left.
    async fn finish(mut self, ending: Ending, clock: &Clock) {
        if ending == Ending::Reset {
            return self.conn.reset_on_drop();
        }
        let last = poll_fn(|cx| {
            std::task::ready!(self.poll_drain(cx))?;
            Pin::new(&mut self.conn).poll_shutdown(cx)
        });
        if let Some(Ok(())) = clock.timeout(LAST_BYTES, last).await {
            self.conn.linger(clock).await;
        }
    }
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut turns = 0;
        loop {
            if self.timer.poll(cx).is_ready() {
                // A leg that is not read, because the other does not take more, cannot be heard. One that takes nothing
                // itself must show otherwise that it is there.
                for leg in Leg::BOTH {
                    let is_read = self.legs[leg.other() as usize].out.is_empty();
                    if !is_read && self.legs[leg as usize].out.is_empty() {
                        let now = self.worker.shared.clock.now();
                        self.session.handle(now, Event::Heard(leg));
                    }
                }
                if let Some(end) = self.handle_with(Event::Tick, Some(cx)) {
                    return Poll::Ready(end);
                }
                continue; // the timer has a new deadline to be polled for
            }
            let mut has_moved = false;
            for leg in Leg::BOTH {
                let n_waiting = self.legs[leg as usize].out.len();
                let drained = self.legs[leg as usize].poll_drain(cx);
                if self.legs[leg as usize].out.len() < n_waiting {
                    // A peer that takes what it had left waiting is there, though it may have no room to say so.
                    let now = self.worker.shared.clock.now();
                    self.session.handle(now, Event::Heard(leg));
                }
                match drained {
                    Poll::Pending | Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        if let Some(end) = self.handle_with(Event::Gone(leg, loss(&error)), Some(cx)) {
                            return Poll::Ready(end);
                        }
                    }
                }
            }
            for leg in Leg::BOTH {
                if !self.legs[leg.other() as usize].out.is_empty() {
                    continue; // back-pressure: what the other side does not take is not read
                }
                match self.poll_read(leg, cx) {
                    Poll::Pending => {}
                    Poll::Ready(None) => has_moved = true,
                    Poll::Ready(Some(end)) => return Poll::Ready(end),
                }
            }
            if !has_moved {
                return Poll::Pending;
            }
            turns += 1;
            if turns == TURNS {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Reads once from a leg and passes on what came.
    fn poll_read(&mut self, leg: Leg, cx: &mut Context<'_>) -> Poll<Option<End>> {
        SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(&mut self.legs[leg as usize].conn).poll_read(cx, &mut buf) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                    Poll::Ready(self.handle_with(Event::Gone(leg, Loss::Fin), Some(cx)))
                }
                Poll::Ready(Ok(())) => Poll::Ready(self.pass(leg, buf.filled(), Some(cx))),
                Poll::Ready(Err(error)) => {
                    Poll::Ready(self.handle_with(Event::Gone(leg, loss(&error)), Some(cx)))
                }
            }
        })
    }

    /// Takes in bytes that came with a handshake.
    fn take_in(&mut self, leg: Leg, bytes: &[u8]) -> Option<End> {
        if bytes.is_empty() { None } else { self.pass(leg, bytes, None) }
    }

    /// Passes on what came from a leg, frame by frame.
    fn pass(&mut self, leg: Leg, mut bytes: &[u8], mut cx: Option<&mut Context<'_>>) -> Option<End> {
        let worker = Rc::clone(&self.worker);
        let n_before = bytes.len() as u64;
        self.legs[leg as usize].n_bytes += n_before;
        if let Some(end) = self.handle_with(Event::Heard(leg), cx.as_deref_mut()) {
            return Some(end);
        }
        let end = loop {
            let event = match self.legs[leg as usize].tracker.next(&mut bytes) {
                Ok(None) => break None,
                Ok(Some(Piece::Data(data))) => self.send_data(leg, data, cx.as_deref_mut()),
                Ok(Some(Piece::Held(data))) => self.send_data(leg, &data, cx.as_deref_mut()),
                Ok(Some(Piece::Control(control))) => Some(Event::Control(leg, control)),
                Err(violation) => Some(Event::Violated(leg, violation)),
            };
            if let Some(event) = event
                && let Some(end) = self.handle_with(event, cx.as_deref_mut())
            {
                break Some(end);
            }
        };
        let (data, control) = self.legs[leg as usize].tracker.take_counts();
        worker.shared.metrics.relayed(leg, n_before, data, control);
        end
    }

    /// Sends bytes of data frames to the other leg; an event when that leg turns out to be gone.
    fn send_data(&mut self, from: Leg, data: &[u8], cx: Option<&mut Context<'_>>) -> Option<Event> {
        if !self.session.accepts_data(from) {
            return None;
        }
        let to = from.other();
        if let Err(error) = self.legs[to as usize].send(cx, data) {
            return Some(Event::Gone(to, loss(&error)));
        }
        if self.legs[from as usize].tracker.is_at_boundary() && !self.legs[to as usize].waiting.is_empty() {
            for control in std::mem::take(&mut self.legs[to as usize].waiting) {
                self.send_control(to, &control);
            }
        }
        None
    }

    fn handle(&mut self, event: Event) -> Option<End> {
        self.handle_with(event, None)
    }

    /// Tells the session what happened and does what it wants.
    fn handle_with(&mut self, event: Event, mut cx: Option<&mut Context<'_>>) -> Option<End> {
        let worker = Rc::clone(&self.worker);
        let shared = &worker.shared;
        self.session.handle(shared.clock.now(), event);
        loop {
            match self.session.poll() {
                Action::Ping(leg, _) if !self.legs[leg as usize].waiting.is_empty() => {
                    // Enough waits for the end of that frame; the next beat asks again.
                }
                action @ (Action::Send(leg, control) | Action::Ping(leg, control)) => {
                    // Between two frames only: what was passed on to this leg came from the other.
                    if self.legs[leg.other() as usize].tracker.is_at_boundary() {
                        self.send_control(leg, &control);
                        if let Some(cx) = cx.as_deref_mut() {
                            // An error shows up at the next read or write.
                            let _ = self.legs[leg as usize].poll_drain(cx).is_ready();
                        }
                    } else {
                        self.legs[leg as usize].waiting.push(control);
                    }
                    if matches!(action, Action::Ping(..)) {
                        shared.metrics.ping(leg);
                    }
                }
                Action::Measured(leg, rtt) => shared.metrics.pong(leg, rtt),
                Action::Finish(end) => return Some(end),
                Action::Wait(until) => {
                    self.timer.reset(until);
                    return None;
                }
            }
        }
    }

    fn send_control(&mut self, leg: Leg, control: &Control) {
        let mask = (leg == Leg::Upstream).then(|| (rand_nonce() as u32).to_ne_bytes());
        let (bytes, len) = control.encode(mask);
        self.legs[leg as usize].out.extend_from_slice(&bytes[..len]);
    }

    /// The last line of a session.
    fn report(&self, record: &mut Record, end: End) {
        let worker = &self.worker;
        let shared = &worker.shared;
        let took = shared.clock.now() - record.started;
        shared.metrics.session_end(end.reason.name(), took);
        match end.reason {
            Reason::BrowserSilent => shared.metrics.leg_lost(Leg::Browser),
            Reason::UpstreamSilent => shared.metrics.leg_lost(Leg::Upstream),
            _ => {}
        }
        let exchange = &mut record.exchange;
        tracing::info!(
            request = %exchange.id, principal = exchange.principal_id(), reason = end.reason.name(), code = end.code,
            seconds = took.as_secs_f64(), "A session ended."
        );
        exchange.response.status = StatusCode::SWITCHING_PROTOCOLS;
        worker.log_phase(&record.route.chain, exchange, Phase::Log);
        shared.access.write(&Line {
            kind: "session",
            at: shared.clock.wall(),
            id: &exchange.id,
            client: exchange.client,
            method: exchange.method.as_str(),
            path: &exchange.path,
            route: &exchange.route,
            principal: exchange.principal_id(),
            function: &record.function,
            status: 101,
            reason: end.reason.name(),
            close: end.code,
            received: self.legs[Leg::Browser as usize].n_bytes,
            sent: self.legs[Leg::Upstream as usize].n_bytes,
            took,
        });
    }

    /// Ends both connections, each in its way.
    async fn finish(self, end: End) {
        let clock = &self.worker.shared.clock;
        let [browser, upstream] = self.legs;
        join(browser.finish(end.browser, clock), upstream.finish(end.upstream, clock)).await;
    }
}

fn loss(error: &std::io::Error) -> Loss {
    match error.kind() {
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => Loss::Reset,
        std::io::ErrorKind::TimedOut => Loss::Silence,
        _ => Loss::Fin,
    }
}

fn rand_nonce() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}
