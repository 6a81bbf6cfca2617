//! `tokens`: the principals of a token file.

use std::sync::Arc;

use mlua::{LuaString, UserData, UserDataMethods, Value};

use crate::lua::api::{Function, Place};
use crate::lua::convert;
use crate::policy::{Principal, Tokens};

/// The principals of a token file.
pub(crate) struct TokensHandle(pub(crate) Arc<Tokens>);

pub(super) static FUNCTIONS: &[Function] = &[
    Function {
        name: "find",
        params: &[("token", "string")],
        result: "table?",
        place: Place::Anywhere,
        doc: " The principal that the token belongs to: a table with its `id`, its attributes, `expires` in seconds since the\n Unix epoch when its token has an end, and its `functions` when it has its own. The time it takes does not tell how\n much of the token is right.\n",
        example: "local principal = conf.tokens:find(presented)",
    },
    Function {
        name: "key",
        params: &[("token", "string")],
        result: "string",
        place: Place::Anywhere,
        doc: " A name of a token that does not give it away, to be kept for `session_tick`.\n",
        example: "request:set(\"token\", conf.tokens:key(presented))",
    },
    Function {
        name: "find_key",
        params: &[("key", "string")],
        result: "table?",
        place: Place::Anywhere,
        doc: " The principal whose token has this key, in the file as it is now.\n",
        example: "local principal = conf.tokens:find_key(request:get \"token\")",
    },
];

impl UserData for TokensHandle {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        let table = |lua: &mlua::Lua, found: Option<&Principal>| match found {
            Some(principal) => convert::principal(lua, principal).map(Value::Table),
            None => Ok(Value::Nil),
        };
        methods.add_method("find", move |lua, this, token: LuaString| {
            table(lua, token.to_str().ok().and_then(|it| this.0.find(&it)))
        });
        methods.add_method("key", |_, _, token: LuaString| Ok(Tokens::key(&token.to_str()?)));
        methods.add_method("find_key", move |lua, this, key: LuaString| {
            table(lua, key.to_str().ok().and_then(|it| this.0.find_key(&it)))
        });
    }
}
