//! The cache saves database reads, and no operation depends on it.

use std::num::NonZeroU64;
use std::sync::Arc;

use session_cached_db::{Builder, CacheHealth, CachedDb, Coherence, Error, OutagePolicy, WriteOperation};
use session_core::{CacheProperties, Entry, Expiry, Scope, Stamp};

use crate::common::{
    Call, Fault, HOUR, Log, MINUTE, ManualRuntime, Moment, SECOND, START, TestCache, World, each_database,
    in_memory, key_of, map, until, values_of,
};

#[tokio::test]
async fn saved_session_exists_without_a_database_read() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        world.db.calls.reset();
        assert!(session.exists().await.unwrap());
        assert!(world.store.exists(session.stored_key().unwrap()).await.unwrap());
        assert_eq!(world.db.calls.total(), 0);
    })
    .await;
}

#[tokio::test]
async fn hit_is_one_cache_call_and_no_database_read() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        world.forget_calls();
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        assert_eq!((world.cache.calls.total(), world.db.calls.total()), (1, 0));
        assert_eq!(world.store.stats().hits, 1);
    })
    .await;
}

#[tokio::test]
async fn miss_is_one_database_read_and_fills_the_cache() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        world.cache.plant(session.stored_key().unwrap(), None).await;
        world.forget_calls();
        world.reopen(&session).await;
        assert_eq!((world.db.calls.count(Call::Load), world.db.calls.total()), (1, 1));
        assert_eq!(world.cache.calls.count(Call::PutValue), 1);
        world.reopen(&session).await;
        assert_eq!(world.db.calls.total(), 1);
        let stats = world.store.stats();
        assert_eq!((stats.misses, stats.fills, stats.lost_fills), (1, 1, 0));
    })
    .await;
}

#[tokio::test]
async fn every_operation_makes_as_many_calls_as_the_readme_says() {
    let world = World::shared().await;
    let cost = || {
        let calls = (world.cache.calls.total(), world.db.calls.total());
        world.forget_calls();
        calls
    };
    let mut session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    assert_eq!(cost(), (2, 1), "create");
    session.save().await.unwrap();
    assert_eq!(cost(), (2, 1), "save");
    let mut session = world.reopen(&session).await;
    assert_eq!(cost(), (1, 0), "hit");
    session.save().await.unwrap();
    assert_eq!(cost(), (2, 1), "save of a session that came from the cache");
    world.runtime.advance(HOUR);
    session.touch().await.unwrap();
    assert_eq!(cost(), (2, 1), "touch");
    let mut session = world.reopen(&session).await;
    assert_eq!(cost(), (2, 1), "miss");
    session.cycle_key().await.unwrap();
    assert_eq!(cost(), (4, 1), "cycle_key");
    session.delete().await.unwrap();
    assert_eq!(cost(), (2, 1), "delete");
    assert_eq!(world.cache.peek(&key).await, None);

    let mut session = world.saved([("x", 1)]).await;
    world.cache.plant(session.stored_key().unwrap(), Some(Entry::lease(Stamp(NonZeroU64::MAX)))).await;
    world.forget_calls();
    session = world.reopen(&session).await;
    assert_eq!(cost(), (1, 1), "load of a session that another reader loads");
    session.save().await.unwrap();
    assert_eq!(cost(), (3, 1), "save of a session that did not come from the cache");
}

#[tokio::test]
async fn every_reader_gets_the_same_decoded_record() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        let key = session.stored_key().unwrap();
        let one = world.store.load(key).await.unwrap().unwrap();
        let two = world.store.load(key).await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&one, &two));
    })
    .await;
}

#[tokio::test]
async fn overlong_key_opens_no_session() {
    each_database(async |world| {
        let key = "overlong".repeat(155);
        world.forget_calls();
        let session = world.store.open(&key).await.unwrap();
        assert!(session.key().is_none());
        assert_eq!(values_of(&session), map([]));
        assert_eq!(world.calls(), 0);
    })
    .await;
}

#[tokio::test]
async fn store_uses_only_the_cache_it_was_given() {
    each_database(async |world| {
        let another = TestCache::new();
        let store = CachedDb::builder(another.clone(), world.db.clone()).sole_process().reaper(None);
        let store = store.runtime(world.runtime.clone()).build().await.unwrap();
        let mut session = store.new_session();
        session.insert("x", 1).unwrap();
        session.save().await.unwrap();
        let key = session.stored_key().unwrap();
        assert!(another.peek_record(key).await.is_some());
        assert_eq!(world.cache.peek(key).await, None);
        assert_eq!(world.cache.calls.total(), 0);
    })
    .await;
}

#[tokio::test]
async fn save_succeeds_when_the_cache_refuses_the_value() {
    each_database(async |world| {
        let log = Log::listen();
        let mut session = world.saved([("key", 1)]).await;
        session.insert("key", 2).unwrap();
        world.cache.calls.fail(Call::PutValue, Moment::Before, Fault::Refused);
        assert_eq!(session.save().await.unwrap(), Coherence::Coherent);
        let events = log.events("cache_error");
        assert_eq!(events.len(), 1);
        assert!(events[0].contains("the test said no"), "{events:?}");
        assert_eq!(values_of(&world.reopen(&session).await), map([("key", 2)]));
        assert_eq!(world.store.stats().cache_errors, 1);
    })
    .await;
}

#[tokio::test]
async fn delete_succeeds_when_the_cache_cannot_be_cleared() {
    each_database(async |world| {
        let log = Log::listen();
        let session = world.saved([("key", 1)]).await;
        // The call that settles the fence is lost.
        world.cache.calls.fail(Call::PutNothing, Moment::Before, Fault::Refused);
        assert_eq!(session.delete().await.unwrap(), Coherence::Coherent);
        assert_eq!(log.events("settle_lost").len(), 1);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn save_of_a_value_too_large_for_the_cache_leaves_the_key_vacant() {
    let moka = CacheProperties::new(Scope::Process).with_max_entry_bytes(400);
    let cache = TestCache::new().with_properties(moka);
    let world = World::over(cache, in_memory().await, None, |builder| builder).await;
    let mut session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    assert!(world.cache.peek_record(&key).await.is_some());
    session.insert("large", "x".repeat(400)).unwrap();
    assert_eq!(session.save().await.unwrap(), Coherence::Coherent);
    assert_eq!(world.cache.peek(&key).await, None);
    // A load neither fills the key nor leaves its lease there.
    assert_eq!(world.reopen(&session).await.len(), 2);
    assert_eq!(world.cache.peek(&key).await, None);
}

#[tokio::test]
async fn cached_value_is_used_for_at_most_five_minutes() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        world.db.calls.reset();
        world.runtime.advance(5 * MINUTE - SECOND);
        world.reopen(&session).await;
        assert_eq!(world.db.calls.total(), 0);
        world.runtime.advance(SECOND);
        world.reopen(&session).await;
        assert_eq!(world.db.calls.total(), 1);
    })
    .await;
}

#[tokio::test]
async fn in_process_cache_beside_other_processes_is_used_for_five_seconds() {
    let (cache, db) = (TestCache::new(), in_memory().await);
    let runtime = ManualRuntime::new();
    let builder = CachedDb::builder(cache, db.clone()).reaper(None).runtime(runtime.clone());
    let store = builder.build().await.unwrap();
    let mut session = store.new_session();
    session.save().await.unwrap();
    db.calls.reset();
    runtime.advance(4 * SECOND);
    store.open(&key_of(&session)).await.unwrap();
    assert_eq!(db.calls.total(), 0);
    runtime.advance(SECOND);
    store.open(&key_of(&session)).await.unwrap();
    assert_eq!(db.calls.total(), 1);
}

#[tokio::test]
async fn scan_of_unknown_keys_leaves_nothing_in_the_cache() {
    let world = World::new().await;
    for number in 0..1_000 {
        let key = format!("unknown-key-{number}");
        assert!(world.store.open(&key).await.unwrap().key().is_none());
        let stored = world.store.stored_key(&key.parse().unwrap()).unwrap();
        assert_eq!(world.cache.peek(&stored).await, None);
    }
}

#[tokio::test]
async fn ping_reports_whether_the_cache_answers() {
    let world = World::shared().await;
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Up);
    world.cache.calls.fail_all(Fault::Unreachable);
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Down);
    world.cache.calls.heal();
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Up);
}

#[tokio::test]
async fn cache_call_that_hangs_ends_at_its_deadline() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    world.cache.calls.fail(Call::Acquire, Moment::Before, Fault::Hangs);
    let (store, key) = (world.store.clone(), key_of(&session));
    let opening = tokio::spawn(async move { store.open(&key).await });
    let deadline = std::time::Duration::from_millis(100);
    world.runtime.sleeping(|asked| asked == deadline).await;
    world.runtime.advance(deadline);
    assert_eq!(values_of(&opening.await.unwrap().unwrap()), map([("x", 1)]));
    assert_eq!(world.db.calls.count(Call::Load), 1);
}

#[tokio::test]
async fn failing_cache_is_left_alone_until_it_answers_a_probe() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    let log = Log::listen();
    world.cache.calls.fail_all(Fault::Unreachable);
    for _ in 0..5 {
        world.reopen(&session).await;
    }
    assert_eq!(log.events("cache_breaker_opened").len(), 1);
    world.forget_calls();
    for _ in 0..10 {
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    }
    assert_eq!((world.cache.calls.total(), world.db.calls.count(Call::Load)), (0, 10));

    // The first probe comes after a sixteenth of the probe interval, and further ones at longer and longer
    // intervals.
    let pause = world.probe_pause().await;
    assert_eq!(pause, SECOND / 16);
    world.runtime.advance(pause);
    let longer = world.runtime.sleeping(|asked| asked == pause * 2).await;
    // It asks for the key that has failed, and for another one.
    assert_eq!(world.cache.calls.total(), 2);
    world.cache.calls.heal();
    world.runtime.advance(longer);
    until(|| !log.events("cache_breaker_closed").is_empty()).await;
    world.db.calls.reset();
    world.reopen(&session).await;
    assert_eq!(world.db.calls.total(), 0);
    assert_eq!(world.store.stats().breaker_openings, 1);
}

#[tokio::test]
async fn fail_closed_operation_fails_before_the_database_is_touched() {
    let world = World::shared_with(|builder| {
        let fail = |builder: Builder<_, _>, operation: &_| {
            builder.outage_policy(*operation, OutagePolicy::FailClosed)
        };
        WriteOperation::ALL.iter().fold(builder, fail)
    })
    .await;
    let mut session = world.saved([("x", 1)]).await;
    world.runtime.advance(HOUR);
    world.cache.calls.fail_all(Fault::Unreachable);
    world.db.calls.reset();
    session.insert("x", 2).unwrap();
    let refused = |result: Result<Coherence, Error>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::CacheUnavailable) && error.is_retryable(), "{error}");
    };
    refused(session.save().await);
    refused(session.touch().await);
    refused(session.cycle_key().await);
    refused(session.delete().await);
    refused(session.flush().await);
    assert_eq!(world.db.calls.total(), 0);
    assert!(session.key().is_some() && session.modified());
    // A new session cannot make another request see an outdated one.
    assert_eq!(world.store.new_session().create().await.unwrap(), Coherence::Coherent);
    let log = Log::listen();
    world.cache_recovers(&log).await;
    assert_eq!(session.save().await.unwrap(), Coherence::Coherent);
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
}

#[tokio::test]
async fn session_expiry_is_kept_when_the_cache_is_down() {
    let world = World::shared().await;
    let mut session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::NoAnswer);
    session.set_expiry(Expiry::After(HOUR));
    assert_eq!(session.save().await.unwrap(), Coherence::Degraded);
    assert_eq!(world.reopen(&session).await.expires_at(), START + HOUR);
}
