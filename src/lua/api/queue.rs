//! `queue`: what is sent later.

use mlua::{LuaString, Table};

use crate::lua::api::kv::checked;
use crate::lua::api::{Author, misuse, module};
use crate::policy::{MeterKind, MeterSpec};

/// Largest entry in bytes.
const LARGEST: usize = 64 << 10;

module! {
    "queue" "What is sent later: it outlives a reload, is shared by the workers of this process, and is bounded (1,000 entries and 8 MiB in each).";

    /// Appends a text; false when there is no room: then it is dropped, and counted in
    /// `streamgate_plugin_<plugin>_queue_dropped_total`.
    #[example("queue.push(\"events\", json.encode(event))")]
    now fn push(lua, author, name: LuaString, text: LuaString) -> (bool, "boolean") {
        let name = author.own(&checked("queue.push", &name)?);
        if text.as_bytes().len() > LARGEST {
            return Err(misuse(format!("queue.push: an entry has at most {LARGEST} bytes")));
        }
        let has_room = author.kit.store.queue_push(&name, text.as_bytes().to_vec());
        if !has_room {
            dropped(author)?;
        }
        Ok(has_room)
    }

    /// Takes the first entries, one or at most `n`.
    #[example("for _, text in ipairs(queue.pop(\"events\", 10)) do … end")]
    now fn pop(lua, author, name: LuaString, n: Option<i64>) -> (Table, "string[]") {
        let name = author.own(&checked("queue.pop", &name)?);
        let n = usize::try_from(n.unwrap_or(1)).unwrap_or(0);
        let table = lua.create_table()?;
        for text in author.kit.store.queue_pop(&name, n) {
            table.raw_push(lua.create_string(text)?)?;
        }
        Ok(table)
    }

    /// How many entries it has.
    #[example("waiting:set(queue.size \"events\")")]
    now fn size(lua, author, name: LuaString) -> (usize, "integer") {
        Ok(author.kit.store.queue_size(&author.own(&checked("queue.size", &name)?)))
    }
}

/// Counts an entry that there was no room for.
fn dropped(author: &Author) -> mlua::Result<()> {
    let spec = MeterSpec {
        kind: MeterKind::Counter,
        plugin: author.plugin.to_string(),
        name: "queue_dropped_total".into(),
        doc: "Entries of queues that there was no room for.".into(),
        labels: Vec::new(),
        buckets: Vec::new(),
    };
    let meter = author.kit.meters.declare(&spec).map_err(|it| misuse(format!("queue.push: {it}")))?;
    meter.record(1.0, &[]);
    Ok(())
}
