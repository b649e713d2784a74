//! A table of sessions under plain keys, for a store that hashes keys.

use bytes::Bytes;
use session_cached_db::{BuildError, CachedDb, Error};
use session_core::{KeyForm, Persistence as _, PersistenceProperties, Record, Runtime as _, StoredKey};

use crate::common::{
    Call, DAY, Fault, HOUR, Log, ManualRuntime, Moment, START, Store, StoreBuilder, TestCache, World,
    each_database, each_database_with, in_memory, key_of, map, values_of,
};

const PLAIN: &str = "a-key-of-former-times";

async fn each_migrating(test: impl AsyncFn(World)) {
    each_database_with(StoreBuilder::accept_plain_keys, test).await;
}

fn stored(key: &str) -> StoredKey {
    StoredKey::parse(key).unwrap()
}

/// Stores a session under a plain key.
async fn insert(world: &World, key: &str, x: u32) -> Record {
    let record = Record::new(Bytes::from(format!("1{{\"x\":{x}}}")), START - HOUR, START + HOUR);
    world.db.sqlite.insert(&stored(key), &record).await.unwrap();
    record
}

async fn row(world: &World, key: &StoredKey) -> Option<Record> {
    world.db.sqlite.load(key, world.runtime.now()).await.unwrap()
}

async fn hash_all(store: &Store) -> [u64; 4] {
    let (mut after, mut total) = (None, [0; 4]);
    loop {
        let page = store.hash_plain_keys(after.as_ref(), 2).await.unwrap();
        for (sum, part) in
            total.iter_mut().zip([page.seen, page.written, page.missed, page.unreadable.len() as u64])
        {
            *sum += part;
        }
        after = page.next;
        if after.is_none() {
            return total;
        }
    }
}

#[tokio::test]
async fn client_with_a_plain_key_stays_logged_in_under_a_hashed_key() {
    each_migrating(async |world| {
        let before = insert(&world, PLAIN, 1).await;
        for _ in 0..2 {
            let session = world.store.open(PLAIN).await.unwrap();
            assert_eq!(values_of(&session), map([("x", 1)]));
            assert_eq!(key_of(&session), PLAIN, "the client must keep its cookie");
            let hashed = *session.stored_key().unwrap();
            assert_eq!(hashed.as_str().len(), KeyForm::HASHED_LEN);
            assert!(row(&world, &stored(PLAIN)).await.is_none());
            let after = row(&world, &hashed).await.unwrap();
            assert_eq!(after.created_at(), before.created_at());
            assert_eq!(after.expires_at(), before.expires_at(), "hashing must not prolong the session");
            world.cache.plant(&hashed, None).await;
        }
        let mut session = world.store.open(PLAIN).await.unwrap();
        session.insert("x", 2).unwrap();
        session.save().await.unwrap();
        assert_eq!(values_of(&world.store.open(PLAIN).await.unwrap()), map([("x", 2)]));
        session.flush().await.unwrap();
        assert!(world.store.open(PLAIN).await.unwrap().key().is_none(), "logout is final");
    })
    .await;
}

#[tokio::test]
async fn plain_key_opens_no_session_unless_accepted() {
    each_database(async |world| {
        insert(&world, PLAIN, 1).await;
        assert!(world.store.open(PLAIN).await.unwrap().key().is_none());
        assert!(row(&world, &stored(PLAIN)).await.is_some());
    })
    .await;
}

#[tokio::test]
async fn stored_key_from_the_table_opens_no_session() {
    for prefix in ["", "shop_", "shop:"] {
        each_database_with(
            |builder| builder.accept_plain_keys().key_prefix(prefix),
            async |world| {
                let log = Log::listen();
                insert(&world, PLAIN, 1).await;
                let victim = world.saved([("x", 1)]).await;
                let adopted = world.store.open(PLAIN).await.unwrap();
                for session in [&victim, &adopted] {
                    let seen = session.stored_key().unwrap();
                    let thief = world.store.open(seen.as_str()).await.unwrap();
                    assert!(thief.key().is_none(), "with the prefix {prefix:?}");
                    assert!(row(&world, seen).await.is_some(), "it is where it was");
                }
                // Text with a colon is not a key in the first place.
                let expected = if prefix.contains(':') { 0 } else { 2 };
                assert_eq!(log.events("stored_key_presented").len(), expected);
            },
        )
        .await;
    }
}

#[tokio::test]
async fn plain_key_as_long_as_a_hash_opens_no_session() {
    for prefix in ["", "v2:"] {
        each_database_with(
            |builder| builder.accept_plain_keys().key_prefix(prefix),
            async |world| {
                for len in [KeyForm::HASHED_LEN, KeyForm::HASHED_LEN + 5] {
                    let long = "k".repeat(len);
                    insert(&world, &long, 1).await;
                    assert!(world.store.open(&long).await.unwrap().key().is_none());
                    let [_, written, missed, unreadable] = hash_all(&world.store).await;
                    assert_eq!((written, missed, unreadable), (0, 0, 0));
                }
                let shorter = "k".repeat(KeyForm::HASHED_LEN - 1);
                insert(&world, &shorter, 1).await;
                assert_eq!(values_of(&world.store.open(&shorter).await.unwrap()), map([("x", 1)]));
            },
        )
        .await;
    }
}

#[tokio::test]
async fn concurrent_requests_with_a_plain_key_all_get_the_session() {
    each_migrating(async |world| {
        insert(&world, PLAIN, 1).await;
        let other = world.builder().accept_plain_keys().build().await.unwrap();
        // One request is about to rename the session when the other one has done so.
        let mut held = world.db.calls.hold(Call::Rename, Moment::Before);
        let store = world.store.clone();
        let slow = tokio::spawn(async move { store.open(PLAIN).await.unwrap() });
        held.reached().await;
        assert_eq!(values_of(&other.open(PLAIN).await.unwrap()), map([("x", 1)]));
        held.release();
        assert_eq!(values_of(&slow.await.unwrap()), map([("x", 1)]));
    })
    .await;
    each_migrating(async |world| {
        insert(&world, PLAIN, 1).await;
        let other = world.builder().accept_plain_keys().build().await.unwrap();
        // One request has not found the hash, and the other one renames the session before the first looks up
        // the plain key.
        let mut held = world.db.calls.hold(Call::Load, Moment::After);
        let store = world.store.clone();
        let slow = tokio::spawn(async move { store.open(PLAIN).await.unwrap() });
        held.reached().await;
        assert_eq!(values_of(&other.open(PLAIN).await.unwrap()), map([("x", 1)]));
        held.release();
        assert_eq!(values_of(&slow.await.unwrap()), map([("x", 1)]));
    })
    .await;
}

#[tokio::test]
async fn unrenamable_session_is_served_under_its_plain_key() {
    each_migrating(async |world| {
        let log = Log::listen();
        insert(&world, PLAIN, 1).await;
        world.db.calls.fail(Call::Rename, Moment::Before, Fault::Refused);
        let mut session = world.store.open(PLAIN).await.unwrap();
        assert_eq!(values_of(&session), map([("x", 1)]));
        assert_eq!(log.events("plain_key_kept").len(), 1);
        session.insert("x", 2).unwrap();
        session.save().await.unwrap();
        let session = world.store.open(PLAIN).await.unwrap();
        assert_eq!(values_of(&session), map([("x", 2)]));
        assert_eq!(session.stored_key().unwrap().as_str().len(), KeyForm::HASHED_LEN);
    })
    .await;
}

#[tokio::test]
async fn hash_plain_keys_hashes_the_whole_table() {
    each_migrating(async |world| {
        let keys = ["12345678", "ABC_def-123", "abcdefghijklmnopqrstuvwxyz012345", PLAIN];
        for (key, x) in keys.iter().zip(1..) {
            insert(&world, key, x).await;
        }
        world.saved([("x", 9)]).await;
        let unreadable = Record::new(Bytes::from_static(b"9"), START, START + HOUR);
        world.db.sqlite.insert(&stored("unreadable"), &unreadable).await.unwrap();
        // Add a row of another application in the same table.
        world.db.sqlite.insert(&stored("shop:0123456789"), &unreadable).await.unwrap();
        // Some sessions may come up twice, because their new keys come later in the table.
        let [_, written, missed, strange] = hash_all(&world.store).await;
        assert_eq!((written, missed, strange), (4, 0, 1));
        assert_eq!(hash_all(&world.store).await, [7, 0, 0, 1]);
        // From now on, plain keys are not accepted.
        let store = world.node().await;
        for (key, x) in keys.iter().zip(1..) {
            assert!(row(&world, &stored(key)).await.is_none());
            assert_eq!(values_of(&store.open(key).await.unwrap()), map([("x", x)]));
        }
        assert!(row(&world, &stored("unreadable")).await.is_some());
        assert!(row(&world, &stored("shop:0123456789")).await.is_some());
    })
    .await;
}

#[tokio::test]
async fn store_with_a_prefix_hashes_plain_keys_without_accepting_them() {
    each_database_with(
        |builder| builder.key_prefix("shop:"),
        async |world| {
            insert(&world, PLAIN, 1).await;
            assert!(world.store.open(PLAIN).await.unwrap().key().is_none());
            assert_eq!(hash_all(&world.store).await, [1, 1, 0, 0]);
            assert_eq!(values_of(&world.store.open(PLAIN).await.unwrap()), map([("x", 1)]));
        },
    )
    .await;
}

#[tokio::test]
async fn expired_plain_keys_are_not_hashed() {
    each_migrating(async |world| {
        insert(&world, PLAIN, 1).await;
        world.runtime.advance(DAY);
        assert!(world.store.open(PLAIN).await.unwrap().key().is_none());
        assert_eq!(hash_all(&world.store).await, [1, 0, 0, 0]);
    })
    .await;
}

#[cfg(feature = "seal")]
#[tokio::test]
async fn key_bound_payload_is_bound_to_the_hashed_key() {
    use session_core::{Codec as _, JsonCodec, SealCodec, SealingKey, SealingKeys, SessionData};
    let keys = SealingKeys::new(SealingKey::generate().unwrap());
    let codec = SealCodec::new(JsonCodec::default(), keys);
    each_database_with(
        |builder| builder.accept_plain_keys().codec(codec.clone()),
        async |world| {
            let mut data = SessionData::new();
            data.insert("x", "1".into()).unwrap();
            for (key, is_opened) in [(PLAIN, true), ("another-old-key", false)] {
                let payload = codec.encode(&stored(key), &data).unwrap();
                let record = Record::new(payload, START, START + HOUR);
                world.db.sqlite.insert(&stored(key), &record).await.unwrap();
                if !is_opened {
                    assert_eq!(hash_all(&world.store).await[1], 1);
                }
                for _ in 0..2 {
                    let session = world.store.open(key).await.unwrap();
                    assert_eq!(values_of(&session), map([("x", 1)]));
                    world.cache.plant(session.stored_key().unwrap(), None).await;
                }
            }
        },
    )
    .await;
}

#[tokio::test]
async fn accepting_plain_keys_is_refused_for_a_plain_key_database() {
    let db = in_memory().await;
    let properties = PersistenceProperties::new(1 << 20).with_keys(KeyForm::Plain, StoredKey::MAX_LEN);
    let builder = CachedDb::builder(TestCache::new(), db.with_properties(properties));
    let built = builder.runtime(ManualRuntime::new()).accept_plain_keys().build().await;
    assert!(matches!(built, Err(BuildError::Invalid(text)) if text.contains("accept_plain_keys")));
}

#[tokio::test]
async fn unanswered_database_is_an_error_and_not_a_logout() {
    each_migrating(async |world| {
        insert(&world, PLAIN, 1).await;
        world.db.calls.fail_all(Fault::Unreachable);
        assert!(matches!(world.store.open(PLAIN).await, Err(Error::Database(_))));
        world.db.calls.heal();
        assert!(world.store.open(PLAIN).await.unwrap().key().is_some());
    })
    .await;
}
