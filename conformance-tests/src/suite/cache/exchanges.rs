//! Exchanges, one by one and against each other.

use std::num::NonZeroU64;
use std::sync::Arc;

use session_core::{Cache, Entry, Exchange, Expected, Stamp, State, StoredKey};

use super::{
    CacheFixture, MINUTE, every_state, exchange, fence, get, key, lease, nodes, number, put, stamp, value,
    value_of,
};
use crate::suite::case::cases;
use crate::suite::concurrent::at_once;

cases! {
    /// Returns the cases of this part.
    for CacheFixture:
    one_of_several_exchanges_of_the_same_stamp_is_stored => "Atomic against every other exchange",
    one_of_several_exchanges_of_a_vacant_key_is_stored => "Atomic against every other exchange",
    stored_exchange_is_never_lost_among_many => "Atomic against every other exchange",
    lost_exchange_changes_nothing => "[`Exchange::Lost`] changes nothing",
    lost_exchange_returns_the_present_entry => "[`Exchange::Lost`] changes nothing",
    lost_exchange_of_a_vacant_key_returns_nothing => "[`Exchange::Lost`] changes nothing",
    exchange_for_nothing_removes_the_expected_entry => "Atomic against every other exchange",
    new_stamp_is_the_one_to_expect => "The stamp of `new` becomes",
    replaced_stamp_is_not_the_one_to_expect => "The stamp of `new` becomes",
}

/// Runs many exchanges that expect the same entry. One is stored, and its entry must be there afterwards.
async fn race<C: Cache>(nodes: &[Arc<C>], key: StoredKey, expected: Expected) {
    let stored = at_once(nodes, 16, |cache, _| async move {
        let new = value();
        let done = exchange(&*cache, &key, expected, Some(new.clone()), MINUTE).await;
        (done == Exchange::Stored).then_some(new)
    });
    let stored = stored.await.into_iter().flatten().collect::<Vec<_>>();
    assert_eq!(stored.len(), 1, "the number of exchanges with the same expectation that were stored");
    assert_eq!(get(&*nodes[0], &key).await.as_ref(), stored.first(), "this one was stored");
}

fn count(entry: &Entry) -> usize {
    let State::Value(value) = &entry.state else { panic!("a value was stored, but {entry:?} is there") };
    std::str::from_utf8(value.record.payload()).unwrap().parse().unwrap()
}

pub async fn one_of_several_exchanges_of_the_same_stamp_is_stored(fixture: &impl CacheFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..20 {
        let (key, old) = (key(), lease());
        put(&*nodes[0], &key, &old, MINUTE).await;
        race(&nodes, key, Expected::Stamp(old.stamp)).await;
    }
}

pub async fn one_of_several_exchanges_of_a_vacant_key_is_stored(fixture: &impl CacheFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..20 {
        race(&nodes, key(), Expected::Vacant).await;
    }
}

/// Several tasks increment a counter by get and exchange. At the end, it must show all their increments.
pub async fn stored_exchange_is_never_lost_among_many(fixture: &impl CacheFixture) {
    const TASKS: usize = 4;
    const EACH: usize = 25;
    let (nodes, key) = (nodes(fixture).await, key());
    put(&*nodes[0], &key, &value_of("0"), MINUTE).await;
    at_once(&nodes, TASKS, |cache, _| async move {
        let mut counted = 0;
        while counted < EACH {
            let old = get(&*cache, &key).await.expect("an entry that was not removed is there");
            let new = value_of((count(&old) + 1).to_string());
            let done = exchange(&*cache, &key, Expected::Stamp(old.stamp), Some(new), MINUTE).await;
            counted += usize::from(done == Exchange::Stored);
        }
    })
    .await;
    let end = get(&*nodes[0], &key).await.expect("it is there");
    assert_eq!(count(&end), TASKS * EACH);
}

pub async fn lost_exchange_changes_nothing(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        for expected in [Expected::Vacant, Expected::Stamp(stamp())] {
            for new in [Some(value()), Some(fence()), None] {
                let done = exchange(&cache, &key, expected, new, MINUTE).await;
                assert!(
                    matches!(done, Exchange::Lost(_)),
                    "{expected:?} was not there, but the result is {done:?}"
                );
                assert_eq!(get(&cache, &key).await, Some(entry.clone()));
            }
        }
    }
}

pub async fn lost_exchange_returns_the_present_entry(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        for expected in [Expected::Vacant, Expected::Stamp(stamp())] {
            let done = exchange(&cache, &key, expected, Some(value()), MINUTE).await;
            assert_eq!(done, Exchange::Lost(Some(entry.clone())));
        }
    }
}

pub async fn lost_exchange_of_a_vacant_key_returns_nothing(fixture: &impl CacheFixture) {
    let (cache, key) = (fixture.open().await, key());
    for new in [Some(value()), None] {
        let done = exchange(&cache, &key, Expected::Stamp(stamp()), new, MINUTE).await;
        assert_eq!(done, Exchange::Lost(None));
        assert_eq!(get(&cache, &key).await, None);
    }
}

pub async fn exchange_for_nothing_removes_the_expected_entry(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        let done = exchange(&cache, &key, Expected::Stamp(entry.stamp), None, MINUTE).await;
        assert_eq!(done, Exchange::Stored);
        assert_eq!(get(&cache, &key).await, None);
        let again = exchange(&cache, &key, Expected::Vacant, None, MINUTE).await;
        assert_eq!(again, Exchange::Stored, "nothing was expected, and nothing was there");
    }
}

pub async fn new_stamp_is_the_one_to_expect(fixture: &impl CacheFixture) {
    let (cache, key) = (fixture.open().await, key());
    let mut last = value();
    put(&cache, &key, &last, MINUTE).await;
    for number in [NonZeroU64::MIN, NonZeroU64::MAX, number()] {
        let new = Entry { stamp: Stamp(number), ..value() };
        let done = exchange(&cache, &key, Expected::Stamp(last.stamp), Some(new.clone()), MINUTE).await;
        assert_eq!(done, Exchange::Stored);
        last = new;
    }
    assert_eq!(get(&cache, &key).await.map(|entry| entry.stamp), Some(last.stamp));
}

pub async fn replaced_stamp_is_not_the_one_to_expect(fixture: &impl CacheFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    // The same contents under another stamp are another entry.
    let new = Entry { stamp: stamp(), ..old.clone() };
    put(&cache, &key, &old, MINUTE).await;
    exchange(&cache, &key, Expected::Stamp(old.stamp), Some(new.clone()), MINUTE).await;
    let late = exchange(&cache, &key, Expected::Stamp(old.stamp), Some(value()), MINUTE).await;
    assert_eq!(late, Exchange::Lost(Some(new.clone())));
    exchange(&cache, &key, Expected::Stamp(new.stamp), None, MINUTE).await;
    put(&cache, &key, &fence(), MINUTE).await;
    let later = exchange(&cache, &key, Expected::Stamp(new.stamp), None, MINUTE).await;
    assert!(matches!(later, Exchange::Lost(Some(_))), "an earlier entry was taken for the present one");
}
