//! Stands in a chain for a plugin that could not be loaded: whoever would have been asked about is refused.

use crate::policy::{Answer, Decision, Exchange, OnError, Phase, Phases, Policy, Schema};
use crate::rejection::{Code, Rejection};

/// A plugin that could not be loaded, by its name.
pub(super) struct Broken(pub(super) String);

const PHASES: Phases = Phases::of(&[Phase::OnRequest]);

/// What is known of a plugin whose own contract could not be read.
pub(super) fn schema() -> Schema {
    Schema {
        summary: "Could not be loaded.".into(),
        phases: PHASES,
        // Nobody comes in, so nobody comes in without authentication.
        authenticates: true,
        on_error: OnError::Reject,
        ..Schema::default()
    }
}

impl Policy for Broken {
    fn phases(&self) -> Phases {
        PHASES
    }

    fn call<'a>(&'a self, _: Phase, _: &'a mut Exchange) -> Answer<'a> {
        let detail = format!("the plugin {} could not be loaded", self.0);
        Answer::Now(Ok(Decision::Reject(Rejection::because(Code::PluginFailed, detail))))
    }
}
