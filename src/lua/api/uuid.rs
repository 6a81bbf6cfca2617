//! `uuid`: names that nobody else has.

use std::time::Duration;

use mlua::LuaString;
use uuid::{NoContext, Timestamp, Uuid};

use crate::lua::api::module;

module! {
    "uuid" "Names that nobody else has (RFC 9562).";

    /// A random one.
    #[example("upstream:set_header(\"x-request-id\", uuid.v4())")]
    now fn v4(lua, author) -> (LuaString, "string") {
        lua.create_string(Uuid::new_v4().to_string())
    }

    /// A random one that begins with the time, so that later ones sort behind earlier ones.
    #[example("local id = uuid.v7()")]
    now fn v7(lua, author) -> (LuaString, "string") {
        let now = Duration::try_from_secs_f64(author.kit.time.now()).unwrap_or_default();
        let at = Timestamp::from_unix(NoContext, now.as_secs(), now.subsec_nanos());
        lua.create_string(Uuid::new_v7(at).to_string())
    }
}
