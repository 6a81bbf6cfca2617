//! What a plugin sees of Lua: an allow-list, in tables of its own.
//!
//! Each plugin has its own globals and its own copies of the libraries, so no plugin can change another's. Nothing
//! reads files, loads bytecode or C, or runs programs. This keeps plugins out of each other's way and out of trouble;
//! it is not a jail for hostile authors, which PUC Lua does not promise.

use std::rc::Rc;

use mlua::chunk::ChunkMode;
use mlua::{Function, Lua, LuaOptions, LuaString, StdLib, Table, Value};

use crate::lua::api::{Time, install_log, install_time, misuse};
use crate::lua::bundle::{Bundle, LIBRARY};

/// Base functions that are safe as they are.
const BASE: [&str; 16] = [
    "assert",
    "error",
    "getmetatable",
    "ipairs",
    "next",
    "pairs",
    "pcall",
    "rawequal",
    "rawget",
    "rawlen",
    "rawset",
    "select",
    "tonumber",
    "tostring",
    "type",
    "xpcall",
];

/// Libraries, and the functions of each that are not there.
const LIBRARIES: [(&str, &[&str]); 6] = [
    ("string", &["dump"]),
    ("table", &[]),
    ("math", &["randomseed"]),
    ("utf8", &[]),
    ("coroutine", &[]),
    ("os", &["execute", "exit", "getenv", "remove", "rename", "setlocale", "tmpname"]),
];

/// A VM without anything that a plugin must not have.
///
/// # Errors
/// When the memory limit is too small for the libraries themselves.
pub(super) fn vm(memory: usize) -> mlua::Result<Lua> {
    let libraries =
        StdLib::STRING | StdLib::TABLE | StdLib::MATH | StdLib::UTF8 | StdLib::COROUTINE | StdLib::OS;
    let lua = Lua::new_with(libraries, LuaOptions::default())?;
    lua.set_memory_limit(memory)?;
    // `("x"):upper()` goes through one metatable for all plugins: it points at a copy that nobody can reach.
    let strings = lua.create_table()?;
    strings.raw_set("__index", library(&lua, "string", &["dump"])?)?;
    strings.raw_set("__metatable", false)?;
    lua.set_type_metatable::<LuaString>(Some(strings));
    Ok(lua)
}

/// The globals of one plugin.
pub(super) fn environment(lua: &Lua, bundle: &Rc<Modules>, time: &Time) -> mlua::Result<Table> {
    let globals = lua.globals();
    let env = lua.create_table()?;
    for name in BASE {
        env.raw_set(name, globals.raw_get::<Value>(name)?)?;
    }
    for (name, absent) in LIBRARIES {
        env.raw_set(name, library(lua, name, absent)?)?;
    }
    env.raw_set("_G", &env)?;
    env.raw_set("_VERSION", globals.raw_get::<Value>("_VERSION")?)?;

    let stock: Function = globals.raw_get("setmetatable")?;
    let guarded = lua.create_function(move |_, (table, metatable): (Table, Option<Table>)| {
        // Finalisers run at moments of the collector's choosing, outside of every phase.
        if metatable.as_ref().is_some_and(|it| it.raw_get::<Value>("__gc").is_ok_and(|it| !it.is_nil())) {
            return Err(misuse("setmetatable: `__gc` is not available to plugins"));
        }
        stock.call::<Table>((table, metatable))
    })?;
    env.raw_set("setmetatable", guarded)?;

    let log = install_log(lua, &bundle.bundle.name)?;
    env.raw_set("print", log.raw_get::<Function>("info")?)?;
    let loaded = lua.create_table()?;
    loaded.raw_set("streamgate.log", log)?;
    loaded.raw_set("streamgate.time", install_time(lua, time.clone())?)?;
    let (modules, module_env) = (Rc::clone(bundle), env.clone());
    let require = lua.create_function(move |lua, name: LuaString| {
        let name = name.to_str()?.to_owned();
        let present: Value = loaded.raw_get(name.as_str())?;
        if !present.is_nil() {
            return Ok(present);
        }
        let (path, text) = modules.find(&name)?;
        let value: Value = chunk(lua, &path, &text, &module_env)?.call(name.as_str())?;
        let value = if value.is_nil() { Value::Boolean(true) } else { value };
        loaded.raw_set(name.as_str(), &value)?;
        Ok(value)
    })?;
    env.raw_set("require", require)?;
    Ok(env)
}

/// Loads a text in an environment. Bytecode is refused: no Lua checks it.
pub(super) fn chunk(lua: &Lua, path: &str, text: &str, env: &Table) -> mlua::Result<Function> {
    lua.load(text)
        .set_name(format!("@{path}"))
        .set_mode(ChunkMode::Text)
        .set_environment(env.clone())
        .into_function()
}

/// What `require` finds for one plugin: the library for authors, then the plugin's own files.
pub(super) struct Modules {
    pub(super) bundle: std::sync::Arc<Bundle>,
    /// Further modules, for specs.
    pub(super) extra: Vec<(&'static str, &'static str)>,
}

impl Modules {
    fn find(&self, name: &str) -> mlua::Result<(String, String)> {
        if let Some((_, text)) = LIBRARY.iter().chain(&self.extra).find(|(it, _)| *it == name) {
            return Ok((format!("lua/{}.lua", name.replace('.', "/")), (*text).to_owned()));
        }
        if let Some(file) = self.bundle.files.get(&format!("{name}.lua")) {
            return Ok((file.path.display().to_string(), file.text.clone()));
        }
        let known: Vec<&str> =
            LIBRARY.iter().map(|(it, _)| *it).chain(["streamgate.log", "streamgate.time"]).collect();
        Err(misuse(format!(
            "require: no module {name:?}; there are {}, and the files of the plugin's own folder",
            known.join(", ")
        )))
    }
}

fn library(lua: &Lua, name: &str, absent: &[&str]) -> mlua::Result<Table> {
    let copy = lua.create_table()?;
    for pair in lua.globals().raw_get::<Table>(name)?.pairs::<LuaString, Value>() {
        let (key, value) = pair?;
        if !absent.contains(&&*key.to_str()?) {
            copy.raw_set(key, value)?;
        }
    }
    Ok(copy)
}
