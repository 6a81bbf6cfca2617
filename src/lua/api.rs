//! What scripts may call. Each function is declared once: binding, phase check, reference page and editor stub come
//! from its declaration.

mod cache;
mod codec;
mod cookie;
mod crypto;
mod http;
mod ip;
mod json;
mod jwt;
mod kv;
mod lease;
mod log;
mod message;
mod metrics;
pub(crate) mod modules;
mod name;
mod oidc;
mod password;
mod queue;
mod ratelimit;
mod regex;
mod request;
mod response;
mod session;
mod time;
mod timer;
mod tokens;
mod upstream;
mod url;
mod uuid;

use std::cell::{RefCell, RefMut};
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use mlua::{LuaString, Value};

use crate::policy::{Decision, Exchange, Phase, Phases};
use crate::rejection::Declared;

pub(crate) use cache::Flights;
pub(crate) use message::MessageHandle;
pub(crate) use modules::Author;
pub(crate) use name::{Name, Names};
pub(crate) use request::RequestHandle;
pub(crate) use response::ResponseHandle;
pub(crate) use session::SessionHandle;
pub(crate) use time::Time;
pub(crate) use tokens::TokensHandle;
pub(crate) use upstream::UpstreamHandle;

/// One function of the API.
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) params: &'static [(&'static str, &'static str)],
    pub(crate) result: &'static str,
    pub(crate) place: Place,
    pub(crate) doc: &'static str,
    pub(crate) example: &'static str,
}

/// Where a function may be called.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// In every phase, and while the plugin is loaded.
    Anywhere,
    /// In these phases.
    In(Phases),
    /// In the phases that may wait.
    Waiting,
}

/// What the handles of a VM point at while a phase runs.
pub(crate) type Slot = Rc<RefCell<Option<Live>>>;

/// A phase that is running.
pub(crate) struct Live {
    pub(crate) phase: Phase,
    pub(crate) exchange: Exchange,
    /// What `request:reject` or `request:respond` decided; it counts once the script returns it.
    pub(crate) decision: Option<Decision>,
    /// The codes that the plugin declares.
    pub(crate) codes: Rc<[Arc<Declared>]>,
}

/// A script used the API in a way that is not allowed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(pub(crate) String);

pub(crate) fn misuse(message: impl Into<String>) -> mlua::Error {
    mlua::Error::external(Misuse(message.into()))
}

/// The running phase, for a function that is allowed in some phases.
pub(crate) fn enter<'a>(
    slot: &'a Slot,
    handle: &str,
    name: &str,
    allowed: Phases,
) -> mlua::Result<RefMut<'a, Live>> {
    let live = slot
        .try_borrow_mut()
        .map_err(|_| misuse(format!("{handle}:{name} was called from within itself")))?;
    let live = RefMut::filter_map(live, Option::as_mut).map_err(|_| {
        misuse(format!("{handle}:{name} was called outside of a phase; keep data, not handles"))
    })?;
    if allowed.contains(live.phase) {
        return Ok(live);
    }
    let phase = live.phase;
    Err(misuse(format!("{handle}:{name} can be called in {}, not in {phase}", allowed.names())))
}

/// The name that a Rust type has for the authors of plugins.
pub(crate) trait LuaType {
    const NAME: &'static str;
}

macro_rules! lua_types {
    ($($ty:ty => $name:literal),* $(,)?) => { $(impl LuaType for $ty { const NAME: &'static str = $name; })* };
}

lua_types! {
    () => "nil",
    bool => "boolean",
    i64 => "integer",
    LuaString => "string",
    Name => "string",
    mlua::BString => "string",
    Option<LuaString> => "string?",
    f64 => "number",
    mlua::Variadic<Value> => "...",
    Option<f64> => "number?",
    Option<i64> => "integer?",
    Option<bool> => "boolean?",
    mlua::Function => "function",
    mlua::Table => "table",
    Option<mlua::Table> => "table?",
    Value => "any",
    Choice => "streamgate.Decision",
}

/// What a script returns to end a request: the decision itself waits in the [`Live`] phase.
pub(crate) struct Choice;

/// The value that stands for a decision inside a VM.
pub(crate) const CHOICE: Value =
    Value::LightUserData(mlua::LightUserData(std::ptr::dangling_mut::<u64>().cast()));

impl mlua::IntoLua for Choice {
    fn into_lua(self, _: &mlua::Lua) -> mlua::Result<Value> {
        Ok(CHOICE)
    }
}

/// Declares the functions of one handle.
macro_rules! handle {
    (
        $type:ident $handle:literal;
        $(
            $(#[doc = $doc:literal])+
            #[phases($($phase:ident)|+)]
            #[example($example:literal)]
            fn $name:ident($lua:ident, $live:ident $(, $arg:ident: $ty:ty)*) -> $result:ty $body:block
        )*
    ) => {
        /// The functions of this handle.
        pub(super) static FUNCTIONS: &[super::Function] = &[$(
            super::Function {
                name: stringify!($name),
                params: &[$((stringify!($arg), <$ty as super::LuaType>::NAME)),*],
                result: <$result as super::LuaType>::NAME,
                place: super::Place::In($crate::policy::Phases::of(&[$($crate::policy::Phase::$phase),+])),
                doc: concat!($($doc, "\n"),+),
                example: $example,
            },
        )*];

        impl mlua::UserData for $type {
            fn add_methods<M: mlua::UserDataMethods<Self>>(methods: &mut M) {
                $(
                    methods.add_method(stringify!($name), |$lua, this, ($($arg,)*): ($($ty,)*)| -> mlua::Result<$result> {
                        const ALLOWED: $crate::policy::Phases =
                            $crate::policy::Phases::of(&[$($crate::policy::Phase::$phase),+]);
                        #[allow(unused_mut)]
                        let mut entered = super::enter(&this.0, $handle, stringify!($name), ALLOWED)?;
                        #[allow(unused_variables)]
                        let $live = &mut *entered;
                        $body
                    });
                )*
            }
        }
    };
}
pub(crate) use handle;

/// Declares the methods of a value that a module makes: they may be called anywhere.
macro_rules! object {
    (
        $type:ident $handle:literal;
        $(
            $(#[doc = $doc:literal])+
            #[example($example:literal)]
            fn $name:ident($lua:ident, $this:ident $(, $arg:ident: $ty:ty)*) -> ($result:ty, $shown:literal) $body:block
        )*
    ) => {
        /// The functions of this value.
        pub(in crate::lua::api) static FUNCTIONS: &[$crate::lua::api::Function] = &[$(
            $crate::lua::api::Function {
                name: stringify!($name),
                params: &[$((stringify!($arg), <$ty as $crate::lua::api::LuaType>::NAME)),*],
                result: $shown,
                place: $crate::lua::api::Place::Anywhere,
                doc: concat!($($doc, "\n"),+),
                example: $example,
            },
        )*];

        impl mlua::UserData for $type {
            fn add_methods<M: mlua::UserDataMethods<Self>>(methods: &mut M) {
                $(
                    #[allow(unused_variables)]
                    methods.add_method(stringify!($name), |$lua, $this, ($($arg,)*): ($($ty,)*)| -> mlua::Result<$result> { $body });
                )*
            }
        }
    };
}
pub(crate) use object;

/// Declares the functions of one module: `now` ones return at once, `later` ones let the worker go on with others.
macro_rules! module {
    (
        $handle:literal $about:literal;
        $(constants($clua:ident, $ctable:ident) $constants:block)?
        $(
            $(#[doc = $doc:literal])+
            #[example($example:literal)]
            $kind:ident fn $name:ident($lua:ident, $author:ident $(, $arg:ident: $ty:ty)*) -> ($result:ty, $shown:literal) $body:block
        )*
    ) => {
        /// The functions of this module.
        pub(in crate::lua::api) static MODULE: $crate::lua::api::modules::Module = $crate::lua::api::modules::Module {
            name: concat!("streamgate.", $handle),
            handle: $handle,
            doc: $about,
            functions: &[$(
                $crate::lua::api::Function {
                    name: stringify!($name),
                    params: &[$((stringify!($arg), <$ty as $crate::lua::api::LuaType>::NAME)),*],
                    result: $shown,
                    place: $crate::lua::api::module!(@place $kind),
                    doc: concat!($($doc, "\n"),+),
                    example: $example,
                },
            )*],
            install,
        };

        fn install(lua: &mlua::Lua, author: &std::rc::Rc<$crate::lua::api::Author>) -> mlua::Result<mlua::Table> {
            let table = lua.create_table()?;
            $({
                #[allow(unused_variables)]
                let ($clua, $ctable) = (lua, &table);
                $constants
            })?
            $(
                $crate::lua::api::module!(@bind $kind lua author table $handle $name ($lua, $author $(, $arg: $ty)*) -> $result $body);
            )*
            Ok(table)
        }
    };
    (@place now) => { $crate::lua::api::Place::Anywhere };
    (@place later) => { $crate::lua::api::Place::Waiting };
    (@bind now $vm:ident $who:ident $table:ident $handle:literal $name:ident ($lua:ident, $author:ident $(, $arg:ident: $ty:ty)*) -> $result:ty $body:block) => {
        let $author = std::rc::Rc::clone($who);
        #[allow(unused_variables)]
        let function = $vm.create_function(move |$lua, ($($arg,)*): ($($ty,)*)| -> mlua::Result<$result> {
            #[allow(unused_variables)]
            let $author = &$author;
            $body
        })?;
        $table.raw_set(stringify!($name), function)?;
    };
    (@bind later $vm:ident $who:ident $table:ident $handle:literal $name:ident ($lua:ident, $author:ident $(, $arg:ident: $ty:ty)*) -> $result:ty $body:block) => {
        let author = std::rc::Rc::clone($who);
        #[allow(unused_variables)]
        let function = $vm.create_async_function(move |$lua, ($($arg,)*): ($($ty,)*)| {
            let $author = std::rc::Rc::clone(&author);
            async move {
                $author.may_wait(concat!($handle, ".", stringify!($name)))?;
                let result: mlua::Result<$result> = async { $body }.await;
                result
            }
        })?;
        $who.waits();
        $table.raw_set(stringify!($name), function)?;
    };
}
pub(crate) use module;

/// Something that scripts call functions of.
pub(crate) struct Handle {
    name: &'static str,
    doc: &'static str,
    functions: &'static [Function],
    /// How its functions are called.
    dot: char,
}

/// The handles and what they are, in the order of the reference pages.
fn handles() -> Vec<Handle> {
    let method = |name, doc, functions| Handle { name, doc, functions, dot: ':' };
    let mut all = vec![
        method(
            "request",
            "The browser's request. Every phase but `init` gets it as its first argument.",
            request::FUNCTIONS,
        ),
        method(
            "upstream",
            "The request that goes upstream; `upstream_request` gets it as its second argument.",
            upstream::FUNCTIONS,
        ),
        method(
            "response",
            "The response on its way to the browser; `response_headers` and `log` get it as their second argument.",
            response::FUNCTIONS,
        ),
        method(
            "session",
            "An open session; the phases of a session get it as their second argument.",
            session::FUNCTIONS,
        ),
        method(
            "message",
            "A message of a session; `session_message` gets it as its second argument.",
            message::FUNCTIONS,
        ),
        method(
            "tokens",
            "The principals of a token file: the value of a setting of the type `token-file`.",
            tokens::FUNCTIONS,
        ),
    ];
    for module in modules::MODULES {
        all.push(Handle { name: module.handle, doc: module.doc, functions: module.functions, dot: '.' });
        match module.handle {
            "regex" => all.push(method("pattern", "What `regex.new` gives.", regex::FUNCTIONS)),
            "ip" => all.push(method("set", "What `ip.set` gives.", ip::FUNCTIONS)),
            "metrics" => {
                all.push(method("meter", "What the functions of `metrics` give.", metrics::FUNCTIONS))
            }
            "http" => all.push(method(
                "answer",
                "What `http.request` gives: a table with `status`, `headers` and `body`.",
                http::FUNCTIONS,
            )),
            _ => {}
        }
    }
    all
}

/// `docs/reference/lua.md`.
pub(crate) fn page() -> String {
    let mut page = String::from(
        "# The Lua API\n\n\
         <!-- Written by `make docs` from src/lua/api; do not edit. -->\n\n\
         A plugin is a folder with `plugin.lua` and `schema.lua`; [how to write one](../../plugins/README.md) fits on a page.\n\n\
         ## Phases\n\n\
         | phase | called with | may wait | may reject | may respond | what it is for |\n|---|---|---|---|---|---|\n",
    );
    let write = "a string takes every write";
    for phase in Phase::ALL {
        let arguments = match phase {
            Phase::Init => "conf",
            Phase::UpstreamRequest => "request, upstream, conf",
            Phase::ResponseHeaders | Phase::Log => "request, response, conf",
            Phase::SessionMessage => "request, message, conf",
            it if it.is_of_session() => "request, session, conf",
            _ => "request, conf",
        };
        let [waits, rejects, responds] = [phase.may_wait(), phase.may_reject(), phase.may_respond()]
            .map(|it| if it { "yes" } else { "no" });
        writeln!(page, "| `{phase}` | {arguments} | {waits} | {rejects} | {responds} | {} |", phase.doc())
            .expect(write);
    }
    page += "\nA phase function returns nothing to continue, or what `request:reject` and `request:respond` give.\n\
             A function that is called in a phase that does not allow it raises an error that says where it is allowed.\n\
             In the phases of a session the headers of the request are gone; what was `set` is there.\n\n\
             Two more functions of a plugin run while it is loaded: `configure(conf, step)`, which may return another `conf` for the phases, and `self_test(conf)`. An error of theirs refuses the configuration. `step.id` is the id of the step in its chain, under which a plugin keeps with the request what another step of the same plugin must not take for its own; `step.timeout` is how long it may wait, in seconds.\n";
    for Handle { name: handle, doc, functions, dot } in handles() {
        let code = if dot == '.' { format!("streamgate.{handle}") } else { handle.to_owned() };
        writeln!(page, "\n## `{code}`\n\n{doc}").expect(write);
        for it in functions {
            let params: Vec<String> = it.params.iter().map(|(name, ty)| format!("{name}: {ty}")).collect();
            let result = if it.result == "nil" { String::new() } else { format!(" -> {}", it.result) };
            writeln!(page, "\n### `{handle}{dot}{}({}){result}`\n", it.name, params.join(", ")).expect(write);
            writeln!(page, "{}\n", doc_text(it.doc)).expect(write);
            match it.place {
                Place::Anywhere => {}
                Place::In(phases) => writeln!(page, "- Phases: {}", phases.names()).expect(write),
                Place::Waiting => page += "- Phases: those that may wait\n",
            }
            writeln!(page, "- Example: `{}`", it.example).expect(write);
        }
    }
    page
}

/// `lua/types/…`: stubs for editors, by their path in that folder. Handles are in one file; a module has its own, so that
/// an editor finds it behind `require`.
pub(crate) fn types() -> Vec<(String, String)> {
    const HEAD: &str = "-- Written by `make docs` from src/lua/api; do not edit.\n";
    let write = "a string takes every write";
    let mut handles_page = format!("---@meta\n{HEAD}\n---@class streamgate.Decision\n\n{}", plugin_class());
    let mut pages = Vec::new();
    for handle in handles() {
        let class = format!("streamgate.{}{}", handle.name[..1].to_uppercase(), &handle.name[1..]);
        let text = stub(&handle, &class);
        if handle.dot == ':' {
            handles_page += &text;
        } else {
            let name = handle.name;
            let mut page = format!("---@meta streamgate.{name}\n{HEAD}{text}");
            writeln!(page, "\nreturn {name}").expect(write);
            pages.push((format!("streamgate/{name}.lua"), page));
        }
    }
    pages.insert(0, ("streamgate.lua".into(), handles_page));
    pages
}

/// What `plugin.lua` returns, for editors: a phase that there is not, or an argument of another one, is marked.
fn plugin_class() -> String {
    let mut class = String::from(
        "---The table that `plugin.lua` returns.\n\
         ---@class streamgate.Plugin\n\
         ---@field configure? fun(conf: any, step: { id: string, timeout: number }): any\n\
         ---@field self_test? fun(conf: any)\n",
    );
    for phase in Phase::ALL {
        let request = if phase == Phase::Init { "" } else { "request: streamgate.Request, " };
        let second = match phase {
            Phase::UpstreamRequest => "upstream: streamgate.Upstream, ",
            Phase::ResponseHeaders | Phase::Log => "response: streamgate.Response, ",
            Phase::SessionMessage => "message: streamgate.Message, ",
            it if it.is_of_session() => "session: streamgate.Session, ",
            _ => "",
        };
        let result = if phase.may_reject() { ": streamgate.Decision?" } else { "" };
        writeln!(class, "---@field {phase}? fun({request}{second}conf: any){result}")
            .expect("a string takes every write");
    }
    class
}

fn stub(handle: &Handle, class: &str) -> String {
    let Handle { name: handle, doc, functions, dot } = handle;
    let write = "a string takes every write";
    let fields = match *handle {
        "answer" => {
            "---@field status integer\n---@field headers table<string, string> names in lower case\n---@field body string\n"
        }
        _ => "",
    };
    let mut page = format!("\n---{doc}\n---@class {class}\n{fields}local {handle} = {{}}\n");
    if *handle == "json" {
        page += "\n--- A null of JSON, which Lua has no value for.\njson.null = {}\n";
    }
    for it in *functions {
        writeln!(page, "\n---{}", doc_text(it.doc).replace('\n', "\n---")).expect(write);
        for (name, ty) in it.params {
            let (name, ty) = match (ty.strip_suffix('?'), *ty) {
                (Some(ty), _) => (format!("{name}?"), ty),
                (None, "...") => ("...".to_owned(), "any"),
                (None, ty) => ((*name).to_owned(), ty),
            };
            writeln!(page, "---@param {name} {ty}").expect(write);
        }
        for result in it.result.split(", ").filter(|it| *it != "nil") {
            writeln!(page, "---@return {result}").expect(write);
        }
        let params: Vec<&str> =
            it.params.iter().map(|(name, ty)| if *ty == "..." { "..." } else { name }).collect();
        writeln!(page, "function {handle}{dot}{}({}) end", it.name, params.join(", ")).expect(write);
    }
    page
}

/// A doc comment without the space that follows its slashes.
fn doc_text(doc: &str) -> String {
    doc.trim_end().lines().map(|it| it.strip_prefix(' ').unwrap_or(it)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_and_the_stubs_are_fresh() {
        assert_eq!(include_str!("../../docs/reference/lua.md"), page(), "run `make docs`");
        for (path, text) in types() {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("lua/types").join(path);
            let written = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(written, text, "{}: run `make docs`", path.display());
        }
    }
}
