//! The plugins of a route, asked one after the other in the order of the configuration.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use crate::policy::{Decision, Exchange, LocalResponse, Phase, Phases, Side, Wanted, When};
use crate::rejection::{Code, Rejection};

/// A plugin at work in one worker.
///
/// An implementation keeps nothing of the exchange beyond the call.
pub trait Policy {
    /// The phases in which it wants to be asked.
    fn phases(&self) -> Phases;

    /// Which messages it wants to see in `session_message`: none, unless it says so.
    fn messages(&self) -> Wanted {
        Wanted::default()
    }

    /// Asks it.
    fn call<'a>(&'a self, phase: Phase, exchange: &'a mut Exchange) -> Answer<'a>;
}

/// What a plugin answers, at once or later.
pub enum Answer<'a> {
    /// It is decided.
    Now(Result<Decision, Failure>),
    /// It waits for something, in a phase in which it may.
    Later(Pin<Box<dyn Future<Output = Result<Decision, Failure>> + 'a>>),
}

/// A plugin that did not come to a decision.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong, as a label.
    pub kind: FailureKind,
    /// File, line and traceback, for the log.
    pub detail: String,
}

/// What went wrong in a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// It did what it may not do, or returned what is no decision.
    Contract,
    /// It raised an error.
    Runtime,
    /// It used up its memory.
    Memory,
    /// It used up its time.
    Time,
}

/// What becomes of a request whose plugin failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// It is rejected. A session goes on, but for `session_tick`, whose failure ends it.
    #[default]
    Reject,
    /// The next plugin is asked, and a session goes on.
    Skip,
    /// It is rejected, and a session ends whichever of its phases failed.
    Close,
}

/// A chain that was not run to its end.
#[derive(Debug)]
pub enum Stop {
    /// The request is not served.
    Reject(Rejection),
    /// The request is answered here.
    Respond(Box<LocalResponse>),
}

/// How a call ended, for the metrics.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// It continued.
    Continue,
    /// It rejected the request.
    Reject,
    /// It answered the request.
    Respond,
    /// It failed.
    Failed(&'a Failure),
}

/// Observes the calls of a chain: clocks and counters live outside of this module.
pub trait Watch {
    /// What [`Watch::before`] hands to [`Watch::after`].
    type Started;

    /// A plugin is about to be asked.
    fn before(&self) -> Self::Started;

    /// It has answered.
    fn after(&self, plugin: &str, phase: Phase, started: Self::Started, outcome: Outcome<'_>);

    /// Comes when so much time is over.
    fn elapsed(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + '_>>;
}

/// The plugins of a route.
pub struct Chain {
    steps: Vec<Step>,
    groups: Vec<Group>,
}

/// One plugin of a chain, and how it is asked.
pub struct Step {
    /// The plugin's name.
    pub plugin: String,
    /// What distinguishes two instances of one plugin.
    pub id: String,
    /// What becomes of a request when it fails.
    pub on_error: OnError,
    /// For which requests it is asked.
    pub when: When,
    /// How long it may wait in one phase.
    pub timeout: Duration,
    /// What it decides and changes is logged, and nothing else becomes of it.
    pub dry_run: bool,
    /// Whether it finds out who is asking: one that only counts lets nobody in.
    pub authenticates: bool,
    /// The plugin.
    pub policy: Box<dyn Policy>,
}

/// Alternatives in `authenticate`: a request passes when it passes all steps of one.
#[derive(Debug)]
struct Group {
    alternatives: Vec<Range<usize>>,
}

impl Chain {
    /// A chain without plugins.
    pub fn new() -> Self {
        Chain { steps: Vec::new(), groups: Vec::new() }
    }

    /// Adds a plugin at the end.
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Adds alternatives at the end: in `authenticate` the first one that lets a request in is enough, in the other phases
    /// all their plugins are asked in order.
    pub fn push_any_of(&mut self, alternatives: Vec<Vec<Step>>) {
        let mut ranges = Vec::new();
        for alternative in alternatives {
            let first = self.steps.len();
            self.steps.extend(alternative);
            ranges.push(first..self.steps.len());
        }
        self.groups.push(Group { alternatives: ranges });
    }

    /// Whether any plugin wants to be asked in a phase.
    pub fn has(&self, phase: Phase) -> bool {
        self.steps.iter().any(|it| it.policy.phases().contains(phase))
    }

    /// The largest message of a side that plugins want to see; `None` when none wants to see any.
    pub fn messages(&self, side: Side) -> Option<usize> {
        let wanting = self.steps.iter().filter(|it| it.policy.phases().contains(Phase::SessionMessage));
        wanting.filter_map(|it| it.policy.messages().of(side)).min()
    }

    /// The conditions that a request does not meet, as they were written, to be kept with its session: its headers are gone
    /// by then, and its chain may be another one after a reload.
    pub fn unmet(&self, exchange: &Exchange) -> Vec<String> {
        let mut unmet: Vec<String> = Vec::new();
        for step in self.steps.iter().filter(|it| !it.when.holds_for_request(exchange)) {
            if !unmet.contains(&step.when.written) {
                unmet.push(step.when.written.clone());
            }
        }
        unmet
    }

    /// Asks all plugins of a phase, until one stops the request.
    ///
    /// # Errors
    /// How it is stopped.
    pub async fn run<W: Watch>(&self, phase: Phase, exchange: &mut Exchange, watch: &W) -> Result<(), Stop> {
        let mut idx = 0;
        while idx < self.steps.len() {
            let group = self.groups.iter().find(|it| phase == Phase::Authenticate && it.begins_at(idx));
            match group {
                Some(group) => {
                    self.run_any_of(group, exchange, watch).await?;
                    idx = group.end();
                }
                None => {
                    if self.is_asked(idx, phase, exchange) {
                        self.steps[idx].ask(phase, exchange, watch).await?;
                    }
                    idx += 1;
                }
            }
        }
        Ok(())
    }

    /// Asks all plugins of a phase that may not wait.
    ///
    /// # Errors
    /// How the request is stopped.
    pub fn run_now<W: Watch>(&self, phase: Phase, exchange: &mut Exchange, watch: &W) -> Result<(), Stop> {
        for idx in 0..self.steps.len() {
            if self.is_asked(idx, phase, exchange) {
                self.steps[idx].ask_now(phase, exchange, watch)?;
            }
            if exchange.message.as_ref().is_some_and(|it| it.is_dropped) {
                break; // nobody else has to judge it
            }
        }
        Ok(())
    }

    fn is_asked(&self, idx: usize, phase: Phase, exchange: &Exchange) -> bool {
        let step = &self.steps[idx];
        if !step.policy.phases().contains(phase) {
            return false;
        }
        if let Some(message) = exchange.message.as_ref().filter(|_| phase == Phase::SessionMessage)
            && step.policy.messages().of(message.from).is_none()
        {
            return false;
        }
        let meets_request = match &exchange.unmet {
            Some(unmet) => !unmet.contains(&step.when.written),
            None => step.when.holds_for_request(exchange),
        };
        meets_request && step.when.holds_for_principal(exchange)
    }

    async fn run_any_of<W: Watch>(
        &self,
        group: &Group,
        exchange: &mut Exchange,
        watch: &W,
    ) -> Result<(), Stop> {
        let (principal, function, version, vars) = (
            exchange.principal.clone(),
            exchange.function.clone(),
            exchange.version.clone(),
            exchange.vars.clone(),
        );
        let mut refusal: Option<Stop> = None;
        for alternative in &group.alternatives {
            let (mut is_known, mut result) = (false, Ok(()));
            for idx in alternative.clone() {
                if self.is_asked(idx, Phase::Authenticate, exchange) {
                    // One that only counts, or is on trial, lets nobody in.
                    is_known |= self.steps[idx].authenticates && !self.steps[idx].dry_run;
                    result = self.steps[idx].ask(Phase::Authenticate, exchange, watch).await;
                    if result.is_err() {
                        break;
                    }
                }
            }
            match result {
                Ok(()) if is_known => return Ok(()),
                Ok(()) => {} // nobody of this alternative has found out who is asking
                Err(stop) => {
                    // What a plugin found out before it refused is not known of the next one's principal.
                    exchange.principal.clone_from(&principal);
                    exchange.function.clone_from(&function);
                    exchange.version.clone_from(&version);
                    exchange.vars.clone_from(&vars);
                    refusal = Some(match refusal {
                        None => stop,
                        Some(earlier) => earlier.or(stop),
                    });
                }
            }
        }
        Err(refusal.unwrap_or_else(|| Stop::Reject(Code::AuthMissing.into())))
    }
}

impl Group {
    fn begins_at(&self, idx: usize) -> bool {
        self.alternatives.first().is_some_and(|it| it.start == idx)
    }

    fn end(&self) -> usize {
        self.alternatives.last().map_or(0, |it| it.end)
    }
}

impl Stop {
    /// The one of two refusals that tells the browser most: an answer of a plugin, then what is wrong with the credentials
    /// it sent, then that it sent none. Challenges of both are kept (RFC 9110, 11.6.1).
    fn or(self, other: Stop) -> Stop {
        let rank = |it: &Stop| match it {
            Stop::Respond(_) => 2,
            Stop::Reject(it) if !it.code.as_str().starts_with(NO_CREDENTIALS) => 1,
            Stop::Reject(_) => 0,
        };
        let (mut kept, dropped) = if rank(&other) > rank(&self) { (other, self) } else { (self, other) };
        if let (Stop::Reject(kept), Stop::Reject(dropped)) = (&mut kept, &dropped)
            && kept.code.status() == dropped.code.status()
        {
            for challenge in dropped.headers.get_all(http::header::WWW_AUTHENTICATE) {
                kept.headers.append(http::header::WWW_AUTHENTICATE, challenge.clone());
            }
        }
        kept
    }
}

impl Step {
    /// A step that is always asked, and rejects the request when it fails.
    pub fn new(plugin: &str, policy: Box<dyn Policy>) -> Step {
        Step {
            plugin: plugin.to_owned(),
            id: plugin.to_owned(),
            on_error: OnError::Reject,
            when: When::default(),
            timeout: DEFAULT_TIMEOUT,
            dry_run: false,
            authenticates: policy.phases().contains(Phase::Authenticate),
            policy,
        }
    }

    async fn ask<W: Watch>(&self, phase: Phase, exchange: &mut Exchange, watch: &W) -> Result<(), Stop> {
        let mut copy = self.dry_run.then(|| exchange.clone());
        let asked = copy.as_mut().unwrap_or(&mut *exchange);
        let started = watch.before();
        let answer = match self.policy.call(phase, asked) {
            Answer::Now(answer) => answer,
            Answer::Later(_) if !phase.may_wait() => Err(may_not_wait(phase)),
            Answer::Later(answer) => {
                match futures_util::future::select(answer, watch.elapsed(self.timeout)).await {
                    futures_util::future::Either::Left((answer, _)) => answer,
                    futures_util::future::Either::Right(((), answer)) => {
                        drop(answer); // it is stopped, and gives the exchange back
                        let detail = format!("it was not done after {:?}", self.timeout);
                        Err(Failure { kind: FailureKind::Time, detail })
                    }
                }
            }
        };
        self.settle(phase, exchange, started, answer, watch)
    }

    fn ask_now<W: Watch>(&self, phase: Phase, exchange: &mut Exchange, watch: &W) -> Result<(), Stop> {
        let mut copy = self.dry_run.then(|| exchange.clone());
        let asked = copy.as_mut().unwrap_or(&mut *exchange);
        let started = watch.before();
        let answer = match self.policy.call(phase, asked) {
            Answer::Now(answer) => answer,
            Answer::Later(_) => Err(may_not_wait(phase)),
        };
        self.settle(phase, exchange, started, answer, watch)
    }

    fn settle<W: Watch>(
        &self,
        phase: Phase,
        exchange: &Exchange,
        started: W::Started,
        answer: Result<Decision, Failure>,
        watch: &W,
    ) -> Result<(), Stop> {
        let answer = match answer {
            Ok(Decision::Reject(_)) if !phase.may_reject() => Err(Failure {
                kind: FailureKind::Contract,
                detail: format!("a plugin may not reject a request in {phase}"),
            }),
            Ok(Decision::Respond(_)) if !phase.may_respond() => Err(Failure {
                kind: FailureKind::Contract,
                detail: format!("a plugin may not answer a request in {phase}"),
            }),
            other => other,
        };
        let outcome = match &answer {
            Ok(Decision::Continue) => Outcome::Continue,
            Ok(Decision::Reject(_)) => Outcome::Reject,
            Ok(Decision::Respond(_)) => Outcome::Respond,
            Err(failure) => Outcome::Failed(failure),
        };
        watch.after(&self.plugin, phase, started, outcome);
        if self.dry_run {
            self.note(phase, exchange, &answer);
            return Ok(());
        }
        match answer {
            Ok(Decision::Continue) => Ok(()),
            Ok(Decision::Reject(rejection)) => Err(Stop::Reject(rejection)),
            Ok(Decision::Respond(response)) => Err(Stop::Respond(response)),
            Err(failure) => self.failed(phase, exchange, &failure),
        }
    }

    /// What a plugin on trial would have done.
    fn note(&self, phase: Phase, exchange: &Exchange, answer: &Result<Decision, Failure>) {
        let (decision, detail) = match answer {
            Ok(Decision::Continue) => return,
            Ok(Decision::Reject(it)) => ("reject", it.code.as_str().to_owned()),
            Ok(Decision::Respond(it)) => ("respond", it.status.to_string()),
            Err(it) => (it.kind.name(), it.detail.clone()),
        };
        tracing::info!(
            plugin = %self.plugin, instance = %self.id, phase = phase.name(), request = %exchange.id,
            decision, detail, "A plugin in a dry run would have stopped a request."
        );
    }

    fn failed(&self, phase: Phase, exchange: &Exchange, failure: &Failure) -> Result<(), Stop> {
        tracing::error!(
            plugin = %self.plugin, instance = %self.id, phase = phase.name(), request = %exchange.id,
            kind = failure.kind.name(), detail = %failure.detail, "A plugin failed."
        );
        let is_fatal = match self.on_error {
            OnError::Skip => false,
            OnError::Reject => phase.is_awaited(),
            OnError::Close => true,
        };
        if !is_fatal {
            return Ok(());
        }
        let detail = format!("{} failed in {phase}: {}", self.id, failure.kind.name());
        Err(Stop::Reject(Rejection::because(Code::PluginFailed, detail)))
    }
}

fn may_not_wait(phase: Phase) -> Failure {
    Failure { kind: FailureKind::Contract, detail: format!("a plugin may not wait in {phase}") }
}

/// How the codes of those begin who were shown no credentials, such as `auth.missing_token`.
const NO_CREDENTIALS: &str = "auth.missing_";

/// A service that takes longer is down for those who wait for it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

impl Default for Chain {
    fn default() -> Self {
        Chain::new()
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|it| &it.id)).finish()
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl OnError {
    /// What a configuration calls it.
    pub const fn name(self) -> &'static str {
        match self {
            OnError::Reject => "reject",
            OnError::Skip => "skip",
            OnError::Close => "close",
        }
    }

    /// The one of that name.
    pub fn find(name: &str) -> Option<OnError> {
        [OnError::Reject, OnError::Skip, OnError::Close].into_iter().find(|it| it.name() == name)
    }
}

impl FailureKind {
    /// The `kind` label.
    pub const fn name(self) -> &'static str {
        match self {
            FailureKind::Contract => "contract",
            FailureKind::Runtime => "runtime",
            FailureKind::Memory => "memory",
            FailureKind::Time => "time",
        }
    }
}

impl Outcome<'_> {
    /// The `decision` label.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Continue => "continue",
            Outcome::Reject => "reject",
            Outcome::Respond => "respond",
            Outcome::Failed(_) => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Answers what it is told to, and notes that it was asked.
    struct Scripted(Box<dyn Fn(Phase) -> Result<Decision, Failure>>);

    impl Policy for Scripted {
        fn phases(&self) -> Phases {
            Phase::ALL.into_iter().collect()
        }

        fn call<'a>(&'a self, phase: Phase, _: &'a mut Exchange) -> Answer<'a> {
            Answer::Now((self.0)(phase))
        }
    }

    #[derive(Default)]
    struct Notes(RefCell<Vec<(String, &'static str)>>);

    impl Watch for Notes {
        type Started = ();

        fn before(&self) {}

        fn after(&self, plugin: &str, _: Phase, (): (), outcome: Outcome<'_>) {
            self.0.borrow_mut().push((plugin.to_owned(), outcome.name()));
        }

        fn elapsed(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + '_>> {
            Box::pin(std::future::pending())
        }
    }

    type Script = fn(Phase) -> Result<Decision, Failure>;

    fn chain(steps: Vec<(&str, OnError, Script)>) -> Chain {
        let mut chain = Chain::new();
        for (name, on_error, answer) in steps {
            chain.push(Step { on_error, ..Step::new(name, Box::new(Scripted(Box::new(answer)))) });
        }
        chain
    }

    fn failure() -> Failure {
        Failure { kind: FailureKind::Runtime, detail: "plugin.lua:7: attempt to index a nil value".into() }
    }

    #[test]
    fn plugins_are_asked_in_order_until_one_stops_the_request() {
        let chain = chain(vec![
            ("first", OnError::Reject, |_| Ok(Decision::Continue)),
            ("second", OnError::Reject, |_| Ok(Decision::Reject(Code::AuthMissing.into()))),
            ("third", OnError::Reject, |_| Ok(Decision::Continue)),
        ]);
        let notes = Notes::default();
        let stop =
            chain.run_now(Phase::Authenticate, &mut Exchange::default(), &notes).expect_err("it stops");
        assert!(matches!(stop, Stop::Reject(it) if it.code == Code::AuthMissing));
        assert_eq!(*notes.0.borrow(), [("first".to_owned(), "continue"), ("second".to_owned(), "reject")]);
    }

    #[test]
    fn a_plugin_that_fails_lets_nobody_in() {
        for (phase, on_error) in
            Phase::ALL.into_iter().flat_map(|it| [(it, OnError::Reject), (it, OnError::Close)])
        {
            let chain = chain(vec![("broken", on_error, |_| Err(failure()))]);
            let stop = chain.run_now(phase, &mut Exchange::default(), &Notes::default());
            if on_error == OnError::Reject && !phase.is_awaited() {
                assert!(stop.is_ok(), "{phase}: a session goes on");
                continue;
            }
            let stop = stop.expect_err("it stops");
            let Stop::Reject(rejection) = stop else { panic!("{phase}: not a rejection") };
            assert_eq!(rejection.code, Code::PluginFailed);
            assert!(!rejection.code.message().contains("lua"), "the client is told nothing");
        }
    }

    #[test]
    fn a_plugin_that_may_be_skipped_is_skipped_when_it_fails() {
        let chain = chain(vec![
            ("broken", OnError::Skip, |_| Err(failure())),
            ("next", OnError::Reject, |_| Ok(Decision::Continue)),
        ]);
        let notes = Notes::default();
        chain.run_now(Phase::OnRequest, &mut Exchange::default(), &notes).expect("it continues");
        assert_eq!(*notes.0.borrow(), [("broken".to_owned(), "failed"), ("next".to_owned(), "continue")]);
    }

    #[test]
    fn a_response_cannot_be_stopped() {
        let chain =
            chain(vec![("late", OnError::Reject, |_| Ok(Decision::Reject(Code::AuthMissing.into())))]);
        let stop = chain.run_now(Phase::ResponseHeaders, &mut Exchange::default(), &Notes::default());
        assert!(matches!(stop, Err(Stop::Reject(it)) if it.code == Code::PluginFailed));
    }
}
