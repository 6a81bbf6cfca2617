//! `streamgate plugin`: work on plugins.

mod bench;
mod coverage;
mod list;
mod new;
mod schema;
mod types;

use std::path::{Path, PathBuf};

use crate::cli::{Failure, File};
use crate::config::{Parts, Role};
use crate::lua::{Bundle, FileLines, plugin_folders, run_spec};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a plugin that works, to be changed.
    New(new::Options),
    /// Run the tests that plugins bring along (`spec.lua`).
    Test(TestOptions),
    /// Measure what the phases of a plugin cost.
    Bench(bench::Options),
    /// List all plugins that are found, and what is wrong with those that are broken.
    List(list::Options),
    /// Print what the settings of plugins may be, as JSON Schema.
    Schema(schema::Options),
    /// Write what editors need to complete and check plugins.
    Types(types::Options),
}

#[derive(Debug, clap::Args)]
pub(super) struct TestOptions {
    /// A plugin's folder, or a folder of plugins.
    #[arg(default_value = "plugins")]
    path: PathBuf,
    #[command(flatten)]
    coverage: coverage::Options,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::New(options) => new::run(&options),
        Command::Test(options) => test(&options),
        Command::Bench(options) => bench::run(&options),
        Command::List(options) => list::run(&options),
        Command::Schema(options) => schema::run(&options),
        Command::Types(options) => types::run(&options),
    }
}

fn test(options: &TestOptions) -> Result<(), Failure> {
    let (mut n_passed, mut n_failed) = (0, 0);
    let mut covered: Vec<FileLines> = Vec::new();
    for folder in folders(&options.path)? {
        let name = folder.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        let bundle = Bundle::read(&name, &folder).map_err(Failure::new)?;
        let report = match run_spec(bundle, options.coverage.is_wanted()) {
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
        report.lines.iter().for_each(coverage::show);
        covered.extend(report.lines);
    }
    println!("{n_passed} passed, {n_failed} failed");
    if n_failed > 0 {
        return Err(Failure::new("plugin tests failed"));
    }
    options.coverage.judge(&covered)
}

/// The folders below `path` that hold a plugin, or `path` itself.
fn folders(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    std::fs::read_dir(path).map_err(|it| Failure::new(format!("{}: {it}", path.display())))?;
    let folders = plugin_folders(path);
    match folders.is_empty() {
        true => Err(Failure::new(format!("{}: no plugins here", path.display()))),
        false => Ok(folders),
    }
}

/// What a configuration says of plugins; what else is wrong in it does not matter here.
fn configured(file: &File) -> Result<Parts, Failure> {
    let sources = file.sources()?;
    sources.parts().ok_or_else(|| {
        let mistakes = sources.resolve(Role::Gateway).err();
        mistakes.map_or_else(|| Failure::new("the configuration has no plugins"), Failure::from)
    })
}
