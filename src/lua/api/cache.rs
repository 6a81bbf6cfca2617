//! `cache`: what need not be asked again.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};

use mlua::{Function, LuaString, Value};
use tokio::sync::Mutex;

use crate::lua::api::kv::{checked, lifetime};
use crate::lua::api::{misuse, module};
use crate::lua::convert;
use crate::store::VALUE_MAX;

/// The loaders that run, of all workers, so that one at a time asks for a key.
#[derive(Default)]
pub(crate) struct Flights(std::sync::Mutex<BTreeMap<Vec<u8>, Arc<Turn>>>);

/// Whose turn it is to ask for a key, and with what reason the last one came back with nothing.
type Turn = Mutex<Option<serde_json::Value>>;

/// Somebody who asks for a key or waits for it, until the answer comes or nobody wants it any more.
struct Flight<'a> {
    flights: &'a Flights,
    name: &'a [u8],
    lock: Arc<Turn>,
}

module! {
    "cache" "What need not be asked again for a while: values of JSON's kind, kept like those of `kv`.";

    /// The value that is kept under a key, or what `loader` returns, which is then kept for `ttl` seconds. Of those who ask
    /// at the same time one calls its loader, the others wait for it and get the same. What a loader returns besides, as
    /// `nil, reason`, is passed on to them too, and not kept.
    #[example("local answer, reason = cache.get(key, 30, function() return ask(token) end)")]
    later fn get(lua, author, key: LuaString, ttl: f64, loader: Function) -> ((Value, Value), "any, any") {
        let name = [b"cache:", &checked("cache.get", &key)?[..]].concat();
        let name = author.own(&name);
        let ttl = lifetime("cache.get", Some(ttl))?;
        let kit = &author.kit;
        let kept = |it: Option<bytes::Bytes>| it.and_then(|it| serde_json::from_slice(&it).ok());
        let value: Option<serde_json::Value> = kept(kit.store.get(kit.monotonic(), &name).await.ok().flatten());
        if let Some(value) = value {
            return Ok((convert::from_json(&lua, &value)?, Value::Nil));
        }
        let flight = kit.flights.enter(&name);
        let mut turn = flight.lock.lock().await;
        let again: Option<serde_json::Value> = kept(kit.store.get(kit.monotonic(), &name).await.ok().flatten());
        if let Some(value) = again {
            return Ok((convert::from_json(&lua, &value)?, Value::Nil));
        }
        if let Some(reason) = &*turn {
            return Ok((Value::Nil, convert::from_json(&lua, reason)?)); // it was waited for, so it is no older than the question
        }
        let (value, reason) = load(&author, &name, ttl, loader).await?;
        if value.is_nil() {
            *turn = convert::to_json(&reason).ok();
        }
        Ok((value, reason))
    }

    /// Forgets what is kept under a key.
    #[example("cache.delete(key)")]
    later fn delete(lua, author, key: LuaString) -> ((), "nil") {
        let name = [b"cache:", &checked("cache.delete", &key)?[..]].concat();
        let deleted = author.kit.store.delete(&author.own(&name)).await;
        drop(deleted); // a store that is away gives nothing either
        Ok(())
    }
}

async fn load(
    author: &Rc<super::Author>,
    name: &[u8],
    ttl: Option<std::time::Duration>,
    loader: Function,
) -> mlua::Result<(Value, Value)> {
    let (value, rest): (Value, Value) = author.kit.call(&loader, ()).await?;
    if !value.is_nil() {
        let text = convert::to_json_of_any_size(&value)
            .map_err(|it| misuse(format!("cache.get: cannot keep {it}")))?
            .to_string();
        if text.len() <= VALUE_MAX {
            let kept = author.kit.store.set(author.kit.monotonic(), name, text.as_bytes(), ttl).await;
            drop(kept); // a store that is away keeps nothing
        }
    }
    Ok((value, rest))
}

impl Flights {
    fn enter<'a>(&'a self, name: &'a [u8]) -> Flight<'a> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = Arc::clone(flights.entry(name.to_vec()).or_default());
        Flight { flights: self, name, lock }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&self.lock) <= 2 {
            flights.remove(self.name); // nobody else waits
        }
    }
}
