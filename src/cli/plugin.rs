//! `streamgate plugin`: work on plugins.

use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::lua::{Bundle, run_spec};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Run the tests that plugins bring along (`spec.lua`).
    Test {
        /// A plugin's folder, or a folder of plugins.
        #[arg(default_value = "plugins")]
        path: PathBuf,
    },
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Test { path } => test(&path),
    }
}

fn test(path: &Path) -> Result<(), Failure> {
    let folders = plugin_folders(path)?;
    let (mut n_passed, mut n_failed) = (0, 0);
    for folder in folders {
        let name = folder.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        let bundle = Bundle::read(&name, &folder).map_err(Failure::new)?;
        let report = match run_spec(bundle) {
            Ok(report) => report,
            Err(problems) => {
                println!("{name}\n{problems}");
                n_failed += 1;
                continue;
            }
        };
        println!("{}", report.plugin);
        for (what, failure) in report.tests {
            match failure {
                None => {
                    println!("  ok    {what}");
                    n_passed += 1;
                }
                Some(failure) => {
                    println!("  FAIL  {what}\n        {}", failure.replace('\n', "\n        "));
                    n_failed += 1;
                }
            }
        }
    }
    println!("{n_passed} passed, {n_failed} failed");
    if n_failed == 0 { Ok(()) } else { Err(Failure::new("plugin tests failed")) }
}

/// The folders below `path` that hold a plugin, or `path` itself.
fn plugin_folders(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if path.join("plugin.lua").is_file() {
        return Ok(vec![path.canonicalize().unwrap_or_else(|_| path.to_owned())]);
    }
    let entries = std::fs::read_dir(path).map_err(|it| Failure::new(format!("{}: {it}", path.display())))?;
    let mut folders: Vec<PathBuf> =
        entries.flatten().map(|it| it.path()).filter(|it| it.join("plugin.lua").is_file()).collect();
    folders.sort();
    if folders.is_empty() {
        return Err(Failure::new(format!("{}: no plugins here", path.display())));
    }
    Ok(folders)
}
