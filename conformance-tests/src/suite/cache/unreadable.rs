//! Entries that cannot be read, or that belong to another key.

use bytes::Bytes;
use session_core::{Acquired, Cache, CacheError, Expected, Stamp};

use super::{CacheFixture, MINUTE, fence, get, key, lease, put, value};
use crate::suite::case::{cases, skip};

cases! {
    /// Returns the cases of this part.
    for CacheFixture:
    unreadable_entry_counts_as_nothing => "An entry that cannot be read",
    unreadable_entry_is_replaced_by_an_exchange => "An entry that cannot be read",
    unreadable_entry_is_replaced_by_a_lease => "An entry that cannot be read",
    entry_of_another_key_is_never_returned => "An entry of another key is never returned",
}

/// The reason for which cases that need encoded entries are skipped.
const NOT_ENCODED: &str = "the fixture has no access to encoded entries";

/// Returns bytes that are no entry in any version of the envelope: none, text, and the beginning of an entry
/// with a version to come.
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
