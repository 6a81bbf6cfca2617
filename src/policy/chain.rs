//! The plugins of a route, asked one after the other in the order of the configuration.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use crate::policy::{Decision, Exchange, LocalResponse, Phase, Phases};
use crate::rejection::{Code, Rejection};

/// A plugin at work in one worker.
///
/// An implementation keeps nothing of the exchange beyond the call.
pub trait Policy {
    /// The phases in which it wants to be asked.
    fn phases(&self) -> Phases;

    /// Asks it.
    fn call<'a>(&'a self, phase: Phase, exchange: &'a mut Exchange) -> Answer<'a>;
}

/// What a plugin answers, at once or later.
pub enum Answer<'a> {
    /// It is decided.
    Now(Result<Decision, Failure>),
    /// It waits for something. Not allowed in `response_headers`, `session_tick` and `log`.
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
}

/// What becomes of a request whose plugin failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is rejected.
    Reject,
    /// The next plugin is asked.
    Skip,
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
}

/// The plugins of a route.
pub struct Chain {
    steps: Vec<Step>,
}

struct Step {
    plugin: String,
    id: String,
    on_error: OnError,
    phases: Phases,
    policy: Box<dyn Policy>,
}

impl Chain {
    /// A chain without plugins.
    pub fn new() -> Self {
        Chain { steps: Vec::new() }
    }

    /// Adds a plugin at the end. `plugin` is its name, `id` tells two instances apart.
    pub fn push(&mut self, plugin: &str, id: &str, on_error: OnError, policy: Box<dyn Policy>) {
        let phases = policy.phases();
        self.steps.push(Step { plugin: plugin.to_owned(), id: id.to_owned(), on_error, phases, policy });
    }

    /// Whether any plugin wants to be asked in a phase.
    pub fn has(&self, phase: Phase) -> bool {
        self.steps.iter().any(|it| it.phases.contains(phase))
    }

    /// Asks all plugins of a phase, until one stops the request.
    pub async fn run<W: Watch>(&self, phase: Phase, exchange: &mut Exchange, watch: &W) -> Result<(), Stop> {
        for step in self.steps.iter().filter(|it| it.phases.contains(phase)) {
            let started = watch.before();
            let answer = match step.policy.call(phase, exchange) {
                Answer::Now(answer) => answer,
                Answer::Later(answer) => answer.await,
            };
            step.settle(phase, exchange, started, answer, watch)?;
        }
        Ok(())
    }

    /// Asks all plugins of a phase that may not wait.
    pub fn run_now<W: Watch>(&self, phase: Phase, exchange: &mut Exchange, watch: &W) -> Result<(), Stop> {
        for step in self.steps.iter().filter(|it| it.phases.contains(phase)) {
            let started = watch.before();
            let answer = match step.policy.call(phase, exchange) {
                Answer::Now(answer) => answer,
                Answer::Later(_) => Err(Failure {
                    kind: FailureKind::Contract,
                    detail: format!("a plugin may not wait in {phase}"),
                }),
            };
            step.settle(phase, exchange, started, answer, watch)?;
        }
        Ok(())
    }
}

impl Step {
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
        let (outcome, result) = match &answer {
            Ok(Decision::Continue) => (Outcome::Continue, Ok(())),
            Ok(Decision::Reject(_)) => (Outcome::Reject, Ok(())),
            Ok(Decision::Respond(_)) => (Outcome::Respond, Ok(())),
            Err(failure) => (Outcome::Failed(failure), self.failed(phase, exchange, failure)),
        };
        watch.after(&self.plugin, phase, started, outcome);
        match answer {
            Ok(Decision::Reject(rejection)) => Err(Stop::Reject(rejection)),
            Ok(Decision::Respond(response)) => Err(Stop::Respond(response)),
            Ok(Decision::Continue) | Err(_) => result,
        }
    }

    fn failed(&self, phase: Phase, exchange: &Exchange, failure: &Failure) -> Result<(), Stop> {
        tracing::error!(
            plugin = %self.plugin, instance = %self.id, phase = phase.name(), request = %exchange.id,
            kind = failure.kind.name(), detail = %failure.detail, "A plugin failed."
        );
        match self.on_error {
            OnError::Skip => Ok(()),
            OnError::Reject => {
                let detail = format!("{} failed in {phase}: {}", self.id, failure.kind.name());
                Err(Stop::Reject(Rejection::because(Code::PluginFailed, detail)))
            }
        }
    }
}

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

impl FailureKind {
    /// The `kind` label.
    pub const fn name(self) -> &'static str {
        match self {
            FailureKind::Contract => "contract",
            FailureKind::Runtime => "runtime",
            FailureKind::Memory => "memory",
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
    }

    type Script = fn(Phase) -> Result<Decision, Failure>;

    fn chain(steps: Vec<(&str, OnError, Script)>) -> Chain {
        let mut chain = Chain::new();
        for (name, on_error, answer) in steps {
            chain.push(name, name, on_error, Box::new(Scripted(Box::new(answer))));
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
        let chain = chain(vec![("broken", OnError::Reject, |_| Err(failure()))]);
        for phase in Phase::ALL {
            let stop =
                chain.run_now(phase, &mut Exchange::default(), &Notes::default()).expect_err("it stops");
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
