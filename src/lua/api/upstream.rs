//! `upstream`: the request that goes upstream.

use std::cell::RefCell;
use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use mlua::LuaString;

use crate::lua::api::{Slot, handle, misuse};
use crate::policy;

/// The request that goes upstream.
pub(crate) struct UpstreamHandle(pub(crate) Slot);

/// Most headers of a message; Pingora takes 256.
const MOST: usize = 240;

handle! {
    UpstreamHandle "upstream";

    /// The first header of that name that will go upstream.
    #[phases(UpstreamRequest)]
    #[example("local language = upstream:header \"accept-language\"")]
    fn header(lua, live, name: LuaString) -> Option<LuaString> {
        let name = name.to_str()?;
        live.exchange.upstream.get(&*name).map(|it| lua.create_string(it.as_bytes())).transpose()
    }

    /// Sets a header, in place of all of that name. The headers that NVCF reads (`authorization`, `function-id` and
    /// their like) and those of the connection are the gateway's own.
    #[phases(UpstreamRequest)]
    #[example("upstream:set_header(\"x-tenant\", \"acme\")")]
    fn set_header(_lua, live, name: LuaString, value: LuaString) -> () {
        let (name, value) = writable("upstream:set_header", &name, &value)?;
        live.exchange.upstream.insert(name, value);
        Ok(())
    }

    /// Adds a header beside those of that name.
    #[phases(UpstreamRequest)]
    #[example("upstream:add_header(\"via\", \"1.1 edge\")")]
    fn add_header(_lua, live, name: LuaString, value: LuaString) -> () {
        let (name, value) = writable("upstream:add_header", &name, &value)?;
        add(&mut live.exchange.upstream, name, value)
    }

    /// Takes out all headers of that name.
    #[phases(UpstreamRequest)]
    #[example("upstream:remove_header \"referer\"")]
    fn remove_header(_lua, live, name: LuaString) -> () {
        live.exchange.upstream.remove(&*name.to_str()?);
        Ok(())
    }
}

/// A header from a script; the error says which part of it is wrong.
pub(super) fn header(
    function: &str,
    name: &LuaString,
    value: &LuaString,
) -> mlua::Result<(HeaderName, HeaderValue)> {
    let name = known_name(&name.as_bytes())
        .ok_or_else(|| misuse(format!("{function}: {:?} is not a header name", name.to_string_lossy())))?;
    let value = HeaderValue::from_bytes(&value.as_bytes()).map_err(|_| {
        misuse(format!("{function}: the value of {name} has line ends or control characters"))
    })?;
    Ok((name, value))
}

thread_local! {
    /// Header names that scripts have used: they are few, and making one that is not of the standard ones allocates.
    static NAMES: RefCell<HashMap<Box<[u8]>, HeaderName>> = RefCell::default();
}

/// Most names that are kept.
const MOST_NAMES: usize = 512;

/// A header's name from a script, without an allocation when it was used before.
fn known_name(name: &[u8]) -> Option<HeaderName> {
    NAMES.with_borrow_mut(|known| {
        if let Some(name) = known.get(name) {
            return Some(name.clone());
        }
        let made = HeaderName::from_bytes(name).ok()?;
        if known.len() < MOST_NAMES {
            known.insert(name.into(), made.clone());
        }
        Some(made)
    })
}

/// Appends a header, within what a message may have.
pub(super) fn add(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) -> mlua::Result<()> {
    if headers.len() >= MOST {
        return Err(misuse("there are too many headers"));
    }
    headers.append(name, value);
    Ok(())
}

/// A header that a script may set upstream.
fn writable(function: &str, name: &LuaString, value: &LuaString) -> mlua::Result<(HeaderName, HeaderValue)> {
    let (name, value) = header(function, name, value)?;
    let framing = matches!(
        name.as_str(),
        "host" | "connection" | "upgrade" | "content-length" | "transfer-encoding" | "te" | "expect"
    );
    if framing || name.as_str().starts_with("sec-websocket-") || policy::is_reserved(name.as_str()) {
        return Err(misuse(format!("{function}: {name} is the gateway's to say")));
    }
    Ok((name, value))
}
