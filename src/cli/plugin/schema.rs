//! `streamgate plugin schema`: what the settings of plugins may be, as JSON Schema.

use std::path::PathBuf;

use crate::cli::Failure;
use crate::cli::plugin::{PLUGINS, bundles};
use crate::lua::plugin_schema;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// A plugin's folder, a folder of plugins, or the name of a plugin in `plugins` or a built-in one.
    #[arg(default_value = PLUGINS)]
    path: PathBuf,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    out!("{}", plugin_schema(bundles(&options.path)?)?);
    Ok(())
}
