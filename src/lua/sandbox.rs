//! What a plugin sees of Lua: an allow-list, in tables of its own.
//!
//! Each plugin has its own globals and its own copies of the libraries, so no plugin can change another's. Nothing
//! reads files, loads bytecode or C, or runs programs. This keeps plugins out of each other's way and out of trouble;
//! it is not a jail for hostile authors, which PUC Lua does not promise.

use std::rc::Rc;

use mlua::chunk::ChunkMode;
use mlua::state::{GcIncParams, GcMode};
use mlua::{Function, Lua, LuaOptions, LuaString, StdLib, Table, Value};

use crate::config::did_you_mean;
use crate::lua::api::{Author, Names, misuse, modules};
use crate::lua::budget::{self, Budget};
use crate::lua::bundle::{Bundle, LIBRARY};
use crate::lua::rocks::{Found, Rocks};
use crate::lua::strings;

/// A collection begins when memory has grown to so many percent of what the last one left. What a waiting call leaves behind
/// has a finaliser, and so outlives the collection that finds it: with Lua's 200 each collection would leave as much more as
/// there was before, up to the limit, where nothing is finalised at all.
const PAUSE: i32 = 130;

/// Coroutines that are kept for the next phases that may wait.
const COROUTINES: usize = 64;

/// A VM without anything that a plugin must not have, and the libraries that plugins get copies of.
///
/// # Errors
/// When the memory limit is too small for the libraries themselves.
pub(super) fn vm(memory: usize, budget: &Budget) -> mlua::Result<(Lua, Table)> {
    let libraries =
        StdLib::STRING | StdLib::TABLE | StdLib::MATH | StdLib::UTF8 | StdLib::COROUTINE | StdLib::OS;
    let lua = Lua::new_with(libraries, LuaOptions::default().thread_pool_size(COROUTINES))?;
    lua.set_memory_limit(memory)?;
    lua.set_app_data(Names::default());
    lua.gc_set_mode(GcMode::Incremental(GcIncParams::default().pause(PAUSE).step_multiplier(400)));
    let globals = lua.globals();
    let [begin, enter, leave] = budget::functions(&lua)?;
    let patterns = strings::patterns(&lua, budget)?;
    let prelude = chunk(&lua, "prelude.lua", include_str!("prelude.lua"), &lua.create_table()?)?;
    let prelude: Table = prelude.call((&globals, begin, enter, leave, patterns, Lua::poll_pending()))?;
    // `("x"):upper()` goes through one metatable for all plugins: it points at a copy that nobody can reach.
    let strings = lua.create_table()?;
    strings.raw_set("__index", copy(&lua, &prelude.raw_get("string")?)?)?;
    strings.raw_set("__metatable", false)?;
    lua.set_type_metatable::<LuaString>(Some(strings));
    Ok((lua, prelude))
}

/// The globals of one plugin: its own copies of the libraries.
pub(super) fn environment(
    lua: &Lua,
    prelude: &Table,
    author: &Rc<Author>,
    modules: &Rc<Modules>,
) -> mlua::Result<Table> {
    let env = lua.create_table()?;
    for pair in prelude.pairs::<LuaString, Value>() {
        match pair? {
            (name, _) if name == "phase" => {}
            (name, Value::Table(library)) => env.raw_set(name, copy(lua, &library)?)?,
            (name, value) => env.raw_set(name, value)?,
        }
    }
    env.raw_set("_G", &env)?;
    let loaded = lua.create_table()?;
    let (modules, module_env, author) = (Rc::clone(modules), env.clone(), Rc::clone(author));
    let print: Function = modules::install(lua, &author, "streamgate.log")?
        .and_then(|it| it.raw_get("info").ok())
        .expect("the log is a module and has this function");
    env.raw_set("print", print)?;
    let require = lua.create_function(move |lua, name: LuaString| {
        let name = name.to_str()?.to_owned();
        let present: Value = loaded.raw_get(name.as_str())?;
        if !present.is_nil() {
            return Ok(present);
        }
        let value = match modules::install(lua, &author, &name)? {
            Some(module) => Value::Table(module),
            None => {
                let (path, text) = modules.find(&name)?;
                chunk(lua, &path, &text, &module_env)?.call(name.as_str())?
            }
        };
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
    /// What others have written.
    pub(super) rocks: std::sync::Arc<Rocks>,
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
        match self.rocks.find(name) {
            Some(Found::Text(path, text)) => return Ok((path.display().to_string(), text.to_owned())),
            Some(Found::InC) => {
                return Err(misuse(format!(
                    "require: {name} is a module in C, which plugins cannot load: it could do anything to the gateway; look for one in Lua, or in the library"
                )));
            }
            None => {}
        }
        let library = LIBRARY.iter().chain(&self.extra).map(|(it, _)| *it);
        let mut known: Vec<&str> = library.chain(modules::names()).collect();
        known.sort_unstable();
        let own = self.bundle.files.keys().filter_map(|it| it.strip_suffix(".lua"));
        let there_are = format!(
            "there are {}, the files of the plugin's own folder, and the trees of `plugins.modules`",
            known.join(", ")
        );
        let whole = format!("streamgate.{name}");
        let written = if known.contains(&&*whole) { &whole } else { name };
        let instead = did_you_mean(written, known.iter().copied().chain(own), &there_are);
        Err(misuse(format!("require: no module {name:?};{instead}")))
    }
}

fn copy(lua: &Lua, library: &Table) -> mlua::Result<Table> {
    let copy = lua.create_table()?;
    for pair in library.pairs::<Value, Value>() {
        let (key, value) = pair?;
        copy.raw_set(key, value)?;
    }
    Ok(copy)
}
