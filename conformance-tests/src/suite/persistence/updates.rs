//! Replacing the contents of a session.

use std::collections::HashSet;

use session_core::{ExpiryWrite, Persistence, Record, RecordWrite, Version};

use super::{
    HOUR, MICRO, NOW, PersistenceFixture, another_record, assert_refused, insert, key, load, nodes, record,
    replace, took_place, written,
};
use crate::suite::case::cases;
use crate::suite::concurrent::at_once;

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    update_replaces_payload_subject_expiry_and_last_use => "Replaces payload, subject, expiry and last use",
    update_of_another_version_is_a_conflict => "With an expected version, only if the session has it",
    update_that_expects_no_version_replaces_any => "With an expected version, only if the session has it",
    one_of_several_updates_of_a_version_takes_place => "With an expected version, only if the session has it",
    committed_update_is_never_lost_among_many => "With an expected version, only if the session has it",
    refused_update_changes_nothing => "Every write is one statement",
    every_update_makes_a_new_version => "The new version is one that this key has never had.",
    absent_session_is_not_updated => "A session that is absent or expired is never written",
    update_brings_no_deleted_session_back => "A session that is absent or expired is never written",
    extending_update_does_not_shorten => "[`ExpiryWrite::Extend`] never makes the expiry earlier.",
    update_that_replaces_the_expiry_may_shorten => "The row gets the record's expiry, also when it is earlier",
}

pub async fn update_replaces_payload_subject_expiry_and_last_use(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
        let key = key();
        let mut row = insert(&db, &key, &record("1{}")).await;
        let bare = Record::new("2{}".into(), NOW, another_record().expires_at());
        for new in [another_record(), bare, another_record()] {
            let write = RecordWrite::new(&new).with_expected(row.version()).with_expiry(expiry);
            let updated = db.update(&key, write, NOW).await;
            row = written(&row, &new, updated.expect("the session has the version that was expected"));
            assert_eq!(load(&db, &key, NOW).await, Some(row.clone()));
        }
    }
}

pub async fn update_of_another_version_is_a_conflict(fixture: &impl PersistenceFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    let old = insert(&here, &key, &record("1{}")).await;
    let version = replace(&there, &key, &record("2{}"), NOW).await;
    let expiry = ExpiryWrite::Extend;
    for other in [old.version(), Version::UNSAVED, Version::from_u64(fastrand::u64(..))] {
        for node in [&here, &there] {
            let record = record("3{}");
            let write = RecordWrite::new(&record).with_expected(other).with_expiry(expiry);
            assert_refused!(node.update(&key, write, NOW).await, Conflict);
        }
    }
    let record = record("3{}");
    let write = RecordWrite::new(&record).with_expected(version).with_expiry(expiry);
    let updated = here.update(&key, write, NOW).await;
    updated.expect("the session has this version");
}

pub async fn update_that_expects_no_version_replaces_any(fixture: &impl PersistenceFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    insert(&here, &key, &record("1{}")).await;
    for (node, payload) in [(&here, "2"), (&there, "3"), (&here, "4")] {
        replace(node, &key, &record(payload), NOW).await;
        let found = load(&there, &key, NOW).await.expect("it is there");
        assert_eq!(found.payload().as_ref(), payload.as_bytes());
    }
}

pub async fn one_of_several_updates_of_a_version_takes_place(fixture: &impl PersistenceFixture) {
    let (nodes, key) = (nodes(fixture).await, key());
    let mut row = insert(&*nodes[0], &key, &record("0")).await;
    for round in 0..10 {
        let expected = Some(row.version());
        let updated = at_once(&nodes, 8, |db, n| async move {
            let record = record(format!("{round}.{n}"));
            let updated = db.update(&key, RecordWrite::new(&record).with_expected(expected), NOW).await;
            updated.as_ref().ok().map(|version| record.with_version(*version)).filter(|_| took_place(updated))
        });
        let updated = updated.await.into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(updated.len(), 1, "the number of updates that took place");
        row = load(&*nodes[1], &key, NOW).await.expect("it is there");
        assert_eq!(Some(&row), updated.first());
    }
}

/// Several tasks increment a counter by load and update. At the end, it must show all their increments.
pub async fn committed_update_is_never_lost_among_many(fixture: &impl PersistenceFixture) {
    const TASKS: usize = 4;
    const EACH: usize = 10;
    let (nodes, key) = (nodes(fixture).await, key());
    insert(&*nodes[0], &key, &record("0")).await;
    let count = |found: &Record| std::str::from_utf8(found.payload()).unwrap().parse::<usize>().unwrap();
    at_once(&nodes, TASKS, |db, _| async move {
        let mut counted = 0;
        while counted < EACH {
            let found = load(&*db, &key, NOW).await.expect("it is there");
            let next = record((count(&found) + 1).to_string());
            let updated = db.update(&key, RecordWrite::new(&next).with_expected(found.version()), NOW).await;
            counted += usize::from(took_place(updated));
        }
    })
    .await;
    let end = load(&*nodes[0], &key, NOW).await.expect("it is there");
    assert_eq!(count(&end), TASKS * EACH);
}

pub async fn refused_update_changes_nothing(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let row = insert(&db, &key, &record("1{}")).await;
    let other = Some(Version::from_u64(fastrand::u64(..)));
    for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
        let record = another_record();
        let write = RecordWrite::new(&record).with_expected(other).with_expiry(expiry);
        assert!(!took_place(db.update(&key, write, NOW).await));
        assert_eq!(load(&db, &key, NOW).await, Some(row.clone()));
    }
}

pub async fn every_update_makes_a_new_version(fixture: &impl PersistenceFixture) {
    let (db, key, record) = (fixture.open().await, key(), record("1{}"));
    let first = insert(&db, &key, &record).await.version();
    let mut versions = HashSet::from([first]);
    for _ in 0..20 {
        // The version is new even when nothing else changes.
        let version = replace(&db, &key, &record, NOW).await;
        assert!(versions.insert(version), "a version came back");
        assert_eq!(load(&db, &key, NOW).await.map(|found| found.version()), Some(version));
    }
}

pub async fn absent_session_is_not_updated(fixture: &impl PersistenceFixture) {
    let (db, never, deleted) = (fixture.open().await, key(), key());
    let row = insert(&db, &deleted, &record("1{}")).await;
    db.delete(&deleted).await.expect("the database answers");
    for key in [never, deleted] {
        for expected in [None, Some(Version::UNSAVED), Some(row.version())] {
            for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
                let record = record("2{}");
                let write = RecordWrite::new(&record).with_expected(expected).with_expiry(expiry);
                assert_refused!(db.update(&key, write, NOW).await, NotFound);
                assert_eq!(load(&db, &key, NOW).await, None, "an update is no insert");
            }
        }
    }
}

pub async fn update_brings_no_deleted_session_back(fixture: &impl PersistenceFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..10 {
        let key = key();
        insert(&*nodes[0], &key, &record("1{}")).await;
        at_once(&nodes, 6, |db, n| async move {
            match n {
                2 => assert!(db.delete(&key).await.expect("the database answers")),
                _ => drop(took_place(db.update(&key, RecordWrite::new(&record("2{}")), NOW).await)),
            }
        })
        .await;
        assert_eq!(load(&*nodes[0], &key, NOW).await, None, "the deleted session is back");
    }
}

pub async fn extending_update_does_not_shorten(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let row = insert(&db, &key, &record("1{}")).await;
    let end = row.expires_at();
    for (written, stays) in
        [(end - MICRO, end), (NOW - HOUR, end), (end, end), (end + MICRO, end + MICRO), (end, end + MICRO)]
    {
        let record = record("2{}").with_expires_at(written);
        let updated = db.update(&key, RecordWrite::new(&record), NOW).await;
        updated.expect("it is there");
        assert_eq!(load(&db, &key, NOW).await.map(|found| found.expires_at()), Some(stays));
    }
}

pub async fn update_that_replaces_the_expiry_may_shorten(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let end = insert(&db, &key, &record("1{}")).await.expires_at();
    for chosen in [end - MICRO, end + HOUR, NOW + MICRO] {
        replace(&db, &key, &record("2{}").with_expires_at(chosen), NOW).await;
        assert_eq!(load(&db, &key, NOW).await.map(|found| found.expires_at()), Some(chosen));
    }
    replace(&db, &key, &record("3{}").with_expires_at(NOW), NOW).await;
    assert_eq!(load(&db, &key, NOW).await, None, "it ends now");
}
