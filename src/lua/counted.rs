//! What plugins have counted in a test of their spec.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::did_you_mean;
use crate::policy::{Meter, MeterKind, MeterSpec, Meters};

/// All metrics that plugins have declared, with their values since the test began.
#[derive(Default)]
pub(super) struct Counted(Mutex<BTreeMap<String, Arc<One>>>);

/// One metric, with its values by those of its labels.
struct One {
    spec: MeterSpec,
    values: Mutex<BTreeMap<Vec<String>, Reading>>,
}

/// The value of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reading {
    /// Of a counter or a gauge.
    One(f64),
    /// Of a histogram.
    Spread { count: f64, sum: f64 },
}

impl Counted {
    /// A test begins.
    pub(super) fn reset(&self) {
        locked(&self.0).values().for_each(|it| locked(&it.values).clear());
    }

    /// The value of a plugin's metric, by its own name or its full one; 0 where nothing was counted.
    pub(super) fn value(
        &self,
        plugin: &str,
        name: &str,
        labels: &[(String, String)],
    ) -> Result<Reading, String> {
        let metrics = locked(&self.0);
        let of_plugin = metrics.values().find(|it| it.spec.plugin == plugin && it.spec.name == name);
        let Some(one) = of_plugin.or_else(|| metrics.get(name)) else {
            let names: Vec<&str> = metrics
                .values()
                .map(|it| &it.spec)
                .filter(|it| it.plugin == plugin)
                .map(|it| &*it.name)
                .collect();
            let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let instead = did_you_mean(name, names.iter().copied(), &format!("{plugin} has {has}"));
            return Err(format!("spec.metric: no metric {name:?};{instead}"));
        };
        let wanted = &one.spec.labels;
        let find = |label: &String| labels.iter().find(|(it, _)| it == label).map(|(_, value)| value.clone());
        let values: Option<Vec<String>> = wanted.iter().map(find).collect();
        let Some(values) = values.filter(|it| it.len() == labels.len()) else {
            let labels = if wanted.is_empty() { "none".to_owned() } else { wanted.join(", ") };
            return Err(format!("spec.metric: the labels of {name} are: {labels}; give a value for each"));
        };
        Ok(locked(&one.values).get(&values).copied().unwrap_or_else(|| one.nothing()))
    }
}

impl One {
    fn nothing(&self) -> Reading {
        match self.spec.kind {
            MeterKind::Counter | MeterKind::Gauge => Reading::One(0.0),
            MeterKind::Histogram => Reading::Spread { count: 0.0, sum: 0.0 },
        }
    }
}

impl Meter for One {
    fn record(&self, value: f64, labels: &[&str]) {
        let labels = labels.iter().map(|it| (*it).to_owned()).collect();
        let mut values = locked(&self.values);
        let reading = values.entry(labels).or_insert_with(|| self.nothing());
        match reading {
            Reading::Spread { count, sum } => (*count, *sum) = (*count + 1.0, *sum + value),
            Reading::One(it) if self.spec.kind == MeterKind::Counter => *it += value,
            Reading::One(it) => *it = value,
        }
    }
}

impl Meters for Counted {
    fn declare(&self, spec: &MeterSpec) -> Result<Arc<dyn Meter>, String> {
        spec.check()?;
        let mut metrics = locked(&self.0);
        let one = metrics
            .entry(spec.full_name())
            .or_insert_with(|| Arc::new(One { spec: spec.clone(), values: Mutex::default() }));
        spec.is_that_of_before(&one.spec).map(|()| Arc::clone(one) as Arc<dyn Meter>)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
