//! Instants as text, in the form of Python's `datetime` and of Django.

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

use crate::Timestamp;

/// The first and the last instant that are written: the range that MySQL's and Python's dates have in common.
const FIRST: Timestamp = Timestamp::from_micros(-30_610_224_000_000_000);
const LAST: Timestamp = Timestamp::from_micros(253_402_300_799_999_999);

/// Returns `instant` in UTC, as `2026-11-23 10:10:47.459413`. There are always six digits behind the point,
/// so that the later one of two such texts is the greater one.
///
/// An instant before the year 1000 or after the year 9999 becomes the nearest one within.
#[must_use]
pub fn format(instant: Timestamp) -> String {
    let nanos = i128::from(instant.clamp(FIRST, LAST).as_micros()) * 1_000;
    // This does not fail: the instant is clamped to the years that can be written.
    let utc = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (utc.date(), utc.time());
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.microsecond()
    )
}

/// Returns `instant` as Python's `isoformat()` writes it: `2026-11-23T10:10:47.459413+00:00`, without the
/// digits behind the point if all of them are zero.
#[must_use]
pub fn isoformat(instant: Timestamp) -> String {
    let text = format(instant).replace(' ', "T");
    format!("{}+00:00", text.strip_suffix(".000000").unwrap_or(&text))
}

/// Reads the texts that [`format()`], [`isoformat`] and Django write: a date and a time with a space or a `T`
/// between them, up to six digits behind the point, and an optional offset. Without an offset, the text is in
/// UTC. Returns `None` for any other text.
#[must_use]
pub fn parse(text: &str) -> Option<Timestamp> {
    let (date, rest) = text.split_once([' ', 'T'])?;
    let (time, offset) = match rest.find(['Z', '+', '-']) {
        Some(position) => rest.split_at_checked(position)?,
        None => (rest, "Z"),
    };
    let instant = PrimitiveDateTime::new(parse_date(date)?, parse_time(time)?);
    let instant = instant.assume_offset(parse_offset(offset)?);
    i64::try_from(instant.unix_timestamp_nanos() / 1_000).ok().map(Timestamp::from_micros)
}

fn parse_date(text: &str) -> Option<Date> {
    let mut parts = text.split('-');
    let (year, month, day) =
        (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(year.try_into().ok()?, month, day.try_into().ok()?).ok()?;
    parts.next().is_none().then_some(date)
}

fn parse_time(text: &str) -> Option<Time> {
    let (time, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = time.split(':').map(|part| u8::try_from(digits(part, 2)?).ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || fraction.is_empty() || fraction.len() > 6 {
        return None;
    }
    let micros = digits(&format!("{fraction:0<6}"), 6)?;
    Time::from_hms_micro(hour, minute, second, micros).ok()
}

fn parse_offset(text: &str) -> Option<UtcOffset> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("Z", "") => return Some(UtcOffset::UTC),
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let mut parts = rest.split(':').map(|part| i8::try_from(digits(part, 2)?).ok());
    let (hours, minutes) = (parts.next()??, parts.next()??);
    let seconds = match parts.next() {
        Some(seconds) => seconds?,
        None => 0,
    };
    if parts.next().is_some() {
        return None;
    }
    UtcOffset::from_hms(sign * hours, sign * minutes, sign * seconds).ok()
}

/// Reads a number of exactly `count` digits.
fn digits(text: &str, count: usize) -> Option<u32> {
    let is_number = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INSTANT: Timestamp = Timestamp::from_micros(1_795_428_647_459_413);

    #[test]
    fn instants_are_written_as_python_writes_them() {
        let whole = Timestamp::from_secs(1_795_428_647);
        assert_eq!(format(INSTANT), "2026-11-23 10:10:47.459413");
        assert_eq!(format(whole), "2026-11-23 10:10:47.000000");
        assert_eq!(isoformat(INSTANT), "2026-11-23T10:10:47.459413+00:00");
        assert_eq!(isoformat(whole), "2026-11-23T10:10:47+00:00");
    }

    #[test]
    fn instant_beyond_pythons_range_becomes_the_nearest_one_in_it() {
        assert_eq!(format(Timestamp::MAX), "9999-12-31 23:59:59.999999");
        assert_eq!(format(Timestamp::from_micros(i64::MIN)), "1000-01-01 00:00:00.000000");
    }

    #[test]
    fn texts_that_django_writes_are_parsed() {
        for text in [
            "2026-11-23 10:10:47.459413",
            "2026-11-23T10:10:47.459413",
            "2026-11-23T10:10:47.459413Z",
            "2026-11-23T10:10:47.459413+00:00",
            "2026-11-23T15:40:47.459413+05:30",
            "2026-11-23T01:10:47.459413-09:00:00",
        ] {
            assert_eq!(parse(text), Some(INSTANT), "{text}");
        }
        assert_eq!(parse("2026-11-23 10:10:47"), Some(Timestamp::from_secs(1_795_428_647)));
        assert_eq!(parse("2026-11-23 10:10:47.5"), Some(Timestamp::from_micros(1_795_428_647_500_000)));
    }

    #[test]
    fn text_that_is_no_instant_is_not_parsed() {
        for text in [
            "",
            "2026-11-23",
            "2026-02-30 10:10:47",
            "2026-13-01 10:10:47",
            "2026-11-23 24:10:47",
            "2026-11-23 10:10",
            "2026-11-23 10:10:47.",
            "2026-11-23 10:10:47.1234567",
            "2026-11-23 10:10:47+25",
            "2026-11-23 10:10:47+é0:00",
            "02026-11-23 10:10:47",
            "2026-11-23 1é:10:47",
            "now",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_instant_in_range_is_parsed_to_itself(micros in FIRST.as_micros()..=LAST.as_micros()) {
            let instant = Timestamp::from_micros(micros);
            prop_assert_eq!(parse(&format(instant)), Some(instant));
            prop_assert_eq!(parse(&isoformat(instant)), Some(instant));
        }

        #[test]
        fn later_instant_is_the_greater_text(one in FIRST.as_micros()..=LAST.as_micros(), other in FIRST.as_micros()..=LAST.as_micros()) {
            let text = |micros| format(Timestamp::from_micros(micros));
            prop_assert_eq!(text(one).cmp(&text(other)), one.cmp(&other));
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in "[0-9TZ:. +é-]*") {
            let _ = parse(&text);
        }
    }
}
