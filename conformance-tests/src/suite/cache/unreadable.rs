//! Entries that cannot be read, that belong to another key, or that a node of another version has written.

use bytes::{Bytes, BytesMut};
use session_core::{Acquired, Cache, CacheError, Entry, Exchange, Expected, Stamp, State, StoredKey};

use super::{CacheFixture, MINUTE, every_state, exchange, fence, get, key, lease, put, value};
use crate::suite::case::{cases, skip};

cases! {
    /// Returns the cases of this part.
    for CacheFixture:
    unreadable_entry_counts_as_nothing => "An entry that cannot be read",
    unreadable_entry_is_replaced_by_an_exchange => "An entry that cannot be read",
    unreadable_entry_is_replaced_by_a_lease => "An entry that cannot be read",
    entry_of_another_key_is_never_returned => "An entry of another key is never returned",
    entry_of_another_version_is_no_value_and_not_vacant => "An entry of another version",
    entry_of_another_version_is_exchanged_by_its_stamp => "An entry of another version",
}

/// The reason for which cases that need encoded entries are skipped.
const NOT_ENCODED: &str = "the fixture has no access to encoded entries";

/// Returns bytes that are no entry of the key in any version of the envelope: none, text, and another key's entry of a
/// version to come.
fn unreadable() -> [Bytes; 4] {
    let mut newer = lease().encode(&key()).to_vec();
    newer[Stamp::LEN] = 255;
    [Bytes::new(), Bytes::from_static(b"x"), Bytes::from_static(b"the text of another program"), newer.into()]
}

pub async fn unreadable_entry_counts_as_nothing(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for bytes in unreadable() {
        let key = key();
        if !fixture.plant(&key, bytes).await {
            return skip(NOT_ENCODED);
        }
        assert_eq!(get(&cache, &key).await, None);
    }
}

pub async fn unreadable_entry_is_replaced_by_an_exchange(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for bytes in unreadable() {
        let (key, entry) = (key(), fence());
        if !fixture.plant(&key, bytes).await {
            return skip(NOT_ENCODED);
        }
        put(&cache, &key, &entry, MINUTE).await;
        assert_eq!(get(&cache, &key).await, Some(entry));
    }
}

pub async fn unreadable_entry_is_replaced_by_a_lease(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for bytes in unreadable() {
        let (key, lease) = (key(), lease());
        if !fixture.plant(&key, bytes).await {
            return skip(NOT_ENCODED);
        }
        let acquired = cache.acquire(&key, lease.clone(), MINUTE).await.expect("the cache answers");
        assert_eq!(acquired, Acquired::Placed);
        assert_eq!(get(&cache, &key).await, Some(lease));
    }
}

pub async fn entry_of_another_key_is_never_returned(fixture: &impl CacheFixture) {
    let (cache, mine, theirs, entry) = (fixture.open().await, key(), key(), value());
    put(&cache, &theirs, &entry, MINUTE).await;
    if !fixture.copy(&theirs, &mine).await {
        return skip(NOT_ENCODED);
    }
    let wrong = |found: &dyn std::fmt::Debug| panic!("the session of another key was returned: {found:?}");
    match cache.get(&mine).await {
        Err(CacheError::WrongKey) => {}
        found => wrong(&found),
    }
    match cache.acquire(&mine, lease(), MINUTE).await {
        Err(CacheError::WrongKey) => {}
        found => wrong(&found),
    }
    match cache.compare_exchange(&mine, Expected::Vacant, Some(lease()), MINUTE).await {
        Err(CacheError::WrongKey) => {}
        found => wrong(&found),
    }
}

/// Returns entries of a version to come: a value, a lease, a fence, and a kind that this version does not know.
fn entries_of_another_version(key: &StoredKey) -> Vec<(Stamp, Bytes)> {
    let mut entries = Vec::new();
    for (number, entry) in every_state().into_iter().chain([lease()]).enumerate() {
        let mut state = BytesMut::new();
        entry.state.encode(key, &mut state);
        state[0] = 255;
        if number == 3 {
            state[1] = 9;
        }
        state.extend_from_slice(b"and more");
        entries.push((entry.stamp, state.freeze()));
    }
    entries
}

/// Returns the entry under `key`, after checking that it is one of these, and no value.
async fn found_there(cache: &impl Cache, key: &StoredKey, stamp: Stamp) -> Entry {
    let found = get(cache, key).await.expect("an entry of another version is there");
    assert_eq!(found.stamp, stamp);
    assert!(!matches!(found.state, State::Value(_)), "a value of another version was read: {found:?}");
    found
}

pub async fn entry_of_another_version_is_no_value_and_not_vacant(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let key = key();
    for (stamp, state) in entries_of_another_version(&key) {
        if !fixture.plant_state(&key, stamp, state).await {
            return skip(NOT_ENCODED);
        }
        let found = found_there(&cache, &key, stamp).await;
        let acquired = cache.acquire(&key, lease(), MINUTE).await.expect("the cache answers");
        assert_eq!(acquired, Acquired::Found(found.clone()));
        for new in [Some(fence()), None] {
            let lost = exchange(&cache, &key, Expected::Vacant, new, MINUTE).await;
            assert_eq!(lost, Exchange::Lost(Some(found.clone())));
        }
        assert_eq!(found_there(&cache, &key, stamp).await, found, "it was replaced");
    }
}

pub async fn entry_of_another_version_is_exchanged_by_its_stamp(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for new in [Some(fence()), None] {
        let key = key();
        for (stamp, state) in entries_of_another_version(&key) {
            if !fixture.plant_state(&key, stamp, state).await {
                return skip(NOT_ENCODED);
            }
            let found = found_there(&cache, &key, stamp).await;
            let lost = exchange(&cache, &key, Expected::Stamp(super::stamp()), new.clone(), MINUTE).await;
            assert_eq!(lost, Exchange::Lost(Some(found)));
            let stored = exchange(&cache, &key, Expected::Stamp(stamp), new.clone(), MINUTE).await;
            assert_eq!(stored, Exchange::Stored);
            assert_eq!(get(&cache, &key).await, new);
        }
    }
}
