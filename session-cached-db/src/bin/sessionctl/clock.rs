//! The difference between this machine's clock and a server's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use session_cached_db::Timestamp;
use session_cached_db::db_backends::Inspect;

use crate::exit::Failure;
use crate::output::span;

/// The difference from which on a clock is a danger: fences of live writers are given up, and sessions are
/// deleted that have not expired.
pub(crate) const TOO_FAR: Duration = Duration::from_secs(30);

/// Returns the time of this machine's clock.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// The time between a server's clock and this machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skew {
    pub(crate) by: Duration,
    pub(crate) is_ahead: bool,
}

impl Skew {
    /// Returns the skew of `clock`, which was read between two instants of this machine's clock.
    pub(crate) fn new(clock: Timestamp, earliest: Timestamp, latest: Timestamp) -> Self {
        // Some clocks have whole seconds only.
        let latest_reading = clock + Duration::from_secs(1);
        if clock > latest {
            Self { by: clock.since(latest), is_ahead: true }
        } else {
            Self { by: earliest.since(latest_reading), is_ahead: false }
        }
    }

    /// Returns the skew as text, such as `5 s ahead of this machine's`.
    pub(crate) fn text(self) -> String {
        format!("{} {} this machine's", span(self.by), if self.is_ahead { "ahead of" } else { "behind" })
    }
}

/// Refuses to write when the clocks differ too much: this machine's clock decides which sessions have
/// expired.
pub(crate) async fn check(database: &Arc<dyn Inspect>) -> Result<(), Failure> {
    let asked_at = now();
    match database.inspect().await?.clock {
        Some(clock) => judge(Skew::new(clock, asked_at, now())),
        None => Ok(()),
    }
}

fn judge(skew: Skew) -> Result<(), Failure> {
    if skew.by < TOO_FAR {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "the database's clock is {}, so nothing was changed: by a wrong clock, sessions that have not expired would be \
         deleted, and caches would not be fenced in time; set the clock that is wrong",
        skew.text()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skew(clock: i64) -> Skew {
        let at = Timestamp::from_secs;
        Skew::new(at(clock), at(1_000), at(1_001))
    }

    #[test]
    fn clock_is_skewed_only_if_it_cannot_be_the_time_of_the_call() {
        assert_eq!([999, 1_000, 1_001].map(|clock| skew(clock).by), [Duration::ZERO; 3]);
        assert_eq!(skew(1_011).text(), "10 s ahead of this machine's");
        assert_eq!(skew(989).text(), "10 s behind this machine's");
    }

    #[test]
    fn writing_is_refused_when_the_clock_is_far_off() {
        for clock in [971, 1_000, 1_030] {
            assert!(judge(skew(clock)).is_ok(), "{clock}");
        }
        for clock in [0, 969, 1_031, 5_000] {
            assert!(matches!(judge(skew(clock)), Err(Failure::Usage(_))), "{clock}");
        }
    }
}
