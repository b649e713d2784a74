//! Guards: tasks that keep one longer than the request, and tasks that lock twice.

use std::sync::Arc;

use axum::http::StatusCode;
use session_cached_db::Error;
use session_cached_db::tower::{SessionFailure, SessionHandle};
use session_core::Persistence as _;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

use crate::common::{Call, Fault, Log, Moment, SECOND, World, key_of, map, soon, values_of};
use crate::tower::{Answer, ask, cookie_of, layer, site, visit};

/// A task that locks the session and keeps it until the test says so.
#[derive(Clone, Default)]
struct Keeper(Arc<Mutex<Option<Kept>>>);

struct Kept {
    let_go: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Error>>,
}

impl Keeper {
    /// Spawns the task, and waits until it has the session. With `saves`, it saves a change of its own at last.
    async fn keep(&self, session: SessionHandle, saves: bool) {
        let (locked, is_locked) = oneshot::channel();
        let (let_go, goes) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut session = session.lock().await?;
            locked.send(()).unwrap();
            goes.await.unwrap();
            session.insert("late", 1)?;
            if saves {
                session.save().await?;
            }
            Ok(())
        });
        is_locked.await.unwrap();
        *self.0.lock().await = Some(Kept { let_go, task });
    }

    async fn let_go(&self) -> Result<(), Error> {
        let Kept { let_go, task } = self.0.lock().await.take().unwrap();
        let_go.send(()).unwrap();
        soon(task).await.unwrap()
    }
}

fn key_in(answer: &Answer) -> String {
    answer.cookie().split_once('=').unwrap().1.to_owned()
}

#[tokio::test]
async fn response_does_not_wait_for_a_task_that_keeps_the_session() {
    for saves in [true, false] {
        let world = World::new().await;
        let log = Log::listen();
        let keeper = Keeper::default();
        let in_handler = keeper.clone();
        let page = async move |session: SessionHandle| {
            session.lock().await.unwrap().insert("visits", 1).unwrap();
            in_handler.keep(session, saves).await;
            "answered"
        };
        let answer = soon(ask(&site(layer(&world), page), None)).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "answered"));
        assert!(answer.varies_by_cookie());
        assert_eq!(log.events("task_keeps_session").len(), 1);
        // The handler's change is stored, and the client has its key.
        let key = key_in(&answer);
        assert_eq!(values_of(&world.store.open(&key).await.unwrap()), map([("visits", 1)]));
        keeper.let_go().await.unwrap();
        let expected = if saves { map([("late", 1), ("visits", 1)]) } else { map([("visits", 1)]) };
        assert_eq!(values_of(&world.store.open(&key).await.unwrap()), expected);
    }
}

#[tokio::test]
async fn client_learns_of_a_login_although_a_task_keeps_the_session() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let keeper = Keeper::default();
    let in_handler = keeper.clone();
    let page = async move |session: SessionHandle| {
        session.lock().await.unwrap().cycle_key().await.unwrap();
        in_handler.keep(session, false).await;
    };
    let answer = soon(ask(&site(layer(&world), page), Some(&cookie_of(&session)))).await;
    assert_ne!(key_in(&answer), key_of(&session));
    assert_eq!(values_of(&world.store.open(&key_in(&answer)).await.unwrap()), map([("visits", 1)]));
    keeper.let_go().await.unwrap();
}

#[tokio::test]
async fn client_learns_of_a_logout_although_a_task_keeps_the_session() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let keeper = Keeper::default();
    let in_handler = keeper.clone();
    let page = async move |session: SessionHandle| {
        session.lock().await.unwrap().flush().await.unwrap();
        in_handler.keep(session, false).await;
    };
    let answer = soon(ask(&site(layer(&world), page), Some(&cookie_of(&session)))).await;
    assert!(answer.removes_the_cookie());
    keeper.let_go().await.unwrap();
}

#[tokio::test]
async fn failed_save_before_a_task_takes_over_reaches_task_and_client() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let (store, stored_key) = (world.store.clone(), *session.stored_key().unwrap());
    let page = async move |session: SessionHandle| {
        session.lock().await.unwrap().insert("visits", 2).unwrap();
        store.revoke(&stored_key).await.unwrap();
        let task = tokio::spawn(async move { session.lock().await.map(drop) });
        assert!(matches!(soon(task).await.unwrap(), Err(Error::SessionGone)));
    };
    let answer = soon(ask(&site(layer(&world), page), Some(&cookie_of(&session)))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(matches!(answer.failure, Some(SessionFailure(Error::SessionGone))));
}

#[tokio::test]
async fn task_in_the_queue_at_the_end_loses_no_change_of_the_handler() {
    let world = World::new().await;
    let (sender, task) = oneshot::channel();
    let sender = Arc::new(Mutex::new(Some(sender)));
    let page = async move |session: SessionHandle| {
        let mut guard = session.lock().await.unwrap();
        guard.insert("visits", 1).unwrap();
        let waiting = session.clone();
        let task = tokio::spawn(async move {
            let guard = waiting.lock().await.unwrap();
            std::future::pending::<()>().await;
            drop(guard);
        });
        // The task is in the queue before the guard is dropped, and has not run since when the handler ends.
        tokio::task::yield_now().await;
        sender.lock().await.take().unwrap().send(task).unwrap();
    };
    let answer = soon(ask(&site(layer(&world), page), None)).await;
    assert_eq!(values_of(&world.store.open(&key_in(&answer)).await.unwrap()), map([("visits", 1)]));
    assert_eq!(world.db.calls.count(Call::Insert), 1);
    task.await.unwrap().abort();
}

#[tokio::test]
async fn tasks_that_end_within_the_request_are_saved_by_the_layer() {
    let world = World::new().await;
    let log = Log::listen();
    let page = async |session: SessionHandle| {
        for name in ["one", "two", "three"] {
            let session = session.clone();
            let task = tokio::spawn(async move { session.lock().await?.insert(name, 1) });
            soon(task).await.unwrap().unwrap();
        }
        assert_eq!(session.lock().await.unwrap().len(), 3);
    };
    let answer = ask(&site(layer(&world), page), None).await;
    let stored = world.store.open(&key_in(&answer)).await.unwrap();
    assert_eq!(values_of(&stored), map([("one", 1), ("three", 1), ("two", 1)]));
    assert_eq!(log.events("task_keeps_session").len(), 0);
}

#[tokio::test]
async fn changes_of_a_request_that_failed_are_not_saved_for_a_later_task() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let handle = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&handle);
    let page = async move |session: SessionHandle| {
        session.lock().await.unwrap().insert("visits", 2).unwrap();
        *kept.lock().await = Some(session);
        StatusCode::INTERNAL_SERVER_ERROR
    };
    ask(&site(layer(&world), page), Some(&cookie_of(&session))).await;
    let handle = handle.lock().await.take().unwrap();
    tokio::spawn(async move { handle.lock().await.map(drop) }).await.unwrap().unwrap();
    assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 1)]));
}

#[tokio::test]
async fn second_lock_in_one_handler_is_an_error_at_once() {
    let world = World::new().await;
    let page = async |session: SessionHandle, again: SessionHandle| -> Result<String, Error> {
        let mut guard = session.lock().await?;
        let error = again.lock().await.unwrap_err();
        assert!(matches!(error, Error::AlreadyLocked));
        assert!(error.to_string().contains("drop it before the next lock"), "{error}");
        guard.insert("visits", 1)?;
        drop(guard);
        again.lock().await?.insert("again", 1)?;
        Ok("both".to_owned())
    };
    let answer = soon(ask(&site(layer(&world), page), None)).await;
    assert_eq!(answer.body, "both");
    let stored = world.store.open(&key_in(&answer)).await.unwrap();
    assert_eq!(values_of(&stored), map([("again", 1), ("visits", 1)]));
}

#[tokio::test]
async fn second_lock_in_a_task_is_an_error_and_its_response_a_500() {
    let world = World::new().await;
    let page = async |session: SessionHandle| -> Result<(), Error> {
        let _guard = session.lock().await?;
        session.lock().await.map(drop)
    };
    let site = site(layer(&world), page);
    // In a task of the runtime, as a server runs it.
    let answer = soon(tokio::spawn(async move { ask(&site, None).await })).await.unwrap();
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(matches!(answer.failure, Some(SessionFailure(Error::AlreadyLocked))));
}

#[tokio::test]
async fn other_tasks_wait_for_the_guard() {
    let world = World::new().await;
    let page = async |session: SessionHandle| {
        let mut guard = session.lock().await.unwrap();
        let other = session.clone();
        let task = tokio::spawn(async move { other.lock().await.unwrap().get::<i32>("visits").unwrap() });
        tokio::task::yield_now().await;
        assert!(!task.is_finished());
        guard.insert("visits", 5).unwrap();
        drop(guard);
        assert_eq!(soon(task).await.unwrap(), Some(5));
    };
    assert_eq!(soon(ask(&site(layer(&world), page), None)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn handler_that_waits_for_a_task_that_waits_for_it_does_not_hang() {
    let world = World::new().await;
    let page = async |session: SessionHandle| -> Result<&'static str, Error> {
        let mut guard = session.lock().await?;
        guard.insert("visits", 1)?;
        let other = session.clone();
        let task = tokio::spawn(async move { other.lock().await.map(drop) });
        assert!(matches!(task.await.unwrap(), Err(Error::Busy)));
        Ok("answered")
    };
    let site = site(layer(&world), page);
    let answer = tokio::spawn(async move { ask(&site, None).await });
    // The longest write of this database: it waits for its turn and for other processes for a write timeout each, and its
    // statement takes one more.
    let patience = 3 * 10 * SECOND + world.db.properties().statement_bound;
    world.runtime.sleeping(|asked| asked == patience).await;
    world.runtime.advance(patience);
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.body, "answered");
    assert_eq!(values_of(&world.store.open(&key_in(&answer)).await.unwrap()), map([("visits", 1)]));
}

#[tokio::test]
async fn guard_that_is_never_dropped_holds_up_no_response() {
    let world = World::new().await;
    let page = async |session: SessionHandle| {
        let session = Box::leak(Box::new(session));
        std::mem::forget(session.lock().await.unwrap());
        "answered"
    };
    assert_eq!(soon(ask(&site(layer(&world), page), None)).await.body, "answered");
}

#[tokio::test]
async fn dropped_lock_leaves_the_session_free() {
    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let mut held = world.db.calls.hold(Call::Update, Moment::Before);
    let page = async move |session: SessionHandle| {
        session.lock().await.unwrap().insert("visits", 2).unwrap();
        // The task waits for the save of what was changed before, and is given up.
        let other = session.clone();
        let task = tokio::spawn(async move { other.lock().await.map(drop) });
        tokio::task::yield_now().await;
        task.abort();
        let _ = task.await;
        "answered"
    };
    let site = site(layer(&world), page);
    let cookie = cookie_of(&session);
    let answer = tokio::spawn(async move { ask(&site, Some(&cookie)).await });
    held.reached().await;
    held.release();
    assert_eq!(soon(answer).await.unwrap().status, StatusCode::OK);
    assert_eq!(values_of(&world.reopen(&session).await), map([("visits", 2)]));
}

#[tokio::test]
async fn unanswered_database_while_a_task_takes_over_is_503() {
    let world = World::new().await;
    let db = world.db.calls.clone();
    let page = async move |session: SessionHandle| {
        session.lock().await.unwrap().insert("visits", 1).unwrap();
        db.fail_all(Fault::Unreachable);
        tokio::spawn(async move { session.lock().await.map(drop) }).await.unwrap().unwrap_err();
    };
    let answer = soon(ask(&site(layer(&world), page), None)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    world.db.calls.heal();
    assert_eq!(soon(ask(&site(layer(&world), visit), None)).await.status, StatusCode::OK);
}
