//! The metrics that plugins declare.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{CounterVec, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry};

use crate::policy::{Meter, MeterKind, MeterSpec, Meters};

/// All metrics of plugins, by their names: a reload goes on with those of before.
#[derive(Clone, Default)]
pub(super) struct Declared(Arc<Mutex<ByName>>);

type ByName = HashMap<String, (MeterSpec, Arc<One>)>;

struct One {
    family: Family,
    /// The sets of labels that there are: there may be so many and no more.
    known: Mutex<HashSet<Vec<String>>>,
}

enum Family {
    Counter(CounterVec),
    Gauge(GaugeVec),
    Histogram(HistogramVec),
}

/// Most sets of labels of one metric. What comes then counts as [`OTHER`].
const MOST: usize = 200;
const OTHER: &str = "other";

/// Longest value of a label in bytes.
const LONGEST: usize = 128;

impl Declared {
    pub(super) fn declare(&self, registry: &Registry, spec: &MeterSpec) -> Result<Arc<dyn Meter>, String> {
        spec.check()?;
        let name = spec.full_name();
        let mut declared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, one)) = declared.get(&name) {
            spec.is_that_of_before(before)?;
            return Ok(Arc::clone(one) as Arc<dyn Meter>);
        }
        let labels: Vec<&str> = spec.labels.iter().map(String::as_str).collect();
        let doc = if spec.doc.is_empty() { "Declared by a plugin." } else { &spec.doc };
        let opts = Opts::new(&name, doc);
        let family = match spec.kind {
            MeterKind::Counter => CounterVec::new(opts, &labels).map(Family::Counter),
            MeterKind::Gauge => GaugeVec::new(opts, &labels).map(Family::Gauge),
            MeterKind::Histogram => {
                let mut opts = HistogramOpts::new(&name, doc);
                if !spec.buckets.is_empty() {
                    opts = opts.buckets(spec.buckets.clone());
                }
                HistogramVec::new(opts, &labels).map(Family::Histogram)
            }
        };
        let family = family.map_err(|it| it.to_string())?;
        let registered = match &family {
            Family::Counter(it) => registry.register(Box::new(it.clone())),
            Family::Gauge(it) => registry.register(Box::new(it.clone())),
            Family::Histogram(it) => registry.register(Box::new(it.clone())),
        };
        registered.map_err(|it| it.to_string())?;
        if labels.is_empty() {
            family.begin();
        }
        let one = Arc::new(One { family, known: Mutex::default() });
        declared.insert(name, (spec.clone(), Arc::clone(&one)));
        Ok(one)
    }
}

impl Family {
    /// Has one without labels there from the start, at zero: who looks for a rate needs the value before the first event.
    fn begin(&self) {
        let none: [&str; 0] = [];
        match self {
            Family::Counter(it) => drop(it.with_label_values(&none)),
            Family::Gauge(it) => drop(it.with_label_values(&none)),
            Family::Histogram(it) => drop(it.with_label_values(&none)),
        }
    }
}

impl Meter for One {
    fn record(&self, value: f64, labels: &[&str]) {
        let labels: Vec<&str> = labels.iter().map(|it| shortened(it)).collect();
        let others = vec![OTHER; labels.len()];
        let labels = if self.admits(&labels) { &labels } else { &others };
        match &self.family {
            Family::Counter(it) => it.with_label_values(labels).inc_by(value),
            Family::Gauge(it) => it.with_label_values(labels).set(value),
            Family::Histogram(it) => it.with_label_values(labels).observe(value),
        }
    }
}

impl One {
    fn admits(&self, labels: &[&str]) -> bool {
        if labels.is_empty() {
            return true;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let owned: Vec<String> = labels.iter().map(|it| (*it).to_owned()).collect();
        known.contains(&owned) || (known.len() < MOST && known.insert(owned))
    }
}

fn shortened(label: &str) -> &str {
    let mut end = label.len().min(LONGEST);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    &label[..end]
}

impl Meters for super::Metrics {
    fn declare(&self, spec: &MeterSpec) -> Result<Arc<dyn Meter>, String> {
        self.declared().declare(self.registry(), spec)
    }
}
