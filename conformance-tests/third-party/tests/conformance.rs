//! The suite, run against this crate's cache.

use std::time::Duration;

use conformance_tests::cache::CacheFixture;
use conformance_tests::{Suite, libtest_mimic};
use session_core::bytes::Bytes;
use session_core::{Stamp, StoredKey};
use third_party_cache::MapCache;

struct Fixture(MapCache);

impl CacheFixture for Fixture {
    type Cache = MapCache;

    async fn open(&self) -> MapCache {
        self.0.clone()
    }

    async fn plant(&self, key: &StoredKey, bytes: Bytes) -> bool {
        self.0.set_raw(key, Some(bytes), Duration::from_secs(60));
        true
    }

    async fn plant_state(&self, key: &StoredKey, stamp: Stamp, state: Bytes) -> bool {
        self.plant(key, [&stamp.0.get().to_be_bytes(), &*state].concat().into()).await
    }

    async fn copy(&self, from: &StoredKey, to: &StoredKey) -> bool {
        self.0.set_raw(to, self.0.raw(from), Duration::from_secs(60));
        true
    }
}

fn main() {
    let trials = Suite::new("map").cache(Fixture(MapCache::default())).into_trials();
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit();
}
