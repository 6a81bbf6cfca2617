//! `log`: the gateway's log, for plugins.

use mlua::{Lua, Table, Value};

use crate::lua::api::Function;
use crate::policy::{Phase, Phases};

macro_rules! level {
    ($name:literal, $doc:literal) => {
        Function {
            handle: "log",
            name: $name,
            params: &[("message", "any")],
            result: "nil",
            phases: Phases::of(&Phase::ALL),
            doc: $doc,
            example: concat!("log.", $name, "(\"seen \" .. request:id())"),
        }
    };
}

pub(super) static FUNCTIONS: &[Function] = &[
    level!("error", " Something is wrong and needs an operator. Never log a token."),
    level!("warn", " Something is odd."),
    level!("info", " Something happened."),
    level!("debug", " Something for whoever looks for a fault; not shown by default."),
];

/// Longest line in bytes; the rest is cut.
const LONGEST: usize = 2048;

/// The module for one plugin.
pub(crate) fn install(lua: &Lua, plugin: &str) -> mlua::Result<Table> {
    let module = lua.create_table()?;
    let add = |name: &str, write: fn(&str, &str)| {
        let plugin = plugin.to_owned();
        let function = lua.create_function(move |_, value: Value| {
            write(&plugin, &line(&value));
            Ok(())
        })?;
        module.raw_set(name, function)
    };
    add(
        "error",
        |plugin, says| tracing::error!(target: "streamgate::plugin", plugin, says, "A plugin speaks."),
    )?;
    add(
        "warn",
        |plugin, says| tracing::warn!(target: "streamgate::plugin", plugin, says, "A plugin speaks."),
    )?;
    add(
        "info",
        |plugin, says| tracing::info!(target: "streamgate::plugin", plugin, says, "A plugin speaks."),
    )?;
    add(
        "debug",
        |plugin, says| tracing::debug!(target: "streamgate::plugin", plugin, says, "A plugin speaks."),
    )?;
    Ok(module)
}

/// A value as one line of bounded length. A table's `__tostring` is not run.
fn line(value: &Value) -> String {
    let text = match value {
        Value::String(it) => it.to_string_lossy(),
        Value::Nil => "nil".to_owned(),
        Value::Boolean(it) => it.to_string(),
        Value::Integer(it) => it.to_string(),
        Value::Number(it) => it.to_string(),
        other => other.type_name().to_owned(),
    };
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
