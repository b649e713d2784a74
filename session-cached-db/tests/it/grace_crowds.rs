//! The grace after a rotation in a crowd: many requests with the old key, and a session that moves while it is followed.

use session_cached_db::Error;

use crate::common::{Call, Moment, SECOND, key_of};
use crate::grace::{USER, each_with_grace, opens_nothing};

#[tokio::test]
async fn many_requests_that_renew_one_after_another_go_on_with_one_key() {
    each_with_grace(async |world| {
        let session = world.saved([("cart", 1)]).await;
        let old = key_of(&session);
        let mut requests = Vec::new();
        for _ in 0..12 {
            requests.push(world.reopen(&session).await);
        }
        for request in &mut requests {
            request.renew_key().await.unwrap();
            world.runtime.advance(SECOND / 4);
        }
        for request in &requests {
            assert_eq!(request.key(), requests[0].key());
        }
        assert_eq!(world.store.open(&old).await.unwrap().key(), requests[0].key());
        for _ in 0..2 {
            requests[0].renew_key().await.unwrap();
            assert_eq!(world.store.open(&old).await.unwrap().key(), requests[0].key());
        }
    })
    .await;
}

#[tokio::test]
async fn late_key_changes_do_not_hide_a_login() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let (old, mut late) = (key_of(&session), Vec::new());
        for _ in 0..12 {
            late.push(world.reopen(&session).await);
        }
        session.log_in(USER).await.unwrap();
        for late in &mut late {
            world.runtime.advance(SECOND / 4);
            assert!(late.cycle_key().await.is_err());
        }
        let mut stranger = world.store.open(&old).await.unwrap();
        stranger.insert("cart", 2).unwrap();
        assert!(matches!(stranger.save().await, Err(Error::SessionGone)));
    })
    .await;
}

#[tokio::test]
async fn logout_follows_a_session_that_moves_meanwhile() {
    each_with_grace(async |world| {
        for by_key in [false, true] {
            let mut session = world.saved([("cart", 1)]).await;
            let (first, mut late) = (session.key().unwrap().clone(), world.reopen(&session).await);
            session.renew_key().await.unwrap();
            world.cache.plant(session.stored_key().unwrap(), None).await;
            // The logout has found where the session is, and it moves on before the logout ends it there.
            let mut held = world.db.calls.hold(Call::Load, Moment::After);
            {
                let mut ending = std::pin::pin!(async {
                    if by_key {
                        assert!(world.store.end(&first).await.unwrap().value);
                    } else {
                        late.log_out().await.unwrap();
                    }
                });
                assert!(futures_util::poll!(ending.as_mut()).is_pending());
                tokio::select! {
                    () = held.reached() => {}
                    () = &mut ending => panic!("the logout read nothing"),
                }
                session.renew_key().await.unwrap();
                held.release();
                ending.await;
            }
            assert!(opens_nothing(&world, &key_of(&session)).await);
        }
    })
    .await;
}
