//! Caches that are wrong in one way each, and the case that must notice it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use session_core::bytes::Bytes;
use session_core::{
    Acquired, Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Record, Scope, Stamp, State,
    StoredKey, Timestamp,
};

/// The fault of a broken backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No fault. The suite must pass, which shows that the other backends fail because of their faults.
    Nothing,
    // Time.
    IgnoresTtl,
    EndsEarly,
    KeepsTheOldTtl,
    StoresAtTtlZero,
    KeepsWhatIsReplacedAtTtlZero,
    TakesLongTtlsForDates,
    // Exchanges.
    AlwaysStores,
    NeverExpectsVacancy,
    IsNotAtomic,
    ComparesContents,
    KeepsTheOldStamp,
    TellsTheWrongStamp,
    RemovesNothing,
    RemovesOnLoss,
    LosesWithoutTelling,
    TellsOfTheNew,
    // Acquisitions.
    AcquireOverwrites,
    AcquireForgets,
    AcquireTouches,
    AcquireIsNotAtomic,
    LeasesNeverEnd,
    // The keys of entries.
    FoldsCase,
    CutsKeys,
    AnswersFromAStaleCopy,
    HasAMapPerHandle,
    ReturnsAnybodys,
    TakesAnybodysForNothing,
    // Unreadable and too large entries.
    FailsOverJunk,
    JunkIsInTheWayOfExchanges,
    JunkIsInTheWayOfLeases,
    TakesOtherVersionsForNothing,
    KeepsOtherVersions,
    LeavesTheOldBesideTheTooLarge,
    CutsTheTooLarge,
    // The contents that are returned.
    DropsTheSubject,
    CutsPayloads,
    CutsInstants,
    CleansFences,
    // The servers of keys.
    CountsServersFromOne,
    MovesWhatIsStored,
    NumbersServersPerHandle,
}

/// Each fault, and the case that must notice it.
pub(crate) const ALL: &[(Fault, &str)] = &[
    (Fault::IgnoresTtl, "entry_is_gone_after_its_ttl"),
    (Fault::EndsEarly, "entry_is_kept_until_its_ttl_has_passed"),
    (Fault::KeepsTheOldTtl, "replacement_brings_a_ttl_of_its_own"),
    (Fault::StoresAtTtlZero, "ttl_of_zero_stores_nothing"),
    (Fault::KeepsWhatIsReplacedAtTtlZero, "ttl_of_zero_removes_the_expected_entry"),
    (Fault::TakesLongTtlsForDates, "ttl_of_two_months_is_kept"),
    (Fault::AlwaysStores, "lost_exchange_changes_nothing"),
    (Fault::NeverExpectsVacancy, "one_of_several_exchanges_of_a_vacant_key_is_stored"),
    (Fault::IsNotAtomic, "one_of_several_exchanges_of_the_same_stamp_is_stored"),
    (Fault::IsNotAtomic, "one_of_several_exchanges_of_a_vacant_key_is_stored"),
    (Fault::IsNotAtomic, "stored_exchange_is_never_lost_among_many"),
    (Fault::ComparesContents, "replaced_stamp_is_not_the_one_to_expect"),
    (Fault::KeepsTheOldStamp, "new_stamp_is_the_one_to_expect"),
    (Fault::TellsTheWrongStamp, "stored_entry_is_found_with_its_stamp"),
    (Fault::RemovesNothing, "exchange_for_nothing_removes_the_expected_entry"),
    (Fault::RemovesOnLoss, "lost_exchange_changes_nothing"),
    (Fault::RemovesOnLoss, "random_calls_are_answered_like_a_register"),
    (Fault::LosesWithoutTelling, "lost_exchange_returns_the_present_entry"),
    (Fault::TellsOfTheNew, "lost_exchange_of_a_vacant_key_returns_nothing"),
    (Fault::AcquireOverwrites, "acquisition_finds_every_state_and_changes_nothing"),
    (Fault::AcquireForgets, "lease_is_placed_on_a_vacant_key"),
    (Fault::AcquireTouches, "acquisition_finds_every_state_and_changes_nothing"),
    (Fault::AcquireIsNotAtomic, "one_of_several_acquisitions_places_its_lease"),
    (Fault::LeasesNeverEnd, "placed_lease_ends_after_its_ttl"),
    (Fault::FoldsCase, "keys_that_differ_in_case_are_different"),
    (Fault::CutsKeys, "longest_and_strangest_keys_are_kept_apart"),
    (Fault::AnswersFromAStaleCopy, "removed_entry_does_not_come_back"),
    (Fault::AnswersFromAStaleCopy, "replaced_entry_does_not_come_back"),
    (Fault::HasAMapPerHandle, "stored_entry_is_found_through_another_handle"),
    (Fault::ReturnsAnybodys, "entry_of_another_key_is_never_returned"),
    (Fault::TakesAnybodysForNothing, "entry_of_another_key_is_never_returned"),
    (Fault::FailsOverJunk, "unreadable_entry_counts_as_nothing"),
    (Fault::JunkIsInTheWayOfExchanges, "unreadable_entry_is_replaced_by_an_exchange"),
    (Fault::JunkIsInTheWayOfLeases, "unreadable_entry_is_replaced_by_a_lease"),
    (Fault::TakesOtherVersionsForNothing, "entry_of_another_version_is_no_value_and_not_vacant"),
    (Fault::KeepsOtherVersions, "entry_of_another_version_is_exchanged_by_its_stamp"),
    (Fault::LeavesTheOldBesideTheTooLarge, "too_large_value_leaves_nothing_stale"),
    (Fault::CutsTheTooLarge, "too_large_value_leaves_nothing_stale"),
    (Fault::DropsTheSubject, "entry_of_every_state_is_read_as_it_was_stored"),
    (Fault::CutsPayloads, "large_value_is_read_whole"),
    (Fault::CutsInstants, "entry_of_every_state_is_read_as_it_was_stored"),
    (Fault::CleansFences, "entry_of_every_state_is_read_as_it_was_stored"),
    (Fault::CountsServersFromOne, "server_of_every_key_is_below_the_number_of_servers"),
    (Fault::MovesWhatIsStored, "key_keeps_its_server_when_entries_change"),
    (Fault::NumbersServersPerHandle, "every_handle_names_the_same_server"),
];

const MAX_ENTRY_BYTES: usize = 1 << 20;

/// The number of servers that the cache reports.
const SERVERS: usize = 3;

/// A map under a lock, with a fault.
#[derive(Clone, Debug)]
pub(crate) struct BrokenCache {
    fault: Fault,
    slots: Arc<Mutex<HashMap<String, (Slot, Instant)>>>,
    exchanging: Arc<Mutex<()>>,
    /// The entries that stamps have stood for.
    contents: Arc<Mutex<HashMap<Stamp, State>>>,
    /// The stamps of entries of another version.
    others: Arc<Mutex<HashSet<Stamp>>>,
    /// The entries as this handle saw them first.
    copies: Arc<Mutex<HashMap<String, Entry>>>,
    /// The number of handles before this one.
    handle: usize,
}

#[derive(Clone, Debug)]
enum Slot {
    Of(StoredKey, Entry),
    Junk,
}

impl BrokenCache {
    pub(crate) fn with(fault: Fault) -> Self {
        Self {
            fault,
            slots: Arc::default(),
            exchanging: Arc::default(),
            contents: Arc::default(),
            others: Arc::default(),
            copies: Arc::default(),
            handle: 0,
        }
    }

    /// Opens another handle to the same cache.
    pub(crate) fn another(&self) -> Self {
        let mut other = self.clone();
        other.copies = Arc::default();
        other.handle = Arc::strong_count(&self.exchanging);
        if self.has(Fault::HasAMapPerHandle) {
            other.slots = Arc::default();
        }
        other
    }

    pub(crate) fn plant_junk(&self, key: &StoredKey) {
        self.lock().insert(self.place(key), (Slot::Junk, Instant::now() + Duration::from_secs(60)));
    }

    pub(crate) fn plant_state(&self, key: &StoredKey, stamp: Stamp, state: Bytes) {
        let until = Instant::now() + Duration::from_secs(60);
        let slot = match State::decode(key, state) {
            Ok(state) if !self.has(Fault::TakesOtherVersionsForNothing) => {
                self.contents.lock().unwrap().insert(stamp, state.clone());
                self.others.lock().unwrap().insert(stamp);
                Slot::Of(*key, Entry { stamp, state })
            }
            _ => Slot::Junk,
        };
        self.lock().insert(self.place(key), (slot, until));
    }

    pub(crate) fn copy(&self, from: &StoredKey, to: &StoredKey) {
        let mut slots = self.lock();
        let copied = slots[&self.place(from)].clone();
        slots.insert(self.place(to), copied);
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Slot, Instant)>> {
        self.slots.lock().unwrap()
    }

    fn place(&self, key: &StoredKey) -> String {
        match self.fault {
            Fault::FoldsCase => key.as_str().to_lowercase(),
            Fault::CutsKeys => key.as_str().chars().take(63).collect(),
            _ => key.as_str().to_owned(),
        }
    }

    fn slot(&self, key: &StoredKey) -> Option<Slot> {
        let slots = self.lock();
        let (slot, until) = slots.get(&self.place(key))?;
        (Instant::now() < *until || self.has(Fault::IgnoresTtl)).then(|| slot.clone())
    }

    fn living(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        match self.slot(key) {
            None => Ok(None),
            Some(Slot::Junk) if self.has(Fault::FailsOverJunk) => {
                Err(CacheError::Refused("another entry is there".into()))
            }
            Some(Slot::Junk) => Ok(None),
            Some(Slot::Of(owner, entry)) => match self.fault {
                // These faults mistake one key for another already.
                Fault::ReturnsAnybodys | Fault::FoldsCase | Fault::CutsKeys => Ok(Some(entry)),
                _ if owner == *key => Ok(Some(entry)),
                Fault::TakesAnybodysForNothing => Ok(None),
                _ => Err(CacheError::WrongKey),
            },
        }
    }

    fn store(&self, key: &StoredKey, new: Option<Entry>, ttl: Duration) {
        let place = self.place(key);
        let mut slots = self.lock();
        if new.is_some() && ttl.is_zero() && self.has(Fault::KeepsWhatIsReplacedAtTtlZero) {
            return;
        }
        if new.is_none() && self.has(Fault::RemovesNothing) {
            return;
        }
        let Some(new) = new.filter(|_| !ttl.is_zero() || self.has(Fault::StoresAtTtlZero)) else {
            slots.remove(&place);
            return;
        };
        let mut ttl = match self.fault {
            Fault::EndsEarly => Duration::from_secs(ttl.as_secs()),
            Fault::StoresAtTtlZero => ttl.max(Duration::from_secs(1)),
            Fault::TakesLongTtlsForDates if ttl > Duration::from_secs(30 * 86_400) => Duration::ZERO,
            _ => ttl,
        };
        let old = slots.get(&place);
        if let (Fault::KeepsTheOldTtl, Some((_, until))) = (self.fault, old) {
            ttl = until.saturating_duration_since(Instant::now());
        }
        let stamp = match (self.fault, old) {
            (Fault::KeepsTheOldStamp, Some((Slot::Of(_, old), _))) => old.stamp,
            _ => new.stamp,
        };
        self.contents.lock().unwrap().insert(stamp, new.state.clone());
        let entry = Entry { stamp, state: self.damaged(new.state) };
        slots.insert(place, (Slot::Of(*key, entry), Instant::now() + ttl));
    }

    fn damaged(&self, state: State) -> State {
        match state {
            State::Fence(mut fence) => {
                fence.dirty &= !self.has(Fault::CleansFences);
                State::Fence(fence)
            }
            State::Value(mut value) => {
                let record = (*value.record).clone();
                value.record = Arc::new(match self.fault {
                    Fault::DropsTheSubject => record.with_subject(None),
                    Fault::CutsPayloads => cut(&record, 65_535),
                    Fault::CutsTheTooLarge => cut(&record, MAX_ENTRY_BYTES),
                    Fault::CutsInstants => {
                        let seconds = record.last_seen_at().as_micros() / 1_000_000;
                        record.with_last_seen_at(Timestamp::from_secs(seconds))
                    }
                    _ => record,
                });
                State::Value(value)
            }
            State::Lease => State::Lease,
        }
    }

    fn is_as(&self, expected: Expected, found: Option<&Entry>) -> bool {
        match expected {
            Expected::Vacant => found.is_none() || self.has(Fault::NeverExpectsVacancy),
            Expected::Stamp(stamp)
                if self.has(Fault::KeepsOtherVersions) && self.others.lock().unwrap().contains(&stamp) =>
            {
                false
            }
            Expected::Stamp(stamp) => found.is_some_and(|found| {
                let contents = self.contents.lock().unwrap();
                let is_alike = || contents.get(&stamp) == Some(&found.state);
                found.stamp == stamp || self.has(Fault::ComparesContents) && is_alike()
            }),
        }
    }

    /// Finds the entry on which a call decides. With some faults, other calls come in between.
    async fn found_before(&self, key: &StoredKey, fault: Fault) -> Option<Result<Option<Entry>, CacheError>> {
        if !self.has(fault) {
            return None;
        }
        let found = self.living(key);
        tokio::time::sleep(Duration::from_millis(3)).await;
        Some(found)
    }
}

fn cut(record: &Record, len: usize) -> Record {
    let payload = record.payload();
    Record::new(payload.slice(..payload.len().min(len)), record.created_at(), record.expires_at())
        .with_version(record.version())
        .with_last_seen_at(record.last_seen_at())
        .with_subject(record.subject().cloned())
}

impl Cache for BrokenCache {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let mut found = self.living(key)?;
        if self.has(Fault::AnswersFromAStaleCopy) {
            let mut copies = self.copies.lock().unwrap();
            if let Some(copy) = copies.get(key.as_str()) {
                return Ok(Some(copy.clone()));
            }
            copies.extend(found.clone().map(|entry| (key.as_str().to_owned(), entry)));
        }
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
        if new.as_ref().is_some_and(|new| new.encode(key).len() > MAX_ENTRY_BYTES) {
            match self.fault {
                Fault::LeavesTheOldBesideTheTooLarge => return Ok(Exchange::Stored),
                Fault::CutsTheTooLarge => {}
                _ => return Err(CacheError::Refused("the entry is too large".into())),
            }
        }
        let before = self.found_before(key, Fault::IsNotAtomic).await;
        let _one_at_a_time = self.exchanging.lock().unwrap();
        let found = before.unwrap_or_else(|| self.living(key))?;
        let is_junk_in_the_way =
            || self.has(Fault::JunkIsInTheWayOfExchanges) && matches!(self.slot(key), Some(Slot::Junk));
        if is_junk_in_the_way() || !self.is_as(expected, found.as_ref()) && !self.has(Fault::AlwaysStores) {
            return Ok(Exchange::Lost(match self.fault {
                Fault::LosesWithoutTelling => None,
                Fault::TellsOfTheNew => new,
                Fault::RemovesOnLoss => {
                    self.lock().remove(&self.place(key));
                    found
                }
                _ => found,
            }));
        }
        self.store(key, new, ttl);
        Ok(Exchange::Stored)
    }

    async fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Result<Acquired, CacheError> {
        let before = self.found_before(key, Fault::AcquireIsNotAtomic).await;
        let _one_at_a_time = self.exchanging.lock().unwrap();
        let found = before.unwrap_or_else(|| self.living(key))?;
        if let Some(found) = found {
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
        if self.has(Fault::JunkIsInTheWayOfLeases) && matches!(self.slot(key), Some(Slot::Junk)) {
            return Err(CacheError::Refused("another entry is there".into()));
        }
        match self.fault {
            Fault::AcquireForgets => {}
            Fault::LeasesNeverEnd => self.store(key, Some(lease), Duration::from_secs(3_600)),
            _ => self.store(key, Some(lease), ttl),
        }
        Ok(Acquired::Placed)
    }

    fn server(&self, key: &StoredKey) -> usize {
        let number = key.as_bytes().iter().map(|byte| usize::from(*byte)).sum::<usize>();
        match self.fault {
            Fault::CountsServersFromOne => 1 + number % SERVERS,
            Fault::MovesWhatIsStored if self.slot(key).is_some() => (1 + number) % SERVERS,
            Fault::NumbersServersPerHandle => (self.handle + number) % SERVERS,
            _ => number % SERVERS,
        }
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Shared).with_max_entry_bytes(MAX_ENTRY_BYTES).with_servers(SERVERS)
    }
}
