//! Stored entries are found, whole and under their keys.

use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use session_core::{Cache, Entry, Exchange, Expected, Record, Stamp, StoreId, StoredKey, Value};

use super::{CacheFixture, MINUTE, every_state, exchange, fence, get, key, now, put, value, value_of};
use crate::suite::case::{cases, skip};

cases! {
    /// Returns the cases of this part.
    for CacheFixture:
    stored_entry_is_found_with_its_stamp => "What was stored is found under the same key",
    stored_entry_is_found_through_another_handle => "What was stored is found under the same key",
    entry_of_every_state_is_read_as_it_was_stored => "What was stored is found under the same key",
    keys_that_differ_in_case_are_different => "Keys are compared byte for byte",
    longest_and_strangest_keys_are_kept_apart => "Keys are compared byte for byte",
    replaced_entry_does_not_come_back => "An entry may disappear before its TTL",
    removed_entry_does_not_come_back => "An entry may disappear before its TTL",
    too_large_value_leaves_nothing_stale => "A value that is too large",
    large_value_is_read_whole => "A value that is too large",
}

pub async fn stored_entry_is_found_with_its_stamp(fixture: &impl CacheFixture) {
    let (cache, key, entry) = (fixture.open().await, key(), value());
    assert_eq!(get(&cache, &key).await, None, "nothing was stored yet");
    put(&cache, &key, &entry, MINUTE).await;
    assert_eq!(get(&cache, &key).await, Some(entry));
}

pub async fn stored_entry_is_found_through_another_handle(fixture: &impl CacheFixture) {
    let (here, there, key, entry) = (fixture.open().await, fixture.open().await, key(), value());
    put(&here, &key, &entry, MINUTE).await;
    assert_eq!(get(&there, &key).await, Some(entry.clone()));
    let removed = exchange(&there, &key, Expected::Stamp(entry.stamp), None, MINUTE).await;
    assert_eq!(removed, Exchange::Stored);
    assert_eq!(get(&here, &key).await, None);
}

pub async fn entry_of_every_state_is_read_as_it_was_stored(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let bare = Entry::value(
        Stamp(NonZeroU64::MAX),
        Value {
            record: Arc::new(Record::new(Bytes::new(), now(), now() + MINUTE)),
            made_at: now(),
            store: StoreId(u64::MAX),
        },
    );
    let every_byte = value_of((0..=255).collect::<Vec<u8>>());
    for entry in every_state().into_iter().chain([bare, every_byte]) {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        assert_eq!(get(&cache, &key).await, Some(entry));
    }
}

pub async fn keys_that_differ_in_case_are_different(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let random = fastrand::u64(..);
    let upper = StoredKey::parse(&format!("Case-{random:x}")).expect("it is a key");
    let lower = StoredKey::parse(&format!("case-{random:x}")).expect("it is a key");
    let (one, other) = (value(), value());
    put(&cache, &upper, &one, MINUTE).await;
    assert_eq!(get(&cache, &lower).await, None);
    put(&cache, &lower, &other, MINUTE).await;
    assert_eq!(get(&cache, &upper).await, Some(one));
}

pub async fn longest_and_strangest_keys_are_kept_apart(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let random = format!("{:016x}", fastrand::u64(..));
    let longest = format!("{random}{}", "k".repeat(StoredKey::MAX_LEN - random.len()));
    let texts = [longest[..StoredKey::MAX_LEN - 1].to_owned(), longest]
        .into_iter()
        .chain("%{}*?[]'\"\\:$!#".chars().map(|strange| format!("{random}{strange}")));
    let mut stored = Vec::new();
    for text in texts {
        let (key, entry) = (StoredKey::parse(&text).expect("it is a key"), value());
        put(&cache, &key, &entry, MINUTE).await;
        stored.push((key, entry));
    }
    for (key, entry) in stored {
        assert_eq!(get(&cache, &key).await, Some(entry), "under {:?}", key.as_str());
    }
}

pub async fn replaced_entry_does_not_come_back(fixture: &impl CacheFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    put(&cache, &key, &old, MINUTE).await;
    let mut last = old;
    for _ in 0..50 {
        let new = if fastrand::bool() { value() } else { fence() };
        let done = exchange(&cache, &key, Expected::Stamp(last.stamp), Some(new.clone()), MINUTE).await;
        assert_eq!(done, Exchange::Stored);
        assert_eq!(get(&cache, &key).await, Some(new.clone()));
        last = new;
    }
}

pub async fn removed_entry_does_not_come_back(fixture: &impl CacheFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    for entry in every_state() {
        put(&here, &key, &entry, MINUTE).await;
        assert_eq!(get(&there, &key).await, Some(entry.clone()));
        exchange(&there, &key, Expected::Stamp(entry.stamp), None, MINUTE).await;
        assert_eq!(get(&here, &key).await, None);
        assert_eq!(get(&there, &key).await, None);
    }
}

pub async fn too_large_value_leaves_nothing_stale(fixture: &impl CacheFixture) {
    let (cache, key, old) = (fixture.open().await, key(), fence());
    let limit = cache.properties().max_entry_bytes;
    if limit > 64 << 20 {
        return skip("the cache takes any session, however large");
    }
    put(&cache, &key, &old, MINUTE).await;
    let large = value_of(vec![b'x'; limit + 1]);
    let tried = cache.compare_exchange(&key, Expected::Stamp(old.stamp), Some(large.clone()), MINUTE).await;
    let found = get(&cache, &key).await;
    match tried {
        Ok(Exchange::Stored) => {
            assert!(found.is_none() || found == Some(large), "it was stored, but another entry is there");
        }
        Ok(Exchange::Lost(_)) => panic!("lost, although the expected entry was there"),
        Err(_) => assert!(found.is_none() || found == Some(old), "it failed, but a new entry is there"),
    }
}

pub async fn large_value_is_read_whole(fixture: &impl CacheFixture) {
    let (cache, key) = (fixture.open().await, key());
    let len = (300 << 10).min(cache.properties().max_entry_bytes / 2);
    let entry = value_of((0..len).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect::<Vec<_>>());
    put(&cache, &key, &entry, MINUTE).await;
    assert_eq!(get(&cache, &key).await, Some(entry));
}
