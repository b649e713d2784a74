//! Keys that alone keep out of the cache: not answered, or left by a write that panicked.

use std::time::Duration;

use session_cached_db::{CacheHealth, Coherence, Error, Session};
use session_core::bytes::Bytes;
use session_core::{
    Cache as _, Codec, CodecError, JsonCodec, Persistence as _, Record, RecordWrite, Runtime as _,
    SessionData, StoredKey,
};

use crate::common::{Call, Fault, Log, Moment, SECOND, World, map, until, values_of};
use crate::outage::{looked_after, on_each_server};

/// Lets `time` pass, with all timers of the repair task.
async fn watched_for(world: &World, time: Duration) {
    let begun = world.runtime.now();
    looked_after(world, || world.runtime.now().since(begun) >= time).await;
}

#[tokio::test]
async fn key_that_alone_is_not_answered_keeps_no_other_from_the_cache() {
    let world = World::shared_with(|builder| builder.breaker_threshold(5)).await;
    let log = Log::listen();
    let mut bad = world.saved([("x", 1)]).await;
    let mut good = world.saved([("y", 1)]).await;
    let key = *bad.stored_key().unwrap();
    world.cache.silence(&key);
    for _ in 0..5 {
        assert_eq!(values_of(&world.reopen(&bad).await), map([("x", 1)]));
    }
    assert_eq!(log.events("cache_breaker_opened").len(), 1);
    watched_for(&world, 10 * SECOND).await;
    world.forget_calls();
    assert_eq!(values_of(&world.reopen(&good).await), map([("y", 1)]));
    assert_eq!(world.db.calls.count(Call::Load), 0, "the other key is not a hit");
    good.insert("y", 2).unwrap();
    assert_eq!(good.save().await.unwrap(), Coherence::Coherent);

    // The key is left out: no call is made for it, its writes are degraded, and the breaker does not open again.
    for x in 2..20 {
        assert_eq!(values_of(&world.reopen(&bad).await), map([("x", x - 1)]));
        bad.insert("x", x).unwrap();
        assert_eq!(bad.save().await.unwrap(), Coherence::Degraded);
    }
    watched_for(&world, 10 * SECOND).await;
    assert_eq!(log.events("cache_breaker_opened").len(), 1);
    assert_eq!(log.events("cache_breaker_closed").len(), 1);
    assert_eq!(log.events("cache_key_left_out").len(), 1);
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Up);

    world.cache.end_silence();
    looked_after(&world, || world.store.stats().repairs == 1).await;
    assert_eq!(world.cache.peek(&key).await, None);
    assert_eq!(values_of(&world.reopen(&bad).await), map([("x", 19)]));
    world.forget_calls();
    world.reopen(&bad).await;
    assert_eq!(world.db.calls.count(Call::Load), 0);
    looked_after(&world, || world.runtime.sleeps().is_empty()).await;
}

#[tokio::test]
async fn breaker_stays_open_when_too_many_keys_are_not_answered() {
    let world = World::shared_with(|builder| builder.breaker_threshold(1)).await;
    let log = Log::listen();
    for _ in 0..64 {
        let session = world.saved([("x", 1)]).await;
        world.cache.silence(session.stored_key().unwrap());
        world.reopen(&session).await;
        let opened = log.events("cache_breaker_opened").len();
        looked_after(&world, || log.events("cache_breaker_closed").len() == opened).await;
    }
    let session = world.saved([("x", 1)]).await;
    world.cache.silence(session.stored_key().unwrap());
    world.reopen(&session).await;
    watched_for(&world, 10 * SECOND).await;
    assert_eq!(log.events("cache_breaker_opened").len(), 65);
    assert_eq!(log.events("cache_breaker_closed").len(), 64);
    world.cache.end_silence();
    looked_after(&world, || log.events("cache_breaker_closed").len() == 65).await;
    looked_after(&world, || world.runtime.sleeps().is_empty()).await;
}

/// Returns a world in which the first session's key is left out, and the second one's is not.
async fn with_a_key_left_out(log: &Log) -> (World, [Session; 2]) {
    let world = World::shared_with(|builder| builder.breaker_threshold(1)).await;
    let sessions = [world.saved([("x", 1)]).await, world.saved([("y", 1)]).await];
    world.cache.silence(sessions[0].stored_key().unwrap());
    for session in &sessions {
        world.reopen(session).await;
    }
    looked_after(&world, || log.events("cache_key_left_out").len() == 1).await;
    (world, sessions)
}

#[tokio::test]
async fn outage_while_a_key_is_left_out_is_looked_at_as_soon_as_any() {
    let log = Log::listen();
    let (world, [_, good]) = with_a_key_left_out(&log).await;
    watched_for(&world, 10 * SECOND).await;
    world.cache.calls.fail_all(Fault::Unreachable);
    world.reopen(&good).await;
    assert_eq!(log.events("cache_breaker_opened").len(), 2);
    world.cache.calls.heal();
    assert_eq!(world.probe_pause().await, SECOND / 16);
    world.runtime.advance(SECOND / 16);
    until(|| log.events("cache_breaker_closed").len() == 2).await;
}

#[tokio::test]
async fn key_left_out_does_not_keep_a_refusing_server_from_being_used() {
    let log = Log::listen();
    let (world, [bad, good]) = with_a_key_left_out(&log).await;
    world.cache.end_silence();
    world.cache.calls.fail_all(Fault::Unusable);
    world.reopen(&good).await;
    watched_for(&world, 3 * SECOND).await;
    world.cache.silence(bad.stored_key().unwrap());
    world.cache.calls.heal();
    watched_for(&world, 20 * SECOND).await;
    assert_eq!(log.events("cache_breaker_closed").len(), 2);
    world.forget_calls();
    world.reopen(&good).await;
    assert_eq!(world.db.calls.count(Call::Load), 0);
}

#[tokio::test]
async fn breaker_of_one_server_closes_by_a_key_that_a_caller_wants() {
    let world = World::with_servers(3, |builder| builder.breaker_threshold(5)).await;
    let sessions = on_each_server(&world).await;
    // No probe of the store's own reaches this server.
    let probed = world.cache.server(&StoredKey::PROBE);
    let bad = &sessions[(probed + 1) % 3];
    let good = loop {
        let session = world.saved([("y", 1)]).await;
        if world.cache.server(session.stored_key().unwrap()) == (probed + 1) % 3 {
            break session;
        }
    };
    world.cache.silence(bad.stored_key().unwrap());
    for _ in 0..5 {
        world.reopen(bad).await;
    }
    world.reopen(&good).await;
    watched_for(&world, 2 * SECOND).await;
    world.forget_calls();
    world.reopen(&good).await;
    assert_eq!(world.db.calls.count(Call::Load), 0);
}

#[tokio::test]
async fn degraded_write_that_panics_leaves_its_key_to_the_repairs() {
    let world = World::shared().await;
    let mut session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    world.cache.calls.fail(Call::PutFence, Moment::Before, Fault::Refused);
    world.db.calls.fail(Call::Update, Moment::Before, Fault::Panics);
    session.insert("x", 2).unwrap();
    assert!(matches!(session.save().await, Err(Error::Interrupted)));
    looked_after(&world, || world.store.stats().repairs == 1).await;
    assert_eq!(world.cache.peek(&key).await, None);
    world.reopen(&session).await;
    assert!(world.cache.peek_record(&key).await.is_some());
}

#[tokio::test]
async fn write_that_panics_between_its_statements_leaves_no_fence() {
    let world = World::shared_with(|builder| builder.codec(PanicsTwiceChanged)).await;
    let mut session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    let elsewhere = world.node().await;
    session.insert("y", 2).unwrap();
    // Another node comes first, and the codec panics over the merged data.
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let saving = tokio::spawn(async move { session.save().await });
    held.reached().await;
    let other = elsewhere.load(&key).await.unwrap().unwrap();
    let payload = Bytes::from_static(b"1{\"x\":1,\"z\":3}");
    let other = Record::clone(&other).with_payload(payload);
    let request = RecordWrite::new(&other);
    world.db.sqlite.update(&key, request, world.runtime.now()).await.unwrap();
    held.release();
    assert!(matches!(saving.await.unwrap(), Err(Error::Interrupted)));
    looked_after(&world, || world.store.stats().repairs == 1).await;
    assert_eq!(world.cache.peek(&key).await, None);
}

/// Panics over what two requests have changed.
#[derive(Debug)]
struct PanicsTwiceChanged;

impl Codec for PanicsTwiceChanged {
    fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        assert!(data.len() < 3, "the test says so");
        JsonCodec::default().encode(key, data)
    }
    fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        JsonCodec::default().decode(key, payload)
    }
}
