//! `streamgate plugin schema`: what the settings of plugins may be, as JSON Schema.

use std::path::PathBuf;

use crate::cli::Failure;
use crate::cli::plugin::folders;
use crate::lua::{Bundle, plugin_schema};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// A plugin's folder, or a folder of plugins.
    #[arg(default_value = "plugins")]
    path: PathBuf,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let mut bundles = Vec::new();
    for folder in folders(&options.path)? {
        let name = folder.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        bundles.push(Bundle::read(&name, &folder).map_err(Failure::new)?);
    }
    print!("{}", plugin_schema(bundles)?);
    Ok(())
}
