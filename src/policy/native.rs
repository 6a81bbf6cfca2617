//! Plugins written in Rust, for programs that embed the gateway.

use std::fmt;
use std::sync::Arc;

use crate::policy::{Policy, Schema, Settings};

/// A plugin written in Rust. A chain names it, gives it settings and asks it like one in Lua.
pub trait Native: Send + Sync {
    /// Its name in a chain: lower-case letters, digits and `-`. It comes before a plugin in Lua of the same name.
    fn name(&self) -> &str;

    /// Its contract: what its settings are checked against, and what the documents say of it.
    fn schema(&self) -> Schema;

    /// Makes it for one worker, and for one step of a chain: on the worker's thread, with a runtime of `tokio` around it.
    ///
    /// # Errors
    /// With a sentence for the operator: then the gateway does not start, or goes on with the configuration it had.
    fn instantiate(&self, settings: &Settings) -> Result<Box<dyn Policy>, String>;
}

/// The plugins in Rust that a program brings along.
#[derive(Clone, Default)]
pub struct Natives(Vec<Arc<dyn Native>>);

impl Natives {
    /// None.
    pub fn new() -> Natives {
        Natives::default()
    }

    /// These and another one; of several with one name the last counts.
    #[must_use]
    pub fn with(mut self, plugin: impl Native + 'static) -> Natives {
        self.0.push(Arc::new(plugin));
        self
    }

    /// The one of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<dyn Native>> {
        self.0.iter().rev().find(|it| it.name() == name)
    }
}

impl fmt::Debug for Natives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|it| it.name())).finish()
    }
}
