//! The log on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, Place, Problem};

/// Sends the log of this process to standard error.
///
/// # Errors
/// When the level is none. A log that was installed before stays, which embedders and tests rely on.
pub(crate) fn install(log: &Log) -> Result<(), Problem> {
    let filter = EnvFilter::builder().parse(&log.level).map_err(|error| {
        let message = format!("not a level or a filter: {error}");
        Problem::new(Place::Nowhere, format!("log.level = {:?}", log.level), message)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = if log.json {
        builder.json().flatten_event(true).finish().try_init()
    } else {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
        builder.with_ansi(colour).with_target(false).finish().try_init()
    };
    drop(installed); // an error means that one is installed already
    Ok(())
}
