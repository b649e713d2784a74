//! Sealed payloads, in every operation that writes or reads them.

use std::sync::Arc;

use bytes::Bytes;
use session_cached_db::{Error, Session};
use session_core::{
    Codec as _, CodecError, CompressCodec, Entry, Expiry, JsonCodec, Persistence as _, Record, RecordWrite,
    Runtime as _, SealCodec, SealError, SealingKey, SealingKeys, SessionData, Stamp, StoredKey, Value,
};

use crate::common::{
    Call, HOUR, Log, MINUTE, Moment, START, Store, StoreBuilder, World, each_database, each_database_with,
    key_of, map, until, values_of,
};

type Codec = SealCodec<CompressCodec<JsonCodec>>;

fn key(byte: u8) -> SealingKey {
    let bytes: Vec<u8> = (0..32).map(|position| byte.wrapping_add(position)).collect();
    SealingKey::new(&bytes).unwrap()
}

fn codec<const N: usize>(keys: [u8; N]) -> Codec {
    let ring =
        keys[1..].iter().fold(SealingKeys::new(key(keys[0])), |ring, byte| ring.with(key(*byte)).unwrap());
    SealCodec::new(CompressCodec::new(JsonCodec::default()), ring)
}

async fn each_sealed(test: impl AsyncFn(World)) {
    each_database_with(|builder| builder.codec(codec([1])), test).await;
}

async fn row(world: &World, key: &StoredKey) -> Record {
    world.db.sqlite.load(key, world.runtime.now()).await.unwrap().unwrap()
}

/// Writes `payload` into the session's row behind the store's back.
async fn put(world: &World, key: &StoredKey, payload: Bytes) {
    let record = Record::new(payload, START, START + HOUR);
    world.db.sqlite.update(key, RecordWrite::new(&record), world.runtime.now()).await.unwrap();
    world.cache.plant(key, None).await;
}

/// Returns the values that a client sees whose session is not in the cache. Asserts that the row is sealed
/// and bound to its key.
async fn sealed_values(world: &World, session: &Session) -> std::collections::BTreeMap<String, i32> {
    let key = session.stored_key().unwrap();
    let row = row(world, key).await;
    assert!(row.payload().starts_with(b"S1"), "it is not sealed");
    world.cache.plant(key, None).await;
    values_of(&world.store.open(&key_of(session)).await.unwrap())
}

async fn node(world: &World, codec: Codec) -> Store {
    world.builder().codec(codec).build().await.unwrap()
}

#[tokio::test]
async fn every_write_seals_for_the_sessions_current_key() {
    each_sealed(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        assert_eq!(sealed_values(&world, &session).await, map([("x", 1)]), "created");

        session.insert("x", 2).unwrap();
        session.save().await.unwrap();
        assert_eq!(sealed_values(&world, &session).await, map([("x", 2)]), "saved");

        session.cycle_key().await.unwrap();
        assert_eq!(sealed_values(&world, &session).await, map([("x", 2)]), "a new key, nothing else");

        let mut reopened = world.reopen(&session).await;
        reopened.cycle_key().await.unwrap();
        assert_eq!(
            sealed_values(&world, &reopened).await,
            map([("x", 2)]),
            "a new key before anything was read"
        );

        let mut session = reopened;
        session.insert("y", 3).unwrap();
        session.cycle_key().await.unwrap();
        assert_eq!(
            sealed_values(&world, &session).await,
            map([("x", 2), ("y", 3)]),
            "a new key, and a change"
        );

        let before = row(&world, session.stored_key().unwrap()).await;
        world.runtime.advance(10 * MINUTE);
        session.touch().await.unwrap();
        let after = row(&world, session.stored_key().unwrap()).await;
        assert_eq!(after.payload(), before.payload());
        assert!(after.expires_at() > before.expires_at());
        assert_eq!(sealed_values(&world, &session).await, map([("x", 2), ("y", 3)]), "touched");

        // Merge with the save of another request, first under the same key, then under a new one.
        for renames in [false, true] {
            let mut other = world.reopen(&session).await;
            other.insert("theirs", i32::from(renames)).unwrap();
            other.save().await.unwrap();
            session.insert("mine", i32::from(renames)).unwrap();
            if renames {
                session.cycle_key().await.unwrap()
            } else {
                session.save().await.unwrap()
            };
            let expected = map([("mine", renames.into()), ("theirs", renames.into()), ("x", 2), ("y", 3)]);
            assert_eq!(sealed_values(&world, &session).await, expected, "merged");
        }
    })
    .await;
}

#[tokio::test]
async fn shared_cache_holds_sealed_payloads_too() {
    let world = World::shared_with(|builder| builder.codec(codec([1]))).await;
    let session = world.saved([("x", 1)]).await;
    let cached = world.cache.peek_record(session.stored_key().unwrap()).await.unwrap();
    assert!(cached.payload().starts_with(b"S1"));
}

#[tokio::test]
async fn unopenable_payload_is_an_error_and_an_event_and_its_row_stays() {
    each_sealed(async |world| {
        let log = Log::listen();
        let session = world.saved([("x", 1)]).await;
        let stored_key = session.stored_key().unwrap();
        let mut data = SessionData::new();
        data.insert("x", "1".into()).unwrap();
        let good = row(&world, stored_key).await.payload().clone();
        let elsewhere = world.saved([("admin", 1)]).await;
        let moved = row(&world, elsewhere.stored_key().unwrap()).await.payload().clone();
        let foreign = codec([9]).encode(stored_key, &data).unwrap();
        let plain = JsonCodec::default().encode(stored_key, &data).unwrap();
        for (payload, expected, reason) in [
            (moved, SealError::NotAuthentic, "not_authentic"),
            (good.slice(..good.len() - 1), SealError::NotAuthentic, "not_authentic"),
            (good.slice(..20), SealError::Truncated, "truncated"),
            (foreign, SealError::UnknownKey(key(9).id()), "unknown_sealing_key"),
            (plain, SealError::Unsealed, "unsealed"),
        ] {
            // So that the bound on the lines of an event leaves none out.
            world.runtime.advance(10 * crate::common::SECOND);
            put(&world, stored_key, payload.clone()).await;
            let before = row(&world, stored_key).await;
            let events = log.events("payload_unreadable").len();
            let error = world.store.load(stored_key).await.unwrap_err();
            let Error::Unreadable(error) = &error else { panic!("{error}") };
            assert!(matches!(**error, CodecError::Seal(error) if error == expected), "{error}");
            assert_eq!(error.reason(), reason);
            assert!(matches!(world.unreadable(&session).await, Error::Unreadable(_)));
            // A request that opened the session before cannot overwrite the evidence.
            let mut open = session_from_before(&world, stored_key, &good, &payload, &session).await;
            open.insert("x", 2).unwrap();
            assert!(matches!(open.save().await, Err(Error::Unreadable(_))));
            assert_eq!(row(&world, stored_key).await.payload(), before.payload());
            let events = log.events("payload_unreadable")[events..].to_vec();
            assert_eq!(events.len(), 3, "{events:?}");
            for event in events {
                assert!(
                    event.starts_with("WARN") && event.contains(&format!("reason={reason:?}")),
                    "{event}"
                );
                assert!(!event.contains(stored_key.as_str()), "{event}");
            }
        }
        assert!(world.store.revoke(stored_key).await.unwrap().value, "it can be ended");
    })
    .await;
}

/// Returns the session as a request has it that opened it while its row was `good`; the row is `bad` now.
async fn session_from_before(
    world: &World,
    key: &StoredKey,
    good: &Bytes,
    bad: &Bytes,
    session: &Session,
) -> Session {
    put(world, key, good.clone()).await;
    let open = world.reopen(session).await;
    assert!(open.key().is_some());
    put(world, key, bad.clone()).await;
    open
}

#[tokio::test]
async fn unopenable_cached_payload_is_read_from_the_database() {
    each_sealed(async |world| {
        let log = Log::listen();
        let (victim, attacker) = (world.saved([("x", 1)]).await, world.saved([("admin", 1)]).await);
        let planted = row(&world, attacker.stored_key().unwrap()).await;
        // The record is undecoded, as if it came from another process.
        let record = Record::new(planted.payload().clone(), START, START + HOUR);
        let store = world.cache.store_of(victim.stored_key().unwrap()).await;
        let value = Value { record: Arc::new(record), made_at: world.runtime.now(), store };
        let stamp = Stamp(std::num::NonZeroU64::MAX);
        world.cache.plant(victim.stored_key().unwrap(), Some(Entry::value(stamp, value))).await;
        assert_eq!(values_of(&world.reopen(&victim).await), map([("x", 1)]));
        assert_eq!(log.events("cached_payload_unreadable").len(), 1);
        assert_eq!(log.events("payload_unreadable").len(), 0);
    })
    .await;
}

#[tokio::test]
async fn save_seals_with_the_first_key() {
    each_sealed(async |world| {
        let session = world.saved([("x", 1)]).await;
        let rotated = node(&world, codec([2, 1])).await;
        let mut open = rotated.open(&key_of(&session)).await.unwrap();
        open.insert("x", 2).unwrap();
        open.save().await.unwrap();
        assert!(codec([2]).is_current(row(&world, session.stored_key().unwrap()).await.payload()));
    })
    .await;
}

/// Reseals the whole table, two sessions at a time. Returns the numbers of sessions seen, written, missed and
/// unreadable.
async fn reseal(store: &Store) -> [u64; 4] {
    let (mut after, mut total) = (None, [0; 4]);
    loop {
        let page = store.reseal(after.as_ref(), 2).await.unwrap();
        assert!(page.seen <= 2);
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
async fn resealing_changes_nothing_but_the_seal() {
    each_sealed(async |world| {
        let mut sessions = Vec::new();
        for x in 0..5 {
            let mut session = world.saved([("x", x)]).await;
            session.set_subject("user-42").unwrap();
            session.save().await.unwrap();
            sessions.push((session, x));
        }
        let strange = world.saved([("x", 1)]).await;
        put(&world, strange.stored_key().unwrap(), Bytes::from_static(b"S1 evidence")).await;
        world.runtime.advance(HOUR / 2);
        let mut before = Vec::new();
        for (session, _) in &sessions {
            before.push(row(&world, session.stored_key().unwrap()).await);
        }
        let log = Log::listen();
        let rotated = node(&world, codec([2, 1])).await;
        assert_eq!(reseal(&rotated).await, [6, 5, 0, 1]);
        assert_eq!(reseal(&rotated).await, [6, 0, 0, 1]);
        assert_eq!(log.events("payload_unreadable").len(), 2);
        assert_eq!(&row(&world, strange.stored_key().unwrap()).await.payload()[..], b"S1 evidence");
        let new_only = node(&world, codec([2])).await;
        for ((session, x), before) in sessions.iter().zip(before) {
            let after = row(&world, session.stored_key().unwrap()).await;
            assert_eq!(
                (after.created_at(), after.expires_at(), after.last_seen_at(), after.subject()),
                (before.created_at(), before.expires_at(), before.last_seen_at(), before.subject())
            );
            world.cache.plant(session.stored_key().unwrap(), None).await;
            assert_eq!(values_of(&new_only.open(&key_of(session)).await.unwrap()), map([("x", *x)]));
        }
    })
    .await;
}

#[tokio::test]
async fn resealing_counts_garbage_as_unreadable() {
    each_sealed(async |world| {
        let strange = world.saved([("x", 1)]).await;
        put(&world, strange.stored_key().unwrap(), Bytes::from_static(b"garbage")).await;
        assert_eq!(reseal(&world.store).await, [1, 0, 0, 1]);
    })
    .await;
}

#[tokio::test]
async fn expired_sessions_are_not_resealed() {
    each_sealed(async |world| {
        world.saved([("x", 1)]).await;
        world.runtime.advance(15 * 24 * HOUR);
        assert_eq!(reseal(&node(&world, codec([2, 1])).await).await, [1, 0, 0, 0]);
    })
    .await;
}

#[tokio::test]
async fn session_written_while_it_is_resealed_keeps_the_write() {
    each_sealed(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        let rotated = node(&world, codec([2, 1])).await;
        let mut held = world.db.calls.hold(Call::Update, Moment::Before);
        let sweep = tokio::spawn(async move { rotated.reseal(None, 10).await });
        held.reached().await;
        session.insert("x", 2).unwrap();
        session.save().await.unwrap();
        held.release();
        let swept = sweep.await.unwrap().unwrap();
        assert_eq!((swept.written, swept.missed), (0, 1));
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn unsealed_table_is_sealed_without_logging_users_out() {
    each_database(async |world| {
        let (one, other) = (world.saved([("x", 1)]).await, world.saved([("x", 2)]).await);
        for session in [&one, &other] {
            world.cache.plant(session.stored_key().unwrap(), None).await;
        }
        let migrating = node(&world, codec([1]).accepting_unsealed()).await;
        assert_eq!(values_of(&migrating.open(&key_of(&one)).await.unwrap()), map([("x", 1)]));
        assert_eq!(reseal(&migrating).await, [2, 2, 0, 0]);
        let strict = node(&world, codec([1])).await;
        for (session, x) in [(&one, 1), (&other, 2)] {
            world.cache.plant(session.stored_key().unwrap(), None).await;
            assert_eq!(values_of(&strict.open(&key_of(session)).await.unwrap()), map([("x", x)]));
        }
    })
    .await;
}

#[tokio::test]
async fn closed_store_reseals_nothing() {
    let world = World::with(|builder| builder.codec(codec([1]))).await;
    world.saved([("x", 1)]).await;
    world.store.close().await;
    assert!(matches!(world.store.reseal(None, 10).await, Err(Error::Closed)));
}

#[tokio::test]
async fn dropped_sweep_leaves_every_session_readable() {
    each_sealed(async |world| {
        let session = world.saved([("x", 1)]).await;
        let rotated = node(&world, codec([2, 1])).await;
        let mut held = world.db.calls.hold(Call::Update, Moment::Before);
        let sweeping = rotated.clone();
        let sweep = tokio::spawn(async move { sweeping.reseal(None, 10).await });
        held.reached().await;
        sweep.abort();
        held.release();
        until(|| world.db.calls.count(Call::Update) > 0).await;
        rotated.close().await;
        assert_eq!(sealed_values_by(&world, codec([2, 1]), &session).await, map([("x", 1)]));
    })
    .await;
}

async fn sealed_values_by(
    world: &World,
    codec: Codec,
    session: &Session,
) -> std::collections::BTreeMap<String, i32> {
    world.cache.plant(session.stored_key().unwrap(), None).await;
    values_of(&node(world, codec).await.open(&key_of(session)).await.unwrap())
}

#[tokio::test]
async fn request_follows_a_sealed_session_to_its_new_key() {
    let with = |builder: StoreBuilder| builder.codec(codec([1])).rotation_grace(MINUTE);
    each_database_with(with, async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        session.set_expiry(Expiry::After(2 * HOUR));
        session.save().await.unwrap();
        let (old, mut late, mut secret) =
            (key_of(&session), world.reopen(&session).await, world.reopen(&session).await);
        session.renew_key().await.unwrap();
        assert_eq!(world.store.open(&old).await.unwrap().key(), session.key());
        for visits in 1..=2 {
            late.insert("visits", visits).unwrap();
            late.save().await.unwrap();
        }
        session.log_in("user-42").await.unwrap();
        session.set_expiry(Expiry::After(3 * HOUR));
        session.save().await.unwrap();
        for pages in 1..=2 {
            secret.modify("pages", move |total: &mut i32| *total += pages).unwrap();
            secret.save().await.unwrap();
            assert_eq!(secret.get::<i32>("visits").unwrap(), None);
        }
        let reopened = world.reopen(&session).await;
        let read = |key: &str| reopened.get::<i32>(key).unwrap().unwrap();
        assert_eq!(["cart", "visits", "pages"].map(read), [1, 2, 3]);
        assert_eq!(reopened.expiry(), Some(Expiry::After(3 * HOUR)), "no late save has chosen another");
    })
    .await;
}
