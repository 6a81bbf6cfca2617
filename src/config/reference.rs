//! The reference page of the settings, written from their table.

use std::fmt::Write;

use crate::config::setting::SETTINGS;

/// `docs/reference/configuration.md`.
pub(crate) fn reference() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Written by `make docs` from src/config/setting.rs; do not edit. -->\n\n\
         `streamgate run --config streamgate.toml` reads the file; without a file the environment alone is enough.\n\
         Each setting can also be given by its environment variable, which wins over the file.\n\
         A list is written with commas there.\n\
         An unknown key and an unknown `STREAMGATE_…` variable are mistakes.\n\
         `streamgate check` reports all mistakes at once and starts nothing.\n\n\
         A *secret* is written as a reference: `env:NAME` or `file:PATH`.\n\
         In an environment variable it is the value itself, or `file:PATH`.\n\
         A *text* may be `env:NAME` too.\n\
         Relative paths start at the folder of the file.\n\n\
         Routes are tables of their own: see [routes and chains](../guide/routes.md).\n",
    );
    let mut section = None;
    for it in SETTINGS {
        let of = it.key.split_once('.').map(|(head, _)| head);
        if of != section {
            section = of;
            writeln!(page, "\n## `[{}]`", of.unwrap_or_default()).expect("a string takes every write");
        }
        write!(page, "\n### `{}`\n\n{}\n\n", it.key, it.doc).expect("a string takes every write");
        writeln!(page, "- Type: {}", it.kind).expect("a string takes every write");
        let default = if it.default.is_empty() { "none".to_owned() } else { format!("`{}`", it.default) };
        writeln!(page, "- Default: {default}").expect("a string takes every write");
        let also: String = it.also.iter().map(|it| format!(", also `{it}`")).collect();
        writeln!(page, "- Variable: `{}`{also}", it.variable()).expect("a string takes every write");
    }
    page
}
