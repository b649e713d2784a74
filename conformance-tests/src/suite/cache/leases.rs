//! Acquiring a lease.

use std::time::Duration;

use session_core::{Acquired, Cache, Exchange, Expected};

use super::{
    CacheFixture, MINUTE, every_state, exchange, get, key, lease, nodes, put, short_ttl, value,
    wait_until_gone,
};
use crate::suite::case::cases;
use crate::suite::concurrent::at_once;

cases! {
    /// Returns the cases of this part.
    for CacheFixture:
    lease_is_placed_on_a_vacant_key => "[`Acquired::Placed`] only if nothing was there",
    one_of_several_acquisitions_places_its_lease => "[`Acquired::Placed`] only if nothing was there",
    placed_lease_ends_after_its_ttl => "[`Acquired::Placed`] only if nothing was there",
    acquisition_finds_every_state_and_changes_nothing => "[`Acquired::Found`] changes nothing",
}

pub async fn lease_is_placed_on_a_vacant_key(fixture: &impl CacheFixture) {
    let (cache, key, lease) = (fixture.open().await, key(), lease());
    let acquired = cache.acquire(&key, lease.clone(), MINUTE).await.expect("the cache answers");
    assert_eq!(acquired, Acquired::Placed);
    assert_eq!(get(&cache, &key).await, Some(lease.clone()));
    let filled = exchange(&cache, &key, Expected::Stamp(lease.stamp), Some(value()), MINUTE).await;
    assert_eq!(filled, Exchange::Stored, "a placed lease can be filled");
}

pub async fn one_of_several_acquisitions_places_its_lease(fixture: &impl CacheFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..20 {
        let key = key();
        let acquired = at_once(&nodes, 8, |cache, _| async move {
            let lease = lease();
            (lease.clone(), cache.acquire(&key, lease, MINUTE).await.expect("the cache answers"))
        });
        let (mut placed, mut found) = (Vec::new(), Vec::new());
        for (lease, acquired) in acquired.await {
            match acquired {
                Acquired::Placed => placed.push(lease),
                Acquired::Found(entry) => found.push(entry),
            }
        }
        assert_eq!(placed.len(), 1, "the number of leases that were placed");
        assert!(found.iter().all(|entry| *entry == placed[0]), "the others find the lease that was placed");
    }
}

pub async fn placed_lease_ends_after_its_ttl(fixture: &impl CacheFixture) {
    let (cache, key) = (fixture.open().await, key());
    let ttl = short_ttl(&cache);
    assert_eq!(cache.acquire(&key, lease(), ttl).await.expect("the cache answers"), Acquired::Placed);
    wait_until_gone(&cache, &key, ttl).await;
}

pub async fn acquisition_finds_every_state_and_changes_nothing(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        let acquired = cache.acquire(&key, lease(), Duration::from_secs(1)).await.expect("the cache answers");
        assert_eq!(acquired, Acquired::Found(entry.clone()));
        assert_eq!(get(&cache, &key).await, Some(entry));
    }
}
