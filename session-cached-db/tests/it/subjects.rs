//! Subjects: lists of a user's sessions, and logging out everywhere.

use std::collections::BTreeSet;

use session_cached_db::{Coherence, Error, Session};
use session_core::{Expiry, Outcome, State, StoredKey};

use crate::common::{
    Call, Fault, HOUR, MINUTE, Moment, SECOND, START, World, each_database, key_of, map, soon, until,
    values_of,
};

const USER: &str = "user-42";

async fn session_of(world: &World, subject: &str) -> Session {
    let mut session = world.store.new_session();
    session.insert("x", 1).unwrap();
    session.set_subject(subject).unwrap();
    session.save().await.unwrap();
    session
}

async fn listed(world: &World, subject: &str) -> BTreeSet<String> {
    let listed = world.store.list_by_subject(subject).await.unwrap();
    listed.into_iter().map(|session| session.key.as_str().to_owned()).collect()
}

fn keys_of<const N: usize>(sessions: [&Session; N]) -> BTreeSet<String> {
    sessions.map(|session| session.stored_key().unwrap().as_str().to_owned()).into()
}

#[tokio::test]
async fn list_shows_exactly_the_sessions_of_a_subject() {
    each_database(async |world| {
        let (phone, laptop) = (session_of(&world, USER).await, session_of(&world, USER).await);
        let other = session_of(&world, "User-42").await;
        world.saved([("x", 1)]).await;
        assert_eq!(listed(&world, USER).await, keys_of([&phone, &laptop]));
        assert_eq!(listed(&world, "User-42").await, keys_of([&other]));
        assert_eq!(listed(&world, "user-4").await, keys_of([]));
    })
    .await;
}

#[tokio::test]
async fn list_shows_when_each_session_began_and_was_last_used() {
    each_database(async |world| {
        let session = session_of(&world, USER).await;
        world.runtime.advance(HOUR);
        world.reopen(&session).await.touch().await.unwrap();
        let listed = world.store.list_by_subject(USER).await.unwrap();
        let times = listed[0].times.unwrap();
        assert_eq!((times.created_at, times.last_seen_at), (START, START + HOUR));
    })
    .await;
}

#[tokio::test]
async fn list_shows_no_expired_session() {
    each_database(async |world| {
        let mut session = session_of(&world, USER).await;
        session.set_expiry(Expiry::After(MINUTE));
        session.save().await.unwrap();
        world.runtime.advance(MINUTE - SECOND);
        assert_eq!(listed(&world, USER).await.len(), 1);
        world.runtime.advance(SECOND);
        assert_eq!(listed(&world, USER).await.len(), 0);
        // The session lives on at a node whose clock is behind, so it is ended, too.
        assert_eq!(world.store.revoke_subject(USER).await.unwrap().value, 1);
        assert_eq!(world.store.revoke_subject(USER).await.unwrap().value, 0);
    })
    .await;
}

#[tokio::test]
async fn subject_can_be_changed_and_survives_a_new_key() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_subject(USER).unwrap();
        // The subject takes effect only when it is saved.
        assert!(listed(&world, USER).await.is_empty());
        session.cycle_key().await.unwrap();
        assert_eq!(listed(&world, USER).await, keys_of([&session]));
        session.cycle_key().await.unwrap();
        assert_eq!(listed(&world, USER).await, keys_of([&session]));
        session.set_subject("another").unwrap();
        session.save().await.unwrap();
        assert!(listed(&world, USER).await.is_empty());
        assert_eq!(listed(&world, "another").await, keys_of([&session]));
        assert_eq!(world.reopen(&session).await.subject(), Some("another"));
    })
    .await;
}

#[tokio::test]
async fn revoke_ends_one_session_of_a_list() {
    each_database(async |world| {
        let (phone, laptop) = (session_of(&world, USER).await, session_of(&world, USER).await);
        let line: StoredKey = *phone.stored_key().unwrap();
        assert!(world.store.revoke(&line).await.unwrap().value);
        assert!(world.reopen(&phone).await.key().is_none());
        assert_eq!(values_of(&world.reopen(&laptop).await), map([("x", 1)]));
        assert!(!world.store.revoke(&line).await.unwrap().value);
    })
    .await;
}

#[tokio::test]
async fn revoke_subject_ends_exactly_the_sessions_of_a_subject() {
    each_database(async |world| {
        let (phone, laptop) = (session_of(&world, USER).await, session_of(&world, USER).await);
        let other = session_of(&world, "another").await;
        let revoked = world.store.revoke_subject(USER).await.unwrap();
        assert_eq!((revoked.value, revoked.coherence), (2, Coherence::Coherent));
        for session in [&phone, &laptop] {
            assert!(world.reopen(session).await.key().is_none());
            assert_eq!(world.in_database(session.stored_key().unwrap()).await, None);
        }
        assert_eq!(values_of(&world.reopen(&other).await), map([("x", 1)]));
        assert_eq!(world.store.revoke_subject(USER).await.unwrap().value, 0);
    })
    .await;
}

#[tokio::test]
async fn revoke_subject_ends_a_session_created_meanwhile() {
    each_database(async |world| {
        session_of(&world, USER).await;
        let mut held = world.db.calls.hold(Call::List, Moment::After);
        let store = world.store.clone();
        let revoking = tokio::spawn(async move { store.revoke_subject(USER).await });
        held.reached().await;
        // The subject's sessions are listed already, without this one.
        let late = session_of(&world, USER).await;
        held.release();
        assert_eq!(revoking.await.unwrap().unwrap().value, 2);
        assert!(world.reopen(&late).await.key().is_none());
        assert!(listed(&world, USER).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn revoke_subject_ends_a_session_whose_key_changes_meanwhile() {
    each_database(async |world| {
        let mut session = session_of(&world, USER).await;
        let mut held = world.db.calls.hold(Call::List, Moment::After);
        let store = world.store.clone();
        let revoking = tokio::spawn(async move { store.revoke_subject(USER).await });
        held.reached().await;
        session.cycle_key().await.unwrap();
        held.release();
        assert_eq!(revoking.await.unwrap().unwrap().value, 1);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn revoke_subject_is_stronger_than_a_save_in_flight() {
    each_database(async |world| {
        let mut session = session_of(&world, USER).await;
        let key = key_of(&session);
        session.insert("x", 2).unwrap();
        let mut held = world.db.calls.hold(Call::Update, Moment::Before);
        let saving = tokio::spawn(async move { session.save().await });
        held.reached().await;
        assert_eq!(world.node().await.revoke_subject(USER).await.unwrap().value, 1);
        held.release();
        assert!(matches!(saving.await.unwrap(), Err(Error::SessionGone)));
        assert!(world.store.open(&key).await.unwrap().key().is_none());
    })
    .await;
}

#[tokio::test]
async fn revoke_subject_gives_up_when_new_sessions_keep_coming() {
    let world = World::new().await;
    session_of(&world, USER).await;
    let mut held = world.db.calls.hold(Call::List, Moment::After);
    let store = world.store.clone();
    let revoking = tokio::spawn(async move { store.revoke_subject(USER).await });
    for _ in 0..256 {
        held.reached().await;
        session_of(&world, USER).await;
        let next = world.db.calls.hold(Call::List, Moment::After);
        held.release();
        held = next;
    }
    assert!(matches!(revoking.await.unwrap(), Err(Error::Conflict)));
}

#[tokio::test]
async fn revoke_subject_ends_a_hundred_sessions_by_each_statement() {
    each_database(async |world| {
        for _ in 0..250 {
            session_of(&world, USER).await;
        }
        world.db.calls.reset();
        assert_eq!(world.store.revoke_subject(USER).await.unwrap().value, 250);
        assert_eq!(world.db.calls.count(Call::Delete), 3);
        assert!(listed(&world, USER).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn sessions_that_cannot_be_ended_together_are_ended_alone() {
    let world = World::shared().await;
    for _ in 0..3 {
        session_of(&world, USER).await;
    }
    world.db.calls.reset();
    world.db.calls.fail(Call::Delete, Moment::Before, Fault::Refused);
    assert_eq!(world.store.revoke_subject(USER).await.unwrap().value, 3);
    assert_eq!(world.db.calls.count(Call::Delete), 4);
}

#[tokio::test]
async fn lost_answer_to_an_end_of_several_is_unknown_and_not_repeated() {
    let world = World::shared().await;
    let sessions = [session_of(&world, USER).await, session_of(&world, USER).await];
    world.db.calls.reset();
    world.db.calls.fail(Call::Delete, Moment::After, Fault::NoAnswer);
    let error = world.store.revoke_subject(USER).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(world.db.calls.count(Call::Delete), 1);
    for session in &sessions {
        let entry = world.cache.peek(session.stored_key().unwrap()).await;
        assert!(matches!(entry.unwrap().state, State::Fence(_)), "the statement may still commit");
        assert!(world.reopen(session).await.key().is_none());
    }
}

#[tokio::test]
async fn session_whose_turn_does_not_come_holds_up_no_other() {
    let world = World::shared().await;
    let mut slow = session_of(&world, USER).await;
    let other = session_of(&world, USER).await;
    slow.insert("x", 2).unwrap();
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let saving = tokio::spawn(async move { slow.save().await });
    held.reached().await;
    let store = world.store.clone();
    let revoking = tokio::spawn(async move { store.revoke_subject(USER).await });
    let patience = world.runtime.sleeping(|asked| asked == SECOND / 10).await;
    assert!(world.in_database(other.stored_key().unwrap()).await.is_some());
    world.runtime.advance(patience);
    soon(async {
        while world.in_database(other.stored_key().unwrap()).await.is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    held.release();
    let _ = revoking.await.unwrap();
    let _ = saving.await.unwrap();
}

#[tokio::test]
async fn revoke_subject_works_while_the_cache_is_down() {
    let world = World::shared().await;
    let session = session_of(&world, USER).await;
    let elsewhere = world.node().await;
    world.cache.calls.fail_all(Fault::Unreachable);
    let revoked = world.store.revoke_subject(USER).await.unwrap();
    assert_eq!((revoked.value, revoked.coherence), (1, Coherence::Degraded));
    assert!(world.reopen(&session).await.key().is_none());
    world.cache.calls.heal();
    let pause = world.probe_pause().await;
    world.runtime.advance(pause);
    until(|| world.store.stats().repairs == 1).await;
    assert!(elsewhere.open(&key_of(&session)).await.unwrap().key().is_none());
}

#[tokio::test]
async fn invalid_subject_is_refused_without_io() {
    let world = World::new().await;
    let long = "u".repeat(256);
    for subject in ["", "nul\0byte", &long] {
        let mut session = world.store.new_session();
        assert!(matches!(session.set_subject(subject), Err(Error::InvalidSubject(_))));
        assert!(!session.modified());
        assert!(matches!(world.store.list_by_subject(subject).await, Err(Error::InvalidSubject(_))));
        assert!(matches!(world.store.revoke_subject(subject).await, Err(Error::InvalidSubject(_))));
    }
    assert_eq!(world.calls(), 0);
    for subject in ["u", "name with späces", &"u".repeat(255), "' OR 1=1 --"] {
        let session = session_of(&world, subject).await;
        assert_eq!(listed(&world, subject).await, keys_of([&session]));
        assert_eq!(world.store.revoke_subject(subject).await.unwrap().value, 1);
    }
}
