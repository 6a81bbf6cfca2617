//! Stands in a chain for a plugin that could not be loaded: whoever would have been asked about is refused.

use std::sync::Arc;

use crate::policy::{Answer, Decision, Exchange, Native, OnError, Phase, Phases, Policy, Schema, Settings};
use crate::rejection::{Code, Rejection};

/// A plugin that could not be loaded.
pub(super) struct Broken {
    name: String,
}

struct Refusing(String);

const PHASES: Phases = Phases::of(&[Phase::OnRequest]);

impl Broken {
    pub(super) fn native(name: &str) -> Arc<dyn Native> {
        Arc::new(Broken { name: name.to_owned() })
    }

    /// What is asked instead of it.
    pub(super) fn policy(name: &str) -> Box<dyn Policy> {
        Box::new(Refusing(name.to_owned()))
    }
}

impl Native for Broken {
    fn name(&self) -> &str {
        &self.name
    }

    fn schema(&self) -> Schema {
        Schema {
            summary: "Could not be loaded.".into(),
            phases: PHASES,
            // Nobody comes in, so nobody comes in without authentication.
            authenticates: true,
            on_error: OnError::Reject,
            ..Schema::default()
        }
    }

    fn instantiate(&self, _: &Settings) -> Result<Box<dyn Policy>, String> {
        Ok(Broken::policy(&self.name))
    }
}

impl Policy for Refusing {
    fn phases(&self) -> Phases {
        PHASES
    }

    fn call<'a>(&'a self, _: Phase, _: &'a mut Exchange) -> Answer<'a> {
        let detail = format!("the plugin {} could not be loaded", self.0);
        Answer::Now(Ok(Decision::Reject(Rejection::because(Code::PluginFailed, detail))))
    }
}
