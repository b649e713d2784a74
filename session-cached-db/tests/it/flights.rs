//! Concurrent loads of one key.

use std::time::Duration;

use session_cached_db::Error;
use session_core::StoredKey;
use tokio::task::JoinHandle;

use crate::common::{
    Call, Fault, Held, Moment, Store, World, each_database, each_database_with, key_of, map, soon, until,
    values_of,
};

type Values = std::collections::BTreeMap<String, i32>;

/// Stores a session in the database and not in the cache, and returns its two keys.
async fn cold(world: &World) -> (String, StoredKey) {
    let session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    world.cache.plant(&key, None).await;
    world.forget_calls();
    (key_of(&session), key)
}

fn load(store: &Store, key: &str) -> JoinHandle<Result<Values, Error>> {
    let (store, key) = (store.clone(), key.to_owned());
    tokio::spawn(async move { store.open(&key).await.map(|session| values_of(&session)) })
}

fn burst(store: &Store, key: &str) -> Vec<JoinHandle<Result<Values, Error>>> {
    (0..256).map(|_| load(store, key)).collect()
}

/// Starts a burst of loads, which all come before the first of them has an answer from the shared cache.
async fn assembled(world: &World, key: &str) -> (Vec<JoinHandle<Result<Values, Error>>>, Held) {
    let mut held = world.cache.calls.hold(Call::Acquire, Moment::Before);
    let loads = burst(&world.store, key);
    held.reached().await;
    until(|| world.store.stats().joined == 255).await;
    (loads, held)
}

async fn all_see(loads: Vec<JoinHandle<Result<Values, Error>>>, values: &Values) {
    for load in loads {
        assert_eq!(&load.await.unwrap().unwrap(), values);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_of_256_loads_of_a_cold_key_makes_one_database_read() {
    each_database(async |world| {
        for _ in 0..20 {
            let (key, _) = cold(&world).await;
            all_see(burst(&world.store, &key), &map([("x", 1)])).await;
            assert_eq!(world.db.calls.count(Call::Load), 1);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_loads_over_a_shared_cache_makes_one_database_read() {
    let world = World::shared().await;
    for _ in 0..20 {
        let (key, _) = cold(&world).await;
        all_see(burst(&world.store, &key), &map([("x", 1)])).await;
        assert_eq!(world.db.calls.count(Call::Load), 1);
    }
}

#[tokio::test]
async fn loads_that_come_during_the_database_read_share_it() {
    let world = World::new().await;
    let (key, _) = cold(&world).await;
    let mut held = world.db.calls.hold(Call::Load, Moment::Before);
    let loads = burst(&world.store, &key);
    held.reached().await;
    until(|| world.store.stats().joined == 255).await;
    held.release();
    all_see(loads, &map([("x", 1)])).await;
    assert_eq!(world.db.calls.count(Call::Load), 1);
    assert_eq!(world.store.stats().misses, 1);
}

#[tokio::test]
async fn loads_that_came_before_the_read_share_its_empty_result() {
    let world = World::shared().await;
    let (loads, held) = assembled(&world, "unknown-key").await;
    held.release();
    all_see(loads, &map([])).await;
    assert_eq!(world.db.calls.count(Call::Load), 1);
}

#[tokio::test]
async fn loads_that_came_after_an_empty_read_share_one_more_read() {
    let world = World::new().await;
    let mut held = world.db.calls.hold(Call::Load, Moment::Before);
    let loads = burst(&world.store, "unknown-key");
    held.reached().await;
    until(|| world.store.stats().joined == 255).await;
    held.release();
    all_see(loads, &map([])).await;
    assert_eq!(world.db.calls.count(Call::Load), 2);
}

#[tokio::test]
async fn cancelled_first_load_strands_no_other() {
    each_database(async |world| {
        let (key, stored_key) = cold(&world).await;
        let mut held = world.db.calls.hold(Call::Load, Moment::Before);
        let first = load(&world.store, &key);
        held.reached().await;
        let others = burst(&world.store, &key);
        until(|| world.store.stats().joined == 256).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        // The read that the cancelled load sent goes on, for the others.
        held.release();
        all_see(others, &map([("x", 1)])).await;
        assert_eq!(world.db.calls.count(Call::Load), 1);
        assert!(world.cache.peek_record(&stored_key).await.is_some());
    })
    .await;
}

#[tokio::test]
async fn load_cancelled_in_a_shared_cache_call_strands_no_other() {
    let world = World::shared().await;
    let (key, _) = cold(&world).await;
    for moment in [Moment::Before, Moment::After] {
        let mut held = world.cache.calls.hold(Call::Acquire, moment);
        let joined = world.store.stats().joined;
        let first = load(&world.store, &key);
        held.reached().await;
        let others = burst(&world.store, &key);
        until(|| world.store.stats().joined == joined + 256).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        held.release();
        all_see(others, &map([("x", 1)])).await;
    }
}

#[tokio::test]
async fn next_load_is_served_after_all_others_were_cancelled() {
    for (is_database, moment) in
        [(false, Moment::Before), (false, Moment::After), (true, Moment::Before), (true, Moment::After)]
    {
        let world = World::shared().await;
        let (key, _) = cold(&world).await;
        let mut held = if is_database {
            world.db.calls.hold(Call::Load, moment)
        } else {
            world.cache.calls.hold(Call::Acquire, moment)
        };
        let only = load(&world.store, &key);
        held.reached().await;
        only.abort();
        assert!(only.await.unwrap_err().is_cancelled());
        let next = load(&world.store, &key);
        held.release();
        assert_eq!(next.await.unwrap().unwrap(), map([("x", 1)]));
        assert_eq!(world.db.calls.count(Call::Load), 1);
    }
}

#[tokio::test]
async fn load_cancelled_while_reading_leaves_no_lease_behind() {
    each_database(async |world| {
        for moment in [Moment::Before, Moment::After] {
            let (key, stored_key) = cold(&world).await;
            let mut held = world.db.calls.hold(Call::Load, moment);
            let only = load(&world.store, &key);
            held.reached().await;
            only.abort();
            assert!(only.await.unwrap_err().is_cancelled());
            // A task finishes the attempt, although no load waits for it.
            held.release();
            soon(async {
                while world.cache.peek_record(&stored_key).await.is_none() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn load_after_a_write_does_not_get_an_earlier_read() {
    each_database(async |world| {
        let (key, _) = cold(&world).await;
        let mut held = world.db.calls.hold(Call::Load, Moment::After);
        let early = load(&world.store, &key);
        held.reached().await;
        // Another node saves.
        let elsewhere = world.node().await;
        let mut session = elsewhere.open(&key).await.unwrap();
        session.insert("x", 2).unwrap();
        session.save().await.unwrap();
        let late = load(&world.store, &key);
        // The late load gets the value that the writer has published, or waits for a read of its own.
        held.release();
        early.await.unwrap().unwrap();
        assert_eq!(late.await.unwrap().unwrap(), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn load_under_a_fence_does_not_get_an_earlier_read() {
    each_database(async |world| {
        let (key, _) = cold(&world).await;
        let mut reading = world.db.calls.hold(Call::Load, Moment::After);
        let early = load(&world.store, &key);
        reading.reached().await;
        let elsewhere = world.node().await;
        let mut session = elsewhere.open(&key).await.unwrap();
        session.insert("x", 2).unwrap();
        // The save is committed, but its settlement is lost, so the fence stays.
        world.cache.calls.fail(Call::PutValue, Moment::Before, Fault::NoAnswer);
        world.cache.calls.fail(Call::Get, Moment::Before, Fault::NoAnswer);
        session.save().await.unwrap();
        let joined = world.store.stats().joined;
        let late = load(&world.store, &key);
        until(|| world.store.stats().joined == joined + 1).await;
        reading.release();
        early.await.unwrap().unwrap();
        assert_eq!(late.await.unwrap().unwrap(), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn load_after_a_fill_and_a_write_does_not_get_the_fill() {
    each_database(async |world| {
        let (key, _) = cold(&world).await;
        let mut filling = world.cache.calls.hold(Call::PutValue, Moment::After);
        let early = load(&world.store, &key);
        filling.reached().await;
        // Another node saves, and its settlement is lost.
        let elsewhere = world.node().await;
        let mut session = elsewhere.open(&key).await.unwrap();
        session.insert("x", 2).unwrap();
        world.cache.calls.fail(Call::PutValue, Moment::Before, Fault::NoAnswer);
        world.cache.calls.fail(Call::Get, Moment::Before, Fault::NoAnswer);
        session.save().await.unwrap();
        let late = load(&world.store, &key);
        until(|| world.store.stats().joined == 1).await;
        filling.release();
        assert_eq!(early.await.unwrap().unwrap(), map([("x", 1)]));
        assert_eq!(late.await.unwrap().unwrap(), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn load_error_is_shared_and_not_kept() {
    let world = World::shared().await;
    let (key, _) = cold(&world).await;
    world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
    let (loads, held) = assembled(&world, &key).await;
    held.release();
    for load in loads {
        let error = load.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Database(_)) && error.is_retryable(), "{error}");
    }
    assert_eq!(world.db.calls.count(Call::Load), 1);
    assert_eq!(values_of(&world.store.open(&key).await.unwrap()), map([("x", 1)]));
}

#[tokio::test]
async fn loads_beyond_single_flight_capacity_read_the_database_alone() {
    each_database_with(
        |builder| builder.single_flight_capacity(1),
        async |world| {
            let (one, _) = cold(&world).await;
            let (other, _) = cold(&world).await;
            let mut held = world.db.calls.hold(Call::Load, Moment::Before);
            let waiting = load(&world.store, &one);
            held.reached().await;
            let bypasses = world.store.stats().bypasses;
            for _ in 0..3 {
                assert_eq!(values_of(&world.store.open(&other).await.unwrap()), map([("x", 1)]));
            }
            assert_eq!(world.store.stats().bypasses, bypasses + 3);
            held.release();
            assert_eq!(waiting.await.unwrap().unwrap(), map([("x", 1)]));
            // As soon as there is room again, loads fill the cache again.
            let fills = world.store.stats().fills;
            world.store.open(&other).await.unwrap();
            assert_eq!(world.store.stats().fills, fills + 1);
        },
    )
    .await;
}

#[tokio::test]
async fn flight_with_a_hanging_read_ends_for_all_loads() {
    let world = World::shared().await;
    let (key, _) = cold(&world).await;
    world.db.calls.fail(Call::Load, Moment::Before, Fault::Hangs);
    let (loads, held) = assembled(&world, &key).await;
    held.release();
    let timeout = Duration::from_secs(5);
    world.runtime.sleeping(|asked| asked == timeout).await;
    world.runtime.advance(timeout);
    for load in loads {
        assert!(load.await.unwrap().unwrap_err().is_retryable());
    }
    assert_eq!(values_of(&world.store.open(&key).await.unwrap()), map([("x", 1)]));
}

#[test]
fn load_outlives_the_runtime_of_the_attempts_first_load() {
    let callers = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::runtime::Runtime::new().unwrap();
    let (held, waiting) = callers.block_on(async {
        let world = World::new().await;
        let (key, _) = cold(&world).await;
        let store = world.builder().runtime(world.runtime.on(tasks.handle().clone())).build().await.unwrap();
        let mut held = world.db.calls.hold(Call::Load, Moment::Before);
        let first = load(&store, &key);
        held.reached().await;
        let waiting = load(&store, &key);
        until(|| store.stats().joined == 1).await;
        first.abort();
        (held, waiting)
    });
    tasks.shutdown_background();
    held.release();
    assert_eq!(callers.block_on(soon(waiting)).unwrap().unwrap(), map([("x", 1)]));
}

/// Polls a future once, and returns it without polling it again.
async fn poll_once<F: Future + Unpin>(mut future: F) -> F {
    assert!(futures_util::poll!(&mut future).is_pending());
    future
}

#[tokio::test]
async fn live_load_that_is_not_polled_strands_no_other() {
    for (is_database, moment) in
        [(false, Moment::Before), (false, Moment::After), (true, Moment::Before), (true, Moment::After)]
    {
        let world = World::shared().await;
        let (key, _) = cold(&world).await;
        let held = if is_database {
            world.db.calls.hold(Call::Load, moment)
        } else {
            world.cache.calls.hold(Call::Acquire, moment)
        };
        let stalled = poll_once(Box::pin(world.store.open(&key))).await;
        let others = burst(&world.store, &key);
        until(|| world.store.stats().joined == 256).await;
        held.release();
        soon(all_see(others, &map([("x", 1)]))).await;
        assert_eq!(values_of(&soon(stalled).await.unwrap()), map([("x", 1)]));
    }
}

#[tokio::test]
async fn loads_that_came_too_late_share_one_more_read() {
    let world = World::shared().await;
    let (key, stored_key) = cold(&world).await;
    let mut held = world.db.calls.hold(Call::Load, Moment::After);
    let first = load(&world.store, &key);
    held.reached().await;
    // Another node writes, so the read is too old for loads that come now, and cannot be filled.
    let elsewhere = world.node().await;
    let mut session = elsewhere.open(&key).await.unwrap();
    session.insert("x", 2).unwrap();
    session.save().await.unwrap();
    world.cache.plant(&stored_key, None).await;
    let reads = world.db.calls.count(Call::Load);
    let late = burst(&world.store, &key);
    until(|| world.store.stats().joined == 256).await;
    held.release();
    first.await.unwrap().unwrap();
    all_see(late, &map([("x", 2)])).await;
    assert_eq!(world.db.calls.count(Call::Load), reads + 1);
}

#[tokio::test]
async fn late_load_waits_no_longer_than_one_attempt_may_take() {
    let world = World::shared().await;
    let (key, stored_key) = cold(&world).await;
    let mut held = world.db.calls.hold(Call::Load, Moment::After);
    let first = load(&world.store, &key);
    held.reached().await;
    let late = load(&world.store, &key);
    until(|| world.store.stats().joined == 1).await;
    // The first attempt takes nearly as long as it may, and its result is too old for the late load.
    world.runtime.advance(Duration::from_millis(4_900));
    world.cache.plant(&stored_key, None).await;
    world.db.calls.fail(Call::Load, Moment::Before, Fault::Hangs);
    held.release();
    first.await.unwrap().unwrap();
    let of_the_rest = Duration::from_millis(101)..Duration::from_millis(500);
    let left = world.runtime.sleeping(|asked| of_the_rest.contains(&asked)).await;
    world.runtime.advance(left);
    assert!(soon(late).await.unwrap().unwrap_err().is_retryable());
}

#[tokio::test]
async fn load_dropped_after_its_attempt_has_ended_leaves_the_next_to_its_end() {
    let world = World::shared().await;
    let (key, stored_key) = cold(&world).await;
    let mut held = world.db.calls.hold(Call::Load, Moment::After);
    let first = load(&world.store, &key);
    held.reached().await;
    // Both come too late for the read, and wait for the next attempt; one of them is not polled again.
    let stalled = poll_once(Box::pin(world.store.open(&key))).await;
    let late = load(&world.store, &key);
    until(|| world.store.stats().joined == 2).await;
    world.cache.plant(&stored_key, None).await;
    let mut next = world.db.calls.hold(Call::Load, Moment::Before);
    held.release();
    first.await.unwrap().unwrap();
    next.reached().await;
    late.abort();
    assert!(late.await.unwrap_err().is_cancelled());
    drop(stalled);
    next.release();
    // The attempt goes on, and fills the key: it leaves no lease behind.
    until(|| world.store.stats().fills == 1).await;
    assert!(world.cache.peek_record(&stored_key).await.is_some());
}
