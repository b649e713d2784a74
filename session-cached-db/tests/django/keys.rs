//! Rotation of Django's secret keys.

use serde_json::json;
use session_cached_db::Error;
use session_cached_db::StoredKey;

use crate::site::{Site, key_of, text};

pub async fn each_side_accepts_the_others_fallback_keys(site: &Site) {
    let new_there = |operation: &str, key: &str| {
        site.django(operation, json!({"key": key, "secret_key": "new", "fallbacks": ["older", "old"]}))
    };

    // Django has signed with the old key.
    let key = text(&site.django("create", json!({"data": "{\"a\":1}", "secret_key": "old"}))["key"]);
    let rotated = site.store_with(&["new", "older", "old"]).await;
    let mut session = rotated.open(&key).await.unwrap();
    assert_eq!(session.get::<u32>("a").unwrap(), Some(1));
    let stored = StoredKey::parse(&key).unwrap();
    let unaware = site.store_with(&["new"]).await;
    assert!(matches!(unaware.load(&stored).await, Err(Error::Unreadable(_))));
    session.insert("b", 2).unwrap();
    session.save().await.unwrap();
    // The session is signed with the new key now, which the old Django does not know.
    assert!(unaware.load(&stored).await.is_ok());
    assert_eq!(text(&new_there("load", &key)["data"]), "{\"a\":1,\"b\":2}");
    assert_eq!(
        text(&site.django("load", json!({"key": key, "secret_key": "new"}))["data"]),
        "{\"a\":1,\"b\":2}"
    );
    assert_eq!(text(&site.django("load", json!({"key": key, "secret_key": "old"}))["data"]), "{}");

    // The other way round: this side has signed with the old key.
    let old = site.store_with(&["old"]).await;
    let mut session = old.new_session();
    session.insert("a", 1).unwrap();
    session.save().await.unwrap();
    let key = key_of(&session);
    assert_eq!(text(&new_there("load", &key)["data"]), "{\"a\":1}");
    let saved = json!({"key": key, "set": "{\"b\":2}", "secret_key": "new", "fallbacks": ["old"]});
    site.django("save", saved);
    assert_eq!(unaware.open(&key).await.unwrap().get::<u32>("b").unwrap(), Some(2));
    assert!(matches!(old.load(&StoredKey::parse(&key).unwrap()).await, Err(Error::Unreadable(_))));
}
