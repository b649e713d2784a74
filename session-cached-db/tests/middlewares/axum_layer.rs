//! This crate's own layer, around axum.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use axum::routing::get;
use session_cached_db::tower::{SessionHandle, SessionLayer};
use session_cached_db::{CachedDb, Error, MokaCache, SqlitePersistence};
use session_core::{DynCache, ExpiryWrite, Record, StoredKey};
use tokio::sync::Barrier;
use tower::ServiceExt as _;

use crate::world::{Store, World, erase};

pub struct Answer {
    pub status: StatusCode,
    pub body: String,
    pub cookie: Option<String>,
}

impl Answer {
    /// Returns the `Cookie` header that the client sends from then on.
    pub fn cookie(&self) -> String {
        self.cookie.clone().expect("a cookie should be set")
    }

    /// Returns the session key in the cookie.
    pub fn key(&self) -> String {
        self.cookie().split_once('=').unwrap().1.to_owned()
    }
}

/// Sends a request with this cookie.
pub async fn ask(site: &Router, path: &str, cookie: Option<&str>) -> Answer {
    let mut request = Request::builder().uri(path);
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, cookie);
    }
    let response = site.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let cookie = response.headers().get(header::SET_COOKIE);
    let cookie = cookie.map(|line| line.to_str().unwrap().split(';').next().unwrap().to_owned());
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    Answer { status, body: String::from_utf8(body.into()).unwrap(), cookie }
}

fn site(store: &Store) -> Router {
    let visit = async |session: SessionHandle| -> Result<String, Error> {
        let mut session = session.lock().await?;
        session.modify("visits", |visits: &mut u32| *visits += 1)?;
        Ok(session.get_raw("visits").unwrap().to_owned())
    };
    let read = async |session: SessionHandle| -> Result<String, Error> {
        Ok(session.lock().await?.iter().map(|(key, json)| format!("{key}={json};")).collect())
    };
    let log_in = async |session: SessionHandle| -> Result<(), Error> {
        let mut session = session.lock().await?;
        session.set_subject("user-42")?;
        session.cycle_key().await.map(drop)
    };
    let log_out = async |session: SessionHandle| session.lock().await?.flush().await.map(drop);
    Router::new()
        .route("/visit", get(visit))
        .route("/read", get(read))
        .route("/login", get(log_in))
        .route("/logout", get(log_out))
        .layer(SessionLayer::new(store.clone()))
}

/// Returns a site with a page that reads the session and waits until another request has done so, too.
fn slow(store: &Store, key: &'static str, barrier: &Arc<Barrier>) -> Router {
    let barrier = Arc::clone(barrier);
    let page = async move |session: SessionHandle| -> Result<(), Error> {
        let mut session = session.lock().await?;
        session.get::<u32>("visits")?;
        barrier.wait().await;
        barrier.wait().await;
        session.insert(key, 1)
    };
    Router::new().route("/slow", get(page)).layer(SessionLayer::new(store.clone()))
}

pub async fn client_comes_back_with_its_cookie(world: &World) {
    let [one, two] = [0, 1].map(|node| site(&world.nodes[node]));
    let first = ask(&one, "/visit", None).await;
    assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "1"));
    assert_eq!(ask(&two, "/visit", Some(&first.cookie())).await.body, "2");
    assert_eq!(ask(&one, "/visit", Some(&first.cookie())).await.body, "3");
}

pub async fn overlapping_requests_of_two_nodes_lose_nothing(world: &World) {
    let first = ask(&site(&world.nodes[0]), "/visit", None).await;
    let barrier = Arc::new(Barrier::new(2));
    let cookie = first.cookie();
    let [one, two] = [(0, "one"), (1, "two")].map(|(node, key)| slow(&world.nodes[node], key, &barrier));
    let (one, two) = tokio::join!(ask(&one, "/slow", Some(&cookie)), ask(&two, "/slow", Some(&cookie)));
    assert_eq!((one.status, two.status), (StatusCode::OK, StatusCode::OK));
    let all = ask(&site(&world.nodes[0]), "/read", Some(&cookie)).await.body;
    assert_eq!(all, "one=1;two=1;visits=1;");
}

pub async fn logout_on_one_node_is_final_on_the_other(world: &World) {
    let first = ask(&site(&world.nodes[0]), "/visit", None).await;
    let cookie = first.cookie();
    let barrier = Arc::new(Barrier::new(2));
    let slow = slow(&world.nodes[0], "late", &barrier);
    let (late, ()) = tokio::join!(ask(&slow, "/slow", Some(&cookie)), async {
        barrier.wait().await;
        ask(&site(&world.nodes[1]), "/logout", Some(&cookie)).await;
        barrier.wait().await;
    });
    assert_eq!(late.status, StatusCode::BAD_REQUEST);
    assert_eq!(ask(&site(&world.nodes[0]), "/read", Some(&cookie)).await.body, "");
    assert!(!world.has_row(&first.key()).await);
}

pub async fn login_changes_the_key(world: &World) {
    let [one, two] = [0, 1].map(|node| site(&world.nodes[node]));
    let before = ask(&one, "/visit", None).await.cookie();
    ask(&two, "/visit", Some(&before)).await;
    let after = ask(&one, "/login", Some(&before)).await.cookie();
    assert_ne!(before, after);
    assert_eq!(ask(&two, "/read", Some(&after)).await.body, "visits=2;");
    assert_eq!(ask(&two, "/read", Some(&before)).await.body, "");
}

pub async fn log_out_everywhere_ends_the_sessions_of_all_browsers(world: &World) {
    let [one, two] = [0, 1].map(|node| site(&world.nodes[node]));
    let laptop = ask(&one, "/login", None).await.cookie();
    let phone = ask(&two, "/login", None).await.cookie();
    for (site, cookie) in [(&one, &laptop), (&two, &phone)] {
        assert_eq!(ask(site, "/visit", Some(cookie)).await.body, "1");
    }
    assert_eq!(world.nodes[0].revoke_subject("user-42").await.unwrap().value, 2);
    for (site, cookie) in [(&one, &phone), (&two, &laptop), (&one, &laptop), (&two, &phone)] {
        assert_eq!(ask(site, "/read", Some(cookie)).await.body, "");
    }
}

/// Calls every method of a store in a handler, with backends that are chosen at run time. The point is that
/// it compiles.
pub async fn handler_can_use_all_of_a_store_with_erased_backends(world: &World) {
    let store = world.nodes[0].clone();
    let page = async move |session: SessionHandle| -> Result<String, Error> {
        let mut session = session.lock().await?;
        session.set_subject("user-42")?;
        session.save().await?;
        session.cycle_key().await?;
        session.touch().await?;
        let key = *session.stored_key().unwrap();
        let record = store.load(&key).await?.unwrap();
        store.touch(&key, record.expires_at()).await?;
        store.update(&key, Record::clone(&record), None, ExpiryWrite::Extend).await?;
        let other = StoredKey::parse("another-stored-key").unwrap();
        store.rename(&key, &other, Record::clone(&record), None, ExpiryWrite::Extend).await?;
        store.create(&key, Record::clone(&record)).await?;
        assert!(store.exists(&other).await?);
        assert_eq!(store.list_by_subject("user-42").await?.len(), 2);
        assert!(store.revoke(&other).await?.value);
        assert_eq!(store.revoke_subject("user-42").await?.value, 1);
        store.clear_expired().await?;
        store.ping().await?;
        session.exists().await?;
        store.open("abcdefghijklmnopqrstuvwxyz012345").await?;
        let cache: Arc<dyn DynCache> = Arc::new(MokaCache::builder().build());
        let db = erase(SqlitePersistence::connect("sqlite::memory:").await.unwrap());
        CachedDb::builder(cache, db).build().await.unwrap();
        session.delete().await?;
        session.flush().await?;
        store.close().await;
        Ok("all".to_owned())
    };
    let site = Router::new().route("/", get(page)).layer(SessionLayer::new(world.nodes[0].clone()));
    assert_eq!(ask(&site, "/", None).await.body, "all");
}

pub async fn logout_is_final_on_a_node_that_has_the_session_in_memory(world: &World) {
    let [one, two] = [0, 1].map(|node| site(&world.nodes[node]));
    let cookie = ask(&one, "/visit", None).await.cookie();
    world.warm(async || assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "visits=1;")).await;
    ask(&one, "/logout", Some(&cookie)).await;
    assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "");
}
