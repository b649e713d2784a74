//! Logging in and out, and changes of the subject.

use session_cached_db::{ConflictPolicy, Error};
use session_core::Outcome;

use crate::common::{Call, Fault, Moment, World, each_database, each_database_with, key_of, map, values_of};

#[tokio::test]
async fn save_of_another_subject_changes_the_key_in_one_statement() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        let planted = key_of(&session);
        for subject in [Some("user-1"), Some("user-2"), None] {
            let before = key_of(&session);
            match subject {
                Some(subject) => session.set_subject(subject).unwrap(),
                None => session.clear_subject(),
            }
            world.forget_calls();
            session.save().await.unwrap();
            assert_eq!((world.db.calls.count(Call::Rename), world.db.calls.total()), (1, 1));
            assert_eq!(session.subject(), subject);
            assert!(world.store.open(&before).await.unwrap().key().is_none(), "the old key still opens it");
            assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        }
        assert!(world.store.open(&planted).await.unwrap().key().is_none());
        // The subject that it has anyway is no change.
        session.log_in("user-1").await.unwrap();
        let before = key_of(&session);
        session.set_subject("user-1").unwrap();
        session.save().await.unwrap();
        assert_eq!(key_of(&session), before);
    })
    .await;
}

#[tokio::test]
async fn login_and_logout_read_as_what_they_do() {
    each_database(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let before = key_of(&session);
        session.insert("device", 2).unwrap();
        world.forget_calls();
        session.log_in("user-1").await.unwrap();
        assert_eq!(world.db.calls.total(), 1);
        assert!(world.store.open(&before).await.unwrap().key().is_none());
        let mut session = world.reopen(&session).await;
        assert_eq!(
            (values_of(&session), session.subject()),
            (map([("cart", 1), ("device", 2)]), Some("user-1"))
        );
        session.log_out().await.unwrap();
        assert!(session.is_unsaved_and_empty());
        assert!(world.store.list_by_subject("user-1").await.unwrap().is_empty());

        let mut visitor = world.store.new_session();
        visitor.log_in("user-2").await.unwrap();
        assert_eq!(world.reopen(&visitor).await.subject(), Some("user-2"));
    })
    .await;
}

#[tokio::test]
async fn login_of_another_user_keeps_nothing_of_the_session() {
    each_database(async |world| {
        let mut planted = world.saved([("card", 1)]).await;
        planted.log_in("attacker").await.unwrap();
        let mut session = world.reopen(&planted).await;
        session.insert("device", 2).unwrap();
        session.modify("logins", |logins: &mut i32| *logins += 1).unwrap();
        session.log_in("user-1").await.unwrap();
        let session = world.reopen(&session).await;
        assert_eq!(values_of(&session), map([("device", 2), ("logins", 1)]));
        assert_eq!(session.subject(), Some("user-1"));
        assert!(world.store.list_by_subject("attacker").await.unwrap().is_empty());
        assert!(world.reopen(&planted).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn login_of_another_user_that_fails_leaves_no_user() {
    let world = World::new().await;
    let mut session = world.saved([("card", 1)]).await;
    session.log_in("user-1").await.unwrap();
    world.db.calls.fail(Call::Insert, Moment::Before, Fault::Unreachable);
    assert!(session.log_in("user-2").await.is_err());
    assert_eq!(session.subject(), Some("user-1"));
    assert!(world.reopen(&session).await.key().is_none());
    // Once more.
    session.log_in("user-2").await.unwrap();
    let session = world.reopen(&session).await;
    assert_eq!((values_of(&session), session.subject()), (map([]), Some("user-2")));
}

#[tokio::test]
async fn login_of_another_user_without_an_answer_takes_nothing_over() {
    for changes in [false, true] {
        let world = World::new().await;
        let mut session = world.saved([("card", 1)]).await;
        session.log_in("user-1").await.unwrap();
        world.db.calls.fail(Call::Insert, Moment::After, Fault::NoAnswer);
        world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
        assert_eq!(session.log_in("user-2").await.unwrap_err().outcome(), Outcome::Unknown);
        if changes {
            session.insert("message", 2).unwrap();
        }
        session.save().await.unwrap();
        let session = world.reopen(&session).await;
        let values = if changes { map([("message", 2)]) } else { map([]) };
        assert_eq!((values_of(&session), session.subject()), (values, Some("user-2")));
    }
}

#[tokio::test]
async fn login_of_another_user_that_is_dropped_moves_nothing() {
    let world = World::new().await;
    let mut session = world.saved([("card", 1)]).await;
    session.log_in("user-1").await.unwrap();
    let mut held = world.db.calls.hold(Call::Delete, Moment::Before);
    tokio::select! {
        _ = session.log_in("user-2") => panic!("the statement is held"),
        () = held.reached() => {}
    }
    session.insert("message", 2).unwrap();
    assert_eq!(session.subject(), Some("user-1"));
    held.release();
    assert!(matches!(session.save().await, Err(Error::SessionGone)));
    assert!(world.store.list_by_subject("user-2").await.unwrap().is_empty());
}

#[tokio::test]
async fn login_submitted_twice_is_no_error_and_leaves_two_sessions() {
    for policy in [ConflictPolicy::LastWrite, ConflictPolicy::Reject] {
        each_database_with(
            |builder| builder.conflict_policy(policy),
            async |world| {
                let visitor = world.saved([("cart", 1)]).await;
                let (mut one, mut two) = (world.reopen(&visitor).await, world.reopen(&visitor).await);
                for (number, session) in [(1, &mut one), (2, &mut two)] {
                    session.insert("device", number).unwrap();
                    session.modify("logins", |logins: &mut i32| *logins += 1).unwrap();
                }
                let (first, second) = tokio::join!(one.log_in("user-1"), two.log_in("user-1"));
                first.unwrap();
                second.unwrap();
                let [one, two] = [&one, &two].map(|session| world.reopen(session));
                let (one, two) = (one.await, two.await);
                assert_eq!(values_of(&one), map([("cart", 1), ("device", 1), ("logins", 1)]));
                assert_eq!(values_of(&two), map([("device", 2), ("logins", 1)]), "only its own changes");
                assert_eq!((one.subject(), two.subject()), (Some("user-1"), Some("user-1")));
                assert!(world.reopen(&visitor).await.key().is_none());
            },
        )
        .await;
    }
}

/// As an application does that logs in by the single steps.
#[tokio::test]
async fn login_by_cycle_key_submitted_twice_is_no_error() {
    each_database(async |world| {
        let visitor = world.saved([("cart", 1)]).await;
        let (mut one, mut two) = (world.reopen(&visitor).await, world.reopen(&visitor).await);
        let mut rights = world.reopen(&visitor).await;
        for session in [&mut one, &mut two] {
            session.set_subject("user-1").unwrap();
            session.cycle_key().await.unwrap();
        }
        assert_eq!(world.store.list_by_subject("user-1").await.unwrap().len(), 2);
        assert!(two.is_empty(), "nothing of the session that has gone");
        // Without a login it is an error, and so is another user in the place of one.
        assert!(matches!(rights.cycle_key().await, Err(Error::SessionGone)));
        let mut other = world.reopen(&one).await;
        one.flush().await.unwrap();
        other.set_subject("user-2").unwrap();
        assert!(matches!(other.cycle_key().await, Err(Error::SessionGone)));
    })
    .await;
}

#[tokio::test]
async fn login_that_overlaps_a_logout_brings_nothing_back() {
    each_database(async |world| {
        let mut session = world.saved([("secret", 1)]).await;
        session.log_in("user-1").await.unwrap();
        let mut other = world.reopen(&session).await;
        assert_eq!(other.get("secret").unwrap(), Some(1));
        session.log_out().await.unwrap();
        other.insert("device", 2).unwrap();
        other.log_in("user-1").await.unwrap();
        assert_eq!(values_of(&world.reopen(&other).await), map([("device", 2)]));
    })
    .await;
}

#[tokio::test]
async fn failed_login_leaves_the_session_as_it_was() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        for subject in ["", "nul\0"] {
            assert!(matches!(session.log_in(subject).await, Err(Error::InvalidSubject(_))));
        }
        world.db.calls.fail(Call::Rename, Moment::Before, Fault::Unreachable);
        assert!(session.log_in("user-1").await.is_err());
        assert!(session.subject().is_none() && !session.modified());
        // The same if the session has gone and no new one can be stored.
        world.store.revoke(session.stored_key().unwrap()).await.unwrap();
        session.insert("y", 2).unwrap();
        world.db.calls.fail(Call::Insert, Moment::Before, Fault::Unreachable);
        assert!(session.log_in("user-1").await.is_err());
        assert_eq!((values_of(&session), session.subject()), (map([("x", 1), ("y", 2)]), None));
        assert!(matches!(session.save().await, Err(Error::SessionGone)));
    })
    .await;
}
