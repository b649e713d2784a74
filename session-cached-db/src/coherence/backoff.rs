use std::time::Duration;

use session_core::{Cache, Timestamp};

use super::CoherentCache;

/// The number of exchanges that are tried at once after another process got ahead. Later ones follow after pauses.
pub(super) const HASTY_EXCHANGES: u32 = 4;

/// The longest pause before an exchange is tried again.
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

impl<C: Cache> CoherentCache<C> {
    /// Waits until the attempt with this number, counted from zero, may be made: longer the more often another process got
    /// ahead, and by chance, so that the processes do not meet again. Returns `false` if there is no time left for it.
    pub(super) async fn may_try(&self, attempt: u32, until: Timestamp) -> bool {
        if attempt < HASTY_EXCHANGES {
            return true;
        }
        let longest = Duration::from_millis(1 << (attempt - HASTY_EXCHANGES).min(6)).min(LONGEST_PAUSE);
        let eighths = u32::try_from(self.runtime.random_u64().get() % 8 + 1).unwrap_or(8);
        self.runtime.sleep(longest / 8 * eighths).await;
        self.runtime.now() < until
    }

    /// Waits as [`may_try`](Self::may_try) does, but lets every second exchange follow at once. A lost exchange returns
    /// what is there now; after a pause that is old, and where other processes write all the time the next exchange would
    /// be lost for certain.
    pub(super) async fn may_exchange(&self, attempt: u32, until: Timestamp) -> bool {
        let knows_what_is_there = attempt > HASTY_EXCHANGES && attempt % 2 == 1;
        knows_what_is_there || self.may_try(attempt, until).await
    }
}
