//! `tokens`: the principals of a token file.

use std::sync::Arc;

use mlua::{LuaString, UserData, UserDataMethods, Value};

use crate::lua::api::Function;
use crate::lua::convert;
use crate::policy::{Phase, Phases, Tokens};

/// The principals of a token file.
pub(crate) struct TokensHandle(pub(crate) Arc<Tokens>);

pub(super) static FUNCTIONS: &[Function] = &[Function {
    handle: "tokens",
    name: "find",
    params: &[("token", "string")],
    result: "table?",
    phases: Phases::of(&Phase::ALL),
    doc: " The principal that the token belongs to: a table with its `id`, its attributes and, when it has its own,\n its `functions`. The time it takes does not tell how much of the token is right.\n",
    example: "local principal = conf.tokens:find(presented)",
}];

impl UserData for TokensHandle {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("find", |lua, this, token: LuaString| {
            match token.to_str().ok().and_then(|it| this.0.find(&it)) {
                Some(principal) => convert::principal(lua, principal).map(Value::Table),
                None => Ok(Value::Nil),
            }
        });
    }
}
