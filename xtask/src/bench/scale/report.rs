//! The figures as tables in Markdown, with the growth of each operation.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde_json::Value;

/// The largest growth from the smallest to the largest table that is aimed at.
const MAX_GROWTH: f64 = 1.5;

/// The number of pages more for each operation from which the disk counts as the reason of a growth.
const DISK_PAGES: f64 = 0.5;

/// One operation of a database behind a cache, in tables of several sizes.
pub(super) struct Curve {
    pub(super) database: String,
    pub(super) cache: String,
    pub(super) operation: String,
    /// By the number of sessions.
    pub(super) points: BTreeMap<u64, Point>,
}

/// The figures of an operation in one table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// In microseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// The pages that the database looked at, where it counts them, and those that it did not have in its memory.
    pages: Option<f64>,
    pages_read: Option<f64>,
}

impl Curve {
    /// Returns the growth of the median from the smallest table to the largest, if there are two.
    fn growth(&self) -> Option<f64> {
        let (first, last) = (self.points.first_key_value()?, self.points.last_key_value()?);
        (first.0 != last.0).then(|| last.1.p50 / first.1.p50)
    }

    /// Returns the number of pages that an operation reads more in the largest table than in the smallest.
    fn more_pages(&self) -> f64 {
        let read =
            |point: Option<(&u64, &Point)>| point.and_then(|(_, point)| point.pages_read).unwrap_or_default();
        read(self.points.last_key_value()) - read(self.points.first_key_value())
    }

    fn verdict(&self) -> String {
        match self.growth() {
            None => String::new(),
            Some(growth) if growth <= MAX_GROWTH => format!("{growth:.2}"),
            Some(growth) if self.more_pages() >= DISK_PAGES => {
                format!("{growth:.2}, bound by disk: {:.1} pages more", self.more_pages())
            }
            Some(growth) => format!("{growth:.2} (missed)"),
        }
    }
}

/// Returns the curves in the figures, in the order in which they are measured.
pub(super) fn curves(figures: &[Value]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for figures in figures.iter().map(|figure| &figure["figures"]) {
        let (Some(database), Some(cache), Some(sessions), Some(operations)) = (
            figures["database"].as_str(),
            figures["cache"].as_str(),
            figures["sessions"].as_u64(),
            figures["operations"].as_object(),
        ) else {
            continue;
        };
        for (operation, figure) in operations {
            let (Some(p50), Some(p99)) = (figure["p50"].as_f64(), figure["p99"].as_f64()) else { continue };
            let point = Point {
                p50,
                p99,
                pages: figure["pages"].as_f64(),
                pages_read: figure["pages_read"].as_f64(),
            };
            let is_this = |curve: &&mut Curve| {
                (&*curve.database, &*curve.cache, &curve.operation) == (database, cache, operation)
            };
            match curves.iter_mut().find(is_this) {
                Some(curve) => drop(curve.points.insert(sessions, point)),
                None => curves.push(Curve {
                    database: database.to_owned(),
                    cache: cache.to_owned(),
                    operation: operation.clone(),
                    points: [(sessions, point)].into(),
                }),
            }
        }
    }
    curves.sort_by(|one, other| (&one.database, &one.cache).cmp(&(&other.database, &other.cache)));
    curves
}

/// Returns tables that can be pasted into a document.
pub(super) fn text(figures: &[Value], curves: &[Curve]) -> String {
    let mut text = String::from(
        "| database, cache | operation | sessions | p50, µs | p99, µs | pages, of which read | growth |\n|---|---|---|---|---|---|---|\n",
    );
    for curve in curves {
        for (sessions, point) in &curve.points {
            let is_last = curve.points.last_key_value().is_some_and(|(last, _)| last == sessions);
            let verdict = if is_last { curve.verdict() } else { String::new() };
            let pages = match (point.pages, point.pages_read) {
                (Some(pages), Some(read)) => format!("{pages:.1}, {read:.1}"),
                (None, Some(read)) => format!("?, {read:.1}"),
                _ => String::new(),
            };
            text += &format!(
                "| {}, {} | {} | {} | {:.0} | {:.0} | {pages} | {verdict} |\n",
                curve.database,
                curve.cache,
                curve.operation,
                grouped(*sessions),
                point.p50,
                point.p99
            );
        }
    }
    text += "\n| database, cache | sessions | cold loads in a second, 64 tasks | hits | saves |\n|---|---|---|---|---|\n";
    let all = || figures.iter().map(|figure| &figure["figures"]);
    for figures in all().filter(|figures| figures["per_second"].is_object()) {
        let of = |operation: &str| {
            figures["per_second"].get(operation).and_then(Value::as_f64).unwrap_or_default().round()
        };
        text += &format!(
            "| {}, {} | {} | {} | {} | {} |\n",
            figures["database"].as_str().unwrap_or_default(),
            figures["cache"].as_str().unwrap_or_default(),
            grouped(figures["sessions"].as_u64().unwrap_or_default()),
            grouped(of("cold load")),
            grouped(of("hit")),
            grouped(of("save"))
        );
    }
    text + &all().map(one_line).collect::<String>()
}

/// Returns the line of figures that are no curves: of logins and of memory, and the sizes of a table.
fn one_line(figures: &Value) -> String {
    let number_of = |value: &Value| value.as_f64().unwrap_or_default();
    let number = |name: &str| number_of(&figures[name]);
    let of = |name: &str| figures.get(name).map_or(0.0, |figure| number_of(&figure["p50"]));
    match (figures["database"].as_str(), figures["cache"].as_str()) {
        (Some(database), Some("moka")) => format!(
            "\n{database}, {} sessions: table {:.0} MB, indexes {:.0} MB\n",
            grouped(figures["sessions"].as_u64().unwrap_or_default()),
            number("table_bytes") / 1e6,
            number("index_bytes") / 1e6
        ),
        (Some(database), None) => format!(
            "\n{database}, login with a limit of 10: {:.0} µs with 5 sessions of the subject, {:.0} µs with 50,000 ({:.2} times)\n",
            of("5"),
            of("50000"),
            of("50000") / of("5")
        ),
        (None, Some(cache)) => format!(
            "\n{cache}: {:.0} bytes for a session with a payload of {:.0} bytes ({:.2} times), {:.0} MB for {} sessions\n",
            number("bytes_per_session"),
            number("payload_bytes"),
            number("ratio"),
            number("bytes") / 1e6,
            grouped(figures["sessions"].as_u64().unwrap_or_default())
        ),
        _ => String::new(),
    }
}

/// Returns the number with commas, unless it has decimals.
pub(super) fn grouped(number: impl Display) -> String {
    let digits = number.to_string();
    if digits.contains('.') {
        return digits;
    }
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(in super::super) fn figures(sessions: u64, p50: f64, pages_read: f64) -> Value {
        let operations =
            json!({ "cold load": { "p50": p50, "p99": 2.0 * p50, "pages": 4.0, "pages_read": pages_read } });
        json!({ "part": sessions, "figures": {
            "database": "sqlite", "cache": "moka", "sessions": sessions, "operations": operations,
            "per_second": { "cold load": 2_000.0, "hit": 30_000.0, "save": 1_000.0 },
        } })
    }

    fn verdict(p50: f64, pages_read: f64) -> String {
        curves(&[figures(100_000, 10.0, 0.0), figures(10_000_000, p50, pages_read)])[0].verdict()
    }

    #[test]
    fn growth_is_missed_unless_it_is_small_or_bound_by_disk() {
        assert_eq!(verdict(14.0, 9.0), "1.40");
        assert_eq!(verdict(20.0, 0.1), "2.00 (missed)");
        assert_eq!(verdict(20.0, 2.0), "2.00, bound by disk: 2.0 pages more");
    }

    #[test]
    fn table_has_a_row_for_each_size_and_the_growth_in_the_last() {
        let figures = [figures(10_000_000, 12.0, 1.0), figures(100_000, 10.0, 0.0)];
        let text = text(&figures, &curves(&figures));
        assert!(text.contains("| sqlite, moka | 100,000 | 2,000 | 30,000 | 1,000 |\n"), "{text}");
        assert!(text.contains("| sqlite, moka | cold load | 100,000 | 10 | 20 | 4.0, 0.0 |  |\n"), "{text}");
        assert!(
            text.contains("| sqlite, moka | cold load | 10,000,000 | 12 | 24 | 4.0, 1.0 | 1.20 |\n"),
            "{text}"
        );
    }
}
