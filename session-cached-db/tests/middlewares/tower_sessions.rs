//! The middleware of tower-sessions, over this crate's store.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::value::RawValue;
use time::{Duration, OffsetDateTime};
use tokio::sync::Barrier;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store::Error as StoreError;
use tower_sessions::{Expiry, Session, SessionManagerLayer, SessionStore};

use crate::axum_layer::ask;
use crate::world::{ODD_JSON, Store, World};

fn layer(store: &Store) -> SessionManagerLayer<Store> {
    SessionManagerLayer::new(store.clone()).with_expiry(Expiry::OnInactivity(Duration::hours(1)))
}

fn site(store: &Store) -> Router {
    let visit = async |session: Session| {
        let visits = session.get::<u32>("visits").await.unwrap().unwrap_or(0) + 1;
        session.insert("visits", visits).await.unwrap();
        visits.to_string()
    };
    let read = async |session: Session| session.get::<u32>("visits").await.unwrap().unwrap_or(0).to_string();
    let cycle = async |session: Session| session.cycle_id().await.unwrap();
    let log_out = async |session: Session| session.flush().await.unwrap();
    Router::new()
        .route("/visit", get(visit))
        .route("/read", get(read))
        .route("/cycle", get(cycle))
        .route("/logout", get(log_out))
        .layer(layer(store))
}

/// Returns a site with a page that stores `visits`, after it has read the session and waited twice.
fn slow(store: &Store, visits: u32, barrier: &Arc<Barrier>) -> Router {
    let barrier = Arc::clone(barrier);
    let page = async move |session: Session| {
        session.get::<u32>("visits").await.unwrap();
        barrier.wait().await;
        barrier.wait().await;
        session.insert("visits", visits).await.unwrap();
        session.insert(&format!("visits={visits}"), true).await.unwrap();
    };
    Router::new().route("/slow", get(page)).layer(layer(store))
}

pub async fn client_comes_back_with_its_cookie(world: &World) {
    let site = site(&world.nodes[0]);
    let first = ask(&site, "/visit", None).await;
    assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "1"));
    assert_eq!(ask(&site, "/visit", Some(&first.cookie())).await.body, "2");
    assert_eq!(ask(&site, "/visit", Some(&first.cookie())).await.body, "3");
    assert_eq!(world.open(&first.key()).await.get::<u32>("visits").unwrap(), Some(3));
}

pub async fn visitor_who_stores_nothing_gets_no_session(world: &World) {
    let site = site(&world.nodes[0]);
    let answer = ask(&site, "/read", None).await;
    assert_eq!((answer.body.as_str(), answer.cookie), ("0", None));
    for cookie in ["id=", "id=short", "id=../../../etc/passwd", "id=AAAAAAAAAAAAAAAAAAAAAA"] {
        let answer = ask(&site, "/read", Some(cookie)).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "0"), "{cookie}");
    }
}

pub async fn save_on_one_node_is_seen_on_the_other_at_once(world: &World) {
    let [one, two] = [0, 1].map(|node| site(&world.nodes[node]));
    let cookie = ask(&one, "/visit", None).await.cookie();
    for visits in 1..10 {
        assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, visits.to_string());
        assert_eq!(ask(&one, "/visit", Some(&cookie)).await.body, (visits + 1).to_string());
    }
    ask(&one, "/logout", Some(&cookie)).await;
    assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "0");
}

pub async fn cached_session_costs_no_database_read(world: &World) {
    let [one, two] = [0, 1].map(|node| site(&world.nodes[node]));
    let cookie = ask(&one, "/visit", None).await.cookie();
    let before = world.database_reads();
    for _ in 0..10 {
        assert_eq!(ask(&one, "/read", Some(&cookie)).await.body, "1");
        assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "1");
    }
    assert_eq!(world.database_reads(), before);
}

pub async fn last_of_two_saves_wins(world: &World) {
    let first = ask(&site(&world.nodes[0]), "/visit", None).await;
    let cookie = first.cookie();
    let barrier = Arc::new(Barrier::new(2));
    let slow = slow(&world.nodes[0], 7, &barrier);
    tokio::join!(ask(&slow, "/slow", Some(&cookie)), async {
        barrier.wait().await;
        assert_eq!(ask(&site(&world.nodes[1]), "/visit", Some(&cookie)).await.body, "2");
        barrier.wait().await;
    });
    let session = world.open(&first.key()).await;
    let all: Vec<_> = session.iter().collect();
    assert_eq!(all, [("visits", "7"), ("visits=7", "true")]);
}

pub async fn logout_is_final_and_a_late_save_is_an_error(world: &World) {
    let first = ask(&site(&world.nodes[0]), "/visit", None).await;
    let cookie = first.cookie();
    let barrier = Arc::new(Barrier::new(2));
    let slow = slow(&world.nodes[0], 7, &barrier);
    let (late, ()) = tokio::join!(ask(&slow, "/slow", Some(&cookie)), async {
        barrier.wait().await;
        ask(&site(&world.nodes[1]), "/logout", Some(&cookie)).await;
        barrier.wait().await;
    });
    assert_eq!(late.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!world.has_row(&first.key()).await);
    for node in &world.nodes {
        assert_eq!(ask(&site(node), "/read", Some(&cookie)).await.body, "0");
    }
}

pub async fn cycled_id_keeps_the_data_and_ends_the_old_id(world: &World) {
    let [one, two] = [0, 1].map(|node| site(&world.nodes[node]));
    let before = ask(&one, "/visit", None).await;
    let after = ask(&two, "/cycle", Some(&before.cookie())).await;
    assert_ne!(before.cookie(), after.cookie());
    assert_eq!(ask(&one, "/read", Some(&after.cookie())).await.body, "1");
    assert_eq!(ask(&one, "/read", Some(&before.cookie())).await.body, "0");
    assert!(!world.has_row(&before.key()).await);
}

pub async fn expiry_of_the_last_save_counts(world: &World) {
    let first = ask(&site(&world.nodes[0]), "/visit", None).await;
    let ends = world.open(&first.key()).await.expires_at();
    let inactive = async |session: Session| {
        session.set_expiry(Some(Expiry::OnInactivity(Duration::days(1))));
    };
    let over = async |session: Session| {
        session.set_expiry(Some(Expiry::AtDateTime(OffsetDateTime::now_utc() - Duration::seconds(1))));
    };
    let site =
        Router::new().route("/longer", get(inactive)).route("/over", get(over)).layer(layer(&world.nodes[1]));
    ask(&site, "/longer", Some(&first.cookie())).await;
    let longer = world.open(&first.key()).await.expires_at();
    assert!(longer.since(ends) > std::time::Duration::from_secs(22 * 60 * 60), "{ends:?} {longer:?}");
    let id = first.key().parse().unwrap();
    let record = SessionStore::load(&world.nodes[0], &id).await.unwrap().unwrap();
    assert_eq!(record.expiry_date.unix_timestamp_nanos(), i128::from(longer.as_micros()) * 1_000);
    ask(&site, "/over", Some(&first.cookie())).await;
    assert!(!world.has_row(&first.key()).await);
}

fn record(id: Id, data: impl IntoIterator<Item = (&'static str, u32)>) -> Record {
    let data: HashMap<_, _> = data.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    Record { id, data, expiry_date: OffsetDateTime::now_utc() + Duration::hours(1) }
}

pub async fn existing_id_is_replaced_when_a_session_is_created(world: &World) {
    let store: &dyn SessionStore = &world.nodes[0];
    let mut first = record(Id(1), [("visits", 1)]);
    let mut second = record(Id(1), [("visits", 2)]);
    store.create(&mut first).await.unwrap();
    store.create(&mut second).await.unwrap();
    assert_eq!(first.id, Id(1));
    assert_ne!(second.id, Id(1));
    for created in [first, second] {
        assert_eq!(store.load(&created.id).await.unwrap().unwrap().data, created.data);
    }
}

pub async fn unchanged_values_stay_byte_for_byte(world: &World) {
    let first = ask(&site(&world.nodes[0]), "/visit", None).await;
    let mut session = world.open(&first.key()).await;
    session.insert("odd", RawValue::from_string(ODD_JSON.to_owned()).unwrap()).unwrap();
    session.save().await.unwrap();
    world.give_to(&session, "user-42").await;
    assert_eq!(ask(&site(&world.nodes[0]), "/visit", Some(&first.cookie())).await.body, "2");
    let session = world.open(&first.key()).await;
    assert_eq!(session.get_raw("odd"), Some(ODD_JSON));
    assert_eq!(session.subject(), Some("user-42"));
}

pub async fn unreadable_payload_is_an_error_and_row_and_cookie_stay(world: &World) {
    let first = ask(&site(&world.nodes[0]), "/visit", None).await;
    let read = async |session: Session| session.get::<u32>("visits").await.map(drop).map_err(failed);
    let change = async |session: Session| session.insert("visits", 7).await.map_err(failed);
    let log_out = async |session: Session| session.flush().await.map_err(failed);
    let site = Router::new()
        .route("/read", get(read))
        .route("/change", get(change))
        .route("/logout", get(log_out))
        .layer(layer(&world.nodes[0]));
    world.corrupt(&first.key()).await;
    let store: &dyn SessionStore = &world.nodes[0];
    let id = first.key().parse().unwrap();
    assert!(matches!(store.load(&id).await, Err(StoreError::Decode(_))));
    assert!(matches!(store.save(&record(id, [("visits", 7)])).await, Err(StoreError::Decode(_))));
    for path in ["/read", "/change"] {
        let answer = ask(&site, path, Some(&first.cookie())).await;
        assert_eq!((answer.status, answer.cookie), (StatusCode::INTERNAL_SERVER_ERROR, None), "{path}");
        assert!(world.has_row(&first.key()).await);
    }
    // A logout reads nothing.
    assert_eq!(ask(&site, "/logout", Some(&first.cookie())).await.status, StatusCode::OK);
    assert!(!world.has_row(&first.key()).await);
}

fn failed<E>(_: E) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

pub async fn reserved_key_is_an_encoding_error(world: &World) {
    let store: &dyn SessionStore = &world.nodes[0];
    let mut reserved = record(Id(2), [("_session_expiry", 1)]);
    let error = store.create(&mut reserved).await.unwrap_err();
    assert!(matches!(error, StoreError::Encode(_)), "{error}");
    store.create(&mut record(Id(2), [("visits", 1)])).await.unwrap();
    let error = store.save(&reserved).await.unwrap_err();
    assert!(matches!(error, StoreError::Encode(_)), "{error}");
}

pub async fn logout_is_final_on_a_node_that_has_the_session_in_memory(world: &World) {
    let [one, two] = [0, 1].map(|node| site(&world.nodes[node]));
    let cookie = ask(&one, "/visit", None).await.cookie();
    world.warm(async || assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "1")).await;
    ask(&one, "/logout", Some(&cookie)).await;
    assert_eq!(ask(&two, "/read", Some(&cookie)).await.body, "0");
}
