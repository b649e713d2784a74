//! Two requests that change one session at the same time.

use std::sync::Arc;
use std::time::Duration;

use session_cached_db::{ConflictPolicy, Error, Session};
use session_core::{Expiry, Persistence as _, Record, RecordWrite, Runtime as _};
use tokio::sync::Barrier;

use crate::common::{
    Call, DAY, HOUR, MINUTE, Moment, SECOND, START, StoreBuilder, World, each_database, each_database_with,
    key_of, map, soon, values_of,
};

fn reject(builder: StoreBuilder) -> StoreBuilder {
    builder.conflict_policy(ConflictPolicy::Reject)
}

/// Returns one session as two requests have opened it.
async fn two<const N: usize>(world: &World, values: [(&str, i32); N]) -> (Session, Session) {
    let session = world.saved(values).await;
    (world.reopen(&session).await, session)
}

/// Returns the values that a request sees when it opens the session now.
async fn outcome(world: &World, session: &Session) -> std::collections::BTreeMap<String, i32> {
    let values = values_of(&world.reopen(session).await);
    assert_eq!(world.in_database(session.stored_key().unwrap()).await.as_ref(), Some(&values));
    values
}

#[tokio::test]
async fn changes_of_different_keys_both_win_under_either_policy() {
    for policy in [ConflictPolicy::LastWrite, ConflictPolicy::Reject] {
        each_database_with(
            |builder| builder.conflict_policy(policy),
            async |world| {
                let (mut one, mut two) = two(&world, [("kept", 0), ("a", 0), ("b", 0)]).await;
                one.insert("a", 1).unwrap();
                two.insert("b", 2).unwrap();
                two.insert("c", 3).unwrap();
                one.save().await.unwrap();
                two.save().await.unwrap();
                let expected = map([("kept", 0), ("a", 1), ("b", 2), ("c", 3)]);
                assert_eq!(values_of(&two), expected);
                assert_eq!(outcome(&world, &one).await, expected);
                assert_eq!(world.store.stats().merges, 1);
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_concurrent_saves_all_survive() {
    each_database(async |world| {
        let session = world.saved([("kept", 0)]).await;
        let all_have_opened = Arc::new(Barrier::new(64));
        let requests = (0..64).map(|number| {
            let (store, key) = (world.store.clone(), key_of(&session));
            let barrier = Arc::clone(&all_have_opened);
            tokio::spawn(async move {
                let mut session = store.open(&key).await.unwrap();
                barrier.wait().await;
                session.insert(&format!("key-{number}"), number).unwrap();
                session.save().await.unwrap();
                values_of(&session)
            })
        });
        for (number, request) in (0..64).zip(requests.collect::<Vec<_>>()) {
            assert_eq!(request.await.unwrap()[&format!("key-{number}")], number);
        }
        let values = outcome(&world, &session).await;
        assert_eq!(values.len(), 65);
        assert!((0..64).all(|number| values[&format!("key-{number}")] == number));
    })
    .await;
}

#[tokio::test]
async fn later_of_two_saves_of_one_key_wins() {
    each_database(async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        two.insert("x", 2).unwrap();
        one.insert("x", 1).unwrap();
        one.save().await.unwrap();
        two.save().await.unwrap();
        assert_eq!(outcome(&world, &one).await, map([("x", 2)]));
    })
    .await;
}

#[tokio::test]
async fn later_of_two_saves_of_one_key_is_rejected_under_reject() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.insert("x", 1).unwrap();
        two.insert("x", 2).unwrap();
        two.insert("y", 2).unwrap();
        one.save().await.unwrap();
        assert!(matches!(two.save().await, Err(Error::Conflict)));
        assert_eq!(outcome(&world, &one).await, map([("x", 1)]));
        // The change is still there to look at, and can be repeated on the fresh session.
        assert_eq!(values_of(&two), map([("x", 2), ("y", 2)]));
        let mut again = world.reopen(&two).await;
        again.insert("x", again.get::<i32>("x").unwrap().unwrap() + 1).unwrap();
        again.save().await.unwrap();
        assert_eq!(outcome(&world, &one).await, map([("x", 2)]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_modifications_of_one_value_all_count() {
    for policy in [ConflictPolicy::LastWrite, ConflictPolicy::Reject] {
        each_database_with(
            |builder| builder.conflict_policy(policy),
            async |world| {
                let session = world.saved([("visits", 1)]).await;
                let all_have_opened = Arc::new(Barrier::new(10));
                let requests = (0..10).map(|item| {
                    let (store, key) = (world.store.clone(), key_of(&session));
                    let barrier = Arc::clone(&all_have_opened);
                    tokio::spawn(async move {
                        let mut session = store.open(&key).await.unwrap();
                        barrier.wait().await;
                        session.modify("cart", move |cart: &mut Vec<i32>| cart.push(item)).unwrap();
                        for _ in 0..2 {
                            session.modify("visits", |visits: &mut i32| *visits += 1).unwrap();
                        }
                        session.save().await.unwrap();
                        session.modify("visits", |visits: &mut i32| *visits += 1).unwrap();
                        session.save().await.unwrap();
                    })
                });
                for request in requests.collect::<Vec<_>>() {
                    request.await.unwrap();
                }
                let session = world.reopen(&session).await;
                let mut cart: Vec<i32> = session.get("cart").unwrap().unwrap();
                cart.sort_unstable();
                assert_eq!(cart, (0..10).collect::<Vec<_>>());
                assert_eq!(session.get("visits").unwrap(), Some(31));
            },
        )
        .await;
    }
}

#[tokio::test]
async fn modification_meets_a_value_of_another_type_as_an_insert_does() {
    for (policy, outcome) in [(ConflictPolicy::LastWrite, "1"), (ConflictPolicy::Reject, "\"text\"")] {
        each_database_with(
            |builder| builder.conflict_policy(policy),
            async |world| {
                let (mut one, mut two) = two(&world, []).await;
                one.insert("x", "text").unwrap();
                two.modify("x", |x: &mut i32| *x += 1).unwrap();
                one.save().await.unwrap();
                let saved = two.save().await;
                assert_eq!(matches!(saved, Err(Error::Conflict)), policy == ConflictPolicy::Reject);
                assert_eq!(world.reopen(&one).await.get_raw("x"), Some(outcome));
            },
        )
        .await;
    }
}

#[tokio::test]
async fn equal_change_of_one_key_is_rejected_under_reject() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("visits", 0)]).await;
        for session in [&mut one, &mut two] {
            session.insert("visits", 1).unwrap();
        }
        one.save().await.unwrap();
        assert!(matches!(two.save().await, Err(Error::Conflict)));
        assert_eq!(outcome(&world, &one).await, map([("visits", 1)]));
    })
    .await;
}

#[tokio::test]
async fn save_without_a_change_undoes_nothing() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("x", 0), ("y", 0)]).await;
        one.insert("x", 1).unwrap();
        one.remove("y");
        one.save().await.unwrap();
        two.save().await.unwrap();
        assert_eq!(outcome(&world, &one).await, map([("x", 1)]));
    })
    .await;
}

#[tokio::test]
async fn removal_and_an_insertion_of_different_keys_both_win() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("x", 0), ("y", 0)]).await;
        one.insert("z", 1).unwrap();
        assert!(two.remove("x"));
        one.save().await.unwrap();
        two.save().await.unwrap();
        assert_eq!(outcome(&world, &one).await, map([("y", 0), ("z", 1)]));
    })
    .await;
}

#[tokio::test]
async fn later_of_a_removal_and_a_change_of_one_key_wins() {
    each_database(async |world| {
        let (mut one, mut two) = two(&world, [("x", 0), ("y", 0)]).await;
        one.insert("x", 1).unwrap();
        one.remove("y");
        two.remove("x");
        two.insert("y", 2).unwrap();
        one.save().await.unwrap();
        two.save().await.unwrap();
        assert_eq!(outcome(&world, &one).await, map([("y", 2)]));
    })
    .await;
}

#[tokio::test]
async fn removal_of_a_key_changed_meanwhile_is_rejected_under_reject() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.insert("x", 1).unwrap();
        two.remove("x");
        one.save().await.unwrap();
        assert!(matches!(two.save().await, Err(Error::Conflict)));
        assert_eq!(outcome(&world, &one).await, map([("x", 1)]));
    })
    .await;
}

#[tokio::test]
async fn insertion_and_removal_of_one_key_is_not_a_change() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, []).await;
        one.insert("x", 1).unwrap();
        two.insert("x", 2).unwrap();
        two.remove("x");
        one.save().await.unwrap();
        two.save().await.unwrap();
        assert_eq!(outcome(&world, &one).await, map([("x", 1)]));
    })
    .await;
}

#[tokio::test]
async fn clear_removes_values_inserted_meanwhile() {
    each_database(async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.insert("y", 1).unwrap();
        two.clear();
        two.insert("z", 2).unwrap();
        one.save().await.unwrap();
        two.save().await.unwrap();
        assert_eq!(outcome(&world, &one).await, map([("z", 2)]));
    })
    .await;
}

#[tokio::test]
async fn insertion_after_another_requests_clear_survives_alone() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.insert("y", 1).unwrap();
        two.clear();
        two.save().await.unwrap();
        one.save().await.unwrap();
        assert_eq!(outcome(&world, &one).await, map([("y", 1)]));
    })
    .await;
}

#[tokio::test]
async fn clear_of_values_changed_meanwhile_is_rejected_under_reject() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.insert("y", 1).unwrap();
        two.clear();
        one.save().await.unwrap();
        assert!(matches!(two.save().await, Err(Error::Conflict)));
        assert_eq!(outcome(&world, &one).await, map([("x", 0), ("y", 1)]));
    })
    .await;
}

#[tokio::test]
async fn clear_keeps_an_expiry_set_meanwhile() {
    each_database(async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.set_expiry(Expiry::After(MINUTE));
        two.clear();
        one.save().await.unwrap();
        two.save().await.unwrap();
        assert_eq!(two.expiry(), Some(Expiry::After(MINUTE)));
        world.runtime.advance(MINUTE);
        assert!(world.reopen(&one).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn new_expiry_and_a_change_of_data_both_win() {
    for expiry in [Expiry::After(HOUR), Expiry::At(START + HOUR), Expiry::BrowserSession] {
        each_database_with(reject, async |world| {
            let (mut one, mut two) = two(&world, [("x", 0)]).await;
            one.set_expiry(expiry);
            two.insert("x", 1).unwrap();
            one.save().await.unwrap();
            two.save().await.unwrap();
            let reopened = world.reopen(&one).await;
            assert_eq!((values_of(&reopened), reopened.expiry()), (map([("x", 1)]), Some(expiry)));
            let stored = world.store.load(one.stored_key().unwrap()).await.unwrap().unwrap();
            assert_eq!(stored.expires_at(), expiry.instant(START, 14 * DAY));
        })
        .await;
    }
}

#[tokio::test]
async fn new_subject_and_a_change_of_data_before_it_both_win() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.set_subject("user-42").unwrap();
        two.insert("x", 1).unwrap();
        two.save().await.unwrap();
        one.save().await.unwrap();
        let reopened = world.reopen(&one).await;
        assert_eq!((values_of(&reopened), reopened.subject()), (map([("x", 1)]), Some("user-42")));
    })
    .await;
}

#[tokio::test]
async fn save_after_another_request_has_changed_the_subject_finds_no_session() {
    for policy in [ConflictPolicy::LastWrite, ConflictPolicy::Reject] {
        each_database_with(
            |builder| builder.conflict_policy(policy),
            async |world| {
                let (mut one, mut two) = two(&world, [("x", 0)]).await;
                one.set_subject("user-1").unwrap();
                two.set_subject("user-2").unwrap();
                one.save().await.unwrap();
                assert!(matches!(two.save().await, Err(Error::SessionGone)));
                assert_eq!(world.reopen(&one).await.subject(), Some("user-1"));
                assert!(world.store.list_by_subject("user-2").await.unwrap().is_empty());
            },
        )
        .await;
    }
}

#[tokio::test]
async fn expiry_set_by_two_requests_is_never_a_conflict() {
    each_database_with(reject, async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.set_expiry(Expiry::After(HOUR));
        two.set_expiry(Expiry::After(MINUTE));
        two.insert("y", 1).unwrap();
        one.save().await.unwrap();
        two.save().await.unwrap();
        assert_eq!(world.reopen(&one).await.expiry(), Some(Expiry::After(MINUTE)));
        // Nor is the same expiry, set again as other middlewares do at every save, after another request has changed it.
        let (mut three, mut four) = (world.reopen(&one).await, world.reopen(&one).await);
        three.set_expiry(Expiry::After(HOUR));
        three.save().await.unwrap();
        four.set_expiry(Expiry::After(MINUTE));
        four.insert("z", 1).unwrap();
        four.save().await.unwrap();
        four.insert("z", 2).unwrap();
        four.save().await.unwrap();
        let reopened = world.reopen(&one).await;
        assert_eq!((reopened.get("z").unwrap(), reopened.expiry()), (Some(2), Some(Expiry::After(HOUR))));
        // Nor is a clear.
        let (mut five, mut six) = (world.reopen(&one).await, world.reopen(&one).await);
        five.set_expiry(Expiry::After(MINUTE));
        five.save().await.unwrap();
        six.clear();
        six.save().await.unwrap();
        let reopened = world.reopen(&one).await;
        assert_eq!((reopened.len(), reopened.expiry()), (0, Some(Expiry::After(MINUTE))));
    })
    .await;
}

#[tokio::test]
async fn cycle_key_keeps_values_saved_meanwhile() {
    each_database(async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        one.insert("a", 1).unwrap();
        two.insert("b", 2).unwrap();
        one.save().await.unwrap();
        two.cycle_key().await.unwrap();
        assert_eq!(outcome(&world, &two).await, map([("x", 0), ("a", 1), ("b", 2)]));
        one.insert("a", 3).unwrap();
        assert!(matches!(one.save().await, Err(Error::SessionGone)));
    })
    .await;
}

#[tokio::test]
async fn save_that_overlaps_a_logout_brings_nothing_back() {
    each_database(async |world| {
        let (mut one, mut two) = two(&world, [("x", 0)]).await;
        let key = *one.stored_key().unwrap();
        one.insert("a", 1).unwrap();
        one.save().await.unwrap();
        // Stop the save when it has found the conflict and is about to read the session again.
        two.insert("b", 2).unwrap();
        let mut held = world.db.calls.hold(Call::Load, Moment::Before);
        let saving = tokio::spawn(async move { two.save().await });
        held.reached().await;
        world.node().await.revoke(&key).await.unwrap();
        held.release();
        assert!(matches!(saving.await.unwrap(), Err(Error::SessionGone)));
        assert_eq!(world.in_database(&key).await, None);
        assert!(!world.store.exists(&key).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn merge_that_grows_too_large_is_refused_and_nothing_is_lost() {
    each_database_with(
        |builder| builder.max_payload_bytes(150),
        async |world| {
            let (mut one, mut two) = two(&world, [("x", 0)]).await;
            one.insert("a", "a".repeat(100)).unwrap();
            two.insert("b", "b".repeat(100)).unwrap();
            one.save().await.unwrap();
            assert!(matches!(two.save().await, Err(Error::TooLarge { limit: 150, .. })));
            let session = world.reopen(&one).await;
            assert_eq!(session.keys().collect::<Vec<_>>(), ["a", "x"]);
            // The cache is in use again.
            assert!(world.cache.peek_record(one.stored_key().unwrap()).await.is_some());
        },
    )
    .await;
}

#[tokio::test]
async fn save_gives_up_when_other_nodes_get_ahead_for_too_long() {
    let world = World::new().await;
    let mut session = world.saved([("x", 0)]).await;
    let key = *session.stored_key().unwrap();
    session.insert("x", 1).unwrap();
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let saving = tokio::spawn(async move { session.save().await });
    let other = Record::new("1{\"x\":2}".into(), START, START + HOUR);
    let mut conflicts = 0;
    loop {
        held.reached().await;
        world.db.sqlite.update(&key, RecordWrite::new(&other), START).await.unwrap();
        conflicts += 1;
        let next = world.db.calls.hold(Call::Update, Moment::Before);
        held.release();
        held = next;
        // The first attempts follow each other at once, the others after pauses.
        if conflicts > 4 {
            world.runtime.sleeping(|asked| asked <= Duration::from_millis(64)).await;
            world.runtime.advance(3 * SECOND);
            if world.runtime.now() >= START + 10 * SECOND {
                break;
            }
        }
    }
    assert!(matches!(soon(saving).await.unwrap(), Err(Error::Conflict)));
    assert_eq!(world.in_database(&key).await, Some(map([("x", 2)])));
}
