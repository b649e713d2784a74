//! Rotation of session keys, and logouts.

use serde_json::json;
use session_cached_db::Error;

use crate::site::{Site, key_of, text};

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
