//! Measures a gateway from outside: many browsers before it, an upstream behind it, and what the kernel accounts to the
//! process between them.
//!
//! The browsers and the upstream know nothing of the gateway but its address, so that another one is measured the same
//! way. `docs/benchmark.md` has what the figures mean.

mod browser;
mod child;
mod fan_in;
mod histogram;
mod page;
mod plot;
mod process;
mod report;
mod schedule;
mod tally;
mod upstream;

pub(crate) use browser::Trust;
pub(crate) use fan_in::{Place, Plan, Progress, run};
pub(crate) use upstream::{Kind as UpstreamKind, Upstream};

/// Why nothing, or no more, could be measured.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BenchError(String);

impl BenchError {
    fn new(message: impl Into<String>) -> Self {
        BenchError(message.into())
    }
}
