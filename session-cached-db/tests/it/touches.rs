//! Touches of one session by many requests and nodes.

use futures_util::future::join_all;
use session_cached_db::{Error, Session};
use session_core::{ExpiryWrite, Record, StoredKey};

use crate::common::{Call, DAY, HOUR, SECOND, START, World, each_database, key_of, values_of};

#[tokio::test]
async fn parallel_and_late_touches_are_one_statement() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        world.runtime.advance(HOUR);
        let mut requests = Vec::new();
        for _ in 0..30 {
            requests.push(world.reopen(&session).await);
        }
        let (parallel, late) = requests.split_at_mut(20);
        for touched in join_all(parallel.iter_mut().map(Session::touch)).await {
            touched.unwrap();
        }
        for request in late {
            request.touch().await.unwrap();
        }
        assert_eq!(world.db.calls.count(Call::Touch), 1);
        // Another node, which does not know of the touch, asks the database, and that changes nothing.
        world.reopen(&session).await;
        let key = *session.stored_key().unwrap();
        let seen = world.store.load(&key).await.unwrap().unwrap().last_seen_at();
        assert_eq!(seen, START + HOUR);
        world.runtime.advance(HOUR);
        world.reopen(&session).await.touch().await.unwrap();
        assert_eq!(world.db.calls.count(Call::Touch), 2);
    })
    .await;
}

#[tokio::test]
async fn touch_of_one_node_is_not_repeated_by_another() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    world.runtime.advance(HOUR);
    let elsewhere = world.node().await;
    let mut here = world.reopen(&session).await;
    let mut there = elsewhere.open(&key_of(&session)).await.unwrap();
    here.touch().await.unwrap();
    world.runtime.advance(SECOND);
    there.touch().await.unwrap();
    let key = *session.stored_key().unwrap();
    let record = world.store.load(&key).await.unwrap().unwrap();
    assert_eq!((record.last_seen_at(), record.expires_at()), (START + HOUR, START + HOUR + 14 * DAY));
}

/// The process remembers the touch, and must not take that for one of the session that is not there any more.
#[tokio::test]
async fn late_touch_of_a_session_that_moved_or_ended_is_not_skipped() {
    each_database(async |world| {
        for end in 0..4 {
            let mut session = world.saved([("x", 1)]).await;
            let key = *session.stored_key().unwrap();
            world.runtime.advance(HOUR);
            let mut late = world.reopen(&session).await;
            world.forget_calls();
            session.touch().await.unwrap();
            late.touch().await.unwrap();
            assert_eq!(world.db.calls.count(Call::Touch), 1, "the second one is skipped");
            match end {
                0 => assert!(session.cycle_key().await.is_ok()),
                1 => assert!(session.renew_key().await.is_ok()),
                2 => {
                    let record = world.store.load(&key).await.unwrap().unwrap();
                    let record = Record::clone(&record);
                    let new = StoredKey::parse(&"n".repeat(43)).unwrap();
                    let expiry = ExpiryWrite::Extend;
                    world.store.rename(&key, &new, record, None, expiry).await.unwrap();
                    world.store.revoke(&new).await.unwrap();
                }
                _ => assert!(world.store.revoke(&key).await.is_ok()),
            }
            assert!(matches!(late.touch().await, Err(Error::SessionGone)), "{end}");
            assert_eq!(world.db.calls.count(Call::Touch), 2, "{end}");
        }
    })
    .await;
}

#[tokio::test]
async fn touch_waiting_behind_a_save_writes_nothing() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    world.runtime.advance(HOUR);
    let (mut saving, mut touching) = (world.reopen(&session).await, world.reopen(&session).await);
    saving.insert("x", 2).unwrap();
    let (saved, touched) = tokio::join!(saving.save(), touching.touch());
    saved.unwrap();
    touched.unwrap();
    assert_eq!(world.db.calls.count(Call::Touch), 0);
}

#[tokio::test]
async fn saves_become_one_statement_despite_touches_between_them() {
    let world = World::shared().await;
    let session = world.saved([("x", 0)]).await;
    world.runtime.advance(HOUR);
    let (mut saves, mut touches) = (Vec::new(), Vec::new());
    for number in 0..10 {
        let mut request = world.reopen(&session).await;
        request.insert(&format!("k{number}"), number).unwrap();
        saves.push(request);
        touches.push(world.reopen(&session).await);
    }
    world.forget_calls();
    let pairs = saves.iter_mut().zip(&mut touches);
    for (saved, touched) in
        join_all(pairs.map(async |(save, touch)| tokio::join!(save.save(), touch.touch()))).await
    {
        saved.unwrap();
        touched.unwrap();
    }
    assert_eq!((world.db.calls.count(Call::Update), world.db.calls.count(Call::Touch)), (1, 0));
    assert_eq!(values_of(&world.reopen(&session).await).len(), 11);
}

#[tokio::test]
async fn touch_that_the_database_refuses_is_not_sent_again_and_again() {
    let world = World::shared().await;
    let session = world.saved([("x", 1)]).await;
    world.runtime.advance(HOUR);
    let elsewhere = world.node().await;
    let mut late = Vec::new();
    for _ in 0..30 {
        late.push(elsewhere.open(&key_of(&session)).await.unwrap());
    }
    world.reopen(&session).await.touch().await.unwrap();
    world.forget_calls();
    for request in &mut late {
        world.runtime.advance(SECOND);
        request.touch().await.unwrap();
    }
    assert_eq!(world.db.calls.count(Call::Touch), 1);
    assert!(world.cache.calls.total() <= 3, "{} cache calls", world.cache.calls.total());
    // The next touch that is due is at most a quarter of the interval late.
    let mut used = elsewhere.open(&key_of(&session)).await.unwrap();
    world.runtime.advance(345 * SECOND);
    used.touch().await.unwrap();
    assert_eq!(world.db.calls.count(Call::Touch), 2);
    let record = world.store.load(session.stored_key().unwrap()).await.unwrap().unwrap();
    assert_eq!(record.last_seen_at(), START + HOUR + 375 * SECOND);
}
