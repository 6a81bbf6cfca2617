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
use crate::lua::{Bundle, FileLines, find_plugin, is_name, plugin_folders, run_spec};

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
    /// A plugin's folder, a folder of plugins, or the name of a plugin in `plugins` or a built-in one.
    #[arg(default_value = PLUGINS)]
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
    for bundle in bundles(&options.path)? {
        let name = bundle.name.clone();
        let report = match run_spec(bundle, options.coverage.is_wanted()) {
            Ok(report) => report,
            Err(problems) => {
                let told = problems.told();
                outln!(
                    "{name}\n  FAIL  cannot be tested\n        {}",
                    told.trim_end().replace('\n', "\n        ")
                );
                n_failed += 1;
                continue;
            }
        };
        outln!("{name}");
        for (what, failure) in report.tests {
            match failure {
                None => {
                    outln!("  ok    {what}");
                    n_passed += 1;
                }
                Some(failure) => {
                    outln!("  FAIL  {what}\n        {}", failure.replace('\n', "\n        "));
                    n_failed += 1;
                }
            }
        }
        report.lines.iter().for_each(coverage::show);
        covered.extend(report.lines);
    }
    outln!("{n_passed} passed, {n_failed} failed");
    if n_failed > 0 {
        return Err(Failure::new("plugin tests failed"));
    }
    options.coverage.judge(&covered)
}

/// The plugins in a folder, that of a folder itself, or the one of that name: in `plugins`, or built in.
fn bundles(path: &Path) -> Result<Vec<Bundle>, Failure> {
    let shown = path.display();
    if !path.exists() {
        let name = path.to_str().filter(|it| is_name(it) && *it != PLUGINS);
        if let Some(name) = name {
            let found = find_plugin(name, &[PLUGINS.into()]);
            return Ok(vec![found.map_err(|it| Failure::new(format!("{name}: {}", it.message)))?]);
        }
        return Err(Failure::new(format!(
            "there is no folder {shown} here: name a plugin's folder or a folder of plugins, as in `streamgate plugin test path/to/{PLUGINS}`"
        )));
    }
    let read = |folder: PathBuf| {
        let name = folder.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        Bundle::read(&name, &folder).map_err(Failure::new)
    };
    let folders = plugin_folders(path);
    if folders.is_empty() {
        return Err(Failure::new(format!("no plugins in {shown}: each is a folder there with `plugin.lua`")));
    }
    folders.into_iter().map(read).collect()
}

/// The folder of plugins, where nobody names another.
const PLUGINS: &str = "plugins";

/// What a configuration says of plugins; what else is wrong in it does not matter here.
fn configured(file: &File) -> Result<Parts, Failure> {
    let sources = file.sources()?;
    sources.parts().ok_or_else(|| {
        let mistakes = sources.resolve(Role::Gateway).err();
        mistakes.map_or_else(|| Failure::new("the configuration has no plugins"), Failure::from)
    })
}
