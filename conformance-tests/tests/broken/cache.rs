//! Caches that are wrong, each in one way, and the case that is to notice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, Stamp, State, StoredKey,
};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    IgnoresTtl,
    EndsEarly,
    KeepsTheOldTtl,
    StoresAtTtlZero,
    KeepsWhatIsReplacedAtTtlZero,
    TakesLongTtlsForDates,
    AlwaysStores,
    NeverExpectsVacancy,
    IsNotAtomic,
    AcquireOverwrites,
    AcquireForgets,
    AcquireTouches,
    FoldsCase,
    CutsKeys,
    AnswersFromAStaleCopy,
    LosesWithoutTelling,
    KeepsTheOldStamp,
    TellsTheWrongStamp,
    RemovesNothing,
    RemovesOnLoss,
    DropsTheSubject,
    CutsPayloads,
    CutsInstants,
    CleansFences,
    HasAMapPerHandle,
}

/// Each fault, and the case that is to notice it.
pub(crate) const ALL: &[(Fault, &str)] = &[
    (Fault::IgnoresTtl, "an_entry_is_gone_after_its_ttl"),
    (Fault::EndsEarly, "an_entry_is_there_until_its_ttl_has_passed"),
    (Fault::KeepsTheOldTtl, "a_replaced_entry_has_the_ttl_of_its_replacement"),
    (Fault::StoresAtTtlZero, "a_ttl_of_zero_stores_nothing"),
    (Fault::KeepsWhatIsReplacedAtTtlZero, "a_ttl_of_zero_removes_what_was_expected"),
    (Fault::TakesLongTtlsForDates, "a_ttl_of_two_months_is_kept"),
    (Fault::AlwaysStores, "a_lost_exchange_changes_nothing"),
    (Fault::NeverExpectsVacancy, "of_exchanges_that_expect_nothing_one_is_stored"),
    (Fault::IsNotAtomic, "of_many_exchanges_none_is_lost"),
    (Fault::AcquireOverwrites, "an_acquisition_finds_every_state_and_changes_nothing"),
    (Fault::AcquireForgets, "a_lease_is_placed_on_a_vacant_key"),
    (Fault::AcquireTouches, "an_acquisition_finds_every_state_and_changes_nothing"),
    (Fault::FoldsCase, "keys_that_differ_in_case_are_different"),
    (Fault::CutsKeys, "the_longest_and_the_strangest_keys_are_kept_apart"),
    (Fault::AnswersFromAStaleCopy, "a_removed_entry_does_not_come_back"),
    (Fault::LosesWithoutTelling, "a_lost_exchange_tells_what_was_there"),
    (Fault::KeepsTheOldStamp, "the_new_stamp_is_the_one_to_expect"),
    (Fault::TellsTheWrongStamp, "what_was_stored_is_found_with_its_stamp"),
    (Fault::RemovesNothing, "an_exchange_for_nothing_removes_what_was_expected"),
    (Fault::RemovesOnLoss, "a_lost_exchange_changes_nothing"),
    (Fault::DropsTheSubject, "every_state_comes_back_as_it_was"),
    (Fault::CutsPayloads, "a_large_value_comes_back_whole"),
    (Fault::CutsInstants, "every_state_comes_back_as_it_was"),
    (Fault::CleansFences, "every_state_comes_back_as_it_was"),
    (Fault::HasAMapPerHandle, "another_handle_finds_it_as_well"),
];

/// A map under a lock, but for its fault.
#[derive(Clone, Debug)]
pub(crate) struct BrokenCache {
    fault: Fault,
    entries: Arc<Mutex<HashMap<String, (Entry, Instant)>>>,
    /// What this handle has seen last.
    copies: Arc<Mutex<HashMap<String, Entry>>>,
}

impl BrokenCache {
    pub(crate) fn with(fault: Fault) -> Self {
        Self { fault, entries: Arc::default(), copies: Arc::default() }
    }

    /// Another handle to the same cache.
    pub(crate) fn another(&self) -> Self {
        let mut other = self.clone();
        other.copies = Arc::default();
        if self.fault == Fault::HasAMapPerHandle {
            other.entries = Arc::default();
        }
        other
    }

    fn place(&self, key: &StoredKey) -> String {
        match self.fault {
            Fault::FoldsCase => key.as_str().to_lowercase(),
            Fault::CutsKeys => key.as_str().chars().take(63).collect(),
            _ => key.as_str().to_owned(),
        }
    }

    fn living(&self, key: &StoredKey) -> Option<Entry> {
        let entries = self.entries.lock().unwrap();
        let (entry, until) = entries.get(&self.place(key))?;
        (Instant::now() < *until || self.fault == Fault::IgnoresTtl).then(|| entry.clone())
    }

    fn store(&self, key: &StoredKey, new: Option<Entry>, ttl: Duration) {
        let place = self.place(key);
        let mut entries = self.entries.lock().unwrap();
        if new.is_some() && ttl.is_zero() && self.fault == Fault::KeepsWhatIsReplacedAtTtlZero {
            return;
        }
        if new.is_none() && self.fault == Fault::RemovesNothing {
            return;
        }
        let Some(new) = new.filter(|_| !ttl.is_zero() || self.fault == Fault::StoresAtTtlZero) else {
            entries.remove(&place);
            return;
        };
        let mut ttl = match self.fault {
            Fault::EndsEarly => Duration::from_secs(ttl.as_secs()),
            Fault::StoresAtTtlZero => ttl.max(Duration::from_secs(1)),
            Fault::TakesLongTtlsForDates if ttl > Duration::from_secs(30 * 86_400) => Duration::ZERO,
            _ => ttl,
        };
        let old = entries.get(&place);
        if let (Fault::KeepsTheOldTtl, Some((_, until))) = (self.fault, old) {
            ttl = until.saturating_duration_since(Instant::now());
        }
        let stamp = match (self.fault, old) {
            (Fault::KeepsTheOldStamp, Some((old, _))) => old.stamp,
            _ => new.stamp,
        };
        entries.insert(place, (Entry { stamp, state: self.damaged(new.state) }, Instant::now() + ttl));
    }

    fn damaged(&self, state: State) -> State {
        match (self.fault, state) {
            (Fault::CleansFences, State::Fence(mut fence)) => {
                fence.dirty = false;
                State::Fence(fence)
            }
            (fault, State::Value(mut value)) => {
                let record = (*value.record).clone();
                let rebuilt = |payload| {
                    session_core::Record::new(payload, record.created_at(), record.expires_at())
                        .with_version(record.version())
                        .with_last_seen_at(record.last_seen_at())
                        .with_subject(record.subject().cloned())
                };
                value.record = Arc::new(match fault {
                    Fault::DropsTheSubject => record.with_subject(None),
                    Fault::CutsPayloads => {
                        rebuilt(record.payload().slice(..record.payload().len().min(65_535)))
                    }
                    Fault::CutsInstants => {
                        let seconds = record.last_seen_at().as_micros() / 1_000_000;
                        record.with_last_seen_at(session_core::Timestamp::from_secs(seconds))
                    }
                    _ => record,
                });
                State::Value(value)
            }
            (_, state) => state,
        }
    }
}

impl Cache for BrokenCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        if self.fault == Fault::AnswersFromAStaleCopy {
            let mut copies = self.copies.lock().unwrap();
            if let Some(copy) = copies.get(key.as_str()) {
                return Ok(Some(copy.clone()));
            }
            let found = self.living(key);
            copies.extend(found.clone().map(|entry| (key.as_str().to_owned(), entry)));
            return Ok(found);
        }
        let mut found = self.living(key);
        if let (Fault::TellsTheWrongStamp, Some(entry)) = (self.fault, &mut found) {
            entry.stamp = Stamp(entry.stamp.0.checked_add(1).unwrap_or(entry.stamp.0));
        }
        Ok(found)
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        let found = self.living(key);
        let is_expected = match expected {
            Expected::Vacant => found.is_none() || self.fault == Fault::NeverExpectsVacancy,
            Expected::Stamp(stamp) => found.as_ref().is_some_and(|entry| entry.stamp == stamp),
        };
        if self.fault == Fault::IsNotAtomic {
            tokio::task::yield_now().await;
        }
        if !is_expected && self.fault != Fault::AlwaysStores {
            if self.fault == Fault::RemovesOnLoss {
                self.entries.lock().unwrap().remove(&self.place(key));
            }
            return Ok(Exchange::Lost(found.filter(|_| self.fault != Fault::LosesWithoutTelling)));
        }
        self.store(key, new, ttl);
        Ok(Exchange::Stored)
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        if let Some(found) = self.living(key) {
            match self.fault {
                Fault::AcquireOverwrites => self.store(key, Some(lease), ttl),
                Fault::AcquireTouches => {
                    let touched = Entry { stamp: lease.stamp, ..found.clone() };
                    self.store(key, Some(touched), ttl);
                }
                _ => {}
            }
            return Ok(Acquired::Found(found));
        }
        if self.fault != Fault::AcquireForgets {
            self.store(key, Some(lease), ttl);
        }
        Ok(Acquired::Placed)
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Process)
    }
}
