//! The lifetime of entries.

use std::time::Duration;

use session_core::{Exchange, Expected};

use super::{
    CacheFixture, MINUTE, every_state, exchange, fence, get, key, put, short_ttl, value, wait_until_gone,
};
use crate::suite::case::cases;

cases! {
    /// Returns the cases of this part.
    for CacheFixture:
    entry_is_gone_after_its_ttl => "What was stored is found under the same key",
    entry_is_kept_until_its_ttl_has_passed => "What was stored is found under the same key",
    replacement_brings_a_ttl_of_its_own => "What was stored is found under the same key",
    ttl_of_two_months_is_kept => "What was stored is found under the same key",
    ttl_of_zero_stores_nothing => "A TTL of zero stores nothing",
    ttl_of_zero_removes_the_expected_entry => "A TTL of zero stores nothing",
}

pub async fn entry_is_gone_after_its_ttl(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let ttl = short_ttl(&cache);
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, ttl).await;
        wait_until_gone(&cache, &key, ttl).await;
        put(&cache, &key, &value(), MINUTE).await;
    }
}

pub async fn entry_is_kept_until_its_ttl_has_passed(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    // Neither a whole number of seconds nor one of milliseconds.
    let ttl = Duration::from_micros(1_300_500);
    let (key, entry) = (key(), fence());
    let begin = std::time::Instant::now();
    put(&cache, &key, &entry, ttl).await;
    loop {
        let found = get(&cache, &key).await;
        // The time is read after the call: if the TTL has not passed at its end, it had not passed during it.
        if begin.elapsed() >= ttl {
            break;
        }
        assert_eq!(found, Some(entry.clone()), "gone after {:?} of a TTL of {ttl:?}", begin.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn replacement_brings_a_ttl_of_its_own(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let ttl = short_ttl(&cache);
    let (shortened, first) = (key(), value());
    put(&cache, &shortened, &first, MINUTE).await;
    exchange(&cache, &shortened, Expected::Stamp(first.stamp), Some(value()), ttl).await;
    let (prolonged, second, third) = (key(), value(), value());
    put(&cache, &prolonged, &second, ttl).await;
    // The first entry may have been lost by then. The cache is free to do that.
    exchange(&cache, &prolonged, Expected::Stamp(second.stamp), Some(third.clone()), MINUTE).await;
    wait_until_gone(&cache, &shortened, ttl).await;
    assert_eq!(get(&cache, &prolonged).await, Some(third), "gone at the end of the TTL that it replaced");
}

pub async fn ttl_of_two_months_is_kept(fixture: &impl CacheFixture) {
    let (cache, key, entry) = (fixture.open().await, key(), value());
    put(&cache, &key, &entry, 60 * 24 * 60 * MINUTE).await;
    assert_eq!(get(&cache, &key).await, Some(entry), "memcached reads a TTL of more than 30 days as a date");
}

pub async fn ttl_of_zero_stores_nothing(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, Duration::ZERO).await;
        assert_eq!(get(&cache, &key).await, None);
    }
}

pub async fn ttl_of_zero_removes_the_expected_entry(fixture: &impl CacheFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    put(&cache, &key, &old, MINUTE).await;
    let done = exchange(&cache, &key, Expected::Stamp(old.stamp), Some(value()), Duration::ZERO).await;
    assert_eq!(done, Exchange::Stored);
    assert_eq!(get(&cache, &key).await, None);
}
