//! Rotation of session keys, and logouts.

use std::time::Duration;

use serde_json::json;
use session_cached_db::django::{DjangoCodec, DjangoMySql, DjangoPostgres, DjangoSqlite};
use session_cached_db::session_core::Rotations;
use session_cached_db::{CachedDb, Error, NoCache};

use crate::site::{SECRET_KEY, Site, key_of, secret_keys, text};

pub async fn key_rotated_here_is_rotated_in_django(site: &Site) {
    let store = site.store().await;
    let old = site.create("{\"a\":1}");
    let mut session = store.open(&old).await.unwrap();
    session.insert("b", 2).unwrap();
    session.cycle_key().await.unwrap();
    let new = key_of(&session);
    assert_ne!(new, old);
    assert_eq!(site.load(&old), None);
    assert_eq!(site.row(&old), None);
    assert_eq!(site.load(&new).as_deref(), Some("{\"a\":1,\"b\":2}"));
}

pub async fn key_rotated_in_django_is_rotated_here(site: &Site) {
    let store = site.store().await;
    let mut session = store.new_session();
    session.insert("a", 1).unwrap();
    session.save().await.unwrap();
    let old = key_of(&session);
    let new = text(&site.django("cycle", json!({"key": old}))["key"]);
    assert!(store.open(&old).await.unwrap().key().is_none());
    let found = store.open(&new).await.unwrap();
    assert_eq!(found.get::<u32>("a").unwrap(), Some(1));
    // A request that has the session under its old key cannot bring that back.
    session.insert("a", 2).unwrap();
    assert!(matches!(session.save().await, Err(Error::SessionGone)));
    assert!(matches!(session.cycle_key().await, Err(Error::SessionGone)));
    assert_eq!(site.row(&old), None);
    assert_eq!(site.load(&new).as_deref(), Some("{\"a\":1}"));
}

pub async fn logout_here_is_a_logout_in_django(site: &Site) {
    let store = site.store().await;
    let key = site.create("{\"a\":1}");
    let mut session = store.open(&key).await.unwrap();
    session.flush().await.unwrap();
    assert_eq!(site.load(&key), None);
    assert_eq!(site.row(&key), None);
}

pub async fn logout_in_django_is_a_logout_here(site: &Site) {
    let store = site.store().await;
    let mut session = store.new_session();
    session.insert("a", 1).unwrap();
    session.save().await.unwrap();
    site.django("flush", json!({"key": key_of(&session)}));
    assert!(store.open(&key_of(&session)).await.unwrap().key().is_none());
    assert!(!session.exists().await.unwrap());
}

pub async fn session_ended_by_django_is_not_written_again(site: &Site) {
    let store = site.store().await;
    let key = site.create("{\"a\":1}");
    let mut session = store.open(&key).await.unwrap();
    let mut rotated = store.open(&key).await.unwrap();
    site.django("flush", json!({"key": key}));
    session.insert("a", 2).unwrap();
    assert!(matches!(session.save().await, Err(Error::SessionGone)));
    assert!(matches!(rotated.cycle_key().await, Err(Error::SessionGone)));
    assert_eq!(site.row(&key), None);
}

pub async fn session_ended_here_is_not_written_again(site: &Site) {
    let store = site.store().await;
    let mut session = store.new_session();
    session.insert("a", 1).unwrap();
    session.save().await.unwrap();
    let key = key_of(&session);
    site.django("open", json!({"key": key}));
    session.flush().await.unwrap();
    let saved = site.django("save_opened", json!({"key": key, "set": "{\"a\":2}"}));
    assert_eq!(saved["error"], "UpdateError");
    assert_eq!(site.row(&key), None);
}

pub async fn key_renewed_here_is_followed_here_within_a_grace(site: &Site) {
    let url = site.database.url();
    match url.split(':').next() {
        Some("sqlite") => follow(site, DjangoSqlite::connect(&url).await.unwrap()).await,
        Some("postgres") => follow(site, DjangoPostgres::connect(&url).await.unwrap()).await,
        _ => follow(site, DjangoMySql::connect(&url).await.unwrap()).await,
    }
}

async fn follow<P: Rotations>(site: &Site, db: P) {
    let store = CachedDb::builder(NoCache, db).codec(DjangoCodec::new(&secret_keys(&[SECRET_KEY])));
    let store = store.reaper(None).rotation_grace(Duration::from_secs(60)).build().await.unwrap();
    let old = site.create("{\"a\":1}");
    let (mut session, mut late) = (store.open(&old).await.unwrap(), store.open(&old).await.unwrap());
    session.renew_key().await.unwrap();
    let new = key_of(&session);
    // The client has lost the answer.
    assert_eq!(key_of(&store.open(&old).await.unwrap()), new);
    late.insert("b", 2).unwrap();
    late.save().await.unwrap();
    assert_eq!(key_of(&late), new);
    // Django knows nothing of it: it finds the session under its new key, and nothing under the old one.
    assert_eq!(site.load(&new).as_deref(), Some("{\"a\":1,\"b\":2}"));
    assert_eq!(site.load(&old), None);
    // A login's key leads nowhere.
    let mut session = store.open(&new).await.unwrap();
    session.cycle_key().await.unwrap();
    assert!(store.open(&new).await.unwrap().key().is_none());
    assert!(store.open(&old).await.unwrap().key().is_none());
    store.clear_expired().await.unwrap();
    store.close().await;
}
