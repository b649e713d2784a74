//! Limits on the values of a session and the sessions of a subject.

use session_cached_db::{BuildError, Coherence, Error, Session};
use session_core::{Expiry, Outcome, Record};
use tokio::task::JoinHandle;

use crate::common::{
    Call, DAY, Fault, HOUR, Log, MINUTE, Moment, SECOND, World, each_database_with, in_memory, map, soon,
    values_of,
};
use crate::crowd::save_all;

async fn login(world: &World, subject: &str) -> Session {
    let mut session = world.store.new_session();
    session.set_subject(subject).unwrap();
    session.save().await.unwrap();
    world.runtime.advance(MINUTE);
    session
}

async fn is_alive(world: &World, session: &Session) -> bool {
    world.store.exists(session.stored_key().unwrap()).await.unwrap()
}

#[tokio::test]
async fn session_holds_as_many_values_as_allowed_and_no_more() {
    each_database_with(
        |builder| builder.max_keys(2),
        async |world| {
            let mut session = world.saved([("a", 1), ("b", 1)]).await;
            // Entries that the session keeps for itself do not count.
            session.set_expiry(Expiry::After(HOUR));
            session.save().await.unwrap();
            session.insert("c", 1).unwrap();
            world.forget_calls();
            let error = session.save().await.unwrap_err();
            assert!(matches!(error, Error::TooManyKeys { actual: 3, limit: 2 }), "{error}");
            assert!(matches!(session.cycle_key().await, Err(Error::TooManyKeys { .. })));
            assert_eq!(world.calls(), 0);
            session.remove("a");
            session.save().await.unwrap();
            assert_eq!(values_of(&world.reopen(&session).await), map([("b", 1), ("c", 1)]));
        },
    )
    .await;
}

#[tokio::test]
async fn two_saves_that_exceed_the_limit_together_do_not_both_succeed() {
    each_database_with(
        |builder| builder.max_keys(2),
        async |world| {
            let mut one = world.saved([("a", 1)]).await;
            let mut other = world.reopen(&one).await;
            one.insert("b", 1).unwrap();
            other.insert("c", 1).unwrap();
            one.save().await.unwrap();
            assert!(matches!(other.save().await, Err(Error::TooManyKeys { actual: 3, limit: 2 })));
            assert_eq!(values_of(&world.reopen(&one).await), map([("a", 1), ("b", 1)]));
        },
    )
    .await;
}

#[tokio::test]
async fn session_beyond_the_limit_ends_the_least_recently_used_one() {
    each_database_with(
        |builder| builder.max_sessions_per_subject(2),
        async |world| {
            let mut first = login(&world, "user-42").await;
            let second = login(&world, "user-42").await;
            let other = login(&world, "another user").await;
            world.runtime.advance(HOUR);
            first.touch().await.unwrap();
            let third = login(&world, "user-42").await;
            assert!(is_alive(&world, &first).await, "it was used");
            assert!(!is_alive(&world, &second).await, "it was not");
            assert!(is_alive(&world, &third).await && is_alive(&world, &other).await);
            assert!(world.reopen(&second).await.key().is_none());
        },
    )
    .await;
}

#[tokio::test]
async fn login_in_an_old_session_does_not_end_it() {
    each_database_with(
        |builder| builder.max_sessions_per_subject(1),
        async |world| {
            let mut anonymous = world.saved([("cart", 1)]).await;
            world.runtime.advance(HOUR);
            let before = login(&world, "user-42").await;
            anonymous.set_subject("user-42").unwrap();
            anonymous.cycle_key().await.unwrap();
            assert!(is_alive(&world, &anonymous).await);
            assert!(!is_alive(&world, &before).await);
            // A new key for the same session is not a new session.
            world.forget_calls();
            anonymous.cycle_key().await.unwrap();
            anonymous.insert("cart", 2).unwrap();
            anonymous.save().await.unwrap();
            assert_eq!(world.db.calls.count(Call::List), 0);
        },
    )
    .await;
}

#[tokio::test]
async fn two_concurrent_logins_leave_one_session() {
    each_database_with(
        |builder| builder.max_sessions_per_subject(1),
        async |world| {
            let mut sessions = [world.store.new_session(), world.store.new_session()];
            for session in &mut sessions {
                session.set_subject("user-42").unwrap();
            }
            let [one, other] = &mut sessions;
            let (one, other) = tokio::join!(one.save(), other.save());
            one.unwrap();
            other.unwrap();
            assert_eq!(world.store.list_by_subject("user-42").await.unwrap().len(), 1);
        },
    )
    .await;
}

/// Begins a login in a new session.
fn begin_login(world: &World, subject: &str) -> JoinHandle<Result<Coherence, Error>> {
    let mut session = world.store.new_session();
    session.set_subject(subject).unwrap();
    tokio::spawn(async move { session.save().await })
}

#[tokio::test]
async fn logins_of_a_subject_beyond_the_capacity_are_refused_unwritten() {
    let world = World::shared_with(|builder| builder.max_sessions_per_subject(1).max_waiting_writes(2)).await;
    let mut held = world.db.calls.hold(Call::List, Moment::Before);
    let first = begin_login(&world, "user-42");
    held.reached().await;
    let waiting = [begin_login(&world, "user-42"), begin_login(&world, "user-42")];
    tokio::task::yield_now().await;
    let error = soon(begin_login(&world, "user-42")).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Busy) && error.is_retryable(), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(world.db.calls.count(Call::Insert), 1);
    // Another subject has a turn of its own.
    soon(begin_login(&world, "another user")).await.unwrap().unwrap();
    held.release();
    for login in std::iter::once(first).chain(waiting) {
        soon(login).await.unwrap().unwrap();
    }
    assert_eq!(world.db.calls.count(Call::Insert), 4);
    assert_eq!(world.store.list_by_subject("user-42").await.unwrap().len(), 1);
}

#[tokio::test]
async fn login_that_waits_for_its_subject_is_refused_at_its_deadline() {
    let world = World::shared_with(|builder| builder.max_sessions_per_subject(1)).await;
    let mut lease = world.cache.calls.hold(Call::Acquire, Moment::Before);
    let mut insert = world.db.calls.hold(Call::Insert, Moment::Before);
    let first = begin_login(&world, "user-42");
    lease.reached().await;
    let second = begin_login(&world, "user-42");
    tokio::task::yield_now().await;
    // The statement of the first is sent a second later, so it has a second left when the time of the other is up.
    world.runtime.jump(SECOND);
    lease.release();
    insert.reached().await;
    world.runtime.advance(9 * SECOND);
    let error = soon(second).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Busy), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    insert.release();
    soon(first).await.unwrap().unwrap();
    assert_eq!(world.db.calls.count(Call::Insert), 1);
}

#[tokio::test]
async fn login_succeeds_when_other_sessions_cannot_be_listed() {
    each_database_with(
        |builder| builder.max_sessions_per_subject(1),
        async |world| {
            let log = Log::listen();
            let before = login(&world, "user-42").await;
            world.db.calls.fail(Call::List, Moment::Before, Fault::Unreachable);
            let now = login(&world, "user-42").await;
            assert!(is_alive(&world, &before).await && is_alive(&world, &now).await);
            assert_eq!(log.events("subject_limit_failed").len(), 1);
            login(&world, "user-42").await;
            assert!(!is_alive(&world, &before).await && !is_alive(&world, &now).await);
        },
    )
    .await;
}

#[tokio::test]
async fn surplus_of_more_than_a_page_is_ended_in_the_background() {
    each_database_with(
        |builder| builder,
        async |world| {
            let mut before = Vec::new();
            for _ in 0..1_100 {
                before.push(login(&world, "user-42").await);
            }
            world.runtime.advance(HOUR);
            before[7].touch().await.unwrap();
            world.runtime.advance(HOUR);
            let limited = world.builder().max_sessions_per_subject(3).build().await.unwrap();
            let mut newest = limited.new_session();
            newest.set_subject("user-42").unwrap();
            newest.save().await.unwrap();
            limited.close().await;
            assert_eq!(world.store.list_by_subject("user-42").await.unwrap().len(), 3);
            assert!(is_alive(&world, &newest).await, "it has just logged in");
            assert!(is_alive(&world, &before[7]).await && is_alive(&world, &before[1_099]).await);
        },
    )
    .await;
}

#[tokio::test]
async fn login_is_answered_before_many_surplus_sessions_end() {
    each_database_with(
        |builder| builder,
        async |world| {
            // One more than those whose end a login waits for.
            for _ in 0..3 + 8 {
                login(&world, "user-42").await;
            }
            let limited = world.builder().max_sessions_per_subject(3).build().await.unwrap();
            let mut newest = limited.new_session();
            newest.set_subject("user-42").unwrap();
            newest.save().await.unwrap();
            assert_eq!(limited.list_by_subject("user-42").await.unwrap().len(), 12);
            world.runtime.advance(SECOND);
            limited.close().await;
            assert_eq!(world.store.list_by_subject("user-42").await.unwrap().len(), 3);
        },
    )
    .await;
}

#[tokio::test]
async fn list_of_a_subject_comes_in_pages() {
    each_database_with(
        |builder| builder,
        async |world| {
            for _ in 0..5 {
                login(&world, "user-42").await;
            }
            login(&world, "another user").await;
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = world.store.list_page_by_subject("user-42", after.as_ref(), 2).await.unwrap();
                assert!(page.sessions.len() <= 2);
                found.extend(page.sessions);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found, world.store.list_by_subject("user-42").await.unwrap());
            assert_eq!(found.len(), 5);
        },
    )
    .await;
}

#[tokio::test]
async fn limit_of_zero_sessions_is_refused() {
    let runtime = crate::common::ManualRuntime::new();
    let builder = session_cached_db::CachedDb::builder(crate::common::TestCache::new(), in_memory().await);
    let built = builder.runtime(runtime).max_sessions_per_subject(0).build().await;
    assert!(matches!(built, Err(BuildError::Invalid(text)) if text.contains("max_sessions_per_subject")));
}

#[tokio::test]
async fn concurrent_logins_leave_as_many_sessions_as_allowed() {
    let world = World::shared_with(|builder| builder.max_sessions_per_subject(3)).await;
    let mut logins: Vec<_> = (0..50).map(|_| world.store.new_session()).collect();
    for session in &mut logins {
        session.set_subject("user-42").unwrap();
    }
    for saved in save_all(&mut logins).await {
        saved.unwrap();
    }
    assert_eq!(world.store.list_by_subject("user-42").await.unwrap().len(), 3);
}

#[tokio::test]
async fn limit_never_ends_the_session_that_has_just_logged_in() {
    let world = World::shared_with(|builder| builder.max_sessions_per_subject(1)).await;
    let mut old = world.store.new_session();
    old.set_subject("user-42").unwrap();
    old.save().await.unwrap();
    world.runtime.advance(MINUTE);
    // A node whose clock is a second ahead uses the old session.
    let ahead = world.runtime.now_plus(SECOND);
    world.store.touch(old.stored_key().unwrap(), ahead + 14 * DAY).await.unwrap();
    let key = old.stored_key().unwrap();
    let record = world.store.load(key).await.unwrap().unwrap();
    let record = Record::clone(&record).with_last_seen_at(ahead);
    world.store.update(key, record, None, session_core::ExpiryWrite::Extend).await.unwrap();

    let mut new = world.store.new_session();
    new.set_subject("user-42").unwrap();
    new.save().await.unwrap();
    assert!(new.exists().await.unwrap());
    assert!(!old.exists().await.unwrap());
}
