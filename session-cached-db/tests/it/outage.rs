//! Outages of the cache: their effect on callers, on the cache afterwards, and on the log.

use session_cached_db::{CacheHealth, Coherence, Error, OutagePolicy, Session, WriteOperation};
use session_core::{Cache as _, Outcome, Runtime as _, StoredKey};

use crate::common::{Call, Fault, Log, MINUTE, Moment, SECOND, World, key_of, map, soon, until, values_of};

/// Lets the repair task run again and again, until `condition` holds.
pub async fn looked_after(world: &World, condition: impl Fn() -> bool) {
    while !condition() {
        // The task may end without another pause.
        let pause = tokio::select! {
            pause = world.probe_pause() => pause,
            () = until(&condition) => return,
        };
        world.runtime.advance(pause);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn degrade_and_fail_closed_are_chosen_per_operation() {
    let world =
        World::shared_with(|builder| builder.outage_policy(WriteOperation::Delete, OutagePolicy::FailClosed))
            .await;
    let mut session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::Unreachable);
    session.insert("x", 2).unwrap();
    assert_eq!(session.save().await.unwrap(), Coherence::Degraded);
    assert_eq!(session.cycle_key().await.unwrap(), Coherence::Degraded);
    let error = session.flush().await.unwrap_err();
    assert!(matches!(error, Error::CacheUnavailable), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
}

#[tokio::test]
async fn degraded_write_is_logged_and_counted() {
    let world = World::shared().await;
    let log = Log::listen();
    let mut session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::NoAnswer);
    assert_eq!(session.flush().await.unwrap(), Coherence::Degraded);
    assert_eq!(log.events("degraded_write").len(), 1);
    assert!(log.events("degraded_write")[0].starts_with("WARN"), "{:?}", log.events("degraded_write"));
    assert_eq!(world.store.stats().degraded_writes, 1);
}

#[tokio::test]
async fn degraded_writes_are_logged_at_a_bounded_rate() {
    let log = Log::listen();
    let world = World::shared().await;
    let mut session = world.saved([("x", 0)]).await;
    world.cache.calls.fail_all(Fault::Unreachable);
    for x in 1..=100 {
        session.insert("x", x).unwrap();
        session.save().await.unwrap();
    }
    assert_eq!(world.store.stats().degraded_writes, 100);
    assert_eq!(log.events("degraded_write").len(), 10);
    let is_shown = |line: &&String| ["INFO", "WARN", "ERROR"].iter().any(|level| line.starts_with(level));
    let shown = log.lines().iter().filter(is_shown).count();
    assert!(shown < 20, "{shown} lines");
}

#[tokio::test]
async fn degraded_writes_of_one_session_leave_one_repair() {
    let world = World::shared().await;
    let log = Log::listen();
    let mut session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::Unreachable);
    for value in 2..6 {
        session.insert("x", value).unwrap();
        assert_eq!(session.save().await.unwrap(), Coherence::Degraded);
    }
    world.cache_recovers(&log).await;
    assert_eq!(world.store.stats().repairs, 1);
    assert_eq!(world.cache.peek(session.stored_key().unwrap()).await, None);
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 5)]));
}

#[tokio::test]
async fn recovered_cache_is_used_except_for_keys_that_await_repair() {
    let world = World::shared_with(|builder| builder.breaker_threshold(1)).await;
    let log = Log::listen();
    let mut session = world.saved([("x", 1)]).await;
    let other = world.saved([("y", 1)]).await;
    world.cache.calls.fail_all(Fault::Unreachable);
    session.insert("x", 2).unwrap();
    assert_eq!(session.save().await.unwrap(), Coherence::Degraded);
    assert_eq!(log.events("cache_breaker_opened").len(), 1);

    world.cache.calls.heal();
    let mut repair = world.cache.calls.hold(Call::PutNothing, Moment::Before);
    let pause = world.probe_pause().await;
    world.runtime.advance(pause);
    repair.reached().await;
    assert_eq!(log.events("cache_breaker_closed").len(), 1);
    // The cache answers, but its entry of this session cannot be trusted yet.
    world.forget_calls();
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
    assert_eq!((world.cache.calls.total(), world.db.calls.count(Call::Load)), (0, 1));
    assert_eq!(values_of(&world.reopen(&other).await), map([("y", 1)]));
    assert_eq!(world.db.calls.count(Call::Load), 1);

    repair.release();
    until(|| world.store.stats().repairs == 1).await;
    world.reopen(&session).await;
    world.forget_calls();
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
    assert_eq!(world.db.calls.total(), 0);
}

#[tokio::test]
async fn failed_repair_is_tried_again_and_the_breaker_stays_open() {
    let world = World::shared_with(|builder| builder.breaker_threshold(1)).await;
    let log = Log::listen();
    let mut session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::Unreachable);
    assert_eq!(session.flush().await.unwrap(), Coherence::Degraded);
    world.cache.calls.heal();
    // The probe asks for two keys.
    world.cache.calls.fail(Call::Get, Moment::Before, Fault::Unreachable);
    world.cache.calls.fail(Call::Get, Moment::Before, Fault::Unreachable);
    let pause = world.probe_pause().await;
    world.runtime.advance(pause);
    world.runtime.sleeping(|asked| asked == pause * 2).await;
    assert!(log.events("cache_breaker_closed").is_empty());
    assert_eq!(world.store.stats().repairs, 0);
    looked_after(&world, || world.store.stats().repairs == 1).await;
    until(|| !log.events("cache_breaker_closed").is_empty()).await;
}

#[tokio::test]
async fn repair_waits_until_an_unanswered_statement_cannot_commit_any_more() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    world.cache.calls.fail_all(Fault::Unreachable);
    world.db.calls.fail(Call::Delete, Moment::Before, Fault::NoAnswer);
    let error = session.delete().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);

    world.cache.calls.heal();
    let begun = world.runtime.now();
    looked_after(&world, || world.runtime.now().since(begun) > 9 * SECOND).await;
    // The statement had at most ten seconds, and may go on for a while after that.
    assert_eq!(world.store.stats().repairs, 0);
    assert!(world.cache.peek_record(&key).await.is_some());
    world.forget_calls();
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    assert_eq!((world.cache.calls.total(), world.db.calls.count(Call::Load)), (0, 1));

    looked_after(&world, || world.store.stats().repairs == 1).await;
    assert_eq!(world.cache.peek(&key).await, None);
}

#[tokio::test]
async fn repair_queue_overflow_drops_the_queue_with_an_event() {
    let world = World::shared_with(|builder| builder.repair_capacity(2)).await;
    let log = Log::listen();
    let elsewhere = world.node().await;
    let mut sessions = Vec::new();
    for number in 0..3 {
        sessions.push(world.saved([("x", number)]).await);
    }
    let keys: Vec<_> = sessions.iter().map(key_of).collect();
    world.cache.calls.fail_all(Fault::Unreachable);
    for session in &mut sessions {
        assert_eq!(session.flush().await.unwrap(), Coherence::Degraded);
    }
    let overflows = log.events("repair_queue_overflow");
    assert_eq!(overflows.len(), 1);
    assert!(overflows[0].starts_with("ERROR") && overflows[0].contains("dropped=2"), "{overflows:?}");

    world.cache.calls.heal();
    looked_after(&world, || world.store.stats().repairs == 1).await;
    assert!(elsewhere.open(&keys[2]).await.unwrap().key().is_none());
    // The staleness of the dropped keys is bounded by max_cache_age.
    assert!(elsewhere.open(&keys[0]).await.unwrap().key().is_some());
    world.runtime.advance(5 * MINUTE);
    assert!(elsewhere.open(&keys[0]).await.unwrap().key().is_none());
    assert!(elsewhere.open(&keys[1]).await.unwrap().key().is_none());
}

#[tokio::test]
async fn unfenced_logout_is_seen_elsewhere_after_max_cache_age() {
    let world = World::shared().await;
    let elsewhere = world.node().await;
    let mut session = world.saved([("x", 1)]).await;
    let key = key_of(&session);
    // This node is cut off from the cache, and the other one is not.
    world.cache.calls.fail(Call::PutFence, Moment::Before, Fault::Refused);
    world.runtime.advance(4 * MINUTE);
    assert_eq!(session.flush().await.unwrap(), Coherence::Degraded);
    assert!(world.store.open(&key).await.unwrap().key().is_none());
    assert!(elsewhere.open(&key).await.unwrap().key().is_some());
    world.runtime.advance(MINUTE);
    assert!(elsewhere.open(&key).await.unwrap().key().is_none());
}

#[tokio::test]
async fn write_is_not_sent_under_a_fence_that_it_may_outlive() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    world.forget_calls();
    let (store, key) = (world.store.clone(), *session.stored_key().unwrap());
    // The first call loses to the entry that is there, the second places the fence, and the third renews it.
    let slow = [(); 3].map(|()| world.cache.calls.hold(Call::PutFence, Moment::After));
    let revoking = tokio::spawn(async move { store.revoke(&key).await });
    for mut fence in slow {
        fence.reached().await;
        // The clock jumps while the answer is on its way, and no timer ends in between.
        world.runtime.jump(20 * SECOND);
        fence.release();
    }
    assert!(revoking.await.unwrap().unwrap().value);
    // Even the renewed fence came too late.
    assert!(world.cache.calls.count(Call::PutFence) >= 4, "{}", world.cache.calls.count(Call::PutFence));
}

/// Returns a session on each of the three servers of a cache.
pub async fn on_each_server(world: &World) -> Vec<Session> {
    let mut sessions: Vec<Option<Session>> = vec![None, None, None];
    while sessions.iter().any(Option::is_none) {
        let session = world.saved([("x", 1)]).await;
        let server = world.cache.server(session.stored_key().unwrap());
        sessions[server] = Some(session);
    }
    sessions.into_iter().flatten().collect()
}

#[tokio::test]
async fn dead_server_of_three_does_not_affect_the_keys_of_the_others() {
    let world = World::with_servers(3, |builder| builder.breaker_threshold(2)).await;
    let log = Log::listen();
    let mut sessions = on_each_server(&world).await;
    world.cache.kill_server_of(sessions[0].stored_key().unwrap());
    for _ in 0..20 {
        for session in &mut sessions {
            session.insert("x", 2).unwrap();
        }
        let expected = [Coherence::Degraded, Coherence::Coherent, Coherence::Coherent];
        for (session, expected) in sessions.iter_mut().zip(expected) {
            assert_eq!(session.save().await.unwrap(), expected);
        }
        world.forget_calls();
        for session in &sessions {
            assert_eq!(values_of(&world.reopen(session).await), map([("x", 2)]));
        }
        assert_eq!(world.db.calls.count(Call::Load), 1);
    }
    assert_eq!(log.events("cache_breaker_opened").len(), 1);
    assert_eq!(world.store.stats().breaker_openings, 1);

    world.cache.revive_servers();
    let pause = world.probe_pause().await;
    world.runtime.advance(pause);
    until(|| world.store.stats().repairs == 1).await;
    assert_eq!(log.events("cache_breaker_closed").len(), 1);
    sessions[0].insert("x", 3).unwrap();
    assert_eq!(sessions[0].save().await.unwrap(), Coherence::Coherent);
}

#[tokio::test]
async fn unrepairable_key_holds_up_no_other() {
    let world = World::shared_with(|builder| builder.breaker_threshold(1)).await;
    let log = Log::listen();
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push(world.saved([("x", 1)]).await);
    }
    world.cache.calls.fail_all(Fault::Unreachable);
    for session in &mut sessions {
        session.insert("x", 2).unwrap();
        assert_eq!(session.save().await.unwrap(), Coherence::Degraded);
    }
    world.cache.take_over(sessions[0].stored_key().unwrap());
    world.cache_recovers(&log).await;
    until(|| world.store.stats().repairs == 99).await;
    for session in &mut sessions[1..] {
        session.insert("x", 3).unwrap();
        assert_eq!(session.save().await.unwrap(), Coherence::Coherent);
        world.forget_calls();
        world.reopen(session).await;
        assert_eq!(world.db.calls.count(Call::Load), 0);
    }
    // That key is read from the database and its repair is tried again after longer and longer pauses, until
    // no old entry can be left.
    assert_eq!(values_of(&world.reopen(&sessions[0]).await), map([("x", 2)]));
    looked_after(&world, || log.events("repair_failing").len() == 1).await;
    world.runtime.jump(6 * MINUTE);
    let pause = world.probe_pause().await;
    world.runtime.advance(pause);
    until(|| world.runtime.sleeps().is_empty()).await;
}

#[tokio::test]
async fn outage_under_constant_writes_ends_when_the_cache_answers() {
    let world = World::shared_with(|builder| builder.breaker_threshold(5)).await;
    let log = Log::listen();
    let mut sessions = Vec::new();
    for _ in 0..200 {
        sessions.push(world.saved([("x", 0)]).await);
    }
    let write_all = async |sessions: &mut Vec<Session>, x: i32| {
        let mut degraded = 0;
        for session in sessions {
            session.insert("x", x).unwrap();
            degraded += usize::from(session.save().await.unwrap() == Coherence::Degraded);
        }
        degraded
    };
    world.cache.calls.fail_all(Fault::NoAnswer);
    assert_eq!(write_all(&mut sessions, 1).await, 200);
    world.cache.calls.heal();
    // Writes go on until the probe, and each of them adds a key to repair.
    assert_eq!(write_all(&mut sessions, 2).await, 200);
    let pause = world.probe_pause().await;
    world.runtime.advance(pause);
    until(|| !log.events("cache_breaker_closed").is_empty()).await;
    // From here on no write is degraded, not even those of keys that still wait for their repair.
    assert_eq!(write_all(&mut sessions, 3).await, 0);
    until(|| world.store.stats().repairs >= 200).await;
    world.forget_calls();
    for session in &sessions {
        assert_eq!(values_of(&world.reopen(session).await), map([("x", 3)]));
    }
    assert!(world.db.calls.count(Call::Load) <= 200);
    world.forget_calls();
    for session in &sessions {
        world.reopen(session).await;
    }
    assert_eq!(world.db.calls.total(), 0);
}

#[tokio::test]
async fn store_closed_after_an_outage_leaves_no_old_entry() {
    let world = World::shared_with(|builder| builder.breaker_threshold(1)).await;
    let mut session = world.saved([("x", 1)]).await;
    let client_key = key_of(&session);
    let elsewhere = world.node().await;
    world.cache.calls.fail_all(Fault::Unreachable);
    assert_eq!(session.flush().await.unwrap(), Coherence::Degraded);
    world.cache.calls.heal();
    world.store.close().await;
    assert!(elsewhere.open(&client_key).await.unwrap().key().is_none());
}

#[tokio::test]
async fn store_closed_during_an_outage_logs_abandoned_repairs() {
    let world = World::shared_with(|builder| builder.breaker_threshold(1)).await;
    let log = Log::listen();
    let mut session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::Unreachable);
    session.flush().await.unwrap();
    let closing = {
        let store = world.store.clone();
        tokio::spawn(async move { store.close().await })
    };
    world.runtime.sleeping(|asked| asked == 2 * SECOND).await;
    world.runtime.advance(2 * SECOND);
    soon(closing).await.unwrap();
    assert_eq!(log.events("repairs_abandoned").len(), 1);
}

#[tokio::test]
async fn store_closed_during_a_short_outage_waits_for_its_end() {
    let world = World::shared_with(|builder| builder.breaker_threshold(1)).await;
    let mut session = world.saved([("x", 1)]).await;
    let client_key = key_of(&session);
    let elsewhere = world.node().await;
    world.cache.calls.fail_all(Fault::Unreachable);
    session.flush().await.unwrap();
    let closing = {
        let store = world.store.clone();
        tokio::spawn(async move { store.close().await })
    };
    world.runtime.sleeping(|asked| asked == 2 * SECOND).await;
    world.cache.calls.heal();
    world.runtime.sleeping(|asked| asked == SECOND / 8).await;
    world.runtime.advance(SECOND / 8);
    soon(closing).await.unwrap();
    assert!(elsewhere.open(&client_key).await.unwrap().key().is_none());
}

#[tokio::test]
async fn cache_that_refuses_every_call_is_left_at_once_and_says_why_once() {
    let world = World::shared_with(|builder| builder.breaker_threshold(1_000)).await;
    let log = Log::listen();
    let mut session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::Unusable);
    world.forget_calls();
    for x in 2..50 {
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", x - 1)]));
        session.insert("x", x).unwrap();
        assert_eq!(session.save().await.unwrap(), Coherence::Degraded);
    }
    assert_eq!(world.cache.calls.total(), 1, "a cache that refuses every call was called again");
    let told = log.events("cache_unusable");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("WARN") && told[0].contains("say yes"), "{told:?}");
    assert!(log.events("cache_breaker_opened").is_empty());
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Unusable);

    world.cache.calls.heal();
    looked_after(&world, || !log.events("cache_breaker_closed").is_empty()).await;
    looked_after(&world, || world.store.stats().repairs == 1).await;
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Up);
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 49)]));
    session.insert("x", 50).unwrap();
    assert_eq!(session.save().await.unwrap(), Coherence::Coherent);
}

#[tokio::test]
async fn probes_of_a_cache_that_refuses_every_call_become_rare() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::Unusable);
    world.forget_calls();
    world.reopen(&session).await;
    let begun = world.runtime.now();
    looked_after(&world, || world.runtime.now().since(begun) >= 120 * SECOND).await;
    let calls = world.cache.calls.total();
    // A cache that is silent is probed 120 times.
    assert!((10..20).contains(&calls), "{calls} calls in two minutes");
}

#[tokio::test]
async fn breaker_stays_open_while_only_reads_are_allowed() {
    let world = World::shared().await;
    let log = Log::listen();
    let session = world.saved([("x", 1)]).await;
    world.cache.calls.fail_all(Fault::Unusable);
    world.reopen(&session).await;
    world.cache.calls.heal();
    // The user may use `GET`, and not what places a lease.
    for _ in 0..3 {
        world.cache.calls.fail(Call::Acquire, Moment::Before, Fault::Unusable);
    }
    let refused = || world.cache.calls.count(Call::Acquire);
    world.forget_calls();
    looked_after(&world, || refused() == 3).await;
    assert!(log.events("cache_breaker_closed").is_empty());
    looked_after(&world, || !log.events("cache_breaker_closed").is_empty()).await;
    assert_eq!(log.events("cache_unusable").len(), 1);
    assert_eq!(world.cache.peek(&StoredKey::PROBE).await, None, "the probe left its lease");
}

#[tokio::test]
async fn refusal_is_logged_again_when_the_reason_or_the_time_is_another() {
    let world = World::shared().await;
    let log = Log::listen();
    let session = world.saved([("x", 1)]).await;
    let told = || log.events("cache_unusable").len();
    for (pause, expected) in [(std::time::Duration::ZERO, 1), (SECOND, 1), (2 * MINUTE, 2)] {
        world.runtime.advance(pause);
        let closed = log.events("cache_breaker_closed").len();
        world.cache.calls.fail_all(Fault::Unusable);
        world.reopen(&session).await;
        assert_eq!(told(), expected, "after {pause:?}");
        world.cache.calls.heal();
        looked_after(&world, || log.events("cache_breaker_closed").len() > closed).await;
    }
}
