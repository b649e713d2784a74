//! The test of the suite itself: the reference source of notices passes, and each broken one fails the case for its fault.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "broken/notices.rs"]
mod broken;

use std::sync::Arc;

use conformance_tests::notices::{self, NoticeFixture};
use conformance_tests::reference::MemoryCache;

use broken::{ALL, BrokenSource, Fault};

struct Reference(MemoryCache);

impl NoticeFixture for Reference {
    type Source = MemoryCache;

    async fn open(&self) -> MemoryCache {
        self.0.clone()
    }

    async fn cut_channels(&self) -> bool {
        self.0.cut_channels();
        true
    }
}

struct Broken(BrokenSource);

impl NoticeFixture for Broken {
    type Source = BrokenSource;

    async fn open(&self) -> BrokenSource {
        self.0.clone()
    }

    async fn cut_channels(&self) -> bool {
        self.0.cache.cut_channels();
        true
    }
}

/// Runs each case on a fixture of its own: cutting the channels of one must not disturb the others.
async fn pass_every_case<F: NoticeFixture>(fixture: impl Fn() -> F) {
    let cases = notices::cases();
    assert!(cases.len() > 5, "{} cases", cases.len());
    for case in cases {
        let fixture = Arc::new(fixture());
        assert_eq!(case.run(&*fixture).await, None, "{} was skipped", case.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reference_passes_every_case() {
    pass_every_case(|| Reference(MemoryCache::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breakable_source_without_a_fault_passes_every_case() {
    pass_every_case(|| Broken(BrokenSource::with(Fault::Nothing))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_source_fails_the_case_for_its_fault() {
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
    let broken = Broken(BrokenSource::with(fault));
    let case = notices::cases::<Broken>().into_iter().find(|case| case.name == name).unwrap();
    tokio::spawn(async move { case.run(&broken).await }).await.is_err()
}

/// A case that no fault makes fail shows nothing.
#[test]
fn every_case_notices_something() {
    let cases = notices::cases::<Broken>().into_iter().map(|case| case.name);
    let idle = cases.filter(|name| ALL.iter().all(|(_, noticing)| noticing != name)).collect::<Vec<_>>();
    assert!(idle.is_empty(), "no fault is made for {idle:#?}");
}
