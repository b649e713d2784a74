//! Watches, which tell of the end of a session on every node.

use std::time::Duration;

use session_cached_db::{SessionEnd, SessionWatch};
use session_core::{Expiry, Rotation, Rotations as _};
use tokio::task::JoinHandle;

use crate::common::{Fault, HOUR, Log, MINUTE, SECOND, Store, World, key_of, soon};
use crate::grace::with_grace;

/// The time that lies between two looks at least.
const PAUSE: Duration = Duration::from_millis(50);

/// A watch that a task waits for.
struct Waiting(JoinHandle<(SessionEnd, SessionWatch)>);

impl Waiting {
    fn on(mut watch: SessionWatch) -> Self {
        Self(tokio::spawn(async move { (watch.ended().await, watch) }))
    }

    async fn end(self) -> SessionEnd {
        soon(self.0).await.unwrap().0
    }
}

/// Returns the number of watched sessions that have just been looked at.
fn pauses(world: &World) -> usize {
    world.runtime.sleeps().into_iter().filter(|asked| *asked == PAUSE).count()
}

/// Waits until this many watched sessions have been looked at, and wait for something to happen.
async fn looked(world: &World, store: &Store, looks: u64, waiting: usize) {
    soon(async {
        while store.stats().watch_looks < looks || pauses(world) < waiting {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(store.stats().watch_looks, looks);
}

#[tokio::test]
async fn end_on_another_node_is_told_within_the_interval() {
    type End = fn(&World, &str) -> futures_util::future::BoxFuture<'static, ()>;
    let ends: [End; 3] = [
        |world, key| {
            let (store, key) = (world.store.clone(), key.to_owned());
            Box::pin(async move {
                store.open(&key).await.unwrap().log_out().await.unwrap();
            })
        },
        |world, _| {
            let store = world.store.clone();
            Box::pin(async move {
                store.revoke_subject("user-42").await.unwrap();
            })
        },
        |world, key| {
            let (store, key) = (world.store.clone(), key.to_owned());
            Box::pin(async move {
                let key = *store.open(&key).await.unwrap().stored_key().unwrap();
                store.revoke(&key).await.unwrap();
            })
        },
    ];
    let world = World::shared().await;
    for end in ends {
        let there = world.node().await;
        let mut session = world.store.new_session();
        session.log_in("user-42").await.unwrap();
        let key = key_of(&session);
        let watch = there.open(&key).await.unwrap().watch(MINUTE).unwrap();
        let waiting = Waiting::on(watch);
        looked(&world, &there, 1, 1).await;
        world.runtime.advance(MINUTE);
        looked(&world, &there, 2, 1).await;
        assert!(!waiting.0.is_finished(), "the session is there");
        end(&world, &key).await;
        world.runtime.advance(MINUTE);
        assert_eq!(waiting.end().await, SessionEnd::Gone);
        assert_eq!(there.stats().watch_looks, 3);
    }
}

#[tokio::test]
async fn end_by_this_process_is_told_without_the_interval() {
    let world = World::new().await;
    for is_flushed in [true, false] {
        let mut session = world.saved([("cart", 1)]).await;
        let key = *session.stored_key().unwrap();
        let looks = world.store.stats().watch_looks;
        let waiting = Waiting::on(world.store.watch(&key, HOUR));
        looked(&world, &world.store, looks + 1, 1).await;
        if is_flushed {
            session.flush().await.unwrap();
        } else {
            world.store.revoke(&key).await.unwrap();
        }
        world.runtime.advance(PAUSE);
        assert_eq!(waiting.end().await, SessionEnd::Gone);
    }
}

#[tokio::test]
async fn session_that_expires_is_told_when_it_is_due_and_no_sooner() {
    let world = World::with(|builder| builder.idle_timeout(10 * MINUTE)).await;
    let session = world.saved([("cart", 1)]).await;
    let waiting = Waiting::on(session.watch(HOUR).unwrap());
    looked(&world, &world.store, 1, 1).await;
    world.runtime.advance(9 * MINUTE);
    // A use prolongs it. Watching it does not.
    world.reopen(&session).await.touch().await.unwrap();
    world.runtime.advance(MINUTE);
    looked(&world, &world.store, 2, 1).await;
    world.runtime.advance(9 * MINUTE - SECOND);
    assert!(!waiting.0.is_finished());
    world.runtime.advance(SECOND);
    assert_eq!(waiting.end().await, SessionEnd::Gone);
    assert_eq!(world.store.stats().watch_looks, 3);
}

#[tokio::test]
async fn session_that_ended_before_it_is_watched_is_told() {
    let world = World::new().await;
    let mut session = world.saved([("cart", 1)]).await;
    let key = *session.stored_key().unwrap();
    let mut watch = session.watch(HOUR).unwrap();
    session.flush().await.unwrap();
    assert!(session.watch(HOUR).is_none(), "there is nothing to watch");
    assert!(world.store.new_session().watch(HOUR).is_none());
    assert_eq!(soon(watch.ended()).await, SessionEnd::Gone);
    assert_eq!(soon(watch.ended()).await, SessionEnd::Gone, "it says so again");
    assert_eq!(soon(world.store.watch(&key, HOUR).ended()).await, SessionEnd::Gone);
}

#[tokio::test]
async fn renewed_session_is_followed_and_a_login_is_told() {
    let world = World::shared_with(with_grace).await;
    let there = with_grace(world.builder()).build().await.unwrap();
    let mut session = world.saved([("cart", 1)]).await;
    let mut watch = there.open(&key_of(&session)).await.unwrap().watch(20 * SECOND).unwrap();
    // The first look, then each that finds the session moved, and the first one under the new key.
    for looks in [1, 3, 5] {
        if looks > 1 {
            session.renew_key().await.unwrap();
            world.runtime.advance(20 * SECOND);
        }
        let mut waiting = std::pin::pin!(watch.ended());
        soon(async {
            while there.stats().watch_looks < looks || pauses(&world) == 0 {
                assert!(futures_util::poll!(&mut waiting).is_pending(), "a renewal is no end");
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(there.stats().watch_looks, looks);
    }
    assert_eq!(watch.key(), session.stored_key().unwrap());
    session.log_in("user-42").await.unwrap();
    world.runtime.advance(20 * SECOND);
    assert_eq!(soon(watch.ended()).await, SessionEnd::NewRights);
    assert_ne!(watch.key(), session.stored_key().unwrap(), "the key after a login is not told");
}

#[tokio::test]
async fn renewal_without_a_grace_or_after_it_is_told_as_an_end() {
    for world in [World::shared().await, World::shared_with(with_grace).await] {
        let there = world.builder().build().await.unwrap();
        let mut session = world.saved([("cart", 1)]).await;
        let waiting = Waiting::on(there.open(&key_of(&session)).await.unwrap().watch(MINUTE).unwrap());
        looked(&world, &there, 1, 1).await;
        session.renew_key().await.unwrap();
        world.runtime.advance(MINUTE);
        assert_eq!(waiting.end().await, SessionEnd::Gone);
    }
}

#[tokio::test]
async fn note_that_does_not_fit_the_own_key_leads_no_watch_elsewhere() {
    for has_own_key in [true, false] {
        let world = World::shared_with(with_grace).await;
        let (mut session, admin) = (world.saved([("cart", 1)]).await, world.saved([("cart", 2)]).await);
        let (key, target) = (*session.stored_key().unwrap(), *admin.stored_key().unwrap());
        let watch =
            if has_own_key { session.watch(MINUTE).unwrap() } else { world.store.watch(&key, MINUTE) };
        let waiting = Waiting::on(watch);
        looked(&world, &world.store, 1, 1).await;
        let masked = session_core::MaskedKey::from_bytes(&[b'x'; 32]);
        assert!(masked.is_some());
        let note = Rotation::new(key, target, world.runtime.now_plus(MINUTE)).with_masked_key(masked);
        world.db.sqlite.note_rotation(&note).await.unwrap();
        session.log_out().await.unwrap();
        world.runtime.advance(PAUSE);
        assert_eq!(waiting.end().await, SessionEnd::Gone);
        assert!(admin.exists().await.unwrap());
    }
}

#[tokio::test]
async fn expiry_that_this_process_shortens_is_told_when_it_is_due() {
    let world = World::new().await;
    let mut session = world.saved([("cart", 1)]).await;
    let waiting = Waiting::on(session.watch(HOUR).unwrap());
    looked(&world, &world.store, 1, 1).await;
    session.set_expiry(Expiry::After(MINUTE));
    session.save().await.unwrap();
    world.runtime.advance(PAUSE);
    looked(&world, &world.store, 2, 1).await;
    world.runtime.advance(MINUTE);
    assert_eq!(waiting.end().await, SessionEnd::Gone);
}

#[tokio::test]
async fn database_that_does_not_answer_ends_no_watch() {
    let log = Log::listen();
    let world = World::new().await;
    let mut session = world.saved([("cart", 1)]).await;
    let key = *session.stored_key().unwrap();
    let waiting = Waiting::on(session.watch(HOUR).unwrap());
    looked(&world, &world.store, 1, 1).await;
    world.cache.plant(&key, None).await;
    world.db.calls.fail_all(Fault::Unreachable);
    world.runtime.advance(HOUR);
    looked(&world, &world.store, 2, 1).await;
    // It is tried again much sooner than the interval says: after 1 s, then 2 s.
    world.runtime.advance(SECOND);
    looked(&world, &world.store, 3, 1).await;
    assert_eq!(log.events("watch_look_failed").len(), 2, "{:?}", log.lines());
    assert!(log.lines().iter().all(|line| !line.contains(key.as_str())));
    world.db.calls.heal();
    world.runtime.advance(2 * SECOND);
    looked(&world, &world.store, 4, 1).await;
    assert!(!waiting.0.is_finished());
    session.flush().await.unwrap();
    world.runtime.advance(PAUSE);
    assert_eq!(waiting.end().await, SessionEnd::Gone);
}

#[tokio::test]
async fn row_that_cannot_be_read_ends_no_watch() {
    let world = World::new().await;
    let session = world.saved([("cart", 1)]).await;
    let key = *session.stored_key().unwrap();
    let waiting = Waiting::on(session.watch(MINUTE).unwrap());
    looked(&world, &world.store, 1, 1).await;
    let record = session_core::Record::new(
        bytes::Bytes::from_static(b"9"),
        crate::common::START,
        crate::common::START + HOUR,
    );
    let write = session_core::RecordWrite::new(&record);
    let now = session_core::Runtime::now(&world.runtime);
    session_core::Persistence::update(&*world.db.sqlite, &key, write, now).await.unwrap();
    world.cache.plant(&key, None).await;
    world.runtime.advance(MINUTE);
    looked(&world, &world.store, 2, 1).await;
    assert!(!waiting.0.is_finished());
    world.store.revoke(&key).await.unwrap();
    world.runtime.advance(PAUSE);
    assert_eq!(waiting.end().await, SessionEnd::Gone);
}

#[tokio::test]
async fn watches_of_one_session_share_their_looks() {
    let world = World::shared().await;
    let there = world.node().await;
    let mut session = world.saved([("cart", 1)]).await;
    let key = *session.stored_key().unwrap();
    let watches: Vec<_> = (0..100).map(|_| Waiting::on(there.watch(&key, MINUTE))).collect();
    looked(&world, &there, 1, 1).await;
    // Watches that joined after a look had begun would be looked for once more. These came before.
    for looks in 2..5 {
        world.runtime.advance(MINUTE);
        looked(&world, &there, looks, 1).await;
    }
    let shorter = Waiting::on(there.watch(&key, SECOND));
    world.runtime.advance(PAUSE);
    looked(&world, &there, 5, 1).await;
    session.flush().await.unwrap();
    world.runtime.advance(SECOND);
    assert_eq!(shorter.end().await, SessionEnd::Gone, "the shortest interval counts");
    for watch in watches {
        assert_eq!(watch.end().await, SessionEnd::Gone);
    }
    assert_eq!(there.stats().watch_looks, 6);
}

#[tokio::test]
async fn writes_of_a_watched_session_cause_few_looks() {
    let world = World::new().await;
    let mut session = world.saved([("cart", 1)]).await;
    let waiting = Waiting::on(session.watch(HOUR).unwrap());
    looked(&world, &world.store, 1, 1).await;
    for n in 0..50 {
        session.insert("cart", n).unwrap();
        session.save().await.unwrap();
    }
    world.runtime.advance(PAUSE);
    assert_eq!(world.store.stats().watch_looks, 1, "a save ends nothing");
    waiting.0.abort();
}

#[tokio::test]
async fn watch_that_was_dropped_costs_nothing() {
    let world = World::new().await;
    let session = world.saved([("cart", 1)]).await;
    let first = Waiting::on(session.watch(MINUTE).unwrap());
    let second = Waiting::on(session.watch(MINUTE).unwrap());
    looked(&world, &world.store, 1, 1).await;
    first.0.abort();
    assert!(soon(first.0).await.unwrap_err().is_cancelled());
    world.runtime.advance(MINUTE);
    looked(&world, &world.store, 2, 1).await;
    second.0.abort();
    assert!(soon(second.0).await.unwrap_err().is_cancelled());
    assert!(world.runtime.sleeps().is_empty());
    let unpolled = session.watch(MINUTE).unwrap();
    world.runtime.advance(HOUR);
    tokio::task::yield_now().await;
    assert_eq!(world.store.stats().watch_looks, 2, "no task waits for it");
    drop(unpolled);
    let again = Waiting::on(session.watch(MINUTE).unwrap());
    looked(&world, &world.store, 3, 1).await;
    again.0.abort();
}

#[tokio::test]
async fn store_that_is_closed_or_gone_ends_its_watches() {
    let world = World::new().await;
    let session = world.saved([("cart", 1)]).await;
    let key = *session.stored_key().unwrap();
    let (closed, gone) = (world.node().await, world.node().await);
    let waiting = [&closed, &gone].map(|store| Waiting::on(store.watch(&key, HOUR)));
    looked(&world, &closed, 1, 2).await;
    looked(&world, &gone, 1, 2).await;
    closed.close().await;
    drop(gone);
    for waiting in waiting {
        assert_eq!(waiting.end().await, SessionEnd::Closed);
    }
    assert_eq!(soon(closed.watch(&key, HOUR).ended()).await, SessionEnd::Closed);
}

#[tokio::test]
async fn debug_of_a_watch_shows_no_key() {
    let world = World::new().await;
    let session = world.saved([("cart", 1)]).await;
    let watch = session.watch(HOUR).unwrap();
    let shown = format!("{watch:?} {:?}", world.store);
    assert!(shown.contains("SessionWatch"));
    assert!(!shown.contains(session.stored_key().unwrap().as_str()), "{shown}");
    assert!(!shown.contains(key_of(&session).as_str()));
}

/// A handler that opens a socket takes a watch with it, and another request logs the client out.
#[cfg(feature = "tower")]
#[tokio::test]
async fn socket_of_a_handler_is_closed_by_the_logout_of_another_request() {
    use std::sync::{Arc, Mutex};

    use session_cached_db::tower::SessionHandle;

    use crate::tower::{ask, cookie_of, layer, log_out, site};

    let world = World::new().await;
    let session = world.saved([("visits", 1)]).await;
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let opened = Arc::clone(&sockets);
    let open_socket = async move |session: SessionHandle| -> Result<(), session_cached_db::Error> {
        let watch = session.lock().await?.watch(HOUR);
        opened.lock().unwrap().extend(watch.map(Waiting::on));
        Ok(())
    };
    let page = site(layer(&world), open_socket);
    assert!(ask(&page, None).await.sets_no_cookie());
    assert!(sockets.lock().unwrap().is_empty(), "a visitor without a session has nothing to watch");
    let answer = ask(&page, Some(&cookie_of(&session))).await;
    assert!(answer.status.is_success());
    looked(&world, &world.store, 1, 1).await;
    let socket = sockets.lock().unwrap().pop().unwrap();
    assert!(!socket.0.is_finished());
    ask(&site(layer(&world), log_out), Some(&cookie_of(&session))).await;
    world.runtime.advance(PAUSE);
    assert_eq!(socket.end().await, SessionEnd::Gone);
}
