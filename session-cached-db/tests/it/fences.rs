//! Fences that are lost, shared or left behind.

use std::time::Duration;

use session_cached_db::Coherence;
use session_core::{Entry, Stamp, State, Value};

use crate::coherence::{each_shared, stored_key};
use crate::common::{Call, Fault, HOUR, Moment, START, World, each_database, key_of, map, until, values_of};

#[tokio::test]
async fn fence_stays_when_its_writer_gets_no_answer() {
    each_shared(async |world| {
        for moment in [Moment::Before, Moment::After] {
            let mut session = world.saved([("x", 1)]).await;
            let key = stored_key(&session);
            session.insert("x", 2).unwrap();
            world.db.calls.fail(Call::Update, moment, Fault::NoAnswer);
            let error = session.save().await.unwrap_err();
            assert_eq!(error.outcome(), session_core::Outcome::Unknown);
            assert!(matches!(world.cache.peek(&key).await.unwrap().state, State::Fence(_)));
            // Every reader gets the truth, from the database.
            let truth = if moment == Moment::Before { 1 } else { 2 };
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", truth)]));
            // Repeating the save ends the uncertainty.
            session.save().await.unwrap();
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
        }
    })
    .await;
}

#[tokio::test]
async fn value_filled_under_a_lost_fence_is_removed() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        let key = stored_key(&session);
        let old = world.store.load(&key).await.unwrap().unwrap();
        let store = world.cache.store_of(&key).await;
        session.insert("x", 2).unwrap();
        let mut held = world.db.calls.hold(Call::Update, Moment::After);
        let saving = tokio::spawn(async move { session.save().await.map(|_| session) });
        held.reached().await;
        // The fence is evicted, and a late reader fills what it had read before.
        let value = Value { record: old, made_at: START, store };
        let stamp = Stamp(std::num::NonZeroU64::MAX);
        world.cache.plant(&key, Some(Entry::value(stamp, value))).await;
        held.release();
        let session = saving.await.unwrap().unwrap();
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn overlapping_writers_publish_nothing() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        let elsewhere = world.node().await;
        let (mut one, mut two) =
            (world.reopen(&session).await, elsewhere.open(&key_of(&session)).await.unwrap());
        one.insert("a", 1).unwrap();
        two.insert("b", 2).unwrap();
        let mut held = world.db.calls.hold(Call::Update, Moment::After);
        let saving = tokio::spawn(async move { one.save().await });
        held.reached().await;
        two.save().await.unwrap();
        held.release();
        saving.await.unwrap().unwrap();
        assert_eq!(world.cache.peek(&stored_key(&session)).await, None);
        assert_eq!(values_of(&world.reopen(&session).await), map([("a", 1), ("b", 2), ("x", 1)]));
    })
    .await;
}

#[tokio::test]
async fn abandoned_writer_does_not_keep_the_key_uncached_for_ever() {
    let world = World::with(|builder| builder.max_cache_age(HOUR)).await;
    let mut session = world.saved([("x", 1)]).await;
    session.insert("x", 2).unwrap();
    world.db.calls.fail(Call::Update, Moment::After, Fault::NoAnswer);
    session.save().await.unwrap_err();
    world.runtime.advance(Duration::from_secs(33));
    let mut other = world.reopen(&session).await;
    other.insert("y", 3).unwrap();
    other.save().await.unwrap();
    let key = stored_key(&session);
    let cached = world.cache.peek_record(&key).await;
    assert!(cached.is_some_and(|record| record.payload() == &br#"1{"x":2,"y":3}"#[..]));
}

#[tokio::test]
async fn no_writer_publishes_while_another_is_in_flight() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        let key = stored_key(&session);
        let elsewhere = world.node().await;
        let (mut one, mut two) =
            (world.reopen(&session).await, elsewhere.open(&key_of(&session)).await.unwrap());
        one.insert("a", 1).unwrap();
        two.insert("b", 2).unwrap();
        let mut held = world.db.calls.hold(Call::Update, Moment::Before);
        let saving = tokio::spawn(async move { one.save().await });
        held.reached().await;
        two.save().await.unwrap();
        let Some(State::Fence(fence)) = world.cache.peek(&key).await.map(|entry| entry.state) else {
            panic!()
        };
        assert!(fence.dirty && fence.holders.len() == 1);
        held.release();
        saving.await.unwrap().unwrap();
        assert_eq!(world.cache.peek(&key).await, None);
    })
    .await;
}

#[tokio::test]
async fn writer_with_a_lost_fence_keeps_the_next_one_from_publishing() {
    each_database(async |world| {
        let mut one = world.saved([("x", 1)]).await;
        let key = stored_key(&one);
        one.insert("x", 2).unwrap();
        let mut first = world.db.calls.hold(Call::Update, Moment::After);
        let client_key = key_of(&one);
        let saving_one = tokio::spawn(async move { one.save().await });
        first.reached().await;
        world.cache.plant(&key, None).await;
        let elsewhere = world.node().await;
        let mut two = elsewhere.open(&client_key).await.unwrap();
        two.insert("y", 3).unwrap();
        let mut second = world.db.calls.hold(Call::Update, Moment::Before);
        let saving_two = tokio::spawn(async move { two.save().await });
        second.reached().await;
        first.release();
        saving_one.await.unwrap().unwrap();
        second.release();
        saving_two.await.unwrap().unwrap();
        assert_eq!(world.cache.peek(&key).await, None);
        assert_eq!(values_of(&world.store.open(&client_key).await.unwrap()), map([("x", 2), ("y", 3)]));
    })
    .await;
}

#[tokio::test]
async fn repair_keeps_a_concurrent_writer_from_publishing() {
    each_shared(async |world| {
        let elsewhere = world.node().await;
        let mut here = world.saved([("x", 1)]).await;
        let key = stored_key(&here);
        let mut there = elsewhere.open(&key_of(&here)).await.unwrap();
        here.insert("x", 2).unwrap();
        there.insert("y", 3).unwrap();
        world.cache.calls.fail(Call::PutFence, Moment::Before, Fault::Refused);
        assert_eq!(here.save().await.unwrap(), Coherence::Degraded);
        let mut held = world.db.calls.hold(Call::Update, Moment::Before);
        let saving = tokio::spawn(async move { there.save().await });
        held.reached().await;
        let pause = world.probe_pause().await;
        world.runtime.advance(pause);
        until(|| world.store.stats().repairs == 1).await;
        held.release();
        saving.await.unwrap().unwrap();
        assert_eq!(world.cache.peek(&key).await, None);
        assert_eq!(values_of(&world.reopen(&here).await), map([("x", 2), ("y", 3)]));
    })
    .await;
}

#[tokio::test]
async fn lost_settlements_of_one_key_are_all_repaired() {
    for is_first_degraded in [false, true] {
        let world = World::shared().await;
        let mut session = world.saved([("x", 1)]).await;
        let key = stored_key(&session);
        for x in 2..4 {
            session.insert("x", x).unwrap();
            if x == 2 && is_first_degraded {
                // Its fence is placed, and nothing says so.
                world.cache.calls.fail(Call::PutFence, Moment::After, Fault::NoAnswer);
                world.cache.calls.fail(Call::Get, Moment::Before, Fault::NoAnswer);
                assert_eq!(session.save().await.unwrap(), Coherence::Degraded);
                continue;
            }
            let mut held = world.db.calls.hold(Call::Update, Moment::After);
            let saving = tokio::spawn(async move { session.save().await.map(|_| session) });
            held.reached().await;
            world.cache.calls.fail_all(Fault::NoAnswer);
            held.release();
            session = saving.await.unwrap().unwrap();
            world.cache.calls.heal();
        }
        let State::Fence(fence) = world.cache.peek(&key).await.unwrap().state else {
            panic!("the settlements were not lost");
        };
        assert_eq!(fence.holders.len(), 2, "{is_first_degraded}");
        let pause = world.probe_pause().await;
        world.runtime.advance(pause);
        until(|| world.store.stats().repairs == 1).await;
        assert_eq!(world.cache.peek(&key).await, None, "{is_first_degraded}");
    }
}
