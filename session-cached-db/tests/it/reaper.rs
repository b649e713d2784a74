//! The task that deletes expired sessions in the background.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use session_cached_db::{Hooks, Reaper, Session};
use session_core::{ExpiredSession, Expiry, Persistence as _};
use tokio::runtime::Handle;

use crate::common::{
    Call, DAY, Fault, HOUR, Log, MINUTE, Moment, SECOND, START, StoreBuilder, World, each_database,
    each_database_with, map, soon, until, values_of,
};

const INTERVAL: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(10);

fn reaping(builder: StoreBuilder) -> StoreBuilder {
    builder.reaper(Reaper::default().with_interval(INTERVAL).with_batch(10).with_pause(PAUSE))
}

fn is_interval(asked: Duration) -> bool {
    asked >= INTERVAL * 3 / 4 && asked <= INTERVAL * 5 / 4
}

/// Saves sessions that end in a minute.
async fn short_lived(world: &World, count: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        let mut session = world.store.new_session();
        session.set_expiry(Expiry::After(MINUTE));
        session.save().await.unwrap();
        sessions.push(session);
    }
    sessions
}

/// Advances the clock, so that the reaper begins its next round.
async fn next_round(world: &World) {
    let pause = world.runtime.sleeping(is_interval).await;
    world.runtime.advance(pause);
}

/// Waits until the round is over and the reaper sleeps again.
async fn round_ends(world: &World) {
    world.runtime.sleeping(is_interval).await;
}

#[tokio::test]
async fn reaper_deletes_only_expired_sessions_in_bounded_batches() {
    each_database_with(reaping, async |world| {
        let living = world.saved([("x", 1)]).await;
        let dead = short_lived(&world, 25).await;
        next_round(&world).await;
        for statements in 1..=2 {
            world.runtime.sleeping(|asked| asked == PAUSE).await;
            assert_eq!(world.db.calls.count(Call::DeleteExpired), statements);
            assert_eq!(world.store.stats().reaped, 10 * statements as u64);
            world.runtime.advance(PAUSE);
            until(|| world.db.calls.count(Call::DeleteExpired) > statements).await;
        }
        round_ends(&world).await;
        assert_eq!(world.db.calls.count(Call::DeleteExpired), 3);
        assert_eq!(world.store.stats().reaped, 25);
        for session in dead {
            assert!(!world.db.sqlite.delete(session.stored_key().unwrap()).await.unwrap());
        }
        assert_eq!(values_of(&world.reopen(&living).await), map([("x", 1)]));
    })
    .await;
}

/// Hooks that panic over the first sessions that expire.
#[derive(Debug, Default)]
struct PanicsOnce(AtomicBool);

impl Hooks for PanicsOnce {
    fn expired(&self, _: u64, _: &[ExpiredSession]) {
        assert!(self.0.swap(true, Ordering::SeqCst), "as a hook of the application's may");
    }
}

#[tokio::test]
async fn hook_that_panics_ends_its_round_and_not_the_reaper() {
    let hooked = |builder: StoreBuilder| reaping(builder).hooks(PanicsOnce::default());
    each_database_with(hooked, async |world| {
        let log = Log::listen();
        short_lived(&world, 3).await;
        next_round(&world).await;
        round_ends(&world).await;
        assert_eq!(log.events("reaper_panicked").len(), 1);
        short_lived(&world, 3).await;
        world.runtime.jump(HOUR);
        next_round(&world).await;
        round_ends(&world).await;
        assert_eq!(world.store.stats().reaped, 6);
        assert_eq!(log.events("reaper_panicked").len(), 1);
    })
    .await;
}

#[tokio::test]
async fn reaper_rests_after_a_slow_batch_and_clear_expired_does_not() {
    let slow = SECOND;
    each_database_with(reaping, async |world| {
        short_lived(&world, 15).await;
        let mut held = world.db.calls.hold(Call::DeleteExpired, Moment::Before);
        next_round(&world).await;
        held.reached().await;
        world.runtime.jump(slow);
        held.release();
        let rest = world.runtime.sleeping(|asked| asked == 9 * slow).await;
        world.runtime.advance(rest);
        round_ends(&world).await;
        assert_eq!(world.store.stats().reaped, 15);

        short_lived(&world, 15).await;
        world.runtime.jump(HOUR);
        let mut held = world.db.calls.hold(Call::DeleteExpired, Moment::Before);
        let store = world.store.clone();
        let clearing = tokio::spawn(async move { store.clear_expired().await });
        held.reached().await;
        world.runtime.jump(slow);
        held.release();
        assert_eq!(soon(clearing).await.unwrap().unwrap(), 15);
    })
    .await;
}

#[tokio::test]
async fn reaper_spares_sessions_that_expired_within_the_clock_slack() {
    each_database(async |world| {
        let session = &short_lived(&world, 1).await[0];
        world.runtime.advance(MINUTE + 2 * SECOND - Duration::from_micros(1));
        assert_eq!(world.store.clear_expired().await.unwrap(), 0);
        world.runtime.advance(Duration::from_micros(1));
        assert_eq!(world.store.clear_expired().await.unwrap(), 1);
        assert!(!world.db.sqlite.delete(session.stored_key().unwrap()).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn failed_reaper_round_is_logged_and_made_up_for_by_the_next() {
    each_database_with(reaping, async |world| {
        let log = Log::listen();
        short_lived(&world, 3).await;
        for (round, fault) in [Fault::Unreachable, Fault::NoAnswer, Fault::Refused].into_iter().enumerate() {
            world.db.calls.fail(Call::DeleteExpired, Moment::Before, fault);
            next_round(&world).await;
            until(|| log.events("reaper_failed").len() > round).await;
        }
        assert!(log.events("reaper_failed").iter().all(|event| event.starts_with("WARN")));
        next_round(&world).await;
        until(|| world.store.stats().reaped == 3).await;
    })
    .await;
}

#[tokio::test]
async fn hanging_reaper_statement_ends_at_the_write_timeout() {
    each_database_with(reaping, async |world| {
        let log = Log::listen();
        short_lived(&world, 3).await;
        world.db.calls.fail(Call::DeleteExpired, Moment::Before, Fault::Hangs);
        next_round(&world).await;
        world.runtime.sleeping(|asked| asked == 10 * SECOND).await;
        world.runtime.advance(10 * SECOND);
        until(|| log.events("reaper_failed").len() == 1).await;
        next_round(&world).await;
        until(|| world.store.stats().reaped == 3).await;
    })
    .await;
}

/// Waits until no task of a store is left.
async fn nothing_runs() {
    until(|| Handle::current().metrics().num_alive_tasks() == 0).await;
}

#[tokio::test]
async fn reaper_stops_when_the_store_is_closed() {
    let world = World::with(reaping).await;
    short_lived(&world, 3).await;
    world.runtime.sleeping(is_interval).await;
    world.store.close().await;
    nothing_runs().await;
    world.runtime.advance(DAY);
    assert_eq!(world.db.calls.count(Call::DeleteExpired), 0);
    assert!(world.runtime.sleeps().is_empty());
}

#[tokio::test]
async fn reaper_stops_within_a_round_when_the_store_is_closed() {
    let world = World::with(reaping).await;
    short_lived(&world, 25).await;
    next_round(&world).await;
    world.runtime.sleeping(|asked| asked == PAUSE).await;
    world.store.close().await;
    nothing_runs().await;
    world.runtime.advance(DAY);
    assert_eq!(world.db.calls.count(Call::DeleteExpired), 1);
}

#[tokio::test]
async fn reaper_stops_when_the_last_clone_of_the_store_is_dropped() {
    let World { runtime, db, store, .. } = World::with(reaping).await;
    runtime.sleeping(is_interval).await;
    let clone = store.clone();
    drop(store);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
    drop(clone);
    nothing_runs().await;
    runtime.advance(DAY);
    assert_eq!(db.calls.count(Call::DeleteExpired), 0);
}

#[tokio::test]
async fn reaper_rounds_come_at_random_moments_around_the_interval() {
    let world = World::with(reaping).await;
    let mut pauses = Vec::new();
    for round in 1..=40 {
        let asked = world.runtime.sleeping(|asked| asked > MINUTE).await;
        assert!(is_interval(asked), "{asked:?}");
        pauses.push(asked);
        world.runtime.advance(asked);
        until(|| world.db.calls.count(Call::DeleteExpired) == round).await;
    }
    pauses.sort_unstable();
    pauses.dedup();
    assert!(pauses.len() > 3, "{pauses:?}");
    assert!(pauses[0] < INTERVAL && pauses[pauses.len() - 1] > INTERVAL, "{pauses:?}");
}

#[tokio::test]
async fn reaper_runs_every_ten_minutes_by_default() {
    let world = World::with(|builder| builder.reaper(Reaper::default())).await;
    let session = &short_lived(&world, 1).await[0];
    next_round(&world).await;
    until(|| world.store.stats().reaped == 1).await;
    assert!(!world.db.sqlite.delete(session.stored_key().unwrap()).await.unwrap());
    assert_eq!(Reaper::default().interval, INTERVAL);
}

#[tokio::test]
async fn store_without_a_reaper_leaves_deletion_to_clear_expired() {
    each_database(async |world| {
        let sessions = short_lived(&world, 3).await;
        world.runtime.advance(DAY);
        assert!(world.runtime.sleeps().is_empty());
        assert_eq!(world.store.clear_expired().await.unwrap(), 3);
        assert_eq!(sessions[0].created_at(), Some(START));
        assert!(world.runtime.sleeps().is_empty());
    })
    .await;
}

#[tokio::test]
async fn clear_expired_fails_when_the_database_does_not_answer() {
    let world = World::new().await;
    short_lived(&world, 1).await;
    world.runtime.advance(HOUR);
    world.db.calls.fail(Call::DeleteExpired, Moment::Before, Fault::Unreachable);
    assert!(world.store.clear_expired().await.unwrap_err().is_retryable());
    assert_eq!(world.store.clear_expired().await.unwrap(), 1);
}
