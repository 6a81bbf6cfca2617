//! `metrics`: what a plugin counts.

use std::sync::Arc;

use mlua::{LuaString, Table, Value, Variadic};

use crate::lua::api::{Author, misuse, module, object};
use crate::policy::{Meter, MeterKind, MeterSpec};

/// A metric.
pub(crate) struct MeterHandle {
    meter: Arc<dyn Meter>,
    kind: MeterKind,
    n_labels: usize,
}

module! {
    "metrics" "What a plugin counts. Metrics are declared while the plugin is loaded and are shown as `streamgate_plugin_<plugin>_<name>`, where a `-` of the plugin's name is a `_`; one without labels is there from the start, and specs read them with `spec.metric`. Each has at most 200 sets of labels, and what comes then counts as `other`.";

    /// A number that only grows; its name ends with `_total`.
    #[example("local refused = metrics.counter(\"refused_total\", \"Requests refused.\", { \"reason\" })")]
    now fn counter(lua, author, name: LuaString, doc: LuaString, labels: Option<Table>) -> (MeterHandle, "streamgate.Meter") {
        declare(author, MeterKind::Counter, &name, &doc, labels, None)
    }

    /// A number that goes up and down.
    #[example("local waiting = metrics.gauge(\"waiting\", \"Events to be sent.\")")]
    now fn gauge(lua, author, name: LuaString, doc: LuaString, labels: Option<Table>) -> (MeterHandle, "streamgate.Meter") {
        declare(author, MeterKind::Gauge, &name, &doc, labels, None)
    }

    /// How values are spread over buckets, given by their upper bounds.
    #[example("local took = metrics.histogram(\"seconds\", \"Answers of the service.\", {}, { 0.01, 0.1, 1 })")]
    now fn histogram(lua, author, name: LuaString, doc: LuaString, labels: Option<Table>, buckets: Option<Table>) -> (MeterHandle, "streamgate.Meter") {
        declare(author, MeterKind::Histogram, &name, &doc, labels, buckets)
    }
}

object! {
    MeterHandle "meter";

    /// Adds to a counter; the values of its labels follow.
    #[example("refused:add(1, reason)")]
    fn add(lua, this, n: Option<f64>, labels: Variadic<Value>) -> ((), "nil") {
        let n = n.unwrap_or(1.0);
        if n < 0.0 || n.is_nan() {
            return Err(misuse("meter:add: a counter only grows"));
        }
        this.record("add", MeterKind::Counter, n, &labels)
    }

    /// Sets a gauge; the values of its labels follow.
    #[example("waiting:set(queue.size \"events\")")]
    fn set(lua, this, value: f64, labels: Variadic<Value>) -> ((), "nil") {
        this.record("set", MeterKind::Gauge, value, &labels)
    }

    /// Counts a value of a histogram; the values of its labels follow.
    #[example("took:observe(time.monotonic() - began)")]
    fn observe(lua, this, value: f64, labels: Variadic<Value>) -> ((), "nil") {
        this.record("observe", MeterKind::Histogram, value, &labels)
    }
}

impl MeterHandle {
    fn record(&self, method: &str, kind: MeterKind, value: f64, labels: &[Value]) -> mlua::Result<()> {
        if self.kind != kind {
            return Err(misuse(format!("meter:{method}: this metric is another kind of thing")));
        }
        let texts: Vec<String> = labels.iter().map(Value::to_string).collect::<mlua::Result<_>>()?;
        if texts.len() != self.n_labels {
            return Err(misuse(format!(
                "meter:{method}: expected {} values of labels, not {}",
                self.n_labels,
                texts.len()
            )));
        }
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        self.meter.record(value, &texts);
        Ok(())
    }
}

fn declare(
    author: &Author,
    kind: MeterKind,
    name: &LuaString,
    doc: &LuaString,
    labels: Option<Table>,
    buckets: Option<Table>,
) -> mlua::Result<MeterHandle> {
    if author.phase().is_some() {
        return Err(misuse("metrics are declared while the plugin is loaded, not in a phase"));
    }
    let labels: Vec<String> = labels.map_or_else(|| Ok(Vec::new()), |it| it.sequence_values().collect())?;
    let buckets: Vec<f64> = buckets.map_or_else(|| Ok(Vec::new()), |it| it.sequence_values().collect())?;
    let n_labels = labels.len();
    let spec = MeterSpec {
        kind,
        plugin: author.plugin.to_string(),
        name: name.to_string_lossy(),
        doc: doc.to_string_lossy(),
        labels,
        buckets,
    };
    let meter = author.kit.meters.declare(&spec).map_err(|it| misuse(format!("metrics: {it}")))?;
    Ok(MeterHandle { meter, kind, n_labels })
}
