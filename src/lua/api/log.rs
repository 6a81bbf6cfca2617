//! `log`: the gateway's log, for plugins.

use std::rc::Rc;

use mlua::{Lua, Value};

use crate::lua::api::{Author, module};

module! {
    "log" "The gateway's log. Each line carries the plugin's name.";

    /// Writes an error: somebody must look at it.
    #[example("log.error(\"the service is gone: \" .. reason)")]
    now fn error(lua, author, message: Value) -> ((), "nil") {
        write(lua, author, "error", &message)
    }

    /// Writes a warning.
    #[example("log.warn \"no tenant, so the default one\"")]
    now fn warn(lua, author, message: Value) -> ((), "nil") {
        write(lua, author, "warn", &message)
    }

    /// Writes what an operator may want to know. `print` does the same.
    #[example("log.info(\"seen \" .. request:id())")]
    now fn info(lua, author, message: Value) -> ((), "nil") {
        write(lua, author, "info", &message)
    }

    /// Writes what helps to find a mistake.
    #[example("log.debug(request:path())")]
    now fn debug(lua, author, message: Value) -> ((), "nil") {
        write(lua, author, "debug", &message)
    }
}

/// Most of a message in bytes.
const LONGEST: usize = 4096;

fn write(lua: &Lua, author: &Rc<Author>, level: &'static str, message: &Value) -> mlua::Result<()> {
    let text = match lua.coerce_string(message.clone())? {
        Some(text) => text.to_string_lossy(),
        None => message.to_string()?,
    };
    let text: String = text.chars().take(LONGEST).collect();
    if let Some(notes) = &author.kit.logged {
        notes.borrow_mut().push((level, text));
        return Ok(());
    }
    let plugin = &*author.plugin;
    match level {
        "error" => tracing::error!(plugin, message = text),
        "warn" => tracing::warn!(plugin, message = text),
        "info" => tracing::info!(plugin, message = text),
        _ => tracing::debug!(plugin, message = text),
    }
    Ok(())
}
