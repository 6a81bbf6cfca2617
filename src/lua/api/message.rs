//! `message`: a message of a session.

use bytes::Bytes;
use mlua::LuaString;

use crate::lua::api::{Live, Slot, handle, misuse};
use crate::policy::Message;

/// A message of a session.
pub(crate) struct MessageHandle(pub(crate) Slot);

/// Largest message that a plugin may put in the place of another, in bytes.
const LARGEST: usize = 1 << 20;

handle! {
    MessageHandle "message";

    /// Who sent it: `browser` or `function`.
    #[phases(SessionMessage)]
    #[example("if message:from() == \"browser\" then … end")]
    fn from(lua, live) -> LuaString {
        lua.create_string(of(live)?.from.name())
    }

    /// What it is: `text` or `binary`.
    #[phases(SessionMessage)]
    #[example("if message:kind() == \"text\" then … end")]
    fn kind(lua, live) -> LuaString {
        lua.create_string(if of(live)?.is_text { "text" } else { "binary" })
    }

    /// What it says.
    #[phases(SessionMessage)]
    #[example("local said = json.decode(message:payload())")]
    fn payload(lua, live) -> LuaString {
        lua.create_string(&of(live)?.payload)
    }

    /// How many bytes that are.
    #[phases(SessionMessage)]
    #[example("if message:size() > 1024 then … end")]
    fn size(_lua, live) -> i64 {
        Ok(of(live)?.payload.len() as i64)
    }

    /// Puts something else in its place, at most 1 MiB.
    #[phases(SessionMessage)]
    #[example("message:replace(json.encode(said))")]
    fn replace(_lua, live, payload: LuaString) -> () {
        let payload = payload.as_bytes();
        if payload.len() > LARGEST {
            return Err(misuse("message:replace: a message has at most 1 MiB"));
        }
        of(live)?.payload = Bytes::copy_from_slice(&payload);
        Ok(())
    }

    /// Does not pass it on. To end the session instead, return what `request:reject` gives.
    #[phases(SessionMessage)]
    #[example("message:drop()")]
    fn drop(_lua, live) -> () {
        of(live)?.is_dropped = true;
        Ok(())
    }
}

fn of(live: &mut Live) -> mlua::Result<&mut Message> {
    live.exchange.message.as_mut().ok_or_else(|| misuse("message: there is none"))
}
