//! Output: one JSON document, or text for people.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use serde::Serialize;
use session_cached_db::Timestamp;

use crate::exit::Failure;

/// Writes results to stdout. Everything else goes to stderr.
pub(crate) struct Output {
    is_json: bool,
    is_styled: bool,
}

impl Output {
    pub(crate) fn new(is_json: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { is_json, is_styled: io::stdout().is_terminal() && !set("NO_COLOR") && !is_dumb }
    }

    /// Prints `document` as JSON, or as the text that `text` returns.
    pub(crate) fn show<T: Serialize>(
        &self,
        document: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let mut bytes = if self.is_json {
            serde_json::to_vec_pretty(document).map_err(io::Error::other)?
        } else {
            text(document).into_bytes()
        };
        if bytes.last() != Some(&b'\n') {
            bytes.push(b'\n');
        }
        self.raw(&bytes)
    }

    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    /// Returns a list of the stored keys of rows that cannot be read, and how to end them. Returns an empty
    /// text if there are none.
    pub(crate) fn unreadable(&self, keys: &[String]) -> String {
        self.keys("Rows that cannot be read; `sessionctl revoke` ends them by their keys", keys)
    }

    /// Returns a list of the stored keys of sessions that could not be written. Returns an empty text if there are none.
    pub(crate) fn failed(&self, keys: &[String]) -> String {
        self.keys("Sessions that could not be written; the log says why", keys)
    }

    fn keys(&self, heading: &str, keys: &[String]) -> String {
        if keys.is_empty() {
            return String::new();
        }
        let heading = self.styled(Style::Red, heading);
        format!("\n{heading}\n{}\n", keys.join("\n"))
    }

    pub(crate) fn styled(&self, style: Style, text: &str) -> String {
        if self.is_styled { format!("\x1b[{}m{text}\x1b[0m", style as u8) } else { text.to_owned() }
    }
}

/// A style, with the number that terminals know it by.
#[derive(Clone, Copy)]
pub(crate) enum Style {
    Bold = 1,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
}

/// Prints a message to stderr.
pub(crate) fn complain(text: &str) {
    // An error of stderr cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "sessionctl: {text}");
}

/// Rows of cells, in columns as wide as their widest cell.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

pub(crate) enum Cell {
    Left(String),
    Right(String),
}

impl Table {
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Adds a row with a name and a value.
    pub(crate) fn fact(&mut self, name: &str, value: impl Into<String>) {
        self.row([left(name), left(value)]);
    }
}

pub(crate) fn left(text: impl Into<String>) -> Cell {
    Cell::Left(text.into())
}

pub(crate) fn right(text: impl Into<String>) -> Cell {
    Cell::Right(text.into())
}

impl Cell {
    fn text(&self) -> &str {
        match self {
            Self::Left(text) | Self::Right(text) => text,
        }
    }

    fn width(&self) -> usize {
        self.text().chars().count()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = Vec::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                match widths.get_mut(column) {
                    Some(width) => *width = cell.width().max(*width),
                    None => widths.push(cell.width()),
                }
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                match cell {
                    Cell::Left(text) => write!(line, "{text:<width$}  ")?,
                    Cell::Right(text) => write!(line, "{text:>width$}  ")?,
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Escapes the control characters of foreign text, so that it cannot control a terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().fold(String::new(), |mut harmless, character| {
        if character.is_control() {
            harmless.extend(character.escape_default());
        } else {
            harmless.push(character);
        }
        harmless
    })
}

/// Formats a number as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a number of sessions as `1 session` or `2,000 sessions`.
pub(crate) fn sessions(number: u64) -> String {
    format!("{} session{}", count(number), if number == 1 { "" } else { "s" })
}

/// Formats a number of bytes as `1.5 KiB`.
pub(crate) fn bytes(number: u64) -> String {
    let (mut whole, mut rest, mut units) = (number, 0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].iter());
    let mut unit = None;
    while whole >= 1024
        && let Some(larger) = units.next()
    {
        (whole, rest, unit) = (whole / 1024, whole % 1024, Some(larger));
    }
    unit.map_or_else(|| format!("{whole} B"), |unit| format!("{whole}.{} {unit}", rest * 10 / 1024))
}

/// Formats an instant as `2026-11-23 19:20:21 UTC`.
pub(crate) fn instant(instant: Timestamp) -> String {
    date_and_time(instant).map_or_else(|| "never".to_owned(), |(date, time)| format!("{date} {time} UTC"))
}

/// Formats an instant as `2026-11-23T19:20:21Z`, for machines. Returns `None` if it means never.
pub(crate) fn rfc3339(instant: Timestamp) -> Option<String> {
    date_and_time(instant).map(|(date, time)| format!("{date}T{time}Z"))
}

/// Returns the date and the time of an instant, or `None` if it is so far away that it means never.
fn date_and_time(instant: Timestamp) -> Option<(String, String)> {
    let at = time::OffsetDateTime::from_unix_timestamp(instant.as_micros().div_euclid(1_000_000)).ok()?;
    let date = format!("{:04}-{:02}-{:02}", at.year(), u8::from(at.month()), at.day());
    Some((date, format!("{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second())))
}

/// Formats a duration as `13 d 4 h`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds == 0 => format!("{} ms", span.as_millis()),
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{} d {hours} h", count(days)),
    }
}

/// Formats an instant as `2026-11-23 19:20:21 UTC (3 min ago)`.
pub(crate) fn past(then: Timestamp, now: Timestamp) -> String {
    if then > now {
        return format!("{} (in {})", instant(then), span(then.since(now)));
    }
    format!("{} ({} ago)", instant(then), span(now.since(then)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(
            [0, 12, 999, 1_000, 1_234_567].map(count),
            ["0", "12", "999", "1,000", "1,234,567"].map(str::to_owned)
        );
        assert_eq!(
            [0, 1023, 1024, 1536, 5 << 30].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"].map(str::to_owned)
        );
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!([0, 1, 2_000].map(sessions).join(", "), "0 sessions, 1 session, 2,000 sessions");
    }

    #[test]
    fn instants_and_spans_are_easy_to_read() {
        assert_eq!(instant(Timestamp::from_secs(1_800_000_000)), "2027-01-15 08:00:00 UTC");
        assert_eq!(instant(Timestamp::from_micros(-1)), "1969-12-31 23:59:59 UTC");
        assert_eq!(instant(Timestamp::MAX), "never");
        let spans = [0, 59, 60, 3_700, 90_000, 86_400 * 2_000].map(|s| span(Duration::from_secs(s)));
        assert_eq!(spans.join(", "), "0 ms, 59 s, 1 min, 1 h 1 min, 1 d 1 h, 2,000 d 0 h");
    }

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::default();
        table.row([left("name"), right("number")]);
        table.row([left("ä"), right("1")]);
        table.row([left("longer"), right("1,000,000")]);
        assert_eq!(table.to_string(), "name       number\nä               1\nlonger  1,000,000\n");
    }

    #[test]
    fn control_characters_of_foreign_text_are_escaped() {
        assert_eq!(harmless("ä\x1b[2J\u{9b}31m\n"), "ä\\u{1b}[2J\\u{9b}31m\\n");
    }
}
