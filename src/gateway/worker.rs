//! A worker: one thread, one event loop, one Lua VM, and the connections that it accepted.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;

use crate::clock::{Clock, Timer};
use crate::config::Problems;
use crate::gateway::conn::{Conn, Counted, Counts};
use crate::gateway::files::one_more;
use crate::gateway::head::{self, HeadError, Limits};
use crate::gateway::pool::Pool;
use crate::gateway::tunnel::Carrier;
use crate::gateway::{Shared, admit, client, http as plain, page, respond, sign_in, websocket};
use crate::lua::{Ambiguous, RouteChain, Routes};
use crate::policy::{Chain, Exchange, LocalResponse, Phase};
use crate::rejection::{Code, Rejection};
use crate::telemetry::{Line, Plugins, Requests};

/// What a worker has over all generations of the configuration.
pub(crate) struct Slot {
    current: RefCell<Rc<Worker>>,
    /// Connections and relays at work, and who waits for the last one.
    n_at_work: Cell<usize>,
    one_ended: Notify,
}

/// What a worker's connections have in common under one configuration.
pub(crate) struct Worker {
    pub(crate) idx: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) watch: Plugins,
    pub(crate) requests: Requests,
    /// Connections upstream that all browsers share, where the configuration says so.
    pub(crate) pool: Pool,
    routes: RefCell<Rc<Routes>>,
    /// What plugins do beside all requests; it ends with their VM.
    beside: RefCell<Option<AbortOnDrop>>,
    draining: watch::Receiver<bool>,
}

/// A task that does not outlive this.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

/// A connection or a relay, which the worker waits for as long as this lives.
pub(crate) struct AtWork(Rc<Slot>);

/// A pause after an accept that failed for want of files or memory: retrying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a peer may take over the last bytes of a response, or of its connection.
pub(crate) const LAST_BYTES: Duration = Duration::from_secs(5);

/// What is left after `sessions.drain.timeout` for the Close frames that are sent then: with the default both fit into
/// the 10 s that Docker gives.
const LAST_WORDS: Duration = Duration::from_millis(1500);

/// How long a connection that was accepted right before the gateway drains has for its first request: it must not be
/// refused because it came a moment too early for the process that comes after.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// How often a worker's VM is measured, and its pool is looked through.
const MEASURE: Duration = Duration::from_secs(5);

/// Connections that a worker keeps for all browsers.
const MOST_POOLED: usize = 128;

/// Runs a worker until the gateway drains and its last connection has ended.
pub(crate) fn run(
    idx: usize,
    mut generations: watch::Receiver<Arc<Shared>>,
    listener: std::net::TcpListener,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an event loop can be made");
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let first = Arc::clone(&generations.borrow_and_update());
        let worker = Worker::new(idx, first).expect("the program was instantiated once when it was checked");
        let slot = Rc::new(Slot {
            current: RefCell::new(Rc::new(worker)),
            n_at_work: Cell::new(0),
            one_ended: Notify::new(),
        });
        let listener = TcpListener::from_std(listener).expect("the socket does not block");
        let clock = slot.worker().shared.clock.clone();
        let mut draining = slot.worker().draining.clone();
        let mut measured = clock.timer(clock.now());
        loop {
            tokio::select! {
                biased;
                _ = draining.wait_for(|it| *it) => break,
                accepted = listener.accept() => match accepted {
                    Ok((tcp, peer)) => slot.accept(tcp, client::canonical(peer)),
                    Err(error) => {
                        tracing::error!(%error, "A connection could not be accepted.");
                        clock.sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = std::future::poll_fn(|cx| measured.poll(cx)) => {
                    let worker = slot.worker();
                    worker.shared.metrics.lua_memory(idx, worker.routes.borrow().memory());
                    worker.pool.prune(clock.now());
                    measured.reset(clock.now() + MEASURE);
                }
                Ok(()) = generations.changed() => {
                    let next = Arc::clone(&generations.borrow_and_update());
                    match Worker::new(idx, next) {
                        Ok(worker) => slot.current.replace(Rc::new(worker)).retire(),
                        Err(error) => tracing::error!(%error, "A worker could not take over a configuration."),
                    }
                }
            }
        }
        drop(listener);
        let all_ended = async {
            while slot.n_at_work.get() > 0 {
                slot.one_ended.notified().await;
            }
        };
        let patience = slot.worker().shared.config.sessions.drain_timeout + LAST_WORDS;
        if clock.timeout(patience, all_ended).await.is_none() {
            tracing::warn!(worker = idx, "Connections were cut because `sessions.drain.timeout` is over.");
        }
    });
}

impl Slot {
    /// The worker under the configuration that holds now.
    pub(crate) fn worker(&self) -> Rc<Worker> {
        Rc::clone(&self.current.borrow())
    }

    /// Counts one more, so that the worker waits for its end.
    ///
    /// A set of tasks would do that too, but wakes the worker for each that ends, by a system call.
    pub(crate) fn begins(self: &Rc<Self>) -> AtWork {
        self.n_at_work.set(self.n_at_work.get() + 1);
        AtWork(Rc::clone(self))
    }

    /// Carries a browser to its session in another replica, until either ends. A gateway that is about to end waits for it
    /// as for a session of its own.
    pub(crate) fn carry(self: &Rc<Self>, worker: &Worker, carrier: Carrier) {
        let guard = self.begins();
        let (shared, draining) = (Arc::clone(&worker.shared), worker.draining.clone());
        shared.metrics.carried(1);
        tokio::task::spawn_local(async move {
            let stop = async {
                let mut draining = draining;
                drop(draining.wait_for(|it| *it).await); // a sender that is gone drains as well
                shared.clock.sleep(shared.config.sessions.drain_timeout).await;
            };
            carrier.run(stop).await;
            shared.metrics.carried(-1);
            drop(guard);
        });
    }

    fn accept(self: &Rc<Self>, tcp: TcpStream, peer: SocketAddr) {
        let shared = &self.current.borrow().shared;
        let totals = &shared.totals;
        if !one_more(&totals.n_connections, shared.config.listen.max_connections) {
            return shared.metrics.connection_refused("max_connections");
        }
        let counts = if totals.files.hold_with_room() {
            Counts::Browser
        } else {
            shared.metrics.connection_refused("files");
            if !totals.files.refuse() {
                totals.n_connections.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            Counts::Refusal
        };
        let counted = Counted::new(totals, counts);
        let (slot, guard) = (Rc::clone(self), self.begins());
        tokio::task::spawn_local(async move {
            Box::pin(slot.serve(tcp, peer, counted)).await;
            drop(guard);
        });
    }

    /// Serves a browser's connection, request by request.
    async fn serve(self: Rc<Self>, mut tcp: TcpStream, peer: SocketAddr, counted: Counted) {
        let mut worker = self.worker();
        let shared = &worker.shared;
        let mut receiver = worker.draining.clone();
        let draining = async move { drop(receiver.wait_for(|it| *it).await) }; // a sender that is gone drains as well
        let mut draining = pin!(draining);
        let listen = &shared.config.listen;
        let client = if client::is_introduced(&listen.proxies, peer) {
            let header = shared.clock.timeout(listen.head_timeout, client::introduction(&mut tcp));
            let header = tokio::select! {
                header = header => header.unwrap_or_else(|| Err(ErrorKind::TimedOut.into())),
                () = worker.drained(draining.as_mut(), FIRST_REQUEST) => return,
            };
            match header {
                Ok(source) => source.unwrap_or(peer),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return, // it looked whether the port is open
                Err(error) => {
                    shared.metrics.connection_refused("proxy_protocol");
                    return tracing::warn!(%peer, %error, "A proxy's connection does not begin with a PROXY header.");
                }
            }
        } else {
            peer
        };
        let mut conn = match &shared.tls {
            None => Conn::plain(tcp),
            Some(acceptor) => {
                let accepted = shared.clock.timeout(listen.head_timeout, acceptor.accept(tcp.into()));
                let accepted = tokio::select! {
                    accepted = accepted => accepted,
                    () = worker.drained(draining.as_mut(), FIRST_REQUEST) => return,
                };
                match accepted {
                    Some(Ok(tls)) => Conn::tls(tls),
                    Some(Err(error)) => {
                        let is_left = error.kind() != ErrorKind::InvalidData; // as what TLS does not allow arrives here
                        shared.metrics.tls_failed(if is_left { "left" } else { "error" });
                        return tracing::debug!(%client, %error, "A TLS handshake failed.");
                    }
                    None => {
                        shared.metrics.tls_failed("timeout");
                        return tracing::debug!(%client, "A TLS handshake took too long.");
                    }
                }
            }
        };
        let is_refused = counted.is_refusal();
        conn.count(counted);
        let mut buf = BytesMut::new();
        let mut patience = shared.config.listen.head_timeout;
        let mut timer = shared.clock.timer(shared.clock.now() + patience);
        let mut spare = FIRST_REQUEST;
        let own = Pool::new(1);
        loop {
            if buf.is_empty()
                && !worker
                    .next_request(&mut conn, &mut buf, &mut timer, patience, draining.as_mut(), spare)
                    .await
            {
                return;
            }
            worker = self.worker(); // a request is served by the configuration of its time
            let shared = &worker.shared;
            let listen = &shared.config.listen;
            let limits = Limits { head: listen.max_head, headers: listen.max_headers };
            (patience, spare) = (listen.idle_timeout, Duration::ZERO);
            let started = shared.clock.now();
            let read = head::read_request(&mut conn, &mut buf, limits);
            let head = match shared.clock.timeout(shared.config.listen.head_timeout, read).await {
                Some(Ok(head)) => head,
                Some(Err(HeadError::Closed)) => return,
                Some(Err(HeadError::Broken(error))) => {
                    return tracing::debug!(%client, %error, "A browser left within a request head.");
                }
                Some(Err(HeadError::Refused(rejection))) => {
                    return worker.refuse_head(conn, client, rejection, started).await;
                }
                None => return worker.refuse_head(conn, client, Code::HeadTimeout.into(), started).await,
            };
            let (manner, is_websocket) = (head.manner(), websocket::is_meant(&head));
            let client = client::of(&listen.proxies, client, &head.headers);
            let mut exchange = admit::exchange(&worker, client, head, is_websocket);
            let routes = worker.routes();
            let found = match routes.find(&exchange.path) {
                _ if is_refused => Err(Code::SessionsFull.into()),
                Ok(Some(route)) => Ok(route.clone()),
                Ok(None) => Err(Code::RouteNone.into()),
                Err(Ambiguous) => {
                    Err(Rejection::because(Code::Malformed, "a path that could mean two routes"))
                }
            };
            let route = match found {
                Ok(route) => route,
                Err(rejection) => {
                    let keep = manner.keeps_alive && !manner.has_body && !is_websocket && !is_refused;
                    let fallback = routes.fallback().cloned();
                    let response = respond::reject(worker.rejected(rejection), &mut exchange);
                    match worker.answer(conn, response, fallback.as_ref(), &mut exchange, keep, started).await
                    {
                        Some(again) => conn = again,
                        None => return,
                    }
                    continue;
                }
            };
            exchange.route = (*route.path).to_owned();
            if is_websocket {
                return websocket::serve(&self, &worker, conn, buf, manner, exchange, route).await;
            }
            if let Some(file) = page::find(shared, &exchange) {
                let keep = manner.keeps_alive && !manner.has_body;
                match worker.answer(conn, file, Some(&route), &mut exchange, keep, started).await {
                    Some(again) => conn = again,
                    None => return,
                }
                continue;
            }
            if sign_in::is_meant(&exchange, &route) && !manner.has_body {
                let response = sign_in::answer(&worker, &mut exchange, &route).await;
                let keep = manner.keeps_alive;
                match worker.answer(conn, response, Some(&route), &mut exchange, keep, started).await {
                    Some(again) => conn = again,
                    None => return,
                }
                continue;
            }
            match plain::serve(
                &worker,
                conn,
                std::mem::take(&mut buf),
                manner,
                exchange,
                route,
                &own,
                &mut timer,
                started,
            )
            .await
            {
                Some((again, rest)) => (conn, buf) = (again, rest),
                None => return,
            }
        }
    }
}

impl Worker {
    fn new(idx: usize, shared: Arc<Shared>) -> Result<Self, Problems> {
        let routes = shared.program.instantiate()?;
        Ok(Worker {
            idx,
            watch: Plugins::new(&shared.metrics, &shared.clock),
            requests: Requests::new(&shared.metrics),
            pool: Pool::new(MOST_POOLED),
            beside: RefCell::new(begin_beside(&routes, idx)),
            routes: RefCell::new(Rc::new(routes)),
            draining: shared.draining.clone(),
            shared,
        })
    }

    /// The chain of the route with this pattern, if there is one.
    pub(crate) fn chain(&self, pattern: &str) -> Option<Rc<Chain>> {
        self.routes().by_pattern(pattern).map(|it| Rc::clone(&it.chain))
    }

    /// The routes, with a fresh VM if the last one ran out of memory or time.
    fn routes(&self) -> Rc<Routes> {
        if self.routes.borrow().is_spent() {
            match self.shared.program.instantiate() {
                Ok(routes) => {
                    tracing::warn!(worker = self.idx, "A Lua VM ran out of memory or time and was replaced.");
                    let is_retired = self.beside.borrow().is_none();
                    if !is_retired {
                        *self.beside.borrow_mut() = begin_beside(&routes, self.idx);
                    }
                    *self.routes.borrow_mut() = Rc::new(routes);
                }
                Err(error) => tracing::error!(%error, "A Lua VM could not be replaced."),
            }
        }
        Rc::clone(&self.routes.borrow())
    }

    /// Another configuration holds now. Connections of this one may stay for long; what its plugins do beside them ends.
    fn retire(&self) {
        drop(self.beside.borrow_mut().take());
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Comes when the gateway has drained for this long. `begins` comes when that begins, and only once.
    async fn drained(&self, begins: Pin<&mut impl Future<Output = ()>>, spare: Duration) {
        if !self.is_draining() {
            begins.await;
        }
        if !spare.is_zero() {
            self.shared.clock.sleep(spare).await;
        }
    }

    /// Waits for the first byte of a request; false when none comes.
    async fn next_request(
        &self,
        conn: &mut Conn,
        buf: &mut BytesMut,
        timer: &mut Timer,
        patience: Duration,
        draining: Pin<&mut impl Future<Output = ()>>,
        spare: Duration,
    ) -> bool {
        let mut first = [0; 1024];
        let clock = &self.shared.clock;
        let until = clock.now() + patience;
        let late = poll_fn(|cx| timer.poll_lazily(cx, clock, until));
        tokio::select! {
            biased;
            read = conn.read(&mut first) => match read {
                Ok(n) if n > 0 => {
                    buf.extend_from_slice(&first[..n]);
                    true
                }
                _ => false,
            },
            () = self.drained(draining, spare) => false,
            () = late => false,
        }
    }

    /// Answers a request whose head could not be read: nothing is known of it, and its connection ends.
    async fn refuse_head(&self, conn: Conn, client: SocketAddr, rejection: Rejection, started: Instant) {
        let mut exchange =
            Exchange { id: admit::request_id(), client, tls: self.shared.is_tls(), ..Exchange::default() };
        let route = self.routes().fallback().cloned();
        let response = respond::reject(self.rejected(rejection), &mut exchange);
        self.answer(conn, response, route.as_ref(), &mut exchange, false, started).await;
    }

    /// Counts a rejection on its way.
    pub(crate) fn rejected(&self, rejection: Rejection) -> Rejection {
        self.shared.metrics.rejection(rejection.code.as_str());
        rejection
    }

    /// Writes a response that is made here; gives the connection back when another request may follow.
    pub(crate) async fn answer(
        &self,
        mut conn: Conn,
        response: LocalResponse,
        route: Option<&RouteChain>,
        exchange: &mut Exchange,
        keep_alive: bool,
        started: Instant,
    ) -> Option<Conn> {
        let clock = &self.shared.clock;
        let keep_alive = keep_alive && !self.is_draining();
        let response = respond::dress(response, route.map(|it| &*it.chain), exchange, &self.watch);
        exchange.response.status = response.status;
        let bytes = respond::encode(&response, &exchange.method, keep_alive, clock);
        let none = Chain::new();
        let chain = route.map_or(&none, |it| &it.chain);
        self.finish_request(exchange, chain, bytes.len() as u64, 0, started);
        if !keep_alive {
            close_politely(&mut conn, &bytes, clock).await;
            return None;
        }
        matches!(clock.timeout(LAST_BYTES, conn.write_out(&bytes)).await, Some(Ok(()))).then_some(conn)
    }

    /// The last line of a request: plugins, metrics, the access log.
    pub(crate) fn finish_request(
        &self,
        exchange: &mut Exchange,
        chain: &Chain,
        sent: u64,
        received: u64,
        started: Instant,
    ) {
        let shared = &self.shared;
        self.log_phase(chain, exchange, Phase::Log);
        let status = exchange.response.status;
        let route = if exchange.route.is_empty() { "-" } else { &exchange.route };
        self.requests.count(route, status.as_u16());
        shared.access.write(&Line {
            kind: "request",
            at: shared.clock.wall(),
            id: &exchange.id,
            client: exchange.client,
            method: exchange.method.as_str(),
            path: if exchange.path.is_empty() { "-" } else { &exchange.path },
            route,
            principal: exchange.principal_id(),
            function: exchange.function.as_deref().unwrap_or("-"),
            session: exchange.session.id.as_deref().filter(|_| exchange.websocket).unwrap_or_default(),
            status: status.as_u16(),
            reason: exchange.code.as_deref().unwrap_or("ok"),
            close: 0,
            received,
            sent,
            took: shared.clock.now() - started,
        });
    }

    /// Notes that a browser has left before it was answered: the status that access logs have for it, for it got none.
    pub(crate) fn browser_gone(&self, exchange: &mut Exchange) {
        exchange.response.status = StatusCode::from_u16(499).expect("three digits");
        exchange.code.get_or_insert_with(|| "browser.gone".into());
    }

    /// Asks the plugins that only want to know. What goes wrong there is logged by the chain.
    pub(crate) fn log_phase(&self, chain: &Chain, exchange: &mut Exchange, phase: Phase) {
        drop(chain.run_now(phase, exchange, &self.watch));
    }
}

/// Starts what plugins do beside all requests.
fn begin_beside(routes: &Routes, idx: usize) -> Option<AbortOnDrop> {
    routes.beside(idx == 0).map(|it| AbortOnDrop(tokio::task::spawn_local(it)))
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.n_at_work.set(self.0.n_at_work.get() - 1);
        self.0.one_ended.notify_one();
    }
}

/// Writes the last bytes of a connection so that they arrive. Where they do not, it breaks: what has come must not look like
/// all.
pub(crate) async fn close_politely(conn: &mut Conn, bytes: &[u8], clock: &Clock) {
    if !matches!(clock.timeout(LAST_BYTES, conn.write_out(bytes)).await, Some(Ok(()))) {
        return conn.reset_on_drop();
    }
    if let Some(Ok(())) = clock.timeout(LAST_BYTES, AsyncWriteExt::shutdown(conn)).await {
        conn.linger(clock).await;
    }
}
