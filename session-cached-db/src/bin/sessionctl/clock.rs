//! How far this machine's clock is from a server's.

use std::time::Duration;

use session_cached_db::Timestamp;

use crate::connect::{Database, now};
use crate::exit::Failure;
use crate::output::span;

/// With clocks this far apart, fences of writers that live are given up, and sessions are deleted that have not expired.
pub(crate) const TOO_FAR: Duration = Duration::from_secs(30);

/// The time between a server's clock and this machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skew {
    pub(crate) by: Duration,
    pub(crate) is_ahead: bool,
}

impl Skew {
    /// `clock` was read between the two instants of this machine's.
    pub(crate) fn new(clock: Timestamp, earliest: Timestamp, latest: Timestamp) -> Self {
        // Some clocks tell whole seconds.
        let latest_reading = clock + Duration::from_secs(1);
        if clock > latest {
            Self { by: clock.since(latest), is_ahead: true }
        } else {
            Self { by: earliest.since(latest_reading), is_ahead: false }
        }
    }

    /// `5 s ahead of this machine's`.
    pub(crate) fn text(self) -> String {
        format!("{} {} this machine's", span(self.by), if self.is_ahead { "ahead of" } else { "behind" })
    }
}

/// Refuses to write by a clock that is wrong: what has expired is for this machine's clock to say.
pub(crate) async fn check(database: &Database) -> Result<(), Failure> {
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
        "the database's clock is {}, so nothing was changed: by a wrong clock, sessions would be deleted that have not \
         expired, and caches not be told in time; set the clock right that is wrong",
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
    fn only_what_cannot_be_the_time_of_asking_is_a_skew() {
        assert_eq!([999, 1_000, 1_001].map(|clock| skew(clock).by), [Duration::ZERO; 3]);
        assert_eq!(skew(1_011).text(), "10 s ahead of this machine's");
        assert_eq!(skew(989).text(), "10 s behind this machine's");
    }

    #[test]
    fn nothing_is_written_by_a_clock_that_is_far_off() {
        for clock in [971, 1_000, 1_030] {
            assert!(judge(skew(clock)).is_ok(), "{clock}");
        }
        for clock in [0, 969, 1_031, 5_000] {
            assert!(matches!(judge(skew(clock)), Err(Failure::Usage(_))), "{clock}");
        }
    }
}
