//! `response`: the response on its way to the browser.

use http::{HeaderName, HeaderValue};
use mlua::{BString, LuaString};

use crate::lua::api::{Name, Slot, handle, misuse};

/// The response on its way to the browser.
pub(crate) struct ResponseHandle(pub(crate) Slot);

handle! {
    ResponseHandle "response";

    /// The status.
    #[phases(ResponseHeaders | Log)]
    #[example("if response:status() >= 500 then … end")]
    fn status(_lua, live) -> i64 {
        Ok(i64::from(live.exchange.response.status.as_u16()))
    }

    /// The error code, when the gateway did not serve the request.
    #[phases(ResponseHeaders | Log)]
    #[example("local code = response:code() or \"ok\"")]
    fn code(lua, live) -> Option<LuaString> {
        live.exchange.code.as_ref().map(|it| lua.create_string(it)).transpose()
    }

    /// The first header of that name.
    #[phases(ResponseHeaders | Log)]
    #[example("local kind = response:header \"content-type\"")]
    fn header(lua, live, name: Name) -> Option<LuaString> {
        let value = name.get().and_then(|it| live.exchange.response.headers.get(it));
        value.map(|it| lua.create_string(it.as_bytes())).transpose()
    }

    /// The names of all headers, in lower case and sorted.
    #[phases(ResponseHeaders | Log)]
    #[example("local names = table.concat(response:names(), \", \")")]
    fn names(lua, live) -> mlua::Table {
        let mut names: Vec<&str> = live.exchange.response.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        lua.create_sequence_from(names)
    }

    /// Sets a header, in place of all of that name.
    #[phases(ResponseHeaders)]
    #[example("response:set_header(\"access-control-allow-origin\", \"*\")")]
    fn set_header(_lua, live, name: Name, value: BString) -> () {
        let (name, value) = writable("response:set_header", name, value)?;
        live.exchange.response.headers.insert(name, value);
        Ok(())
    }

    /// Adds a header beside those of that name.
    #[phases(ResponseHeaders)]
    #[example("response:add_header(\"vary\", \"Origin\")")]
    fn add_header(_lua, live, name: Name, value: BString) -> () {
        let (name, value) = writable("response:add_header", name, value)?;
        super::upstream::add(&mut live.exchange.response.headers, name, value)
    }

    /// Takes out all headers of that name.
    #[phases(ResponseHeaders)]
    #[example("response:remove_header \"server\"")]
    fn remove_header(_lua, live, name: Name) -> () {
        let Some(name) = name.get() else { return Ok(()) };
        if is_framing(name.as_str()) {
            return Err(misuse(format!("response:remove_header: {name} is the gateway's to say")));
        }
        live.exchange.response.headers.remove(name);
        Ok(())
    }
}

fn writable(function: &str, name: Name, value: BString) -> mlua::Result<(HeaderName, HeaderValue)> {
    let (name, value) = super::upstream::header(function, name, value)?;
    if is_framing(name.as_str()) {
        return Err(misuse(format!("{function}: {name} is the gateway's to say")));
    }
    Ok((name, value))
}

/// Headers that say where a response ends or what its connection becomes.
fn is_framing(name: &str) -> bool {
    matches!(name, "connection" | "upgrade" | "content-length" | "transfer-encoding")
        || name.starts_with("sec-websocket-")
}
