//! `upstream`: the request that goes upstream.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use mlua::{BString, LuaString};

use crate::lua::api::{Name, Slot, handle, misuse};
use crate::policy::{self, Exchange};

/// The request that goes upstream.
pub(crate) struct UpstreamHandle(pub(crate) Slot);

/// Most headers of a message: more than browsers and servers send, and few enough for those that take 256.
const MOST: usize = 240;

handle! {
    UpstreamHandle "upstream";

    /// The first header of that name that will go upstream.
    #[phases(UpstreamRequest)]
    #[example("local language = upstream:header \"accept-language\"")]
    fn header(lua, live, name: Name) -> Option<LuaString> {
        let value = name.get().and_then(|it| live.exchange.upstream.get(it));
        value.map(|it| lua.create_string(it.as_bytes())).transpose()
    }

    /// Sets a header, in place of all of that name, and of those whose name differs in `-` and `_` alone: some servers read
    /// them as one. The headers that NVCF reads (`authorization`, `function-id` and
    /// their like) and those of the connection are the gateway's own.
    #[phases(UpstreamRequest)]
    #[example("upstream:set_header(\"x-tenant\", \"acme\")")]
    fn set_header(_lua, live, name: Name, value: BString) -> () {
        let (name, value) = writable("upstream:set_header", name, value)?;
        drop_aliases(&mut live.exchange, &name);
        live.exchange.has_aliases |= name.as_str().contains('_');
        live.exchange.upstream.insert(name, value);
        Ok(())
    }

    /// Adds a header beside those of that name.
    #[phases(UpstreamRequest)]
    #[example("upstream:add_header(\"via\", \"1.1 edge\")")]
    fn add_header(_lua, live, name: Name, value: BString) -> () {
        let (name, value) = writable("upstream:add_header", name, value)?;
        live.exchange.has_aliases |= name.as_str().contains('_');
        add(&mut live.exchange.upstream, name, value)
    }

    /// Takes out all headers of that name, and those whose name differs in `-` and `_` alone.
    #[phases(UpstreamRequest)]
    #[example("upstream:remove_header \"referer\"")]
    fn remove_header(_lua, live, name: Name) -> () {
        if let Some(name) = name.get() {
            drop_aliases(&mut live.exchange, name);
            live.exchange.upstream.remove(name);
        }
        Ok(())
    }
}

/// A header from a script; the error says which part of it is wrong.
pub(super) fn header(function: &str, name: Name, value: BString) -> mlua::Result<(HeaderName, HeaderValue)> {
    let name = name.expect(function)?;
    let value = HeaderValue::from_maybe_shared(Bytes::from(Vec::from(value))).map_err(|_| {
        misuse(format!("{function}: the value of {name} has line ends or control characters"))
    })?;
    Ok((name, value))
}

/// Appends a header, within what a message may have.
pub(super) fn add(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) -> mlua::Result<()> {
    if headers.len() >= MOST {
        return Err(misuse("there are too many headers"));
    }
    headers.append(name, value);
    Ok(())
}

/// Takes out the headers that some servers would read as this one.
fn drop_aliases(exchange: &mut Exchange, name: &HeaderName) {
    if !exchange.has_aliases && !name.as_str().contains('_') {
        return; // as nearly always
    }
    let aliases = exchange.upstream.keys().filter(|it| policy::is_alias(it.as_str(), name.as_str()));
    for alias in aliases.cloned().collect::<Vec<_>>() {
        exchange.upstream.remove(alias);
    }
}

/// A header that a script may set upstream.
fn writable(function: &str, name: Name, value: BString) -> mlua::Result<(HeaderName, HeaderValue)> {
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
