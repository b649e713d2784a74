//! The test of the suite itself: the reference database passes, and each broken one fails the case for its
//! fault.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "broken/persistence/mod.rs"]
mod broken;

use std::sync::Arc;

use conformance_tests::persistence::{self, Damage, PersistenceFixture};
use conformance_tests::reference::MemoryPersistence;
use conformance_tests::{Case, rotations, scan, subject_index};
use session_core::{Rotations, Scan, StoredKey, SubjectIndex};

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

fn cases<F: PersistenceFixture<Persistence: SubjectIndex + Scan + Rotations>>() -> Vec<Case<F>> {
    let parts = [persistence::cases(), subject_index::cases(), scan::cases(), rotations::cases()];
    parts.into_iter().flatten().collect()
}

/// Fails unless every case passes, and returns those that were skipped.
async fn pass_every_case<F: PersistenceFixture<Persistence: SubjectIndex + Scan + Rotations>>(
    fixture: F,
) -> Vec<&'static str> {
    let fixture = Arc::new(fixture);
    let running = cases().into_iter().map(|case| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move { case.run(&*fixture).await.map(|_| case.name) })
    });
    let running = running.collect::<Vec<_>>();
    assert!(running.len() > 50, "{} cases", running.len());
    let mut skipped = Vec::new();
    for case in running {
        skipped.extend(case.await.unwrap());
    }
    skipped
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reference_passes_every_case() {
    assert_eq!(pass_every_case(Reference(MemoryPersistence::default())).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn breakable_database_without_a_fault_passes_every_case() {
    assert_eq!(pass_every_case(Broken(BrokenPersistence::with(Fault::Nothing))).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fixture_without_capabilities_skips_the_cases_that_need_them() {
    let db = MemoryPersistence::default();
    let skipped = pass_every_case(move || std::future::ready(db.clone())).await;
    assert_eq!(
        skipped,
        [
            "expired_row_without_a_stored_key_is_removed_and_counted",
            "expired_row_that_cannot_be_read_is_removed_and_returned",
            "several_nodes_can_make_the_table_at_once",
            "missing_table_is_reported_and_not_made",
            "row_with_unreadable_times_is_listed_in_its_place",
            "session_without_a_stored_key_is_not_listed",
            "unreadable_row_is_in_its_place",
            "row_without_a_stored_key_is_skipped",
            "expired_sessions_are_removed_without_a_table_of_notes",
            "several_nodes_can_make_the_table_of_notes_at_once",
            "table_of_notes_needs_no_session_table",
            "missing_table_of_notes_is_reported_and_not_made",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_database_fails_the_case_for_its_fault() {
    // The messages of the failing cases are of no interest here.
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    for (fault, name) in ALL {
        // A case that needs a race or a certain random history may take several tries.
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
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:#?}");
}

async fn notices(fault: Fault, name: &str) -> bool {
    let broken = Broken(BrokenPersistence::with(fault));
    let case = cases::<Broken>().into_iter().find(|case| case.name == name).unwrap();
    tokio::spawn(async move { case.run(&broken).await }).await.is_err()
}

/// A case that no fault makes fail shows nothing.
#[test]
fn every_case_notices_something() {
    let idle = cases::<Broken>().into_iter().map(|case| case.name).filter(|name| {
        // The plainest form of what other cases show as well.
        let plain = [
            "absent_session_is_not_found",
            "migrated_table_passes_the_check",
            "properties_are_always_the_same",
        ];
        !plain.contains(name) && ALL.iter().all(|(_, noticing)| noticing != name)
    });
    let idle = idle.collect::<Vec<_>>();
    assert!(idle.is_empty(), "no fault is made for {idle:#?}");
}
