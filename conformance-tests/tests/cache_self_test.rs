//! The suite's own test: the reference cache passes, and each broken one fails the case that is to notice it.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "broken/cache.rs"]
mod broken;

use std::sync::Arc;

use conformance_tests::cache::{self, CacheFixture};
use conformance_tests::reference::MemoryCache;

use broken::{ALL, BrokenCache};

/// The names of the cases that fail.
async fn failures<F: CacheFixture>(fixture: F, only: Option<&str>) -> Vec<&'static str> {
    let fixture = Arc::new(fixture);
    let mut running = Vec::new();
    for case in cache::cases::<F>() {
        if only.is_none_or(|only| case.name == only) {
            let (name, fixture) = (case.name, Arc::clone(&fixture));
            running.push((name, tokio::spawn(async move { case.run(&fixture).await })));
        }
    }
    assert!(!running.is_empty(), "there is no case {only:?}");
    let mut failed = Vec::new();
    for (name, case) in running {
        if case.await.is_err() {
            failed.push(name);
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_passes_every_case() {
    let cache = MemoryCache::default();
    let failed = failures(move || std::future::ready(cache.clone()), None).await;
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_cache_fails_the_case_that_is_to_notice_it() {
    // What the cases of broken caches have to say is of no interest here.
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    for (fault, case) in ALL {
        let cache = BrokenCache::with(*fault);
        if failures(move || std::future::ready(cache.another()), Some(case)).await != [*case] {
            unnoticed.push((fault, case));
        }
    }
    let _ = std::panic::take_hook();
    assert!(unnoticed.is_empty(), "nobody noticed: {unnoticed:?}");
}

#[test]
fn every_fault_is_tried() {
    let mut tried = ALL.iter().map(|(fault, _)| format!("{fault:?}")).collect::<Vec<_>>();
    tried.dedup();
    assert_eq!(tried.len(), ALL.len(), "a fault is listed twice");
}
