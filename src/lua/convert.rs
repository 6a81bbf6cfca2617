//! Values on their way into a VM and out of it.

use mlua::{IntoLua, Lua, LuaString, Table, Value};
use serde_json::Value as Json;

use crate::config::{self, Node, Place};
use crate::lua::api::TokensHandle;
use crate::policy::{Principal, Setting, Settings};

/// How deep a value may be nested.
const DEEPEST: usize = 16;

/// Most entries of all tables of a value that a script hands over, and most bytes of its strings.
const MOST: Room = Room { n_entries: 1024, n_bytes: 1 << 20 };

/// How deep the JSON of other programs may be nested.
pub(crate) const DEEPEST_JSON: usize = 32;

/// The same of what becomes JSON for other programs.
const MOST_JSON: Room = Room { n_entries: 100_000, n_bytes: 1 << 20 };

/// How much of a value may still come: a script can write the same table a thousand times into another.
#[derive(Clone, Copy)]
struct Room {
    n_entries: usize,
    n_bytes: usize,
}

/// A plugin's settings, as the table `conf`.
pub(crate) fn settings(lua: &Lua, settings: &Settings) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    for (name, value) in settings.iter() {
        table.raw_set(name, setting(lua, value)?)?;
    }
    Ok(table)
}

pub(crate) fn setting(lua: &Lua, value: &Setting) -> mlua::Result<Value> {
    match value {
        Setting::Text(it) | Setting::Url(it) => it.as_str().into_lua(lua),
        Setting::Integer(it) => it.into_lua(lua),
        Setting::Number(it) => it.into_lua(lua),
        Setting::Boolean(it) => it.into_lua(lua),
        Setting::List(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for item in items {
                table.raw_push(setting(lua, item)?)?;
            }
            table.into_lua(lua)
        }
        Setting::Map(entries) => {
            let table = lua.create_table_with_capacity(0, entries.len())?;
            for (name, value) in entries {
                table.raw_set(name.as_str(), setting(lua, value)?)?;
            }
            table.into_lua(lua)
        }
        Setting::Secret(it) => it.expose().into_lua(lua),
        Setting::Tokens(it) => lua.create_userdata(TokensHandle(it.clone()))?.into_lua(lua),
    }
}

/// A JSON value as Lua has it. A JSON null becomes nil.
pub(crate) fn from_json(lua: &Lua, value: &Json) -> mlua::Result<Value> {
    match value {
        Json::Null => Ok(Value::Nil),
        Json::Bool(it) => it.into_lua(lua),
        Json::Number(it) => match it.as_i64() {
            Some(it) => it.into_lua(lua),
            None => it.as_f64().into_lua(lua),
        },
        Json::String(it) => it.as_str().into_lua(lua),
        Json::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for item in items {
                table.raw_push(from_json(lua, item)?)?;
            }
            table.into_lua(lua)
        }
        Json::Object(entries) => object(lua, entries)?.into_lua(lua),
    }
}

/// A JSON object as a table.
pub(crate) fn object(lua: &Lua, entries: &serde_json::Map<String, Json>) -> mlua::Result<Table> {
    let table = lua.create_table_with_capacity(0, entries.len())?;
    for (name, value) in entries {
        table.raw_set(name.as_str(), from_json(lua, value)?)?;
    }
    Ok(table)
}

/// JSON of another program as Lua has it: nulls are [`Value::NULL`], and an empty array is known as one.
///
/// # Errors
/// When it is nested too deep, and when memory runs out.
pub(crate) fn json(lua: &Lua, value: &Json, depth: usize) -> mlua::Result<Value> {
    let deeper = || depth.checked_sub(1).ok_or_else(|| mlua::Error::runtime("nested too deep"));
    match value {
        Json::Null => Ok(Value::NULL),
        Json::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            let depth = deeper()?;
            for item in items {
                table.raw_push(json(lua, item, depth)?)?;
            }
            if items.is_empty() {
                table.set_metatable(Some(array_metatable(lua)?))?;
            }
            table.into_lua(lua)
        }
        Json::Object(entries) => {
            let table = lua.create_table_with_capacity(0, entries.len())?;
            let depth = deeper()?;
            for (name, value) in entries {
                table.raw_set(name.as_str(), json(lua, value, depth)?)?;
            }
            table.into_lua(lua)
        }
        other => from_json(lua, other),
    }
}

/// What an array of JSON has for a metatable.
pub(crate) fn array_metatable(lua: &Lua) -> mlua::Result<Table> {
    if let Ok(Value::Table(known)) = lua.named_registry_value(ARRAY) {
        return Ok(known);
    }
    let metatable = lua.create_table()?;
    metatable.raw_set(ARRAY, true)?;
    metatable.raw_set("__metatable", false)?;
    lua.set_named_registry_value(ARRAY, &metatable)?;
    Ok(metatable)
}

/// What is known by this name in the registry, and in the metatable itself.
const ARRAY: &str = "streamgate.array";

/// A script's value as JSON. Functions and the like are errors; so is what is too deep or too large.
pub(crate) fn to_json(value: &Value) -> Result<Json, String> {
    to_json_within(value, DEEPEST, &mut MOST.clone())
}

/// The same for other programs: much larger.
pub(crate) fn to_json_of_any_size(value: &Value) -> Result<Json, String> {
    to_json_within(value, DEEPEST_JSON, &mut MOST_JSON.clone())
}

fn to_json_within(value: &Value, depth: usize, room: &mut Room) -> Result<Json, String> {
    Ok(match value {
        Value::Nil => Json::Null,
        it if *it == Value::NULL => Json::Null,
        Value::Boolean(it) => (*it).into(),
        Value::Integer(it) => (*it).into(),
        Value::Number(it) if !it.is_finite() => return Err(format!("the number {it}")),
        Value::Number(it) => (*it).into(),
        Value::String(it) => room.text(it).map_err(|it| format!("a string {it}"))?.into(),
        Value::Table(table) if depth > 0 => {
            let is_array = table.metatable().is_some_and(|it| it.raw_get(ARRAY).unwrap_or(false));
            let mut items = Vec::new();
            let mut entries = serde_json::Map::new();
            for pair in table.clone().pairs::<Value, Value>() {
                let (key, value) = pair.map_err(|it| it.to_string())?;
                room.entry()?;
                let value = to_json_within(&value, depth - 1, room)?;
                match key {
                    Value::Integer(key) if key == items.len() as i64 + 1 => items.push(value),
                    Value::String(key) => {
                        let key = room.text(&key).map_err(|it| format!("a key {it}"))?;
                        entries.insert(key, value);
                    }
                    _ => return Err("a table whose keys are neither names nor 1 to n".into()),
                }
            }
            match (items.is_empty() && !is_array, entries.is_empty()) {
                (true, _) => Json::Object(entries),
                (false, true) => Json::Array(items),
                (false, false) => return Err("a table that mixes names with numbers".into()),
            }
        }
        Value::Table(_) => return Err("a table that is nested too deep".into()),
        other => return Err(format!("a {}", other.type_name())),
    })
}

impl Room {
    fn entry(&mut self) -> Result<(), String> {
        let left =
            self.n_entries.checked_sub(1).ok_or("a table that has too many entries, with those in it")?;
        self.n_entries = left;
        Ok(())
    }

    fn text(&mut self, text: &LuaString) -> Result<String, &'static str> {
        let left = self.n_bytes.checked_sub(text.as_bytes().len());
        self.n_bytes = left.ok_or("that is more than 1 MiB, with the others")?;
        Ok(text.to_str().map_err(|_| "that is not UTF-8")?.to_owned())
    }
}

/// A principal as plugins have it: a table with `id`, `functions` when it has its own, and its attributes.
pub(crate) fn principal(lua: &Lua, principal: &Principal) -> mlua::Result<Table> {
    let table = object(lua, &principal.attributes)?;
    table.raw_set("id", principal.id.as_str())?;
    if let Some(functions) = &principal.functions {
        table.raw_set("functions", functions.as_slice())?;
    }
    Ok(table)
}

/// A plugin's table as a principal.
pub(crate) fn to_principal(value: &Value) -> Result<Principal, String> {
    let Value::Table(table) = value else { return Err("expected a table with an `id`".into()) };
    let (mut id, mut functions, mut attributes) = (None, None, serde_json::Map::new());
    let room = &mut MOST.clone();
    for pair in table.clone().pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|it| it.to_string())?;
        let Value::String(key) = key else { return Err("expected a table with an `id`".into()) };
        room.entry()?;
        let key = room.text(&key).map_err(|it| format!("a key {it}"))?;
        let value = to_json_within(&value, DEEPEST - 1, room)?;
        match (&*key, value) {
            ("id", Json::String(it)) => id = Some(it),
            ("id", _) => break,
            ("functions", it) => functions = Some(it),
            (key, it) => drop(attributes.insert(key.to_owned(), it)),
        }
    }
    let id = id.ok_or("expected a table whose `id` is a string")?;
    Principal::check_id(&id)?;
    let functions = match functions {
        None => None,
        Some(Json::Object(it)) if it.is_empty() => Some(Vec::new()), // an empty list looks like this in Lua
        Some(Json::Array(items)) => {
            let ids = items.into_iter().map(|it| match it {
                Json::String(it) => Ok(it),
                other => Err(format!("expected a list of function ids, not of {other}")),
            });
            Some(ids.collect::<Result<_, _>>()?)
        }
        Some(_) => return Err("expected `functions` to be a list of ids".into()),
    };
    Ok(Principal { id, attributes, functions })
}

/// A script's value as if it had been written in a configuration file.
pub(crate) fn to_node(value: &Value, place: &Place) -> Result<Node, String> {
    let value = match value {
        Value::Boolean(it) => config::Value::Boolean(*it),
        Value::Integer(it) => config::Value::Integer(*it),
        Value::Number(it) => config::Value::Float(*it),
        Value::String(it) => {
            config::Value::Text(it.to_str().map_err(|_| "a string that is not UTF-8")?.to_owned())
        }
        Value::Table(table) if table.raw_len() > 0 => {
            let items: Vec<Value> =
                table.sequence_values().collect::<mlua::Result<_>>().map_err(|it| it.to_string())?;
            config::Value::List(items.iter().map(|it| to_node(it, place)).collect::<Result<_, _>>()?)
        }
        Value::Table(table) => {
            let mut entries = Vec::new();
            for pair in table.clone().pairs::<String, Value>() {
                let (key, value) = pair.map_err(|_| "a table whose keys are not names")?;
                entries.push(config::Entry { key, place: place.clone(), node: to_node(&value, place)? });
            }
            entries.sort_by(|a, b| a.key.cmp(&b.key));
            config::Value::Table(entries.into_iter().collect())
        }
        other => return Err(format!("a {}", other.type_name())),
    };
    Ok(Node { value, place: place.clone() })
}
