//! The hooks that an application can set.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use session_cached_db::{Error, Hooks, PresentedKey, Revocation};
use session_core::{ExpiredSession, Persistence as _, Record, RecordWrite, Runtime as _, StoredKey, Subject};

use crate::common::{Call, DAY, Fault, HOUR, Moment, START, World, each_database_with, key_of};

/// Hooks that write down their calls. Clones write to the same place.
#[derive(Clone, Debug, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    /// Returns the calls since the last time.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn subject(record: &Record) -> &str {
    record.subject().map_or("none", Subject::as_str)
}

impl Hooks for Diary {
    fn created(&self, key: &StoredKey, record: &Record) {
        self.note(format!("created {} of {}", key.as_str(), subject(record)));
    }
    fn loaded(&self, key: &StoredKey, record: &Record) {
        self.note(format!("loaded {} of {}", key.as_str(), subject(record)));
    }
    fn renewed(&self, old: &StoredKey, key: &StoredKey, record: &Record) {
        self.note(format!("renewed {} as {} of {}", old.as_str(), key.as_str(), subject(record)));
    }
    fn destroyed(&self, key: &StoredKey) {
        self.note(format!("destroyed {}", key.as_str()));
    }
    fn revoked(&self, key: &StoredKey, cause: Revocation) {
        self.note(format!("revoked {} {cause:?}", key.as_str()));
    }
    fn expired(&self, count: u64, sessions: &[ExpiredSession]) {
        let subject =
            |session: &ExpiredSession| session.subject.as_ref().map_or("none", Subject::as_str).to_owned();
        let names = |session: &ExpiredSession| format!(", {} of {}", session.key.as_str(), subject(session));
        let mut names: Vec<_> = sessions.iter().map(names).collect();
        names.sort();
        self.note(format!("expired {count}{}", names.concat()));
    }
    fn unknown_key(&self, presented: PresentedKey) {
        self.note(format!("unknown {presented:?}"));
    }
    fn payload_unreadable(&self, key: &StoredKey, error: &Error) {
        assert!(matches!(error, Error::Unreadable(_)));
        self.note(format!("unreadable {}", key.as_str()));
    }
}

async fn each_with_diary(test: impl AsyncFn(World, Diary)) {
    let diary = Diary::default();
    each_database_with(
        |builder| builder.hooks(diary.clone()).max_sessions_per_subject(2),
        async |world| {
            test(world, diary.clone()).await;
            diary.take();
        },
    )
    .await;
}

#[tokio::test]
async fn hooks_are_called_from_the_first_save_to_the_end() {
    each_with_diary(async |world, diary| {
        let mut session = world.saved([("x", 1)]).await;
        let first = session.stored_key().unwrap().as_str().to_owned();
        assert_eq!(diary.take(), [format!("created {first} of none")]);

        world.reopen(&session).await;
        world.cache.plant(session.stored_key().unwrap(), None).await;
        world.reopen(&session).await;
        assert_eq!(diary.take(), vec![format!("loaded {first} of none"); 2], "from cache and database");

        session.insert("x", 2).unwrap();
        session.save().await.unwrap();
        session.touch().await.unwrap();
        assert_eq!(diary.take(), [""; 0], "a save calls no hook");

        session.set_subject("user-42").unwrap();
        session.cycle_key().await.unwrap();
        let second = session.stored_key().unwrap().as_str().to_owned();
        assert_eq!(diary.take(), [format!("renewed {first} as {second} of user-42")]);

        session.flush().await.unwrap();
        assert_eq!(diary.take(), [format!("destroyed {second}")]);
    })
    .await;
}

#[tokio::test]
async fn revoked_hook_gets_the_cause() {
    each_with_diary(async |world, diary| {
        let mut keys = Vec::new();
        for _ in 0..3 {
            let mut session = world.store.new_session();
            session.set_subject("user-42").unwrap();
            session.save().await.unwrap();
            keys.push(*session.stored_key().unwrap());
            world.runtime.advance(HOUR);
        }
        let calls = diary.take();
        assert_eq!(calls.last().unwrap(), &format!("revoked {} TooMany", keys[0].as_str()), "{calls:?}");
        world.store.revoke(&keys[1]).await.unwrap();
        assert_eq!(diary.take(), [format!("revoked {} One", keys[1].as_str())]);
        world.store.revoke_subject("user-42").await.unwrap();
        assert_eq!(diary.take(), [format!("revoked {} Subject", keys[2].as_str())]);
        // No session is left to end.
        world.store.revoke(&keys[1]).await.unwrap();
        world.store.revoke_subject("user-42").await.unwrap();
        assert_eq!(diary.take(), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn hooks_are_not_called_for_a_failed_write() {
    each_with_diary(async |world, diary| {
        let mut session = world.saved([("x", 1)]).await;
        diary.take();
        for fault in [Fault::Refused, Fault::NoAnswer] {
            world.db.calls.fail(Call::Insert, Moment::Before, fault);
            assert!(world.store.new_session().save().await.is_err());
            world.db.calls.fail(Call::Rename, Moment::Before, fault);
            assert!(session.cycle_key().await.is_err());
            world.db.calls.fail(Call::Delete, Moment::Before, fault);
            assert!(session.delete().await.is_err());
        }
        assert_eq!(diary.take(), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn expired_hook_is_called_when_sessions_are_deleted() {
    each_with_diary(async |world, diary| {
        let session = world.saved([("x", 1)]).await;
        let mut other = world.store.new_session();
        other.set_subject("user-42").unwrap();
        other.save().await.unwrap();
        diary.take();
        world.store.clear_expired().await.unwrap();
        assert_eq!(diary.take(), [""; 0]);
        world.runtime.advance(15 * DAY);
        world.reopen(&session).await;
        assert_eq!(diary.take(), ["unknown Unknown"]);
        world.store.clear_expired().await.unwrap();
        let mut names = [(&session, "none"), (&other, "user-42")]
            .map(|(session, subject)| format!(", {} of {subject}", session.stored_key().unwrap().as_str()));
        names.sort();
        assert_eq!(diary.take(), [format!("expired 2{}", names.concat())]);
    })
    .await;
}

#[tokio::test]
async fn expired_hook_names_no_session_of_another_application() {
    let (world, diary) = (World::shared().await, Diary::default());
    let builder = || world.builder().hooks(diary.clone());
    let shop = builder().key_prefix("shop:").build().await.unwrap();
    let blog = builder().key_prefix("blog:").build().await.unwrap();
    let mut keys = Vec::new();
    for store in [&shop, &blog] {
        let mut session = store.new_session();
        session.set_subject("user-42").unwrap();
        session.save().await.unwrap();
        keys.push(session.stored_key().unwrap().as_str().to_owned());
    }
    diary.take();
    world.runtime.advance(15 * DAY);
    shop.clear_expired().await.unwrap();
    assert_eq!(diary.take(), [format!("expired 2, {} of user-42", keys[0])]);
}

#[tokio::test]
async fn unknown_key_hook_gets_the_kind_of_key() {
    each_with_diary(async |world, diary| {
        let session = world.saved([("x", 1)]).await;
        diary.take();
        world.store.open("").await.unwrap();
        assert_eq!(diary.take(), [""; 0], "a missing cookie is not an unknown key");
        world.store.open("../../etc/passwd").await.unwrap();
        world.store.open("0123456789abcdef").await.unwrap();
        world.store.open(session.stored_key().unwrap().as_str()).await.unwrap();
        assert_eq!(diary.take(), ["unknown Malformed", "unknown Unknown", "unknown LooksLikeStoredKey"]);
        let stats = world.store.stats();
        assert_eq!(stats.unknown_keys, 3);
        assert_eq!(key_of(&world.reopen(&session).await), key_of(&session));
    })
    .await;
}

#[tokio::test]
async fn unreadable_payload_hook_is_called() {
    each_with_diary(async |world, diary| {
        let session = world.saved([("x", 1)]).await;
        let key = session.stored_key().unwrap();
        let record = Record::new(Bytes::from_static(b"9"), START, START + HOUR);
        let now = world.runtime.now();
        world.db.sqlite.update(key, RecordWrite::new(&record), now).await.unwrap();
        world.cache.plant(key, None).await;
        diary.take();
        world.unreadable(&session).await;
        assert_eq!(diary.take(), [format!("unreadable {}", key.as_str())]);
        assert_eq!(world.store.stats().unreadable, 1);
    })
    .await;
}
