//! The middleware of actix-session, over this crate's store.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use actix_session::config::{PersistentSession, TtlExtensionPolicy};
use actix_session::storage::SessionStore;
use actix_session::{Session, SessionMiddleware};
use actix_web::body::{MessageBody, to_bytes};
use actix_web::cookie::{Cookie, CookieJar, Key};
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::test::{TestRequest, init_service};
use actix_web::{App, web};
use serde_json::value::RawValue;
use session_core::Expiry;
use time::Duration;
use tokio::sync::Barrier;

use crate::world::{ODD_JSON, Store, World};

const NAME: &str = "id";
const TTL: Duration = Duration::hours(1);

struct Answer {
    status: StatusCode,
    body: String,
    cookie: Option<Cookie<'static>>,
}

impl Answer {
    fn cookie(&self) -> Cookie<'static> {
        self.cookie.clone().expect("a cookie should be set")
    }

    /// Returns the session key in the cookie.
    fn key(&self) -> String {
        let mut jar = CookieJar::new();
        jar.add_original(self.cookie());
        jar.private(&key()).get(NAME).unwrap().value().to_owned()
    }
}

/// Returns the application's secret, which is the same on all nodes.
fn key() -> Key {
    Key::from(&[7; 64])
}

/// Returns a cookie with this key, signed as the application does it.
fn cookie_with(value: &str) -> Cookie<'static> {
    let mut jar = CookieJar::new();
    jar.private_mut(&key()).add(Cookie::new(NAME, value.to_owned()));
    jar.get(NAME).unwrap().clone()
}

/// The application on one node, as a function from requests to answers.
struct Site(Box<dyn Fn(TestRequest) -> Answering>);

type Answering = Pin<Box<dyn Future<Output = Answer>>>;

async fn site(store: &Store) -> Site {
    site_with(store, TtlExtensionPolicy::OnStateChanges, Arc::new(Barrier::new(2))).await
}

async fn site_with(store: &Store, policy: TtlExtensionPolicy, barrier: Arc<Barrier>) -> Site {
    let lifecycle = PersistentSession::default().session_ttl(TTL).session_ttl_extension_policy(policy);
    let sessions = SessionMiddleware::builder(store.clone(), key())
        .cookie_name(NAME.to_owned())
        .session_lifecycle(lifecycle)
        .build();
    // Stores `visits`, after it has read the session and waited twice.
    let slow = move |session: Session| {
        let barrier = Arc::clone(&barrier);
        async move {
            session.get::<u32>("visits").unwrap();
            barrier.wait().await;
            barrier.wait().await;
            session.insert("visits", 7).unwrap();
            session.insert("late", true).unwrap();
            "slow"
        }
    };
    let app = App::new()
        .wrap(sessions)
        .route("/visit", web::get().to(visit))
        .route("/read", web::get().to(read))
        .route("/renew", web::get().to(renew))
        .route("/logout", web::get().to(log_out))
        .route("/slow", web::get().to(slow));
    let service = Rc::new(init_service(app).await);
    Site(Box::new(move |request| {
        let service = Rc::clone(&service);
        Box::pin(async move {
            match service.call(request.to_request()).await {
                Ok(response) => answer(response).await,
                Err(error) => {
                    let status = error.as_response_error().status_code();
                    Answer { status, body: error.to_string(), cookie: None }
                }
            }
        })
    }))
}

async fn answer(response: ServiceResponse<impl MessageBody>) -> Answer {
    let status = response.status();
    let cookie = response.response().cookies().next().map(Cookie::into_owned);
    let body = to_bytes(response.into_body()).await.ok().expect("a body");
    Answer { status, body: String::from_utf8(body.into()).unwrap(), cookie }
}

async fn visit(session: Session) -> String {
    let visits = session.get::<u32>("visits").unwrap().unwrap_or(0) + 1;
    session.insert("visits", visits).unwrap();
    visits.to_string()
}

async fn read(session: Session) -> String {
    session.get::<u32>("visits").unwrap().unwrap_or(0).to_string()
}

async fn renew(session: Session) -> &'static str {
    session.renew();
    "renewed"
}

async fn log_out(session: Session) -> &'static str {
    session.purge();
    "bye"
}

async fn ask(site: &Site, path: &str, cookie: Option<&Cookie<'_>>) -> Answer {
    let mut request = TestRequest::get().uri(path);
    if let Some(cookie) = cookie {
        request = request.cookie(cookie.clone().into_owned());
    }
    (site.0)(request).await
}

pub async fn client_comes_back_with_its_cookie(world: &World) {
    let site = site(&world.nodes[0]).await;
    let first = ask(&site, "/visit", None).await;
    assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "1"));
    assert_eq!(ask(&site, "/visit", Some(&first.cookie())).await.body, "2");
    assert_eq!(ask(&site, "/visit", Some(&first.cookie())).await.body, "3");
    assert_eq!(world.open(&first.key()).await.get::<u32>("visits").unwrap(), Some(3));
}

pub async fn visitor_who_stores_nothing_gets_no_session(world: &World) {
    let site = site(&world.nodes[0]).await;
    let answer = ask(&site, "/read", None).await;
    assert_eq!((answer.body.as_str(), answer.cookie), ("0", None));
}

pub async fn save_on_one_node_is_seen_on_the_other_at_once(world: &World) {
    let (one, two) = (site(&world.nodes[0]).await, site(&world.nodes[1]).await);
    let cookie = ask(&one, "/visit", None).await.cookie();
    for visits in 1..10 {
        assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, visits.to_string());
        assert_eq!(ask(&one, "/visit", Some(&cookie)).await.body, (visits + 1).to_string());
    }
    ask(&one, "/logout", Some(&cookie)).await;
    assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "0");
}

pub async fn cached_session_costs_no_database_read(world: &World) {
    let (one, two) = (site(&world.nodes[0]).await, site(&world.nodes[1]).await);
    let cookie = ask(&one, "/visit", None).await.cookie();
    let before = world.database_reads();
    for _ in 0..10 {
        assert_eq!(ask(&one, "/read", Some(&cookie)).await.body, "1");
        assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "1");
    }
    assert_eq!(world.database_reads(), before);
}

pub async fn last_of_two_updates_wins(world: &World) {
    let barrier = Arc::new(Barrier::new(2));
    let slow = site_with(&world.nodes[0], TtlExtensionPolicy::OnStateChanges, Arc::clone(&barrier)).await;
    let other = site(&world.nodes[1]).await;
    let first = ask(&other, "/visit", None).await;
    let cookie = first.cookie();
    tokio::join!(ask(&slow, "/slow", Some(&cookie)), async {
        barrier.wait().await;
        assert_eq!(ask(&other, "/visit", Some(&cookie)).await.body, "2");
        barrier.wait().await;
    });
    let session = world.open(&first.key()).await;
    let all: Vec<_> = session.iter().collect();
    assert_eq!(all, [("late", "true"), ("visits", "7")]);
}

pub async fn logout_is_final_and_a_late_update_is_an_error(world: &World) {
    let barrier = Arc::new(Barrier::new(2));
    let slow = site_with(&world.nodes[0], TtlExtensionPolicy::OnStateChanges, Arc::clone(&barrier)).await;
    let other = site(&world.nodes[1]).await;
    let first = ask(&other, "/visit", None).await;
    let cookie = first.cookie();
    let (late, ()) = tokio::join!(ask(&slow, "/slow", Some(&cookie)), async {
        barrier.wait().await;
        ask(&other, "/logout", Some(&cookie)).await;
        barrier.wait().await;
    });
    assert_eq!(late.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!world.has_row(&first.key()).await);
    assert_eq!(ask(&slow, "/read", Some(&cookie)).await.body, "0");
    assert_eq!(ask(&other, "/read", Some(&cookie)).await.body, "0");
}

pub async fn renewed_session_keeps_the_data_and_ends_the_old_key(world: &World) {
    let (one, two) = (site(&world.nodes[0]).await, site(&world.nodes[1]).await);
    let before = ask(&one, "/visit", None).await;
    let after = ask(&two, "/renew", Some(&before.cookie())).await;
    assert_ne!(before.key(), after.key());
    assert_eq!(ask(&one, "/read", Some(&after.cookie())).await.body, "1");
    assert_eq!(ask(&one, "/read", Some(&before.cookie())).await.body, "0");
    assert!(!world.has_row(&before.key()).await);
}

pub async fn session_ends_when_its_ttl_is_over(world: &World) {
    let site = site(&world.nodes[0]).await;
    let first = ask(&site, "/visit", None).await;
    assert_eq!(world.open(&first.key()).await.expiry(), Some(Expiry::After(TTL.unsigned_abs())));
    let key = first.key().try_into().unwrap();
    let store = &world.nodes[0];
    let state = SessionStore::load(store, &key).await.unwrap().unwrap();
    let key = SessionStore::update(store, key, state, &Duration::seconds(-1)).await.unwrap();
    assert!(SessionStore::load(store, &key).await.unwrap().is_none());
    assert_eq!(ask(&site, "/read", Some(&first.cookie())).await.body, "0");
    assert!(SessionStore::update(store, key, Default::default(), &TTL).await.is_err());
}

pub async fn reading_prolongs_a_session_under_on_every_request(world: &World) {
    let barrier = Arc::new(Barrier::new(2));
    let site = site_with(&world.nodes[0], TtlExtensionPolicy::OnEveryRequest, barrier).await;
    let first = ask(&site, "/visit", None).await;
    let key = first.key().try_into().unwrap();
    let store = &world.nodes[0];
    let stored_key = *world.open(&first.key()).await.stored_key().unwrap();
    let before = store.load(&stored_key).await.unwrap().unwrap();
    // Another TTL than before, so that the end moves at once.
    SessionStore::update_ttl(store, &key, &(2 * TTL)).await.unwrap();
    let after = store.load(&stored_key).await.unwrap().unwrap();
    assert!(after.expires_at().since(before.expires_at()) >= TTL.unsigned_abs());
    // The same TTL again is not written, because the session was written a moment ago.
    let writes = store.stats().fenced_writes;
    for _ in 0..5 {
        SessionStore::update_ttl(store, &key, &(2 * TTL)).await.unwrap();
    }
    assert_eq!(store.stats().fenced_writes, writes);

    let answer = ask(&site, "/read", Some(&first.cookie())).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "1"));
    assert!(answer.cookie.is_some(), "the cookie lives longer as well");
    SessionStore::delete(store, &key).await.unwrap();
    SessionStore::update_ttl(store, &key, &TTL).await.unwrap();
    assert!(!world.has_row(&first.key()).await);
}

pub async fn malformed_cookie_opens_no_session(world: &World) {
    let site = site(&world.nodes[0]).await;
    for value in ["", "short", "../../../etc/passwd", &"a".repeat(65), "abcdefghijklmnopqrstuvwxyz012345"] {
        let reads = world.database_reads();
        let answer = ask(&site, "/read", Some(&cookie_with(value))).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "0"), "{value}");
        let is_key = session_core::SessionKey::parse(value).is_ok();
        assert_eq!(world.database_reads() > reads, is_key, "{value}");
        let answer = ask(&site, "/visit", Some(&cookie_with(value))).await;
        assert_ne!(answer.key(), value);
    }
    let key = "no key".to_owned().try_into().unwrap();
    SessionStore::delete(&world.nodes[0], &key).await.unwrap();
    assert!(SessionStore::update(&world.nodes[0], key, Default::default(), &TTL).await.is_err());
}

pub async fn unchanged_values_stay_byte_for_byte(world: &World) {
    let site = site(&world.nodes[0]).await;
    let first = ask(&site, "/visit", None).await;
    let mut session = world.open(&first.key()).await;
    session.insert("odd", RawValue::from_string(ODD_JSON.to_owned()).unwrap()).unwrap();
    session.save().await.unwrap();
    world.give_to(&session, "user-42").await;
    assert_eq!(ask(&site, "/visit", Some(&first.cookie())).await.body, "2");
    let session = world.open(&first.key()).await;
    assert_eq!(session.get_raw("odd"), Some(ODD_JSON));
    assert_eq!(session.subject(), Some("user-42"));
}

pub async fn unreadable_payload_is_an_error_and_row_and_cookie_stay(world: &World) {
    let site = site(&world.nodes[0]).await;
    let first = ask(&site, "/visit", None).await;
    world.corrupt(&first.key()).await;
    for path in ["/read", "/visit"] {
        let answer = ask(&site, path, Some(&first.cookie())).await;
        assert_eq!((answer.status, answer.cookie), (StatusCode::INTERNAL_SERVER_ERROR, None), "{path}");
    }
    assert!(world.has_row(&first.key()).await);
}

pub async fn logout_is_final_on_a_node_that_has_the_session_in_memory(world: &World) {
    let (one, two) = (site(&world.nodes[0]).await, site(&world.nodes[1]).await);
    let cookie = ask(&one, "/visit", None).await.cookie();
    world.warm(async || assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "1")).await;
    ask(&one, "/logout", Some(&cookie)).await;
    assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "0");
}
