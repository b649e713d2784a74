//! Adding a session.

use std::collections::HashSet;

use session_core::{Persistence, Version};

use super::{
    HOUR, MICRO, NOW, PersistenceFixture, another_record, assert_refused, insert, key, load, nodes, record,
    replace, took_place,
};
use crate::suite::case::cases;
use crate::suite::concurrent::at_once;

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    insert_leaves_an_existing_session_as_it_is => "A row that is there, expired or not, is left as it is",
    insert_leaves_an_expired_row_as_it_is => "A row that is there, expired or not, is left as it is",
    one_of_several_inserts_of_a_key_takes_place => "A row that is there, expired or not, is left as it is",
    insert_returns_the_version_that_is_found => "The record's own version does not count.",
    session_made_again_has_new_versions => "The version is one that this key has never had.",
}

pub async fn insert_leaves_an_existing_session_as_it_is(fixture: &impl PersistenceFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    let row = insert(&here, &key, &record("1{}")).await;
    for node in [&here, &there] {
        assert_refused!(node.insert(&key, &another_record()).await, AlreadyExists);
        assert_eq!(load(node, &key, NOW).await, Some(row.clone()));
    }
}

pub async fn insert_leaves_an_expired_row_as_it_is(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let expired = record("1{}").with_expires_at(NOW - HOUR);
    let row = insert(&db, &key, &expired).await;
    assert_refused!(db.insert(&key, &another_record()).await, AlreadyExists);
    assert_eq!(load(&db, &key, NOW).await, None, "the row is still expired");
    assert_eq!(load(&db, &key, NOW - HOUR - MICRO).await, Some(row));
}

pub async fn one_of_several_inserts_of_a_key_takes_place(fixture: &impl PersistenceFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..10 {
        let key = key();
        let inserted = at_once(&nodes, 8, |db, n| async move {
            let record = record(n.to_string());
            let inserted = db.insert(&key, &record).await;
            inserted
                .as_ref()
                .ok()
                .map(|version| record.with_version(*version))
                .filter(|_| took_place(inserted))
        });
        let inserted = inserted.await.into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(inserted.len(), 1, "the number of inserts that took place");
        assert_eq!(load(&*nodes[0], &key, NOW).await.as_ref(), inserted.first(), "it is there");
    }
}

pub async fn insert_returns_the_version_that_is_found(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    for own in [Version::UNSAVED, Version::from_u64(1), Version::from_u64(fastrand::u64(..))] {
        let key = key();
        let returned = db.insert(&key, &record("1{}").with_version(own)).await.expect("the key is new");
        assert_eq!(load(&db, &key, NOW).await.map(|found| found.version()), Some(returned));
        assert_ne!(returned, own, "the record's own version does not count");
        assert_ne!(returned, Version::UNSAVED, "this version stands for a record that is in no database");
    }
}

pub async fn session_made_again_has_new_versions(fixture: &impl PersistenceFixture) {
    let (db, key, record) = (fixture.open().await, key(), record("1{}"));
    let mut versions = HashSet::new();
    for _ in 0..10 {
        assert!(versions.insert(insert(&db, &key, &record).await.version()), "a version came back");
        assert!(versions.insert(replace(&db, &key, &record, NOW).await), "a version came back");
        db.delete(&key).await.expect("the database answers");
    }
}
