//! The streaming server: what a function's container runs.
//!
//! Its control server tells when it is ready and takes the STUN credentials, its signalling WebSocket negotiates with a
//! browser, and its media port carries all sessions. The engine that speaks WebRTC is behind [`peer::Engine`].

mod control;
mod creds;
mod mux;
mod peer;
mod signaling;
mod source;
mod stun;
mod viewer;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::clock::Clock;
use crate::config::{self, Place, Problem};
use crate::telemetry::Metrics;
use creds::Creds;
use mux::Mux;
use peer::Engine;
use source::Source;

/// A streaming server whose ports are bound.
pub(crate) struct Server {
    control: TcpListener,
    signaling: TcpListener,
    shared: Arc<Shared>,
}

/// Where a streaming server listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) control: SocketAddr,
    pub(crate) signaling: SocketAddr,
    pub(crate) media: SocketAddr,
}

/// What the parts of a streaming server have in common.
struct Shared {
    config: config::Streaming,
    engine: Arc<dyn Engine>,
    source: Source,
    mux: Arc<Mux>,
    creds: watch::Sender<Option<Creds>>,
    metrics: Metrics,
    clock: Clock,
    n_sessions: AtomicUsize,
    /// Those of them whose browser's connection is gone.
    n_detached: AtomicUsize,
    named: signaling::Named,
    /// No further session will be served.
    is_over: AtomicBool,
    /// One session has ended, and the process is to end with it.
    finished: Notify,
    stopping: watch::Sender<bool>,
    /// Changes when all sessions are to end.
    ending: watch::Sender<u64>,
}

/// How long `ready` answers 500 before the process ends after its session: whoever polls each second sees it.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Server {
    /// Binds all ports and reads the source.
    pub(crate) async fn bind(
        config: config::Streaming,
        metrics: &Metrics,
        clock: &Clock,
    ) -> Result<Server, Problem> {
        let problem = |key: &str, value: &dyn std::fmt::Display, message: String| {
            Problem::new(Place::Nowhere, format!("streaming.{key} = \"{value}\""), message)
        };
        let control = TcpListener::bind(config.control).await;
        let control =
            control.map_err(|it| problem("control", &config.control, format!("cannot listen: {it}")))?;
        let signaling = TcpListener::bind(config.signaling).await;
        let signaling = signaling
            .map_err(|it| problem("signaling", &config.signaling, format!("cannot listen: {it}")))?;
        let range = config.ports;
        let socket =
            (range.first..=range.last).find_map(|port| UdpSocket::bind((config.media_address, port)).ok());
        let socket = socket.ok_or_else(|| {
            let value = format!("{}-{}", range.first, range.last);
            problem("ports", &value, format!("no free UDP port on {}", config.media_address))
        })?;
        let advertised = advertised(&config);
        let mux = Mux::new(socket, advertised, metrics, clock).map_err(|it| {
            problem("media_address", &config.media_address, format!("the media port cannot be used: {it}"))
        })?;
        let source = Source::new(&config.source, clock)
            .map_err(|it| problem("source", &format!("{:?}", config.source), it))?;
        let engine =
            peer::engine(&mux, source.mime()).map_err(|it| problem("source", &"webrtc", it.to_string()))?;
        metrics.streaming.session("active", 0);
        let shared = Shared {
            engine,
            source,
            mux,
            creds: watch::Sender::new(None),
            metrics: metrics.clone(),
            clock: clock.clone(),
            n_sessions: AtomicUsize::new(0),
            n_detached: AtomicUsize::new(0),
            named: signaling::Named::default(),
            is_over: AtomicBool::new(false),
            finished: Notify::new(),
            stopping: watch::Sender::new(false),
            ending: watch::Sender::new(0),
            config,
        };
        Ok(Server { control, signaling, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> Addresses {
        let address = |it: &TcpListener| it.local_addr().expect("a bound socket has an address");
        Addresses {
            control: address(&self.control),
            signaling: address(&self.signaling),
            media: self.shared.mux.address(),
        }
    }

    /// Serves until `stop`, or until the one session has ended that it is told to serve.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) {
        let Server { control, signaling, shared } = self;
        let mux = tokio::spawn(Arc::clone(&shared.mux).run());
        let stun = tokio::spawn(stun::run(
            Arc::clone(&shared.mux),
            shared.creds.subscribe(),
            shared.metrics.clone(),
            shared.clock.clone(),
        ));
        let source = tokio::spawn(shared.source.clone().run());
        let control = tokio::spawn(control::run(control, Arc::clone(&shared)));
        let signaling = tokio::spawn(signaling::run(signaling, Arc::clone(&shared)));
        shared.metrics.streaming.ready(shared.is_ready());
        tokio::select! {
            () = stop => {}
            () = shared.finished.notified() => {
                tracing::info!("The session has ended; the streaming server ends with it.");
                shared.clock.sleep(LAST_WORDS).await;
            }
        }
        shared.is_over.store(true, Ordering::Relaxed);
        shared.metrics.streaming.ready(false);
        shared.stopping.send_replace(true);
        signaling.abort();
        shared.clock.timeout(LAST_WORDS, shared.all_ended()).await;
        for task in [mux, stun, source, control] {
            task.abort();
        }
    }
}

impl Shared {
    /// Whether the container can serve a session, now or once the present one is over.
    fn is_ready(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed) && (!self.config.require_creds || self.creds.borrow().is_some())
    }

    async fn all_ended(&self) {
        while self.n_sessions.load(Ordering::Relaxed) > 0 {
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    /// A session has ended: with it, perhaps, what the container is for.
    fn session_ended(&self) {
        if self.config.exit_after_session {
            self.is_over.store(true, Ordering::Relaxed);
            self.metrics.streaming.ready(false);
        }
    }

    /// A session's connection is gone too.
    fn place_is_free(&self) {
        self.n_sessions.fetch_sub(1, Ordering::Relaxed);
        self.metrics.streaming.session("active", -1);
        if self.is_over.load(Ordering::Relaxed) {
            self.finished.notify_one();
        }
    }
}

/// The addresses that browsers are told to send media to.
fn advertised(config: &config::Streaming) -> Vec<IpAddr> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    if !config.media_address.is_unspecified() {
        return vec![config.media_address];
    }
    // The address of the route to the outside: connecting a UDP socket sends nothing.
    let route = |from: &str, to: &str| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|it| !it.is_unspecified())
    };
    let outside = route("0.0.0.0:0", "192.0.2.1:9");
    outside.into_iter().chain([IpAddr::V4(Ipv4Addr::LOCALHOST)]).collect()
}
