//! Removing sessions, one by one and when they have expired.

use std::sync::Arc;

use session_core::{
    ExpiredSession, ExpiredSessions, ExpiryWrite, Persistence, PersistenceError, Record, RecordWrite,
    StoredKey, Timestamp,
};

use super::{Damage, HOUR, MICRO, NOW, PersistenceFixture, alone, insert, key, load, nodes, record, subject};
use crate::suite::case::{cases, skip};
use crate::suite::concurrent::at_once;

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    delete_returns_true_if_there_was_a_session => "Removes the session under `key`, expired or not. Returns `true` if there was one.",
    expired_row_can_be_deleted => "Removes the session under `key`, expired or not. Returns `true` if there was one.",
    one_of_several_deletes_of_a_session_returns_true => "Removes the session under `key`, expired or not. Returns `true` if there was one.",
    several_sessions_are_removed_and_returned => "Removes the sessions under `keys`, expired or not, and returns the keys of those that existed.",
    session_is_returned_by_one_of_several_calls_that_remove_it => "Each removed session is returned by one call that ends it, in no particular order.",
    sessions_expired_at_an_instant_or_before_are_removed => "Removes at most `limit` sessions that expired at `before` or earlier, and returns which ones it removed.",
    no_more_sessions_than_the_limit_are_removed => "Removes at most `limit` sessions that expired at `before` or earlier, and returns which ones it removed.",
    removed_sessions_are_returned_with_their_keys => "Each removed session is returned by one call, with its key and its subject.",
    removed_sessions_are_returned_with_their_subjects => "Each removed session is returned by one call, with its key and its subject.",
    expired_row_without_a_stored_key_is_removed_and_counted => "A row whose key is no stored key is removed and counted. A subject that cannot be read is left out.",
    expired_row_that_cannot_be_read_is_removed_and_returned => "A row whose key is no stored key is removed and counted. A subject that cannot be read is left out.",
    fewer_removed_than_the_limit_means_that_none_is_left => "Fewer than `limit`, without",
    session_that_lives_on_is_removed_at_its_later_expiry => "A session whose expiry was changed since it was inserted is removed at its present expiry",
    session_that_ends_earlier_is_removed_at_its_earlier_expiry => "A session whose expiry was changed since it was inserted is removed at its present expiry",
    removing_among_sessions_that_live_on_comes_to_an_end => "Calling again while there is more comes to an end.",
    several_nodes_remove_expired_sessions_at_once => "May be run by several nodes at once.",
}

pub async fn delete_returns_true_if_there_was_a_session(fixture: &impl PersistenceFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    assert!(!here.delete(&key).await.expect("the database answers"), "there was no session");
    insert(&here, &key, &record("1{}")).await;
    let other = self::key();
    let kept = insert(&here, &other, &record("2{}")).await;
    assert!(there.delete(&key).await.expect("the database answers"), "there was a session");
    assert_eq!(load(&here, &key, NOW).await, None);
    assert_eq!(load(&here, &other, NOW).await, Some(kept), "another session is gone");
    assert!(!here.delete(&key).await.expect("the database answers"), "there is no session any more");
}

pub async fn expired_row_can_be_deleted(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    insert(&db, &key, &record("1{}").with_expires_at(NOW - HOUR)).await;
    assert!(db.delete(&key).await.expect("the database answers"), "there was a session, though expired");
    assert!(!db.delete(&key).await.expect("the database answers"));
    insert(&db, &key, &record("2{}")).await;
}

pub async fn one_of_several_deletes_of_a_session_returns_true(fixture: &impl PersistenceFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..10 {
        let key = key();
        insert(&*nodes[0], &key, &record("1{}")).await;
        let deleted =
            at_once(&nodes, 8, |db, _| async move { db.delete(&key).await.expect("the database answers") });
        let deleted = deleted.await.into_iter().filter(|deleted| *deleted).count();
        assert_eq!(deleted, 1, "the number of deletes that returned `true`");
    }
}

async fn delete_all(db: &impl Persistence, keys: &[StoredKey]) -> Vec<StoredKey> {
    sorted(db.delete_all(keys).await.expect("the database answers"))
}

fn sorted(mut keys: Vec<StoredKey>) -> Vec<StoredKey> {
    keys.sort_by_key(|key| key.as_str().to_owned());
    keys
}

pub async fn several_sessions_are_removed_and_returned(fixture: &impl PersistenceFixture) {
    let (here, there) = (fixture.open().await, fixture.open().await);
    let parsed =
        |text: &str| StoredKey::parse(&format!("{text}{}", key().as_str().get(..20).expect("it is longer")));
    let odd = parsed(r#"a"b\c',d"#).expect("visible ASCII");
    let (expired, absent, kept) = (key(), key(), key());
    let mut removed: Vec<_> = (0..20).map(|_| key()).chain([odd]).collect();
    for key in &removed {
        insert(&here, key, &record("1{}")).await;
    }
    insert(&here, &expired, &record("1{}").with_expires_at(NOW - HOUR)).await;
    let left = insert(&here, &kept, &record("2{}")).await;
    removed.push(expired);
    let mut keys = removed.clone();
    keys.insert(0, absent);
    assert!(
        delete_all(&there, &keys).await == sorted(removed),
        "those are returned that existed, and no others"
    );
    for key in &keys {
        assert_eq!(load(&here, key, NOW - 2 * HOUR).await, None);
    }
    assert_eq!(load(&here, &kept, NOW).await, Some(left), "another session is gone");
    assert!(delete_all(&here, &keys).await.is_empty(), "they are gone already");
    assert!(delete_all(&here, &[]).await.is_empty(), "nothing was asked for");
}

pub async fn session_is_returned_by_one_of_several_calls_that_remove_it(fixture: &impl PersistenceFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..5 {
        let keys: Arc<[_]> = (0..20).map(|_| key()).collect();
        for key in &*keys {
            insert(&*nodes[0], key, &record("1{}")).await;
        }
        // A statement that was undone for the sake of another is tried again.
        let removed = at_once(&nodes, 4, |db, _| {
            let keys = Arc::clone(&keys);
            async move {
                loop {
                    match db.delete_all(&keys).await {
                        Ok(removed) => return removed,
                        Err(error) => assert!(matches!(error, PersistenceError::Busy(_)), "{error}"),
                    }
                }
            }
        });
        let removed = sorted(removed.await.concat());
        assert!(removed == sorted(keys.to_vec()), "each is returned once");
    }
}

/// An instant before the expiry of every session and note of other cases.
pub(crate) const THEN: Timestamp = Timestamp::from_secs(-500_000_000);

/// Adds sessions that expire at these instants.
async fn expiring(db: &impl Persistence, ends: impl IntoIterator<Item = Timestamp>) -> Vec<StoredKey> {
    let mut keys = Vec::new();
    for ends_at in ends {
        let key = key();
        insert(db, &key, &Record::new("1{}".into(), ends_at - HOUR, ends_at)).await;
        keys.push(key);
    }
    keys
}

async fn delete_expired(db: &impl Persistence, before: Timestamp, limit: u32) -> u64 {
    remove(db, before, limit).await.count
}

async fn remove(db: &impl Persistence, before: Timestamp, limit: u32) -> ExpiredSessions {
    db.delete_expired(before, limit).await.expect("the database answers")
}

/// Removes the sessions that an aborted run may have left.
async fn clear(db: &impl Persistence) {
    delete_all_expired(db, THEN + HOUR, 1_000).await;
}

/// Returns `true` if there is a row, expired or not.
async fn is_there(db: &impl Persistence, key: &StoredKey) -> bool {
    load(db, key, THEN - HOUR).await.is_some()
}

pub async fn sessions_expired_at_an_instant_or_before_are_removed(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let removed = expiring(&db, [THEN - 10 * MICRO, THEN - MICRO, THEN]).await;
    let kept = expiring(&db, [THEN + MICRO, THEN + HOUR]).await;
    let living = expiring(&db, [NOW, Timestamp::MAX]).await;
    assert_eq!(delete_expired(&db, THEN, 100).await, 3);
    for key in removed {
        assert!(!is_there(&db, &key).await, "it had expired");
    }
    for key in kept.iter().chain(&living) {
        assert!(is_there(&db, key).await, "it had not expired");
    }
    assert_eq!(delete_expired(&db, THEN + HOUR, 100).await, 2);
    for key in living {
        assert!(db.delete(&key).await.expect("the database answers"));
    }
}

pub async fn no_more_sessions_than_the_limit_are_removed(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let keys = expiring(&db, (0..10).map(|n| THEN - n * MICRO)).await;
    for (limit, removed, left) in [(1, 1, 9), (4, 4, 5), (4, 4, 1), (4, 1, 0), (4, 0, 0)] {
        assert_eq!(delete_expired(&db, THEN, limit).await, removed);
        let mut there = 0;
        for key in &keys {
            there += usize::from(is_there(&db, key).await);
        }
        assert_eq!(there, left, "the number of sessions that are left");
    }
}

pub async fn removed_sessions_are_returned_with_their_keys(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let mut keys = expiring(&db, (0..5).map(|n| THEN - n * MICRO)).await;
    expiring(&db, [THEN + MICRO]).await;
    let mut returned = Vec::new();
    for count in [3, 2, 0] {
        let removed = remove(&db, THEN, 3).await;
        assert_eq!(removed.count, count);
        assert_eq!(removed.sessions.len() as u64, count, "the number of sessions that are returned");
        returned.extend(removed.sessions.into_iter().map(|session| session.key));
    }
    keys.sort_by_key(|key| key.as_str().to_owned());
    returned.sort_by_key(|key| key.as_str().to_owned());
    assert!(returned == keys, "the removed sessions are returned, each once");
    clear(&db).await;
}

pub async fn removed_sessions_are_returned_with_their_subjects(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let subjects = [None, subject("user-42"), subject("\u{1f980} \u{e9}")];
    let mut expected = Vec::new();
    for subject in subjects {
        let (key, record) = (key(), Record::new("1{}".into(), THEN - HOUR, THEN));
        insert(&db, &key, &record.with_subject(subject.clone())).await;
        expected.push(ExpiredSession::new(key, subject));
    }
    let mut removed = remove(&db, THEN, 10).await.sessions;
    for sessions in [&mut expected, &mut removed] {
        sessions.sort_by_key(|session| session.key.as_str().to_owned());
    }
    assert!(removed == expected, "each removed session is returned with its subject");
}

pub async fn expired_row_without_a_stored_key_is_removed_and_counted(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let keys = expiring(&db, [THEN - MICRO, THEN]).await;
    if !fixture.damage(&keys[0], Damage::Key).await {
        clear(&db).await;
        return skip("the fixture cannot make keys unreadable");
    }
    let removed = remove(&db, THEN, 2).await;
    assert_eq!(removed.count, 2, "the number of rows that are removed");
    let returned = removed.sessions.iter().map(|session| session.key);
    assert!(returned.eq([keys[1]]), "the row with a stored key is returned, and no other");
    assert_eq!(delete_expired(&db, THEN, 2).await, 0);
}

pub async fn expired_row_that_cannot_be_read_is_removed_and_returned(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let keys = expiring(&db, [THEN]).await;
    if !fixture.damage(&keys[0], Damage::Record).await {
        clear(&db).await;
        return skip("the fixture cannot make a row unreadable");
    }
    let removed = remove(&db, THEN, 2).await;
    assert!(removed == ExpiredSessions::new(1, vec![ExpiredSession::new(keys[0], None)]));
    assert_eq!(delete_expired(&db, THEN, 2).await, 0);
}

/// Removes all sessions that expired at `before` or earlier, at most `limit` at a time, and returns how many.
async fn delete_all_expired(db: &impl Persistence, before: Timestamp, limit: u32) -> u64 {
    let mut removed = 0;
    for _ in 0..1_000 {
        // A database in memory never waits, and would keep other tasks from running.
        tokio::task::yield_now().await;
        let batch = remove(db, before, limit).await;
        removed += batch.count;
        if !batch.is_unfinished(limit) {
            return removed;
        }
        assert!(batch.count <= u64::from(limit), "more were removed than the limit");
    }
    panic!("there is more, call after call");
}

pub async fn fewer_removed_than_the_limit_means_that_none_is_left(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    // Some of them expired at the same moment.
    let keys = expiring(&db, (0..25).map(|n| THEN - (n / 5) * MICRO)).await;
    assert_eq!(delete_all_expired(&db, THEN, 7).await, 25);
    for key in &keys {
        assert!(!is_there(&db, key).await, "a session is left, though fewer than the limit were removed");
    }
    assert_eq!(delete_expired(&db, THEN, 7).await, 0);
}

pub async fn session_that_lives_on_is_removed_at_its_later_expiry(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let (began, first_end) = (THEN - 3 * HOUR, THEN - 2 * HOUR);
    let later = Record::new("2{}".into(), began, THEN);
    let keys = expiring(&db, [first_end; 4]).await;
    let (extend, replace) = (ExpiryWrite::Extend, ExpiryWrite::Replace);
    db.touch(&keys[0], THEN, Timestamp::MAX, began).await.expect("it is there");
    db.update(&keys[1], RecordWrite::new(&later).with_expiry(extend), began).await.expect("it is there");
    db.update(&keys[2], RecordWrite::new(&later).with_expiry(replace), began).await.expect("it is there");
    let renamed = key();
    db.rename(&keys[3], &renamed, RecordWrite::new(&later).with_expiry(extend), began)
        .await
        .expect("it is there");
    let living = [keys[0], keys[1], keys[2], renamed];
    for before in [first_end, first_end, THEN - MICRO] {
        assert_eq!(delete_all_expired(&db, before, 100).await, 0, "they live on");
        for key in &living {
            assert!(is_there(&db, key).await, "it lives on");
        }
    }
    // It is prolonged once more after it was passed over.
    db.touch(&keys[0], THEN + MICRO, Timestamp::MAX, began).await.expect("it is there");
    assert_eq!(delete_all_expired(&db, THEN, 100).await, 3);
    assert_eq!(delete_all_expired(&db, THEN + MICRO, 100).await, 1);
    for key in &living {
        assert!(!is_there(&db, key).await, "it had expired");
    }
}

pub async fn session_that_ends_earlier_is_removed_at_its_earlier_expiry(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let began = THEN - HOUR;
    let keys = expiring(&db, [NOW, Timestamp::MAX, NOW]).await;
    let earlier = Record::new("2{}".into(), began, THEN);
    for key in &keys[..2] {
        db.update(key, RecordWrite::new(&earlier).with_expiry(ExpiryWrite::Replace), began)
            .await
            .expect("it is there");
    }
    let renamed = key();
    let write = RecordWrite::new(&earlier).with_expiry(ExpiryWrite::Replace);
    let moved = db.rename(&keys[2], &renamed, write, began).await;
    moved.expect("it is there");
    assert_eq!(delete_all_expired(&db, THEN - MICRO, 100).await, 0);
    assert_eq!(delete_all_expired(&db, THEN, 100).await, 3);
    for key in [keys[0], keys[1], renamed] {
        assert!(!is_there(&db, &key).await, "it had expired");
    }
}

pub async fn removing_among_sessions_that_live_on_comes_to_an_end(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    clear(&db).await;
    let began = THEN - HOUR - MICRO;
    let keys = expiring(&db, (0..20).map(|n| THEN - n * MICRO)).await;
    for key in keys.iter().step_by(2) {
        db.touch(key, THEN + HOUR, Timestamp::MAX, began).await.expect("it is there");
    }
    for limit in [1, 3] {
        let left = if limit == 1 { 10 } else { 0 };
        assert_eq!(delete_all_expired(&db, THEN, limit).await, left);
    }
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(is_there(&db, key).await, n % 2 == 0, "those that live on are left, and no others");
    }
    clear(&db).await;
}

pub async fn several_nodes_remove_expired_sessions_at_once(fixture: &impl PersistenceFixture) {
    let (nodes, _alone) = (nodes(fixture).await, alone().await);
    clear(&*nodes[0]).await;
    let keys = expiring(&*nodes[0], (0..60).map(|n| THEN - n * MICRO)).await;
    let removed = at_once(&nodes, 4, |db, _| async move { delete_all_expired(&*db, THEN, 7).await }).await;
    assert_eq!(removed.iter().sum::<u64>(), 60, "each session was removed by one node: {removed:?}");
    for key in &keys {
        assert!(!is_there(&*nodes[0], key).await);
    }
}
