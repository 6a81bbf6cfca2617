//! `streamgate plugin types`: stubs of the Lua API, with which an editor completes and checks plugins.

use std::path::{Path, PathBuf};

use serde_json::json;

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
    for (path, text) in lua::api_types() {
        write(&options.folder.join(path), &text)?;
    }
    // The part of the library that is written in Lua is its own stub.
    for (name, text) in lua::LIBRARY.iter().chain([&lua::SPEC_LIBRARY]) {
        write(&options.folder.join(format!("{}.lua", name.replace('.', "/"))), text)?;
    }
    let settings = options.workspace.join(".luarc.json");
    if settings.exists() {
        println!("{} is there already; it needs `workspace.library` with the folder", settings.display());
        return Ok(());
    }
    let folder = relative(&options.folder, &options.workspace);
    let text = json!({
        "runtime.version": "Lua 5.4",
        "runtime.builtin": { "io": "disable", "debug": "disable" },
        "workspace.library": [folder.display().to_string()],
        "workspace.checkThirdParty": false,
    });
    write(&settings, &format!("{text:#}\n"))
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
    println!("{}", path.display());
    Ok(())
}
