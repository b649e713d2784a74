//! Structs as values, and as the session as a whole, in several versions.

use serde::{Deserialize, Serialize};
use session_cached_db::{ConflictPolicy, Error};

use crate::common::{MINUTE, World, each_database, each_database_with};

/// A cart as an older version of the program knows it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Cart {
    items: Vec<u32>,
    voucher: Option<String>,
}

/// A cart as a newer version of the program knows it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct NewerCart {
    items: Vec<u32>,
    voucher: Option<String>,
    gift: bool,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Visitor {
    theme: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    cart: Cart,
}

#[tokio::test]
async fn value_has_its_default_and_keeps_what_a_newer_version_added() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        assert_eq!(session.typed::<NewerCart>("cart").unwrap(), NewerCart::default());
        session.modify("cart", |cart: &mut NewerCart| cart.gift = true).unwrap();
        session.save().await.unwrap();

        let mut older = world.reopen(&session).await;
        older.modify("cart", |cart: &mut Cart| cart.items.push(7)).unwrap();
        older.save().await.unwrap();
        let newer = world.reopen(&session).await;
        let expected = NewerCart { items: vec![7], voucher: None, gift: true };
        assert_eq!(newer.typed::<NewerCart>("cart").unwrap(), expected);
        // A value of before a field was added has the field's default.
        let mut oldest = world.store.new_session();
        oldest.insert("cart", Cart { items: vec![1], voucher: None }).unwrap();
        assert!(!oldest.typed::<NewerCart>("cart").unwrap().gift);
    })
    .await;
}

#[tokio::test]
async fn modification_that_is_repeated_keeps_what_a_newer_version_added() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.insert("cart", Cart::default()).unwrap();
        session.save().await.unwrap();
        let (mut older, mut newer) = (world.reopen(&session).await, world.reopen(&session).await);
        older.modify("cart", |cart: &mut Cart| cart.items.push(7)).unwrap();
        newer.modify("cart", |cart: &mut NewerCart| cart.gift = true).unwrap();
        newer.save().await.unwrap();
        older.save().await.unwrap();
        let cart: NewerCart = world.reopen(&session).await.typed("cart").unwrap();
        assert_eq!(cart, NewerCart { items: vec![7], voucher: None, gift: true });
    })
    .await;
}

#[tokio::test]
async fn whole_session_is_a_struct() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        assert_eq!(session.get_all::<Visitor>().unwrap(), Visitor::default());
        session.set_expiry(session_core::Expiry::After(MINUTE));
        session.insert("unknown", 1).unwrap();
        let mut visitor = Visitor { theme: "dark".into(), name: Some("Ada".into()), ..Visitor::default() };
        session.insert_all(&visitor).unwrap();
        session.save().await.unwrap();

        let mut session = world.reopen(&session).await;
        assert_eq!(session.get_all::<Visitor>().unwrap(), visitor);
        session.insert_all(&visitor).unwrap();
        assert!(!session.modified(), "nothing has changed");
        visitor.name = None;
        session.insert_all(&visitor).unwrap();
        assert_eq!(session.keys().collect::<Vec<_>>(), ["theme", "unknown"]);
        assert!(session.expiry().is_some());
    })
    .await;
}

#[tokio::test]
async fn changes_of_different_fields_of_a_whole_session_both_win() {
    each_database_with(
        |builder| builder.conflict_policy(ConflictPolicy::Reject),
        async |world| {
            let mut session = world.store.new_session();
            session.insert("visits", 1).unwrap();
            session.save().await.unwrap();
            let (mut one, mut two) = (world.reopen(&session).await, world.reopen(&session).await);
            one.insert_all(&Visitor { theme: "dark".into(), ..one.get_all().unwrap() }).unwrap();
            two.insert_all(&Visitor { name: Some("Ada".into()), ..two.get_all().unwrap() }).unwrap();
            one.save().await.unwrap();
            two.save().await.unwrap();
            let visitor: Visitor = world.reopen(&session).await.get_all().unwrap();
            assert_eq!((&*visitor.theme, visitor.name.as_deref()), ("dark", Some("Ada")));
        },
    )
    .await;
}

#[tokio::test]
async fn whole_session_that_does_not_fit_is_refused_and_nothing_changes() {
    let world = World::new().await;
    let mut session = world.saved([("theme", 1)]).await;
    assert!(matches!(session.get_all::<Visitor>(), Err(Error::Deserialize { .. })));
    assert!(matches!(session.insert_all(&vec![1]), Err(Error::Serialize { .. })));
    let reserved = std::collections::BTreeMap::from([("a", 1), ("_session_expiry", 2)]);
    let reserved: std::collections::BTreeMap<String, i32> =
        reserved.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    assert!(matches!(session.insert_all(&reserved), Err(Error::ReservedKey { .. })));
    assert!(!session.modified());
    // A value that cannot be read can be replaced.
    session.insert_all(&Visitor { theme: "dark".into(), ..Visitor::default() }).unwrap();
    assert_eq!(session.get_all::<Visitor>().unwrap().theme, "dark");
}
