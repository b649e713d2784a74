//! Noting that a session is used.

use session_core::{Persistence, RecordWrite, Timestamp};

use super::{
    HOUR, MICRO, MINUTE, NOW, PersistenceFixture, assert_refused, insert, key, load, nodes, record,
    took_place,
};
use crate::suite::case::cases;
use crate::suite::concurrent::at_once;

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    touch_prolongs_and_notes_the_use => "Notes that the session under `key` is used at `now`",
    touch_changes_neither_payload_nor_version => "Neither the payload nor the version changes.",
    touch_does_not_shorten => "Never makes the expiry earlier, nor the last use.",
    late_touch_does_not_turn_the_last_use_back => "Never makes the expiry earlier, nor the last use.",
    latest_of_several_concurrent_touches_counts => "Never makes the expiry earlier, nor the last use.",
    touch_that_is_not_due_changes_nothing => "Notes that the session under `key` is used at `now`",
    one_of_several_due_touches_is_written => "Notes that the session under `key` is used at `now`",
    touch_without_a_condition_is_always_written => "With [`Timestamp::MAX`] as `idle_since`, every touch is written.",
    absent_session_is_not_touched => "A session that is absent or expired stays so",
    touch_brings_no_deleted_session_back => "A session that is absent or expired stays so",
}

pub async fn touch_prolongs_and_notes_the_use(fixture: &impl PersistenceFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    let row = insert(&here, &key, &record("1{}")).await;
    for n in 1..4 {
        let (now, end) = (NOW + n * MICRO, row.expires_at() + n * MICRO);
        here.touch(&key, end, Timestamp::MAX, now).await.expect("it is there");
        let touched = row.clone().with_last_seen_at(now).with_expires_at(end);
        assert_eq!(load(&there, &key, end - MICRO).await, Some(touched), "it lives longer");
        assert_eq!(load(&there, &key, end).await, None, "and not longer than that");
    }
}

pub async fn touch_changes_neither_payload_nor_version(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let row = insert(&db, &key, &record(b"\0\xffpayload".to_vec())).await;
    db.touch(&key, NOW + 2 * HOUR, Timestamp::MAX, NOW).await.expect("it is there");
    let found = load(&db, &key, NOW).await.expect("it is there");
    assert_eq!(found.payload(), row.payload());
    assert_eq!(found.version(), row.version());
    assert_eq!(found.subject(), row.subject());
    let expected = Some(row.version());
    let updated = db.update(&key, RecordWrite::new(&row).with_expected(expected), NOW).await;
    updated.expect("a touch causes no conflict");
}

pub async fn touch_does_not_shorten(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let end = insert(&db, &key, &record("1{}")).await.expires_at();
    for earlier in [end - MICRO, NOW + MICRO, NOW - HOUR, end] {
        db.touch(&key, earlier, Timestamp::MAX, NOW).await.expect("it is there");
        assert_eq!(load(&db, &key, NOW).await.map(|found| found.expires_at()), Some(end));
    }
}

pub async fn late_touch_does_not_turn_the_last_use_back(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    let end = insert(&db, &key, &record("1{}")).await.expires_at();
    for (now, last_use) in [(NOW, NOW), (NOW - MICRO, NOW), (NOW - HOUR, NOW), (NOW + MICRO, NOW + MICRO)] {
        db.touch(&key, end, Timestamp::MAX, now).await.expect("it is there");
        assert_eq!(load(&db, &key, NOW).await.map(|found| found.last_seen_at()), Some(last_use));
    }
}

pub async fn latest_of_several_concurrent_touches_counts(fixture: &impl PersistenceFixture) {
    const ROUNDS: u32 = 5;
    const TOUCHES: u32 = 8;
    let (nodes, key) = (nodes(fixture).await, key());
    let row = insert(&*nodes[0], &key, &record("1{}")).await;
    for round in 1..=ROUNDS {
        at_once(&nodes, TOUCHES as usize, |db, n| async move {
            // In no particular order.
            let n = round * TOUCHES + (u32::try_from(n).unwrap() * 5) % TOUCHES;
            db.touch(&key, NOW + HOUR + n * MINUTE, Timestamp::MAX, NOW + n * MICRO)
                .await
                .expect("it is there");
        })
        .await;
        let n = round * TOUCHES + TOUCHES - 1;
        let latest = row.clone().with_expires_at(NOW + HOUR + n * MINUTE).with_last_seen_at(NOW + n * MICRO);
        assert_eq!(load(&*nodes[1], &key, NOW).await, Some(latest));
    }
}

pub async fn touch_that_is_not_due_changes_nothing(fixture: &impl PersistenceFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    let row = insert(&here, &key, &record("1{}")).await;
    let (used, end) = (row.last_seen_at(), row.expires_at() + HOUR);
    let touched = here.touch(&key, end, used - MICRO, NOW).await;
    assert!(!touched.expect("it is there"), "the session was used since then");
    assert_eq!(load(&there, &key, NOW).await, Some(row.clone()), "the session has changed");
    let touched = here.touch(&key, end, used, NOW).await;
    assert!(touched.expect("it is there"), "the session was last used at that instant");
    let row = row.with_last_seen_at(NOW).with_expires_at(end);
    assert_eq!(load(&there, &key, NOW).await, Some(row.clone()));
    // Another node, with an older view of the session.
    let touched = there.touch(&key, end + HOUR, used, NOW + MICRO).await;
    assert!(!touched.expect("it is there"), "another node has noted the use");
    assert_eq!(load(&here, &key, NOW).await, Some(row));
    assert_refused!(here.touch(&self::key(), end, used, NOW).await, NotFound);
    assert_refused!(here.touch(&key, end + HOUR, used, end).await, NotFound);
}

pub async fn one_of_several_due_touches_is_written(fixture: &impl PersistenceFixture) {
    let (nodes, key) = (nodes(fixture).await, key());
    let row = insert(&*nodes[0], &key, &record("1{}")).await;
    for round in 1..4 {
        let (before, now) = (NOW + (round - 1) * MINUTE, NOW + round * MINUTE);
        let written = at_once(&nodes, 8, |db, _| async move {
            db.touch(&key, now + HOUR, before, now).await.expect("it is there")
        })
        .await;
        let count = written.into_iter().filter(|is_written| *is_written).count();
        assert_eq!(count, 1, "the number of 8 touches that were written in round {round}");
        let touched = row.clone().with_last_seen_at(now).with_expires_at(now + HOUR);
        assert_eq!(load(&*nodes[1], &key, now).await, Some(touched));
    }
}

pub async fn touch_without_a_condition_is_always_written(fixture: &impl PersistenceFixture) {
    let (db, key) = (fixture.open().await, key());
    // The last use is later than any clock shows, and the touch comes again at the same instant.
    let row = insert(&db, &key, &record("1{}").with_last_seen_at(NOW + HOUR)).await;
    for n in [1, 1, 2] {
        let end = row.expires_at() + n * MINUTE;
        let touched = db.touch(&key, end, Timestamp::MAX, NOW).await.expect("it is there");
        assert!(touched, "a touch without a condition is always written");
        assert_eq!(load(&db, &key, NOW).await.map(|found| found.expires_at()), Some(end));
    }
}

pub async fn absent_session_is_not_touched(fixture: &impl PersistenceFixture) {
    let (db, never, deleted) = (fixture.open().await, key(), key());
    insert(&db, &deleted, &record("1{}")).await;
    db.delete(&deleted).await.expect("the database answers");
    for key in [never, deleted] {
        assert_refused!(db.touch(&key, NOW + HOUR, Timestamp::MAX, NOW).await, NotFound);
        assert_eq!(load(&db, &key, NOW).await, None, "a touch is no insert");
    }
}

pub async fn touch_brings_no_deleted_session_back(fixture: &impl PersistenceFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..10 {
        let key = key();
        insert(&*nodes[0], &key, &record("1{}")).await;
        at_once(&nodes, 6, |db, n| async move {
            match n {
                2 => assert!(db.delete(&key).await.expect("the database answers")),
                _ => drop(took_place(db.touch(&key, NOW + 2 * HOUR, Timestamp::MAX, NOW).await)),
            }
        })
        .await;
        assert_eq!(load(&*nodes[0], &key, NOW).await, None, "the deleted session is back");
    }
}
