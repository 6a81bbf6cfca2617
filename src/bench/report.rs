//! What was measured: as JSON and as a table.

use std::collections::BTreeMap;

use serde::Serialize;

pub(crate) use crate::bench::histogram::Summary;

/// A whole measurement. A figure that is not known is `None`, never zero; a phase that was not run as well.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(super) streamgate: &'static str,
    pub(super) url: String,
    pub(super) sessions: usize,
    pub(super) tls: bool,
    /// Whether the gateway has set cookies, by which a browser is known again.
    pub(super) resumable: Option<bool>,
    pub(super) machine: Machine,
    pub(super) ramp: Option<Ramp>,
    pub(super) idle: Option<Idle>,
    pub(super) echo: Option<Echo>,
    pub(super) storm: Option<Storm>,
    /// What a reader of the figures must know.
    pub(super) notes: Vec<String>,
    /// What was asked for, in the words of the command line.
    pub(super) options: BTreeMap<&'static str, String>,
    pub(super) series: Vec<Sample>,
    /// Whether every session opened, every echo came back and every browser got back in.
    #[serde(skip)]
    pub(super) is_whole: bool,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) kernel: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Ramp {
    pub(super) wanted_per_second: f64,
    pub(super) achieved_per_second: Option<f64>,
    pub(super) opened: u64,
    pub(super) failed: u64,
    pub(super) latency: Option<Summary>,
    /// How long after they were due attempts began: our own share of the latency.
    pub(super) start_lag: Option<Summary>,
    pub(super) cpu_us_per_session: Option<f64>,
    pub(super) errors: Errors,
}

#[derive(Debug, Serialize)]
pub(super) struct Idle {
    pub(super) seconds: f64,
    pub(super) pss_bytes_per_session: Option<u64>,
    pub(super) cpu_percent_of_core: Option<f64>,
    pub(super) pings: u64,
    pub(super) lost: u64,
    pub(super) errors: Errors,
}

#[derive(Debug, Serialize)]
pub(super) struct Echo {
    pub(super) wanted_per_second: f64,
    pub(super) achieved_per_second: Option<f64>,
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Those that took 100 ms or more.
    pub(super) late: u64,
    pub(super) latency: Option<Summary>,
    /// How long after they were due messages left: our own share of the latency.
    pub(super) send_lag: Option<Summary>,
    pub(super) cpu_us_per_message: Option<f64>,
    pub(super) errors: Errors,
}

#[derive(Debug, Serialize)]
pub(super) struct Storm {
    pub(super) within_seconds: f64,
    pub(super) lost: u64,
    pub(super) returned: u64,
    /// Those that found their upstream connection again; `None`: the upstream does not tell.
    pub(super) resumed: Option<u64>,
    pub(super) failed: u64,
    pub(super) latency: Option<Summary>,
    /// How long after they were due attempts began: our own share of the latency.
    pub(super) start_lag: Option<Summary>,
    pub(super) cpu_us_per_session: Option<f64>,
    pub(super) errors: Errors,
}

/// How often what went wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Errors(pub(super) BTreeMap<String, u64>);

/// All counters at one moment.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) at_ms: u64,
    pub(super) phase: &'static str,
    pub(super) open: usize,
    /// CPU time since the beginning.
    pub(super) cpu_us: Option<u64>,
    pub(super) pss_bytes: Option<u64>,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) errors: u64,
}

impl Errors {
    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl std::fmt::Display for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let all: Vec<String> = self.0.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        f.write_str(&all.join(", "))
    }
}

impl Report {
    /// Whether every session opened, every echo came back and every browser got back in.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has no keys but texts") + "\n"
    }

    /// The figures as groups of lines: a phase, and in it names and values.
    pub(super) fn figures(&self) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
        let mut groups = Vec::new();
        if let Some(it) = &self.ramp {
            groups.push((
                "ramp",
                vec![
                    ("sessions opened", format!("{}, {} failed", it.opened, it.failed)),
                    ("per second", rate(it.achieved_per_second, it.wanted_per_second)),
                    ("set-up latency", latency(it.latency.as_ref())),
                    ("of it, until begun", latency(it.start_lag.as_ref())),
                    ("CPU per session", micros(it.cpu_us_per_session)),
                    ("errors", it.errors.to_string()),
                ],
            ));
        }
        if let Some(it) = &self.idle {
            groups.push((
                "idle",
                vec![
                    ("seconds", format!("{}", it.seconds)),
                    ("memory per session", shown(it.pss_bytes_per_session, |it| format!("{it} bytes (PSS)"))),
                    ("CPU", shown(it.cpu_percent_of_core, |it| format!("{it} % of a core"))),
                    ("pings", it.pings.to_string()),
                    ("sessions lost", it.lost.to_string()),
                    ("errors", it.errors.to_string()),
                ],
            ));
        }
        if let Some(it) = &self.echo {
            let came = format!("{} of {}, {} late", it.received, it.sent, it.late);
            groups.push((
                "echo",
                vec![
                    ("messages back", came),
                    ("per second", rate(it.achieved_per_second, it.wanted_per_second)),
                    ("echo latency", latency(it.latency.as_ref())),
                    ("of it, until sent", latency(it.send_lag.as_ref())),
                    ("CPU per message", micros(it.cpu_us_per_message)),
                    ("errors", it.errors.to_string()),
                ],
            ));
        }
        if let Some(it) = &self.storm {
            groups.push((
                "storm",
                vec![
                    ("browsers lost", it.lost.to_string()),
                    (
                        "back",
                        format!(
                            "{}, {} failed; begun within {} s",
                            it.returned, it.failed, it.within_seconds
                        ),
                    ),
                    ("in their own session", shown(it.resumed, |it| it.to_string())),
                    ("return latency", latency(it.latency.as_ref())),
                    ("of it, until begun", latency(it.start_lag.as_ref())),
                    ("CPU per session", micros(it.cpu_us_per_session)),
                    ("errors", it.errors.to_string()),
                ],
            ));
        }
        groups
    }

    /// The figures for a terminal.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{} sessions through {}\n", self.sessions, self.url);
        for (phase, lines) in self.figures() {
            for (idx, (name, value)) in lines.iter().enumerate() {
                let (gap, phase) = if idx == 0 { ("\n", phase) } else { ("", "") };
                text += &format!("{gap}{phase:<7}{name:<22}{value}\n");
            }
        }
        for note in &self.notes {
            text += &format!("\n{note}.\n");
        }
        text
    }
}

fn shown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "not known".to_owned(), show)
}

fn micros(value: Option<f64>) -> String {
    shown(value, |it| format!("{it} µs"))
}

fn rate(achieved: Option<f64>, wanted: f64) -> String {
    shown(achieved, |it| format!("{it} of {wanted}"))
}

fn latency(summary: Option<&Summary>) -> String {
    shown(summary, |it| {
        let [p50, p90, p99, p999, max] = [it.p50, it.p90, it.p99, it.p999, it.max].map(time);
        format!("p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}")
    })
}

/// Microseconds in the unit that they are read in.
pub(super) fn time(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_unit_that_they_are_read_in() {
        for (micros, text) in
            [(0, "0 µs"), (999, "999 µs"), (1000, "1.0 ms"), (23_855, "23.9 ms"), (1_020_000, "1.02 s")]
        {
            assert_eq!(time(micros), text);
        }
    }

    #[test]
    fn errors_are_told_by_kind() {
        let mut errors = Errors::default();
        assert_eq!((errors.to_string(), errors.total()), ("none".into(), 0));
        errors.0.extend([("timeout".to_owned(), 1), ("http_503".to_owned(), 50)]);
        assert_eq!((errors.to_string(), errors.total()), ("50 http_503, 1 timeout".into(), 51));
    }
}
