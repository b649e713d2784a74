//! The end of a store, of a caller, of a runtime.

use futures_util::FutureExt as _;
use session_cached_db::{Error, Session};
use session_core::{ExpiryWrite, Record, StoredKey};
use tokio::runtime::{Handle, Runtime};

use crate::common::{
    Call, Fault, HOUR, Moment, START, TestCache, World, each_database, in_file, key_of, map, soon, until,
    values_of,
};

#[tokio::test]
async fn close_waits_for_the_writes_in_flight() {
    each_database(async |world| {
        for (call, moment) in
            [(Call::Update, Moment::Before), (Call::Update, Moment::After), (Call::Insert, Moment::Before)]
        {
            let store = world.node().await;
            let mut session = store.new_session();
            if call == Call::Update {
                session.save().await.unwrap();
            }
            session.insert("x", 1).unwrap();
            let mut held = world.db.calls.hold(call, moment);
            let saving = tokio::spawn(async move { session.save().await.map(|_| session) });
            held.reached().await;
            let mut closing = std::pin::pin!(store.close());
            assert!((&mut closing).now_or_never().is_none());
            held.release();
            soon(closing).await;
            let session = saving.await.unwrap().unwrap();
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        }
    })
    .await;
}

#[tokio::test]
async fn closed_store_refuses_writes_and_goes_on_reading() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_subject("user-42").unwrap();
        session.save().await.unwrap();
        world.store.close().await;
        world.runtime.advance(HOUR);
        world.db.calls.reset();
        let store = &world.store;
        let key: StoredKey = *session.stored_key().unwrap();
        let record = || Record::new("1{}".into(), START, START + HOUR);
        fn closed<T>(result: Result<T, Error>) {
            let error = result.map(drop).unwrap_err();
            assert!(matches!(error, Error::Closed) && !error.is_retryable(), "{error}");
        }
        session.insert("x", 2).unwrap();
        closed(session.save().await);
        closed(session.touch().await);
        closed(session.cycle_key().await);
        closed(session.create().await);
        closed(session.delete().await);
        closed(session.flush().await);
        closed(store.new_session().save().await);
        closed(store.create(&key, record()).await);
        closed(store.update(&key, record(), None, ExpiryWrite::Extend).await);
        closed(store.rename(&key, &key, record(), None, ExpiryWrite::Extend).await);
        closed(store.touch(&key, START).await);
        closed(store.revoke(&key).await);
        closed(store.clear_expired().await);
        assert_eq!(world.db.calls.total(), 0);
        closed(store.revoke_subject("user-42").await);
        assert_eq!(world.db.calls.count(Call::Delete), 0);
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        assert_eq!(store.list_by_subject("user-42").await.unwrap().len(), 1);
        store.ping().await.unwrap();
        // Closing again does no harm.
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn cancelled_write_is_carried_out() {
    each_database(async |world| {
        for (call, moment) in [
            (Call::Update, Moment::Before),
            (Call::Update, Moment::After),
            (Call::Rename, Moment::Before),
            (Call::Delete, Moment::Before),
        ] {
            let mut session = world.saved([("x", 1)]).await;
            let (key, old) = (key_of(&session), *session.stored_key().unwrap());
            session.insert("x", 2).unwrap();
            if call == Call::Rename {
                session.set_subject("user-42").unwrap();
            }
            let mut held = world.db.calls.hold(call, moment);
            let caller = tokio::spawn(async move {
                match call {
                    Call::Update => session.save().await,
                    Call::Rename => session.cycle_key().await,
                    _ => session.delete().await,
                }
            });
            held.reached().await;
            caller.abort();
            assert!(caller.await.unwrap_err().is_cancelled());
            held.release();
            let store = world.node().await;
            let done = async || match call {
                Call::Update => values_of(&store.open(&key).await.unwrap()) == map([("x", 2)]),
                Call::Rename => store.list_by_subject("user-42").await.unwrap().len() == 1,
                _ => !store.exists(&old).await.unwrap(),
            };
            soon(async {
                while !done().await {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            // The write's fence is gone as well.
            until_vacant(&world, &old, call == Call::Update).await;
            world.store.revoke_subject("user-42").await.unwrap();
        }
    })
    .await;
}

/// Waits until no fence is left: the key is vacant, or holds the value if `is_published`.
async fn until_vacant(world: &World, key: &StoredKey, is_published: bool) {
    soon(async {
        loop {
            let vacant = match is_published {
                true => world.cache.peek_record(key).await.is_some(),
                false => world.cache.peek(key).await.is_none(),
            };
            if vacant {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn close_waits_for_a_write_whose_caller_has_left() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        let key = key_of(&session);
        session.insert("x", 2).unwrap();
        let mut held = world.db.calls.hold(Call::Update, Moment::Before);
        let caller = tokio::spawn(async move { session.save().await });
        held.reached().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        let mut closing = std::pin::pin!(world.store.close());
        assert!((&mut closing).now_or_never().is_none());
        held.release();
        soon(closing).await;
        assert_eq!(values_of(&world.store.open(&key).await.unwrap()), map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn dropped_store_leaves_no_task_running() {
    let World { runtime, cache, store, db, .. } =
        World::shared_with(|builder| builder.reaper(session_cached_db::Reaper::default())).await;
    let mut session = store.new_session();
    session.save().await.unwrap();
    cache.calls.fail_all(Fault::Unreachable);
    for _ in 0..3 {
        session.save().await.unwrap();
    }
    // The two tasks are the reaper and the repair task.
    until(|| runtime.sleeps().len() == 2).await;
    drop((store, session));
    until(|| Handle::current().metrics().num_alive_tasks() == 0).await;
    assert!(runtime.sleeps().is_empty());
    drop(db);
}

/// Runs a save that is stopped by the end of its runtime at `moment`. Returns the keys of the acknowledged
/// saves before it, the session of the save, and the rest of the world.
fn cut_short(call: Call, moment: Moment) -> (Vec<String>, Session, World, Runtime) {
    let runtime = Runtime::new().unwrap();
    let (acknowledged, opened, world) = runtime.block_on(async {
        let world = World::in_file_with(|builder| builder).await;
        let mut acknowledged = Vec::new();
        for _ in 0..10 {
            acknowledged.push(key_of(&world.saved([("x", 1)]).await));
        }
        let mut session = world.store.open(&acknowledged[0]).await.unwrap();
        let opened = world.store.open(&acknowledged[0]).await.unwrap();
        session.insert("x", 2).unwrap();
        let mut held = world.db.calls.hold(call, moment);
        tokio::spawn(async move {
            let result = if call == Call::Update { session.save().await } else { session.delete().await };
            panic!("not acknowledged: {result:?}");
        });
        held.reached().await;
        std::mem::forget(held);
        (acknowledged, opened, world)
    });
    (acknowledged, opened, world, runtime)
}

#[test]
fn runtime_that_ends_within_a_write_loses_no_acknowledged_write() {
    for (call, moment) in [
        (Call::Update, Moment::Before),
        (Call::Update, Moment::After),
        (Call::Delete, Moment::Before),
        (Call::Delete, Moment::After),
    ] {
        let (acknowledged, mut opened, world, runtime) = cut_short(call, moment);
        runtime.shutdown_background();
        // First the next process, on the same file. Then a thread of this process, with the same cache and a
        // fence left in it.
        for cache in [TestCache::new(), world.cache.clone()] {
            Runtime::new().unwrap().block_on(async {
                let db = in_file(world.directory.as_ref().unwrap()).await;
                let next = World::over(cache, db, None, |builder| builder).await;
                let first = next.store.open(&acknowledged[0]).await.unwrap();
                match (call, moment) {
                    (Call::Delete, Moment::After) => assert!(first.key().is_none()),
                    (Call::Update, Moment::After) => assert_eq!(values_of(&first), map([("x", 2)])),
                    _ => assert_eq!(values_of(&first), map([("x", 1)])),
                }
                for key in &acknowledged[1..] {
                    assert_eq!(values_of(&next.store.open(key).await.unwrap()), map([("x", 1)]));
                }
                next.saved([("y", 1)]).await;
            });
        }
        // A caller that still holds the old store gets an error that says that nothing was written.
        let error = Runtime::new().unwrap().block_on(opened.save()).unwrap_err();
        assert!(matches!(error, Error::Closed), "{error}");
    }
}
