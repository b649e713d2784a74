//! The end of sessions.

use session_cached_db::Error;
use session_core::{Expiry, Runtime as _};
use std::time::Duration;

use crate::common::{
    Call, DAY, HOUR, MINUTE, Moment, SECOND, START, World, each_database, each_database_with, key_of, map,
    values_of,
};

const TEN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn by_default_a_session_lives_for_the_idle_timeout() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        assert_eq!(session.expiry_age(), 14 * DAY);
        assert_eq!(session.expires_at(), START + 14 * DAY);
        // A browser session lives as long on the server.
        session.set_expiry(Expiry::BrowserSession);
        assert_eq!(session.expiry_age(), 14 * DAY);
        session.save().await.unwrap();
        world.runtime.advance(14 * DAY - SECOND);
        assert!(world.reopen(&session).await.key().is_some());
        world.runtime.advance(SECOND);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn application_can_set_the_idle_timeout() {
    each_database_with(
        |builder| builder.idle_timeout(HOUR),
        async |world| {
            let mut session = world.store.new_session();
            assert_eq!(session.expiry_age(), HOUR);
            session.set_expiry(Expiry::After(TEN));
            session.set_expiry(None);
            assert_eq!(session.expiry_age(), HOUR);
            session.save().await.unwrap();
            world.runtime.advance(HOUR);
            assert!(world.reopen(&session).await.key().is_none());
        },
    )
    .await;
}

#[tokio::test]
async fn expiry_in_seconds_counts_from_the_last_modification() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.set_expiry(Expiry::After(TEN));
        let modification = START + DAY;
        assert_eq!(session.expires_at_from(modification), modification + TEN);
        assert_eq!(session.expiry_age_from(modification), TEN);
        assert_eq!(session.expiry_age(), TEN);
        assert!(!session.expires_at_browser_close());
        session.save().await.unwrap();
        world.runtime.advance(TEN - SECOND);
        // Reading does not count as activity; saving does.
        let mut session = world.reopen(&session).await;
        assert_eq!(session.expiry(), Some(Expiry::After(TEN)));
        session.save().await.unwrap();
        world.runtime.advance(TEN - SECOND);
        assert!(world.reopen(&session).await.key().is_some());
        world.runtime.advance(SECOND);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn fixed_time_to_live_is_not_moved_by_saving() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.set_expiry(Expiry::fixed(TEN, world.runtime.now()));
        assert_eq!(session.expires_at(), START + TEN);
        assert_eq!(session.expiry_age(), TEN);
        session.save().await.unwrap();
        world.runtime.advance(TEN - SECOND);
        session.save().await.unwrap();
        assert_eq!(session.expiry_age(), SECOND);
        world.runtime.advance(SECOND);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn instant_of_expiry_is_kept_to_the_microsecond() {
    each_database(async |world| {
        let end = START + Duration::from_micros(10_123_456);
        let mut session = world.store.new_session();
        session.set_expiry(Expiry::At(end));
        assert_eq!(session.expires_at(), end);
        assert_eq!(session.expires_at_from(START + SECOND), end);
        assert_eq!(session.expiry_age_from(START + SECOND), Duration::from_micros(9_123_456));
        session.save().await.unwrap();
        let stored = world.store.load(session.stored_key().unwrap()).await.unwrap().unwrap();
        assert_eq!(stored.expires_at(), end);
        world.runtime.advance(Duration::from_micros(10_123_455));
        assert!(world.reopen(&session).await.key().is_some());
        world.runtime.advance(Duration::from_micros(1));
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn expiry_can_be_reset_to_the_default() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.set_expiry(None);
        assert!(!session.modified());
        session.set_expiry(Expiry::After(TEN));
        session.save().await.unwrap();
        let mut session = world.reopen(&session).await;
        session.set_expiry(None);
        assert!(session.modified());
        assert_eq!(session.expiry(), None);
        assert_eq!(session.expiry_age(), 14 * DAY);
        session.save().await.unwrap();
        world.runtime.advance(TEN);
        assert_eq!(world.reopen(&session).await.expiry_age(), 14 * DAY);
    })
    .await;
}

#[tokio::test]
async fn browser_close_expiry_is_chosen_by_the_session_or_the_store() {
    for store_says in [false, true] {
        let world = World::with(|builder| builder.expire_at_browser_close(store_says)).await;
        let mut session = world.store.new_session();
        for (chosen, expected) in
            [(Some(Expiry::After(TEN)), false), (Some(Expiry::BrowserSession), true), (None, store_says)]
        {
            session.set_expiry(chosen);
            assert_eq!(session.expires_at_browser_close(), expected, "{store_says} {chosen:?}");
        }
    }
}

#[tokio::test]
async fn session_with_a_past_expiry_is_absent() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.insert("foo", 1).unwrap();
        session.set_expiry(Expiry::At(START - TEN));
        assert_eq!(session.expiry_age(), Duration::ZERO);
        session.save().await.unwrap();
        assert_eq!(values_of(&world.reopen(&session).await), map([]));
        assert!(!session.exists().await.unwrap());
        // The session is not in the cache either.
        assert_eq!(world.cache.peek(session.stored_key().unwrap()).await, None);
    })
    .await;
}

#[tokio::test]
async fn past_expiry_ends_an_existing_session() {
    each_database(async |world| {
        let mut session = world.saved([("foo", 1)]).await;
        session.set_expiry(Expiry::At(START - TEN));
        session.save().await.unwrap();
        assert!(world.reopen(&session).await.key().is_none());
        assert!(matches!(session.save().await, Err(Error::SessionGone)));
    })
    .await;
}

#[tokio::test]
async fn session_with_a_duration_of_zero_ends_at_once() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.set_expiry(Expiry::After(Duration::ZERO));
        assert_eq!(session.expiry(), Some(Expiry::After(Duration::ZERO)));
        assert!(!session.expires_at_browser_close());
        assert_eq!(session.expiry_age(), Duration::ZERO);
        session.save().await.unwrap();
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn session_may_live_for_ever() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.set_expiry(Expiry::After(Duration::MAX));
        session.save().await.unwrap();
        world.runtime.advance(1_000 * 365 * DAY);
        let mut session = world.reopen(&session).await;
        assert_eq!(session.expiry(), Some(Expiry::After(Duration::MAX)));
        session.touch().await.unwrap();
        session.save().await.unwrap();
        assert!(world.reopen(&session).await.key().is_some());
    })
    .await;
}

#[tokio::test]
async fn expiry_of_sixty_days_is_exact_behind_a_cache() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.set_expiry(Expiry::After(60 * DAY));
        session.save().await.unwrap();
        assert!(world.cache.peek_record(session.stored_key().unwrap()).await.is_some());
        world.runtime.advance(60 * DAY - SECOND);
        assert!(world.reopen(&session).await.key().is_some());
        world.runtime.advance(SECOND);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn expired_session_is_not_served_from_the_cache() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_expiry(Expiry::After(TEN));
        session.save().await.unwrap();
        let key = *session.stored_key().unwrap();
        world.runtime.advance(TEN);
        // The cache has a clock of its own, by which the entry is still fresh.
        assert!(world.cache.peek_record(&key).await.is_some());
        assert!(world.reopen(&session).await.key().is_none());
        assert!(world.store.load(&key).await.unwrap().is_none());
        assert!(!world.store.exists(&key).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn expired_session_is_not_saved_again() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        world.runtime.advance(14 * DAY);
        session.insert("x", 2).unwrap();
        assert!(matches!(session.save().await, Err(Error::SessionGone)));
        assert!(matches!(session.touch().await, Err(Error::SessionGone)));
        assert!(matches!(session.cycle_key().await, Err(Error::SessionGone)));
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn touching_makes_a_sliding_expiry_start_anew() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_expiry(Expiry::After(HOUR));
        session.save().await.unwrap();
        for _ in 0..5 {
            world.runtime.advance(HOUR - SECOND);
            session = world.reopen(&session).await;
            session.touch().await.unwrap();
        }
        world.runtime.advance(HOUR);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn session_in_use_does_not_expire_with_a_short_expiry() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_expiry(Expiry::After(MINUTE));
        session.save().await.unwrap();
        world.db.calls.reset();
        for _ in 0..20 {
            world.runtime.advance(10 * SECOND);
            session = world.reopen(&session).await;
            assert!(session.key().is_some());
            session.touch().await.unwrap();
        }
        // The database is not written to at every use.
        assert_eq!(world.db.calls.count(Call::Touch), 10);
    })
    .await;
}

#[tokio::test]
async fn touching_does_not_move_a_fixed_expiry() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.set_expiry(Expiry::At(START + HOUR));
        session.save().await.unwrap();
        world.runtime.advance(30 * MINUTE);
        session.touch().await.unwrap();
        assert_eq!(world.db.calls.count(Call::Touch), 1);
        world.runtime.advance(30 * MINUTE);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn unsaved_expiry_does_not_change_the_end() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_expiry(Expiry::After(365 * DAY));
        world.runtime.advance(HOUR);
        session.touch().await.unwrap();
        let stored = world.store.load(session.stored_key().unwrap()).await.unwrap().unwrap();
        assert_eq!(stored.expires_at(), START + HOUR + 14 * DAY);
    })
    .await;
}

#[tokio::test]
async fn save_that_overlaps_a_touch_does_not_shorten_the_session() {
    each_database_with(
        |builder| builder.touch_interval(SECOND),
        async |world| {
            let mut slow = world.saved([("x", 1)]).await;
            let elsewhere = world.builder().touch_interval(SECOND).build().await.unwrap();
            let mut quick = elsewhere.open(&key_of(&slow)).await.unwrap();
            slow.insert("x", 2).unwrap();
            let mut held = world.db.calls.hold(Call::Update, Moment::Before);
            let saving = tokio::spawn(async move { slow.save().await });
            held.reached().await;
            world.runtime.advance(SECOND);
            quick.touch().await.unwrap();
            held.release();
            saving.await.unwrap().unwrap();
            let key = quick.stored_key().unwrap();
            world.cache.plant(key, None).await;
            let stored = world.store.load(key).await.unwrap().unwrap();
            assert_eq!(stored.expires_at(), START + SECOND + 14 * DAY);
        },
    )
    .await;
}

#[tokio::test]
async fn session_can_choose_an_earlier_expiry() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_expiry(Expiry::After(MINUTE));
        session.save().await.unwrap();
        world.runtime.advance(MINUTE);
        assert!(world.reopen(&session).await.key().is_none());
    })
    .await;
}

#[tokio::test]
async fn no_session_outlives_the_absolute_timeout() {
    each_database_with(
        |builder| builder.idle_timeout(HOUR).absolute_timeout(3 * HOUR),
        async |world| {
            let mut session = world.saved([("x", 1)]).await;
            let half = 30 * MINUTE;
            for _ in 0..2 {
                world.runtime.advance(half);
                session = world.reopen(&session).await;
                session.touch().await.unwrap();
                world.runtime.advance(half);
                session = world.reopen(&session).await;
                session.save().await.unwrap();
            }
            // The session is two hours old. Neither a new key nor an expiry of its own makes it younger.
            session.set_expiry(Expiry::After(30 * DAY));
            session.cycle_key().await.unwrap();
            assert_eq!(session.created_at(), Some(START));
            assert_eq!(session.expires_at(), START + 3 * HOUR);
            world.runtime.advance(HOUR - SECOND);
            session = world.reopen(&session).await;
            session.touch().await.unwrap();
            assert!(session.key().is_some());
            world.runtime.advance(SECOND);
            assert!(world.reopen(&session).await.key().is_none());
        },
    )
    .await;
}
