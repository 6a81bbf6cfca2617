//! `streamgate plugin types`: stubs of the Lua API, with which an editor completes and checks plugins.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::Failure;
use crate::lua;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// Where the stubs go.
    #[arg(default_value = "lua/types")]
    folder: PathBuf,
    /// The folder that the editor opens: its `.luarc.json` is written when there is none.
    #[arg(long, value_name = "DIR", default_value = ".")]
    workspace: PathBuf,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    // The part of the library that is written in Lua is its own stub.
    let library = lua::LIBRARY.iter().chain([&lua::SPEC_LIBRARY]);
    let library = library.map(|(name, text)| (format!("{}.lua", name.replace('.', "/")), (*text).to_owned()));
    let mut is_fresh = true;
    for (path, text) in lua::api_types().into_iter().chain(library) {
        let path = options.folder.join(path);
        if std::fs::read_to_string(&path).is_ok_and(|it| it == text) {
            continue;
        }
        is_fresh = false;
        write(&path, &text)?;
    }
    if is_fresh {
        outln!("{} is up to date", options.folder.display());
    }
    let settings = options.workspace.join(".luarc.json");
    let folder = relative(&options.folder, &options.workspace).display().to_string();
    if settings.exists() {
        match has_library(&settings, &folder) {
            true => outln!("{} is set up already", settings.display()),
            false => outln!(
                "{} is there already and was not changed; it needs `\"workspace.library\": [{folder:?}]`",
                settings.display()
            ),
        }
        return Ok(());
    }
    let text = json!({
        "runtime.version": "Lua 5.4",
        "runtime.builtin": { "io": "disable", "debug": "disable" },
        "workspace.library": [folder],
        "workspace.checkThirdParty": false,
    });
    write(&settings, &format!("{text:#}\n"))
}

/// Whether an editor's settings have the folder of the stubs.
fn has_library(settings: &Path, folder: &str) -> bool {
    let text = std::fs::read_to_string(settings).unwrap_or_default();
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    let listed = |it: &Value| it.as_array().is_some_and(|it| it.iter().any(|it| it == folder));
    listed(&json["workspace.library"]) || listed(&json["workspace"]["library"])
}

/// A folder as seen from another one, when it lies in it: settings are then right on every machine.
fn relative(folder: &Path, from: &Path) -> PathBuf {
    let whole = |it: &Path| it.canonicalize().unwrap_or_else(|_| it.to_owned());
    let folder = whole(folder);
    folder.strip_prefix(whole(from)).map(Path::to_owned).unwrap_or(folder)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::write(path, text))
        .map_err(|it| Failure::new(format!("{}: {it}", path.display())))?;
    outln!("{}", path.display());
    Ok(())
}
