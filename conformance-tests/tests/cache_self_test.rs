//! The suite's own test: the reference cache passes, and each broken one fails the case that is to notice it.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "broken/cache.rs"]
mod broken;

use std::sync::Arc;

use conformance_tests::cache::{self, CacheFixture};
use conformance_tests::reference::MemoryCache;
use session_core::StoredKey;
use session_core::bytes::Bytes;

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

    async fn copy(&self, from: &StoredKey, to: &StoredKey) -> bool {
        self.0.copy(from, to);
        true
    }
}

async fn passes_every_case<F: CacheFixture>(fixture: F) {
    let fixture = Arc::new(fixture);
    let running = cache::cases().into_iter().map(|case| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move { case.run(&*fixture).await })
    });
    let running = running.collect::<Vec<_>>();
    assert!(running.len() > 25, "{} cases", running.len());
    for case in running {
        case.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_passes_every_case() {
    let cache = MemoryCache::default();
    passes_every_case(move || std::future::ready(cache.clone())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_passes_every_case_without_its_fault() {
    passes_every_case(Broken(BrokenCache::with(Fault::Nothing))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_cache_fails_the_case_that_is_to_notice_it() {
    // What the cases of broken caches have to say is of no interest here.
    std::panic::set_hook(Box::new(|_| {}));
    let running = ALL.iter().map(|(fault, name)| (fault, name, tokio::spawn(notices(*fault, name))));
    let mut unnoticed = Vec::new();
    for (fault, name, noticed) in running.collect::<Vec<_>>() {
        if !noticed.await.unwrap() {
            unnoticed.push((fault, name));
        }
    }
    let _ = std::panic::take_hook();
    assert!(unnoticed.is_empty(), "nobody noticed: {unnoticed:?}");
}

async fn notices(fault: Fault, name: &str) -> bool {
    let broken = Broken(BrokenCache::with(fault));
    let case = cache::cases::<Broken>().into_iter().find(|case| case.name == name).unwrap();
    tokio::spawn(async move { case.run(&broken).await }).await.is_err()
}

/// A case that nothing makes fail shows nothing.
#[test]
fn every_case_notices_something() {
    let cases = cache::cases::<Broken>().into_iter().map(|case| case.name);
    let idle = cases.filter(|name| ALL.iter().all(|(_, noticing)| noticing != name)).collect::<Vec<_>>();
    assert!(idle.is_empty(), "no fault is made for {idle:#?}");
}
