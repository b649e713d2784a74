//! Bounds on the lines of log events that clients can cause.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use session_core::Timestamp;

/// The largest number of lines of one event in a [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// The bounds of a store's events, one for each, so that a frequent event hides no other.
#[derive(Debug, Default)]
pub(crate) struct LogLimits {
    pub(crate) stored_key_presented: LogLimit,
    pub(crate) payload_unreadable: LogLimit,
    pub(crate) cached_payload_unreadable: LogLimit,
    pub(crate) row_unreadable: LogLimit,
    pub(crate) rotation_followed: LogLimit,
    pub(crate) rotation_not_noted: LogLimit,
    #[cfg(feature = "tower")]
    pub(crate) key_rejected: LogLimit,
    #[cfg(feature = "tower")]
    pub(crate) request_failed: LogLimit,
    #[cfg(feature = "tower")]
    pub(crate) touch_failed: LogLimit,
    #[cfg(feature = "tower")]
    pub(crate) task_keeps_session: LogLimit,
}

/// A bound on the lines of one event: ten in ten seconds.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    began: Option<Timestamp>,
    lines: u32,
    /// The number of events since the last line that were not logged.
    suppressed: u64,
}

impl LogLimit {
    /// Notes an event. Returns the number of events that were left out since the last line, or `None` if this one is to be
    /// left out as well.
    pub(crate) fn admit(&self, now: Timestamp) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let limit = LogLimit::default();
        let at = Timestamp::from_secs;
        let admitted: Vec<_> = (0..100).filter_map(|_| limit.admit(at(0))).collect();
        assert_eq!(admitted, [0; 10]);
        assert_eq!(limit.admit(at(9)), None);
        assert_eq!(limit.admit(at(10)), Some(91));
        assert_eq!(limit.admit(at(10)), Some(0));
        assert_eq!(limit.admit(at(5)), Some(0), "the clock was set back");
    }
}
