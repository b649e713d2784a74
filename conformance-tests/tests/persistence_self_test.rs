//! The suite's own test: the reference database passes, and each broken one fails the case that is to notice it.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "broken/persistence.rs"]
mod broken;

use std::sync::Arc;

use conformance_tests::persistence::{self, Damage, PersistenceFixture};
use conformance_tests::reference::MemoryPersistence;
use conformance_tests::{Case, scan, subject_index};
use session_core::{Scan, StoredKey, SubjectIndex};

use broken::{ALL, BrokenPersistence, Fault};

struct Reference(MemoryPersistence);

impl PersistenceFixture for Reference {
    type Persistence = MemoryPersistence;

    async fn open(&self) -> MemoryPersistence {
        self.0.clone()
    }

    async fn open_before_migration(&self) -> Vec<MemoryPersistence> {
        vec![MemoryPersistence::without_table(); 4]
    }

    async fn damage(&self, key: &StoredKey, damage: Damage) -> bool {
        self.0.damage(key, damage);
        true
    }
}

struct Broken(BrokenPersistence);

impl PersistenceFixture for Broken {
    type Persistence = BrokenPersistence;

    async fn open(&self) -> BrokenPersistence {
        self.0.another()
    }

    async fn open_before_migration(&self) -> Vec<BrokenPersistence> {
        vec![self.0.before_migration(); 4]
    }

    async fn damage(&self, key: &StoredKey, damage: Damage) -> bool {
        self.0.damage(key, damage);
        true
    }
}

fn cases<F: PersistenceFixture<Persistence: SubjectIndex + Scan>>() -> Vec<Case<F>> {
    persistence::cases().into_iter().chain(subject_index::cases()).chain(scan::cases()).collect()
}

async fn passes_every_case<F: PersistenceFixture<Persistence: SubjectIndex + Scan>>(fixture: F) {
    let fixture = Arc::new(fixture);
    let running = cases().into_iter().map(|case| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move { case.run(&*fixture).await })
    });
    let running = running.collect::<Vec<_>>();
    assert!(running.len() > 50, "{} cases", running.len());
    for case in running {
        case.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_passes_every_case() {
    passes_every_case(Reference(MemoryPersistence::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_passes_every_case_without_its_fault() {
    passes_every_case(Broken(BrokenPersistence::with(Fault::Nothing))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_database_fails_the_case_that_is_to_notice_it() {
    // What the cases of broken databases have to say is of no interest here.
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    for (fault, name) in ALL {
        // A race has to be run, and a random history has to come by: either may take some tries.
        let mut is_noticed = false;
        for _ in 0..50 {
            is_noticed = notices(*fault, name).await;
            if is_noticed {
                break;
            }
        }
        if !is_noticed {
            unnoticed.push((fault, name));
        }
    }
    let _ = std::panic::take_hook();
    assert!(unnoticed.is_empty(), "nobody noticed: {unnoticed:#?}");
}

async fn notices(fault: Fault, name: &str) -> bool {
    let broken = Broken(BrokenPersistence::with(fault));
    let case = cases::<Broken>().into_iter().find(|case| case.name == name).unwrap();
    tokio::spawn(async move { case.run(&broken).await }).await.is_err()
}

/// A case that nothing makes fail shows nothing.
#[test]
fn every_case_notices_something() {
    let idle = cases::<Broken>().into_iter().map(|case| case.name).filter(|name| {
        // What they show is shown by others as well; they are the plainest form of it.
        let plain = [
            "an_absent_session_is_not_found",
            "a_migrated_table_is_as_it_is_needed",
            "properties_are_always_the_same",
        ];
        !plain.contains(name) && ALL.iter().all(|(_, noticing)| noticing != name)
    });
    let idle = idle.collect::<Vec<_>>();
    assert!(idle.is_empty(), "no fault is made for {idle:#?}");
}
