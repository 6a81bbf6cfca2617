//! The files of one plugin, from a folder of the operator or from those built into the binary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::{Place, Problem, did_you_mean};
use crate::lua::fault::brief;
use crate::lua::inventory::folders;

/// A plugin's files by their name inside its folder, with the path that messages show.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) name: String,
    pub(crate) files: BTreeMap<String, File>,
    pub(crate) is_built_in: bool,
}

/// One file of a plugin.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// Where plugins are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Finder {
    pub(crate) paths: Vec<PathBuf>,
}

macro_rules! built_in {
    ($($plugin:literal: $($file:literal),*;)*) => {
        /// The plugins that ship with the gateway: name, then file names and texts.
        pub(crate) static BUILT_IN: &[(&str, &[(&str, &str)])] = &[$(
            ($plugin, &[$(($file, include_str!(concat!("../../plugins/", $plugin, "/", $file)))),*]),
        )*];
    };
}

built_in! {
    "access-log": "plugin.lua", "schema.lua", "spec.lua";
    "acl": "plugin.lua", "schema.lua", "spec.lua";
    "basic-auth": "plugin.lua", "schema.lua", "spec.lua";
    "bearer-auth": "plugin.lua", "schema.lua", "spec.lua";
    "cors": "plugin.lua", "schema.lua", "spec.lua";
    "forward-auth": "plugin.lua", "schema.lua", "spec.lua";
    "function-router": "plugin.lua", "schema.lua", "spec.lua";
    "inject-headers": "plugin.lua", "schema.lua", "spec.lua";
    "introspection-auth": "plugin.lua", "schema.lua", "spec.lua";
    "ip-restriction": "plugin.lua", "schema.lua", "spec.lua";
    "jwt-auth": "plugin.lua", "schema.lua", "spec.lua";
    "key-auth": "plugin.lua", "schema.lua", "spec.lua";
    "oidc-login": "plugin.lua", "schema.lua", "spec.lua", "attempt.lua", "provider.lua", "settings.lua";
    "rate-limit": "plugin.lua", "schema.lua", "spec.lua";
    "request-id": "plugin.lua", "schema.lua", "spec.lua";
    "session-limit": "plugin.lua", "schema.lua", "spec.lua";
    "webhook-events": "plugin.lua", "schema.lua", "spec.lua";
}

/// The library for plugin authors: what `require "streamgate.…"` finds.
pub(crate) static LIBRARY: &[(&str, &str)] = &[
    ("streamgate.header", include_str!("../../lua/streamgate/header.lua")),
    ("streamgate.origin", include_str!("../../lua/streamgate/origin.lua")),
    ("streamgate.place", include_str!("../../lua/streamgate/place.lua")),
    ("streamgate.template", include_str!("../../lua/streamgate/template.lua")),
    ("streamgate.token", include_str!("../../lua/streamgate/token.lua")),
];

/// What specs may require besides.
pub(crate) static SPEC_LIBRARY: (&str, &str) =
    ("streamgate.spec", include_str!("../../lua/streamgate/spec.lua"));

/// What `streamgate plugin new` makes a plugin of: file names and texts.
pub(crate) static TEMPLATE: &[(&str, &str)] = &[
    ("plugin.lua", include_str!("../../plugins/_template/plugin.lua")),
    ("schema.lua", include_str!("../../plugins/_template/schema.lua")),
    ("spec.lua", include_str!("../../plugins/_template/spec.lua")),
    ("README.md", include_str!("../../plugins/_template/README.md")),
];

/// Bytes that Lua has for the name of a file in a message, a zero at the end among them (`LUA_IDSIZE`).
const SHORT_SOURCE: usize = 60;

/// Largest file of a plugin in bytes.
const LARGEST: u64 = 1 << 20;

/// The plugin of that name in these folders, or a built-in one.
pub(crate) fn find(name: &str, paths: &[PathBuf]) -> Result<Bundle, Problem> {
    Finder { paths: paths.to_vec() }.find(name, &Place::Nowhere)
}

impl Finder {
    /// The plugin of that name: the first folder that has it wins, the built-in ones come last.
    pub(crate) fn find(&self, name: &str, place: &Place) -> Result<Bundle, Problem> {
        let fail = |message: String| Problem::new(place.clone(), format!("plugin = {name:?}"), message);
        if !is_name(name) {
            return Err(fail("not a plugin's name: expected lower-case letters, digits and `-`".into()));
        }
        for path in &self.paths {
            let folder = path.join(name);
            if folder.is_dir() {
                return Bundle::read(name, &folder).map_err(fail);
            }
        }
        match BUILT_IN.iter().find(|(it, _)| *it == name) {
            Some((_, files)) => Ok(Bundle::built_in(name, files)),
            None => {
                let searched: Vec<String> = self.paths.iter().map(|it| it.display().to_string()).collect();
                let built_in: Vec<&str> = BUILT_IN.iter().map(|(it, _)| *it).collect();
                let beside = self.paths.iter().flat_map(|it| folders(it));
                let beside: Vec<String> = beside.filter_map(|it| file_name(&it)).collect();
                let known = beside.iter().map(String::as_str).chain(built_in.iter().copied());
                let searched = format!(
                    "searched {} and the built-in ones ({})",
                    searched.join(", "),
                    built_in.join(", ")
                );
                Err(fail(format!("no such plugin:{}", did_you_mean(name, known, &searched))))
            }
        }
    }
}

impl Bundle {
    /// Reads the Lua files of a folder.
    pub(crate) fn read(name: &str, folder: &Path) -> Result<Bundle, String> {
        let mut files = BTreeMap::new();
        let entries =
            std::fs::read_dir(folder).map_err(|it| format!("cannot read {}: {it}", folder.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let Some(file_name) =
                path.file_name().and_then(|it| it.to_str()).filter(|it| it.ends_with(".lua"))
            else {
                continue;
            };
            let size = entry.metadata().map_or(0, |it| it.len());
            if size > LARGEST {
                return Err(format!("{} is larger than {LARGEST} bytes", path.display()));
            }
            let text = std::fs::read_to_string(&path)
                .map_err(|it| format!("cannot read {}: {it}", path.display()))?;
            files.insert(file_name.to_owned(), File { path: path.clone(), text });
        }
        for needed in ["plugin.lua", "schema.lua"] {
            if !files.contains_key(needed) {
                return Err(format!("{} has no {needed}", folder.display()));
            }
        }
        Ok(Bundle { name: name.to_owned(), files, is_built_in: false })
    }

    /// Reads the plugin of a folder, which has its name.
    pub(crate) fn of_folder(folder: &Path) -> Result<Bundle, Problem> {
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = folder.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        Bundle::read(&name, &folder).map_err(|it| Problem::new(Place::file(&folder), name.as_str(), it))
    }

    /// A plugin that ships with the gateway.
    pub(crate) fn built_in(name: &str, files: &[(&str, &str)]) -> Bundle {
        let files = files.iter().map(|(file, text)| {
            let path = Path::new("plugins").join(name).join(file);
            ((*file).to_owned(), File { path, text: (*text).to_owned() })
        });
        Bundle { name: name.to_owned(), files: files.collect(), is_built_in: true }
    }

    /// An error of its code for who wrote it. Lua cuts the names of files that are long; here they are whole.
    pub(super) fn told(&self, detail: &str) -> String {
        let mut told = brief(detail);
        for path in self.files.values().map(|it| it.path.display().to_string()) {
            if path.len() >= SHORT_SOURCE
                && let Some(end) = path.get(path.len() - (SHORT_SOURCE - "...".len() - 1)..)
            {
                told = told.replace(&format!("...{end}:"), &format!("{path}:"));
            }
        }
        told
    }

    /// A file that [`Bundle::read`] made sure of.
    pub(crate) fn file(&self, name: &str) -> &File {
        self.files.get(name).expect("a bundle has its two files")
    }
}

impl File {
    /// The first line that sets `key` in a table: `key =`, `["key"] =` or `M.key =`.
    pub(super) fn line_that_sets(&self, key: &str) -> Option<usize> {
        let sets = |line: &str| {
            line.match_indices(key).any(|(at, _)| {
                let is_part = |it: char| it.is_alphanumeric() || it == '_';
                let before = line[..at].chars().next_back();
                let after = line[at + key.len()..].trim_start_matches(['"', '\'', ']']).trim_start();
                !before.is_some_and(is_part) && after.starts_with('=')
            })
        };
        self.text.lines().position(sets).map(|it| it + 1)
    }
}

fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|it| it.to_string_lossy().into_owned())
}

/// Whether a plugin may have this name.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
}
