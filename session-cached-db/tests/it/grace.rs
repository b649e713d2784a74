//! The grace after a rotation: requests that come late with the old key, and what they must not get.

use futures_util::FutureExt as _;
use session_cached_db::{ConflictPolicy, Error, Hooks, Session};
use session_core::{SessionKey, StoredKey};

use crate::common::{
    Call, Fault, HOUR, Log, MINUTE, Moment, SECOND, Store, StoreBuilder, World, each_database_with, key_of,
    map, soon, values_of,
};

pub(crate) const USER: &str = "user-42";

pub(crate) fn with_grace(builder: StoreBuilder) -> StoreBuilder {
    builder.rotation_grace(30 * SECOND)
}

pub(crate) async fn each_with_grace(test: impl AsyncFn(World)) {
    each_database_with(with_grace, test).await;
}

async fn subject_of(store: &Store, key: &str) -> Option<String> {
    let session = store.open(key).await.unwrap();
    session.key()?;
    Some(session.subject().unwrap_or("nobody").to_owned())
}

pub(crate) async fn opens_nothing(world: &World, key: &str) -> bool {
    subject_of(&world.store, key).await.is_none()
}

/// The ways in which a session gets another key because its user may have got other rights.
#[derive(Clone, Copy, Debug)]
enum Change {
    Cycle,
    LogIn,
    SetSubject,
    ClearSubject,
}

impl Change {
    const ALL: [Self; 4] = [Self::Cycle, Self::LogIn, Self::SetSubject, Self::ClearSubject];

    /// Returns a session to which the change can be made.
    async fn session(self, world: &World) -> Session {
        let mut session = world.saved([("cart", 1)]).await;
        if matches!(self, Self::ClearSubject) {
            session.log_in(USER).await.unwrap();
        }
        session
    }

    async fn make(self, session: &mut Session) {
        match self {
            Self::Cycle => session.cycle_key().await,
            Self::LogIn => session.log_in(USER).await,
            Self::SetSubject => {
                session.set_subject(USER).unwrap();
                // Not even if the application takes it for a renewal.
                session.renew_key().await
            }
            Self::ClearSubject => {
                session.clear_subject();
                session.save().await
            }
        }
        .unwrap();
    }
}

#[tokio::test]
async fn renewed_session_is_opened_by_its_old_key_within_the_grace() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        session.log_in(USER).await.unwrap();
        let old = key_of(&session);
        session.renew_key().await.unwrap();
        assert_ne!(key_of(&session), old);
        let elsewhere = with_grace(world.builder()).build().await.unwrap();
        for store in [&world.store, &elsewhere] {
            let led = store.open(&old).await.unwrap();
            assert_eq!((led.key(), led.subject()), (session.key(), Some(USER)));
            assert_eq!(values_of(&led), map([("cart", 1)]));
        }
        let without = world.node().await;
        assert_eq!(subject_of(&without, &old).await, None, "that node has no grace");
        world.runtime.advance(30 * SECOND - SECOND / 1_000);
        assert_eq!(subject_of(&world.store, &old).await.as_deref(), Some(USER));
        world.runtime.advance(SECOND / 1_000);
        assert!(opens_nothing(&world, &old).await, "the grace is over");
        assert_eq!(subject_of(&world.store, &key_of(&session)).await.as_deref(), Some(USER));
    })
    .await;
}

#[tokio::test]
async fn planted_key_opens_nothing_after_a_change_of_rights() {
    each_with_grace(async |world| {
        for change in Change::ALL {
            let mut session = change.session(&world).await;
            let planted = key_of(&session);
            change.make(&mut session).await;
            assert!(opens_nothing(&world, &planted).await, "{change:?}");
            // Nor does it after what the user does next.
            let new = key_of(&session);
            session.renew_key().await.unwrap();
            assert!(opens_nothing(&world, &planted).await, "{change:?}");
            assert!(!opens_nothing(&world, &new).await, "{change:?}");
            // No key of a chain that a change of rights is in leads over it.
            session.cycle_key().await.unwrap();
            for old in [&planted, &new] {
                assert!(opens_nothing(&world, old).await, "{change:?}");
            }
            let planted = SessionKey::parse(&planted).unwrap();
            assert!(!world.store.end(&planted).await.unwrap().value, "{change:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn key_from_before_a_login_gets_no_session_in_its_place() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let old = key_of(&session);
        session.log_in(USER).await.unwrap();
        session.renew_key().await.unwrap();
        let stranger = async || world.store.open(&old).await.unwrap();
        let mut poll = stranger().await;
        assert!(poll.key().is_none() && poll.is_empty());
        poll.insert("visits", 1).unwrap();
        assert!(matches!(poll.save().await, Err(Error::SessionGone)));
        assert!(matches!(poll.renew_key().await, Err(Error::SessionGone)));
        assert!(poll.key().is_none() && poll.modified());
        assert_eq!(world.store.stats().rotations_followed, 0);
        // The form of the login was submitted twice.
        let mut again = stranger().await;
        again.log_in(USER).await.unwrap();
        assert_ne!(again.key(), session.key());
        // An explicit session of its own is the application's wish.
        let mut own = stranger().await;
        own.create().await.unwrap();
        // There is nothing left whose place another key could take.
        session.log_out().await.unwrap();
        let mut visitor = stranger().await;
        visitor.insert("visits", 1).unwrap();
        visitor.save().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn logout_that_follows_a_rotation_goes_on_without_its_caller() {
    each_with_grace(async |world| {
        for ends_by_key in [false, true] {
            let mut session = world.saved([("x", 1)]).await;
            let old = key_of(&session);
            let mut late = world.reopen(&session).await;
            session.renew_key().await.unwrap();
            let mut held = world.db.calls.hold(Call::Rotations, Moment::Before);
            {
                let presented = SessionKey::parse(&old).unwrap();
                let mut logout = match ends_by_key {
                    false => async { late.flush().await.map(drop) }.boxed(),
                    true => async { world.store.end(&presented).await.map(drop) }.boxed(),
                };
                assert!(futures_util::poll!(logout.as_mut()).is_pending());
                soon(async {
                    tokio::select! { _ = &mut logout => {}, () = held.reached() => {} }
                })
                .await;
            }
            held.release();
            soon(async {
                while session.exists().await.unwrap() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn key_from_before_a_login_gets_a_new_session_after_the_grace() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let old = key_of(&session);
        session.log_in(USER).await.unwrap();
        world.runtime.advance(30 * SECOND);
        let mut visitor = world.store.open(&old).await.unwrap();
        visitor.insert("visits", 1).unwrap();
        visitor.save().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn save_follows_a_renewal_and_goes_on_with_the_new_key() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let mut late = world.reopen(&session).await;
        session.insert("page", 2).unwrap();
        session.renew_key().await.unwrap();
        late.modify("visits", |visits: &mut i32| *visits += 1).unwrap();
        late.save().await.unwrap();
        assert_eq!(late.key(), session.key());
        let expected = map([("cart", 1), ("page", 2), ("visits", 1)]);
        assert_eq!(values_of(&late), expected);
        late.modify("visits", |visits: &mut i32| *visits += 1).unwrap();
        late.save().await.unwrap();
        assert_eq!(values_of(&world.reopen(&session).await)["visits"], 2);
        // Rights that are gained late are those of the session that was followed.
        let mut late = world.reopen(&session).await;
        session.renew_key().await.unwrap();
        let renewed = key_of(&session);
        late.log_in(USER).await.unwrap();
        assert!(opens_nothing(&world, &renewed).await);
        assert_eq!(values_of(&world.reopen(&late).await)["page"], 2);
    })
    .await;
}

#[tokio::test]
async fn save_follows_a_change_of_rights_and_learns_nothing() {
    each_with_grace(async |world| {
        for change in Change::ALL {
            let mut session = change.session(&world).await;
            let mut late = world.reopen(&session).await;
            let old = key_of(&late);
            session.insert("secret", 7).unwrap();
            change.make(&mut session).await;
            for visits in 1..=2 {
                late.modify("visits", |visits: &mut i32| *visits += 1).unwrap();
                late.save().await.unwrap();
                assert!(!late.modified());
                assert_eq!(key_of(&late), old, "{change:?}: it learns the key");
                assert_eq!(values_of(&late), map([("cart", 1), ("visits", visits)]), "{change:?}");
            }
            let expected = map([("cart", 1), ("secret", 7), ("visits", 2)]);
            let reopened = world.reopen(&session).await;
            assert_eq!(values_of(&reopened), expected, "{change:?}");
            assert_eq!(reopened.subject(), session.subject(), "{change:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn late_save_undoes_nothing_of_a_change_of_rights() {
    each_with_grace(async |world| {
        let mut session = world.saved([("role", 1)]).await;
        let mut late = world.reopen(&session).await;
        session.insert("role", 2).unwrap();
        session.log_in(USER).await.unwrap();
        late.insert("role", 9).unwrap();
        assert!(matches!(late.save().await, Err(Error::Conflict)), "although the last write wins otherwise");
        late.clear();
        assert!(matches!(late.save().await, Err(Error::Conflict)));
        assert_eq!(values_of(&world.reopen(&session).await), map([("role", 2)]));
    })
    .await;
}

#[tokio::test]
async fn late_request_gains_no_rights_in_the_session_of_a_login() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let (mut cycling, mut renewing) = (world.reopen(&session).await, world.reopen(&session).await);
        let mut attacker = world.reopen(&session).await;
        session.log_in(USER).await.unwrap();
        for (late, by) in [(&mut cycling, "cycling"), (&mut renewing, "renewing")] {
            late.insert(by, 1).unwrap();
            late.save().await.unwrap();
        }
        assert!(matches!(cycling.cycle_key().await, Err(Error::SessionGone)));
        assert!(matches!(renewing.renew_key().await, Err(Error::SessionGone)));
        attacker.log_in("user-666").await.unwrap();
        assert_ne!(attacker.key(), session.key());
        assert_eq!(values_of(&attacker), map([]), "its session is a new one");
        assert_eq!(subject_of(&world.store, &key_of(&session)).await.as_deref(), Some(USER));
    })
    .await;
}

#[tokio::test]
async fn chain_of_renewals_is_followed_to_its_end() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let (first, mut late) = (key_of(&session), world.reopen(&session).await);
        for _ in 0..3 {
            world.runtime.advance(5 * SECOND);
            session.renew_key().await.unwrap();
        }
        assert_eq!(world.store.open(&first).await.unwrap().key(), session.key());
        // Behind a change of rights, a save follows in secret, over renewals as well.
        session.log_in(USER).await.unwrap();
        session.renew_key().await.unwrap();
        late.insert("page", 2).unwrap();
        late.save().await.unwrap();
        assert_eq!(key_of(&late), first);
        assert_eq!(values_of(&world.reopen(&session).await), map([("cart", 1), ("page", 2)]));
        // Each step counts from when it was made.
        world.runtime.advance(20 * SECOND);
        late.insert("page", 3).unwrap();
        assert!(matches!(late.save().await, Err(Error::SessionGone)), "the first step is too old");
    })
    .await;
}

#[tokio::test]
async fn requests_that_renew_at_the_same_time_go_on_with_one_key() {
    each_with_grace(async |world| {
        let session = world.saved([("cart", 1)]).await;
        let old = key_of(&session);
        let mut requests = Vec::new();
        for number in 0..4 {
            let mut request = world.reopen(&session).await;
            request.insert(&format!("by{number}"), number).unwrap();
            requests.push(request);
        }
        let renewals = requests.iter_mut().map(|request| request.renew_key());
        for renewed in futures_util::future::join_all(renewals).await {
            renewed.unwrap();
        }
        for request in &requests {
            assert_eq!(request.key(), requests[0].key());
        }
        let led = world.store.open(&old).await.unwrap();
        assert_eq!(led.key(), requests[0].key());
        assert_eq!(values_of(&led).len(), 5);
    })
    .await;
}

#[tokio::test]
async fn session_that_has_ended_is_not_followed() {
    each_with_grace(async |world| {
        for way in 0..3 {
            let mut session = world.saved([("cart", 1)]).await;
            session.log_in(USER).await.unwrap();
            let (old, mut late) = (key_of(&session), world.reopen(&session).await);
            session.renew_key().await.unwrap();
            match way {
                0 => drop(session.log_out().await.unwrap()),
                1 => drop(world.store.revoke(session.stored_key().unwrap()).await.unwrap()),
                _ => drop(world.store.revoke_subject(USER).await.unwrap()),
            }
            assert!(opens_nothing(&world, &old).await);
            late.insert("page", 2).unwrap();
            assert!(matches!(late.save().await, Err(Error::SessionGone)));
            assert!(matches!(late.renew_key().await, Err(Error::SessionGone)));
        }
    })
    .await;
}

#[tokio::test]
async fn logout_of_a_request_with_the_old_key_ends_the_session() {
    each_with_grace(async |world| {
        for rights in [false, true] {
            let mut session = world.saved([("cart", 1)]).await;
            let mut late = world.reopen(&session).await;
            if rights { session.cycle_key().await } else { session.renew_key().await }.unwrap();
            late.log_out().await.unwrap();
            assert!(opens_nothing(&world, &key_of(&session)).await);
        }
        let mut session = world.saved([("cart", 1)]).await;
        let old = session.key().unwrap().clone();
        session.renew_key().await.unwrap();
        assert!(world.store.end(&old).await.unwrap().value);
        assert!(opens_nothing(&world, &key_of(&session)).await);
        assert!(!world.store.end(&old).await.unwrap().value);
    })
    .await;
}

#[tokio::test]
async fn session_whose_renewal_was_not_answered_waits_for_its_client() {
    each_with_grace(async |world| {
        let mut session = world.saved([("cart", 1)]).await;
        let old = key_of(&session);
        let mut held = world.db.calls.hold(Call::Rename, Moment::After);
        {
            let mut renewing = std::pin::pin!(session.renew_key());
            assert!(futures_util::poll!(renewing.as_mut()).is_pending());
            held.reached().await;
        }
        // The client has hung up.
        drop(session);
        held.release();
        let led = soon(async {
            loop {
                let session = world.store.open(&old).await.unwrap();
                if session.key().is_some_and(|key| key.expose() != old) {
                    return session;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        // Nothing ends it later: a task that waits for that would sleep now.
        let sleeps = world.runtime.sleeps();
        assert!(sleeps.iter().all(|asked| *asked < MINUTE / 4 || *asked > HOUR), "{sleeps:?}");
        assert_eq!(values_of(&world.reopen(&led).await), map([("cart", 1)]));
    })
    .await;
}

#[tokio::test]
async fn renewal_with_an_unknown_outcome_is_none_for_a_change_of_rights() {
    each_with_grace(async |world| {
        for (took_place, is_login) in [(true, true), (true, false), (false, true), (false, false)] {
            println!("{took_place} {is_login}");
            let mut session = world.saved([("cart", 1)]).await;
            let planted = key_of(&session);
            let moment = if took_place { Moment::After } else { Moment::Before };
            world.db.calls.fail(Call::Rename, moment, Fault::NoAnswer);
            world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
            assert!(session.renew_key().await.is_err());
            if is_login { session.log_in(USER).await } else { session.cycle_key().await }.unwrap();
            assert!(opens_nothing(&world, &planted).await, "the planted key leads to the session");
            assert_eq!(values_of(&world.reopen(&session).await), map([("cart", 1)]));
        }
    })
    .await;
}

#[derive(Clone, Debug, Default)]
struct Followed(std::sync::Arc<std::sync::Mutex<Vec<[String; 2]>>>);

impl Hooks for Followed {
    fn followed(&self, old: &StoredKey, key: &StoredKey) {
        self.0.lock().unwrap().push([old, key].map(|key| key.as_str().to_owned()));
    }
}

#[tokio::test]
async fn each_that_follows_is_reported() {
    let (log, hook) = (Log::listen(), Followed::default());
    let world = World::with(|builder| with_grace(builder).hooks(hook.clone())).await;
    let mut session = world.saved([("cart", 1)]).await;
    let (old, mut late) = (session.key().unwrap().clone(), world.reopen(&session).await);
    session.renew_key().await.unwrap();
    world.store.open(old.expose()).await.unwrap();
    late.insert("page", 2).unwrap();
    late.save().await.unwrap();
    let followed =
        [&old, session.key().unwrap()].map(|key| world.store.stored_key(key).unwrap().as_str().to_owned());
    assert_eq!(*hook.0.lock().unwrap(), [followed.clone(), followed]);
    assert_eq!(world.store.stats().rotations_followed, 2);
    let lines = log.events("rotation_followed");
    assert_eq!(lines.len(), 2);
    for key in [old.expose(), session.key().unwrap().expose()] {
        assert!(log.lines().iter().all(|line| !line.contains(key)), "a key is in the log");
    }
}

#[tokio::test]
async fn late_save_under_reject_conflicts_about_the_same_value_only() {
    each_database_with(
        |builder| with_grace(builder).conflict_policy(ConflictPolicy::Reject),
        async |world| {
            let mut session = world.saved([("cart", 1)]).await;
            let (mut other, mut same) = (world.reopen(&session).await, world.reopen(&session).await);
            session.insert("page", 2).unwrap();
            session.renew_key().await.unwrap();
            other.insert("visits", 1).unwrap();
            other.save().await.unwrap();
            same.insert("page", 3).unwrap();
            assert!(matches!(same.save().await, Err(Error::Conflict)));
            assert_eq!(values_of(&world.reopen(&session).await)["page"], 2);
        },
    )
    .await;
}
