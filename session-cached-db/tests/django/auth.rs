//! Logins of `django.contrib.auth`.

use serde_json::{Value, json};
use session_cached_db::django::{DjangoLogin, MODEL_BACKEND, VerifiedBy};

use crate::site::{SECRET_KEY, Site, key_of, secret_keys, text};

/// A user of the site.
struct User {
    name: String,
    id: String,
    /// The content of the user's `password` column.
    password: String,
}

impl User {
    fn with_password(site: &Site, name: &str, password: &str) -> Self {
        let user = site.django("user", json!({"username": name, "password": password}));
        Self { name: name.to_owned(), id: text(&user["id"]), password: text(&user["password"]) }
    }

    fn new(site: &Site) -> Self {
        Self::with_password(site, &format!("user-{:016x}", fastrand::u64(..)), "first")
    }

    fn login(&self, key: &str) -> DjangoLogin {
        DjangoLogin::new(&secret_keys(&[key]), &self.id, MODEL_BACKEND, &self.password)
    }
}

fn whoami(site: &Site, cookie: &str) -> Value {
    site.django("get", json!({"url": "/whoami", "cookie": cookie}))["user"].clone()
}

fn log_in_there(site: &Site, user: &User, cookie: Option<&str>) -> String {
    let url = format!("/login?username={}&password=first", user.name);
    text(&site.django("get", json!({"url": url, "cookie": cookie}))["cookie"])
}

pub async fn user_logged_in_by_django_is_logged_in_here(site: &Site) {
    let (store, user) = (site.store().await, User::new(site));
    // The visitor has a session with a value before the login.
    let mut visitor = store.new_session();
    visitor.insert("cart", [1, 2]).unwrap();
    visitor.save().await.unwrap();
    let cookie = log_in_there(site, &user, Some(&key_of(&visitor)));
    assert_ne!(cookie, key_of(&visitor));

    let mut session = store.open(&cookie).await.unwrap();
    assert_eq!(session.get::<Vec<u32>>("cart").unwrap(), Some(vec![1, 2]));
    let login = DjangoLogin::of(&session).unwrap();
    assert_eq!((login.user_id(), login.backend()), (user.id.as_str(), MODEL_BACKEND));
    assert_eq!(login.verify(&secret_keys(&[SECRET_KEY]), &user.password), Some(VerifiedBy::SecretKey));
    assert_eq!(login.verify(&secret_keys(&["another"]), &user.password), None);
    assert!(!format!("{login:?}").contains(&user.password));

    session.flush().await.unwrap();
    assert_eq!(whoami(site, &cookie), Value::Null);
    assert!(DjangoLogin::of(&session).is_none());
}

pub async fn user_logged_in_here_is_logged_in_by_django(site: &Site) {
    let (store, user) = (site.store().await, User::new(site));
    let cookie = text(&site.django("create", json!({"data": "{\"cart\":[1],\"_csrftoken\":\"x\"}"}))["key"]);
    let mut session = store.open(&cookie).await.unwrap();
    user.login(SECRET_KEY).log_in(&mut session).await.unwrap();
    assert_eq!(whoami(site, &cookie), Value::Null);
    assert_eq!(whoami(site, &key_of(&session)), user.name.as_str());
    assert_eq!(session.get::<Vec<u32>>("cart").unwrap(), Some(vec![1]));
    assert!(!session.contains("_csrftoken"), "a token that was planted before is worth nothing");
    assert_eq!(session.get_raw("_auth_user_id"), Some(format!("\"{}\"", user.id).as_str()));

    let ended = site.django("get", json!({"url": "/logout", "cookie": key_of(&session)}));
    assert_eq!(ended["status"], 200);
    assert!(store.open(&key_of(&session)).await.unwrap().key().is_none());
}

pub async fn changed_password_ends_the_login(site: &Site) {
    let (store, user) = (site.store().await, User::new(site));
    let mut session = store.new_session();
    user.login(SECRET_KEY).log_in(&mut session).await.unwrap();
    let changed = User::with_password(site, &user.name, "second");
    let found = DjangoLogin::of(&store.open(&key_of(&session)).await.unwrap()).unwrap();
    assert_eq!(found.verify(&secret_keys(&[SECRET_KEY]), &changed.password), None);
    assert_eq!(whoami(site, &key_of(&session)), Value::Null);
}

pub async fn login_of_another_user_keeps_nothing_of_the_session_before(site: &Site) {
    let (store, one, other) = (site.store().await, User::new(site), User::new(site));
    let cookie = log_in_there(site, &one, None);
    site.django("save", json!({"key": cookie, "set": "{\"secret\":1}"}));
    let mut session = store.open(&cookie).await.unwrap();
    other.login(SECRET_KEY).log_in(&mut session).await.unwrap();
    assert_eq!(site.row(&cookie), None);
    let found = store.open(&key_of(&session)).await.unwrap();
    assert!(!found.contains("secret"));
    assert_eq!(whoami(site, &key_of(&session)), other.name.as_str());
    // A login of the same user keeps the session's values.
    session.insert("kept", 1).unwrap();
    other.login(SECRET_KEY).log_in(&mut session).await.unwrap();
    assert!(store.open(&key_of(&session)).await.unwrap().contains("kept"));
}

pub async fn login_by_a_fallback_key_is_renewed(site: &Site) {
    let user = User::new(site);
    let old = site.store_with(&["old"]).await;
    let mut session = old.new_session();
    user.login("old").log_in(&mut session).await.unwrap();
    session.insert("kept", 1).unwrap();
    session.save().await.unwrap();
    let cookie = key_of(&session);

    let keys = secret_keys(&["new", "old"]);
    let store = site.store_with(&["new", "old"]).await;
    let mut session = store.open(&cookie).await.unwrap();
    let login = DjangoLogin::of(&session).unwrap();
    assert_eq!(login.verify(&keys, &user.password), Some(VerifiedBy::Fallback));
    let (renewed, _) = login.renew(&mut session, &keys, &user.password).await.unwrap();
    assert_eq!(renewed.verify(&keys, &user.password), Some(VerifiedBy::SecretKey));

    // The site has removed the fallback key.
    let request = json!({"url": "/whoami", "cookie": key_of(&session), "secret_key": "new"});
    let found = site.django("get", request);
    assert_eq!(found["user"], user.name.as_str());
    assert!(text(&found["data"]).contains("\"kept\":1"));
    assert_eq!(site.row(&cookie), None);
}
