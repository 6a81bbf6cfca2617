//! The metrics. Their names are a promise; every label has few values, and a session's id is never one.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::clock::Clock;
use crate::policy::{Outcome, Phase, Watch};
use crate::rejection::Code;
use crate::session::{Leg, Reason};
use crate::telemetry::log;
use crate::telemetry::meters::Declared;

/// All metrics of one process (or of one test). Cloning shares them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    sessions: IntGaugeVec,
    session_starts: IntCounterVec,
    session_ends: IntCounterVec,
    session_seconds: Histogram,
    session_setup: HistogramVec,
    parks: IntCounterVec,
    parked_seconds: Histogram,
    resumes: IntCounterVec,
    resume_seconds: HistogramVec,
    resume_buffered: IntGauge,
    resume_dropped: IntCounter,
    carried: IntGauge,
    directory_up: IntGauge,
    directory_requests: IntCounterVec,
    directory_seconds: HistogramVec,
    pings: [IntCounter; 2],
    pongs: [IntCounter; 2],
    rtt: [Histogram; 2],
    lost: [IntCounter; 2],
    relay_bytes: [IntCounter; 2],
    relay_frames: [[IntCounter; 2]; 2],
    requests: IntCounterVec,
    rejections: IntCounterVec,
    upstream: HistogramVec,
    plugin_seconds: HistogramVec,
    plugin_decisions: IntCounterVec,
    plugin_errors: IntCounterVec,
    lua_memory: IntGaugeVec,
    generation: IntGauge,
    certificate_expiry: IntGaugeVec,
    reloads: IntCounterVec,
    connections: IntGauge,
    connections_refused: IntCounterVec,
    tls_failed: IntCounterVec,
    access_lines_dropped: IntCounter,
    /// What plugins have declared.
    declared: Declared,
    pub(crate) streaming: Streaming,
}

/// Metrics of the streaming server.
#[derive(Clone)]
pub(crate) struct Streaming {
    sessions: IntGaugeVec,
    resumes: IntCounter,
    results: IntCounterVec,
    seconds: Histogram,
    setup: HistogramVec,
    rtp_packets: IntCounter,
    rtp_bytes: IntCounter,
    dropped: IntCounterVec,
    plis: IntCounter,
    datagrams: IntCounterVec,
    creds: IntCounterVec,
    stun: IntCounterVec,
    ready: IntGauge,
    nvcf_seconds: Histogram,
}

// From a loopback hop to NVCF's own patience of 30 s and a bit.
const SETUP: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 35.0];
// A plugin without I/O takes microseconds.
const PLUGIN: &[f64] = &[1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 1e-2, 1e-1, 1.0];
// From a page that reloads to the longest time that NVCF holds a session.
const AWAY: &[f64] = &[0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
// From a failed sign-in to a working day; the steps of NVCF's own proxy.
const LIFE: &[f64] = &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0];

impl Metrics {
    /// Metrics that start at zero.
    pub(crate) fn new() -> Self {
        Metrics::registered(&Registrar::default())
    }

    fn registered(r: &Registrar) -> Self {
        let legs = |it: IntCounterVec| Leg::BOTH.map(|leg| it.with_label_values(&[leg.name()]));
        let directions = |it: IntCounterVec| {
            ["to_upstream", "to_browser"].map(|direction| it.with_label_values(&[direction]))
        };
        let frames = counters(
            r,
            "streamgate_relay_frames_total",
            "WebSocket frames passed on.",
            &["direction", "kind"],
        );
        let rtt =
            histograms(r, "streamgate_keepalive_rtt_seconds", "From a ping to its pong.", &["leg"], SETUP);
        let metrics = Metrics {
            sessions: gauges(r, "streamgate_sessions", "Sessions by state.", &["state"]),
            session_starts: counters(
                r,
                "streamgate_session_starts_total",
                "WebSocket requests by what became of them.",
                &["result"],
            ),
            session_ends: counters(
                r,
                "streamgate_session_ends_total",
                "Sessions that ended, by reason.",
                &["reason"],
            ),
            session_seconds: histogram(r, "streamgate_session_seconds", "Length of sessions.", LIFE),
            session_setup: histograms(
                r,
                "streamgate_session_setup_seconds",
                "Time of each stage from a WebSocket request to its 101.",
                &["stage"],
                SETUP,
            ),
            parks: counters(
                r,
                "streamgate_session_parks_total",
                "Sessions whose browser was lost and may come back, by how it was lost.",
                &["cause"],
            ),
            parked_seconds: histogram(
                r,
                "streamgate_session_parked_seconds",
                "From a lost browser to its return, or to the end of the session.",
                AWAY,
            ),
            resumes: counters(
                r,
                "streamgate_session_resumes_total",
                "Browsers that wanted to come back into a session, by the way and what became of it.",
                &["kind", "outcome"],
            ),
            resume_seconds: histograms(
                r,
                "streamgate_session_resume_seconds",
                "From the request of a browser that comes back to its 101.",
                &["kind"],
                SETUP,
            ),
            resume_buffered: gauge(
                r,
                "streamgate_session_resume_buffered_bytes",
                "Bytes kept for browsers that are away.",
            ),
            resume_dropped: counter(
                r,
                "streamgate_session_resume_dropped_total",
                "Messages for browsers that are away, dropped because there were too many.",
            ),
            carried: gauge(
                r,
                "streamgate_carried_browsers",
                "Browsers here whose session is in another replica.",
            ),
            directory_up: gauge(
                r,
                "streamgate_directory_up",
                "Whether the directory that replicas share gave its last answer; 0 without one.",
            ),
            directory_requests: counters(
                r,
                "streamgate_directory_requests_total",
                "What the directory that replicas share was asked, by result (`skipped`: it failed a moment before).",
                &["request", "result"],
            ),
            directory_seconds: histograms(
                r,
                "streamgate_directory_seconds",
                "Time of its answers.",
                &["request"],
                SETUP,
            ),
            pings: legs(counters(
                r,
                "streamgate_keepalive_pings_total",
                "Pings sent to keep a leg alive.",
                &["leg"],
            )),
            pongs: legs(counters(
                r,
                "streamgate_keepalive_pongs_total",
                "Pongs that answered them.",
                &["leg"],
            )),
            rtt: Leg::BOTH.map(|leg| rtt.with_label_values(&[leg.name()])),
            lost: legs(counters(
                r,
                "streamgate_keepalive_lost_total",
                "Legs given up because nothing came from them.",
                &["leg"],
            )),
            relay_bytes: directions(counters(
                r,
                "streamgate_relay_bytes_total",
                "Bytes of WebSocket frames passed on.",
                &["direction"],
            )),
            relay_frames: ["to_upstream", "to_browser"].map(|direction| {
                ["data", "control"].map(|kind| frames.with_label_values(&[direction, kind]))
            }),
            requests: counters(
                r,
                "streamgate_requests_total",
                "Requests by route and status.",
                &["route", "status"],
            ),
            rejections: counters(
                r,
                "streamgate_rejections_total",
                "Requests that were not served, by code.",
                &["code"],
            ),
            upstream: histograms(
                r,
                "streamgate_upstream_seconds",
                "Time of each stage of an upstream connection.",
                &["stage"],
                SETUP,
            ),
            plugin_seconds: histograms(
                r,
                "streamgate_plugin_seconds",
                "Time of plugin calls.",
                &["plugin", "phase"],
                PLUGIN,
            ),
            plugin_decisions: counters(
                r,
                "streamgate_plugin_decisions_total",
                "What plugins decided.",
                &["plugin", "phase", "decision"],
            ),
            plugin_errors: counters(
                r,
                "streamgate_plugin_errors_total",
                "Plugin calls that failed, by kind.",
                &["plugin", "phase", "kind"],
            ),
            lua_memory: gauges(r, "streamgate_lua_memory_bytes", "Memory of a worker's Lua VM.", &["worker"]),
            generation: gauge(r, "streamgate_generation", "How often the configuration was loaded."),
            certificate_expiry: gauges(
                r,
                "streamgate_tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of a chain ends, in seconds since the Unix epoch, by the setting that names its file.",
                &["setting"],
            ),
            reloads: counters(
                r,
                "streamgate_reloads_total",
                "Configurations loaded while serving, by result.",
                &["result"],
            ),
            connections: gauge(r, "streamgate_connections", "Browser connections."),
            connections_refused: counters(
                r,
                "streamgate_connections_refused_total",
                "Connections that were not served, by reason: `max_connections` and `files` had no room (closed at once; answered 503), `proxy_protocol` was without its header.",
                &["reason"],
            ),
            tls_failed: counters(
                r,
                "streamgate_tls_handshakes_failed_total",
                "TLS handshakes of browsers that failed: `error` (no version or certificate in common, or what came was no TLS), `left` (the connection ended first) or `timeout` (`listen.head_timeout`).",
                &["reason"],
            ),
            declared: Declared::default(),
            access_lines_dropped: counter(
                r,
                "streamgate_access_lines_dropped_total",
                "Lines of the access log lost because its reader was too slow or gone, or they could not be written.",
            ),
            streaming: Streaming::new(r),
            registry: r.registry.clone(),
        };
        r.register("counter", Ok(log::LINES_DROPPED.clone()));
        r.register_process();
        gauges(r, "streamgate_build_info", "1, with the version as a label.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        for state in ["attached", "parked"] {
            metrics.sessions.with_label_values(&[state]).set(0);
        }
        // A series that begins at 0 lets `increase` see its first event.
        for (counters, labels) in [
            (&metrics.session_ends, &Reason::ALL.map(Reason::name)[..]),
            (&metrics.reloads, &["ok", "failed"]),
            (&metrics.connections_refused, &["max_connections", "files", "proxy_protocol"]),
            (&metrics.tls_failed, &["error", "left", "timeout"]),
            (&metrics.rejections, &Code::ALL.iter().map(Code::as_str).collect::<Vec<_>>()),
        ] {
            labels.iter().for_each(|it| counters.with_label_values(&[*it]).inc_by(0));
        }
        metrics
    }

    /// All metrics in Prometheus' text format.
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn declared(&self) -> &Declared {
        &self.declared
    }

    pub(crate) fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("memory takes every write");
        String::from_utf8(text).expect("the text format is UTF-8")
    }

    pub(crate) fn session_start(&self, result: &str) {
        self.session_starts.with_label_values(&[result]).inc();
    }

    /// Counts sessions that are `attached` or `parked`.
    pub(crate) fn session_state(&self, state: &str, change: i64) {
        self.sessions.with_label_values(&[state]).add(change);
    }

    pub(crate) fn session_park(&self, cause: &str) {
        self.parks.with_label_values(&[cause]).inc();
    }

    pub(crate) fn session_was_parked(&self, length: Duration) {
        self.parked_seconds.observe(length.as_secs_f64());
    }

    pub(crate) fn resume(&self, kind: &str, outcome: &str) {
        self.resumes.with_label_values(&[kind, outcome]).inc();
    }

    pub(crate) fn resume_took(&self, kind: &str, took: Duration) {
        self.resume_seconds.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    pub(crate) fn resume_buffered(&self, change: i64) {
        self.resume_buffered.add(change);
    }

    pub(crate) fn resume_dropped(&self, n_messages: u64) {
        self.resume_dropped.inc_by(n_messages);
    }

    pub(crate) fn carried(&self, change: i64) {
        self.carried.add(change);
    }

    pub(crate) fn directory_up(&self, is_up: bool) {
        self.directory_up.set(i64::from(is_up));
    }

    /// There is a directory, which will be asked these things.
    pub(crate) fn directory_begins(&self, requests: &[&str]) {
        self.directory_up(true);
        for request in requests {
            for result in ["ok", "failed", "skipped"] {
                self.directory_requests.with_label_values(&[*request, result]).inc_by(0);
            }
        }
    }

    pub(crate) fn directory_request(&self, request: &str, result: &str) {
        self.directory_requests.with_label_values(&[request, result]).inc();
    }

    pub(crate) fn directory_took(&self, request: &str, took: Duration) {
        self.directory_seconds.with_label_values(&[request]).observe(took.as_secs_f64());
    }

    pub(crate) fn session_end(&self, reason: &str, length: Duration) {
        self.session_ends.with_label_values(&[reason]).inc();
        self.session_seconds.observe(length.as_secs_f64());
    }

    pub(crate) fn session_setup(&self, stage: &str, took: Duration) {
        self.session_setup.with_label_values(&[stage]).observe(took.as_secs_f64());
    }

    pub(crate) fn ping(&self, leg: Leg) {
        self.pings[leg as usize].inc();
    }

    pub(crate) fn pong(&self, leg: Leg, rtt: Duration) {
        self.pongs[leg as usize].inc();
        self.rtt[leg as usize].observe(rtt.as_secs_f64());
    }

    pub(crate) fn leg_lost(&self, leg: Leg) {
        self.lost[leg as usize].inc();
    }

    /// Counts what came from a leg and was passed on to the other.
    pub(crate) fn relayed(&self, from: Leg, bytes: u64, data_frames: u64, control_frames: u64) {
        self.relay_bytes[from as usize].inc_by(bytes);
        self.relay_frames[from as usize][0].inc_by(data_frames);
        self.relay_frames[from as usize][1].inc_by(control_frames);
    }

    pub(crate) fn rejection(&self, code: &str) {
        self.rejections.with_label_values(&[code]).inc();
    }

    pub(crate) fn upstream(&self, stage: &str, took: Duration) {
        self.upstream.with_label_values(&[stage]).observe(took.as_secs_f64());
    }

    pub(crate) fn lua_memory(&self, worker: usize, bytes: usize) {
        self.lua_memory
            .with_label_values(&[worker.to_string().as_str()])
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// When the certificates of `listen.tls.certificate` end; none when there are none.
    pub(crate) fn certificate_expiry(&self, end: Option<i64>) {
        match end {
            Some(end) => self.certificate_expiry.with_label_values(&["listen.tls.certificate"]).set(end),
            None => self.certificate_expiry.reset(),
        }
    }

    pub(crate) fn generation(&self, generation: i64) {
        self.generation.set(generation);
    }

    pub(crate) fn reload(&self, result: &str) {
        self.reloads.with_label_values(&[result]).inc();
    }

    pub(crate) fn connection(&self, change: i64) {
        self.connections.add(change);
    }

    pub(crate) fn connection_refused(&self, reason: &str) {
        self.connections_refused.with_label_values(&[reason]).inc();
    }

    /// A TLS handshake of a browser failed: `error`, `left` or `timeout`.
    pub(crate) fn tls_failed(&self, reason: &str) {
        self.tls_failed.with_label_values(&[reason]).inc();
    }

    pub(crate) fn access_line_dropped(&self) {
        self.access_lines_dropped.inc();
    }
}

impl Streaming {
    fn new(r: &Registrar) -> Self {
        Streaming {
            sessions: gauges(
                r,
                "streamgate_streaming_sessions",
                "Sessions of the streaming server by state.",
                &["state"],
            ),
            resumes: counter(
                r,
                "streamgate_streaming_resumes_total",
                "Signalling connections that took the place of another one of the same session.",
            ),
            results: counters(
                r,
                "streamgate_streaming_sessions_total",
                "Sessions of the streaming server by result.",
                &["result"],
            ),
            seconds: histogram(
                r,
                "streamgate_streaming_session_duration_seconds",
                "Length of streaming sessions.",
                LIFE,
            ),
            setup: histograms(
                r,
                "streamgate_streaming_session_setup_seconds",
                "From the signalling WebSocket to each step of the media path.",
                &["phase"],
                SETUP,
            ),
            rtp_packets: counter(r, "streamgate_streaming_rtp_packets_sent_total", "RTP packets sent."),
            rtp_bytes: counter(r, "streamgate_streaming_bytes_sent_total", "Bytes of RTP payload sent."),
            dropped: counters(
                r,
                "streamgate_streaming_rtp_dropped_total",
                "RTP packets not sent, by reason.",
                &["reason"],
            ),
            plis: counter(r, "streamgate_streaming_pli_total", "Requests for a keyframe."),
            datagrams: counters(
                r,
                "streamgate_streaming_mux_datagrams_total",
                "Datagrams received on the media port, by kind.",
                &["kind"],
            ),
            creds: counters(
                r,
                "streamgate_streaming_creds_updates_total",
                "STUN credentials posted, by result.",
                &["result"],
            ),
            stun: counters(
                r,
                "streamgate_streaming_stun_binding_total",
                "Bindings asked of the STUN server, by result.",
                &["result"],
            ),
            ready: gauge(
                r,
                "nvcf_worker_service_stream_streaming_app_ready",
                "1 when the streaming server is ready (NVIDIA's name).",
            ),
            nvcf_seconds: histogram(
                r,
                "nvcf_worker_service_stream_session_duration_seconds",
                "Length of streaming sessions (NVIDIA's name).",
                LIFE,
            ),
        }
    }

    pub(crate) fn session(&self, state: &str, change: i64) {
        self.sessions.with_label_values(&[state]).add(change);
    }

    pub(crate) fn resumed(&self) {
        self.resumes.inc();
    }

    /// A session that did not begin.
    pub(crate) fn refused(&self, result: &str) {
        self.results.with_label_values(&[result]).inc();
    }

    pub(crate) fn ended(&self, result: &str, length: Duration) {
        self.results.with_label_values(&[result]).inc();
        self.seconds.observe(length.as_secs_f64());
        self.nvcf_seconds.observe(length.as_secs_f64());
    }

    pub(crate) fn setup(&self, phase: &str, took: Duration) {
        self.setup.with_label_values(&[phase]).observe(took.as_secs_f64());
    }

    pub(crate) fn rtp_sent(&self, packets: u64, bytes: u64) {
        self.rtp_packets.inc_by(packets);
        self.rtp_bytes.inc_by(bytes);
    }

    pub(crate) fn rtp_dropped(&self, reason: &str, packets: u64) {
        self.dropped.with_label_values(&[reason]).inc_by(packets);
    }

    pub(crate) fn pli(&self) {
        self.plis.inc();
    }

    pub(crate) fn datagrams(&self, kind: &str) -> IntCounter {
        self.datagrams.with_label_values(&[kind])
    }

    pub(crate) fn creds(&self, result: &str) {
        self.creds.with_label_values(&[result]).inc();
    }

    pub(crate) fn stun(&self, result: &str) {
        self.stun.with_label_values(&[result]).inc();
    }

    pub(crate) fn ready(&self, is_ready: bool) {
        self.ready.set(i64::from(is_ready));
    }
}

/// Times and counts the plugin calls of one worker.
pub(crate) struct Plugins {
    metrics: Metrics,
    clock: Clock,
    /// Looking a child up by its labels costs more than many a plugin call, so each worker keeps its own.
    known: RefCell<Vec<(String, [Option<PluginMeters>; Phase::ALL.len()])>>,
}

/// Counts the requests of one worker.
pub(crate) struct Requests {
    metrics: Metrics,
    /// As for [`Plugins`].
    known: RefCell<Vec<(Box<str>, u16, IntCounter)>>,
}

/// Most children that a worker keeps of the requests: an upstream may think of many a status.
const MOST_KNOWN: usize = 64;

struct PluginMeters {
    seconds: Histogram,
    continued: IntCounter,
}

impl Plugins {
    pub(crate) fn new(metrics: &Metrics, clock: &Clock) -> Self {
        Plugins { metrics: metrics.clone(), clock: clock.clone(), known: RefCell::default() }
    }
}

impl Requests {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Requests { metrics: metrics.clone(), known: RefCell::default() }
    }

    /// Counts one that was answered.
    pub(crate) fn count(&self, route: &str, status: u16) {
        let mut known = self.known.borrow_mut();
        if let Some((.., counter)) = known.iter().find(|it| it.1 == status && *it.0 == *route) {
            return counter.inc();
        }
        let counter = self.metrics.requests.with_label_values(&[route, status.to_string().as_str()]);
        counter.inc();
        if known.len() < MOST_KNOWN {
            known.push((route.into(), status, counter));
        }
    }
}

impl Watch for Plugins {
    type Started = Instant;

    fn elapsed(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(self.clock.sleep(time))
    }

    fn before(&self) -> Instant {
        self.clock.now()
    }

    fn after(&self, plugin: &str, phase: Phase, started: Instant, outcome: Outcome<'_>) {
        let took = (self.clock.now() - started).as_secs_f64();
        let mut known = self.known.borrow_mut();
        let idx = known.iter().position(|(name, _)| name == plugin).unwrap_or_else(|| {
            known.push((plugin.to_owned(), Default::default()));
            known.len() - 1
        });
        let meters = known[idx].1[phase as usize].get_or_insert_with(|| PluginMeters {
            seconds: self.metrics.plugin_seconds.with_label_values(&[plugin, phase.name()]),
            continued: self.metrics.plugin_decisions.with_label_values(&[
                plugin,
                phase.name(),
                Outcome::Continue.name(),
            ]),
        });
        meters.seconds.observe(took);
        match outcome {
            Outcome::Continue => meters.continued.inc(),
            other => {
                self.metrics.plugin_decisions.with_label_values(&[plugin, phase.name(), other.name()]).inc()
            }
        }
        if let Outcome::Failed(failure) = outcome {
            self.metrics.plugin_errors.with_label_values(&[plugin, phase.name(), failure.kind.name()]).inc();
        }
    }
}

/// Registers metrics and notes what the reference page says about them.
#[derive(Default)]
struct Registrar {
    registry: Registry,
    rows: RefCell<Vec<String>>,
}

impl Registrar {
    fn register<C: Collector + Clone + 'static>(
        &self,
        kind: &str,
        metric: Result<C, prometheus::Error>,
    ) -> C {
        let metric = metric.expect("the name and the labels of a metric are well formed");
        self.registry.register(Box::new(metric.clone())).expect("each metric is registered once");
        metric.desc().into_iter().for_each(|it| self.describe(kind, it));
        metric
    }

    /// What every exporter says of its process, by the names that all dashboards know.
    fn register_process(&self) {
        let process = ProcessCollector::for_self();
        for desc in process.desc() {
            let kind = if desc.fq_name.ends_with("_total") { "counter" } else { "gauge" };
            self.describe(kind, desc);
        }
        self.registry.register(Box::new(process)).expect("there is one process");
    }

    fn describe(&self, kind: &str, desc: &Desc) {
        let labels: Vec<String> = desc.variable_labels.iter().map(|it| format!("`{it}`")).collect();
        let row = format!("| `{}` | {kind} | {} | {} |\n", desc.fq_name, labels.join(", "), desc.help);
        self.rows.borrow_mut().push(row);
    }
}

fn counter(r: &Registrar, name: &str, help: &str) -> IntCounter {
    r.register("counter", IntCounter::new(name, help))
}

fn counters(r: &Registrar, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    r.register("counter", IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(r: &Registrar, name: &str, help: &str) -> IntGauge {
    r.register("gauge", IntGauge::new(name, help))
}

fn gauges(r: &Registrar, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    r.register("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(r: &Registrar, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    r.register("histogram", Histogram::with_opts(opts))
}

fn histograms(r: &Registrar, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    r.register("histogram", HistogramVec::new(opts, labels))
}

/// `docs/reference/metrics.md`.
pub(crate) fn reference() -> String {
    let registrar = Registrar::default();
    Metrics::registered(&registrar);
    let mut rows = registrar.rows.into_inner();
    rows.sort_unstable();
    format!(
        "# Metrics\n\n\
         <!-- Written by `make docs` from src/telemetry/metrics.rs; do not edit. -->\n\n\
         The gateway serves them at `/metrics` of `admin.address`, the streaming server at `/metrics` of its control server, in Prometheus' text format.\n\
         Names and labels are stable.\n\
         No label has the id of a session or a request, so their number does not grow with the traffic.\n\
         Durations are in seconds, sizes in bytes.\n\n\
         | name | type | labels | what it counts |\n|---|---|---|---|\n{}",
        rows.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_there_before_its_first_event() {
        let metrics = Metrics::new();
        let began = metrics.render();
        for series in [
            "streamgate_reloads_total{result=\"failed\"} 0\n",
            "streamgate_connections_refused_total{reason=\"files\"} 0\n",
            "streamgate_session_ends_total{reason=\"upstream_silent\"} 0\n",
            "streamgate_rejections_total{code=\"function.unknown\"} 0\n",
            "streamgate_tls_handshakes_failed_total{reason=\"error\"} 0\n",
        ] {
            assert!(began.contains(series), "{series} is missing in {began}");
        }
        assert!(!began.contains("streamgate_directory_requests_total{"), "there is no directory");
        metrics.directory_begins(&["renew"]);
        let series = "streamgate_directory_requests_total{request=\"renew\",result=\"failed\"} 0\n";
        assert!(metrics.render().contains(series));
    }

    #[test]
    fn the_reference_page_is_fresh() {
        assert_eq!(include_str!("../../docs/reference/metrics.md"), reference(), "run `make docs`");
    }
}
