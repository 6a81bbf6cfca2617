//! Latencies of many tasks, and what is told of them.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies in microseconds, to three digits. Several histograms, so that tasks on several threads seldom wait for each
/// other.
pub(super) struct Latencies(Vec<Mutex<Histogram<u64>>>);

/// Some latencies in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(super) n: u64,
    pub(super) mean: f64,
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) p999: u64,
    pub(super) max: u64,
    /// For each share of all, the latency that it keeps to; for a plot.
    #[serde(skip)]
    pub(super) curve: Vec<(f64, u64)>,
}

impl Latencies {
    pub(super) fn new() -> Self {
        Latencies((0..SHARDS).map(|_| Mutex::new(empty())).collect())
    }

    /// Notes one; `idx` is that of the task, which spreads the tasks over the histograms.
    pub(super) fn record(&self, idx: usize, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let mut histogram = self.0[idx % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record(micros);
    }

    /// What was noted so far; `None` when that is nothing.
    pub(super) fn summary(&self) -> Option<Summary> {
        let mut all = empty();
        for histogram in &self.0 {
            all += &*histogram.lock().unwrap_or_else(PoisonError::into_inner);
        }
        if all.is_empty() {
            return None;
        }
        let at = |quantile| all.value_at_quantile(quantile).min(all.max());
        Some(Summary {
            n: all.len(),
            mean: (all.mean() * 10.0).round() / 10.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: all.max(),
            curve: nines(all.len()).map(|it| (it, at(it))).collect(),
        })
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST, 3).expect("the bounds are in order")
}

/// Shares that come ever closer to all of `n`: from 0 in twentieths to 0.9, from there in twentieths of the rest to 0.99,
/// and so on until the rest is less than one of them; then all.
fn nines(n: u64) -> impl Iterator<Item = f64> {
    let decades = (n.max(1) as f64).log10().ceil().clamp(1.0, 6.0) as i32;
    let steps = (0..decades).flat_map(|decade| (0..18).map(move |step| (decade, step)));
    let shares = steps.map(|(decade, step)| 1.0 - 10f64.powi(-decade) * (1.0 - f64::from(step) / 20.0));
    shares.take_while(move |it| (1.0 - it) * n as f64 > 1.0).chain([1.0])
}

const SHARDS: usize = 8;

/// Two minutes. Whatever takes longer has failed before: nothing is waited for so long.
const HIGHEST: u64 = 120_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_tasks() {
        let latencies = Latencies::new();
        assert_eq!(latencies.summary(), None);
        for idx in 0..1000 {
            latencies.record(idx, Duration::from_micros(idx as u64 + 1));
        }
        latencies.record(0, Duration::from_secs(3600));
        let it = latencies.summary().expect("there are some");
        assert_eq!((it.n, it.p50, it.p90, it.p99), (1001, 501, 901, 991));
        assert!(it.max >= HIGHEST, "what is out of bounds counts as the highest: {}", it.max);
        assert!(it.curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{:?}", it.curve);
        assert_eq!(it.curve.last(), Some(&(1.0, it.max)));
        let last = it.curve[it.curve.len() - 2].0;
        assert!(last > 0.99 && (1.0 - last) * 1001.0 > 1.0, "no share leaves out less than one: {last}");
    }
}
