//! Encoding of data as payloads, and payloads that cannot be read.

use bytes::Bytes;
use session_cached_db::{Error, Session};
use session_core::{
    Codec, CodecError, JsonCodec, Persistence as _, Record, RecordWrite, Runtime as _, SessionData, StoredKey,
};

use crate::common::{HOUR, Log, START, World, each_database, each_database_with, map, values_of};

/// Overwrites the payload behind the store's back.
async fn spoil(world: &World, session: &Session, payload: &'static [u8]) {
    let key = session.stored_key().unwrap();
    let record = Record::new(Bytes::from_static(payload), START, START + HOUR);
    let now = world.runtime.now();
    world.db.sqlite.update(key, RecordWrite::new(&record), now).await.unwrap();
    world.cache.plant(key, None).await;
}

async fn payload(world: &World, key: &StoredKey) -> Bytes {
    world.db.sqlite.load(key, world.runtime.now()).await.unwrap().unwrap().payload().clone()
}

#[tokio::test]
async fn encoded_data_is_decoded_unchanged() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.insert("a test key", "a test value with \"quotes\", \u{1F98A} and \u{0}").unwrap();
        session.insert("nested", serde_json::json!({"list": [1, 2.5, null, {"deep": true}]})).unwrap();
        session.save().await.unwrap();
        world.cache.plant(session.stored_key().unwrap(), None).await;
        let reopened = world.reopen(&session).await;
        assert_eq!(reopened.iter().collect::<Vec<_>>(), session.iter().collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn undecodable_payload_is_logged_and_left_alone() {
    each_database(async |world| {
        let log = Log::listen();
        for spoiled in [&b"bad:encoded:value"[..], b"1bad:encoded:value"] {
            let session = world.saved([("x", 1)]).await;
            spoil(&world, &session, spoiled).await;
            assert!(matches!(world.unreadable(&session).await, Error::Unreadable(_)));
            let key = session.stored_key().unwrap();
            assert!(matches!(world.store.load(key).await, Err(Error::Unreadable(_))));
            assert_eq!(&payload(&world, key).await[..], spoiled);
        }
        let events = log.events("payload_unreadable");
        assert_eq!(events.len(), 4);
        assert!(events.iter().all(|event| event.starts_with("WARN")), "{events:?}");
    })
    .await;
}

#[tokio::test]
async fn payload_of_a_future_format_is_left_alone() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        spoil(&world, &session, b"2\x01\x02\x03").await;
        let key = session.stored_key().unwrap();
        let error = world.store.load(key).await.unwrap_err();
        let Error::Unreadable(codec_error) = &error else { panic!("{error}") };
        assert!(matches!(**codec_error, CodecError::UnknownFormat(b'2')));
        assert!(error.to_string().contains("upgrade"), "{error}");
        // The session can still be ended.
        assert!(world.store.revoke(key).await.unwrap().value);
    })
    .await;
}

#[tokio::test]
async fn payload_of_the_right_format_without_data_does_not_panic() {
    each_database(async |world| {
        for spoiled in [&b""[..], b"1", b"1null", b"1[1,2]", b"1{\"x\":1", b"1{\"x\":1}garbage", b"\xff\xff"]
        {
            let session = world.saved([("x", 1)]).await;
            spoil(&world, &session, spoiled).await;
            assert!(matches!(world.unreadable(&session).await, Error::Unreadable(_)));
        }
    })
    .await;
}

#[tokio::test]
async fn spoilt_payload_is_not_overwritten_by_an_earlier_reader() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        spoil(&world, &session, b"9evidence").await;
        session.insert("x", 2).unwrap();
        let log = Log::listen();
        assert!(matches!(session.save().await, Err(Error::Unreadable(_))));
        assert_eq!(log.events("payload_unreadable").len(), 1);
        assert_eq!(&payload(&world, session.stored_key().unwrap()).await[..], b"9evidence");
    })
    .await;
}

/// A codec that puts the key in front of the payload, and refuses the payload under another key.
#[derive(Debug)]
struct Bound;

impl Codec for Bound {
    fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        if data.contains("unencodable") {
            return Err(CodecError::Unencodable("the test says so".into()));
        }
        Ok([key.as_bytes(), &JsonCodec::default().encode(key, data)?].concat().into())
    }
    fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        if !payload.starts_with(key.as_bytes()) {
            return Err(CodecError::Malformed("another key's".into()));
        }
        JsonCodec::default().decode(key, &payload.slice(key.as_bytes().len()..))
    }
}

#[tokio::test]
async fn application_can_use_its_own_codec() {
    each_database_with(
        |builder| builder.codec(Bound),
        async |world| {
            let mut session = world.saved([("x", 1)]).await;
            let key = *session.stored_key().unwrap();
            assert!(payload(&world, &key).await.starts_with(key.as_bytes()));
            session.insert("y", 2).unwrap();
            session.save().await.unwrap();
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1), ("y", 2)]));
            // Two concurrent saves are merged through the codec, too.
            let mut other = world.reopen(&session).await;
            session.insert("x", 3).unwrap();
            session.save().await.unwrap();
            other.insert("y", 4).unwrap();
            other.save().await.unwrap();
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 3), ("y", 4)]));
        },
    )
    .await;
}

#[tokio::test]
async fn key_bound_payload_is_encoded_again_when_the_key_changes() {
    each_database_with(
        |builder| builder.codec(Bound),
        async |world| {
            let mut session = world.saved([("x", 1)]).await;
            session.cycle_key().await.unwrap();
            world.cache.plant(session.stored_key().unwrap(), None).await;
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        },
    )
    .await;
}

#[tokio::test]
async fn unencodable_data_is_not_saved() {
    each_database_with(
        |builder| builder.codec(Bound),
        async |world| {
            let mut session = world.saved([("x", 1)]).await;
            session.insert("unencodable", 1).unwrap();
            world.forget_calls();
            assert!(matches!(session.save().await, Err(Error::Unencodable(_))));
            assert_eq!(world.calls(), 0);
            session.remove("unencodable");
            session.save().await.unwrap();
        },
    )
    .await;
}

#[tokio::test]
async fn session_that_cannot_be_read_is_ended_by_the_key_of_its_client() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        spoil(&world, &session, b"\x01{").await;
        assert!(matches!(world.unreadable(&session).await, Error::Unreadable(_)));
        let client_key = session.key().unwrap();
        assert!(world.store.end(client_key).await.unwrap().value);
        assert!(world.reopen(&session).await.key().is_none());
        assert!(!world.store.end(client_key).await.unwrap().value);
    })
    .await;
}
