//! The fixed values of every run: times, keys, and the subject.

use std::time::Duration;

use session_core::{StoredKey, Timestamp};

/// The instant at which every run begins.
pub(super) const START: Timestamp = Timestamp::from_secs(1_000_000);

/// The sessions of a run have one of these keys. They are session keys and stored keys alike. The second one is as long as one
/// that was generated, so a note of a rotation can have it.
pub(super) const KEYS: [&str; 2] = ["session-a", "session-b-----------------------"];

pub(super) fn stored_keys() -> [StoredKey; 2] {
    KEYS.map(|key| StoredKey::parse(key).expect("a valid key"))
}

/// A time longer than any run.
pub(super) const FAR: Duration = Duration::from_secs(1_000_000);

/// A time longer than any run, too. Before a run, A was not used for longer than that, so a use of it is due.
pub(super) const TOUCH_INTERVAL: Duration = Duration::from_secs(10_000);

/// The time for which requests with the key A can follow the session to B, where sessions get other keys: longer than the
/// operations of a run take.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// The subject of all sessions of a run.
pub(super) const SUBJECT: &str = "user";

/// Times that are short enough for a run to pass them, and that keep the distances on which the protocol
/// relies.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(10);

pub(super) const FENCE_TTL: Duration = Duration::from_secs(30);

pub(super) const CLOCK_SLACK: Duration = Duration::from_secs(2);

pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) const STATEMENT_BOUND: Duration = Duration::from_secs(10);

pub(super) const MAX_CACHE_AGE: Duration = Duration::from_secs(300);

pub(super) const CACHE_TIMEOUT: Duration = Duration::from_millis(100);

pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Chosen so that no pause between two probes of the cache is as long as another timer.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(1_200);

/// The freshness bound of near caches. Its parts are timers, which differ from all others.
pub(super) const NEAR_BOUND: Duration = Duration::from_millis(1_280);

/// The time between two pings of a near cache.
pub(super) const NEAR_PING: Duration = Duration::from_millis(320);

/// The time for which a near cache waits for its channel before it asks the shared cache.
pub(super) const NEAR_PATIENCE: Duration = Duration::from_millis(640);

/// The wait of a final operation with a near cache: the bound, a 128th of it, and a millisecond.
pub(super) const NEAR_WAIT: Duration = Duration::from_millis(1_291);

/// The time that passes in a run with near caches without being a fault: longer than a final operation waits, and short
/// enough that no fence has to be renewed for three of them.
pub(super) const TICK: Duration = Duration::from_millis(1_300);

/// The time by which the second process's clock is ahead: less than the clock slack.
pub(super) const AHEAD: Duration = Duration::from_secs(1);

/// The time for which the cache keeps a value beyond its TTL, because the cache's clock cannot be trusted.
pub(super) const VALUE_TTL_EXCESS: Duration = Duration::from_secs(60);
