//! Which requests save their session, and which renew it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use session_cached_db::Error;
use session_cached_db::tower::SessionHandle;
use session_core::{Expiry, Runtime as _};
use tokio::sync::Barrier;

use crate::common::{
    Call, DAY, Fault, HOUR, Log, MINUTE, Moment, SECOND, World, each_database, map, values_of,
};
use crate::tower::{ask, cookie_of, layer, read, site, visit};

#[tokio::test]
async fn overlapping_requests_lose_no_change() {
    each_database(async |world| {
        let session = world.saved([("visits", 1)]).await;
        let both_have_read = Arc::new(Barrier::new(2));
        let page = async move |session: SessionHandle, headers: HeaderMap| {
            let mut session = session.lock().await.unwrap();
            assert_eq!(session.get::<i32>("visits").unwrap(), Some(1));
            both_have_read.wait().await;
            session.insert(headers[header::COOKIE].to_str().unwrap().split_once('=').unwrap().0, 1).unwrap();
        };
        let site = site(layer(&world), page);
        let cookie = cookie_of(&session);
        let (one, two) = (format!("one=1; {cookie}"), format!("two=2; {cookie}"));
        let (one, two) = tokio::join!(ask(&site, Some(&one)), ask(&site, Some(&two)));
        assert_eq!((one.status, two.status), (StatusCode::OK, StatusCode::OK));
        assert_eq!(values_of(&world.reopen(&session).await), map([("one", 1), ("two", 1), ("visits", 1)]));
    })
    .await;
}

#[tokio::test]
async fn session_is_not_saved_after_a_500() {
    assert_not_saved_after(StatusCode::INTERNAL_SERVER_ERROR).await;
}

#[tokio::test]
async fn session_is_not_saved_after_any_server_error() {
    assert_not_saved_after(StatusCode::BAD_GATEWAY).await;
    assert_not_saved_after(StatusCode::SERVICE_UNAVAILABLE).await;
}

async fn assert_not_saved_after(status: StatusCode) {
    let world = World::new().await;
    let page = async move |session: SessionHandle| {
        session.lock().await.unwrap().insert("visits", 2).unwrap();
        status
    };
    let site = site(layer(&world), page);
    let answer = ask(&site, None).await;
    assert_eq!(answer.status, status);
    assert!(answer.set_cookie().is_none() && answer.varies_by_cookie());
    assert_eq!(world.calls(), 0);

    let session = world.saved([("visits", 1)]).await;
    world.runtime.advance(HOUR);
    world.forget_calls();
    let answer = ask(&site, Some(&cookie_of(&session))).await;
    assert_eq!(answer.status, status);
    assert!(answer.set_cookie().is_none());
    assert_eq!(world.db.calls.count(Call::Update) + world.db.calls.count(Call::Touch), 0);
    assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 1)]));
}

#[tokio::test]
async fn changed_key_reaches_the_client_after_a_server_error() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let page = async |session: SessionHandle| {
        session.lock().await.unwrap().cycle_key().await.unwrap();
        StatusCode::INTERNAL_SERVER_ERROR
    };
    let answer = ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
    assert_ne!(answer.cookie(), cookie_of(&session));
    assert_eq!(ask(&site(layer(&world), read), Some(&answer.cookie())).await.body, "1");
}

#[tokio::test]
async fn session_is_saved_after_a_client_error() {
    let world = World::new().await;
    let page = async |session: SessionHandle| {
        session.lock().await.unwrap().insert("attempts", 1).unwrap();
        StatusCode::FORBIDDEN
    };
    let answer = ask(&site(layer(&world), page), None).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(!answer.cookie().is_empty());
    assert_eq!(world.db.calls.count(Call::Insert), 1);
}

#[tokio::test]
async fn session_use_renews_it_and_its_cookie_once_per_touch_interval() {
    let world = World::with(|builder| builder.idle_timeout(DAY)).await;
    let session = world.saved([("visits", 1)]).await;
    let site = site(layer(&world), read);
    let cookie = cookie_of(&session);
    world.runtime.advance(MINUTE);
    let answer = ask(&site, Some(&cookie)).await;
    assert!(answer.set_cookie().is_none() && answer.varies_by_cookie());
    assert_eq!(world.db.calls.count(Call::Touch), 0);

    world.runtime.advance(HOUR);
    let answer = ask(&site, Some(&cookie)).await;
    assert_eq!(answer.cookie(), cookie);
    assert!(answer.set_cookie().unwrap().contains(&"Max-Age=86400") && answer.varies_by_cookie());
    assert_eq!(world.db.calls.count(Call::Touch), 1);

    world.runtime.advance(DAY - SECOND);
    assert_eq!(ask(&site, Some(&cookie)).await.body, "1", "the expiry must count from the last use");
}

#[tokio::test]
async fn cookie_is_sent_once_per_touch_interval_however_often_it_is_saved() {
    let world = World::with(|builder| builder.idle_timeout(DAY).touch_interval(10 * MINUTE)).await;
    let site = site(layer(&world), visit);
    let cookie = ask(&site, None).await.cookie();
    let mut sent = 0;
    for _ in 0..60 {
        world.runtime.advance(MINUTE);
        sent += usize::from(!ask(&site, Some(&cookie)).await.sets_no_cookie());
    }
    assert_eq!(sent, 6, "in an hour");
}

#[tokio::test]
async fn cookie_is_sent_whenever_the_expiry_is_set() {
    let world = World::with(|builder| builder.idle_timeout(DAY)).await;
    let session = world.saved([("visits", 1)]).await;
    let expiries = [Expiry::After(HOUR), Expiry::After(2 * HOUR), Expiry::BrowserSession];
    for (expiry, expected) in expiries.into_iter().zip([Some("Max-Age=3600"), Some("Max-Age=7200"), None]) {
        world.runtime.advance(SECOND);
        let page = async move |session: SessionHandle| session.lock().await.unwrap().set_expiry(expiry);
        let answer = ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
        let parts = answer.set_cookie().expect("the cookie");
        assert_eq!(parts.iter().copied().find(|part| part.starts_with("Max-Age")), expected);
    }
}

#[tokio::test]
async fn reading_does_not_renew_a_session_without_touch() {
    let world = World::with(|builder| builder.idle_timeout(DAY)).await;
    let session = world.saved([("visits", 1)]).await;
    world.runtime.advance(DAY - SECOND);
    let answer = ask(&site(layer(&world).touch(false), read), Some(&cookie_of(&session))).await;
    assert_eq!(answer.body, "1");
    assert!(answer.set_cookie().is_none());
    assert_eq!(world.db.calls.count(Call::Touch), 0);
}

#[tokio::test]
async fn poll_for_the_time_left_does_not_prolong_the_session() {
    let world = World::with(|builder| builder.idle_timeout(DAY)).await;
    let session = world.saved([("visits", 1)]).await;
    world.runtime.advance(DAY - MINUTE);
    let now = world.runtime.now();
    let poll = async move |session: SessionHandle| -> Result<String, Error> {
        session.touch(false);
        let session = session.lock().await?;
        let left = session.stored_expires_at().map(|end| end.since(now));
        Ok(format!("{left:?}"))
    };
    let answer = ask(&site(layer(&world), poll), Some(&cookie_of(&session))).await;
    assert_eq!(answer.body, "Some(60s)");
    assert!(answer.sets_no_cookie());
    assert_eq!(world.db.calls.count(Call::Touch), 0);
    // Other requests prolong it.
    ask(&site(layer(&world), read), Some(&cookie_of(&session))).await;
    assert_eq!(world.db.calls.count(Call::Touch), 1);
}

#[tokio::test]
async fn failed_touch_fails_no_request() {
    let world = World::new().await;
    let log = Log::listen();
    let session = world.saved([("visits", 1)]).await;
    world.runtime.advance(HOUR);
    world.reopen(&session).await;
    world.db.calls.fail(Call::Touch, Moment::Before, Fault::Unreachable);
    let answer = ask(&site(layer(&world), read), Some(&cookie_of(&session))).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "1"));
    assert!(answer.set_cookie().is_none());
    assert_eq!(log.events("touch_failed").len(), 1);
}

#[tokio::test]
async fn emptied_session_is_saved_and_its_cookie_sent() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    world.runtime.advance(HOUR);
    let page = async |session: SessionHandle| {
        assert!(session.lock().await.unwrap().remove("visits"));
    };
    let answer = ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
    assert_eq!(answer.cookie(), cookie_of(&session));
    assert!(answer.varies_by_cookie());
    assert_eq!(world.in_database(session.stored_key().unwrap()).await, Some(map([])));
}

#[tokio::test]
async fn empty_session_gets_no_row_and_no_cookie() {
    let world = World::new().await;
    let page = async |session: SessionHandle| {
        let mut session = session.lock().await.unwrap();
        session.insert("visits", 1).unwrap();
        session.remove("visits");
        session.set_expiry(Expiry::BrowserSession);
        assert!(session.modified());
    };
    let answer = ask(&site(layer(&world), page), None).await;
    assert!(answer.set_cookie().is_none());
    assert_eq!(world.calls(), 0);
}

#[tokio::test]
async fn save_in_the_handler_is_not_repeated_and_sends_the_cookie() {
    let world = World::new().await;
    let page = async |session: SessionHandle| {
        let mut session = session.lock().await.unwrap();
        session.insert("visits", 1).unwrap();
        session.save().await.unwrap();
    };
    let answer = ask(&site(layer(&world), page), None).await;
    assert!(!answer.cookie().is_empty());
    assert_eq!(world.db.calls.count(Call::Insert), 1);
    assert_eq!(world.db.calls.count(Call::Update), 0);
}

#[tokio::test]
async fn cookie_outlives_no_use_by_much_less_than_its_session() {
    // Nearly every use is a save, so touches were turned down as far as they go.
    let world = World::with(|builder| builder.idle_timeout(14 * DAY).touch_interval(13 * DAY)).await;
    let site = site(layer(&world), visit);
    let mut cookie = ask(&site, None).await;
    let mut age = Duration::ZERO;
    for day in 0..40 {
        world.runtime.advance(DAY);
        age += DAY;
        let answer = ask(&site, Some(&cookie.cookie())).await;
        if !answer.sets_no_cookie() {
            (cookie, age) = (answer, Duration::ZERO);
        }
        assert!(age < 4 * DAY, "on day {day}, the cookie was last sent {age:?} ago, and lives for 14 days");
    }
}
