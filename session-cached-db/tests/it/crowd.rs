//! Many writers of one session at once, and callers that leave before their result.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use session_cached_db::{Coherence, ConflictPolicy, Error, Hooks, Session};
use session_core::bytes::Bytes;
use session_core::{Codec, CodecError, JsonCodec, Record, SessionData, StoredKey};

use crate::common::{
    Call, Fault, Log, Moment, SECOND, World, each_database, key_of, map, soon, until, values_of,
};

/// Returns a session and its copies in `size` requests, opened before the first of them writes, each with a
/// change of its own key.
async fn crowd(world: &World, size: i32) -> (Session, Vec<Session>) {
    let session = world.saved([("x", 0)]).await;
    let mut crowd = Vec::new();
    for number in 0..size {
        let mut request = world.reopen(&session).await;
        request.insert(&format!("k{number}"), number).unwrap();
        crowd.push(request);
    }
    world.forget_calls();
    (session, crowd)
}

pub async fn save_all(crowd: &mut [Session]) -> Vec<Result<Coherence, Error>> {
    join_all(crowd.iter_mut().map(Session::save)).await
}

#[tokio::test]
async fn saves_of_one_session_on_one_node_make_no_conflict_and_read_nothing() {
    each_database(async |world| {
        let (session, mut crowd) = crowd(&world, 64).await;
        let fenced = world.store.stats().fenced_writes;
        for result in save_all(&mut crowd).await {
            assert_eq!(result.unwrap(), Coherence::Coherent);
        }
        assert_eq!(values_of(&world.reopen(&session).await).len(), 65);
        assert_eq!(world.db.calls.count(Call::Load), 0);
        assert_eq!(world.store.stats().conflicts, 0);
        // Saves that wait together become one statement with one fence, which is placed at once.
        assert_eq!(world.db.calls.count(Call::Update), 1);
        assert_eq!(world.cache.calls.count(Call::PutFence), 1);
        assert_eq!(world.cache.calls.count(Call::PutValue), 1);
        assert_eq!(world.store.stats().fenced_writes, fenced + 1);
    })
    .await;
}

#[tokio::test]
async fn crowd_of_writers_is_not_an_outage_under_any_policy() {
    for policy in [ConflictPolicy::LastWrite, ConflictPolicy::Reject] {
        let world = World::shared_with(|builder| builder.conflict_policy(policy)).await;
        let (session, mut crowd) = crowd(&world, 200).await;
        let saved = save_all(&mut crowd).await;
        assert!(saved.iter().all(|result| matches!(result, Ok(Coherence::Coherent))));
        assert_eq!(values_of(&world.reopen(&session).await).len(), 201);
        assert_eq!(world.store.stats().degraded_writes, 0);
        assert!(world.cache.peek_record(session.stored_key().unwrap()).await.is_some());
    }
}

#[tokio::test]
async fn crowds_of_writers_on_two_nodes_lose_no_change() {
    let world = World::shared().await;
    let (session, mut here) = crowd(&world, 20).await;
    let elsewhere = world.node().await;
    let mut there = Vec::new();
    for number in 0..20 {
        let mut request = elsewhere.open(&key_of(&session)).await.unwrap();
        request.insert(&format!("l{number}"), number).unwrap();
        there.push(request);
    }
    let (here, there) = tokio::join!(save_all(&mut here), save_all(&mut there));
    assert!(here.iter().chain(&there).all(|result| matches!(result, Ok(Coherence::Coherent))));
    for store in [&world.store, &elsewhere] {
        assert_eq!(values_of(&store.open(&key_of(&session)).await.unwrap()).len(), 41);
    }
}

#[tokio::test]
async fn reject_refuses_all_but_one_save_of_the_same_key() {
    let world = World::shared_with(|builder| builder.conflict_policy(ConflictPolicy::Reject)).await;
    let (session, mut crowd) = crowd(&world, 8).await;
    for request in &mut crowd[4..] {
        request.insert("x", 1).unwrap();
    }
    let saved = save_all(&mut crowd).await;
    let refused = saved.iter().filter(|result| matches!(result, Err(Error::Conflict))).count();
    assert_eq!((refused, saved.iter().filter(|result| result.is_ok()).count()), (3, 5));
    assert_eq!(world.store.stats().conflicts, 3);
    let values = values_of(&world.reopen(&session).await);
    assert_eq!((values.len(), values["x"]), (6, 1));
}

#[tokio::test]
async fn writes_run_in_the_order_of_their_arrival() {
    let world = World::shared().await;
    let (session, mut crowd) = crowd(&world, 3).await;
    let key = *session.stored_key().unwrap();
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let [first, second, third] = &mut crowd[..] else { panic!() };
    let writes = async { tokio::join!(first.save(), second.save(), world.store.revoke(&key), third.save()) };
    let release = async {
        held.reached().await;
        tokio::task::yield_now().await;
        held.release();
    };
    let ((first, second, revoked, third), ()) = tokio::join!(writes, release);
    first.unwrap();
    second.unwrap();
    assert!(revoked.unwrap().value);
    assert!(matches!(third, Err(Error::SessionGone)));
}

#[tokio::test]
async fn write_that_times_out_in_the_queue_is_busy_and_not_written() {
    let world = World::shared().await;
    let (session, mut crowd) = crowd(&world, 2).await;
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let (mut first, mut second) = (crowd.remove(0), crowd.remove(0));
    let first = tokio::spawn(async move { first.save().await });
    held.reached().await;
    let second = tokio::spawn(async move { second.save().await });
    tokio::task::yield_now().await;
    // Jump, so that the statement's own timer, which is due at the same time, does not end.
    world.runtime.jump(11 * SECOND);
    held.release();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    first.unwrap();
    let error = second.unwrap_err();
    assert!(matches!(error, Error::Busy) && error.is_retryable(), "{error}");
    assert_eq!(error.outcome(), session_core::Outcome::NotApplied);
    assert_eq!(world.db.calls.count(Call::Update), 1);
    assert_eq!(values_of(&world.reopen(&session).await), map([("k0", 0), ("x", 0)]));
}

#[tokio::test]
async fn write_that_waits_is_refused_at_its_deadline_and_not_at_its_turn() {
    let world = World::shared().await;
    let (session, mut crowd) = crowd(&world, 2).await;
    let mut fence = world.cache.calls.hold(Call::PutFence, Moment::Before);
    let mut update = world.db.calls.hold(Call::Update, Moment::Before);
    let (mut first, mut second) = (crowd.remove(0), crowd.remove(0));
    let first = tokio::spawn(async move { first.save().await });
    fence.reached().await;
    let second = tokio::spawn(async move { second.save().await });
    tokio::task::yield_now().await;
    // The statement of the first is sent a second later, so it has a second left when the time of the other is up.
    world.runtime.jump(SECOND);
    fence.release();
    update.reached().await;
    world.runtime.advance(9 * SECOND);
    let error = soon(second).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Busy), "{error}");
    assert_eq!(error.outcome(), session_core::Outcome::NotApplied);
    assert!(!first.is_finished());
    update.release();
    soon(first).await.unwrap().unwrap();
    assert_eq!(world.db.calls.count(Call::Update), 1);
    assert_eq!(values_of(&world.reopen(&session).await), map([("k0", 0), ("x", 0)]));
}

#[tokio::test]
async fn write_queue_refuses_writes_beyond_its_capacity() {
    let world = World::shared_with(|builder| builder.max_waiting_writes(4)).await;
    let (session, mut crowd) = crowd(&world, 10).await;
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let release = async {
        held.reached().await;
        held.release();
    };
    let (saved, ()) = tokio::join!(save_all(&mut crowd), release);
    let busy = saved.iter().filter(|result| matches!(result, Err(Error::Busy))).count();
    assert!((5..=6).contains(&busy), "{busy}");
    assert_eq!(values_of(&world.reopen(&session).await).len(), 11 - busy);
}

#[tokio::test]
async fn fence_of_a_lost_settlement_is_removed_when_the_cache_answers() {
    let world = World::shared().await;
    let mut session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    session.insert("x", 2).unwrap();
    world.cache.calls.fail(Call::PutValue, Moment::Before, Fault::NoAnswer);
    world.cache.calls.fail(Call::Get, Moment::Before, Fault::NoAnswer);
    assert_eq!(session.save().await.unwrap(), Coherence::Coherent);
    assert!(world.cache.peek_record(&key).await.is_none());
    let pause = world.probe_pause().await;
    world.runtime.advance(pause);
    until(|| world.store.stats().repairs == 1).await;
    assert_eq!(world.cache.peek(&key).await, None);
    world.reopen(&session).await;
    assert!(world.cache.peek_record(&key).await.is_some());
}

/// Hooks that panic the first time that a session gets another key.
#[derive(Debug, Default)]
struct Panics(AtomicUsize);

impl Hooks for Panics {
    fn renewed(&self, _: &StoredKey, _: &StoredKey, _: &Record) {
        assert!(self.0.fetch_add(1, Ordering::Relaxed) > 0, "the first renewal");
    }
}

#[tokio::test]
async fn panicking_write_leaves_no_fence_behind() {
    let world = World::shared_with(|builder| builder.hooks(Panics::default()).breaker_threshold(1_000)).await;
    let log = Log::listen();
    for is_down in [false, true] {
        let session = world.saved([("x", 1)]).await;
        let (mut one, mut other) = (world.reopen(&session).await, world.reopen(&session).await);
        if is_down {
            world.cache.calls.fail_all(Fault::Unreachable);
        }
        other.insert("x", 2).unwrap();
        let (panicked, saved) = tokio::join!(one.cycle_key(), other.save());
        if is_down {
            // The hook panics only once.
            panicked.unwrap();
        } else {
            assert!(matches!(panicked, Err(Error::Interrupted)));
        }
        // The session had been renamed before the panic, and the save that waited behind it had its turn.
        assert!(matches!(saved, Err(Error::SessionGone)), "{saved:?}");
        world.cache.calls.heal();
    }
    assert_eq!(log.events("write_panicked").len(), 1);
    soon(world.store.close()).await;
}

#[tokio::test]
async fn revocation_without_its_caller_goes_on_and_close_waits_for_it() {
    for closes_at_once in [false, true] {
        let world = World::shared().await;
        // More than one statement ends.
        for _ in 0..150 {
            let mut session = world.store.new_session();
            session.set_subject("user-42").unwrap();
            session.save().await.unwrap();
        }
        let mut held = world.db.calls.hold(Call::Delete, Moment::Before);
        let revoking = {
            let store = world.store.clone();
            tokio::spawn(async move { store.revoke_subject("user-42").await })
        };
        held.reached().await;
        revoking.abort();
        assert!(revoking.await.unwrap_err().is_cancelled());
        if closes_at_once {
            let release = async {
                tokio::task::yield_now().await;
                held.release();
            };
            soon(async { tokio::join!(world.store.close(), release) }).await;
            assert_eq!(world.db.calls.count(Call::Delete), 2);
        } else {
            held.release();
            until(|| world.db.calls.count(Call::Delete) == 2).await;
        }
        let elsewhere = world.node().await;
        soon(async {
            while !elsewhere.list_by_subject("user-42").await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn failed_deletion_does_not_stop_the_others() {
    let world = World::shared().await;
    for _ in 0..5 {
        let mut session = world.store.new_session();
        session.set_subject("user-42").unwrap();
        session.save().await.unwrap();
    }
    // The statement for all of them, and then one that goes alone.
    for _ in 0..2 {
        world.db.calls.fail(Call::Delete, Moment::Before, Fault::Refused);
    }
    assert!(matches!(world.store.revoke_subject("user-42").await, Err(Error::Database(_))));
    assert_eq!(world.store.list_by_subject("user-42").await.unwrap().len(), 1);
}

#[tokio::test]
async fn deletions_do_not_go_alone_to_a_database_out_of_reach() {
    let world = World::shared().await;
    for _ in 0..5 {
        let mut session = world.store.new_session();
        session.set_subject("user-42").unwrap();
        session.save().await.unwrap();
    }
    world.db.calls.reset();
    world.db.calls.fail(Call::Delete, Moment::Before, Fault::Unreachable);
    assert!(world.store.revoke_subject("user-42").await.unwrap_err().is_retryable());
    assert_eq!(world.db.calls.count(Call::Delete), 1);
}

#[tokio::test]
async fn save_dropped_while_waiting_is_carried_out() {
    let world = World::shared().await;
    let (session, mut crowd) = crowd(&world, 2).await;
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let (mut first, mut second) = (crowd.remove(0), crowd.remove(0));
    let first = tokio::spawn(async move { first.save().await });
    held.reached().await;
    let second = tokio::spawn(async move { second.save().await });
    tokio::task::yield_now().await;
    second.abort();
    held.release();
    first.await.unwrap().unwrap();
    soon(world.store.close()).await;
    let values = world.in_database(session.stored_key().unwrap()).await.unwrap();
    assert_eq!(values, map([("k0", 0), ("k1", 1), ("x", 0)]));
}

#[tokio::test]
async fn save_too_large_fails_alone() {
    let world = World::shared_with(|builder| builder.max_keys(3)).await;
    let (session, mut crowd) = crowd(&world, 3).await;
    for number in 0..5 {
        crowd[1].insert(&format!("more{number}"), 1).unwrap();
    }
    // The first save is written alone, the others together.
    let saved = save_all(&mut crowd).await;
    assert!(saved[0].is_ok() && saved[2].is_ok(), "{saved:?}");
    assert!(matches!(saved[1], Err(Error::TooManyKeys { .. })), "{saved:?}");
    assert_eq!(values_of(&world.reopen(&session).await), map([("k0", 0), ("k2", 2), ("x", 0)]));
}

#[tokio::test]
async fn waiting_saves_that_fit_the_limit_are_written() {
    let world = World::shared_with(|builder| builder.max_keys(9)).await;
    let (session, mut here) = crowd(&world, 8).await;
    let mut there = world.node().await.open(&key_of(&session)).await.unwrap();
    there.insert("there", 1).unwrap();
    there.save().await.unwrap();
    let saved = save_all(&mut here).await;
    // The session has two keys, so seven of the eight saves fit, as if they came one after another.
    assert_eq!(saved.iter().filter(|result| result.is_ok()).count(), 7, "{saved:?}");
    assert_eq!(values_of(&world.reopen(&session).await).len(), 9);
}

/// A codec that panics over one key.
#[derive(Debug)]
struct PanicsOverBoom;

impl Codec for PanicsOverBoom {
    fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        assert!(!data.contains("boom"), "the test says so");
        JsonCodec::default().encode(key, data)
    }
    fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        JsonCodec::default().decode(key, payload)
    }
}

#[tokio::test]
async fn panicking_save_does_not_fail_the_saves_that_wait_with_it() {
    let world = World::shared_with(|builder| builder.codec(PanicsOverBoom)).await;
    let (session, mut crowd) = crowd(&world, 8).await;
    crowd[4].insert("boom", 1).unwrap();
    let saved = save_all(&mut crowd).await;
    assert!(matches!(saved[4], Err(Error::Interrupted)));
    assert_eq!(saved.iter().filter(|result| result.is_ok()).count(), 7, "{saved:?}");
    assert_eq!(values_of(&world.reopen(&session).await).len(), 8);
}

#[tokio::test]
async fn saves_that_are_written_apart_are_busy_after_their_deadline() {
    let world = World::shared_with(|builder| builder.codec(PanicsOverBoom)).await;
    let (session, mut crowd) = crowd(&world, 8).await;
    crowd[4].insert("boom", 1).unwrap();
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let saving = tokio::spawn(async move { save_all(&mut crowd).await });
    held.reached().await;
    world.runtime.jump(11 * SECOND);
    held.release();
    let saved = soon(saving).await.unwrap();
    assert!(saved[0].is_ok(), "{saved:?}");
    assert!(saved[1..].iter().all(|result| matches!(result, Err(Error::Busy))), "{saved:?}");
    assert_eq!(world.db.calls.count(Call::Update), 1);
    assert_eq!(values_of(&world.reopen(&session).await), map([("k0", 0), ("x", 0)]));
}

#[tokio::test]
async fn modification_that_panics_over_another_nodes_value_fails_alone() {
    let world = World::shared().await;
    let (session, mut crowd) = crowd(&world, 8).await;
    let mut filled = world.reopen(&session).await;
    filled.insert("list", [1]).unwrap();
    filled.save().await.unwrap();
    for session in &mut crowd {
        *session = world.reopen(&filled).await;
    }
    for (n, session) in crowd.iter_mut().enumerate() {
        session.insert(&format!("saver-{n}"), n).unwrap();
    }
    crowd[4].modify("list", |list: &mut Vec<i32>| list.remove(0)).unwrap();
    let node = world.node().await;
    let mut elsewhere = node.open(&key_of(&filled)).await.unwrap();
    elsewhere.insert("list", [0; 0]).unwrap();
    elsewhere.save().await.unwrap();
    let saved = save_all(&mut crowd).await;
    assert!(matches!(saved[4], Err(Error::Interrupted)), "{saved:?}");
    assert_eq!(saved.iter().filter(|result| result.is_ok()).count(), 7, "{saved:?}");
}

#[tokio::test]
async fn session_can_be_ended_with_a_full_write_queue() {
    let world = World::shared_with(|builder| builder.max_waiting_writes(4)).await;
    let (session, mut crowd) = crowd(&world, 8).await;
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let first = {
        let mut first = crowd.remove(0);
        tokio::spawn(async move { first.save().await })
    };
    held.reached().await;
    let key = *session.stored_key().unwrap();
    let release = async {
        tokio::task::yield_now().await;
        held.release();
    };
    let (saved, revoked, ()) = tokio::join!(save_all(&mut crowd), world.store.revoke(&key), release);
    assert!(saved.iter().any(|result| matches!(result, Err(Error::Busy))));
    assert!(revoked.unwrap().value);
    first.await.unwrap().unwrap();
    assert!(!session.exists().await.unwrap());
}

#[tokio::test]
async fn lease_of_a_lost_fill_is_removed_when_the_cache_answers() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    world.cache.plant(&key, None).await;
    world.cache.calls.fail(Call::PutValue, Moment::Before, Fault::NoAnswer);
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    assert!(world.cache.peek(&key).await.is_some());
    let pause = world.probe_pause().await;
    world.runtime.advance(pause);
    until(|| world.store.stats().repairs == 1).await;
    world.reopen(&session).await;
    assert!(world.cache.peek_record(&key).await.is_some());
}
