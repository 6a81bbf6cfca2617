//! What scripts may call. Each function is declared once: binding, phase check, reference page and editor stub come
//! from its declaration.

mod log;
mod request;
mod response;
mod time;
mod tokens;
mod upstream;

use std::cell::{RefCell, RefMut};
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use mlua::{LuaString, Value};

use crate::policy::{Decision, Exchange, Phase, Phases};
use crate::rejection::Declared;

pub(crate) use log::install as install_log;
pub(crate) use request::RequestHandle;
pub(crate) use response::ResponseHandle;
pub(crate) use time::{Time, install as install_time};
pub(crate) use tokens::TokensHandle;
pub(crate) use upstream::UpstreamHandle;

/// One function of the API.
pub(crate) struct Function {
    pub(crate) handle: &'static str,
    pub(crate) name: &'static str,
    pub(crate) params: &'static [(&'static str, &'static str)],
    pub(crate) result: &'static str,
    pub(crate) phases: Phases,
    pub(crate) doc: &'static str,
    pub(crate) example: &'static str,
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
    Option<LuaString> => "string?",
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
                handle: $handle,
                name: stringify!($name),
                params: &[$((stringify!($arg), <$ty as super::LuaType>::NAME)),*],
                result: <$result as super::LuaType>::NAME,
                phases: $crate::policy::Phases::of(&[$($crate::policy::Phase::$phase),+]),
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

/// The handles and what they are, in the order of the reference pages.
const HANDLES: [(&str, &str, &[Function]); 6] = [
    ("request", "The browser's request. Every phase gets it as its first argument.", request::FUNCTIONS),
    (
        "upstream",
        "The request that goes upstream; `upstream_request` gets it as its second argument.",
        upstream::FUNCTIONS,
    ),
    (
        "response",
        "The response on its way to the browser; `response_headers` and `log` get it as their second argument.",
        response::FUNCTIONS,
    ),
    (
        "tokens",
        "The principals of a token file: the value of a setting of the type `token-file`.",
        tokens::FUNCTIONS,
    ),
    (
        "log",
        "The gateway's log: `local log = require \"streamgate.log\"`. Each line carries the plugin's name.",
        log::FUNCTIONS,
    ),
    ("time", "The gateway's clock: `local time = require \"streamgate.time\"`.", time::FUNCTIONS),
];

/// `docs/reference/lua.md`.
pub(crate) fn page() -> String {
    let mut page = String::from(
        "# The Lua API\n\n\
         <!-- Written by `make docs` from src/lua/api; do not edit. -->\n\n\
         A plugin is a folder with `plugin.lua` and `schema.lua`; [how to write one](../../plugins/README.md) fits on a page.\n\n\
         ## Phases\n\n\
         | phase | called with | may reject | may respond | what it is for |\n|---|---|---|---|---|\n",
    );
    let write = "a string takes every write";
    for phase in Phase::ALL {
        let arguments = match phase {
            Phase::UpstreamRequest => "request, upstream, conf",
            Phase::ResponseHeaders | Phase::Log => "request, response, conf",
            _ => "request, conf",
        };
        let [rejects, responds] =
            [phase.may_reject(), phase.may_respond()].map(|it| if it { "yes" } else { "no" });
        writeln!(page, "| `{phase}` | {arguments} | {rejects} | {responds} | {} |", phase.doc())
            .expect(write);
    }
    page += "\nA phase function returns nothing to continue, or what `request:reject` and `request:respond` give.\n\
             A function that is called in a phase that does not allow it raises an error that says where it is allowed.\n";
    for (handle, doc, functions) in HANDLES {
        writeln!(page, "\n## `{handle}`\n\n{doc}").expect(write);
        for it in functions {
            let params: Vec<String> = it.params.iter().map(|(name, ty)| format!("{name}: {ty}")).collect();
            let result = if it.result == "nil" { String::new() } else { format!(" -> {}", it.result) };
            let dot = dot_of(it.handle);
            writeln!(page, "\n### `{handle}{dot}{}({}){result}`\n", it.name, params.join(", ")).expect(write);
            writeln!(page, "{}\n", doc_text(it.doc)).expect(write);
            writeln!(page, "- Phases: {}", it.phases.names()).expect(write);
            writeln!(page, "- Example: `{}`", it.example).expect(write);
        }
    }
    page
}

/// `lua/types/streamgate.lua`: stubs for editors.
pub(crate) fn types() -> String {
    let mut page = String::from(
        "---@meta\n-- Written by `make docs` from src/lua/api; do not edit.\n\n---@class streamgate.Decision\n",
    );
    let write = "a string takes every write";
    for (handle, doc, functions) in HANDLES {
        let class = format!("streamgate.{}{}", handle[..1].to_uppercase(), &handle[1..]);
        writeln!(page, "\n---{doc}\n---@class {class}\nlocal {handle} = {{}}").expect(write);
        for it in functions {
            writeln!(page, "\n---{}", doc_text(it.doc).replace('\n', "\n---")).expect(write);
            for (name, ty) in it.params {
                let (name, ty) = match ty.strip_suffix('?') {
                    Some(ty) => (format!("{name}?"), ty),
                    None => ((*name).to_owned(), *ty),
                };
                writeln!(page, "---@param {name} {ty}").expect(write);
            }
            if it.result != "nil" {
                writeln!(page, "---@return {}", it.result).expect(write);
            }
            let params: Vec<&str> = it.params.iter().map(|(name, _)| *name).collect();
            let dot = dot_of(it.handle);
            writeln!(page, "function {handle}{dot}{}({}) end", it.name, params.join(", ")).expect(write);
        }
    }
    page
}

/// How a function of a handle is called: a module's with a dot.
fn dot_of(handle: &str) -> &'static str {
    if matches!(handle, "log" | "time") { "." } else { ":" }
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
        assert_eq!(include_str!("../../lua/types/streamgate.lua"), types(), "run `make docs`");
    }
}
