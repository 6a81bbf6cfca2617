//! `ratelimit`: how often something may happen.

use mlua::{LuaString, Table};

use crate::lua::api::kv::{AWAY, checked};
use crate::lua::api::{misuse, module};
use crate::store::Rate;

module! {
    "ratelimit" "How often something may happen, shared like `kv` (GCRA: a bucket that fills evenly).";

    /// Whether one more is allowed now, of `rate` in `per` seconds and `burst` at once (as many as `rate`, unless it is
    /// given); then in how many seconds it will be, and how many more are left. Nil and `unavailable` when Redis is away.
    #[example("local allowed, retry_after = ratelimit.take(ip, { rate = 10, per = 60 })")]
    later fn take(lua, author, key: LuaString, limit: Table) -> ((Option<bool>, mlua::Value, Option<u64>), "boolean?, number|string, integer?") {
        let name = author.own(&checked("ratelimit.take", &key)?);
        let number = |key: &str| limit.raw_get::<Option<f64>>(key);
        let (Some(rate), Some(per)) = (number("rate")?, number("per")?) else {
            return Err(misuse("ratelimit.take: a limit has `rate` and `per`"));
        };
        let burst = number("burst")?.unwrap_or(rate.max(1.0).floor());
        let Some(rate) = Rate::new(rate, per, burst) else {
            return Err(misuse("ratelimit.take: rate and per are above zero, burst is a whole number of at least one"));
        };
        match author.kit.store.take(author.kit.monotonic(), &name, rate).await {
            Ok(it) => Ok((Some(it.allowed), mlua::Value::Number(it.retry_after), Some(it.remaining))),
            Err(_) => Ok((None, mlua::Value::String(lua.create_string(AWAY)?), None)),
        }
    }
}
