//! The report as a page that opens from disk: plots and all figures, without a script and without anything from
//! elsewhere.

use crate::bench::histogram::Summary;
use crate::bench::plot::{Axis, Plot, Point, escape};
use crate::bench::report::{Report, Sample, time};

impl Report {
    pub(crate) fn html(&self) -> String {
        let title = format!("{} sessions through a gateway", self.sessions);
        let kernel = self.machine.kernel.as_deref().unwrap_or("not known");
        let mut body = format!("<header><h1>{title}</h1><p><code>{}</code></p>", escape(&self.url));
        body += &format!(
            "<p>streamgate {} on {} cores, kernel {}</p></header>",
            self.streamgate,
            self.machine.cores,
            escape(kernel)
        );
        body += &self.tiles();
        if self.series.len() > 1 {
            body += &self.over_time();
            body += &self.memory();
        }
        body += &self.latencies();
        body += &self.tables();
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{title}</title>\n<style>{STYLE}</style></head>\n<body><main>{body}</main></body></html>\n"
        )
    }

    /// The few figures that are asked for first.
    fn tiles(&self) -> String {
        let latency = |it: Option<&Summary>| it.map(|it| (time(it.p50), format!("p99 {}", time(it.p99))));
        let mut tiles = Vec::new();
        if let Some(it) = &self.ramp {
            tiles.push(("set-up latency, median", latency(it.latency.as_ref())));
        }
        if let Some(it) = &self.idle {
            let cpu =
                it.cpu_percent_of_core.map_or(String::new(), |it| format!("all idle: {it} % of a core"));
            let bytes = it.pss_bytes_per_session;
            tiles.push((
                "memory per idle session",
                bytes.map(|it| (format!("{:.1} KiB", it as f64 / 1024.0), cpu)),
            ));
        }
        if let Some(it) = &self.echo {
            tiles.push(("echo latency, median", latency(it.latency.as_ref())));
        }
        if let Some(it) = &self.storm {
            let resumed = it.resumed.map_or(String::new(), |it| format!("{it} in their own session"));
            tiles.push(("back after the storm", Some((format!("{} of {}", it.returned, it.lost), resumed))));
        }
        let tiles = tiles.into_iter().filter_map(|(name, figure)| Some((name, figure?)));
        let tiles = tiles.map(|(name, (figure, more))| {
            format!(
                "<div class=\"tile\"><span>{name}</span><strong>{figure}</strong><span>{more}</span></div>"
            )
        });
        format!("<section class=\"tiles\">{}</section>", tiles.collect::<String>())
    }

    /// Sessions and CPU over time. Two plots with one axis of time rather than one plot with two measures.
    fn over_time(&self) -> String {
        let all = thinned(&self.series);
        let seconds = |it: &Sample| it.at_ms as f64 / 1000.0;
        let end = all.last().map_or(0.0, |it| seconds(it));
        let of_time = || Axis::upto(end, "seconds", |it| format!("{it}"));
        let most = all.iter().map(|it| it.open).max().unwrap_or(0);
        let mut open =
            Plot::new(of_time(), Axis::linear(most as f64, "sessions open", |it| format!("{it}")), 240.0);
        self.bands(&mut open);
        let points: Vec<Point> = all
            .iter()
            .map(|it| Point {
                x: seconds(it),
                y: it.open as f64,
                says: format!("{} sessions at {:.1} s ({})", it.open, seconds(it), it.phase),
            })
            .collect();
        open.line(1, &points, "");
        let mut text = format!(
            "<section><h2>Sessions over time</h2>{}</section>",
            open.svg(&format!("Sessions open over {end:.0} seconds, at most {most}."))
        );
        let cpu: Vec<Point> = all
            .windows(2)
            .filter_map(|pair| {
                let used = pair[1].cpu_us?.saturating_sub(pair[0].cpu_us?) as f64;
                let took = (pair[1].at_ms - pair[0].at_ms).max(1) as f64 * 1000.0;
                let (x, y) = (seconds(pair[1]), used / took * 100.0);
                Some(Point { x, y, says: format!("{y:.1} % at {x:.1} s ({})", pair[1].phase) })
            })
            .collect();
        let busiest = cpu.iter().map(|it| it.y).fold(0.0, f64::max);
        if !cpu.is_empty() {
            let mut plot =
                Plot::new(of_time(), Axis::linear(busiest, "% of a core", |it| format!("{it}")), 240.0);
            self.bands(&mut plot);
            plot.line(2, &cpu, "");
            text += &format!(
                "<section><h2>CPU of the process under test over time</h2>{}</section>",
                plot.svg(&format!("CPU over {end:.0} seconds, at most {busiest:.0} percent of a core."))
            );
        }
        text
    }

    fn bands(&self, plot: &mut Plot) {
        let mut from = 0;
        let mut is_dark = false;
        for idx in 1..=self.series.len() {
            let phase = self.series[from].phase;
            if idx < self.series.len() && self.series[idx].phase == phase {
                continue;
            }
            let end = self.series[idx.min(self.series.len() - 1)].at_ms;
            plot.band(self.series[from].at_ms as f64 / 1000.0, end as f64 / 1000.0, phase, is_dark);
            is_dark = !is_dark;
            from = idx;
        }
    }

    /// Memory while sessions were opened.
    fn memory(&self) -> String {
        let ramp: Vec<&Sample> =
            self.series.iter().filter(|it| it.phase == "ramp" || it.phase == "idle").collect();
        let (mut points, mut open) = (Vec::new(), None);
        for it in ramp.iter().filter(|it| it.pss_bytes.is_some()) {
            if open.is_none_or(|open| it.open > open) {
                let mib = it.pss_bytes.unwrap_or_default() as f64 / f64::from(1 << 20);
                let says = format!("{mib:.1} MiB with {} sessions", it.open);
                points.push(Point { x: it.open as f64, y: mib, says });
                open = Some(it.open);
            }
        }
        if points.len() < 2 {
            return String::new();
        }
        let most = points.iter().map(|it| it.y).fold(0.0, f64::max);
        let sessions = open.unwrap_or_default() as f64;
        let mut plot = Plot::new(
            Axis::upto(sessions, "sessions open", |it| format!("{it}")),
            Axis::linear(most, "MiB (PSS)", |it| format!("{it}")),
            240.0,
        );
        plot.line(3, &points, "");
        let says = format!("Memory with up to {sessions} sessions, at most {most:.0} MiB.");
        format!(
            "<section><h2>Memory of the process under test over sessions</h2>{}</section>",
            plot.svg(&says)
        )
    }

    fn latencies(&self) -> String {
        let curves = [
            ("set-up", 1, self.ramp.as_ref().and_then(|it| it.latency.as_ref())),
            ("echo", 2, self.echo.as_ref().and_then(|it| it.latency.as_ref())),
            ("return", 3, self.storm.as_ref().and_then(|it| it.latency.as_ref())),
        ];
        let known: Vec<_> = curves.into_iter().filter_map(|(name, n, it)| Some((name, n, it?))).collect();
        if known.is_empty() {
            return String::new();
        }
        let lowest = known.iter().map(|it| it.2.curve.first().map_or(1, |it| it.1)).min().unwrap_or(1);
        let highest = known.iter().map(|it| it.2.max).max().unwrap_or(1);
        let rarest = known.iter().map(|it| it.2.n).max().unwrap_or(1);
        let log = |it: u64| (it.max(1) as f64).log10();
        let x = Axis::decades(0.0, log(rarest), "share of all that took no longer", |it| match it {
            0 => "0 %".into(),
            1 => "90 %".into(),
            2 => "99 %".into(),
            more => format!("99.{} %", "9".repeat(usize::try_from(more - 2).unwrap_or(0))),
        });
        let y = Axis::decades(log(lowest), log(highest), "latency, logarithmic", |it| match it {
            ..3 => format!("{} µs", 10u64.pow(it.max(0).unsigned_abs())),
            3..6 => format!("{} ms", 10u64.pow((it - 3).unsigned_abs())),
            _ => format!("{} s", 10u64.pow((it - 6).unsigned_abs())),
        });
        let mut plot = Plot::new(x, y, 320.0);
        for (name, n, summary) in &known {
            let points: Vec<Point> = summary
                .curve
                .iter()
                .map(|(share, micros)| Point {
                    // The highest one of n stands where one in n is.
                    x: if *share < 1.0 { -(1.0 - share).log10() } else { log(summary.n) },
                    y: log(*micros),
                    says: format!("{name}: {} % took at most {}", (share * 1e5).round() / 1e3, time(*micros)),
                })
                .collect();
            plot.line(*n, &points, name);
        }
        let legend: String = known
            .iter()
            .map(|(name, n, it)| format!("<span><i class=\"c{n}\"></i>{name} ({} samples)</span>", it.n))
            .collect();
        format!(
            "<section><h2>Latency</h2><p class=\"legend\">{legend}</p>{}<p class=\"aside\">Counted from the moment at which each \
             action was due, whenever it was begun.</p></section>",
            plot.svg("Latency by percentile of set-up, echo and return.")
        )
    }

    fn tables(&self) -> String {
        let mut text = String::from("<section><h2>All figures</h2><table>");
        for (phase, lines) in self.figures() {
            text += &format!("<tr><th class=\"group\" colspan=\"2\">{phase}</th></tr>");
            for (name, value) in lines {
                text += &format!("<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
            }
        }
        text += "</table></section><section><h2>What was asked for</h2><table>";
        for (name, value) in &self.options {
            text += &format!("<tr><th>{name}</th><td>{}</td></tr>", escape(value));
        }
        text += "</table></section>";
        if !self.notes.is_empty() {
            let notes: String = self.notes.iter().map(|it| format!("<li>{}.</li>", escape(it))).collect();
            text += &format!("<section><h2>Notes</h2><ul>{notes}</ul></section>");
        }
        text
    }
}

/// As many samples as a plot can show, evenly chosen.
fn thinned(all: &[Sample]) -> Vec<&Sample> {
    let step = all.len().div_ceil(MOST_POINTS).max(1);
    all.iter().step_by(step).collect()
}

const MOST_POINTS: usize = 600;

const STYLE: &str = "
:root { color-scheme: light dark; --page: #f9f9f7; --card: #fcfcfb; --ink: #0b0b0b; --soft: #52514e; --faint: #898781;
  --grid: #e1e0d9; --axis: #c3c2b7; --band: #f0efec; --c1: #2a78d6; --c2: #eb6834; --c3: #1baf7a; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d0d0d; --card: #1a1a19; --ink: #ffffff; --soft: #c3c2b7; --faint: #898781; --grid: #2c2c2a;
    --axis: #383835; --band: #232322; --c1: #3987e5; --c2: #d95926; --c3: #199e70; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 0 0 8px; }
header p { margin: 0; color: var(--soft); } code { overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; padding: 16px; margin-top: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; padding: 0; border: 0;
  background: none; }
.tile { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; padding: 12px 16px; }
.tile span { display: block; color: var(--soft); font-size: 13px; min-height: 1.5em; }
.tile strong { display: block; font-size: 24px; font-weight: 600; }
svg { display: block; width: 100%; height: auto; font-size: 12px; }
.grid { stroke: var(--grid); } .axis { stroke: var(--axis); } .band { fill: var(--band); }
text { fill: var(--soft); } .tick { fill: var(--faint); font-variant-numeric: tabular-nums; }
.tick.y { text-anchor: end; } .tick.x, .phase { text-anchor: middle; } .name { fill: var(--ink);
  paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); } .line.c3 { stroke: var(--c3); }
.end { stroke: var(--card); stroke-width: 2; }
.end.c1 { fill: var(--c1); } .end.c2 { fill: var(--c2); } .end.c3 { fill: var(--c3); }
.hit { fill: transparent; } .hit:hover { fill: var(--ink); fill-opacity: 0.35; }
.legend { margin: 0 0 4px; color: var(--soft); font-size: 13px; } .legend span { margin-right: 16px; }
.legend i { display: inline-block; width: 14px; height: 2px; margin-right: 6px; vertical-align: middle; }
i.c1 { background: var(--c1); } i.c2 { background: var(--c2); } i.c3 { background: var(--c3); }
.aside { margin: 8px 0 0; color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: 4px 8px 4px 0; vertical-align: top; }
th { font-weight: 400; color: var(--soft); width: 200px; } td { font-variant-numeric: tabular-nums; }
th.group { color: var(--ink); font-weight: 600; padding-top: 12px; border-bottom: 1px solid var(--grid); }
ul { margin: 0; padding-left: 20px; }
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::report::{Errors, Idle, Machine, Ramp};

    fn sample(at_ms: u64, phase: &'static str, open: usize, pss_bytes: Option<u64>) -> Sample {
        let cpu_us = pss_bytes.map(|_| at_ms * 100);
        Sample { at_ms, phase, open, cpu_us, pss_bytes, sent: 0, received: 0, errors: 0 }
    }

    fn report(series: Vec<Sample>) -> Report {
        Report {
            streamgate: "0",
            url: "ws://a/?\"><script>".into(),
            sessions: 3,
            tls: false,
            resumable: None,
            machine: Machine { cores: 1, kernel: None },
            ramp: None,
            idle: None,
            echo: None,
            storm: None,
            notes: vec!["<b>".into()],
            options: BTreeMap::from([("upstream", "&".into())]),
            series,
            is_whole: false,
        }
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        let page = report(Vec::new()).html();
        assert!(page.contains("ws://a/?&quot;&gt;&lt;script&gt;") && page.contains("&lt;b&gt;."), "{page}");
        assert!(page.contains("<td>&amp;</td>") && !page.contains("<script"), "{page}");
    }

    #[test]
    fn what_is_not_known_is_not_drawn() {
        assert_eq!(report(Vec::new()).html().matches("<svg").count(), 0);
        let unknown = vec![sample(0, "ramp", 0, None), sample(250, "idle", 3, None)];
        let mut page = report(unknown);
        let (latency, errors) = (None, Errors::default());
        page.ramp = Some(Ramp {
            wanted_per_second: 1.0,
            achieved_per_second: None,
            opened: 0,
            failed: 3,
            latency,
            start_lag: None,
            cpu_us_per_session: None,
            errors: errors.clone(),
        });
        page.idle = Some(Idle {
            seconds: 1.0,
            pss_bytes_per_session: None,
            cpu_percent_of_core: None,
            pings: 0,
            lost: 0,
            errors,
        });
        let html = page.html();
        assert_eq!(html.matches("<svg").count(), 1, "sessions alone");
        assert!(!html.contains("NaN") && !html.contains("inf") && html.contains("not known"), "{html}");

        let all: Vec<Sample> =
            (0..5000).map(|it| sample(it * 250, "ramp", it as usize, Some(it << 20))).collect();
        let html = report(all).html();
        assert_eq!(html.matches("<svg").count(), 3, "sessions, CPU and memory");
        assert!(html.len() < 1 << 20 && !html.contains("NaN"), "{} bytes", html.len());
    }
}
