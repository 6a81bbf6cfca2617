//! Carries a session's frames between its two legs and does what the session wants.
//!
//! One task for both directions. No buffer belongs to an idle session: all sessions of a worker read into one scratch
//! buffer, and bytes are kept only while a peer does not take them, or may not have them. Payloads pass as they are.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::join;
use http::{HeaderMap, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::clock::{Clock, Timer};
use crate::config::{Overflow, Resume, ResumeMode, Viewer};
use crate::gateway::conn::Conn;
use crate::gateway::directory::{Attach, Entry, Listed, Mail};
use crate::gateway::respond;
use crate::gateway::websocket::Place;
use crate::gateway::worker::{LAST_BYTES, Slot};
use crate::policy::{Chain, Exchange, Message, Phase, Principal, SessionFacts, Side, Stop};
use crate::session::{
    Action, Assembler, Backlog, Control, End, Ending, Event, Gather, Leg, Limits, Loss, Opcode, Piece,
    Reason, Sender, Sent, Session, TooLarge, Tracker, Violation, encode_message,
};
use crate::telemetry::{Line, Metrics};

/// What is known about a session, for its last line in the log. Sessions are many and live long, so it is little.
pub(crate) struct Record {
    id: Box<str>,
    client: SocketAddr,
    path: Box<str>,
    route: Box<str>,
    /// For plugins that are asked when it is over.
    exchange: Option<Box<Exchange>>,
    /// For plugins that are asked meanwhile: what was set, as JSON, which is smaller than what it is made of.
    set: Option<Box<str>>,
    /// Whether a plugin is asked meanwhile whether it may go on.
    ticks: bool,
    started: Instant,
    /// How others find it.
    listed: Listed,
    /// Its place among the sessions, held as long as it lives.
    _place: Place,
}

impl Record {
    /// `chain` has the plugins that may be asked later.
    pub(crate) fn new(
        mut exchange: Exchange,
        chain: &Chain,
        started: Instant,
        listed: Listed,
        place: Place,
    ) -> Self {
        exchange.upstream = HeaderMap::new();
        Record {
            id: exchange.id.as_str().into(),
            client: exchange.client,
            path: exchange.path.as_str().into(),
            route: exchange.route.as_str().into(),
            ticks: chain.has(Phase::SessionTick),
            set: Phase::ALL
                .iter()
                .any(|it| it.is_of_session() && chain.has(*it))
                .then(|| serde_json::to_string(&Set::of(&exchange, chain)).unwrap_or_default().into()),
            exchange: chain.has(Phase::Log).then(|| Box::new(exchange)),
            started,
            listed,
            _place: place,
        }
    }
}

/// What plugins have set in the phases of a request.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Set {
    principal: Option<Principal>,
    vars: Vec<(String, serde_json::Value)>,
    tls: bool,
    /// The conditions of the chain that its request did not meet.
    unmet: Vec<String>,
}

impl Set {
    fn of(exchange: &Exchange, chain: &Chain) -> Self {
        Set {
            principal: exchange.principal.clone(),
            vars: exchange.vars.clone(),
            tls: exchange.tls,
            unmet: chain.unmet(exchange),
        }
    }
}

/// Bytes read at a time.
const SCRATCH: usize = 32 << 10;

/// How long a replica may take to say what has arrived at its browser. The one that waits for it has
/// `directory.timeout`, and a browser that is gone does not take what would have to be said after.
const REPORT: Duration = Duration::from_millis(200);

/// Bytes that may wait for an upstream when a browser's connection is let go of: as much as a kernel keeps of one.
const LAST_WORDS: usize = 8 << 20;

/// Reads of one leg before other sessions get their turn.
const TURNS: usize = 8;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
    /// Where messages end in the bytes at hand.
    static ENDS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Relays on this worker until the session ends.
pub(crate) fn start(
    slot: &Rc<Slot>,
    resume: Resume,
    (browser, from_browser): (Conn, &[u8]),
    (upstream, from_upstream): (Conn, &[u8]),
    record: Box<Record>,
    is_resumed: bool,
) {
    let guard = slot.begins();
    let mut relay = Relay::new(Rc::clone(slot), resume, browser, upstream, record);
    match is_resumed {
        true => relay.tell(Phase::SessionResume, "reconnect"),
        false => relay.tell(Phase::SessionOpen, ""),
    }
    // What came with the heads is first.
    let ended = relay
        .take_in(Leg::Browser, from_browser)
        .or_else(|| relay.take_in(Leg::Upstream, from_upstream))
        .or_else(|| relay.drain_late());
    // A block and not a function: what a function is given stands in its future twice.
    tokio::task::spawn_local(async move {
        let end = match ended {
            Some(end) => end,
            None => {
                poll_fn(|cx| {
                    while let Poll::Ready(mail) = relay.entry.poll(cx) {
                        if let Some(end) = relay.read_mail(mail, cx) {
                            return Poll::Ready(end);
                        }
                    }
                    relay.poll(cx)
                })
                .await
            }
        };
        relay.close();
        relay.report(end);
        // Boxed, so that a session at work does not carry what only its end needs.
        Box::pin(relay.finish(end)).await;
        drop(guard);
    });
}

/// Both legs of a session.
struct Relay {
    slot: Rc<Slot>,
    legs: [LegState; 2],
    session: Session,
    timer: Timer,
    keeper: Option<Keeper>,
    entry: Arc<Entry>,
    record: Box<Record>,
    /// For sessions whose policies look at messages.
    messages: Option<Box<Messages>>,
    /// Held by the policies that are told something, so that they hear of one thing after the other.
    turn: Option<Arc<tokio::sync::Mutex<()>>>,
    /// Dropped at the end, for those who wait for it.
    stoppers: Vec<oneshot::Sender<()>>,
}

/// Messages on their way to the policies.
struct Messages {
    exchange: Exchange,
    /// By the leg that they come from.
    assemblers: [Option<Assembler>; 2],
}

/// What makes it possible that another browser connection takes the place of a lost one.
struct Keeper {
    backlog: Backlog,
    gather: Gather,
    overflow: Overflow,
    /// The browser has come back within a message whose beginning was dropped.
    is_muted: bool,
    parked: Option<Parked>,
    handing: Option<Handing>,
}

/// A browser at another replica has to make room: that replica knows best what has arrived, and is asked.
struct Handing {
    /// The one that takes its place.
    next: Box<Attach>,
}

/// A browser that is away.
struct Parked {
    since: Instant,
    /// Bytes kept for it, as the metrics know.
    n_bytes: usize,
}

struct LegState {
    /// `None` while the browser is away.
    conn: Option<Conn>,
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
    /// It takes no more, and why. What it has said before may still have to be read.
    deaf: Option<Loss>,
    /// How far its kernel had acknowledged when a ping last had to wait.
    acknowledged: u64,
}

impl LegState {
    fn new(conn: Option<Conn>, sender: Sender) -> Self {
        let tracker = Tracker::new(sender);
        LegState {
            conn,
            tracker,
            out: Vec::new(),
            waiting: Vec::new(),
            n_bytes: 0,
            needs_flush: false,
            deaf: None,
            acknowledged: 0,
        }
    }

    /// Where the last byte for this leg stands.
    fn sent(&self) -> Sent {
        self.conn.as_ref().map_or(Sent::Unknown, |it| it.sent(self.out.len()))
    }

    /// Sends bytes, keeping those that the peer does not take now. A browser that is away is sent nothing.
    fn send(&mut self, cx: Option<&mut Context<'_>>, mut bytes: &[u8]) {
        let Some(conn) = &mut self.conn else { return };
        if self.out.is_empty()
            && self.deaf.is_none()
            && let Some(cx) = cx
        {
            self.needs_flush = true;
            while !bytes.is_empty() {
                match Pin::new(&mut *conn).poll_write(cx, bytes) {
                    Poll::Ready(Ok(n)) if n > 0 => bytes = &bytes[n..],
                    Poll::Ready(Ok(_)) => {
                        self.deaf = Some(Loss::Fin);
                        break;
                    }
                    Poll::Ready(Err(error)) => {
                        self.deaf = Some(loss(&error));
                        break;
                    }
                    Poll::Pending => break,
                }
            }
        }
        self.out.extend_from_slice(bytes); // they count as sent, and as not arrived, wherever the connection breaks
    }

    /// Sends what is kept. Ready once nothing is.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let Some(conn) = &mut self.conn else { return Poll::Ready(Ok(())) };
        if self.deaf.is_some() {
            return Poll::Pending;
        }
        let mut written = 0;
        while written < self.out.len() {
            match Pin::new(&mut *conn).poll_write(cx, &self.out[written..]) {
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
            std::task::ready!(Pin::new(conn).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the connection; true when the peer is still to end it as well. One that does not take its last bytes is left.
    async fn shut(&mut self, ending: Ending, clock: &Clock) -> bool {
        if ending == Ending::Reset || self.deaf.is_some() {
            if let Some(conn) = self.conn.take() {
                conn.reset_on_drop();
            }
            return false;
        }
        let last = poll_fn(|cx| {
            std::task::ready!(self.poll_drain(cx))?;
            match &mut self.conn {
                Some(conn) => Pin::new(conn).poll_shutdown(cx),
                None => Poll::Ready(Ok(())),
            }
        });
        matches!(clock.timeout(LAST_BYTES, last).await, Some(Ok(())))
    }

    /// The same, and waits for the peer.
    async fn finish(&mut self, ending: Ending, clock: &Clock) {
        if self.shut(ending, clock).await {
            self.linger(clock).await;
        }
    }

    async fn linger(&mut self, clock: &Clock) {
        if let Some(conn) = &mut self.conn {
            conn.linger(clock).await;
        }
    }
}

impl Keeper {
    fn new(resume: Resume) -> Option<Keeper> {
        (resume.mode == ResumeMode::Reattach).then(|| Keeper {
            backlog: Backlog::new(resume.buffer),
            gather: Gather::new(resume.buffer),
            overflow: resume.overflow,
            is_muted: false,
            parked: None,
            handing: None,
        })
    }

    /// Keeps to the limit; false when the session has to end because of it.
    fn limit(&mut self, browser: Option<&Conn>, metrics: &Metrics) -> bool {
        if self.backlog.is_over() {
            match (browser, self.overflow) {
                (Some(conn), _) => {
                    self.backlog.acknowledged(conn.acknowledged());
                    self.backlog.make_room();
                }
                (None, Overflow::DropOldest) => metrics.resume_dropped(self.backlog.make_room()),
                (None, Overflow::Close) => return false,
            }
        }
        self.count(metrics);
        true
    }

    /// Tells the metrics how much is kept for a browser that is away.
    fn count(&mut self, metrics: &Metrics) {
        if let Some(parked) = &mut self.parked {
            metrics.resume_buffered(self.backlog.len() as i64 - parked.n_bytes as i64);
            parked.n_bytes = self.backlog.len();
        }
    }

    /// Forgets the browser's message that was under way. True when a browser that comes back can be given all that it has
    /// missed, and the upstream has whole messages only.
    fn let_go(&mut self) -> bool {
        self.gather.forget();
        self.gather.is_whole() && (self.overflow == Overflow::DropOldest || !self.backlog.has_gap())
    }
}

impl Relay {
    fn new(slot: Rc<Slot>, resume: Resume, browser: Conn, upstream: Conn, record: Box<Record>) -> Self {
        let worker = slot.worker();
        let shared = &worker.shared;
        let (now, sessions) = (shared.clock.now(), &shared.config.sessions);
        // One that goes on over another connection upstream is as old as it was.
        let age = Duration::from_secs(shared.clock.unix().saturating_sub(record.listed.entry.about.began));
        let keeper = Keeper::new(resume);
        let limits = Limits {
            keepalive: sessions.keepalive,
            window: keeper.is_some().then_some(resume.window),
            max_age: sessions.max_age.map(|it| it.saturating_sub(age)),
            max_idle: sessions.max_idle,
            tick: record.ticks.then_some(sessions.tick),
        };
        shared.metrics.session_state("attached", 1);
        Relay {
            legs: [
                LegState::new(Some(browser), Sender::Client),
                LegState::new(Some(upstream), Sender::Server),
            ],
            session: Session::new(limits, rand_nonce(), now),
            timer: shared.clock.timer(now),
            keeper,
            entry: Arc::clone(&record.listed.entry),
            turn: record.set.is_some().then(Arc::default),
            record,
            messages: None,
            stoppers: Vec::new(),
            slot,
        }
        .with_messages()
    }

    /// Looks at messages from now on, where a policy wants to see them.
    fn with_messages(mut self) -> Self {
        let Some(chain) = self.slot.worker().chain(&self.record.route) else { return self };
        let assembler = |leg, sender| chain.messages(side(leg)).map(|limit| Assembler::new(sender, limit));
        let assemblers = [assembler(Leg::Browser, Sender::Client), assembler(Leg::Upstream, Sender::Server)];
        if assemblers.iter().any(Option::is_some)
            && let Some(exchange) = self.exchange("")
        {
            self.messages = Some(Box::new(Messages { exchange, assemblers }));
        }
        self
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut turns = 0;
        loop {
            // What stands in the kernel is read first: it may be the sign of life that a tick would miss.
            if turns > 0 && self.timer.poll(cx).is_ready() {
                self.hear_what_cannot_be_read();
                if let Some(end) = self.handle_with(Event::Tick, Some(cx)) {
                    return Poll::Ready(end);
                }
                continue; // the timer has a new deadline to be polled for
            }
            let mut has_moved = turns == 0;
            for leg in Leg::BOTH {
                let n_waiting = self.legs[leg as usize].out.len();
                let drained = self.poll_drain(leg, cx);
                if self.legs[leg as usize].out.len() < n_waiting {
                    // A peer that takes what it had left waiting is there, though it may have no room to say so.
                    let now = self.slot.worker().shared.clock.now();
                    self.session.handle(now, Event::Heard(leg));
                }
                if let Poll::Ready(Err(error)) = drained {
                    self.legs[leg as usize].deaf = Some(loss(&error));
                }
            }
            if let [Some(loss), Some(_)] = [Leg::Browser, Leg::Upstream].map(|it| self.legs[it as usize].deaf)
            {
                // Neither will take what the other has said.
                if let Some(end) = self.handle_with(Event::Gone(Leg::Browser, loss), Some(cx)) {
                    return Poll::Ready(end);
                }
            }
            for leg in Leg::BOTH {
                // Back-pressure: what the other side does not take is not read, and neither is an upstream that does not
                // take the answers to its own pings while the browser is away.
                let is_parked = self.legs[Leg::Browser as usize].conn.is_none();
                let own = &self.legs[leg as usize];
                let is_stuck = is_parked && !own.out.is_empty() && own.deaf.is_none();
                if is_stuck || !self.legs[leg.other() as usize].out.is_empty() {
                    continue;
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

    /// A leg that cannot be heard, because it is not read or because no ping can be sent to it now, must show otherwise that
    /// it is there: it takes all that it is sent, or more of it than before.
    fn hear_what_cannot_be_read(&mut self) {
        let now = self.slot.worker().shared.clock.now();
        for leg in Leg::BOTH {
            let is_read = self.legs[leg.other() as usize].out.is_empty();
            let state = &mut self.legs[leg as usize];
            let takes_all = !is_read && state.out.is_empty();
            let takes_more = !state.waiting.is_empty()
                && state.conn.as_ref().is_some_and(|it| {
                    let (acknowledged, written) = it.progress();
                    let before = std::mem::replace(&mut state.acknowledged, acknowledged);
                    acknowledged > before || (acknowledged == written && state.out.is_empty())
                });
            if takes_all || takes_more {
                self.session.handle(now, Event::Heard(leg));
            }
        }
    }

    /// Sends what is kept for a leg.
    fn poll_drain(&mut self, leg: Leg, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let state = &mut self.legs[leg as usize];
        let was_kept = !state.out.is_empty() || state.needs_flush;
        let drained = state.poll_drain(cx);
        if leg == Leg::Browser
            && was_kept
            && let Some(keeper) = &mut self.keeper
            && let Sent::Sealed(at) = self.legs[leg as usize].sent()
        {
            keeper.backlog.sent(at);
        }
        drained
    }

    /// Reads once from a leg and passes on what came.
    fn poll_read(&mut self, leg: Leg, cx: &mut Context<'_>) -> Poll<Option<End>> {
        SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let Some(conn) = &mut self.legs[leg as usize].conn else { return Poll::Pending };
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(conn).poll_read(cx, &mut buf) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    Poll::Ready(self.pass(leg, buf.filled(), Some(cx)))
                }
                Poll::Ready(read) => {
                    let ended = read.err().map_or(Loss::Fin, |it| loss(&it));
                    let loss = self.legs[leg as usize].deaf.unwrap_or(ended);
                    Poll::Ready(self.handle_with(Event::Gone(leg, loss), Some(cx)))
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
        let worker = self.slot.worker();
        let n_before = bytes.len() as u64;
        self.legs[leg as usize].n_bytes += n_before;
        if let Some(end) = self.handle_with(Event::Heard(leg), cx.as_deref_mut()) {
            return Some(end);
        }
        let mut ends = ENDS.take();
        let mut has_data = false;
        let end = loop {
            let event = match self.legs[leg as usize].tracker.next(&mut bytes, &mut ends) {
                Ok(None) => break None,
                Ok(Some(Piece::Data(data))) => {
                    has_data = true;
                    self.carry(leg, data, &ends, cx.as_deref_mut())
                }
                Ok(Some(Piece::Held(data))) => {
                    has_data = true;
                    self.carry(leg, &data, &ends, cx.as_deref_mut())
                }
                Ok(Some(Piece::Control(control))) => Some(Event::Control(leg, control)),
                Err(violation) => Some(Event::Violated(leg, violation)),
            };
            if let Some(event) = event
                && let Some(end) = self.handle_with(event, cx.as_deref_mut())
            {
                break Some(end);
            }
        };
        ENDS.set(ends);
        let (data, control) = self.legs[leg as usize].tracker.take_counts();
        worker.shared.metrics.relayed(leg, n_before, data, control);
        if has_data && worker.shared.config.sessions.max_idle.is_some() {
            self.session.handle(worker.shared.clock.now(), Event::Moved);
        }
        end
    }

    /// Passes on bytes of data frames, as they are or as the policies want them.
    fn carry(
        &mut self,
        from: Leg,
        mut data: &[u8],
        ends: &[usize],
        cx: Option<&mut Context<'_>>,
    ) -> Option<Event> {
        let is_seen = self.messages.as_ref().is_some_and(|it| it.assemblers[from as usize].is_some());
        let Some(mut messages) = self.messages.take_if(|_| is_seen) else {
            return self.send_data(from, data, ends, cx);
        };
        let worker = self.slot.worker();
        let chain = worker.chain(&self.record.route);
        let Messages { exchange, assemblers } = &mut *messages;
        let assembler = assemblers[from as usize].as_mut().expect("it was looked for");
        let (mut out, mut ends, mut event) = (Vec::new(), Vec::new(), None);
        while event.is_none() {
            let (is_text, payload) = match assembler.next(&mut data) {
                Ok(None) => break,
                Ok(Some(message)) => message,
                Err(TooLarge) => {
                    let what = "a message that is larger than the policies look at";
                    event = Some(Event::Violated(from, Violation { code: 1009, what }));
                    break;
                }
            };
            exchange.message =
                Some(Message { from: side(from), is_text, payload: payload.into(), is_dropped: false });
            let asked = chain
                .as_ref()
                .map_or(Ok(()), |it| it.run_now(Phase::SessionMessage, exchange, &worker.watch));
            let message = exchange.message.take();
            match (asked, message) {
                (Ok(()), Some(message)) if !message.is_dropped => {
                    let mask = (from == Leg::Browser).then(|| (rand_nonce() as u32).to_ne_bytes());
                    encode_message(&mut out, message.is_text, &message.payload, mask);
                    ends.push(out.len());
                }
                (Ok(()), _) => {}
                (Err(Stop::Reject(rejection)), _) => {
                    tracing::debug!(request = %exchange.id, code = rejection.code.as_str(), cause = %rejection.cause(), "A message ends its session.");
                    event = Some(Event::Refused(respond::close(&worker.rejected(rejection))));
                }
                (Err(Stop::Respond(_)), _) => {} // the chain does not let it
            }
        }
        self.messages = Some(messages);
        let sent = if out.is_empty() { None } else { self.send_data(from, &out, &ends, cx) };
        self.send_waiting(from.other()); // also behind a message that nobody gets
        sent.or(event)
    }

    /// Sends bytes of data frames to the other leg; an event when something came of it.
    fn send_data(
        &mut self,
        from: Leg,
        data: &[u8],
        ends: &[usize],
        mut cx: Option<&mut Context<'_>>,
    ) -> Option<Event> {
        if !self.session.accepts_data(from) {
            return None;
        }
        let to = from.other();
        let (worker, leg) = (self.slot.worker(), &mut self.legs[to as usize]);
        match (&mut self.keeper, from) {
            (None, _) => leg.send(cx, data),
            (Some(keeper), Leg::Browser) => {
                keeper.gather.take(data, ends, |it| leg.send(cx.as_deref_mut(), it));
            }
            (Some(keeper), Leg::Upstream) => {
                let audible = match (keeper.is_muted, ends.first()) {
                    (false, _) => data,
                    (true, None) => &[],
                    (true, Some(&end)) => &data[end..],
                };
                keeper.is_muted &= ends.is_empty();
                leg.send(cx, audible);
                keeper.backlog.push(data, ends, leg.sent());
                if !keeper.limit(leg.conn.as_ref(), &worker.shared.metrics) {
                    return Some(Event::Overflowed);
                }
            }
        }
        self.send_waiting(to);
        None
    }

    /// Whether a control frame may be sent to a leg now: what was sent to it so far ends at the end of a frame.
    fn takes_control(&self, to: Leg) -> bool {
        let is_held = to == Leg::Upstream && self.keeper.as_ref().is_some_and(|it| it.gather.is_whole());
        is_held || self.legs[to.other() as usize].tracker.is_at_boundary()
    }

    /// Sends the control frames that have waited, if they may go now.
    fn send_waiting(&mut self, to: Leg) {
        if self.legs[to as usize].waiting.is_empty() || !self.takes_control(to) {
            return;
        }
        for control in std::mem::take(&mut self.legs[to as usize].waiting) {
            self.send_control(to, &control);
        }
    }

    /// A session that was opened while the others were told that the gateway is about to end.
    fn drain_late(&mut self) -> Option<End> {
        let worker = self.slot.worker();
        let shared = &worker.shared;
        if !*shared.draining.borrow() {
            return None;
        }
        let until = shared.directory.drains_until();
        let until = until.unwrap_or_else(|| shared.clock.now() + shared.config.sessions.drain_timeout);
        self.handle_with(Event::Drain(until), None)
    }

    /// Tells the session what happened and does what it wants.
    fn handle_with(&mut self, event: Event, mut cx: Option<&mut Context<'_>>) -> Option<End> {
        let worker = self.slot.worker();
        let shared = &worker.shared;
        self.session.handle(shared.clock.now(), event);
        loop {
            match self.session.poll() {
                Action::Ping(leg, _) if !self.legs[leg as usize].waiting.is_empty() => {
                    // Enough waits for the end of that frame; the next beat asks again.
                }
                action @ (Action::Send(leg, control) | Action::Ping(leg, control)) => {
                    if self.legs[leg as usize].conn.is_none() {
                        continue;
                    }
                    if control.opcode == Opcode::Close {
                        shared.directory.note_browser(&self.entry, None); // whoever comes now finds nobody in its place
                    }
                    if self.takes_control(leg) {
                        self.send_control(leg, &control);
                        if let Some(cx) = cx.as_deref_mut()
                            && let Poll::Ready(Err(error)) = self.poll_drain(leg, cx)
                        {
                            self.legs[leg as usize].deaf = Some(loss(&error));
                        }
                    } else {
                        self.legs[leg as usize].waiting.push(control);
                    }
                    if matches!(action, Action::Ping(..)) {
                        shared.metrics.ping(leg);
                        if leg == Leg::Browser {
                            self.forget_acknowledged();
                        }
                    }
                }
                Action::Measured(leg, rtt) => shared.metrics.pong(leg, rtt),
                Action::Ask => self.tell(Phase::SessionTick, ""),
                Action::Park(loss) => self.park(loss),
                Action::Finish(end) => return Some(end),
                Action::Wait(until) => {
                    self.timer.reset(shared.clock.coarse(until));
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

    /// What plugins are told about the session.
    fn facts(&self, cause: &'static str) -> SessionFacts {
        SessionFacts {
            id: Some(self.entry.id().public_name()),
            age: self.slot.worker().shared.clock.now() - self.record.started,
            cause,
            received: self.legs[Leg::Browser as usize].n_bytes,
            sent: self.legs[Leg::Upstream as usize].n_bytes,
        }
    }

    /// Asks the policies of this moment about the session, beside it: they may wait, and the session goes on meanwhile.
    /// They hear of its moments in order, each when the one before is over. Those that end it tell it so by mail.
    fn tell(&self, phase: Phase, cause: &'static str) {
        let worker = self.slot.worker();
        let Some(chain) = worker.chain(&self.record.route).filter(|it| it.has(phase)) else { return };
        let Some(mut exchange) = self.exchange(cause) else { return };
        let (entry, guard) = (Arc::clone(&self.entry), self.slot.begins());
        let Some(turn) = self.turn.clone() else { return };
        tokio::task::spawn_local(async move {
            let turn = match phase {
                // Whoever is still busy with what came before is asked again soon.
                Phase::SessionTick => turn.try_lock_owned().ok(),
                _ => Some(turn.lock_owned().await),
            };
            if turn.is_none() {
                return;
            }
            if let Err(Stop::Reject(rejection)) = chain.run(phase, &mut exchange, &worker.watch).await {
                tracing::debug!(request = %exchange.id, code = rejection.code.as_str(), cause = %rejection.cause(), "A session may not go on.");
                let close = respond::close(&worker.rejected(rejection));
                drop(entry.post(Mail::Refused(close))); // a session that has ended has no use for it
            }
            drop((turn, guard));
        });
    }

    /// The session, as its plugins see it.
    fn exchange(&self, cause: &'static str) -> Option<Exchange> {
        let Set { principal, vars, tls, unmet } =
            serde_json::from_str(self.record.set.as_ref()?).unwrap_or_default();
        Some(Exchange {
            id: self.record.id.to_string(),
            client: self.record.client,
            path: self.record.path.to_string(),
            route: self.record.route.to_string(),
            function: Some(self.entry.about.identity.function.to_string()),
            websocket: true,
            principal,
            vars,
            tls,
            session: self.facts(cause),
            unmet: Some(unmet),
            ..Exchange::default()
        })
    }

    /// Drops what the browser has received.
    fn forget_acknowledged(&mut self) {
        if let (Some(keeper), Some(conn)) = (&mut self.keeper, &self.legs[Leg::Browser as usize].conn)
            && !keeper.backlog.is_empty()
        {
            keeper.backlog.acknowledged(conn.acknowledged());
        }
    }

    /// Lets go of the browser's connection; gives what is left of it, and whether another may take its place.
    fn let_go(&mut self) -> (LegState, bool) {
        self.forget_acknowledged();
        if let Some(assembler) =
            self.messages.as_mut().and_then(|it| it.assemblers[Leg::Browser as usize].as_mut())
        {
            assembler.forget(); // what it had begun does not come to its end
        }
        let mut old = LegState::new(None, Sender::Client);
        std::mem::swap(&mut old, &mut self.legs[Leg::Browser as usize]);
        self.legs[Leg::Browser as usize].n_bytes = old.n_bytes;
        let is_whole = self.keeper.as_mut().is_some_and(Keeper::let_go);
        if is_whole {
            self.send_waiting(Leg::Upstream); // no rest of a message comes that they would have to wait for
        }
        (old, is_whole)
    }

    /// The browser is lost and may come back.
    fn park(&mut self, loss: Loss) {
        let worker = self.slot.worker();
        let shared = &worker.shared;
        if loss == Loss::Silence {
            shared.metrics.leg_lost(Leg::Browser);
        }
        let (old, is_whole) = self.let_go();
        if let Some(conn) = old.conn {
            conn.reset_on_drop();
        }
        let now = shared.clock.now();
        match &mut self.keeper {
            Some(keeper) if is_whole => {
                shared.metrics.session_park(loss.name());
                shared.metrics.session_state("attached", -1);
                shared.metrics.session_state("parked", 1);
                shared.directory.note_browser(&self.entry, None);
                keeper.parked = Some(Parked { since: now, n_bytes: 0 });
                keeper.count(&shared.metrics);
                self.tell(Phase::SessionPark, loss.name());
            }
            Some(keeper) if keeper.backlog.has_gap() => self.session.handle(now, Event::Overflowed),
            _ => self.session.handle(now, Event::Torn),
        }
    }

    fn read_mail(&mut self, mail: Mail, cx: &mut Context<'_>) -> Option<End> {
        match mail {
            Mail::Attach(attach) => self.attach(*attach, cx),
            Mail::Arrived(n_bytes) => {
                let keeper = self.keeper.as_mut()?;
                keeper.backlog.acknowledged(n_bytes);
                let Handing { next } = keeper.handing.take()?;
                self.attach(*next, cx)
            }
            Mail::Refused(close) => self.handle_with(Event::Refused(close), Some(cx)),
            Mail::Drain(until) => self.handle_with(Event::Drain(until), Some(cx)),
            Mail::Stop(stop, ended) => {
                self.stoppers.push(ended);
                self.handle_with(Event::Stop(stop), Some(cx))
            }
        }
    }

    /// A browser has come back: it gets its 101 and what it has not received, and the upstream notices nothing.
    fn attach(&mut self, mut attach: Attach, cx: &mut Context<'_>) -> Option<End> {
        let worker = self.slot.worker();
        let shared = &worker.shared;
        if let Some(end) = self.read_out(cx) {
            attach.refuse(false);
            return Some(end);
        }
        let was_attached = self.legs[Leg::Browser as usize].conn.is_some();
        if !self.session.takes_browsers() {
            attach.refuse(false);
            return None;
        }
        let refuses = shared.config.sessions.viewer == Viewer::Refuse;
        let handing = self.keeper.as_mut().and_then(|it| it.handing.as_mut());
        if let (false, Some(Handing { next })) = (refuses, handing) {
            std::mem::replace(next, Box::new(attach)).refuse(true); // a later one has come meanwhile
            return None;
        }
        if refuses && (was_attached || self.is_handing()) {
            attach.refuse(true);
            return None;
        }
        if self.legs[Leg::Browser as usize].conn.as_ref().is_some_and(Conn::is_tunnel) {
            return self.ask_what_arrived(attach, cx);
        }
        if was_attached {
            let can_close = self.takes_control(Leg::Browser);
            let (mut old, is_whole) = self.let_go();
            if can_close {
                let (bytes, len) = Control::close(3005, "another browser has taken over").encode(None);
                old.out.extend_from_slice(&bytes[..len]);
            }
            let clock = shared.clock.clone();
            let ending = if can_close { Ending::Close } else { Ending::Reset };
            tokio::task::spawn_local(async move { old.finish(ending, &clock).await });
            if !is_whole {
                attach.refuse(false);
                return self.handle_with(Event::Gone(Leg::Browser, Loss::Reset), Some(cx));
            }
        }
        let keeper = self.keeper.as_mut().expect("a session that takes browsers has one");
        if let Err(error) = attach.conn.move_here() {
            tracing::warn!(%error, "A connection could not be moved to the session's worker.");
            attach.refuse(false);
            return if was_attached {
                self.handle_with(Event::Gone(Leg::Browser, Loss::Reset), Some(cx))
            } else {
                None
            };
        }
        let leg = &mut self.legs[Leg::Browser as usize];
        leg.conn = Some(attach.conn);
        leg.out = attach.answer.into();
        keeper.is_muted = keeper.backlog.is_skipping();
        for bytes in keeper.backlog.replay(leg.sent()) {
            leg.out.extend_from_slice(bytes);
        }
        let n_bytes = keeper.backlog.len();
        if let Some(parked) = keeper.parked.take() {
            shared.metrics.resume_buffered(-(parked.n_bytes as i64));
            shared.metrics.session_was_parked(shared.clock.now() - parked.since);
            shared.metrics.session_state("parked", -1);
            shared.metrics.session_state("attached", 1);
        }
        tracing::debug!(n_bytes, "A browser is given what it has missed.");
        shared.directory.note_browser(&self.entry, Some(attach.generation));
        drop(attach.reply.send(Ok(()))); // its worker may have ended meanwhile
        self.tell(Phase::SessionResume, "reattach");
        let end = self.handle_with(Event::Attached, Some(cx));
        end.or_else(|| self.pass(Leg::Browser, &attach.early, Some(cx)))
    }

    /// Reads what the browser before has said and its kernel has handed over, although the upstream does not take it now: its
    /// connection is about to be let go of. It may turn out that the browser is gone.
    fn read_out(&mut self, cx: &mut Context<'_>) -> Option<End> {
        while self.legs[Leg::Upstream as usize].out.len() < LAST_WORDS {
            match self.poll_read(Leg::Browser, cx) {
                Poll::Ready(None) => {}
                Poll::Ready(end) => return end,
                Poll::Pending => break,
            }
        }
        None
    }

    fn is_handing(&self) -> bool {
        self.keeper.as_ref().is_some_and(|it| it.handing.is_some())
    }

    /// Ends the connection of a browser at another replica, and parks until it is known what has arrived there.
    fn ask_what_arrived(&mut self, next: Attach, cx: &mut Context<'_>) -> Option<End> {
        let can_close = self.takes_control(Leg::Browser);
        let (mut old, _) = self.let_go();
        if can_close {
            let (bytes, len) = Control::close(3005, "another browser has taken over").encode(None);
            old.out.extend_from_slice(&bytes[..len]);
        }
        self.keeper.as_mut()?.handing = Some(Handing { next: Box::new(next) });
        let (entry, clock) = (Arc::clone(&self.entry), self.slot.worker().shared.clock.clone());
        tokio::task::spawn_local(async move {
            clock.timeout(REPORT, old.finish(Ending::Close, &clock)).await;
            let n_bytes = old.conn.as_ref().map_or(0, Conn::acknowledged);
            drop(entry.post(Mail::Arrived(n_bytes))); // a session that has ended has no use for it
        });
        self.handle_with(Event::Gone(Leg::Browser, Loss::Replaced), Some(cx))
    }

    /// Nobody finds the session any more. A browser that waited for it is given back.
    fn close(&mut self) {
        self.slot.worker().shared.directory.close(&self.entry);
        if let Some(Handing { next }) = self.keeper.as_mut().and_then(|it| it.handing.take()) {
            next.refuse(false);
        }
    }

    /// The last line of a session.
    fn report(&mut self, end: End) {
        let record = &mut self.record;
        let worker = self.slot.worker();
        let shared = &worker.shared;
        let now = shared.clock.now();
        let took = now - record.started;
        shared.metrics.session_end(end.reason.name(), took);
        if let Some(parked) = self.keeper.as_ref().and_then(|it| it.parked.as_ref()) {
            shared.metrics.session_was_parked(now - parked.since);
            shared.metrics.resume_buffered(-(parked.n_bytes as i64));
        }
        match end.reason {
            Reason::BrowserSilent if self.keeper.is_none() => shared.metrics.leg_lost(Leg::Browser),
            Reason::UpstreamSilent => shared.metrics.leg_lost(Leg::Upstream),
            _ => {}
        }
        let (identity, name) = (&self.entry.about.identity, self.entry.id().public_name());
        tracing::info!(
            request = %record.id, session = name, principal = identity.principal,
            reason = end.reason.name(), code = end.code,
            seconds = took.as_secs_f64(), "A session ended."
        );
        self.tell(Phase::SessionEnd, end.reason.name());
        let facts = self.facts(end.reason.name());
        let record = &mut self.record;
        if let (Some(exchange), Some(chain)) = (&mut record.exchange, worker.chain(&record.route)) {
            exchange.response.status = StatusCode::SWITCHING_PROTOCOLS;
            exchange.session = facts;
            worker.log_phase(&chain, exchange, Phase::Log);
        }
        shared.access.write(&Line {
            kind: "session",
            at: shared.clock.wall(),
            id: &record.id,
            client: record.client,
            method: Method::GET.as_str(),
            path: &record.path,
            route: &record.route,
            principal: &identity.principal,
            function: &identity.function,
            session: &name,
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
        let is_parked = self.keeper.as_ref().is_some_and(|it| it.parked.is_some());
        let Relay { slot, legs: [mut browser, mut upstream], stoppers, record, .. } = self;
        let shared = Arc::clone(&slot.worker().shared);
        let clock = &shared.clock;
        let (browser_waits, upstream_waits) =
            join(browser.shut(end.browser, clock), upstream.shut(end.upstream, clock)).await;
        // Both have ended as far as it is ours to say, so its place is free, also for the one that has made it end.
        drop((record, stoppers));
        // Last, so that who reads of fewer sessions finds room for one.
        shared.metrics.session_state(if is_parked { "parked" } else { "attached" }, -1);
        let linger = async |leg: &mut LegState, waits: bool| {
            if waits {
                leg.linger(clock).await;
            }
        };
        join(linger(&mut browser, browser_waits), linger(&mut upstream, upstream_waits)).await;
    }
}

/// Who sends what comes from a leg.
fn side(leg: Leg) -> Side {
    match leg {
        Leg::Browser => Side::Browser,
        Leg::Upstream => Side::Function,
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
