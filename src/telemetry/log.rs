//! The log on standard error.

use std::io::Write;
use std::sync::LazyLock;

use prometheus::IntCounter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, Place, Problem};

/// Lines that could not be written. Standard error belongs to the process, as does the log that was installed first, and
/// so does their number: every [`super::Metrics`] shows it.
pub(super) static LINES_DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    let help = "Lines of the log lost because standard error could not be written.";
    IntCounter::new("streamgate_log_lines_dropped_total", help).expect("the name is well formed")
});

/// Standard error, which may be a full disk or a pipe that nobody reads: the gateway lives on without it.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    /// A line comes as a whole.
    fn write_all(&mut self, line: &[u8]) -> std::io::Result<()> {
        if std::io::stderr().write_all(line).is_err() {
            LINES_DROPPED.inc();
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Sends the log of this process to standard error.
///
/// # Errors
/// When the level is none. A log that was installed before stays, which embedders and tests rely on.
pub(crate) fn install(log: &Log) -> Result<(), Problem> {
    let filter = EnvFilter::builder().parse(&log.level).map_err(|error| {
        let message = format!("not a level or a filter: {error}");
        Problem::new(Place::Nowhere, format!("log.level = {:?}", log.level), message)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stderr);
    // The errors would go to standard error as well, by a macro that panics.
    let builder = builder.log_internal_errors(false);
    let installed = if log.json {
        builder.json().flatten_event(true).finish().try_init()
    } else {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
        builder.with_ansi(colour).with_target(false).finish().try_init()
    };
    drop(installed); // an error means that one is installed already
    Ok(())
}
