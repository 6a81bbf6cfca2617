//! `json`: texts of other programs.

use mlua::{Lua, LuaString, Table, Value};

use crate::lua::api::{misuse, module};
use crate::lua::convert;

/// Largest text in bytes.
const LONGEST: usize = 1 << 20;

module! {
    "json" "JSON (RFC 8259), at most 1 MiB of it and nested at most 32 deep. `json.null` stands for a null.";

    constants(lua, table) {
        table.raw_set("null", Value::NULL)?;
    }

    /// The value of a text; nil and a reason when it is none.
    #[example("local answer, reason = json.decode(body)")]
    now fn decode(lua, author, text: LuaString) -> ((Value, Option<String>), "any, string?") {
        if text.as_bytes().len() > LONGEST {
            return Ok((Value::Nil, Some("too large".into())));
        }
        read(lua, &text.as_bytes())
    }

    /// A value as text. An empty table is an object, unless `json.array` made it.
    #[example("local body = json.encode { id = principal.id }")]
    now fn encode(lua, author, value: Value) -> (String, "string") {
        let value = convert::to_json_of_any_size(&value)
            .map_err(|it| misuse(format!("json.encode: there is no JSON for {it}")))?;
        let text = value.to_string();
        if text.len() > LONGEST {
            return Err(misuse("json.encode: the text is longer than 1 MiB"));
        }
        Ok(text)
    }

    /// Has a table written as an array, also when it is empty.
    #[example("local body = json.encode { roles = json.array {} }")]
    now fn array(lua, author, items: Table) -> (Table, "table") {
        items.set_metatable(Some(convert::array_metatable(lua)?))?;
        Ok(items)
    }
}

/// What a text says; nil and a reason when it is not JSON, or nested too deep.
pub(super) fn read(lua: &Lua, text: &[u8]) -> mlua::Result<(Value, Option<String>)> {
    match serde_json::from_slice(text) {
        Ok(value) => match convert::json(lua, &value, convert::DEEPEST_JSON) {
            Ok(value) => Ok((value, None)),
            Err(mlua::Error::RuntimeError(reason)) => Ok((Value::Nil, Some(reason))),
            Err(error) => Err(error),
        },
        Err(error) => Ok((Value::Nil, Some(format!("not JSON: {error}")))),
    }
}
