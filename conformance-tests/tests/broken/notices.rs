//! Sources of notices that are wrong in one way each, and the case that must notice it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conformance_tests::reference::{MemoryCache, MemoryChannel};
use session_core::{
    Cache, CacheError, CacheProperties, Entry, Exchange, Expected, NoticeChannel, NoticeListener,
    NoticeSource, StoredKey,
};

/// The fault of a broken source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No fault. The suite must pass, which shows that the other sources fail because of their faults.
    Nothing,
    ReportsNothing,
    ReportsReplacementsOnly,
    WatchesEntriesOnly,
    KeepsExpiredEntriesSecret,
    ReportsEachKeyOnce,
    ReportsAfterTheAnswerToAPing,
    ReportsAfterAnswers,
    ServesOneChannel,
    SurvivesCuts,
}

/// Each fault, and the case that must notice it.
pub(crate) const ALL: &[(Fault, &str)] = &[
    (Fault::ReportsNothing, "replaced_entry_is_reported_before_a_later_ping_ends"),
    (Fault::ReportsReplacementsOnly, "removed_entry_is_reported_before_a_later_ping_ends"),
    (Fault::WatchesEntriesOnly, "entry_placed_under_a_key_that_was_read_is_reported"),
    (Fault::KeepsExpiredEntriesSecret, "entry_whose_ttl_ends_is_reported"),
    (Fault::ReportsEachKeyOnce, "entry_that_is_read_again_is_watched_again"),
    (Fault::ReportsAfterTheAnswerToAPing, "confirmed_changes_of_many_keys_are_reported_before_a_ping_ends"),
    (Fault::ReportsAfterAnswers, "change_is_reported_before_a_read_shows_it"),
    (Fault::ServesOneChannel, "every_channel_reports_a_change"),
    (Fault::SurvivesCuts, "channel_that_was_cut_fails_every_call"),
];

#[derive(Clone, Debug)]
pub(crate) struct BrokenSource {
    pub(crate) cache: MemoryCache,
    fault: Fault,
    /// The channels that were opened.
    opened: Arc<Mutex<usize>>,
}

impl BrokenSource {
    pub(crate) fn with(fault: Fault) -> Self {
        Self { cache: MemoryCache::default(), fault, opened: Arc::default() }
    }
}

impl Cache for BrokenSource {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        self.cache.get(key).await
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        self.cache.compare_exchange(key, expected, new, ttl).await
    }

    fn properties(&self) -> CacheProperties {
        self.cache.properties()
    }
}

impl NoticeSource for BrokenSource {
    type Channel = BrokenChannel;

    async fn open_channel(&self, listener: Arc<dyn NoticeListener>) -> Result<BrokenChannel, CacheError> {
        let number = {
            let mut opened = self.opened.lock().unwrap();
            *opened += 1;
            *opened
        };
        let filter = Arc::new(Filter {
            cache: self.cache.clone(),
            fault: self.fault,
            number,
            listener,
            reported: Mutex::default(),
            late: Mutex::default(),
            vacant: Mutex::default(),
        });
        let channel = self.cache.open_channel(Arc::clone(&filter) as _).await?;
        Ok(BrokenChannel { channel, filter })
    }
}

/// Passes on the reports that the fault lets pass.
#[derive(Debug)]
struct Filter {
    cache: MemoryCache,
    fault: Fault,
    number: usize,
    listener: Arc<dyn NoticeListener>,
    reported: Mutex<HashSet<StoredKey>>,
    late: Mutex<Vec<StoredKey>>,
    /// The keys under which nothing was found.
    vacant: Mutex<HashSet<StoredKey>>,
}

impl Filter {
    fn catch_up(&self) {
        for key in self.late.lock().unwrap().drain(..) {
            self.listener.changed(&key);
        }
    }
}

impl NoticeListener for Filter {
    fn changed(&self, key: &StoredKey) {
        match self.fault {
            Fault::ReportsNothing => {}
            Fault::ReportsEachKeyOnce if !self.reported.lock().unwrap().insert(*key) => {}
            Fault::WatchesEntriesOnly if self.vacant.lock().unwrap().remove(key) => {}
            Fault::ServesOneChannel if self.number > 1 => {}
            Fault::ReportsReplacementsOnly | Fault::KeepsExpiredEntriesSecret => {
                self.late.lock().unwrap().push(*key);
            }
            Fault::ReportsAfterTheAnswerToAPing | Fault::ReportsAfterAnswers => {
                self.late.lock().unwrap().push(*key);
            }
            _ => self.listener.changed(key),
        }
    }

    fn all_changed(&self) {
        self.listener.all_changed();
    }
}

#[derive(Debug)]
pub(crate) struct BrokenChannel {
    channel: MemoryChannel,
    filter: Arc<Filter>,
}

impl NoticeChannel for BrokenChannel {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        match self.channel.get(key).await {
            Err(_) if self.filter.fault == Fault::SurvivesCuts => self.filter.cache.get(key).await,
            Ok(None) => {
                self.filter.vacant.lock().unwrap().insert(*key);
                Ok(None)
            }
            found => found,
        }
    }

    async fn ping(&self) -> Result<(), CacheError> {
        let filter = &self.filter;
        let answer = self.channel.ping().await;
        match filter.fault {
            // Left out: what is gone now.
            Fault::ReportsReplacementsOnly | Fault::KeepsExpiredEntriesSecret => {
                let late = std::mem::take(&mut *filter.late.lock().unwrap());
                for key in late {
                    if filter.cache.get(&key).await?.is_some() {
                        filter.listener.changed(&key);
                    }
                }
            }
            Fault::ReportsAfterAnswers => filter.catch_up(),
            Fault::ReportsAfterTheAnswerToAPing => {
                let filter = Arc::clone(filter);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    filter.catch_up();
                });
            }
            Fault::SurvivesCuts => return Ok(()),
            _ => {}
        }
        answer
    }
}
