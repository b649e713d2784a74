//! The pair of a soak, its length and its load, and what is broken in it.

use std::path::PathBuf;
use std::time::Duration;

use super::Older;
use crate::Failure;
use crate::history::{Lie, Nanos, SECOND};
use crate::table;
use crate::worker::PAUSE;

/// The time for which a session is used, unless a test says otherwise.
const GENERATION: Nanos = 5 * SECOND;

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) cache: String,
    pub(crate) database: String,
    pub(crate) lasts: Duration,
    pub(crate) seed: u64,
    pub(crate) processes: u32,
    pub(crate) tasks: u32,
    pub(crate) slots: u32,
    /// The cache lies, to show that this is noticed.
    pub(crate) lie: Option<Lie>,
    /// Nothing but the channels of near caches is broken.
    pub(crate) breaks_channels_only: bool,
    /// The time for which a session is used.
    pub(crate) generation: Nanos,
    /// The proxies break nothing, to show that this is noticed.
    pub(crate) idle_proxies: bool,
    /// Operations never begin, to show that this is noticed.
    pub(crate) pause: Nanos,
    /// The program to start as a process.
    pub(crate) program: PathBuf,
    /// The programs of an older revision, which share the servers with the present one.
    pub(crate) beside: Option<Older>,
}

impl Settings {
    pub(crate) fn new(pair: &str, lasts: Duration, seed: u64) -> Result<Self, Failure> {
        let (cache, database) =
            pair.rsplit_once('+').ok_or_else(|| format!("a pair looks like redis+postgres, not {pair:?}"))?;
        let shared = cache.strip_prefix(table::NEAR);
        let reports_changes = |name: &str| name.starts_with("redis") || name.starts_with("valkey");
        let is_shared =
            table::CACHES.contains(&shared.unwrap_or(cache)) && shared.is_none_or(reports_changes);
        let is_known = is_shared || table::NEAR_PAIRS.contains(&(cache, database));
        if !is_known || !table::DATABASES.contains(&database) {
            let (caches, databases) = (table::CACHES.join(", "), table::DATABASES.join(", "));
            return Err(format!(
                "{pair:?} is no pair; caches: {caches}, near+ before those of Redis and Valkey, and {} with postgres; \
                 databases: {databases}",
                table::NOTIFIED
            )
            .into());
        }
        Ok(Self {
            cache: cache.into(),
            database: database.into(),
            lasts,
            seed,
            processes: 4,
            tasks: 6,
            slots: 8,
            lie: None,
            breaks_channels_only: false,
            generation: GENERATION,
            idle_proxies: false,
            pause: PAUSE,
            program: std::env::current_exe()?,
            beside: Older::from_env()?,
        })
    }

    pub(crate) fn is_near(&self) -> bool {
        self.cache.starts_with(table::NEAR) || self.cache == table::NOTIFIED
    }
}
