//! Measures what the phases of a plugin cost, beside a plugin that does nothing.
//!
//! What is measured is CPU time of the thread, so other processes and waiting do not count. There is no network, the store
//! is in memory and empty at the beginning, and the time stands still: what a plugin would wait for, it has or is refused
//! at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};

use crate::allocations;
use crate::clock::Clock;
use crate::config::{self, Place, Problem, Problems};
use crate::lua::budget::Watchdog;
use crate::lua::bundle::{Bundle, File, Finder};
use crate::lua::fault::describe;
use crate::lua::fetch::{Reason, Request, Response};
use crate::lua::keys::Keys;
use crate::lua::kit::{Kit, Logged, Web};
use crate::lua::loader::{Plugin, located, plan};
use crate::lua::vm::{Instance, Vm};
use crate::policy::{
    Answer, Decision, Exchange, Failure, Message, Phase, Policy as _, References, ResponseHead, SessionFacts,
    Side, Uncounted,
};
use crate::store::Store;

/// What is measured.
pub(crate) struct Subject<'a> {
    /// A plugin's name, to be found in these folders or built in.
    pub(crate) name: &'a str,
    pub(crate) paths: &'a [PathBuf],
    /// Its settings as written.
    pub(crate) settings: config::Table,
    pub(crate) from: &'a dyn References,
    /// The request that it is asked about.
    pub(crate) request: Exchange,
    /// How long all of it may take.
    pub(crate) time: Duration,
}

/// What one phase costs.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) phase: Phase,
    /// CPU time of a call.
    pub(crate) call: Duration,
    /// That of a plugin which does nothing.
    pub(crate) empty: Duration,
    /// What a call allocates in the VM.
    pub(crate) bytes: usize,
    /// How often a call allocates, in the VM or outside of it.
    pub(crate) allocations: u64,
    /// How many calls ended in which way, the most frequent way first.
    pub(crate) outcomes: Vec<(String, usize)>,
}

/// A plugin in a VM of its own.
struct Runner {
    vm: Rc<Vm>,
    instance: Rc<Instance>,
    logged: Logged,
    runtime: Rc<tokio::runtime::Runtime>,
}

/// Calls of one batch, whose requests are there before it begins and go after it.
const MOST_CALLS: usize = 1024;

/// CPU time that a batch is to take: long beside a look at the clock.
const BATCH: Duration = Duration::from_millis(1);

/// Batches that are measured even when there is no time for them.
const FEWEST_BATCHES: usize = 3;

/// What a batch may wait; a plugin that waits for longer waits for what does not come.
const PATIENCE: Duration = Duration::from_secs(2);

/// Memory of the VM.
const MEMORY: usize = 64 << 20;

/// CPU time of one call.
const CALL: Duration = Duration::from_millis(500);

/// Values in the store.
const STORE_SIZE: usize = 10_000;

/// Calls for which the collector stands still.
const COUNTED_CALLS: usize = 32;

/// Runs all phases of a plugin.
pub(crate) fn run(subject: Subject<'_>) -> Result<Vec<Measured>, Problems> {
    let watchdog = Watchdog::new();
    let place = Place::Flag("--settings".into());
    let finder = Finder { paths: subject.paths.to_vec() };
    let bundle = match Path::new(subject.name).join("plugin.lua").is_file() {
        true => Bundle::of_folder(Path::new(subject.name)),
        false => finder.find(subject.name, &Place::Nowhere),
    };
    let plugin = Arc::new(Plugin::load(bundle?, &watchdog)?);
    let phases: Vec<Phase> = plugin.schema.phases.iter().filter(|it| *it != Phase::Init).collect();
    let step = config::Step {
        id: plugin.bundle.name.clone(),
        plugin: plugin.bundle.name.clone(),
        settings: subject.settings.iter().cloned().collect(),
        alternative: None,
        place: place.clone(),
    };
    let empty = Arc::new(Plugin::load(does_nothing(&phases), &watchdog)?);
    let of_empty = config::Step { plugin: empty.bundle.name.clone(), settings: Vec::new(), ..step.clone() };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = Rc::new(runtime.map_err(|it| Problem::new(Place::Nowhere, "bench", it.to_string()))?);
    let runner = Runner::new(&plugin, &step, subject.from, &watchdog, &runtime)?;
    let empty = Runner::new(&empty, &of_empty, subject.from, &watchdog, &runtime)?;
    let failed = |phase: Phase, failure: Failure| {
        Problem::new(place.clone(), format!("{} in {phase}", plugin.bundle.name), failure.detail)
    };
    runtime.block_on(runner.instance.init()).map_err(|it| failed(Phase::Init, it))?;

    let share = subject.time / u32::try_from(2 * phases.len().max(1)).unwrap_or(u32::MAX);
    let mut exchange = subject.request;
    let mut measured = Vec::new();
    for phase in phases {
        approach(phase, &mut exchange);
        let (empty, ..) = empty.measure(phase, &exchange, share).map_err(|it| failed(phase, it))?;
        let (call, (bytes, allocations), outcomes) =
            runner.measure(phase, &exchange, share).map_err(|it| failed(phase, it))?;
        measured.push(Measured { phase, call, empty, bytes, allocations, outcomes });
        // What it has set is there in the phases that follow.
        drop(runner.batch(phase, std::slice::from_mut(&mut exchange)));
    }
    Ok(measured)
}

impl Runner {
    fn new(
        plugin: &Arc<Plugin>,
        step: &config::Step,
        from: &dyn References,
        watchdog: &Watchdog,
        runtime: &Rc<tokio::runtime::Runtime>,
    ) -> Result<Runner, Problems> {
        let problem = |it: String| Problem::new(step.place.clone(), step.plugin.clone(), it);
        let clock = Clock::paused();
        let keys = Arc::new(Keys::new(clock));
        let logged = Logged::default();
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact in a double")]
        let now = Clock::system().unix() as f64;
        let web = |_: &Request| -> Result<Response, Reason> {
            Err(Reason::Unreachable("a benchmark has no network".into()))
        };
        let kit = Kit::of_spec(
            watchdog.budget(),
            Rc::new(Cell::new(now)),
            Arc::new(Store::in_memory(STORE_SIZE)),
            keys,
            Web::Spec(Rc::new(web)),
            Rc::clone(&logged),
            Arc::new(Uncounted),
        );
        let vm = Vm::new(MEMORY, CALL, kit).map_err(|it| problem(describe(&it).detail))?;
        let planned = plan(plugin, step, from, PATIENCE)?;
        let instance = planned.instance(&vm).map_err(|it| located(&step.place, &step.plugin, it))?;
        Ok(Runner { vm, instance, logged, runtime: Rc::clone(runtime) })
    }

    /// CPU time of a call, bytes and number of its allocations, and how the calls ended.
    #[allow(clippy::type_complexity)] // the figures of one measurement
    fn measure(
        &self,
        phase: Phase,
        exchange: &Exchange,
        share: Duration,
    ) -> Result<(Duration, (usize, u64), Vec<(String, usize)>), Failure> {
        let clock = Clock::system();
        let until = clock.now() + share;
        let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
        let mut times = Vec::new();
        let mut n_calls = 1;
        loop {
            let mut requests = vec![exchange.clone(); n_calls];
            let (time, answers) = self.batch(phase, &mut requests)?;
            drop(requests);
            let call = time / u32::try_from(n_calls).unwrap_or(u32::MAX);
            for answer in answers {
                *outcomes.entry(outcome(answer)?).or_default() += 1;
            }
            let fit = BATCH.as_nanos() / call.as_nanos().max(1);
            let next = usize::try_from(fit).unwrap_or(MOST_CALLS).clamp(1, MOST_CALLS);
            if next <= n_calls * 2 {
                times.push(call); // the batches before were small ones, to find the size
            }
            n_calls = next.min(n_calls * 4);
            if times.len() >= FEWEST_BATCHES && clock.now() >= until {
                break;
            }
        }
        times.sort_unstable();
        let call = times[times.len() / 2];

        let mut requests = vec![exchange.clone(); COUNTED_CALLS];
        self.vm.lua.gc_stop();
        let before = self.vm.memory();
        let (counted, allocations) = allocations::count(|| self.batch(phase, &mut requests));
        let bytes = self.vm.memory().saturating_sub(before) / COUNTED_CALLS;
        self.vm.lua.gc_restart();
        counted?;
        let mut outcomes: Vec<(String, usize)> = outcomes.into_iter().collect();
        outcomes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        Ok((call, (bytes, allocations / COUNTED_CALLS as u64), outcomes))
    }

    /// Asks the plugin about each request.
    #[allow(clippy::type_complexity)] // the time, and an answer for each request
    fn batch(
        &self,
        phase: Phase,
        requests: &mut [Exchange],
    ) -> Result<(Duration, Vec<Result<Decision, Failure>>), Failure> {
        let mut answers = Vec::with_capacity(requests.len());
        let asked = async {
            let began = cpu_time();
            for request in requests {
                let answer = match self.instance.call(phase, request) {
                    Answer::Now(answer) => answer,
                    Answer::Later(answer) => answer.await,
                };
                answers.push(answer);
            }
            cpu_time().saturating_sub(began)
        };
        let time = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await });
        self.logged.borrow_mut().clear();
        match time {
            Ok(time) => Ok((time, answers)),
            Err(_) => Err(Failure {
                kind: crate::policy::FailureKind::Time,
                detail: "it waits for something that does not come in a benchmark".into(),
            }),
        }
    }
}

/// How a call ended, in a word; a plugin that fails is not worth measuring.
fn outcome(answer: Result<Decision, Failure>) -> Result<String, Failure> {
    Ok(match answer? {
        Decision::Continue => "continue".into(),
        Decision::Reject(it) => format!("reject {}", it.code.as_str()),
        Decision::Respond(it) => format!("respond {}", it.status.as_u16()),
    })
}

/// What the gateway has done before a phase.
fn approach(phase: Phase, exchange: &mut Exchange) {
    match phase {
        Phase::UpstreamRequest => exchange.begin_upstream(),
        Phase::ResponseHeaders => {
            let headers = [("content-type", "application/json"), ("content-length", "2")];
            let headers: HeaderMap = headers
                .into_iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            exchange.response = ResponseHead { status: StatusCode::OK, headers };
        }
        it if it.is_of_session() => {
            exchange.headers = HeaderMap::new();
            exchange.function.get_or_insert_with(|| "00000000-0000-4000-8000-000000000000".into());
            exchange.session = SessionFacts {
                id: Some("bench".into()),
                age: Duration::from_secs(60),
                cause: "",
                received: 4096,
                sent: 65_536,
            };
            let message = || Message {
                from: Side::Browser,
                is_text: true,
                payload: r#"{"type":"ping","sent":1234567890.125}"#.into(),
                is_dropped: false,
            };
            exchange.message = (phase == Phase::SessionMessage).then(message);
        }
        _ => {}
    }
}

/// A plugin with empty functions.
fn does_nothing(phases: &[Phase]) -> Bundle {
    let functions: Vec<String> = phases.iter().map(|it| format!("{it} = function() end")).collect();
    let names: Vec<String> = phases.iter().map(|it| format!("{:?}", it.name())).collect();
    let messages = match phases.contains(&Phase::SessionMessage) {
        true => ", messages = { from = \"both\", max = \"64KiB\" }",
        false => "",
    };
    let file = |name: &str, text: String| (name.to_owned(), File { path: name.into(), text });
    let files = [
        file("plugin.lua", format!("return {{ {} }}", functions.join(", "))),
        file(
            "schema.lua",
            format!(
                "return {{ summary = \"Does nothing.\", phases = {{ {} }}{messages} }}",
                names.join(", ")
            ),
        ),
    ];
    Bundle { name: "nothing".into(), files: files.into_iter().collect(), is_built_in: true }
}

/// CPU time of this thread so far. It says nothing of when it is, so no clock needs to give it.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
