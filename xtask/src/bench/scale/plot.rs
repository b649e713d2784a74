//! The growth of every operation with the number of sessions: a panel for each database behind each cache, both axes
//! logarithmic. Not with a plotting crate, for the reason that `bench/plot.rs` gives.

use super::report::{Curve, grouped};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 380.0;
/// The margins of a panel, beyond which are the names of its axes and curves.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

const COLORS: [&str; 8] =
    ["#1b5e20", "#1565c0", "#b00020", "#e65100", "#6a1b9a", "#00838f", "#5d4037", "#455a64"];

/// A logarithmic scale of whole powers of ten.
struct Scale {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min).max(0.01).log10().floor();
        let most = values.fold(0.01, f64::max).log10().ceil();
        Self { least, most: most.max(least + 1.0), from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.max(0.01).log10() - self.least) / (self.most - self.least);
        self.from + share * (self.to - self.from)
    }

    /// Returns the powers of ten.
    fn marks(&self) -> Vec<f64> {
        let steps = std::iter::successors(Some(self.least), |step| Some(step + 1.0));
        steps.take_while(|step| *step <= self.most).map(|step| 10_f64.powf(step)).collect()
    }
}

fn label(mark: f64) -> String {
    if mark < 1.0 { mark.to_string() } else { grouped(format!("{mark:.0}")) }
}

pub(super) fn svg(curves: &[Curve]) -> String {
    let panels: Vec<_> = curves
        .chunk_by(|one, other| (&one.database, &one.cache) == (&other.database, &other.cache))
        .collect();
    let mut shapes = String::new();
    for (number, panel) in panels.iter().enumerate() {
        let (x, y) = ((number % 2) as f64 * WIDTH, (number / 2) as f64 * HEIGHT);
        shapes += &format!("<g transform=\"translate({x} {y})\">\n{}</g>\n", drawn(panel));
    }
    let height = panels.len().div_ceil(2) as f64 * HEIGHT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {height}\" width=\"{0}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#222\">\n<rect width=\"{0}\" height=\"{height}\" fill=\"white\"/>\n{shapes}</svg>\n",
        2.0 * WIDTH
    )
}

/// Draws the curves of one database behind one cache.
fn drawn(curves: &[Curve]) -> String {
    let Some(first) = curves.first() else { return String::new() };
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let x = Scale::of(points().map(|(sessions, _)| *sessions as f64), LEFT, WIDTH - RIGHT);
    let y = Scale::of(points().flat_map(|(_, point)| [point.p50, point.p99]), HEIGHT - BOTTOM, TOP);
    let mut shapes = format!(
        "<text x=\"{LEFT}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}, {}: µs for each operation</text>\n",
        first.database, first.cache
    );
    for mark in y.marks() {
        shapes += &format!(
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/><text x=\"{2:.1}\" y=\"{3:.1}\" \
             text-anchor=\"end\">{4}</text>\n",
            WIDTH - RIGHT,
            y.place(mark),
            LEFT - 6.0,
            y.place(mark) + 4.0,
            label(mark)
        );
    }
    for mark in x.marks() {
        shapes += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            x.place(mark),
            HEIGHT - BOTTOM + 18.0,
            label(mark)
        );
    }
    shapes += &format!(
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"11\">sessions in the table; solid: median, dashed: p99</text>\n",
        HEIGHT - 12.0
    );
    for (curve, color) in curves.iter().zip(COLORS.iter().cycle()) {
        shapes += &lines(curve, color, &x, &y);
    }
    shapes + &names(curves, &y)
}

/// Draws the median and the 99th percentile of an operation.
fn lines(curve: &Curve, color: &str, x: &Scale, y: &Scale) -> String {
    let mut shapes = String::new();
    for (dashes, is_median) in [("", true), (" stroke-dasharray=\"4 4\" stroke-opacity=\"0.5\"", false)] {
        let places = curve.points.iter().map(|(sessions, point)| {
            let time = if is_median { point.p50 } else { point.p99 };
            (x.place(*sessions as f64), y.place(time))
        });
        let places: Vec<_> = places.collect();
        let line: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        shapes += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{dashes}/>\n",
            line.join(" ")
        );
        for (x, y) in places.iter().filter(|_| is_median) {
            shapes += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>\n");
        }
    }
    shapes
}

/// Writes the names of the operations beside the ends of their medians, one below the other where these are close.
fn names(curves: &[Curve], y: &Scale) -> String {
    let last = |curve: &Curve| curve.points.last_key_value().map_or(0.0, |(_, point)| y.place(point.p50));
    let mut names: Vec<_> =
        curves.iter().zip(COLORS.iter().cycle()).map(|(curve, color)| (last(curve), curve, color)).collect();
    names.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut shapes, mut lowest) = (String::new(), 0.0_f64);
    for (place, curve, color) in names {
        lowest = place.max(lowest + 13.0);
        shapes += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{}</text>\n",
            WIDTH - RIGHT + 8.0,
            lowest + 4.0,
            curve.operation
        );
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::super::report::{curves, tests::figures};
    use super::*;

    #[test]
    fn panel_has_a_line_of_medians_and_one_of_p99_for_each_operation() {
        let picture = svg(&curves(&[figures(100_000, 10.0, 0.0), figures(1_000_000, 100.0, 0.0)]));
        assert_eq!(picture.matches("<polyline").count(), 2);
        assert_eq!(picture.matches("stroke-dasharray").count(), 1);
        assert_eq!(picture.matches("<circle").count(), 2);
        assert!(picture.contains("sqlite, moka") && picture.contains(">cold load</text>"), "{picture}");
        // Both ends of the scale of sessions, and a mark between the times.
        for mark in [">100,000<", ">1,000,000<", ">100<"] {
            assert!(picture.contains(mark), "{mark}");
        }
    }

    #[test]
    fn panels_of_no_figures_are_an_empty_picture() {
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
