//! `streamgate plugin list`: all plugins that are found.

use std::path::PathBuf;

use crate::cli::plugin::configured;
use crate::cli::{Failure, File};
use crate::lua::{Listed, list_plugins};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// Folders of plugins, instead of those of the configuration.
    paths: Vec<PathBuf>,
    #[command(flatten)]
    file: File,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let paths = if options.paths.is_empty() {
        configured(&options.file)?.plugins.paths
    } else {
        options.paths.clone()
    };
    let found = list_plugins(&paths);
    let width = found.iter().map(|it| it.name.len()).max().unwrap_or(0).max("plugin".len());
    let from = |it: &Listed| it.folder.as_ref().map_or("built in".to_owned(), |it| it.display().to_string());
    let from_width = found.iter().map(|it| from(it).chars().count()).max().unwrap_or(0);
    let mut n_broken = 0;
    outln!("{:<width$}  {:<from_width$}  phases; what it does", "plugin", "from");
    for it in &found {
        let about = match &it.about {
            Ok(about) => format!("{}; {}", about.phases.names(), about.summary),
            Err(_) => "broken, see below".into(),
        };
        let about = if it.is_hidden { "not used: one of this name comes first".into() } else { about };
        outln!("{:<width$}  {:<from_width$}  {about}", it.name, from(it));
    }
    for problems in found.iter().filter_map(|it| it.about.as_ref().err()) {
        n_broken += 1;
        outln!();
        for problem in problems.iter() {
            outln!(
                "{}   {}\n    {}",
                problem.place,
                problem.subject,
                problem.message.replace('\n', "\n    ")
            );
        }
    }
    match n_broken {
        0 => Ok(()),
        1 => Err(Failure::new("a plugin is broken")),
        n => Err(Failure::new(format!("{n} plugins are broken"))),
    }
}
