//! Plots as SVG, drawn by hand: axes, lines and areas. Colours are those of the page's style sheet.

/// An axis: where values lie, and which are labelled.
pub(super) struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
    title: &'static str,
}

/// One plot.
pub(super) struct Plot {
    x: Axis,
    y: Axis,
    height: f64,
    below: String,
    above: String,
    /// Where names stand already.
    names: Vec<(f64, f64)>,
}

/// Points of a line, and what the pointer shows there.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) says: String,
}

impl Axis {
    /// From zero to a little more than `most`, with round steps.
    pub(super) fn linear(most: f64, title: &'static str, label: impl Fn(f64) -> String) -> Axis {
        let most = if most > 0.0 { most } else { 1.0 };
        let rough = most / 5.0;
        let scale = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|it| it * scale).into_iter().find(|it| *it >= rough);
        let step = step.unwrap_or(rough);
        let n = (most / step).ceil() as u32;
        let ticks = (0..=n).map(|it| (f64::from(it) * step, label(f64::from(it) * step))).collect();
        Axis { low: 0.0, high: f64::from(n) * step, ticks, title }
    }

    /// Exactly from zero to `most`: time, which ends where it ends.
    pub(super) fn upto(most: f64, title: &'static str, label: impl Fn(f64) -> String) -> Axis {
        let mut axis = Axis::linear(most, title, label);
        axis.high = if most > 0.0 { most } else { 1.0 };
        axis.ticks.retain(|it| it.0 <= axis.high);
        axis
    }

    /// Values that are logarithms already; each whole one is labelled.
    pub(super) fn decades(low: f64, high: f64, title: &'static str, label: impl Fn(i32) -> String) -> Axis {
        let (first, last) = (low.floor() as i32, (high.ceil() as i32).max(low.floor() as i32 + 1));
        let ticks = (first..=last).map(|it| (f64::from(it), label(it))).collect();
        Axis { low: f64::from(first), high: f64::from(last), ticks, title }
    }

    /// Where a value lies, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

impl Plot {
    pub(super) fn new(x: Axis, y: Axis, height: f64) -> Plot {
        Plot { x, y, height, below: String::new(), above: String::new(), names: Vec::new() }
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + self.x.at(x) * (WIDTH - LEFT - RIGHT)
    }

    fn py(&self, y: f64) -> f64 {
        TOP + (1.0 - self.y.at(y)) * (self.height - TOP - BOTTOM)
    }

    /// A named stretch of the x axis.
    pub(super) fn band(&mut self, from: f64, to: f64, name: &str, is_dark: bool) {
        let (left, right) = (self.px(from), self.px(to));
        let (top, bottom) = (TOP, self.height - BOTTOM);
        if is_dark {
            self.below += &format!(
                "<rect class=\"band\" x=\"{left:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                right - left,
                bottom - top
            );
        }
        // A name that does not fit is left out; the bands beside it tell.
        if right - left > 7.0 * name.len() as f64 {
            self.above += &format!(
                "<text class=\"phase\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
                (left + right) / 2.0,
                TOP - 6.0
            );
        }
    }

    /// A line through points, in colour `n`, with what it is called at its end.
    pub(super) fn line(&mut self, n: u8, points: &[Point], name: &str) {
        let Some(last) = points.last() else { return };
        let path: Vec<String> =
            points.iter().map(|it| format!("{:.1},{:.1}", self.px(it.x), self.py(it.y))).collect();
        self.above += &format!("<polyline class=\"line c{n}\" points=\"{}\"/>", path.join(" "));
        for (point, at) in points.iter().zip(&path) {
            let (x, y) = at.split_once(',').unwrap_or((at, at));
            self.above += &format!(
                "<circle class=\"hit\" cx=\"{x}\" cy=\"{y}\" r=\"5\"><title>{}</title></circle>",
                escape(&point.says)
            );
        }
        if !name.is_empty() {
            let (x, y) = (self.px(last.x), self.py(last.y));
            self.above += &format!("<circle class=\"end c{n}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>");
            let mut free = y + 4.0;
            while self.names.iter().any(|it| (it.0 - x).abs() < 60.0 && (it.1 - free).abs() < 14.0) {
                free += 1.0;
            }
            self.names.push((x, free));
            self.above += &format!("<text class=\"name\" x=\"{:.1}\" y=\"{free:.1}\">{name}</text>", x + 8.0);
        }
    }

    /// The whole, with a sentence for those who do not see it.
    pub(super) fn svg(&self, says: &str) -> String {
        let (bottom, right) = (self.height - BOTTOM, WIDTH - RIGHT);
        let mut text = format!(
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">{}",
            self.height,
            escape(says),
            self.below
        );
        for (value, label) in &self.y.ticks {
            let y = self.py(*value);
            text +=
                &format!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            text +=
                &format!("<text class=\"tick y\" x=\"{}\" y=\"{:.1}\">{label}</text>", LEFT - 8.0, y + 4.0);
        }
        for (value, label) in &self.x.ticks {
            let x = self.px(*value);
            text += &format!("<text class=\"tick x\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>", bottom + 18.0);
        }
        text +=
            &format!("<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
        text += &format!(
            "<text class=\"title\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            self.height - 6.0,
            self.x.title
        );
        text += &format!("<text class=\"title\" x=\"4\" y=\"12\">{}</text>", self.y.title);
        text + &self.above + "</svg>"
    }
}

/// Text that may have come from outside, for HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 72.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 44.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_values_in_round_steps() {
        let ticks = |axis: &Axis| axis.ticks.iter().map(|it| it.1.clone()).collect::<Vec<_>>();
        let label = |it: f64| format!("{it}");
        assert_eq!(ticks(&Axis::linear(76.0, "", label)), ["0", "20", "40", "60", "80"]);
        assert_eq!(ticks(&Axis::upto(12.4, "", label)), ["0", "2.5", "5", "7.5", "10"]);
        let nothing = Axis::linear(0.0, "", label);
        assert_eq!((nothing.at(0.0), nothing.at(1.0)), (0.0, 1.0));
        let decades = Axis::decades(2.3, 4.1, "", |it| format!("{it}"));
        assert_eq!(ticks(&decades), ["2", "3", "4", "5"]);
        assert_eq!((decades.at(3.5), decades.at(9.0)), (0.5, 1.0));
    }
}
