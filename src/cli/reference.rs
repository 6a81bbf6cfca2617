//! `streamgate reference`: the pages that are generated.

use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::{config, lua, rejection, telemetry};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The checkout.
    #[arg(default_value = ".")]
    root: PathBuf,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let pages = [
        ("docs/reference/configuration.md", config::reference()),
        ("docs/reference/errors.md", rejection::reference()),
        ("docs/reference/metrics.md", telemetry::reference()),
        ("docs/reference/plugins.md", lua::plugins_page()),
        ("docs/reference/plugins.schema.json", lua::plugins_schema()),
        ("docs/reference/lua.md", lua::api_page()),
    ];
    for (path, text) in pages {
        write(&options.root.join(path), &text)?;
    }
    for (path, text) in lua::api_types() {
        write(&options.root.join("lua/types").join(path), &text)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::write(path, text))
        .map_err(|it| Failure::new(format!("{}: {it}", path.display())))?;
    outln!("{}", path.display());
    Ok(())
}
