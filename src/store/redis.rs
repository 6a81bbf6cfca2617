//! The store in a Redis or Valkey server, for all replicas.
//!
//! What depends on what is there is one script: two replicas never see each other's halves. Scripts take the
//! time from the server. They are sent as text each time: they are short, and a server that has forgotten
//! them needs no second question. They write after asking for the time, which a server allows from Redis 5
//! on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, FromRedisValue, cmd, pipe};

use crate::store::link::{Link, Says};
use crate::store::{Count, Rate, SLACK, Unavailable, VALUE_MAX, Verdict, millis};

/// The store, as far as the server is there.
pub(super) struct Redis {
    link: Link,
}

/// What the log says of the server.
pub(super) const SAYS: Says = Says {
    down: "The store of the plugins cannot be asked. Plugins that need it decide without it or refuse.",
    up: "The store of the plugins is there again.",
    late: "no answer in time",
};

/// Where the keys of each kind begin.
const VALUE: &str = "streamgate:store:value:";
const RATE: &str = "streamgate:store:rate:";
const LEASE: &str = "streamgate:store:lease:";

/// Adds `ARGV[1]`, and lets what it makes end after `ARGV[2]` milliseconds, unless that is 0. Gives what came
/// of it (0 done, 1 overflow, 2 no integer), and the value as text, since a number of Lua has but 53 bits.
const INCR: &str = "local is_new = redis.call('EXISTS', KEYS[1]) == 0
local done = redis.pcall('INCRBY', KEYS[1], ARGV[1])
if type(done) == 'table' and done.err then
  if string.find(done.err, 'overflow', 1, true) then return {1, '0'} end
  if string.find(done.err, 'not an integer', 1, true) then return {2, '0'} end
  return done
end
if is_new and ARGV[2] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {0, redis.call('GET', KEYS[1])}";

/// The same as `Level::take` in `memory.rs`: `ARGV` = microseconds after which one more is allowed, burst,
/// slack. It keeps the time in microseconds and the level, until the level is 0. Gives whether it is allowed,
/// in how many microseconds it will be, and how many more are.
const TAKE: &str = "local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, slack = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local at, level = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) ([%d.e+-]+)$')
at, level = tonumber(at) or now, tonumber(level) or 0
level = math.max(0, level - math.max(0, now - at) / interval)
local allowed, retry_after = level + 1 <= burst + slack, 0
if allowed then
  level = level + 1
else
  retry_after = math.max(1, math.ceil((level + 1 - burst) * interval - 0.001))
end
if allowed or now < at then
  redis.call('SET', KEYS[1], string.format('%.0f %.17g', now, level),
    'PX', string.format('%.0f', math.max(1, math.ceil(level * interval / 1000))))
end
local remaining = math.max(0, math.floor(burst - level + slack))
return {allowed and 1 or 0, string.format('%.0f', retry_after), string.format('%.0f', remaining)}";

/// A sorted set has the holders with the milliseconds at which their leases end. `ARGV` = holder, limit,
/// milliseconds to live. The set ends with the last of its leases.
const LEASE_TAKE: &str = "local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[3]), ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1";

/// Counts those that have not ended.
const LEASE_COUNT: &str = "local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZCOUNT', KEYS[1], string.format('(%.0f', now), '+inf')";

impl Redis {
    pub(super) fn new(link: Link) -> Redis {
        Redis { link }
    }

    pub(super) async fn get(&self, name: &[u8]) -> Result<Option<Bytes>, Unavailable> {
        let mut get = cmd("GET");
        get.arg(key(VALUE, name));
        let value = self.ask::<Option<Vec<u8>>>(get).await?;
        // What is longer is not from us.
        Ok(value.filter(|it| it.len() <= VALUE_MAX).map(Bytes::from))
    }

    pub(super) async fn set(
        &self,
        name: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<(), Unavailable> {
        self.ask(set(name, value, ttl)).await
    }

    pub(super) async fn add(
        &self,
        name: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, Unavailable> {
        let mut add = set(name, value, ttl);
        add.arg("NX");
        Ok(self.ask::<Option<String>>(add).await?.is_some())
    }

    pub(super) async fn delete(&self, name: &[u8]) -> Result<(), Unavailable> {
        let mut delete = cmd("DEL");
        delete.arg(key(VALUE, name));
        self.ask(delete).await
    }

    pub(super) async fn incr(
        &self,
        name: &[u8],
        by: i64,
        ttl: Option<Duration>,
    ) -> Result<Count, Unavailable> {
        let mut incr = script(INCR, VALUE, name);
        incr.arg(by).arg(ttl.map_or(0, millis));
        Ok(match self.ask::<(u8, i64)>(incr).await? {
            (0, value) => Count::At(value),
            (1, _) => Count::Overflow,
            _ => Count::NoInteger,
        })
    }

    pub(super) async fn take(&self, name: &[u8], rate: Rate) -> Result<Verdict, Unavailable> {
        let mut take = script(TAKE, RATE, name);
        take.arg(rate.interval).arg(rate.burst).arg(SLACK);
        let (allowed, retry_after, remaining) = self.ask::<(bool, u64, u64)>(take).await?;
        Ok(Verdict { allowed, retry_after: retry_after as f64 / 1e6, remaining })
    }

    pub(super) async fn lease_take(
        &self,
        name: &[u8],
        holder: &[u8],
        limit: u32,
        ttl: Duration,
    ) -> Result<bool, Unavailable> {
        let mut take = script(LEASE_TAKE, LEASE, name);
        take.arg(holder).arg(limit).arg(millis(ttl));
        self.ask(take).await
    }

    /// Does not wait.
    pub(super) fn lease_release(self: Arc<Self>, name: Vec<u8>, holder: Vec<u8>) {
        let runtime = self.link.runtime().clone();
        runtime.spawn(async move {
            let mut release = cmd("ZREM");
            release.arg(key(LEASE, &name)).arg(holder);
            drop(self.ask::<()>(release).await); // it ends by itself
        });
    }

    pub(super) async fn lease_count(&self, name: &[u8]) -> Result<u64, Unavailable> {
        self.ask(script(LEASE_COUNT, LEASE, name)).await
    }

    async fn ask<T: FromRedisValue + Send + 'static>(&self, command: Cmd) -> Result<T, Unavailable> {
        let mut pipeline = pipe();
        pipeline.add_command(command);
        let (answer,) = self.link.ask::<(T,)>(pipeline).await.map_err(|_| Unavailable)?;
        Ok(answer)
    }
}

fn set(name: &[u8], value: &[u8], ttl: Option<Duration>) -> Cmd {
    let mut set = cmd("SET");
    set.arg(key(VALUE, name)).arg(value);
    if let Some(ttl) = ttl {
        set.arg("PX").arg(millis(ttl));
    }
    set
}

fn script(text: &str, kind: &str, name: &[u8]) -> Cmd {
    let mut eval = cmd("EVAL");
    eval.arg(text).arg(1).arg(key(kind, name));
    eval
}

fn key(kind: &str, name: &[u8]) -> Vec<u8> {
    [kind.as_bytes(), name].concat()
}
