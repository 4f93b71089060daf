//! Plots over time, and bars. Labels are text beside the drawing, so they keep their size when the
//! drawing is stretched to the width of a screen.

use std::fmt::Display;
use std::time::Duration;

use super::markup::Markup;

/// Both sides of a drawing in its own units.
const SIDE: f64 = 1000.0;

/// The most rounds whose ends are marked: more would hide the lines.
const MOST_MARKS: usize = 60;
/// The most of them that have a number.
const MOST_NUMBERS: usize = 12;

/// The part of the width that a number takes.
const LEAST_BETWEEN: f64 = 0.05;

/// The plotted figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Bytes,
    BytesPerSecond,
    Ratio,
}

/// A line of a plot.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: &'static str,
    /// Its colour in the style sheet.
    pub(super) class: &'static str,
    /// Times in seconds and values.
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Debug)]
pub(super) struct Plot<'a> {
    pub(super) title: &'static str,
    pub(super) unit: Unit,
    pub(super) lines: Vec<Line>,
    /// The length of the time axis, in seconds.
    pub(super) until: f64,
    /// When rounds ended, and their numbers.
    pub(super) marks: &'a [(f64, u64)],
}

impl Plot<'_> {
    /// Draws the plot. One without values is left out.
    pub(super) fn draw(mut self, page: &mut Markup) {
        self.lines.retain(|line| line.points.len() > 1);
        let values = self.lines.iter().flat_map(|line| &line.points);
        let most = values.fold(0.0, |most, (_, value)| f64::max(most, *value));
        let is_sound = |number: f64| number.is_finite() && number > 0.0;
        if !is_sound(most) || !is_sound(self.until) {
            return;
        }
        let scale = Scale::of(most, self.unit);
        let times = Ticks::of(self.until, 4.0);
        page.element("figure", &[], |page| {
            page.element("figcaption", &[], |page| {
                page.words("b", &[], self.title);
                for line in &self.lines {
                    let class = format!("key {}", line.class);
                    page.element("span", &[("class", &class)], |page| page.text(line.name));
                }
            });
            page.element("div", &[("class", &"plot")], |page| {
                self.labels(page, &scale, times);
                let attributes: [(_, &dyn Display); 4] = [
                    ("viewBox", &"0 0 1000 1000"),
                    ("preserveAspectRatio", &"none"),
                    ("role", &"img"),
                    ("aria-label", &self.title),
                ];
                page.element("svg", &attributes, |page| self.drawing(page, &scale));
            });
        });
    }

    fn labels(&self, page: &mut Markup, scale: &Scale, times: Ticks) {
        for (number, value) in scale.ticks.values().enumerate() {
            let style = format!("bottom:{:.2}%", value / scale.ticks.top() * 100.0);
            let attributes: [(_, &dyn Display); 2] = [("class", &"y"), ("style", &style)];
            let unit = match number {
                0 => "",
                _ => scale.unit,
            };
            let label = scale.ticks.label(value);
            page.words("span", &attributes, format_args!("{label}{unit}"));
        }
        for time in times.values().filter(|time| *time <= self.until) {
            let style = format!("left:{:.2}%", time / self.until * 100.0);
            let attributes: [(_, &dyn Display); 2] = [("class", &"x"), ("style", &style)];
            page.words("span", &attributes, clock(time, times));
        }
        if self.marks.len() <= MOST_NUMBERS {
            let mut last = f64::NEG_INFINITY;
            for (at, number) in self.marks {
                if at - last < self.until * LEAST_BETWEEN {
                    continue;
                }
                last = *at;
                let style = format!("left:{:.2}%", at / self.until * 100.0);
                let attributes: [(_, &dyn Display); 2] = [("class", &"round"), ("style", &style)];
                page.words("span", &attributes, number);
            }
        }
    }

    fn drawing(&self, page: &mut Markup, scale: &Scale) {
        for value in scale.ticks.values() {
            let y = format!("{:.1}", SIDE - value / scale.ticks.top() * SIDE);
            let path = format!("M0 {y}H{SIDE}");
            shape(page, "grid", &path);
        }
        if self.marks.len() <= MOST_MARKS {
            for (at, _) in self.marks {
                let path = format!("M{:.1} 0V{SIDE}", at / self.until * SIDE);
                shape(page, "mark", &path);
            }
        }
        for line in &self.lines {
            let mut path = String::new();
            for (at, value) in &line.points {
                let (x, y) = (at / self.until, value / scale.ticks.top());
                path.push(if path.is_empty() { 'M' } else { 'L' });
                path.push_str(&format!("{:.1} {:.1}", x * SIDE, SIDE - y * SIDE));
            }
            shape(page, line.class, &path);
        }
    }
}

fn shape(page: &mut Markup, class: &'static str, path: &str) {
    page.element("path", &[("class", &class), ("d", &path)], |_| {});
}

/// Draws parts of a whole beside each other. The words beside them say the same.
pub(super) fn bar(page: &mut Markup, parts: &[(&'static str, f64)]) {
    let whole: f64 = parts.iter().map(|(_, part)| part).sum();
    let attributes: [(_, &dyn Display); 4] = [
        ("class", &"bar"),
        ("viewBox", &"0 0 1000 10"),
        ("preserveAspectRatio", &"none"),
        ("aria-hidden", &"true"),
    ];
    page.element("svg", &attributes, |page| {
        let mut from = 0.0;
        for (class, part) in parts {
            let to = from + part / whole * SIDE;
            if part.is_finite() && *part > 0.0 {
                let path = format!("M{from:.1} 0H{to:.1}V10H{from:.1}z");
                shape(page, class, &path);
                from = to;
            }
        }
    });
}

/// A unit, and values in it to write at a side.
struct Scale {
    ticks: Ticks,
    unit: &'static str,
}

/// Round values from 0 on.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    /// In which unit they are round.
    factor: f64,
    step: f64,
    count: u32,
}

impl Scale {
    fn of(most: f64, unit: Unit) -> Self {
        let units = match unit {
            Unit::Bytes => [" B", " KiB", " MiB", " GiB", " TiB"],
            Unit::BytesPerSecond => [" B/s", " KiB/s", " MiB/s", " GiB/s", " TiB/s"],
            Unit::Ratio => [":1"; 5],
        };
        let mut factor = 1.0;
        let mut name = units[0];
        for next in units.iter().skip(1) {
            if most / factor < 1024.0 || unit == Unit::Ratio {
                break;
            }
            factor *= 1024.0;
            name = next;
        }
        let ticks = Ticks {
            factor,
            ..Ticks::of(most / factor, 4.0)
        };
        Self { ticks, unit: name }
    }
}

impl Ticks {
    /// About this many steps to `most`, each 1, 2 or 5 with zeros.
    fn of(most: f64, steps: f64) -> Self {
        let least = most / steps;
        let zeros = 10_f64.powf(least.log10().floor());
        let rounds = [1.0, 2.0, 5.0, 10.0];
        let step = rounds.into_iter().find(|round| round * zeros >= least);
        let step = step.unwrap_or(10.0) * zeros;
        Self {
            factor: 1.0,
            step,
            count: (most / step).ceil().clamp(1.0, 10.0) as u32,
        }
    }

    fn values(self) -> impl Iterator<Item = f64> {
        (0..=self.count).map(move |number| f64::from(number) * self.step * self.factor)
    }

    fn top(self) -> f64 {
        f64::from(self.count) * self.step * self.factor
    }

    fn label(self, value: f64) -> String {
        let decimals = (-self.step.log10().floor()).clamp(0.0, 6.0) as usize;
        format!("{:.*}", decimals, value / self.factor)
    }
}

/// A time of a plot.
fn clock(seconds: f64, ticks: Ticks) -> String {
    if ticks.top() <= 120.0 {
        return format!("{} s", ticks.label(seconds));
    }
    let seconds = Duration::from_secs_f64(seconds).as_secs();
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    match minutes / 60 {
        0 => format!("{minutes}:{seconds:02}"),
        hours => format!("{hours}:{:02}:{seconds:02}", minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::markup::tests::well_formed;
    use super::*;

    fn labels(most: f64, unit: Unit) -> Vec<String> {
        let scale = Scale::of(most, unit);
        let values = scale.ticks.values();
        values.map(|value| scale.ticks.label(value)).collect()
    }

    #[test]
    fn values_beside_a_plot_are_round_in_its_unit() {
        let gib = f64::from(1 << 30);
        assert_eq!(labels(3.3 * gib, Unit::Bytes), ["0", "1", "2", "3", "4"]);
        assert_eq!(Scale::of(3.3 * gib, Unit::Bytes).unit, " GiB");
        assert_eq!(
            labels(1.9, Unit::Ratio),
            ["0.0", "0.5", "1.0", "1.5", "2.0"]
        );
        assert_eq!(labels(1e6, Unit::Ratio), ["0", "500000", "1000000"]);
        let seconds = Ticks::of(90.0, 4.0);
        assert_eq!(clock(50.0, seconds), "50 s");
        assert_eq!(clock(4000.0, Ticks::of(5000.0, 4.0)), "1:06:40");
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        let plot = |points: &[(f64, f64)], until| {
            let mut page = Markup::default();
            let line = Line {
                name: "in",
                class: "in",
                points: points.to_vec(),
            };
            let plot = Plot {
                title: "Rates",
                unit: Unit::BytesPerSecond,
                lines: vec![line],
                until,
                marks: &[(1.0, 1)],
            };
            plot.draw(&mut page);
            page.finish()
        };
        for nothing in [
            plot(&[], 1.0),
            plot(&[(0.0, 1.0)], 1.0),
            plot(&[(0.0, 0.0), (1.0, 0.0)], 1.0),
            plot(&[(0.0, 1.0), (1.0, f64::INFINITY)], 1.0),
            plot(&[(0.0, 1.0), (1.0, 1.0)], 0.0),
        ] {
            assert_eq!(nothing, "");
        }
        let drawn = plot(&[(0.0, 1.0), (2.0, 3.0)], 2.0);
        well_formed(&drawn);
        assert!(drawn.contains("M0.0 666.7L1000.0 0.0"), "{drawn}");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        let mut page = Markup::default();
        bar(&mut page, &[("source", 0.0), ("codec", 0.0)]);
        assert!(!page.finish().contains("NaN"));
    }
}
