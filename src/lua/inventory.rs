//! All plugins that a gateway would find.

use std::path::{Path, PathBuf};

use crate::config::{Place, Problem, Problems};
use crate::lua::budget::Watchdog;
use crate::lua::bundle::{BUILT_IN, Bundle, is_name};
use crate::lua::lines;
use crate::lua::loader::{Plugin, located};
use crate::policy::Phases;

/// A plugin that was found.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    /// Its folder; none for one that is built in.
    pub(crate) folder: Option<PathBuf>,
    /// One of the same name is found before it.
    pub(crate) is_hidden: bool,
    /// What it says of itself, or why it cannot be used.
    pub(crate) about: Result<About, Problems>,
}

/// What a plugin says of itself.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) phases: Phases,
    pub(crate) summary: String,
}

/// The plugins in these folders, then the built-in ones. A folder may also be a plugin's own. What is not there is passed
/// over: the gateway does so too.
pub(crate) fn list(paths: &[PathBuf]) -> Vec<Listed> {
    let watchdog = Watchdog::new();
    let mut found: Vec<Listed> = Vec::new();
    for path in paths {
        for folder in folders(path) {
            let name = folder.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
            let about = about(&name, &folder, &watchdog);
            let is_hidden = found.iter().any(|it| it.name == name);
            found.push(Listed { name, folder: Some(folder), is_hidden, about });
        }
    }
    for (name, files) in BUILT_IN {
        let plugin = Plugin::load(Bundle::built_in(name, files), &watchdog);
        let is_hidden = found.iter().any(|it| it.name == *name);
        found.push(Listed { name: (*name).into(), folder: None, is_hidden, about: plugin.map(About::from) });
    }
    found
}

/// The folders below a path that mean to be plugins, or the path itself. A name that begins with `_` or `.` is put aside.
pub(crate) fn folders(path: &Path) -> Vec<PathBuf> {
    let is_plugin = |it: &Path| it.join("plugin.lua").is_file() || it.join("schema.lua").is_file();
    if is_plugin(path) {
        return vec![path.canonicalize().unwrap_or_else(|_| path.to_owned())];
    }
    let is_aside = |it: &Path| {
        it.file_name().is_none_or(|it| {
            it.as_encoded_bytes().starts_with(b"_") || it.as_encoded_bytes().starts_with(b".")
        })
    };
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|it| it.path());
    let mut folders: Vec<PathBuf> = entries.filter(|it| !is_aside(it) && is_plugin(it)).collect();
    folders.sort();
    folders
}

fn about(name: &str, folder: &Path, watchdog: &Watchdog) -> Result<About, Problems> {
    let place = Place::file(folder);
    if !is_name(name) {
        let message = "not a plugin's name: expected lower-case letters, digits and `-`";
        return Err(Problem::new(place, name, message).into());
    }
    let bundle = Bundle::read(name, folder).map_err(|it| Problem::new(place.clone(), name, it))?;
    // The settings are not known here, so a plugin is read and not run.
    let mut problems = Problems::new();
    for file in bundle.files.iter().filter(|(name, _)| *name != "schema.lua").map(|(_, it)| it) {
        if let Err(message) = lines::can_run(file) {
            problems.push(located(&place, name, message));
        }
    }
    match Plugin::load(bundle, watchdog) {
        Ok(plugin) => problems.into_result().map(|()| plugin.into()),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

impl From<Plugin> for About {
    fn from(plugin: Plugin) -> About {
        About { phases: plugin.schema.phases, summary: plugin.schema.summary }
    }
}
