//! `session`: an open session.

use mlua::LuaString;

use crate::lua::api::{Slot, handle};

/// An open session.
pub(crate) struct SessionHandle(pub(crate) Slot);

handle! {
    SessionHandle "session";

    /// A name of the session that does not let anybody into it. It stays when the browser comes back.
    #[phases(SessionOpen | SessionTick | SessionPark | SessionResume | SessionEnd)]
    #[example("lease.release(\"sessions\", session:id())")]
    fn id(lua, live) -> LuaString {
        lua.create_string(live.exchange.session.id.as_deref().unwrap_or_default())
    }

    /// The function that it is a session of.
    #[phases(SessionOpen | SessionTick | SessionPark | SessionResume | SessionEnd)]
    #[example("local name = session:function_id()")]
    fn function_id(lua, live) -> LuaString {
        lua.create_string(live.exchange.function.as_deref().unwrap_or_default())
    }

    /// How long it has been open, in seconds.
    #[phases(SessionOpen | SessionTick | SessionPark | SessionResume | SessionEnd)]
    #[example("if session:age() > conf.longest then … end")]
    fn age(_lua, live) -> f64 {
        Ok(live.exchange.session.age.as_secs_f64())
    }

    /// Why it was parked or has ended, or how its browser came back (`reattach`, `reconnect`).
    #[phases(SessionOpen | SessionTick | SessionPark | SessionResume | SessionEnd)]
    #[example("log.info(\"ended: \" .. session:cause())")]
    fn cause(lua, live) -> Option<LuaString> {
        (!live.exchange.session.cause.is_empty()).then(|| lua.create_string(live.exchange.session.cause)).transpose()
    }

    /// Bytes that came from the browser.
    #[phases(SessionOpen | SessionTick | SessionPark | SessionResume | SessionEnd)]
    #[example("local n = session:received()")]
    fn received(_lua, live) -> i64 {
        Ok(live.exchange.session.received as i64)
    }

    /// Bytes that went to the browser.
    #[phases(SessionOpen | SessionTick | SessionPark | SessionResume | SessionEnd)]
    #[example("local n = session:sent()")]
    fn sent(_lua, live) -> i64 {
        Ok(live.exchange.session.sent as i64)
    }
}
