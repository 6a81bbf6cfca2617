//! `lease`: how many of something there may be at a time.

use mlua::LuaString;

use crate::lua::api::kv::{AWAY, checked, lifetime};
use crate::lua::api::{misuse, module};

module! {
    "lease" "How many of something there may be at a time, shared like `kv`. Each holder has a lease, which ends by itself when it is not prolonged, so a process that dies leaves nothing behind.";

    /// Gives `holder` one of `limit` leases for `ttl` seconds, or prolongs the one it has; whether it has one now.
    #[example("if not lease.take(\"user:\" .. id, request:session_id(), 3, 90) then … end")]
    later fn take(lua, author, name: LuaString, holder: LuaString, limit: i64, ttl: f64) -> ((Option<bool>, Option<&'static str>), "boolean?, string?") {
        let (name, holder) = (author.own(&checked("lease.take", &name)?), checked("lease.take", &holder)?);
        let Ok(limit) = u32::try_from(limit) else { return Err(misuse("lease.take: a limit is a whole number")) };
        let Some(ttl) = lifetime("lease.take", Some(ttl))? else { return Ok((None, None)) };
        match author.kit.store.lease_take(author.kit.monotonic(), &name, &holder, limit, ttl).await {
            Ok(has) => Ok((Some(has), None)),
            Err(_) => Ok((None, Some(AWAY))),
        }
    }

    /// Ends a lease; in every phase, for nothing waits for it.
    #[example("lease.release(\"user:\" .. id, session:id())")]
    now fn release(lua, author, name: LuaString, holder: LuaString) -> ((), "nil") {
        let (name, holder) = (author.own(&checked("lease.release", &name)?), checked("lease.release", &holder)?);
        author.kit.store.lease_release(author.kit.monotonic(), &name, &holder);
        Ok(())
    }

    /// How many leases there are.
    #[example("local n = lease.count(\"user:\" .. id)")]
    later fn count(lua, author, name: LuaString) -> ((Option<u64>, Option<&'static str>), "integer?, string?") {
        let name = author.own(&checked("lease.count", &name)?);
        match author.kit.store.lease_count(author.kit.monotonic(), &name).await {
            Ok(n) => Ok((Some(n), None)),
            Err(_) => Ok((None, Some(AWAY))),
        }
    }
}
