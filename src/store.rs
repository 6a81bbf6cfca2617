//! What plugins keep outside of their VMs: values, rates, leases and queues.
//!
//! It outlives a reload and is shared by all worker threads, or, in Redis, by all replicas. Values, rates and
//! leases have names of their own each: a value, a rate and a lease of the same name are three things. Names
//! begin with the plugin's; whoever calls has seen to that, and that they are short and values no longer than [`VALUE_MAX`].
//!
//! `now` is the time in seconds since whenever, the same for all calls, and best from a clock that never goes
//! back. Only the store in memory reads it: in Redis the server's clock counts, since replicas may disagree
//! about the time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Clock;
use crate::secret::Secret;
use crate::store::link::Link;
use crate::store::memory::{Memory, Queues};
use crate::store::redis::Redis;

pub(crate) mod link;
mod memory;
mod redis;

/// What is kept for all plugins.
pub(crate) struct Store {
    place: Place,
    /// Always in this process: what is in a queue is on its way out of it.
    queues: Queues,
}

enum Place {
    Memory(Box<Memory>),
    Redis(Arc<Redis>),
}

/// Redis cannot be asked now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store is unavailable")]
pub(crate) struct Unavailable;

/// What became of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    At(i64),
    /// It would have left the range of 64 bits, and is what it was.
    Overflow,
    /// Its value is no integer in decimal notation, and is what it was.
    NoInteger,
}

/// How often something may be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// After how many microseconds one more may be done.
    interval: f64,
    /// How many may be done at once.
    burst: f64,
}

/// Whether something may be done now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    /// In how many seconds it will be allowed; 0 when it is.
    pub(crate) retry_after: f64,
    /// How many more are allowed now.
    pub(crate) remaining: u64,
}

/// Bytes of a value.
pub(crate) const VALUE_MAX: usize = 64 * 1024;

/// What is kept for longer is kept for so long: nobody means more, and sums of times stay far from their
/// limits.
const TTL_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// Cells that the arithmetic of a rate may be wrong by. A `f64` holds a level of a million to 1e-10.
const SLACK: f64 = 1e-9;

impl Store {
    /// One in this process, which keeps so many values, so many rates and so many leases. The least recently
    /// used go first.
    pub(crate) fn in_memory(entries: usize) -> Store {
        Store { place: Place::Memory(Box::new(Memory::new(entries))), queues: Queues::default() }
    }

    /// One in Redis, whose certificate these authorities have signed, if it has one; without them, the system's. Nothing is
    /// asked of the server yet. Must be called within the runtime that is to speak with it.
    pub(crate) fn at(
        url: &Secret,
        authorities: Option<Vec<u8>>,
        timeout: Duration,
        clock: &Clock,
    ) -> Result<Store, String> {
        let client = link::client(url, authorities)?;
        Store::in_redis(client, timeout, clock).map_err(|it| it.to_string())
    }

    fn in_redis(
        client: ::redis::Client,
        timeout: Duration,
        clock: &Clock,
    ) -> Result<Store, ::redis::RedisError> {
        let link = Link::new(client, timeout, clock, redis::SAYS)?;
        Ok(Store { place: Place::Redis(Arc::new(Redis::new(link))), queues: Queues::default() })
    }

    /// A value.
    pub(crate) async fn get(&self, now: f64, name: &[u8]) -> Result<Option<Bytes>, Unavailable> {
        match &self.place {
            Place::Memory(it) => Ok(it.get(now, name)),
            Place::Redis(it) => it.get(name).await,
        }
    }

    /// Keeps a value, for `ttl` or until it has to make room.
    pub(crate) async fn set(
        &self,
        now: f64,
        name: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<(), Unavailable> {
        match &self.place {
            Place::Memory(it) => it.set(now, name, value, ttl),
            Place::Redis(it) => it.set(name, value, ttl).await?,
        }
        Ok(())
    }

    /// The same when there is none yet; whether it was so.
    pub(crate) async fn add(
        &self,
        now: f64,
        name: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, Unavailable> {
        match &self.place {
            Place::Memory(it) => Ok(it.add(now, name, value, ttl)),
            Place::Redis(it) => it.add(name, value, ttl).await,
        }
    }

    /// Forgets a value.
    pub(crate) async fn delete(&self, name: &[u8]) -> Result<(), Unavailable> {
        match &self.place {
            Place::Memory(it) => it.delete(name),
            Place::Redis(it) => it.delete(name).await?,
        }
        Ok(())
    }

    /// Adds to a counter, which is a value in decimal notation. One that is not there begins with 0; only
    /// then `ttl` counts.
    pub(crate) async fn incr(
        &self,
        now: f64,
        name: &[u8],
        by: i64,
        ttl: Option<Duration>,
    ) -> Result<Count, Unavailable> {
        match &self.place {
            Place::Memory(it) => Ok(it.incr(now, name, by, ttl)),
            Place::Redis(it) => it.incr(name, by, ttl).await,
        }
    }

    /// Does something of which there may be only so much.
    pub(crate) async fn take(&self, now: f64, name: &[u8], rate: Rate) -> Result<Verdict, Unavailable> {
        match &self.place {
            Place::Memory(it) => Ok(it.take(now, name, rate)),
            Place::Redis(it) => it.take(name, rate).await,
        }
    }

    /// Gives `holder` one of `limit` leases, or prolongs the one it has: it ends after `ttl` from now.
    /// Whether it has one.
    pub(crate) async fn lease_take(
        &self,
        now: f64,
        name: &[u8],
        holder: &[u8],
        limit: u32,
        ttl: Duration,
    ) -> Result<bool, Unavailable> {
        match &self.place {
            Place::Memory(it) => Ok(it.lease_take(now, name, holder, limit, ttl)),
            Place::Redis(it) => it.lease_take(name, holder, limit, ttl).await,
        }
    }

    /// Ends a lease. Does not wait for Redis; when it is away, the lease ends by itself.
    pub(crate) fn lease_release(&self, now: f64, name: &[u8], holder: &[u8]) {
        match &self.place {
            Place::Memory(it) => it.lease_release(now, name, holder),
            Place::Redis(it) => Arc::clone(it).lease_release(name.to_vec(), holder.to_vec()),
        }
    }

    /// How many leases there are.
    pub(crate) async fn lease_count(&self, now: f64, name: &[u8]) -> Result<u64, Unavailable> {
        match &self.place {
            Place::Memory(it) => Ok(it.lease_count(now, name)),
            Place::Redis(it) => it.lease_count(name).await,
        }
    }

    /// Appends to a queue. False when there is no room: then `text` is dropped and counted.
    pub(crate) fn queue_push(&self, name: &[u8], text: impl Into<Vec<u8>>) -> bool {
        self.queues.push(name, text.into())
    }

    /// Takes the first `n`, or as many as there are.
    pub(crate) fn queue_pop(&self, name: &[u8], n: usize) -> Vec<Vec<u8>> {
        self.queues.pop(name, n)
    }

    /// How many are in a queue.
    pub(crate) fn queue_size(&self, name: &[u8]) -> usize {
        self.queues.size(name)
    }
}

impl Rate {
    /// `rate` in `per` seconds, and `burst` at once. `None` when that makes no sense: all are above 0,
    /// `burst` is a whole number of at most a billion, and it does not take ten years until a burst is
    /// forgotten.
    pub(crate) fn new(rate: f64, per: f64, burst: f64) -> Option<Rate> {
        let interval = per / rate * 1e6;
        let is_sound = rate > 0.0
            && per > 0.0
            && (1.0..=1e9).contains(&burst)
            && burst.fract() == 0.0
            && interval > 0.0
            && interval * burst <= TTL_MAX.as_micros() as f64;
        is_sound.then_some(Rate { interval, burst })
    }
}

/// The milliseconds that Redis counts in, and so the memory too; at least one.
fn millis(ttl: Duration) -> u64 {
    ttl.min(TTL_MAX).as_nanos().div_ceil(1_000_000).max(1) as u64
}

#[cfg(test)]
mod tests;
