//! `regex`: patterns whose time grows with the text alone.

use mlua::{LuaString, Table, Value};
use regex::bytes::{Regex, RegexBuilder};

use crate::lua::api::{misuse, module, object};

/// A compiled pattern.
pub(crate) struct RegexHandle(Regex);

/// Most memory of a compiled pattern in bytes.
const LARGEST: usize = 1 << 20;

/// Longest text that `replace` makes, in bytes.
const LONGEST: usize = 1 << 20;

module! {
    "regex" "Regular expressions whose time grows with the text alone, whatever the pattern (the syntax of Rust's `regex`).";

    /// Compiles a pattern; an error says what is wrong with it. Do it once, while the plugin is loaded.
    #[example("local PATH = regex.new [[^/apps/(?<app>[a-z0-9-]+)/]]")]
    now fn new(lua, author, pattern: LuaString) -> (RegexHandle, "streamgate.Pattern") {
        let built = RegexBuilder::new(&pattern.to_str()?).size_limit(LARGEST).dfa_size_limit(LARGEST).build();
        built.map(RegexHandle).map_err(|it| misuse(format!("regex.new: {it}")))
    }
}

object! {
    RegexHandle "pattern";

    /// Whether the text has a match.
    #[example("if PATH:is_match(request:path()) then … end")]
    fn is_match(lua, this, text: LuaString) -> (bool, "boolean") {
        Ok(this.0.is_match(&text.as_bytes()))
    }

    /// The first and the last byte of the first match, counted from one; nil when there is none.
    #[example("local first, last = PATH:find(text)")]
    fn find(lua, this, text: LuaString) -> ((Option<usize>, Option<usize>), "integer?, integer?") {
        let found = this.0.find(&text.as_bytes()).map(|it| (it.start() + 1, it.end()));
        Ok((found.map(|it| it.0), found.map(|it| it.1)))
    }

    /// What the groups of the first match have caught, by number (0 is the whole) and by name; nil when there is none.
    #[example("local app = (PATH:match(request:path()) or {}).app")]
    fn match(lua, this, text: LuaString) -> (Option<Table>, "table?") {
        let text = text.as_bytes();
        let Some(caught) = this.0.captures(&text) else { return Ok(None) };
        let table = lua.create_table()?;
        for (idx, name) in this.0.capture_names().enumerate() {
            let value = match caught.get(idx) {
                Some(it) => Value::String(lua.create_string(it.as_bytes())?),
                None => Value::Nil,
            };
            if let Some(name) = name {
                table.raw_set(name, &value)?;
            }
            table.raw_set(idx, value)?;
        }
        Ok(Some(table))
    }

    /// The text with all matches replaced; `$1` and `$name` stand for groups.
    #[example("local clean = SECRET:replace(text, \"key=…\")")]
    fn replace(lua, this, text: LuaString, replacement: LuaString) -> (LuaString, "string") {
        let (text, replacement) = (text.as_bytes(), replacement.as_bytes());
        let mut out = Vec::new();
        let mut rest = 0;
        for caught in this.0.captures_iter(&text) {
            let whole = caught.get(0).expect("group 0 is the whole match");
            out.extend_from_slice(&text[rest..whole.start()]);
            caught.expand(&replacement, &mut out);
            rest = whole.end();
            if out.len() > LONGEST {
                return Err(misuse("pattern:replace: the result is longer than 1 MiB"));
            }
        }
        out.extend_from_slice(&text[rest..]);
        lua.create_string(out)
    }
}
