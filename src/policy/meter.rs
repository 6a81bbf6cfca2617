//! Metrics of plugins: what a plugin counts, without knowing who shows it.

use std::sync::Arc;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeterKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How values are spread.
    Histogram,
}

/// A metric as a plugin declares it.
#[derive(Clone, Debug)]
pub struct MeterSpec {
    /// What it is.
    pub kind: MeterKind,
    /// The plugin's name.
    pub plugin: String,
    /// Its own name.
    pub name: String,
    /// What it counts, in a sentence.
    pub doc: String,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// The upper bounds of a histogram's buckets; empty for the usual ones.
    pub buckets: Vec<f64>,
}

/// A metric that was declared.
pub trait Meter: Send + Sync {
    /// Adds to a counter, sets a gauge, or observes a value, for these values of the labels.
    fn record(&self, value: f64, labels: &[&str]);
}

/// Where plugins declare their metrics. What was declared before is given again, so that a reload goes on counting.
pub trait Meters: Send + Sync {
    /// Declares a metric.
    ///
    /// # Errors
    /// When a name is not fit for a metric, or the plugin declared another metric of that name.
    fn declare(&self, spec: &MeterSpec) -> Result<Arc<dyn Meter>, String>;
}

/// Counts nothing: for checks and measurements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uncounted;

impl Meter for Uncounted {
    fn record(&self, _: f64, _: &[&str]) {}
}

impl Meters for Uncounted {
    fn declare(&self, spec: &MeterSpec) -> Result<Arc<dyn Meter>, String> {
        spec.check().map(|()| Arc::new(Uncounted) as Arc<dyn Meter>)
    }
}

/// Most labels of a metric.
const MOST_LABELS: usize = 4;

/// Most buckets of a histogram.
const MOST_BUCKETS: usize = 32;

impl MeterSpec {
    /// The name under which it is shown.
    pub fn full_name(&self) -> String {
        format!("streamgate_plugin_{}_{}", self.plugin.replace('-', "_"), self.name)
    }

    /// Whether it can go on with a metric of its name that was declared before.
    ///
    /// # Errors
    /// With a sentence for the plugin's author.
    pub fn is_that_of_before(&self, before: &MeterSpec) -> Result<(), String> {
        let is_same =
            before.kind == self.kind && before.labels == self.labels && before.buckets == self.buckets;
        is_same.then_some(()).ok_or_else(|| {
            let name = &self.name;
            format!(
                "{name} was declared with another kind, other labels or other buckets; give it another name"
            )
        })
    }

    /// Whether it can be declared.
    ///
    /// # Errors
    /// With a sentence for the plugin's author.
    pub fn check(&self) -> Result<(), String> {
        let is_name = |it: &str| {
            it.starts_with(|it: char| it.is_ascii_lowercase())
                && it.len() <= 64
                && it.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'_')
        };
        if !is_name(&self.name) {
            return Err(format!(
                "{:?} is not a metric's name: expected lower-case letters, digits and `_`",
                self.name
            ));
        }
        if self.kind == MeterKind::Counter && !self.name.ends_with("_total") {
            return Err(format!("a counter's name ends with `_total`: {}_total", self.name));
        }
        if self.labels.len() > MOST_LABELS {
            return Err(format!("{} has more than {MOST_LABELS} labels", self.name));
        }
        for (idx, label) in self.labels.iter().enumerate() {
            if !is_name(label) || self.labels[..idx].contains(label) {
                return Err(format!("{label:?} is not a label's name, or is there twice"));
            }
        }
        let is_rising = self.buckets.windows(2).all(|it| it[0] < it[1]);
        if self.buckets.len() > MOST_BUCKETS || !is_rising {
            return Err(format!(
                "the buckets of {} are not at most {MOST_BUCKETS} rising numbers",
                self.name
            ));
        }
        Ok(())
    }
}
