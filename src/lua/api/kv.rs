//! `kv`: what a plugin keeps outside of its VM.

use std::time::Duration;

use mlua::LuaString;

use crate::lua::api::{misuse, module};
use crate::store::{Count, VALUE_MAX};

/// Longest key in bytes.
const LONGEST_KEY: usize = 256;

/// What a call answers when Redis cannot be asked.
pub(super) const AWAY: &str = "unavailable";

type Said<T> = (Option<T>, Option<&'static str>);

module! {
    "kv" "Values that outlive a reload and are shared by all workers, or by all replicas when `plugins.store` is in Redis. Each plugin has its own keys, of at most 256 bytes; a value is a string of at most 64 KiB. Every call may give nil and `unavailable` when Redis is away.";

    /// The value of a key, nil when there is none.
    #[example("local seen = kv.get(\"seen:\" .. id)")]
    later fn get(lua, author, key: LuaString) -> (Said<LuaString>, "string?, string?") {
        let name = author.own(&checked("kv.get", &key)?);
        match author.kit.store.get(author.kit.monotonic(), &name).await {
            Ok(value) => Ok((value.map(|it| lua.create_string(it)).transpose()?, None)),
            Err(_) => Ok((None, Some(AWAY))),
        }
    }

    /// Keeps a value, for `ttl` seconds or until there is no room.
    #[example("kv.set(\"seen:\" .. id, \"1\", 60)")]
    later fn set(lua, author, key: LuaString, value: LuaString, ttl: Option<f64>) -> (Said<bool>, "boolean?, string?") {
        let name = author.own(&checked("kv.set", &key)?);
        let value = fitting("kv.set", &value)?;
        let ttl = lifetime("kv.set", ttl)?;
        Ok(said(author.kit.store.set(author.kit.monotonic(), &name, &value, ttl).await.map(|()| true)))
    }

    /// The same, only when the key has no value yet; whether it was so.
    #[example("if kv.add(\"nonce:\" .. nonce, \"1\", 300) then … end")]
    later fn add(lua, author, key: LuaString, value: LuaString, ttl: Option<f64>) -> (Said<bool>, "boolean?, string?") {
        let name = author.own(&checked("kv.add", &key)?);
        let value = fitting("kv.add", &value)?;
        let ttl = lifetime("kv.add", ttl)?;
        Ok(said(author.kit.store.add(author.kit.monotonic(), &name, &value, ttl).await))
    }

    /// Forgets a value.
    #[example("kv.delete(\"seen:\" .. id)")]
    later fn delete(lua, author, key: LuaString) -> (Said<bool>, "boolean?, string?") {
        let name = author.own(&checked("kv.delete", &key)?);
        Ok(said(author.kit.store.delete(&name).await.map(|()| true)))
    }

    /// Adds to a counter, by one or by `by`, and gives what it has become. `ttl` counts from its first use.
    #[example("local n = kv.incr(\"tries:\" .. ip, 1, 60)")]
    later fn incr(lua, author, key: LuaString, by: Option<i64>, ttl: Option<f64>) -> (Said<i64>, "integer?, string?") {
        let name = author.own(&checked("kv.incr", &key)?);
        let ttl = lifetime("kv.incr", ttl)?;
        match author.kit.store.incr(author.kit.monotonic(), &name, by.unwrap_or(1), ttl).await {
            Ok(Count::At(n)) => Ok((Some(n), None)),
            Ok(Count::Overflow) => Err(misuse("kv.incr: the counter is at its limit")),
            Ok(Count::NoInteger) => Err(misuse("kv.incr: the value of this key is not a counter")),
            Err(_) => Ok((None, Some(AWAY))),
        }
    }
}

fn said<T>(result: Result<T, crate::store::Unavailable>) -> Said<T> {
    match result {
        Ok(value) => (Some(value), None),
        Err(_) => (None, Some(AWAY)),
    }
}

/// A key that is short enough.
pub(super) fn checked(function: &str, key: &LuaString) -> mlua::Result<Vec<u8>> {
    let key = key.as_bytes();
    if key.is_empty() || key.len() > LONGEST_KEY {
        return Err(misuse(format!(
            "{function}: a name has 1 to {LONGEST_KEY} bytes; take a digest of a longer one"
        )));
    }
    Ok(key.to_vec())
}

fn fitting(function: &str, value: &LuaString) -> mlua::Result<Vec<u8>> {
    let value = value.as_bytes();
    if value.len() > VALUE_MAX {
        return Err(misuse(format!("{function}: a value has at most {VALUE_MAX} bytes")));
    }
    Ok(value.to_vec())
}

/// A lifetime that a script gives in seconds.
pub(super) fn lifetime(function: &str, ttl: Option<f64>) -> mlua::Result<Option<Duration>> {
    let Some(seconds) = ttl else { return Ok(None) };
    match Duration::try_from_secs_f64(seconds) {
        Ok(it) if !it.is_zero() => Ok(Some(it)),
        _ => Err(misuse(format!("{function}: a lifetime is a number of seconds above zero"))),
    }
}
