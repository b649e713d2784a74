//! Requests that end in unusual ways: cut off, by a panic, with an upgrade, without a body, or later than their response.

use std::future::{pending, poll_fn, ready};
use std::pin::pin;
use std::sync::{Arc, Mutex as StdMutex};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::{any, get};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, stream};
use session_cached_db::tower::{SessionFailure, SessionHandle};
use session_cached_db::{Error, Session};
use session_core::Persistence as _;
use tokio::sync::{Mutex, Notify, oneshot};
use tower::ServiceExt as _;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use crate::common::{Call, Fault, Moment, SECOND, World, key_of, map, soon, values_of};
use crate::tower::{ask, cookie_of, layer, read, site, visit};

/// A handle that a handler has put aside.
type Aside = Arc<Mutex<Option<SessionHandle>>>;

/// Changes the session in a task of its own, which does not save it.
async fn insert_in_a_task(aside: &Aside, name: &'static str) {
    let handle = aside.lock().await.clone().unwrap();
    let task = tokio::spawn(async move { handle.lock().await?.insert(name, 1) });
    soon(task).await.unwrap().unwrap();
}

#[tokio::test]
async fn task_that_first_locks_after_the_response_saves_no_other_tasks_changes() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let aside = Aside::default();
    let kept = Arc::clone(&aside);
    let page = async move |session: SessionHandle| *kept.lock().await = Some(session);
    ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
    for name in ["one", "two", "three"] {
        insert_in_a_task(&aside, name).await;
    }
    assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 1)]));
}

#[tokio::test]
async fn changes_of_a_request_that_was_cut_off_are_not_saved_for_a_later_task() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let aside = Aside::default();
    let kept = Arc::clone(&aside);
    let page = async move |session: SessionHandle| {
        *kept.lock().await = Some(session.clone());
        session.lock().await.unwrap().insert("visits", 2).unwrap();
        pending::<()>().await;
    };
    let site = site(layer(&world), page);
    let cookie = cookie_of(&session);
    let task = tokio::spawn(async move { ask(&site, Some(&cookie)).await });
    soon(async {
        while aside.lock().await.is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.db.calls.reset();
    task.abort();
    assert!(task.await.is_err());
    for name in ["one", "two"] {
        insert_in_a_task(&aside, name).await;
    }
    assert_eq!(world.db.calls.count(Call::Update), 0);
    assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 1)]));
}

/// Changes the session, and never answers.
async fn never(session: SessionHandle) {
    let mut session = session.lock().await.unwrap();
    session.insert("visits", 2).unwrap();
    pending::<()>().await;
}

#[tokio::test]
async fn handler_cut_off_by_a_timeout_stores_nothing_and_frees_the_session() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let cut = || TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(1));
    let page = || Router::new().route("/", any(never));
    for site in [page().layer(cut()).layer(layer(&world)), page().layer(layer(&world)).layer(cut())] {
        let answer = soon(ask(&site, Some(&cookie_of(&session)))).await;
        assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
        assert!(answer.sets_no_cookie());
        assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 1)]));
    }
    assert_eq!(ask(&site(layer(&world), visit), Some(&cookie_of(&session))).await.body, "2");
}

/// Gives the session another key, changes it, and panics with the guard.
async fn log_in_and_panic(session: SessionHandle) {
    let mut session = session.lock().await.unwrap();
    session.cycle_key().await.unwrap();
    session.insert("visits", 2).unwrap();
    panic!("a handler that panics");
}

#[tokio::test]
async fn panic_caught_inside_of_the_layer_stores_nothing_and_sends_the_new_key() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let page = Router::new().route("/", any(log_in_and_panic));
    let site = page.layer(CatchPanicLayer::new()).layer(layer(&world));
    let answer = ask(&site, Some(&cookie_of(&session))).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_ne!(answer.cookie(), cookie_of(&session));
    assert_eq!(ask(&crate::tower::site(layer(&world), read), Some(&answer.cookie())).await.body, "1");
}

#[tokio::test]
async fn panic_caught_outside_of_the_layer_stores_nothing() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let page = async |session: SessionHandle| {
        let guard = &mut session.lock().await.unwrap();
        guard.insert("visits", 2).unwrap();
        assert!(guard.is_empty(), "a handler that panics");
    };
    let page = Router::new().route("/", any(page));
    let outside = page.layer(layer(&world)).layer(CatchPanicLayer::new());
    let answer = ask(&outside, Some(&cookie_of(&session))).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.sets_no_cookie());
    assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 1)]));
    assert_eq!(ask(&site(layer(&world), visit), Some(&cookie_of(&session))).await.body, "2");
}

#[tokio::test]
async fn upgrade_stores_the_session_and_goes_through_as_it_is() {
    let world = World::new().await;
    let aside = Aside::default();
    let kept = Arc::clone(&aside);
    let page = async move |session: SessionHandle| -> Result<_, Error> {
        session.lock().await?.insert("visits", 1)?;
        *kept.lock().await = Some(session);
        let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "websocket")];
        Ok((StatusCode::SWITCHING_PROTOCOLS, headers))
    };
    let answer = ask(&site(layer(&world), page), None).await;
    assert_eq!(answer.status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(
        (&answer.headers[header::CONNECTION], &answer.headers[header::UPGRADE]),
        (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
    );
    let key = answer.cookie().split_once('=').unwrap().1.to_owned();
    // The socket goes on with the handle, and saves its changes itself.
    let handle = aside.lock().await.take().unwrap();
    let socket = tokio::spawn(async move {
        let mut session = handle.lock().await?;
        session.modify("visits", |visits: &mut i32| *visits += 1)?;
        session.save().await
    });
    soon(socket).await.unwrap().unwrap();
    assert_eq!(values_of(&world.store.open(&key).await.unwrap()), map([("visits", 2)]));
}

#[tokio::test]
async fn head_request_is_answered_with_the_headers_of_get() {
    let world = World::new().await;
    let site = Router::new().route("/", get(visit)).layer(layer(&world));
    let ask = async |method: Method| {
        let request = Request::builder().method(method).uri("/").body(Body::empty()).unwrap();
        let (parts, body) = site.clone().oneshot(request).await.unwrap().into_parts();
        (parts.headers, to_bytes(body, 1 << 20).await.unwrap())
    };
    let ((head, nothing), (get, body)) = (ask(Method::HEAD).await, ask(Method::GET).await);
    assert_eq!((&nothing[..], &body[..]), (&b""[..], &b"1"[..]));
    let names = |headers: &HeaderMap| headers.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&head), names(&get));
    assert!(head.contains_key(header::SET_COOKIE) && head[header::CACHE_CONTROL] == "private");
}

#[tokio::test]
async fn not_modified_brings_the_key_and_no_body_and_is_not_shared() {
    let world = World::new().await;
    let page = async |session: SessionHandle| -> Result<_, Error> {
        session.lock().await?.insert("visits", 1)?;
        let headers = [(header::ETAG, "\"1\""), (header::CACHE_CONTROL, "public, max-age=60")];
        Ok((StatusCode::NOT_MODIFIED, headers))
    };
    let answer = ask(&site(layer(&world), page), None).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NOT_MODIFIED, ""));
    assert!(!answer.cookie().is_empty() && answer.varies_by_cookie());
    assert_eq!(answer.headers[header::CACHE_CONTROL], "private, max-age=60");
    assert_eq!(answer.headers[header::ETAG], "\"1\"");
}

/// Returns a body that counts a visit when it is read, and saves that only if it `saves`.
fn counting(session: SessionHandle, saves: bool) -> Body {
    let count = async move {
        let mut session = session.lock().await?;
        let visits = session.modify("visits", |visits: &mut i32| {
            *visits += 1;
            *visits
        })?;
        if saves {
            session.save().await?;
        }
        Ok::<_, Error>(Bytes::from(visits.to_string()))
    };
    Body::from_stream(stream::once(count))
}

#[tokio::test]
async fn streamed_body_uses_the_session_and_saves_its_changes_itself() {
    let world = World::new().await;
    for (locks_before, saves, stored) in
        [(true, true, 2), (true, false, 1), (false, true, 2), (false, false, 1)]
    {
        let session = world.saved([("visits", 1)]).await;
        let page = async move |session: SessionHandle| {
            if locks_before {
                session.lock().await.unwrap();
            }
            counting(session, saves)
        };
        let answer = soon(ask(&site(layer(&world), page), Some(&cookie_of(&session)))).await;
        assert_eq!(answer.body, "2");
        // The headers are gone when a body first uses the session.
        assert_eq!(answer.varies_by_cookie(), locks_before);
        assert_eq!(answer.headers.contains_key(header::CACHE_CONTROL), locks_before);
        assert_eq!(values_of(&world.reopen(&session).await), map([("visits", stored)]));
    }
}

/// Locks the session until the future has to wait for the first time, keeps the future, and awaits something else.
async fn begin_to_lock(
    session: SessionHandle,
    has_begun: oneshot::Sender<()>,
    goes_on: oneshot::Receiver<()>,
) {
    let mut lock = pin!(session.lock());
    poll_fn(|context| {
        assert!(lock.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    has_begun.send(()).unwrap();
    goes_on.await.unwrap();
    lock.await.unwrap();
}

/// Spawns a task that begins to lock. Returns the end of its wait.
async fn spawn_that_begins_to_lock(session: &SessionHandle) -> oneshot::Sender<()> {
    let ((has_begun, begun), (go_on, goes_on)) = (oneshot::channel(), oneshot::channel());
    tokio::spawn(begin_to_lock(session.clone(), has_begun, goes_on));
    begun.await.unwrap();
    go_on
}

#[tokio::test]
async fn lock_that_got_its_turn_and_is_not_awaited_holds_up_no_response() {
    let world = World::new().await;
    let aside = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&aside);
    let page = async move |session: SessionHandle| {
        let mut guard = session.lock().await.unwrap();
        guard.insert("visits", 1).unwrap();
        // The task is the first in the queue when the guard is dropped.
        *kept.lock().await = Some(spawn_that_begins_to_lock(&session).await);
        "answered"
    };
    let answer = soon(ask(&site(layer(&world), page), None)).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "answered"));
    let key = answer.cookie().split_once('=').unwrap().1.to_owned();
    assert_eq!(values_of(&world.store.open(&key).await.unwrap()), map([("visits", 1)]));
    aside.lock().await.take().unwrap().send(()).unwrap();
}

#[tokio::test]
async fn lock_that_is_not_awaited_to_the_end_of_its_save_holds_up_no_response() {
    for status in [StatusCode::OK, StatusCode::BAD_GATEWAY] {
        let world = World::new().await;
        let session = world.saved([("visits", 1)]).await;
        let aside = Arc::new(Mutex::new(None));
        let kept = Arc::clone(&aside);
        let page = async move |session: SessionHandle| {
            session.lock().await.unwrap().insert("visits", 2).unwrap();
            // The task has the session, and saves what was changed before.
            *kept.lock().await = Some(spawn_that_begins_to_lock(&session).await);
            status
        };
        let (site, cookie) = (site(layer(&world), page), cookie_of(&session));
        let answer = tokio::spawn(async move { ask(&site, Some(&cookie)).await });
        let patience = 3 * 10 * SECOND + world.db.properties().statement_bound;
        world.runtime.sleeping(|asked| asked == patience).await;
        world.runtime.advance(patience);
        let answer = soon(answer).await.unwrap();
        // Whether the change is stored is not known to the request.
        let is_unknown = status == StatusCode::OK;
        assert_eq!(answer.status, if is_unknown { StatusCode::SERVICE_UNAVAILABLE } else { status });
        assert_eq!(matches!(answer.failure, Some(SessionFailure(Error::Busy))), is_unknown);
        aside.lock().await.take().unwrap().send(()).unwrap();
    }
}

#[tokio::test]
async fn cookie_of_a_login_counts_before_an_anonymous_leftover() {
    let world = World::new().await;
    let leftover = world.saved([("visits", 1)]).await;
    let mut login = world.store.new_session();
    login.insert("visits", 7).unwrap();
    login.log_in("user-42").await.unwrap();
    let site = site(layer(&world), read);
    let (leftover, login) = (cookie_of(&leftover), cookie_of(&login));
    for cookies in [format!("{leftover}; {login}"), format!("{login}; {leftover}")] {
        assert_eq!(ask(&site, Some(&cookies)).await.body, "7", "{cookies}");
    }
    let other = cookie_of(&world.saved([("visits", 2)]).await);
    for (cookies, first) in [(format!("{leftover}; {other}"), "1"), (format!("{other}; {leftover}"), "2")] {
        assert_eq!(ask(&site, Some(&cookies)).await.body, first, "the first of equals");
    }
}

#[tokio::test]
async fn logout_ends_all_sessions_that_the_request_presents() {
    let world = World::new().await;
    let leftover = world.saved([("visits", 1)]).await;
    let mut logins = Vec::new();
    for subject in ["user-42", "user-43"] {
        let mut login = world.store.new_session();
        login.log_in(subject).await.unwrap();
        logins.push(login);
    }
    let cookies = [&leftover, &logins[0], &logins[1]].map(cookie_of).join("; ");
    let answer = ask(&site(layer(&world), crate::tower::log_out), Some(&cookies)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.removes_the_cookie());
    for session in [&leftover, &logins[0], &logins[1]] {
        assert!(!session.exists().await.unwrap());
    }
    assert_eq!(ask(&site(layer(&world), read), Some(&cookies)).await.body, "0");
}

/// Stores two sessions of users, and returns them with a header that presents both.
async fn two_logins(world: &World) -> ([Session; 2], String) {
    let mut logins = [world.store.new_session(), world.store.new_session()];
    for login in &mut logins {
        login.insert("visits", 1).unwrap();
        login.log_in("user-42").await.unwrap();
    }
    let cookies = [&logins[0], &logins[1]].map(cookie_of).join("; ");
    (logins, cookies)
}

async fn log_out_with_a_message(session: SessionHandle) -> Result<(), Error> {
    let mut session = session.lock().await?;
    session.log_out().await?;
    session.insert("message", 1)
}

async fn clear_subject(session: SessionHandle) -> Result<(), Error> {
    session.lock().await?.clear_subject();
    Ok(())
}

async fn save_without_subject(session: SessionHandle) -> Result<(), Error> {
    let mut session = session.lock().await?;
    session.clear_subject();
    session.save().await?;
    session.insert("message", 1)
}

#[tokio::test]
async fn logout_ends_the_other_presented_sessions_however_the_request_ends() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum End {
        Answered,
        BadGateway,
        SaveFails,
    }
    for (name, page) in [
        ("log out", any(log_out_with_a_message)),
        ("clear", any(clear_subject)),
        ("save cleared", any(save_without_subject)),
    ] {
        for end in [End::Answered, End::BadGateway, End::SaveFails] {
            let world = World::new().await;
            let (logins, cookies) = two_logins(&world).await;
            let calls = world.db.calls.clone();
            let after = middleware::map_response(move |mut response: Response| {
                match end {
                    End::Answered => {}
                    End::BadGateway => *response.status_mut() = StatusCode::BAD_GATEWAY,
                    End::SaveFails => {
                        for call in [Call::Insert, Call::Update, Call::Rename] {
                            calls.fail(call, Moment::Before, Fault::Refused);
                        }
                    }
                }
                ready(response)
            });
            let site = Router::new().route("/", page.clone()).layer(after).layer(layer(&world));
            let answer = ask(&site, Some(&cookies)).await;
            assert_eq!(answer.status == StatusCode::OK, end == End::Answered, "{name}, {end:?}");
            // A subject that was cleared and not saved is still there.
            let is_logout = name != "clear" || end == End::Answered;
            assert_eq!(logins[1].exists().await.unwrap(), !is_logout, "{name}, {end:?}");
            assert_eq!(answer.sets_no_cookie(), !is_logout, "{name}, {end:?}");
            let is_gone = name == "log out" && end != End::Answered;
            assert_eq!(answer.removes_cookie(), is_gone, "{name}, {end:?}");
        }
    }
}

#[tokio::test]
async fn sessions_that_a_handle_ends_are_ended_once() {
    for locks in [false, true] {
        let world = World::new().await;
        let (_, cookies) = two_logins(&world).await;
        let page = async move |session: SessionHandle| {
            if locks {
                drop(session.lock().await.unwrap());
            }
            session.end().await.unwrap();
        };
        world.db.calls.reset();
        ask(&site(layer(&world), page), Some(&cookies)).await;
        assert_eq!(world.db.calls.count(Call::Delete), 2, "locks: {locks}");
    }
}

#[tokio::test]
async fn session_of_the_cookie_is_ended_although_another_was_created() {
    async fn create(session: &SessionHandle) -> Result<(), Error> {
        let mut session = session.lock().await?;
        session.insert("copy", 1)?;
        session.create().await.map(drop)
    }
    let end = async |session: SessionHandle| -> Result<(), Error> {
        create(&session).await?;
        session.end().await.map(drop)
    };
    let flush = async |session: SessionHandle| -> Result<(), Error> {
        create(&session).await?;
        session.lock().await?.flush().await.map(drop)
    };
    for page in [any(end), any(flush)] {
        let world = World::new().await;
        let (logins, cookies) = two_logins(&world).await;
        let site = Router::new().route("/", page).layer(layer(&world));
        assert!(ask(&site, Some(&cookies)).await.removes_cookie());
        for login in &logins {
            assert!(!login.exists().await.unwrap());
        }
        assert!(world.store.list_by_subject("user-42").await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn task_that_panics_keeps_no_later_change_from_being_saved() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let page = async move |session: SessionHandle| -> Result<(), Error> {
        let (one, two) = (session.clone(), session.clone());
        let panics = tokio::spawn(async move {
            let _guard = one.lock().await.unwrap();
            panic!("a task that panics");
        });
        assert!(panics.await.is_err());
        session.lock().await?.insert("visits", 2)?;
        let (locked, is_locked) = oneshot::channel();
        tokio::spawn(async move {
            let _guard = two.lock().await.unwrap();
            locked.send(()).unwrap();
            pending::<()>().await;
        });
        is_locked.await.unwrap();
        Ok(())
    };
    let answer = soon(ask(&site(layer(&world), page), Some(&cookie_of(&session)))).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 2)]));
}

#[tokio::test]
async fn session_that_cannot_be_ended_does_not_spare_the_next() {
    let world = World::new().await;
    let (logins, cookies) = two_logins(&world).await;
    let third = world.saved([("visits", 1)]).await;
    let cookies = format!("{cookies}; {}", cookie_of(&third));
    world.db.fail_for(logins[1].stored_key().unwrap(), Fault::Refused);
    let answer = ask(&site(layer(&world), crate::tower::log_out), Some(&cookies)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!third.exists().await.unwrap());
}

#[tokio::test]
async fn key_changed_before_a_lock_that_is_not_awaited_reaches_the_client() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let aside = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&aside);
    let page = async move |session: SessionHandle| -> Result<(), Error> {
        let mut guard = session.lock().await?;
        guard.log_in("user-42").await?;
        guard.insert("visits", 2)?;
        drop(guard);
        *kept.lock().await = Some(spawn_that_begins_to_lock(&session).await);
        Ok(())
    };
    let (site, cookie) = (site(layer(&world), page), cookie_of(&session));
    let answer = tokio::spawn(async move { ask(&site, Some(&cookie)).await });
    let patience = 3 * 10 * SECOND + world.db.properties().statement_bound;
    world.runtime.sleeping(|asked| asked == patience).await;
    world.runtime.advance(patience);
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let key = answer.cookie().split_once('=').unwrap().1.to_owned();
    assert_eq!(world.store.open(&key).await.unwrap().subject(), Some("user-42"));
    aside.lock().await.take().unwrap().send(()).unwrap();
}

#[tokio::test]
async fn first_lock_that_is_not_awaited_holds_up_no_other_for_good() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    world.cache.plant(session.stored_key().unwrap(), None).await;
    let held = world.db.calls.hold(Call::Load, Moment::Before);
    let page = async move |session: SessionHandle| -> Result<(), Error> {
        let go_on = spawn_that_begins_to_lock(&session).await;
        let locked = session.lock().await.map(drop);
        drop(go_on);
        locked
    };
    let (site, cookie) = (site(layer(&world), page), cookie_of(&session));
    let answer = tokio::spawn(async move { ask(&site, Some(&cookie)).await });
    let patience = 3 * 10 * SECOND + world.db.properties().statement_bound;
    world.runtime.sleeping(|asked| asked == patience).await;
    world.runtime.advance(patience);
    let answer = soon(answer).await.unwrap();
    assert!(matches!(answer.failure, Some(SessionFailure(Error::Busy))), "{:?}", answer.failure);
    drop(held);
}

/// A future that is polled in the moment in which it is woken, as another thread may do.
struct PolledAtOnce(StdMutex<BoxFuture<'static, ()>>);

impl Wake for PolledAtOnce {
    fn wake(self: Arc<Self>) {
        let waker = Arc::clone(&self).into();
        // Taken if it is woken while it is polled.
        if let Ok(mut future) = self.0.try_lock() {
            let _ = future.as_mut().poll(&mut Context::from_waker(&waker));
        }
    }
}

#[tokio::test]
async fn task_that_waits_saves_nothing_half_done_of_a_request_that_ends_early() {
    for panics in [false, true] {
        let world = World::new().await;
        let session = world.saved([("visits", 1)]).await;
        let (aside, goes_on) = (Aside::default(), Arc::new(Notify::new()));
        let (kept, stays) = (Arc::clone(&aside), Arc::clone(&goes_on));
        let page = async move |session: SessionHandle| {
            let guard = &mut session.lock().await.unwrap();
            guard.insert("visits", 2).unwrap();
            *kept.lock().await = Some(session.clone());
            stays.notified().await;
            assert!(guard.is_empty(), "a handler that panics");
        };
        let (site, cookie) = (site(layer(&world), page), cookie_of(&session));
        let request = tokio::spawn(async move { ask(&site, Some(&cookie)).await });
        soon(async {
            while aside.lock().await.is_none() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let handle = aside.lock().await.take().unwrap();
        world.db.calls.reset();
        let waiting = async move { drop(handle.lock().await) }.boxed();
        Arc::new(PolledAtOnce(StdMutex::new(waiting))).wake();
        if panics {
            goes_on.notify_one();
        } else {
            request.abort();
        }
        assert!(request.await.is_err());
        assert_eq!(world.db.calls.count(Call::Update), 0, "panics: {panics}");
    }
}

#[tokio::test]
async fn logout_that_could_not_end_another_presented_session_is_an_error() {
    let world = World::new().await;
    let (one, two) = (world.saved([("visits", 1)]).await, world.saved([("visits", 2)]).await);
    let db = world.db.calls.clone();
    let page = async move |session: SessionHandle| -> Result<(), Error> {
        session.lock().await?.flush().await?;
        db.fail_all(Fault::Unreachable);
        Ok(())
    };
    let cookies = [&one, &two].map(cookie_of).join("; ");
    let answer = ask(&site(layer(&world), page), Some(&cookies)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.removes_the_cookie(), "one session has ended");
    world.db.calls.heal();
    assert_eq!(key_of(&world.reopen(&two).await), key_of(&two));
}
