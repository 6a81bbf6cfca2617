//! Modules that others have written: pure Lua, from a tree of LuaRocks beside the configuration.
//!
//! `luarocks install --tree lua_modules NAME` puts them there. The whole tree is read once for each generation of the
//! configuration, so that `require` in a phase never reads a disk, and all workers have the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Place, Problem, Problems};

/// The modules of all trees.
#[derive(Debug, Default)]
pub(super) struct Rocks {
    modules: BTreeMap<String, (PathBuf, Arc<str>)>,
    /// Modules in C, which are there and cannot be loaded.
    in_c: BTreeSet<String>,
}

/// What a module is.
pub(super) enum Found<'a> {
    Text(&'a Path, &'a str),
    /// It is in C.
    InC,
}

/// Largest file of a module in bytes, as for plugins.
const LARGEST: u64 = 1 << 20;

/// Most of all files together.
const MOST: usize = 16 << 20;

/// How deep folders may be nested.
const DEEPEST: usize = 8;

impl Rocks {
    /// Reads all trees. A folder that is not there has no modules.
    pub(super) fn read(trees: &[PathBuf]) -> Result<Rocks, Problems> {
        let mut rocks = Rocks::default();
        let mut problems = Problems::new();
        let mut total = 0;
        for tree in trees {
            let mut files = Vec::new();
            collect(&tree.join("share/lua/5.4"), "", DEEPEST, ".lua", &mut files);
            for (name, path) in files {
                let fail =
                    |what: String| Problem::new(Place::file(&path), "a module of `plugins.modules`", what);
                let size = std::fs::metadata(&path).map_or(0, |it| it.len());
                total += size as usize;
                if size > LARGEST || total > MOST {
                    problems.push(fail(format!(
                        "larger than {LARGEST} bytes, or more than {MOST} with the others"
                    )));
                    continue;
                }
                match std::fs::read_to_string(&path) {
                    Ok(text) => {
                        // Like `package.path`: `name.lua` comes before `name/init.lua`, and the first tree before the others.
                        let name = name.strip_suffix(".init").unwrap_or(&name).to_owned();
                        rocks.modules.entry(name).or_insert((path, text.into()));
                    }
                    Err(error) => problems.push(fail(error.to_string())),
                }
            }
            let mut libraries = Vec::new();
            collect(&tree.join("lib/lua/5.4"), "", DEEPEST, ".so", &mut libraries);
            rocks.in_c.extend(libraries.into_iter().map(|(name, _)| name));
        }
        problems.into_result().map(|()| rocks)
    }

    /// The module of that name.
    pub(super) fn find(&self, name: &str) -> Option<Found<'_>> {
        match self.modules.get(name) {
            Some((path, text)) => Some(Found::Text(path, text)),
            None => self.in_c.contains(name).then_some(Found::InC),
        }
    }
}

/// The files below a folder by the names of their modules, those of a folder itself first.
fn collect(folder: &Path, prefix: &str, depth: usize, suffix: &str, found: &mut Vec<(String, PathBuf)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|it| it.path()).collect();
    entries.sort_by_key(|it| (it.is_dir(), it.clone()));
    for path in entries {
        let Some(file) = path.file_name().and_then(|it| it.to_str()) else { continue };
        if path.is_dir() {
            if depth > 0 {
                collect(&path, &format!("{prefix}{file}."), depth - 1, suffix, found);
            }
        } else if let Some(name) = file.strip_suffix(suffix) {
            found.push((format!("{prefix}{name}"), path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_as_lua_would_find_them() {
        let root = std::env::temp_dir().join(format!("streamgate-rocks-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("it is in the tree")).expect("folders");
            std::fs::write(path, text).expect("a file");
        };
        write("a/share/lua/5.4/inspect.lua", "return 1");
        write("a/share/lua/5.4/inspect/init.lua", "return 2");
        write("a/share/lua/5.4/pl/init.lua", "return 3");
        write("a/share/lua/5.4/pl/tablex.lua", "return 4");
        write("b/share/lua/5.4/inspect.lua", "return 5");
        write("b/lib/lua/5.4/cjson.so", "");
        write("b/lib/lua/5.4/socket/core.so", "");
        let rocks = Rocks::read(&[root.join("a"), root.join("b"), root.join("nowhere")]).expect("trees");
        for (name, expected) in [
            ("inspect", Some("return 1")),
            ("pl", Some("return 3")),
            ("pl.tablex", Some("return 4")),
            ("pl/tablex", None),
            ("../a", None),
        ] {
            let text = match rocks.find(name) {
                Some(Found::Text(_, text)) => Some(text),
                _ => None,
            };
            assert_eq!(text, expected, "{name}");
        }
        assert!(matches!(rocks.find("cjson"), Some(Found::InC)));
        assert!(matches!(rocks.find("socket.core"), Some(Found::InC)));
        std::fs::remove_dir_all(root).expect("it was made here");
    }
}
