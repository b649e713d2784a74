//! Writes under a new key whose answer is lost: they took place or not, and the session finds out which.

use std::time::Duration;

use session_cached_db::{CachedDb, ConflictPolicy, Error, Session};

use crate::common::{
    Call, Fault, HOUR, MINUTE, Moment, SECOND, TestCache, World, each_database, each_database_with,
    in_memory, key_of, map, soon, until, values_of,
};

const USER: &str = "user-42";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Write {
    Create,
    Login,
}

impl Write {
    const ALL: [Self; 2] = [Self::Create, Self::Login];

    fn call(self) -> Call {
        if self == Self::Create { Call::Insert } else { Call::Rename }
    }

    async fn session(self, world: &World) -> Session {
        let mut session = match self {
            Self::Create => world.store.new_session(),
            Self::Login => world.saved([("cart", 1)]).await,
        };
        session.insert("device", 2).unwrap();
        session
    }
}

async fn sessions<C: session_core::Cache, P: session_core::SubjectIndex>(store: &CachedDb<C, P>) -> usize {
    store.list_by_subject(USER).await.unwrap().len()
}

#[tokio::test]
async fn login_that_took_place_without_an_answer_is_found_at_once() {
    each_database(async |world| {
        for write in Write::ALL {
            let mut session = write.session(&world).await;
            world.db.calls.fail(write.call(), Moment::After, Fault::NoAnswer);
            session.log_in(USER).await.unwrap();
            assert!(!session.modified());
            let reopened = world.reopen(&session).await;
            assert_eq!((reopened.get("device").unwrap(), reopened.subject()), (Some(2), Some(USER)));
            assert_eq!(sessions(&world.store).await, 1);
            world.store.revoke_subject(USER).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn login_whose_outcome_stays_unknown_is_found_by_the_next_call() {
    each_database(async |world| {
        for (write, took_place) in Write::ALL.into_iter().flat_map(|write| [(write, true), (write, false)]) {
            println!("{write:?} {took_place}");
            let mut session = write.session(&world).await;
            let moment = if took_place { Moment::After } else { Moment::Before };
            world.db.calls.fail(write.call(), moment, Fault::NoAnswer);
            world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
            assert!(session.log_in(USER).await.is_err());
            assert_eq!(session.subject(), None);
            // A change meanwhile is made on the session as it was stored, and what was stored is not done twice.
            session.modify("later", |later: &mut i32| *later += 1).unwrap();
            session.log_in(USER).await.unwrap();
            let reopened = world.reopen(&session).await;
            let mut expected = map([("device", 2), ("later", 1)]);
            if write == Write::Login {
                expected.insert("cart".to_owned(), 1);
            }
            assert_eq!((values_of(&reopened), reopened.subject()), (expected, Some(USER)));
            assert_eq!(sessions(&world.store).await, 1, "an orphan stays");
            world.store.revoke_subject(USER).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn modification_stored_without_an_answer_is_not_made_twice() {
    each_database(async |world| {
        let mut session = world.saved([("visits", 1)]).await;
        session.modify("visits", |visits: &mut i32| *visits += 1).unwrap();
        world.db.calls.fail(Call::Rename, Moment::After, Fault::NoAnswer);
        world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
        assert!(session.cycle_key().await.is_err());
        session.save().await.unwrap();
        session.modify("visits", |visits: &mut i32| *visits += 1).unwrap();
        session.save().await.unwrap();
        assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 3)]));
    })
    .await;
}

#[tokio::test]
async fn change_between_two_tries_is_kept_if_the_first_takes_place_late() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        let mut held = world.db.calls.hold(Call::Rename, Moment::Before);
        {
            let mut cycling = std::pin::pin!(session.cycle_key());
            assert!(futures_util::poll!(cycling.as_mut()).is_pending());
            held.reached().await;
        }
        // The first try waits. The second one waits behind it, and finds the session moved.
        session.insert("x", 2).unwrap();
        session.modify("visits", |visits: &mut i32| *visits += 1).unwrap();
        held.release();
        session.cycle_key().await.unwrap();
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2), ("visits", 1)]));
        // A second try that has certainly failed says nothing about the first one.
        session.insert("x", 3).unwrap();
        world.db.calls.fail(Call::Rename, Moment::After, Fault::NoAnswer);
        world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
        assert!(session.cycle_key().await.is_err());
        session.insert("x", 4).unwrap();
        world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
        assert!(session.cycle_key().await.is_err(), "the look fails");
        session.save().await.unwrap();
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 4), ("visits", 1)]));
    })
    .await;
}

#[tokio::test]
async fn save_after_a_dropped_change_of_the_key_follows_it() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        let mut held = world.db.calls.hold(Call::Rename, Moment::Before);
        {
            let mut cycling = std::pin::pin!(session.cycle_key());
            assert!(futures_util::poll!(cycling.as_mut()).is_pending());
            held.reached().await;
        }
        session.insert("x", 2).unwrap();
        held.release();
        session.save().await.unwrap();
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
        // So does a logout.
        let mut held = world.db.calls.hold(Call::Rename, Moment::Before);
        {
            let mut cycling = std::pin::pin!(session.log_in(USER));
            assert!(futures_util::poll!(cycling.as_mut()).is_pending());
            held.reached().await;
        }
        held.release();
        session.log_out().await.unwrap();
        assert_eq!(sessions(&world.store).await, 0);
    })
    .await;
}

#[tokio::test]
async fn modification_after_a_dropped_renewal_loses_none_of_another_request() {
    for policy in [ConflictPolicy::LastWrite, ConflictPolicy::Reject] {
        each_database_with(
            |builder| builder.rotation_grace(30 * SECOND).conflict_policy(policy),
            async |world| {
                let push = |session: &mut Session, item: i32| {
                    session.modify("cart", move |cart: &mut Vec<i32>| cart.push(item)).unwrap();
                };
                let mut session = world.saved([("x", 1)]).await;
                push(&mut session, 1);
                let old = key_of(&session);
                let mut held = world.db.calls.hold(Call::Rename, Moment::Before);
                {
                    let mut renewing = std::pin::pin!(session.renew_key());
                    assert!(futures_util::poll!(renewing.as_mut()).is_pending());
                    held.reached().await;
                }
                held.release();
                let mut other = soon(async {
                    loop {
                        let other = world.store.open(&old).await.unwrap();
                        if other.key().is_some_and(|key| key.expose() != old) {
                            break other;
                        }
                        tokio::task::yield_now().await;
                    }
                })
                .await;
                push(&mut other, 2);
                other.save().await.unwrap();
                push(&mut session, 3);
                session.save().await.unwrap();
                let cart = world.reopen(&session).await.get::<Vec<i32>>("cart").unwrap();
                assert_eq!(cart, Some(vec![1, 2, 3]), "{policy:?}");
            },
        )
        .await;
    }
}

#[tokio::test]
async fn session_whose_key_is_lost_is_ended_when_the_write_can_no_longer_come() {
    each_database(async |world| {
        for write in Write::ALL {
            let mut session = write.session(&world).await;
            let mut held = world.db.calls.hold(write.call(), Moment::Before);
            {
                let mut login = std::pin::pin!(session.log_in(USER));
                assert!(futures_util::poll!(login.as_mut()).is_pending());
                held.reached().await;
            }
            drop(session);
            held.release();
            soon(async {
                while sessions(&world.store).await == 0 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let pause = world.runtime.sleeping(|asked| asked > MINUTE / 4 && asked < HOUR).await;
            world.runtime.advance(pause);
            soon(async {
                while sessions(&world.store).await == 1 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn session_that_cannot_be_ended_is_reported_after_a_few_attempts() {
    let log = crate::common::Log::listen();
    let world = World::new().await;
    world.db.calls.fail_all(Fault::NoAnswer);
    // As many as clients like to make.
    for _ in 0..50 {
        let mut session = world.store.new_session();
        session.insert("x", 1).unwrap();
        let failed: Error = session.save().await.unwrap_err();
        assert_eq!(failed.outcome(), session_core::Outcome::Unknown);
    }
    for _ in 0..5 {
        let pause = world.runtime.sleeping(|asked| asked > MINUTE / 4 && asked < HOUR).await;
        assert!(log.events("abandoned_session_left").is_empty());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let loads = world.db.calls.count(Call::Load);
        world.runtime.advance(pause);
        until(|| world.db.calls.count(Call::Load) == loads + 50).await;
    }
    until(|| log.events("abandoned_session_left").len() >= 10).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(log.events("abandoned_session_left").len(), 10);
}

#[tokio::test]
async fn session_that_is_unknown_to_be_stored_exists_and_can_be_deleted() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        let before = key_of(&session);
        world.db.calls.fail(Call::Rename, Moment::After, Fault::NoAnswer);
        world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
        assert!(session.cycle_key().await.is_err());
        assert!(session.exists().await.unwrap());
        session.delete().await.unwrap();
        assert!(!session.exists().await.unwrap());
        assert!(world.store.open(&before).await.unwrap().key().is_none());
    })
    .await;
}

#[tokio::test]
async fn login_that_is_found_later_is_shown_by_no_node_under_its_old_key() {
    let bound = 2 * SECOND;
    let world = World::over(TestCache::new().near(bound), in_memory().await, None, |builder| builder).await;
    let mut session = world.saved([("n", 1)]).await;
    world.db.calls.fail(Call::Rename, Moment::After, Fault::NoAnswer);
    world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
    assert!(session.log_in("user-42").await.is_err());
    let mut found = std::pin::pin!(session.log_in("user-42"));
    let is_final_wait = |asked: Duration| asked > bound && asked < bound + SECOND / 10;
    tokio::select! {
        _ = &mut found => panic!("acknowledged at once"),
        asked = world.runtime.sleeping(is_final_wait) => world.runtime.advance(asked),
    }
    soon(found).await.unwrap();
}
