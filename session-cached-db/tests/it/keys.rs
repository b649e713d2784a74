//! Keys that are accepted, keys that are generated, and the hash that is stored instead of them.

use session_core::{KeyForm, KeyPrefix, Record, SessionKey, StoredKey};

use crate::common::{HOUR, START, World, each_database, key_of, map, values_of};

/// Stores a session under a key of the test's choice.
async fn plant(world: &World, key: &SessionKey) {
    let stored = world.store.stored_key(key).unwrap();
    let record = Record::new("1{\"x\":1}".into(), START, START + HOUR);
    world.store.create(&stored, record).await.unwrap();
}

#[tokio::test]
async fn invalid_key_is_replaced_by_a_new_one() {
    each_database(async |world| {
        let mut session = world.store.open("1").await.unwrap();
        assert!(session.key().is_none());
        session.insert("x", 1).unwrap();
        session.save().await.unwrap();
        assert_ne!(key_of(&session), "1");
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    })
    .await;
}

#[tokio::test]
async fn empty_string_is_not_a_key() {
    assert!(SessionKey::parse("").is_err());
    let world = World::new().await;
    assert!(world.store.open("").await.unwrap().key().is_none());
}

#[tokio::test]
async fn seven_characters_are_not_a_key() {
    assert!(SessionKey::parse("1234567").is_err());
    let world = World::new().await;
    assert!(world.store.open("1234567").await.unwrap().key().is_none());
}

#[tokio::test]
async fn stored_session_keeps_a_key_of_eight_characters() {
    each_database(async |world| {
        plant(&world, &SessionKey::parse("12345678").unwrap()).await;
        let mut session = world.store.open("12345678").await.unwrap();
        assert_eq!(values_of(&session), map([("x", 1)]));
        session.insert("x", 2).unwrap();
        session.save().await.unwrap();
        assert_eq!(key_of(&session), "12345678");
        assert_eq!(values_of(&world.store.open("12345678").await.unwrap()), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn keys_that_differ_in_case_only_are_different_sessions() {
    each_database(async |world| {
        plant(&world, &SessionKey::parse("AbCdEfGhIj").unwrap()).await;
        for other in ["abcdefghij", "ABCDEFGHIJ", "AbCdEfGhIJ"] {
            assert!(world.store.open(other).await.unwrap().key().is_none(), "{other}");
        }
        assert!(world.store.open("AbCdEfGhIj").await.unwrap().key().is_some());
    })
    .await;
}

#[tokio::test]
async fn every_new_session_gets_another_key_of_32_characters() {
    let world = World::new().await;
    let mut keys = std::collections::HashSet::new();
    for _ in 0..50 {
        let key = key_of(&world.saved([]).await);
        assert_eq!(key.len(), 32);
        assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        assert!(keys.insert(key));
    }
}

#[tokio::test]
async fn stored_key_is_a_hash_of_the_key() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        let key = session.key().unwrap();
        let hash = StoredKey::derive(key, KeyForm::Hashed, &KeyPrefix::NONE).unwrap();
        assert_eq!(session.stored_key(), Some(&hash));
        assert!(world.in_database(&hash).await.is_some());
        assert!(world.cache.peek_record(&hash).await.is_some());
        // A client that has read the hash in a dump cannot open the session with it.
        assert!(world.store.open(hash.as_str()).await.unwrap().key().is_none());
    })
    .await;
}

#[tokio::test]
async fn files_of_the_database_do_not_hold_the_key() {
    let world = World::in_file_with(|builder| builder).await;
    let session = world.saved([("marker", 4_711)]).await;
    let mut bytes = Vec::new();
    for file in std::fs::read_dir(world.directory.as_ref().unwrap().path()).unwrap() {
        bytes.extend(std::fs::read(file.unwrap().path()).unwrap());
    }
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds(session.stored_key().unwrap().as_str()) && holds("4711"), "this looks at the wrong files");
    assert!(!holds(&key_of(&session)));
}

#[tokio::test]
async fn applications_with_different_prefixes_share_a_table_and_a_cache() {
    each_database(async |world| {
        let shop = world.builder().key_prefix("shop:").build().await.unwrap();
        let blog = world.builder().key_prefix("blog:").build().await.unwrap();
        let mut session = shop.new_session();
        session.insert("x", 1).unwrap();
        session.save().await.unwrap();
        assert!(session.stored_key().unwrap().as_str().starts_with("shop:"));
        let key = key_of(&session);
        assert_eq!(values_of(&shop.open(&key).await.unwrap()), map([("x", 1)]));
        assert!(blog.open(&key).await.unwrap().key().is_none());
        assert!(world.store.open(&key).await.unwrap().key().is_none());
    })
    .await;
}
