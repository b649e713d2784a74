//! The test of the suite itself: the reference database's reports pass, and each broken one fails the case for its fault.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "broken/database_notices.rs"]
mod broken;

use std::sync::Arc;

use conformance_tests::database_notices::{self, DatabaseNoticeFixture};
use conformance_tests::reference::MemoryPersistence;

use broken::{ALL, BrokenReports, Fault};

struct Reference(MemoryPersistence);

impl DatabaseNoticeFixture for Reference {
    type Db = MemoryPersistence;

    async fn open(&self) -> MemoryPersistence {
        self.0.clone()
    }

    async fn cut_channels(&self) -> bool {
        self.0.cut_channels();
        true
    }
}

struct Broken(BrokenReports);

impl DatabaseNoticeFixture for Broken {
    type Db = BrokenReports;

    async fn open(&self) -> BrokenReports {
        self.0.clone()
    }

    async fn cut_channels(&self) -> bool {
        self.0.db.cut_channels();
        true
    }
}

/// Runs each case on a fixture of its own: cutting the channels of one must not disturb the others.
async fn pass_every_case<F: DatabaseNoticeFixture>(fixture: impl Fn() -> F) {
    for case in database_notices::cases() {
        let fixture = Arc::new(fixture());
        assert_eq!(case.run(&*fixture).await, None, "{} was skipped", case.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reference_passes_every_case() {
    pass_every_case(|| Reference(MemoryPersistence::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breakable_database_without_a_fault_passes_every_case() {
    pass_every_case(|| Broken(BrokenReports::with(Fault::Nothing))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_database_fails_the_case_for_its_fault() {
    // The messages of the failing cases are of no interest here.
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    for (fault, name) in ALL {
        let broken = Broken(BrokenReports::with(*fault));
        let case = database_notices::cases::<Broken>().into_iter().find(|case| case.name == *name).unwrap();
        if tokio::spawn(async move { case.run(&broken).await }).await.is_ok() {
            unnoticed.push((fault, name));
        }
    }
    let _ = std::panic::take_hook();
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}");
}

/// A case that no fault makes fail shows nothing.
#[test]
fn every_case_notices_something() {
    let cases = database_notices::cases::<Broken>().into_iter().map(|case| case.name);
    let idle = cases.filter(|name| ALL.iter().all(|(_, noticing)| noticing != name)).collect::<Vec<_>>();
    assert!(idle.is_empty(), "no fault is made for {idle:#?}");
}
