//! The phases of a fan-in: browsers come, wait, talk, are lost and come back; each phase is measured by itself.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio::sync::mpsc;
use url::Url;

use crate::bench::BenchError;
use crate::bench::browser::{Browser, Command, OPEN_WITHIN, Target, Trust};
use crate::bench::child::Child;
use crate::bench::process::{Meter, Usage};
use crate::bench::report::{Echo, Idle, Machine, Ramp, Report, Sample, Storm};
use crate::bench::schedule::Schedule;
use crate::bench::tally::{Actions, Failed, Phase, Tally};
use crate::bench::upstream::{Kind, Upstream};
use crate::clock::Clock;
use crate::gateway;

/// What is to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) place: Place,
    pub(crate) upstream: Kind,
    pub(crate) headers: HeaderMap,
    pub(crate) token: Option<String>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) trust: Trust,
    pub(crate) sessions: usize,
    /// Sessions started in a second.
    pub(crate) ramp: f64,
    /// Zero: the phase is left out.
    pub(crate) idle: Duration,
    pub(crate) echo: Duration,
    /// Messages in a second, over all sessions.
    pub(crate) messages: f64,
    /// Bytes of a message.
    pub(crate) size: usize,
    /// Time within which all browsers come back; `None`: they are not lost.
    pub(crate) within: Option<Duration>,
    /// The same in the words of the command line, for the report.
    pub(crate) words: BTreeMap<&'static str, String>,
}

/// Which gateway is measured.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// One of this binary, which is started with this configuration.
    Own { config: Option<PathBuf> },
    /// One that runs. The built-in upstream is served for it, when it was pointed at that.
    There { url: Url, upstream: Option<SocketAddr>, pid: Option<u32> },
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) phase: Phase,
    pub(crate) elapsed: Duration,
    pub(crate) sessions: usize,
    pub(crate) open: usize,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) errors: u64,
}

/// Measures. A `stop` ends it early; the report has what was measured until then.
///
/// # Errors
/// When nothing could be measured.
pub(crate) async fn run(
    plan: Plan,
    clock: Clock,
    stop: impl Future<Output = ()>,
    told: impl Fn(Progress) + Send + 'static,
) -> Result<Report, BenchError> {
    let has_upstream = !matches!(plan.place, Place::There { upstream: None, .. });
    make_room(plan.sessions, has_upstream)?;
    let listen = match &plan.place {
        Place::Own { .. } => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        Place::There { upstream, .. } => *upstream,
    };
    let upstream = match listen {
        Some(listen) => Some(Upstream::start(plan.upstream, listen, plan.sessions, &clock).await?),
        None => None,
    };
    let child = match (&plan.place, &upstream) {
        (Place::Own { config }, Some(upstream)) => {
            Some(Child::start(config.as_deref(), upstream.address(), &clock).await?)
        }
        _ => None,
    };
    let (url, pid, trust) = match (&plan.place, &child) {
        (Place::There { url, pid, .. }, _) => (url.clone(), *pid, plan.trust.clone()),
        (Place::Own { .. }, Some(child)) => {
            let scheme = if child.is_tls { "wss" } else { "ws" };
            let url =
                Url::parse(&format!("{scheme}://{}/sign_in", child.address)).expect("an address makes a URL");
            (url, Some(child.pid), Trust::Anybody)
        }
        (Place::Own { .. }, None) => unreachable!("a gateway was started"),
    };
    let says_hello = upstream.is_some() && plan.upstream == Kind::Signaling;
    let (headers, token) = (&plan.headers, plan.token.as_deref());
    let target = Target::new(&url, headers, token, &plan.subprotocols, &trust, says_hello, plan.size).await?;
    let meter = pid.map(Meter::new).transpose().map_err(BenchError::new)?;

    let tally = Arc::new(Tally::new(plan.sessions));
    let account = Arc::new(Account::new(meter, &clock));
    let sampler =
        tokio::spawn(sample(Arc::clone(&tally), Arc::clone(&account), clock.clone(), told, plan.sessions));
    let mut fan_in = FanIn {
        target: Arc::new(target),
        commands: Vec::with_capacity(plan.sessions),
        is_stopped: Arc::new(AtomicBool::new(false)),
        report: Report {
            streamgate: env!("CARGO_PKG_VERSION"),
            url: url.to_string(),
            sessions: plan.sessions,
            tls: false,
            resumable: None,
            machine: machine(),
            ramp: None,
            idle: None,
            echo: None,
            storm: None,
            notes: Vec::new(),
            options: plan.words.clone(),
            series: Vec::new(),
            is_whole: false,
        },
        plan,
        tally,
        account,
        clock: clock.clone(),
    };
    fan_in.report.tls = fan_in.target.is_tls();
    fan_in.phases(stop).await;
    fan_in.leave().await;
    sampler.abort();
    drop(sampler.await); // it was told to end
    let (tally, account) = (Arc::clone(&fan_in.tally), Arc::clone(&fan_in.account));
    let mut report = fan_in.report;
    report.series = account.series(&tally, &mut report.notes);
    if let Some(child) = child {
        child.end(&clock).await;
    }
    Ok(report)
}

/// One measurement that runs.
struct FanIn {
    plan: Plan,
    target: Arc<Target>,
    tally: Arc<Tally>,
    account: Arc<Account>,
    clock: Clock,
    commands: Vec<mpsc::UnboundedSender<Command>>,
    /// No further action is to be begun.
    is_stopped: Arc<AtomicBool>,
    report: Report,
}

/// What the process under test uses, and all samples of it.
struct Account {
    meter: Mutex<Option<Meter>>,
    first: Usage,
    began: Instant,
    samples: Mutex<Vec<Sample>>,
    clock: Clock,
}

impl FanIn {
    /// Runs the phases one after the other, or until `stop`; the one that is cut short is reported as far as it came.
    async fn phases(&mut self, stop: impl Future<Output = ()>) {
        let is_stopped = Arc::clone(&self.is_stopped);
        let (stopping, mut stopped) = tokio::sync::watch::channel(false);
        let work = async {
            self.ramp(&mut stopped).await;
            self.idle(&mut stopped).await;
            self.echo(&mut stopped).await;
            self.storm(&mut stopped).await;
        };
        let mut work = Box::pin(work);
        let was_stopped = tokio::select! {
            () = &mut work => false,
            () = stop => true,
        };
        if was_stopped {
            is_stopped.store(true, Ordering::Relaxed);
            stopping.send_replace(true);
            work.as_mut().await;
        }
        drop(work);
        if was_stopped {
            self.report.notes.push("It was stopped before its end: later phases are missing".into());
        }
        self.report.is_whole = !was_stopped && self.is_whole();
    }

    fn is_whole(&self) -> bool {
        let sessions = self.plan.sessions as u64;
        let report = &self.report;
        report.ramp.as_ref().is_some_and(|it| it.opened == sessions && it.errors.total() == 0)
            && report.idle.as_ref().is_none_or(|it| it.lost == 0)
            && report.echo.as_ref().is_none_or(|it| it.received == it.sent && it.errors.total() == 0)
            && match &report.storm {
                Some(it) => it.returned == it.lost && it.errors.total() == 0,
                None => self.plan.within.is_none(),
            }
    }

    /// Waits until so many actions have ended, for as long as they may take; an action that has not ended then has timed
    /// out.
    async fn ended(&self, actions: &Actions, wanted: u64, within: Duration, stopped: &mut Stopped) {
        let all = self.clock.timeout(within, actions.ended(wanted));
        tokio::select! {
            _ = all => {}
            () = stop_of(stopped) => {}
        }
    }

    /// Begins actions when they are due, on a thread of its own. Gives how many have begun.
    async fn pace(&self, schedule: Schedule, begin: impl FnMut(u64, Instant) + Send + 'static) -> u64 {
        let (clock, is_stopped) = (self.clock.clone(), Arc::clone(&self.is_stopped));
        let pacer = tokio::task::spawn_blocking(move || schedule.pace(&clock, &is_stopped, begin));
        pacer.await.expect("a pacer does not panic")
    }

    async fn ramp(&mut self, stopped: &mut Stopped) {
        let n = self.plan.sessions;
        let mut browsers = Vec::with_capacity(n);
        for idx in 0..n {
            let (sender, commands) = mpsc::unbounded_channel();
            self.commands.push(sender);
            browsers.push(Browser::new(idx, &self.target, &self.tally, &self.clock, commands));
        }
        let before = self.account.read();
        let schedule = Schedule { start: self.clock.now(), per_second: self.plan.ramp, n: n as u64 };
        let runtime = tokio::runtime::Handle::current();
        let mut browsers = browsers.into_iter();
        let begin = move |_, due| {
            if let Some(browser) = browsers.next() {
                runtime.spawn(browser.live(due));
            }
        };
        let begun = self.pace(schedule, begin).await;
        let actions = &self.tally.ramp;
        self.ended(actions, begun, OPEN_WITHIN + GRACE, stopped).await;
        let (opened, failed) = counts(actions);
        let took = actions.last().map(|it| it - schedule.start);
        self.report.ramp = Some(Ramp {
            wanted_per_second: self.plan.ramp,
            achieved_per_second: took.and_then(|it| per_second(opened, it)),
            opened,
            failed,
            latency: actions.latencies.summary(),
            start_lag: actions.lag.summary(),
            cpu_us_per_session: self.account.cpu_per(before, opened),
            errors: actions.errors(),
        });
        self.report.resumable = (opened > 0).then(|| self.tally.cookies.load(Ordering::Relaxed) > 0);
    }

    async fn idle(&mut self, stopped: &mut Stopped) {
        let open = self.tally.open.load(Ordering::Relaxed);
        if self.plan.idle.is_zero() || open == 0 || *stopped.borrow() {
            return;
        }
        self.tally.begin(Phase::Idle);
        let (before, began) = (self.account.read(), self.clock.now());
        let (pings, lost) = (load(&self.tally.pings), load(&self.tally.lost));
        tokio::select! {
            () = self.clock.sleep(self.plan.idle) => {}
            () = stop_of(stopped) => {}
        }
        let (after, took) = (self.account.read(), self.clock.now() - began);
        let open = self.tally.open.load(Ordering::Relaxed) as u64;
        let pss = after.pss.zip(self.account.first.pss).filter(|_| open > 0);
        let cpu = after.cpu.zip(before.cpu).map(|(after, before)| after.saturating_sub(before));
        self.report.idle = Some(Idle {
            seconds: round(took.as_secs_f64(), 1),
            pss_bytes_per_session: pss.map(|(after, before)| after.saturating_sub(before) / open),
            cpu_percent_of_core: cpu.map(|it| round(it.as_secs_f64() / took.as_secs_f64() * 100.0, 2)),
            pings: load(&self.tally.pings) - pings,
            lost: load(&self.tally.lost) - lost,
            errors: self.tally.idle.errors(),
        });
    }

    async fn echo(&mut self, stopped: &mut Stopped) {
        if self.plan.echo.is_zero() || *stopped.borrow() {
            return;
        }
        if self.plan.upstream == Kind::Signaling {
            let note = "Signalling has no message that is answered at once, so no echoes were measured";
            self.report.notes.push(note.into());
            return;
        }
        let open = self.tally.those_open();
        if open.is_empty() {
            return;
        }
        self.tally.begin(Phase::Echo);
        let before = self.account.read();
        let n = (self.plan.messages * self.plan.echo.as_secs_f64()).round() as u64;
        let schedule = Schedule { start: self.clock.now(), per_second: self.plan.messages, n };
        let commands = self.commands.clone();
        let begin = move |number: u64, due| {
            let idx = open[(number % open.len() as u64) as usize];
            drop(commands[idx].send(Command::Send { number, due })); // a task lives as long as its sender
        };
        let begun = self.pace(schedule, begin).await;
        let actions = &self.tally.echo;
        self.ended(actions, begun, ANSWER_WITHIN, stopped).await;
        let (received, _) = counts(actions);
        let missing = begun - actions.n_ended().min(begun);
        if missing > 0 {
            actions.note(Failed::Timeout, missing);
        }
        let took = actions.last().map(|it| it - schedule.start);
        self.report.echo = Some(Echo {
            wanted_per_second: self.plan.messages,
            achieved_per_second: took.and_then(|it| per_second(received, it)),
            sent: begun,
            received,
            late: load(&self.tally.late),
            latency: actions.latencies.summary(),
            send_lag: actions.lag.summary(),
            cpu_us_per_message: self.account.cpu_per(before, received),
            errors: actions.errors(),
        });
    }

    async fn storm(&mut self, stopped: &mut Stopped) {
        let Some(within) = self.plan.within else { return };
        if *stopped.borrow() {
            return;
        }
        let knows_itself = self.learn(stopped).await;
        let open = self.tally.those_open();
        if open.is_empty() || *stopped.borrow() {
            return;
        }
        self.tally.begin(Phase::Storm);
        let before = self.account.read();
        let start = self.clock.now();
        for idx in &open {
            drop(self.commands[*idx].send(Command::Lose)); // a task lives as long as its sender
        }
        let n = open.len() as u64;
        let schedule = Schedule { start, per_second: n as f64 / within.as_secs_f64(), n };
        let commands = self.commands.clone();
        let begin = move |number, due| {
            drop(commands[open[number as usize]].send(Command::Return { due })); // the same
        };
        let begun = self.pace(schedule, begin).await;
        let (actions, resumed) = (&self.tally.storm, &self.tally.resume);
        self.ended(actions, begun, OPEN_WITHIN + GRACE, stopped).await;
        let cpu = self.account.cpu_per(before, counts(actions).0);
        self.ended(resumed, begun, ANSWER_WITHIN, stopped).await;
        let (returned, failed) = counts(actions);
        self.report.storm = Some(Storm {
            within_seconds: within.as_secs_f64(),
            lost: n,
            returned,
            resumed: knows_itself.then(|| counts(resumed).0),
            failed,
            latency: actions.latencies.summary(),
            start_lag: actions.lag.summary(),
            cpu_us_per_session: cpu,
            errors: actions.errors(),
        });
    }

    /// Lets each browser learn which upstream connection it has. Gives whether the upstream tells.
    async fn learn(&self, stopped: &mut Stopped) -> bool {
        let has_upstream = !matches!(self.plan.place, Place::There { upstream: None, .. });
        match self.plan.upstream {
            Kind::Signaling => has_upstream, // its `hello` has told
            // One that is not ours and sends back what it gets may be ours on another machine; others are not asked.
            Kind::Echo if !has_upstream && self.report.echo.as_ref().is_none_or(|it| it.received == 0) => {
                false
            }
            Kind::Echo => {
                self.tally.begin(Phase::Ask);
                let open = self.tally.those_open();
                let n = open.len() as u64;
                let schedule = Schedule { start: self.clock.now(), per_second: self.plan.ramp, n };
                let commands = self.commands.clone();
                let begin = move |number, _| {
                    drop(commands[open[number as usize]].send(Command::Ask)); // a task lives as long as its sender
                };
                let begun = self.pace(schedule, begin).await;
                self.ended(&self.tally.ask, begun, ANSWER_WITHIN, stopped).await;
                counts(&self.tally.ask).0 > 0
            }
        }
    }

    /// All browsers leave politely, so that a gateway that goes on does not keep their sessions.
    async fn leave(&mut self) {
        self.tally.begin(Phase::End);
        for commands in self.commands.drain(..) {
            drop(commands.send(Command::Close)); // one that never began has no task
        }
        let left = async {
            while self.tally.open.load(Ordering::Relaxed) > 0 {
                self.tally.all_gone.notified().await;
            }
        };
        self.clock.timeout(LEAVE_WITHIN, left).await;
    }
}

type Stopped = tokio::sync::watch::Receiver<bool>;

async fn stop_of(stopped: &mut Stopped) {
    if stopped.wait_for(|it| *it).await.is_err() {
        std::future::pending::<()>().await; // nobody can stop it any more
    }
}

impl Account {
    fn new(mut meter: Option<Meter>, clock: &Clock) -> Self {
        let first = meter.as_mut().map(Meter::read).unwrap_or_default();
        Account {
            meter: Mutex::new(meter),
            first,
            began: clock.now(),
            samples: Mutex::default(),
            clock: clock.clone(),
        }
    }

    fn read(&self) -> Usage {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.as_mut().map(Meter::read).unwrap_or_default()
    }

    /// CPU time since then for each of `n`, in microseconds.
    fn cpu_per(&self, before: Usage, n: u64) -> Option<f64> {
        let used = self.read().cpu?.saturating_sub(before.cpu?);
        (n > 0).then(|| round(used.as_secs_f64() * 1e6 / n as f64, 1))
    }

    fn sample(&self, tally: &Tally) {
        let usage = self.read();
        let since = usage.cpu.zip(self.first.cpu).map(|(now, first)| now.saturating_sub(first));
        let sample = Sample {
            at_ms: millis(self.clock.now() - self.began),
            phase: tally.phase().name(),
            open: tally.open.load(Ordering::Relaxed),
            cpu_us: since.map(|it| u64::try_from(it.as_micros()).unwrap_or(u64::MAX)),
            pss_bytes: usage.pss,
            sent: load(&tally.sent),
            received: load(&tally.received),
            errors: tally.n_errors(),
        };
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() < SAMPLES {
            samples.push(sample);
        }
    }

    /// All samples, with a last one; and what must be known about the figures.
    fn series(&self, tally: &Tally, notes: &mut Vec<String>) -> Vec<Sample> {
        self.sample(tally);
        let samples = std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner));
        let is_measured = self.meter.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !is_measured {
            notes.push("No process was named, so memory and CPU are not known".into());
        } else if samples.last().is_none_or(|it| it.cpu_us.is_none()) {
            notes.push("The process under test has ended: its figures are missing from then on".into());
        } else if samples.last().is_none_or(|it| it.pss_bytes.is_none()) {
            notes.push("The memory of the process under test may not be read by this user".into());
        }
        samples
    }
}

/// Looks at all counters each 250 ms, and tells.
async fn sample(
    tally: Arc<Tally>,
    account: Arc<Account>,
    clock: Clock,
    told: impl Fn(Progress) + Send + 'static,
    sessions: usize,
) {
    let mut next = clock.now();
    loop {
        let (tallied, accounted) = (Arc::clone(&tally), Arc::clone(&account));
        // Reading the account of a large process takes some milliseconds, which no browser should wait for.
        drop(tokio::task::spawn_blocking(move || accounted.sample(&tallied)).await);
        told(Progress {
            phase: tally.phase(),
            elapsed: clock.now() - account.began,
            sessions,
            open: tally.open.load(Ordering::Relaxed),
            sent: load(&tally.sent),
            received: load(&tally.received),
            errors: tally.n_errors(),
        });
        next += EVERY;
        clock.sleep_until(next).await;
    }
}

/// Lets this process, and what it starts, open as many files as all browsers need.
fn make_room(sessions: usize, has_upstream: bool) -> Result<(), BenchError> {
    let wanted = (if has_upstream { sessions * 2 } else { sessions } + 64) as u64;
    match gateway::raise_limit() {
        Some(most) if most < wanted => Err(BenchError::new(format!(
            "{sessions} sessions need {wanted} open files and {most} are allowed; raise `ulimit -n`, or measure with fewer sessions"
        ))),
        _ => Ok(()),
    }
}

fn machine() -> Machine {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|it| it.trim().to_owned());
    Machine { cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get), kernel }
}

fn counts(actions: &Actions) -> (u64, u64) {
    (load(&actions.succeeded), load(&actions.failed))
}

fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn per_second(n: u64, took: Duration) -> Option<f64> {
    (n > 0 && !took.is_zero()).then(|| round(n as f64 / took.as_secs_f64(), 1))
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// How often the counters are looked at.
const EVERY: Duration = Duration::from_millis(250);
/// Samples that are kept: a day and more.
const SAMPLES: usize = 500_000;
/// What a time limit of one action may be exceeded by until all of them have ended.
const GRACE: Duration = Duration::from_secs(2);
/// Time for an answer of the upstream.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Time until all browsers have left.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
