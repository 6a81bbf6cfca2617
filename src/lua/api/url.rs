//! `url`: URLs, their parts and their queries.

use std::borrow::Cow;

use mlua::{LuaString, Table, Value};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use url::{Url, form_urlencoded};

use crate::lua::api::{misuse, module};

/// What stands for itself everywhere in a URL (RFC 3986, section 2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

module! {
    "url" "URLs, their parts and their queries.";

    /// The parts of an absolute URL: `scheme`, `host`, `port` (also when it is the usual one), `path`, `query`; nil and a
    /// reason when it is none.
    #[example("local parts = url.parse(conf.issuer)")]
    now fn parse(lua, author, text: LuaString) -> ((Option<Table>, Option<String>), "table?, string?") {
        let parsed = match Url::parse(&text.to_string_lossy()) {
            Ok(parsed) => parsed,
            Err(error) => return Ok((None, Some(error.to_string()))),
        };
        let table = lua.create_table()?;
        table.raw_set("scheme", parsed.scheme())?;
        table.raw_set("host", parsed.host_str())?;
        table.raw_set("port", parsed.port_or_known_default())?;
        table.raw_set("path", parsed.path())?;
        table.raw_set("query", parsed.query())?;
        Ok((Some(table), None))
    }

    /// A text with everything escaped that means something in a URL.
    #[example("local path = \"/apps/\" .. url.encode(name)")]
    now fn encode(lua, author, text: LuaString) -> (String, "string") {
        Ok(percent_encode(&text.as_bytes(), UNRESERVED).to_string())
    }

    /// The text behind escapes.
    #[example("local name = url.decode(segment)")]
    now fn decode(lua, author, text: LuaString) -> (LuaString, "string") {
        lua.create_string(Cow::from(percent_decode(&text.as_bytes())))
    }

    /// A query from a table, its names sorted. Values are strings, numbers and booleans.
    #[example("local target = conf.url .. \"?\" .. url.query { code = code }")]
    now fn query(lua, author, parameters: Table) -> (String, "string") {
        query("url.query", &parameters)
    }

    /// The parameters of a query as a table; of several with one name the first.
    #[example("local parameters = url.parse_query(request:query() or \"\")")]
    now fn parse_query(lua, author, text: LuaString) -> (Table, "table") {
        let table = lua.create_table()?;
        for (name, value) in form_urlencoded::parse(&text.as_bytes()) {
            if table.raw_get::<Value>(&*name)?.is_nil() {
                table.raw_set(&*name, &*value)?;
            }
        }
        Ok(table)
    }
}

/// A table as `application/x-www-form-urlencoded`.
pub(super) fn query(function: &str, parameters: &Table) -> mlua::Result<String> {
    let mut pairs = Vec::new();
    for pair in parameters.pairs::<LuaString, Value>() {
        let (name, value) =
            pair.map_err(|_| misuse(format!("{function}: expected a table from names to values")))?;
        let value = match value {
            Value::String(it) => it.to_string_lossy(),
            Value::Integer(_) | Value::Number(_) | Value::Boolean(_) => value.to_string()?,
            other => {
                return Err(misuse(format!("{function}: a {} cannot stand in a query", other.type_name())));
            }
        };
        pairs.push((name.to_string_lossy(), value));
    }
    pairs.sort_unstable();
    Ok(form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish())
}
