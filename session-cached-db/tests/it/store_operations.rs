//! Operations that reach the database: save, create, delete, flush, cycle_key, touch.

use session_cached_db::{Coherence, Error, Session};
use session_core::{
    Codec, Expiry, ExpiryWrite, JsonCodec, Record, Runtime as _, SessionData, SessionKey, StoredKey,
};

use crate::common::{
    Call, DAY, HOUR, MINUTE, SECOND, START, World, each_database, each_database_with, key_of, map, values_of,
};

fn stored_key(session: &Session) -> StoredKey {
    *session.stored_key().unwrap()
}

#[tokio::test]
async fn save_stores_the_session() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        assert!(!session.exists().await.unwrap());
        session.insert("x", 1).unwrap();
        assert_eq!(session.save().await.unwrap(), Coherence::Coherent);
        assert!(session.exists().await.unwrap());
        assert!(!session.modified());
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        assert_eq!(world.in_database(&stored_key(&session)).await, Some(map([("x", 1)])));
    })
    .await;
}

#[tokio::test]
async fn delete_ends_the_session() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        session.delete().await.unwrap();
        assert!(!session.exists().await.unwrap());
        assert_eq!(world.in_database(&stored_key(&session)).await, None);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn deleting_a_missing_session_succeeds() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        session.delete().await.unwrap();
        session.delete().await.unwrap();
        world.forget_calls();
        world.store.new_session().delete().await.unwrap();
        assert_eq!(world.calls(), 0);
    })
    .await;
}

#[tokio::test]
async fn flush_leaves_a_new_session_and_no_row() {
    each_database(async |world| {
        let mut session = world.saved([("foo", 1)]).await;
        let old_key = key_of(&session);
        let old_stored_key = stored_key(&session);
        session.insert("not saved", 2).unwrap();
        session.set_subject("user-42").unwrap();
        session.flush().await.unwrap();
        assert_eq!(session.subject(), None);
        assert!(session.key().is_none());
        assert!(session.modified() && session.accessed());
        assert_eq!(values_of(&session), map([]));
        assert!(!world.store.exists(&old_stored_key).await.unwrap());
        assert!(world.store.open(&old_key).await.unwrap().key().is_none());
    })
    .await;
}

#[tokio::test]
async fn flushed_session_can_be_saved_under_another_key() {
    each_database(async |world| {
        let mut session = world.saved([("foo", 1)]).await;
        session.set_subject("user-42").unwrap();
        session.set_expiry(Expiry::After(HOUR));
        session.save().await.unwrap();
        let old_key = key_of(&session);
        session.flush().await.unwrap();
        session.insert("bar", 2).unwrap();
        session.save().await.unwrap();
        assert_ne!(key_of(&session), old_key);
        assert_eq!(values_of(&session), map([("bar", 2)]));
        assert_eq!((session.subject(), session.expiry()), (None, None));
    })
    .await;
}

#[tokio::test]
async fn cycle_key_keeps_the_data_under_a_new_key() {
    each_database(async |world| {
        let mut session = world.saved([("a", 1), ("b", 2)]).await;
        let (old_key, old_stored_key) = (key_of(&session), stored_key(&session));
        session.insert("c", 3).unwrap();
        session.cycle_key().await.unwrap();
        assert_ne!(key_of(&session), old_key);
        assert!(!session.modified());
        assert!(!world.store.exists(&old_stored_key).await.unwrap());
        assert!(world.store.open(&old_key).await.unwrap().key().is_none());
        let expected = map([("a", 1), ("b", 2), ("c", 3)]);
        assert_eq!(values_of(&session), expected);
        assert_eq!(values_of(&world.reopen(&session).await), expected);
        assert_eq!(world.in_database(&stored_key(&session)).await, Some(expected));
    })
    .await;
}

#[tokio::test]
async fn cycle_key_is_one_statement() {
    each_database(async |world| {
        let mut session = world.saved([("a", 1)]).await;
        session.set_subject("user-42").unwrap();
        world.db.calls.reset();
        session.cycle_key().await.unwrap();
        assert_eq!((world.db.calls.count(Call::Rename), world.db.calls.total()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn cycle_key_of_an_unread_session_keeps_the_data() {
    each_database(async |world| {
        let saved = world.saved([("key", 1)]).await;
        let mut session = world.reopen(&saved).await;
        session.cycle_key().await.unwrap();
        assert_ne!(key_of(&session), key_of(&saved));
        assert_eq!(values_of(&world.reopen(&session).await), map([("key", 1)]));
    })
    .await;
}

#[tokio::test]
async fn cycle_key_of_a_session_without_a_key_creates_it() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.insert("x", 1).unwrap();
        session.cycle_key().await.unwrap();
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    })
    .await;
}

#[tokio::test]
async fn data_is_readable_after_a_save() {
    each_database(async |world| {
        let mut session = world.saved([("a", 1)]).await;
        assert_eq!(session.get("a").unwrap(), Some(1));
        session.insert("b", 2).unwrap();
        session.save().await.unwrap();
        assert_eq!(values_of(&session), map([("a", 1), ("b", 2)]));
    })
    .await;
}

#[tokio::test]
async fn unknown_key_is_not_adopted_and_stores_nothing() {
    each_database(async |world| {
        let unknown = "someunknownkey";
        let mut session = world.store.open(unknown).await.unwrap();
        assert!(session.key().is_none());
        assert!(session.is_unsaved_and_empty());
        let stored = world.store.stored_key(&SessionKey::parse(unknown).unwrap()).unwrap();
        assert!(!world.store.exists(&stored).await.unwrap());
        // The cache holds no entry either, not even one for a missing session.
        assert_eq!(world.cache.peek(&stored).await, None);
        session.insert("x", 1).unwrap();
        session.save().await.unwrap();
        assert_ne!(key_of(&session), unknown);
        assert!(world.store.open(unknown).await.unwrap().key().is_none());
    })
    .await;
}

#[tokio::test]
async fn save_after_a_logout_elsewhere_brings_nothing_back() {
    each_database(async |world| {
        let mut here = world.saved([("test_data", 1)]).await;
        let mut there = world.reopen(&here).await;
        there.flush().await.unwrap();
        here.insert("test_data", 2).unwrap();
        assert!(matches!(here.save().await, Err(Error::SessionGone)));
        assert!(world.reopen(&here).await.key().is_none());
        assert_eq!(world.in_database(&stored_key(&here)).await, None);
        // A second attempt fails as well.
        assert!(matches!(here.save().await, Err(Error::SessionGone)));
    })
    .await;
}

#[tokio::test]
async fn ended_session_does_not_come_back_under_another_key() {
    each_database(async |world| {
        let mut here = world.saved([("x", 1)]).await;
        here.set_subject("user-42").unwrap();
        here.save().await.unwrap();
        world.store.revoke(&stored_key(&here)).await.unwrap();
        assert!(matches!(here.cycle_key().await, Err(Error::SessionGone)));
        assert!(world.store.list_by_subject("user-42").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn failed_save_leaves_the_session_as_it_was() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.insert("x", 2).unwrap();
        session.set_subject("user-42").unwrap();
        world.db.calls.fail(Call::Rename, crate::common::Moment::Before, crate::common::Fault::Unreachable);
        let failed = session.save().await.unwrap_err();
        assert!(matches!(failed, Error::Database(_)) && failed.is_retryable());
        assert!(session.modified());
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        session.save().await.unwrap();
        let reopened = world.reopen(&session).await;
        assert_eq!((values_of(&reopened), reopened.subject()), (map([("x", 2)]), Some("user-42")));
    })
    .await;
}

#[tokio::test]
async fn second_save_writes_under_the_same_key() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        let key = key_of(&session);
        world.db.calls.reset();
        session.insert("x", 2).unwrap();
        session.save().await.unwrap();
        assert_eq!(key_of(&session), key);
        assert_eq!((world.db.calls.count(Call::Update), world.db.calls.total()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn create_adds_a_session_and_keeps_the_first() {
    each_database(async |world| {
        let first = world.saved([("x", 1)]).await;
        let mut second = world.reopen(&first).await;
        second.insert("x", 2).unwrap();
        second.create().await.unwrap();
        assert_ne!(key_of(&second), key_of(&first));
        assert_eq!(values_of(&world.reopen(&first).await), map([("x", 1)]));
        assert_eq!(values_of(&world.reopen(&second).await), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn empty_session_can_be_created_and_opened() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.create().await.unwrap();
        let reopened = world.reopen(&session).await;
        assert_eq!(key_of(&reopened), key_of(&session));
        assert_eq!(values_of(&reopened), map([]));
    })
    .await;
}

#[tokio::test]
async fn touch_prolongs_a_session_and_writes_no_data() {
    each_database(async |world| {
        let saved = world.saved([("x", 1)]).await;
        let before = world.store.load(&stored_key(&saved)).await.unwrap().unwrap();
        world.runtime.advance(DAY);
        let mut session = world.reopen(&saved).await;
        session.insert("x", 2).unwrap();
        world.db.calls.reset();
        session.touch().await.unwrap();
        assert_eq!((world.db.calls.count(Call::Touch), world.db.calls.total()), (1, 1));
        let after = world.store.load(&stored_key(&saved)).await.unwrap().unwrap();
        assert_eq!(after.expires_at(), START + DAY + 14 * DAY);
        assert_eq!(after.last_seen_at(), START + DAY);
        assert_eq!((after.version(), after.payload()), (before.version(), before.payload()));
        assert_eq!(session.last_seen_at(), Some(START + DAY));
        // The changes are still unsaved.
        assert!(session.modified());
        session.save().await.unwrap();
        assert_eq!(values_of(&world.reopen(&saved).await), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn touch_is_written_once_per_touch_interval() {
    each_database_with(
        |builder| builder.touch_interval(MINUTE),
        async |world| {
            let mut session = world.saved([("x", 1)]).await;
            world.db.calls.reset();
            session.touch().await.unwrap();
            world.runtime.advance(MINUTE - SECOND);
            session.touch().await.unwrap();
            assert_eq!(world.db.calls.count(Call::Touch), 0);
            world.runtime.advance(SECOND);
            session.touch().await.unwrap();
            session.touch().await.unwrap();
            assert_eq!(world.db.calls.count(Call::Touch), 1);
            // Another request of the same client sees the touch.
            world.reopen(&session).await.touch().await.unwrap();
            assert_eq!(world.db.calls.count(Call::Touch), 1);
        },
    )
    .await;
}

#[tokio::test]
async fn touch_of_an_ended_session_is_session_gone() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        world.store.revoke(&stored_key(&session)).await.unwrap();
        world.runtime.advance(HOUR);
        assert!(matches!(session.touch().await, Err(Error::SessionGone)));
        assert_eq!(world.in_database(&stored_key(&session)).await, None);
    })
    .await;
}

#[tokio::test]
async fn touching_a_session_without_a_key_does_nothing() {
    let world = World::new().await;
    world.store.new_session().touch().await.unwrap();
    assert_eq!(world.calls(), 0);
}

#[tokio::test]
async fn application_can_store_records_under_its_own_keys() {
    each_database(async |world| {
        let store = &world.store;
        let record = |key: &StoredKey, value: &str| {
            let mut data = SessionData::new();
            data.insert("x", value.to_owned()).unwrap();
            Record::new(JsonCodec::default().encode(key, &data).unwrap(), START, START + HOUR)
        };
        let (one, two) = (StoredKey::parse("one").unwrap(), StoredKey::parse("two").unwrap());
        let created = store.create(&one, record(&one, "1")).await.unwrap().value;
        assert!(matches!(store.create(&one, record(&one, "9")).await, Err(Error::AlreadyExists)));
        assert_eq!(*store.load(&one).await.unwrap().unwrap(), *created);

        let version = Some(created.version());
        let updated =
            store.update(&one, record(&one, "2"), version, ExpiryWrite::Extend).await.unwrap().value;
        let outdated = store.update(&one, record(&one, "9"), version, ExpiryWrite::Extend).await;
        assert!(matches!(outdated, Err(Error::Conflict)));
        assert_eq!(*store.load(&one).await.unwrap().unwrap(), *updated);

        store.create(&two, record(&two, "1")).await.unwrap();
        let taken = store.rename(&one, &two, record(&two, "3"), None, ExpiryWrite::Extend).await;
        assert!(matches!(taken, Err(Error::AlreadyExists)));
        assert!(store.revoke(&two).await.unwrap().value);
        assert!(!store.revoke(&two).await.unwrap().value);
        let renamed =
            store.rename(&one, &two, record(&two, "3"), None, ExpiryWrite::Extend).await.unwrap().value;
        assert!(!store.exists(&one).await.unwrap());
        assert_eq!(*store.load(&two).await.unwrap().unwrap(), *renamed);

        store.touch(&two, START + DAY).await.unwrap();
        assert_eq!(store.load(&two).await.unwrap().unwrap().expires_at(), START + DAY);
        store.touch(&two, world.runtime.now()).await.unwrap();
        assert_eq!(store.load(&two).await.unwrap().unwrap().expires_at(), START + DAY);
        assert!(matches!(store.touch(&one, START + DAY).await, Err(Error::SessionGone)));
        let gone = store.update(&one, record(&one, "9"), None, ExpiryWrite::Extend).await;
        assert!(matches!(gone, Err(Error::SessionGone)));
    })
    .await;
}
