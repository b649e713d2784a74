//! The values of a session, and its flags. In memory only: no test here reaches the cache or the database.

use std::collections::HashMap;

use session_cached_db::{Error, Session};
use session_core::Expiry;

use crate::common::{HOUR, Store, World, map, values_of};

async fn new_session() -> Session {
    World::new().await.store.new_session()
}

/// Returns a session with values that were neither read nor changed.
async fn untouched<const N: usize>(values: [(&str, i32); N]) -> Session {
    let world = World::new().await;
    let saved = world.saved(values).await;
    let session = world.reopen(&saved).await;
    assert_eq!(flags(&session), (false, false));
    session
}

/// Returns `accessed` and `modified`.
fn flags(session: &Session) -> (bool, bool) {
    (session.accessed(), session.modified())
}

const ACCESSED: (bool, bool) = (true, false);
const MODIFIED: (bool, bool) = (true, true);

#[tokio::test]
async fn new_session_is_neither_accessed_nor_modified() {
    let session = new_session().await;
    assert_eq!(flags(&session), (false, false));
    assert!(session.key().is_none());
}

#[tokio::test]
async fn missing_key_has_no_value() {
    let session = new_session().await;
    assert_eq!(session.get::<i32>("some key").unwrap(), None);
    assert_eq!(flags(&session), ACCESSED);
}

#[tokio::test]
async fn inserted_value_can_be_popped() {
    let mut session = new_session().await;
    session.insert("cat", "dog").unwrap();
    assert_eq!(flags(&session), MODIFIED);
    assert_eq!(session.pop::<String>("cat").unwrap().as_deref(), Some("dog"));
    assert!(!session.contains("cat"));
}

#[tokio::test]
async fn values_of_every_kind_come_back_unchanged() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Cart {
        owner: String,
        items: Vec<(u64, f64)>,
        note: Option<String>,
    }
    let cart = Cart { owner: "Zoë 🦊 \"\\\n\0".to_owned(), items: vec![(u64::MAX, 1.5)], note: None };
    let mut session = new_session().await;
    session.insert("cart", &cart).unwrap();
    session.insert("", i128::MIN).unwrap();
    session.insert("nothing", ()).unwrap();
    session.insert("map", HashMap::from([("k", [true, false])])).unwrap();
    assert_eq!(session.get::<Cart>("cart").unwrap(), Some(cart));
    assert_eq!(session.get::<i128>("").unwrap(), Some(i128::MIN));
    assert_eq!(session.get::<()>("nothing").unwrap(), Some(()));
    assert_eq!(session.get::<Option<i32>>("nothing").unwrap(), Some(None));
    assert_eq!(session.get_raw("map"), Some(r#"{"k":[true,false]}"#));
}

#[tokio::test]
async fn pop_returns_the_value_and_removes_it() {
    let mut session = untouched([("cat", 1), ("dog", 2)]).await;
    assert_eq!(session.pop("cat").unwrap(), Some(1));
    assert_eq!(values_of(&session), map([("dog", 2)]));
    assert_eq!(flags(&session), MODIFIED);
}

#[tokio::test]
async fn pop_of_a_missing_key_returns_none_and_modifies_nothing() {
    let mut session = new_session().await;
    assert_eq!(session.pop::<i32>("some key").unwrap(), None);
    assert_eq!(session.pop("some key").unwrap().unwrap_or(7), 7);
    assert_eq!(flags(&session), ACCESSED);
}

#[tokio::test]
async fn remove_returns_whether_there_was_a_value() {
    let mut session = untouched([("cat", 1)]).await;
    assert!(!session.remove("dog"));
    assert_eq!(flags(&session), ACCESSED);
    assert!(session.remove("cat"));
    assert!(!session.remove("cat"));
    assert_eq!(flags(&session), MODIFIED);
}

#[tokio::test]
async fn get_or_insert_with_inserts_once() {
    let mut session = new_session().await;
    assert_eq!(session.get_or_insert_with("foo", || "bar".to_owned()).unwrap(), "bar");
    assert_eq!(flags(&session), MODIFIED);
    assert_eq!(session.get_or_insert_with::<String>("foo", || panic!("it is there")).unwrap(), "bar");
}

#[tokio::test]
async fn get_or_insert_with_of_an_existing_key_modifies_nothing() {
    let mut session = untouched([("foo", 1)]).await;
    assert_eq!(session.get_or_insert_with("foo", || 2).unwrap(), 1);
    assert_eq!(flags(&session), ACCESSED);
}

#[tokio::test]
async fn update_stores_all_values() {
    let mut session = untouched([("kept", 0), ("replaced", 0)]).await;
    session.update([("replaced", 1), ("new", 2)]).unwrap();
    assert_eq!(values_of(&session), map([("kept", 0), ("replaced", 1), ("new", 2)]));
    assert_eq!(flags(&session), MODIFIED);
}

#[tokio::test]
async fn update_stores_no_value_if_one_is_refused() {
    let mut session = untouched([("kept", 0)]).await;
    let refused = session.update([("new", 1), ("_session_expiry", 2)]);
    assert!(matches!(refused, Err(Error::ReservedKey { .. })));
    assert!(!session.modified());
    assert_eq!(values_of(&session), map([("kept", 0)]));
}

#[tokio::test]
async fn change_in_place_counts_as_modified() {
    let mut session = untouched([("visits", 1)]).await;
    let visits = session.modify("visits", |visits: &mut i32| {
        *visits += 1;
        *visits
    });
    assert_eq!(visits.unwrap(), 2);
    session.modify("cart", |cart: &mut Vec<u32>| cart.push(42)).unwrap();
    assert_eq!(session.get("visits").unwrap(), Some(2));
    assert_eq!(session.get("cart").unwrap(), Some(vec![42]));
    assert_eq!(flags(&session), MODIFIED);
}

#[tokio::test]
async fn contains_is_an_access_and_not_a_change() {
    let session = untouched([("some key", 1)]).await;
    assert!(session.contains("some key"));
    assert!(!session.contains("another"));
    assert_eq!(flags(&session), ACCESSED);
}

#[tokio::test]
async fn listing_the_values_is_an_access_and_not_a_change() {
    let empty = new_session().await;
    assert_eq!(empty.values().count(), 0);
    assert_eq!(flags(&empty), ACCESSED);
    let session = untouched([("some key", 1)]).await;
    assert_eq!(session.values().collect::<Vec<_>>(), ["1"]);
    assert_eq!(flags(&session), ACCESSED);
}

#[tokio::test]
async fn listing_the_keys_is_an_access_and_not_a_change() {
    let session = untouched([("x", 1), ("a", 2)]).await;
    assert_eq!(session.keys().collect::<Vec<_>>(), ["a", "x"]);
    assert_eq!(flags(&session), ACCESSED);
}

#[tokio::test]
async fn listing_the_items_is_an_access_and_not_a_change() {
    let session = untouched([("x", 1), ("a", 2)]).await;
    assert_eq!(session.iter().collect::<Vec<_>>(), [("a", "2"), ("x", "1")]);
    assert_eq!(session.len(), 2);
    assert_eq!(flags(&session), ACCESSED);
}

#[tokio::test]
async fn clear_removes_all_values_and_keeps_the_key() {
    let mut session = untouched([("x", 1), ("y", 2)]).await;
    session.clear();
    assert_eq!(values_of(&session), map([]));
    assert_eq!(flags(&session), MODIFIED);
    assert!(session.key().is_some());
}

#[tokio::test]
async fn clear_keeps_the_expiry_and_the_subject() {
    let mut session = untouched([("x", 1)]).await;
    session.set_expiry(Expiry::After(HOUR));
    session.set_subject("user-42").unwrap();
    session.clear();
    assert_eq!(session.expiry(), Some(Expiry::After(HOUR)));
    assert_eq!(session.subject(), Some("user-42"));
}

#[tokio::test]
async fn session_is_unsaved_and_empty_until_there_is_something_to_keep() {
    let mut session = new_session().await;
    assert!(session.is_unsaved_and_empty());
    session.insert("x", 1).unwrap();
    assert!(!session.is_unsaved_and_empty());
    session.clear();
    assert!(session.is_unsaved_and_empty());
    // A session with a key has a row.
    let mut stored = untouched([]).await;
    assert!(!stored.is_unsaved_and_empty());
    stored.clear();
    assert!(!stored.is_unsaved_and_empty());
}

#[tokio::test]
async fn session_with_a_subject_is_not_unsaved_and_empty() {
    let mut session = new_session().await;
    session.set_subject("user-42").unwrap();
    assert!(!session.is_unsaved_and_empty());
}

#[tokio::test]
async fn is_unsaved_and_empty_is_not_an_access() {
    let session = untouched([("x", 1)]).await;
    assert!(!session.is_unsaved_and_empty());
    assert!(!session.accessed());
    let session = new_session().await;
    assert!(session.is_unsaved_and_empty());
    assert!(!session.accessed());
}

#[tokio::test]
async fn expiry_is_not_among_the_values() {
    let mut session = new_session().await;
    session.set_expiry(Expiry::After(HOUR));
    assert_eq!(session.len(), 0);
    assert_eq!(session.get_raw("_session_expiry"), None);
    assert!(!session.remove("_session_expiry"));
    assert!(matches!(session.insert("_session_expiry", 1), Err(Error::ReservedKey { .. })));
    assert_eq!(session.expiry(), Some(Expiry::After(HOUR)));
}

#[tokio::test]
async fn test_cookie_is_set_found_and_deleted() {
    let mut session = new_session().await;
    assert!(!session.test_cookie_worked());
    session.set_test_cookie().unwrap();
    assert!(session.test_cookie_worked());
    assert_eq!(flags(&session), MODIFIED);
    session.delete_test_cookie();
    assert!(!session.test_cookie_worked());
    assert!(!session.contains("testcookie"));
}

#[tokio::test]
async fn deleting_the_test_cookie_is_a_change() {
    let world = World::new().await;
    let mut saved = world.store.new_session();
    saved.set_test_cookie().unwrap();
    saved.save().await.unwrap();
    let mut session = world.reopen(&saved).await;
    assert!(session.test_cookie_worked());
    assert_eq!(flags(&session), ACCESSED);
    session.delete_test_cookie();
    assert_eq!(flags(&session), MODIFIED);
}

#[test]
fn session_can_be_sent_and_shared() {
    fn is_shareable<T: Send + Sync + 'static>() {}
    is_shareable::<Session>();
    is_shareable::<Store>();
}

#[tokio::test]
async fn map_operations_do_no_io() {
    let world = World::new().await;
    let saved = world.saved([("x", 1)]).await;
    let mut session = world.reopen(&saved).await;
    world.forget_calls();
    session.insert("y", 2).unwrap();
    session.clear();
    session.set_expiry(Expiry::BrowserSession);
    session.set_subject("user-42").unwrap();
    drop(session);
    assert_eq!(world.calls(), 0);
    assert_eq!(world.in_database(saved.stored_key().unwrap()).await, Some(map([("x", 1)])));
}
