//! Renaming a session to another key.

use std::collections::HashSet;
use std::sync::Arc;

use session_core::{ExpiryWrite, Persistence, RecordWrite, StoredKey, Version};

use super::{
    HOUR, MICRO, NOW, PersistenceFixture, another_record, assert_refused, insert, key, load, nodes, record,
    took_place, written,
};
use crate::suite::case::cases;
use crate::suite::concurrent::at_once;

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    renamed_session_is_under_its_new_key_alone => "As [`update`](Self::update), and the session is under `new`",
    rename_writes_the_record_as_an_update_does => "As [`update`](Self::update), and the session is under `new`",
    rename_of_another_version_is_a_conflict => "As [`update`](Self::update), and the session is under `new`",
    absent_session_is_not_renamed => "As [`update`](Self::update), and the session is under `new`",
    extending_rename_does_not_shorten => "As [`update`](Self::update), and the session is under `new`",
    every_rename_makes_a_new_version => "As [`update`](Self::update), and the session is under `new`",
    one_of_several_renames_of_a_session_takes_place => "As [`update`](Self::update), and the session is under `new`",
    renamed_session_is_never_under_two_keys_or_none => "As [`update`](Self::update), and the session is under `new`",
    rename_onto_a_session_changes_nothing => "When there is a row under `new`, expired or not, nothing changes",
    rename_onto_an_expired_row_changes_nothing => "When there is a row under `new`, expired or not, nothing changes",
    rename_onto_itself_changes_nothing => "When there is a row under `new`, expired or not, nothing changes",
    one_of_several_renames_to_a_key_takes_place => "When there is a row under `new`, expired or not, nothing changes",
    refused_rename_changes_nothing => "Every write is one statement",
}

/// Renames and replaces everything, whatever the version.
async fn rename(db: &impl Persistence, old: &StoredKey, new: &StoredKey) -> Version {
    let record = another_record();
    let write = RecordWrite::new(&record).with_expiry(ExpiryWrite::Replace);
    let renamed = db.rename(old, new, write, NOW).await;
    renamed.expect("a session that is there can be renamed")
}

pub async fn renamed_session_is_under_its_new_key_alone(fixture: &impl PersistenceFixture) {
    let (here, there) = (fixture.open().await, fixture.open().await);
    let (old, new) = (key(), key());
    insert(&here, &old, &record("1{}")).await;
    rename(&here, &old, &new).await;
    for node in [&there, &here] {
        assert!(load(node, &new, NOW).await.is_some(), "the session is not under its new key");
        assert_eq!(load(node, &old, NOW).await, None, "the session is still under its old key");
    }
    assert!(!here.delete(&old).await.expect("the database answers"), "nothing is under the old key");
    insert(&there, &old, &record("another session")).await;
}

pub async fn rename_writes_the_record_as_an_update_does(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
        let (old, new, record) = (key(), key(), another_record());
        let row = insert(&db, &old, &super::record("1{}")).await;
        let write = RecordWrite::new(&record).with_expected(row.version()).with_expiry(expiry);
        let renamed = db.rename(&old, &new, write, NOW).await;
        let version = renamed.expect("the session has the version that was expected");
        assert_eq!(load(&db, &new, NOW).await, Some(written(&row, &record, version)));
    }
}

pub async fn rename_of_another_version_is_a_conflict(fixture: &impl PersistenceFixture) {
    let (db, old, new) = (fixture.open().await, key(), key());
    let before = insert(&db, &old, &record("1{}")).await;
    super::replace(&db, &old, &record("2{}"), NOW).await;
    for other in [before.version(), Version::UNSAVED, Version::from_u64(fastrand::u64(..))] {
        let record = another_record();
        let write = RecordWrite::new(&record).with_expected(other);
        let renamed = db.rename(&old, &new, write, NOW).await;
        assert_refused!(renamed, Conflict);
    }
}

pub async fn absent_session_is_not_renamed(fixture: &impl PersistenceFixture) {
    let (db, never, deleted) = (fixture.open().await, key(), key());
    let row = insert(&db, &deleted, &record("1{}")).await;
    db.delete(&deleted).await.expect("the database answers");
    for old in [never, deleted] {
        for expected in [None, Some(row.version())] {
            let new = key();
            let record = another_record();
            let write = RecordWrite::new(&record).with_expected(expected);
            let renamed = db.rename(&old, &new, write, NOW).await;
            assert_refused!(renamed, NotFound);
            assert_eq!(load(&db, &old, NOW).await, None);
            assert_eq!(load(&db, &new, NOW).await, None, "a rename is no insert");
        }
    }
}

pub async fn extending_rename_does_not_shorten(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    for (expiry, shortened) in [(ExpiryWrite::Extend, false), (ExpiryWrite::Replace, true)] {
        let (old, new) = (key(), key());
        let end = insert(&db, &old, &record("1{}")).await.expires_at();
        let earlier = record("2{}").with_expires_at(NOW + MICRO);
        db.rename(&old, &new, RecordWrite::new(&earlier).with_expiry(expiry), NOW)
            .await
            .expect("it is there");
        let stays = if shortened { NOW + MICRO } else { end };
        assert_eq!(load(&db, &new, NOW).await.map(|found| found.expires_at()), Some(stays), "{expiry:?}");
    }
}

/// The session is renamed to and fro.
pub async fn every_rename_makes_a_new_version(fixture: &impl PersistenceFixture) {
    let (db, one, other) = (fixture.open().await, key(), key());
    let mut versions = HashSet::from([insert(&db, &one, &record("1{}")).await.version()]);
    for n in 0..10 {
        let (old, new) = if n % 2 == 0 { (one, other) } else { (other, one) };
        let version = rename(&db, &old, &new).await;
        assert!(versions.insert(version), "a version came back");
        assert_eq!(load(&db, &new, NOW).await.map(|found| found.version()), Some(version));
    }
}

pub async fn one_of_several_renames_of_a_session_takes_place(fixture: &impl PersistenceFixture) {
    let nodes = nodes(fixture).await;
    for round in 0..10 {
        let old = key();
        let row = insert(&*nodes[0], &old, &record("1{}")).await;
        // With an expected version, and without.
        let expected = (round % 2 == 0).then_some(row.version());
        let renamed = at_once(&nodes, 8, |db, _| async move {
            let new = key();
            let record = another_record();
            let write = RecordWrite::new(&record).with_expected(expected);
            let renamed = db.rename(&old, &new, write, NOW).await;
            (new, took_place(renamed))
        })
        .await;
        assert_eq!(
            renamed.iter().filter(|(_, renamed)| *renamed).count(),
            1,
            "the number of renames that took place"
        );
        assert_eq!(load(&*nodes[0], &old, NOW).await, None);
        for (new, renamed) in renamed {
            assert_eq!(
                load(&*nodes[1], &new, NOW).await.is_some(),
                renamed,
                "the session is under another key than the one to which it was renamed"
            );
        }
    }
}

/// A session is renamed from key to key, and other nodes look for it.
pub async fn renamed_session_is_never_under_two_keys_or_none(fixture: &impl PersistenceFixture) {
    let nodes = nodes(fixture).await;
    let keys = Arc::new((0..30).map(|_| key()).collect::<Vec<_>>());
    insert(&*nodes[0], &keys[0], &record("1{}")).await;
    let readers = nodes[1..].iter().map(|node| {
        let (node, keys) = (Arc::clone(node), Arc::clone(&keys));
        tokio::spawn(async move {
            let mut at = 0;
            while at + 1 < keys.len() {
                // In this order: if the session is under the next key, it has left this one.
                let next = load(&*node, &keys[at + 1], NOW).await.is_some();
                let here = load(&*node, &keys[at], NOW).await.is_some();
                assert!(!(next && here), "the session is under two keys");
                // If the session is no longer under this key, it has moved on, at most to the last key.
                at += usize::from(!here);
            }
            assert!(load(&*node, &keys[at], NOW).await.is_some(), "the session is under no key");
        })
    });
    let readers = readers.collect::<Vec<_>>();
    for pair in keys.windows(2) {
        rename(&*nodes[0], &pair[0], &pair[1]).await;
    }
    for reader in readers {
        reader.await.expect("the session is always under exactly one key");
    }
}

pub async fn rename_onto_a_session_changes_nothing(fixture: &impl PersistenceFixture) {
    let (db, old, new) = (fixture.open().await, key(), key());
    let row = insert(&db, &old, &record("mine")).await;
    let theirs = insert(&db, &new, &record("another session")).await;
    for expected in [None, Some(row.version())] {
        let record = another_record();
        let write = RecordWrite::new(&record).with_expected(expected);
        let renamed = db.rename(&old, &new, write, NOW).await;
        assert_refused!(renamed, AlreadyExists);
        assert_eq!(load(&db, &old, NOW).await, Some(row.clone()));
        assert_eq!(load(&db, &new, NOW).await, Some(theirs.clone()));
    }
}

pub async fn rename_onto_an_expired_row_changes_nothing(fixture: &impl PersistenceFixture) {
    let (db, old, new) = (fixture.open().await, key(), key());
    let row = insert(&db, &old, &record("mine")).await;
    let theirs = insert(&db, &new, &record("another session").with_expires_at(NOW - HOUR)).await;
    let renamed = db.rename(&old, &new, RecordWrite::new(&another_record()), NOW).await;
    assert_refused!(renamed, AlreadyExists);
    assert_eq!(load(&db, &old, NOW).await, Some(row));
    assert_eq!(load(&db, &new, NOW).await, None, "what has expired stays so");
    assert_eq!(load(&db, &new, NOW - HOUR - MICRO).await, Some(theirs));
}

pub async fn rename_onto_itself_changes_nothing(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let row = insert(&db, &key, &record("1{}")).await;
    let renamed = db.rename(&key, &key, RecordWrite::new(&another_record()), NOW).await;
    assert_refused!(renamed, AlreadyExists);
    assert_eq!(load(&db, &key, NOW).await, Some(row));
}

pub async fn one_of_several_renames_to_a_key_takes_place(fixture: &impl PersistenceFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..10 {
        let new = key();
        let mut sessions = Vec::new();
        for n in 0..6 {
            let old = key();
            sessions.push((old, insert(&*nodes[0], &old, &record(n.to_string())).await));
        }
        let keys = sessions.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        let renamed = at_once(&nodes, keys.len(), |db, n| {
            let old = keys[n];
            async move { took_place(db.rename(&old, &new, RecordWrite::new(&another_record()), NOW).await) }
        })
        .await;
        assert_eq!(
            renamed.iter().filter(|renamed| **renamed).count(),
            1,
            "the number of renames that took place"
        );
        for ((old, row), renamed) in sessions.into_iter().zip(renamed) {
            assert_eq!(load(&*nodes[1], &old, NOW).await, (!renamed).then_some(row));
        }
    }
}

pub async fn refused_rename_changes_nothing(fixture: &impl PersistenceFixture) {
    let (db, old, new) = (fixture.open().await, key(), key());
    let row = insert(&db, &old, &record("1{}")).await;
    let other = Some(Version::from_u64(fastrand::u64(..)));
    for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
        let record = another_record();
        let write = RecordWrite::new(&record).with_expected(other).with_expiry(expiry);
        assert!(!took_place(db.rename(&old, &new, write, NOW).await));
        assert_eq!(load(&db, &old, NOW).await, Some(row.clone()));
        assert_eq!(load(&db, &new, NOW).await, None);
    }
}
