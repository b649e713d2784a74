//! The test of the suite itself: the reference cache passes, and each broken one fails the case for its
//! fault.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "broken/cache.rs"]
mod broken;

use std::sync::Arc;

use conformance_tests::cache::{self, CacheFixture};
use conformance_tests::reference::MemoryCache;
use conformance_tests::{Suite, libtest_mimic};
use session_core::bytes::Bytes;
use session_core::{Stamp, StoredKey};

use broken::{ALL, BrokenCache, Fault};

struct Broken(BrokenCache);

impl CacheFixture for Broken {
    type Cache = BrokenCache;

    async fn open(&self) -> BrokenCache {
        self.0.another()
    }

    async fn plant(&self, key: &StoredKey, _: Bytes) -> bool {
        self.0.plant_junk(key);
        true
    }

    async fn plant_state(&self, key: &StoredKey, stamp: Stamp, state: Bytes) -> bool {
        self.0.plant_state(key, stamp, state);
        true
    }

    async fn copy(&self, from: &StoredKey, to: &StoredKey) -> bool {
        self.0.copy(from, to);
        true
    }
}

/// Fails unless every case passes, and returns those that were skipped.
async fn pass_every_case<F: CacheFixture>(fixture: F) -> Vec<&'static str> {
    let fixture = Arc::new(fixture);
    let running = cache::cases().into_iter().map(|case| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move { case.run(&*fixture).await.map(|_| case.name) })
    });
    let running = running.collect::<Vec<_>>();
    assert!(running.len() > 25, "{} cases", running.len());
    let mut skipped = Vec::new();
    for case in running {
        skipped.extend(case.await.unwrap());
    }
    skipped
}

/// The cases that need more of a fixture than handles to the cache, or a limit of the cache.
const NEEDING_CAPABILITIES: [&str; 7] = [
    "too_large_value_leaves_nothing_stale",
    "unreadable_entry_counts_as_nothing",
    "unreadable_entry_is_replaced_by_an_exchange",
    "unreadable_entry_is_replaced_by_a_lease",
    "entry_of_another_key_is_never_returned",
    "entry_of_another_version_is_no_value_and_not_vacant",
    "entry_of_another_version_is_exchanged_by_its_stamp",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reference_passes_or_skips_every_case() {
    let cache = MemoryCache::default();
    let skipped = pass_every_case(move || std::future::ready(cache.clone())).await;
    assert_eq!(skipped, NEEDING_CAPABILITIES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breakable_cache_without_a_fault_passes_every_case() {
    assert_eq!(pass_every_case(Broken(BrokenCache::with(Fault::Nothing))).await, [""; 0]);
}

#[test]
fn skipped_case_is_reported_as_ignored() {
    let cache = MemoryCache::default();
    let mut trials = Suite::new("bare").cache(move || std::future::ready(cache.clone())).into_trials();
    trials.retain(|trial| NEEDING_CAPABILITIES.iter().any(|name| trial.name().ends_with(name)));
    let conclusion = libtest_mimic::run(&libtest_mimic::Arguments::default(), trials);
    assert_eq!((conclusion.num_ignored, conclusion.num_passed, conclusion.num_failed), (7, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_cache_fails_the_case_for_its_fault() {
    // The messages of the failing cases are of no interest here.
    std::panic::set_hook(Box::new(|_| {}));
    let running = ALL.iter().map(|(fault, name)| (fault, name, tokio::spawn(notices(*fault, name))));
    let mut unnoticed = Vec::new();
    for (fault, name, noticed) in running.collect::<Vec<_>>() {
        if !noticed.await.unwrap() {
            unnoticed.push((fault, name));
        }
    }
    let _ = std::panic::take_hook();
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}");
}

async fn notices(fault: Fault, name: &str) -> bool {
    let broken = Broken(BrokenCache::with(fault));
    let case = cache::cases::<Broken>().into_iter().find(|case| case.name == name).unwrap();
    tokio::spawn(async move { case.run(&broken).await }).await.is_err()
}

/// A case that no fault makes fail shows nothing.
#[test]
fn every_case_notices_something() {
    let cases = cache::cases::<Broken>().into_iter().map(|case| case.name);
    let idle = cases.filter(|name| ALL.iter().all(|(_, noticing)| noticing != name)).collect::<Vec<_>>();
    assert!(idle.is_empty(), "no fault is made for {idle:#?}");
}
