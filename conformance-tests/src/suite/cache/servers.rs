//! The server of a key.

use std::sync::Arc;

use session_core::{Cache, DynCache, Expected, StoredKey};

use super::{CacheFixture, MINUTE, exchange, get, key, put, value};
use crate::suite::case::cases;

cases! {
    /// Returns the cases of this part.
    for CacheFixture:
    server_of_every_key_is_below_the_number_of_servers => "Returns the number of the server that has `key`, below",
    key_keeps_its_server_when_entries_change => "The same key has the same number",
    every_handle_names_the_same_server => "The same key has the same number",
}

/// Returns keys that are spread over several servers.
fn many_keys() -> Vec<StoredKey> {
    let mut keys: Vec<_> = (0..200).map(|_| key()).collect();
    // Braces and the like have a meaning for some servers.
    for text in ["{", "}", "{}", "{a}b", "a{b}c", "{}{a}", "{{a}}", "a:b", "%7B"] {
        keys.push(StoredKey::parse(text).expect("it is a key"));
    }
    keys
}

pub async fn server_of_every_key_is_below_the_number_of_servers(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let servers = cache.properties().servers;
    assert!(servers > 0, "there is at least one server");
    for key in many_keys() {
        let server = cache.server(&key);
        assert!(server < servers, "{:?} is on server {server} of {servers}, counted from 0", key.as_str());
    }
}

pub async fn key_keeps_its_server_when_entries_change(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for _ in 0..20 {
        let (key, entry) = (key(), value());
        let server = cache.server(&key);
        put(&cache, &key, &entry, MINUTE).await;
        assert_eq!(cache.server(&key), server, "it moved when something was stored");
        assert_eq!(get(&cache, &key).await, Some(entry.clone()));
        exchange(&cache, &key, Expected::Stamp(entry.stamp), None, MINUTE).await;
        assert_eq!(cache.server(&key), server, "it moved when something was removed");
    }
}

pub async fn every_handle_names_the_same_server(fixture: &impl CacheFixture) {
    let (here, there) = (Arc::new(fixture.open().await), fixture.open().await);
    let (clone, erased) = (Arc::clone(&here), Arc::clone(&here) as Arc<dyn DynCache>);
    let servers = here.properties().servers;
    let others = [there.properties(), clone.properties(), erased.properties()].map(|other| other.servers);
    assert_eq!(others, [servers; 3], "handles to the same cache count different servers");
    for key in many_keys() {
        let server = here.server(&key);
        let others = [there.server(&key), clone.server(&key), erased.server(&key)];
        assert_eq!(others, [server; 3], "handles to the same cache look for a key on different servers");
    }
}
