//! Bounds on the lines of log events that clients can cause.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use session_core::Timestamp;

/// The largest number of lines of one event in a [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// The bounds of a store's events, by their names: ten lines in ten seconds for each, so that a frequent event hides no other.
#[derive(Debug, Default)]
pub(crate) struct LogLimits(Mutex<BTreeMap<&'static str, Window>>);

#[derive(Debug, Default)]
struct Window {
    began: Option<Timestamp>,
    lines: u32,
    /// The number of events since the last line that were not logged.
    suppressed: u64,
}

impl LogLimits {
    /// Notes an event of this name. Returns the number of such events that were left out since the last line, or `None` if this
    /// one is to be left out as well.
    pub(crate) fn admit(&self, event: &'static str, now: Timestamp) -> Option<u64> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(event).or_default();
        // A clock that was set back begins a new window, too.
        if window.began.is_none_or(|began| now < began || now.since(began) >= WINDOW) {
            window.began = Some(now);
            window.lines = 0;
        }
        if window.lines == LINES {
            window.suppressed = window.suppressed.saturating_add(1);
            return None;
        }
        window.lines = window.lines.saturating_add(1);
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_are_admitted_in_ten_seconds_and_the_rest_is_counted() {
        let limits = LogLimits::default();
        let admit = |seconds| limits.admit("event", Timestamp::from_secs(seconds));
        let admitted: Vec<_> = (0..100).filter_map(|_| admit(0)).collect();
        assert_eq!(admitted, [0; 10]);
        assert_eq!(admit(9), None);
        assert_eq!(
            limits.admit("other", Timestamp::from_secs(9)),
            Some(0),
            "another event has a bound of its own"
        );
        assert_eq!(admit(10), Some(91));
        assert_eq!(admit(10), Some(0));
        assert_eq!(admit(5), Some(0), "the clock was set back");
    }
}
