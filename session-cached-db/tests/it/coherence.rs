//! Faults of other cached session stores, which must not happen here. The name of each test states the right
//! behaviour.

use session_cached_db::{Coherence, Error, Session};
use session_core::{
    CacheProperties, Expiry, ExpiryWrite, Persistence as _, Record, RecordWrite, Scope, State, StoredKey,
};

use crate::common::{
    Call, DAY, Fault, HOUR, Log, MINUTE, Moment, SECOND, START, TestCache, World, each_database, in_file,
    in_memory, key_of, map, until, values_of,
};

pub fn stored_key(session: &Session) -> StoredKey {
    *session.stored_key().unwrap()
}

/// Runs `test` with a cache that several nodes share, over either database.
pub async fn each_shared(test: impl AsyncFn(World)) {
    let cache = || TestCache::new().with_properties(CacheProperties::new(Scope::Shared));
    println!("the database is in memory");
    test(World::over(cache(), in_memory().await, None, |builder| builder).await).await;
    println!("the database is in a file");
    let directory = tempfile::tempdir().unwrap();
    let db = in_file(&directory).await;
    test(World::over(cache(), db, Some(directory), |builder| builder).await).await;
}

/// The faults of a cache that does not lie.
const FAULTS: [Fault; 3] = [Fault::Unreachable, Fault::NoAnswer, Fault::Refused];

#[tokio::test]
async fn x1_load_works_while_the_cache_is_down() {
    each_shared(async |world| {
        let session = world.saved([("x", 1)]).await;
        for fault in FAULTS {
            world.cache.calls.fail_all(fault);
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
            assert!(world.store.open("someunknownkey").await.unwrap().key().is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn x2_exists_create_and_cycle_key_work_while_the_cache_is_down() {
    each_shared(async |world| {
        for fault in FAULTS {
            world.cache.calls.fail_all(fault);
            let mut session = world.saved([("x", 1)]).await;
            assert!(session.exists().await.unwrap());
            let old = key_of(&session);
            assert_eq!(session.cycle_key().await.unwrap(), Coherence::Degraded);
            assert!(world.store.open(&old).await.unwrap().key().is_none());
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        }
    })
    .await;
}

#[tokio::test]
async fn x3_logout_during_an_outage_is_final_when_the_cache_comes_back() {
    each_shared(async |world| {
        let log = Log::listen();
        let mut session = world.saved([("x", 1)]).await;
        let (key, client_key) = (stored_key(&session), key_of(&session));
        let elsewhere = world.node().await;
        world.cache.calls.fail_all(Fault::Unreachable);
        assert_eq!(session.flush().await.unwrap(), Coherence::Degraded);
        assert!(session.key().is_none());
        assert!(world.store.open(&client_key).await.unwrap().key().is_none());
        // The entry is still there, but this node does not trust it, even before it has been repaired.
        assert!(world.cache.peek_record(&key).await.is_some());
        world.cache.calls.heal();
        assert!(world.store.open(&client_key).await.unwrap().key().is_none());
        let pause = world.probe_pause().await;
        world.runtime.advance(pause);
        until(|| world.store.stats().repairs == 1).await;
        assert_eq!(world.cache.peek(&key).await, None);
        assert!(elsewhere.open(&client_key).await.unwrap().key().is_none());
        assert_eq!(log.events("degraded_write").len(), 1);
    })
    .await;
}

#[tokio::test]
async fn x4_save_that_cannot_reach_the_cache_hides_the_old_value() {
    each_shared(async |world| {
        for (call, moment) in [
            (Call::PutFence, Moment::Before),
            (Call::PutFence, Moment::After),
            (Call::PutValue, Moment::Before),
            (Call::PutValue, Moment::After),
        ] {
            for fault in FAULTS {
                let mut session = world.saved([("x", 1)]).await;
                session.insert("x", 2).unwrap();
                world.cache.calls.fail(call, moment, fault);
                session.save().await.unwrap();
                assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]), "{call:?} {moment:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn x4_save_during_an_outage_hides_the_old_value_everywhere_afterwards() {
    each_shared(async |world| {
        let elsewhere = world.node().await;
        let mut session = world.saved([("x", 1)]).await;
        world.cache.calls.fail_all(Fault::Unreachable);
        session.insert("x", 2).unwrap();
        assert_eq!(session.save().await.unwrap(), Coherence::Degraded);
        world.cache.calls.heal();
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
        let pause = world.probe_pause().await;
        world.runtime.advance(pause);
        until(|| world.store.stats().repairs == 1).await;
        assert_eq!(values_of(&elsewhere.open(&key_of(&session)).await.unwrap()), map([("x", 2)]));
    })
    .await;
}

/// Lets a node read the row, then runs `write` on another node, then lets the reader fill the cache.
async fn slow_fill(world: &World, session: &Session, write: impl AsyncFnOnce(Session)) {
    world.cache.plant(session.stored_key().unwrap(), None).await;
    let mut held = world.db.calls.hold(Call::Load, Moment::After);
    let (reader, key) = (world.node().await, key_of(session));
    let reading = tokio::spawn(async move { reader.open(&key).await.unwrap() });
    held.reached().await;
    let writer = world.store.clone();
    let opened = writer.open(&key_of(session)).await.unwrap();
    write(opened).await;
    held.release();
    reading.await.unwrap();
}

#[tokio::test]
async fn x5_slow_fill_does_not_bring_a_session_back_after_a_logout() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        slow_fill(&world, &session, async |mut other| {
            other.flush().await.unwrap();
        })
        .await;
        assert_eq!(world.cache.peek(&stored_key(&session)).await, None);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn x5_slow_fill_does_not_bring_a_session_back_after_a_key_change() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        slow_fill(&world, &session, async |mut other| {
            other.cycle_key().await.unwrap();
        })
        .await;
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn x5_slow_fill_does_not_bring_a_session_back_after_a_revocation() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_subject("user-42").unwrap();
        session.save().await.unwrap();
        let store = world.store.clone();
        slow_fill(&world, &session, async |_| {
            store.revoke_subject("user-42").await.unwrap();
        })
        .await;
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn x6_slow_fill_does_not_pin_the_value_that_a_save_replaced() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        slow_fill(&world, &session, async |mut other| {
            other.insert("x", 2).unwrap();
            other.save().await.unwrap();
        })
        .await;
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
        assert_eq!(values_of(&world.node().await.open(&key_of(&session)).await.unwrap()), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn x6_slow_fill_does_not_pin_the_expiry_that_a_touch_replaced() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        world.runtime.advance(HOUR);
        slow_fill(&world, &session, async |mut other| {
            other.touch().await.unwrap();
        })
        .await;
        let loaded = world.store.load(&stored_key(&session)).await.unwrap().unwrap();
        assert_eq!(loaded.expires_at(), START + HOUR + 14 * DAY);
    })
    .await;
}

#[tokio::test]
async fn x7_two_requests_that_set_different_keys_both_win() {
    each_database(async |world| {
        let session = world.saved([]).await;
        let (mut one, mut two) = (world.reopen(&session).await, world.reopen(&session).await);
        one.insert("a", 1).unwrap();
        two.insert("b", 2).unwrap();
        one.save().await.unwrap();
        two.save().await.unwrap();
        let both = map([("a", 1), ("b", 2)]);
        assert_eq!(values_of(&two), both);
        assert_eq!(values_of(&world.reopen(&session).await), both);
        assert_eq!(world.in_database(&stored_key(&session)).await, Some(both));
    })
    .await;
}

#[tokio::test]
async fn x8_cycle_key_after_a_logout_elsewhere_does_not_bring_the_data_back() {
    each_database(async |world| {
        let mut here = world.saved([("secret", 1)]).await;
        here.set_subject("user-42").unwrap();
        here.save().await.unwrap();
        let mut there = world.reopen(&here).await;
        there.flush().await.unwrap();
        let old_key = key_of(&here);
        assert!(matches!(here.cycle_key().await, Err(Error::SessionGone)));
        assert_eq!(key_of(&here), old_key);
        assert!(world.reopen(&here).await.key().is_none());
        assert!(world.store.list_by_subject("user-42").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn x9_uncommitted_value_is_not_published() {
    each_shared(async |world| {
        for fault in [Fault::Refused, Fault::Unreachable, Fault::NoAnswer] {
            let mut session = world.saved([("x", 1)]).await;
            let key = stored_key(&session);
            session.insert("x", 99).unwrap();
            // A rollback looks like this from here: the statement gets an error, or no answer.
            world.db.calls.fail(Call::Update, Moment::Before, fault);
            session.save().await.unwrap_err();
            assert_eq!(world.cache.peek_record(&key).await, None);
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
            assert_eq!(world.in_database(&key).await, Some(map([("x", 1)])));
        }
    })
    .await;
}

#[tokio::test]
async fn x9_value_is_not_published_while_its_statement_runs() {
    each_database(async |world| {
        for moment in [Moment::Before, Moment::After] {
            let mut session = world.saved([("x", 1)]).await;
            let reader = world.reopen(&session).await;
            let key = stored_key(&session);
            session.insert("x", 2).unwrap();
            let mut held = world.db.calls.hold(Call::Update, moment);
            let saving = tokio::spawn(async move { session.save().await });
            held.reached().await;
            assert!(matches!(world.cache.peek(&key).await.unwrap().state, State::Fence(_)));
            let committed = if moment == Moment::Before { 1 } else { 2 };
            assert_eq!(values_of(&world.reopen(&reader).await), map([("x", committed)]));
            held.release();
            saving.await.unwrap().unwrap();
            assert_eq!(values_of(&world.reopen(&reader).await), map([("x", 2)]));
        }
    })
    .await;
}

#[tokio::test]
async fn x10_reaped_row_is_not_served_by_the_cache() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_expiry(Expiry::After(MINUTE));
        session.save().await.unwrap();
        let key = stored_key(&session);
        world.runtime.advance(MINUTE + 2 * SECOND);
        assert_eq!(world.store.clear_expired().await.unwrap(), 1);
        assert!(world.cache.peek_record(&key).await.is_some(), "the entry carries its expiry");
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn x10_expiry_shortened_behind_the_store_holds_after_max_cache_age() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        let key = stored_key(&session);
        let record = world.store.load(&key).await.unwrap().unwrap();
        let shortened = Record::clone(&record).with_expires_at(START + SECOND);
        world
            .db
            .sqlite
            .update(&key, RecordWrite::new(&shortened).with_expiry(ExpiryWrite::Replace), START)
            .await
            .unwrap();
        world.runtime.advance(5 * MINUTE);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn x11_saving_the_session_of_an_unknown_key_creates_a_new_one() {
    each_database(async |world| {
        let mut session = world.store.open("unknown-key").await.unwrap();
        session.save().await.unwrap();
        assert_ne!(key_of(&session), "unknown-key");
        assert!(session.exists().await.unwrap());
        assert!(world.store.open("unknown-key").await.unwrap().key().is_none());
    })
    .await;
}

#[tokio::test]
async fn x12_saving_the_cleared_session_of_an_unknown_key_creates_a_new_one() {
    each_database(async |world| {
        let mut session = world.store.open("unknown-key").await.unwrap();
        session.clear();
        session.save().await.unwrap();
        assert_ne!(key_of(&session), "unknown-key");
        assert_eq!(world.in_database(&stored_key(&session)).await, Some(map([])));
    })
    .await;
}

#[tokio::test]
async fn x13_save_does_not_revive_an_expired_session() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        world.runtime.advance(14 * DAY);
        session.insert("x", 2).unwrap();
        assert!(matches!(session.save().await, Err(Error::SessionGone)));
        assert!(world.reopen(&session).await.key().is_none());
        assert_eq!(world.in_database(&stored_key(&session)).await, None);
    })
    .await;
}

#[tokio::test]
async fn x14_unreadable_row_is_logged_and_neither_cached_nor_overwritten() {
    each_database(async |world| {
        let log = Log::listen();
        let session = world.saved([("x", 1)]).await;
        let key = stored_key(&session);
        let garbage = Record::new("garbage".into(), START, START + HOUR);
        world.db.sqlite.update(&key, RecordWrite::new(&garbage), START).await.unwrap();
        world.cache.plant(&key, None).await;
        assert!(matches!(world.unreadable(&session).await, Error::Unreadable(_)));
        assert_eq!(log.events("payload_unreadable").len(), 1);
        assert_eq!(world.cache.peek(&key).await, None);
        let evidence = world.db.sqlite.load(&key, START).await.unwrap().unwrap();
        assert_eq!(&evidence.payload()[..], b"garbage");
    })
    .await;
}

#[tokio::test]
async fn x15_first_save_writes_one_value_into_the_cache() {
    each_database(async |world| {
        world.saved([("x", 1)]).await;
        assert_eq!(world.cache.calls.count(Call::PutValue), 1);
        assert_eq!((world.cache.calls.total(), world.db.calls.total()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn x15_every_further_save_writes_one_value_into_the_cache() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        world.forget_calls();
        session.save().await.unwrap();
        assert_eq!(world.cache.calls.count(Call::PutValue), 1);
        assert_eq!((world.cache.calls.total(), world.db.calls.total()), (2, 1));
        // This includes a save of a session that came from the cache.
        let mut session = world.reopen(&session).await;
        world.forget_calls();
        session.save().await.unwrap();
        assert_eq!((world.cache.calls.total(), world.db.calls.total()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn x16_value_of_more_than_thirty_days_is_cached_and_ends_in_time() {
    let world = World::with(|builder| builder.max_cache_age(90 * DAY)).await;
    let mut session = world.store.new_session();
    session.set_expiry(Expiry::After(60 * DAY));
    session.save().await.unwrap();
    world.db.calls.reset();
    world.runtime.advance(60 * DAY - SECOND);
    assert!(world.reopen(&session).await.key().is_some());
    assert_eq!(world.db.calls.total(), 0);
    world.runtime.advance(SECOND);
    assert!(world.reopen(&session).await.key().is_none());
}

#[tokio::test]
async fn x17_value_without_time_left_is_not_cached() {
    each_database(async |world| {
        for end in [START - HOUR, START] {
            let mut session = world.saved([("x", 1)]).await;
            let key = stored_key(&session);
            session.set_expiry(Expiry::At(end));
            session.save().await.unwrap();
            assert_eq!(world.cache.peek(&key).await, None);
            let mut new = world.store.new_session();
            new.set_expiry(Expiry::At(end));
            new.save().await.unwrap();
            assert_eq!(world.cache.peek(&stored_key(&new)).await, None);
        }
    })
    .await;
}

#[tokio::test]
async fn x18_value_too_large_for_the_cache_leaves_no_value_there() {
    let cache =
        TestCache::new().with_properties(CacheProperties::new(Scope::Shared).with_max_entry_bytes(300));
    let world = World::over(cache, in_memory().await, None, |builder| builder).await;
    let mut session = world.saved([("x", 1)]).await;
    let key = stored_key(&session);
    assert!(world.cache.peek_record(&key).await.is_some());
    session.insert("y", "y".repeat(300)).unwrap();
    session.save().await.unwrap();
    assert_eq!(world.cache.peek(&key).await, None);
    assert_eq!(world.reopen(&session).await.len(), 2);
}

#[tokio::test]
async fn x18_value_that_the_cache_finds_too_large_leaves_no_value_there() {
    each_shared(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.insert("x", 2).unwrap();
        world.cache.calls.fail(Call::PutValue, Moment::Before, Fault::Refused);
        assert_eq!(session.save().await.unwrap(), Coherence::Coherent);
        assert_eq!(world.cache.peek(&stored_key(&session)).await, None);
    })
    .await;
}
