//! A site with logins by axum-login, in the shape of that crate's own example: a form, messages between two
//! pages, a page for users only.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::Query;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Form, Router};
use axum_login::tower_sessions::{Expiry, SessionManagerLayer};
use axum_login::{AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend, UserId, login_required};
use axum_messages::{Messages, MessagesManagerLayer};
use serde::Deserialize;
use time::Duration;
use tower::ServiceExt as _;

use crate::world::{Store, World};

#[derive(Clone, Debug)]
struct User {
    name: String,
    password: String,
}

impl AuthUser for User {
    type Id = String;

    fn id(&self) -> String {
        self.name.clone()
    }

    fn session_auth_hash(&self) -> &[u8] {
        self.password.as_bytes()
    }
}

#[derive(Clone, Deserialize)]
struct Credentials {
    name: String,
    password: String,
    next: Option<String>,
}

/// The users and their passwords.
#[derive(Clone)]
struct Users(Arc<Mutex<BTreeMap<String, String>>>);

impl Users {
    fn new() -> Self {
        let users = [("ferris", "hunter42"), ("gopher", "hunter43")];
        let users = users.map(|(name, password)| (name.to_owned(), password.to_owned()));
        Self(Arc::new(Mutex::new(BTreeMap::from(users))))
    }

    fn set_password(&self, name: &str, password: &str) {
        self.0.lock().unwrap().insert(name.to_owned(), password.to_owned());
    }

    fn find(&self, name: &str) -> Option<User> {
        let password = self.0.lock().unwrap().get(name).cloned();
        password.map(|password| User { name: name.to_owned(), password })
    }
}

impl AuthnBackend for Users {
    type User = User;
    type Credentials = Credentials;
    type Error = Infallible;

    async fn authenticate(&self, credentials: Credentials) -> Result<Option<User>, Infallible> {
        Ok(self.find(&credentials.name).filter(|user| user.password == credentials.password))
    }

    async fn get_user(&self, id: &UserId<Self>) -> Result<Option<User>, Infallible> {
        Ok(self.find(id))
    }
}

#[derive(Deserialize)]
struct Next {
    next: Option<String>,
}

async fn show_login(messages: Messages, Query(Next { next }): Query<Next>) -> String {
    let messages: Vec<_> = messages.into_iter().map(|message| message.message).collect();
    format!("log in; next={}; {}", next.unwrap_or_default(), messages.join(", "))
}

async fn log_in(
    mut auth: AuthSession<Users>,
    messages: Messages,
    Form(credentials): Form<Credentials>,
) -> Response {
    let next = credentials.next.clone().unwrap_or_else(|| "/".to_owned());
    match auth.authenticate(credentials).await {
        Ok(Some(user)) => match auth.login(&user).await {
            Ok(()) => Redirect::to(&next).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
        _ => {
            messages.error("wrong name or password");
            Redirect::to("/login").into_response()
        }
    }
}

async fn log_out(mut auth: AuthSession<Users>) -> Response {
    match auth.logout().await {
        Ok(_) => Redirect::to("/login").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn greet(auth: AuthSession<Users>) -> String {
    format!("hello {}", auth.user.unwrap().name)
}

fn site(store: &Store, users: &Users) -> Router {
    let sessions =
        SessionManagerLayer::new(store.clone()).with_expiry(Expiry::OnInactivity(Duration::days(1)));
    Router::new()
        .route("/", get(greet))
        .route_layer(login_required!(Users, login_url = "/login"))
        .route("/login", get(show_login).post(log_in))
        .route("/logout", get(log_out))
        .layer(MessagesManagerLayer)
        .layer(AuthManagerLayerBuilder::new(users.clone(), sessions).build())
}

/// A browser: it keeps the cookie.
#[derive(Default)]
struct Browser {
    cookie: Option<String>,
}

#[derive(Debug)]
struct Page {
    status: StatusCode,
    body: String,
    location: Option<String>,
}

impl Browser {
    async fn send(&mut self, site: &Router, mut request: Request<Body>) -> Page {
        if let Some(cookie) = &self.cookie {
            request.headers_mut().insert(header::COOKIE, cookie.parse().unwrap());
        }
        let response = site.clone().oneshot(request).await.unwrap();
        let text = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        if let Some(line) = text(header::SET_COOKIE) {
            let cookie = line.split(';').next().unwrap().to_owned();
            self.cookie = Some(cookie).filter(|_| !line.contains("Max-Age=0"));
        }
        let (status, location) = (response.status(), text(header::LOCATION));
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        Page { status, body: String::from_utf8(body.into()).unwrap(), location }
    }

    async fn get(&mut self, site: &Router, path: &str) -> Page {
        self.send(site, Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn log_in(&mut self, site: &Router, name: &str, password: &str) -> Page {
        let form = format!("name={name}&password={password}");
        let request =
            Request::post("/login").header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.send(site, request.body(Body::from(form)).unwrap()).await
    }

    /// Returns the name of the user who is logged in, if one is.
    async fn user(&mut self, site: &Router) -> Option<String> {
        let page = self.get(site, "/").await;
        match page.status {
            StatusCode::OK => page.body.strip_prefix("hello ").map(str::to_owned),
            StatusCode::TEMPORARY_REDIRECT => None,
            _ => panic!("{page:?}"),
        }
    }

    fn key(&self) -> String {
        self.cookie.as_ref().unwrap().split_once('=').unwrap().1.to_owned()
    }
}

fn sites(world: &World, users: &Users) -> [Router; 2] {
    [0, 1].map(|node| site(&world.nodes[node], users))
}

pub async fn visitor_is_sent_to_the_login_page(world: &World) {
    let [one, _] = sites(world, &Users::new());
    let mut browser = Browser::default();
    let page = browser.get(&one, "/").await;
    assert_eq!(page.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(page.location.as_deref(), Some("/login?next=%2F"));
    assert_eq!(browser.get(&one, "/login?next=%2F").await.body, "log in; next=/; ");
    assert_eq!(browser.cookie, None);
}

pub async fn wrong_password_leaves_a_message_and_no_login(world: &World) {
    let [one, two] = sites(world, &Users::new());
    let mut browser = Browser::default();
    let page = browser.log_in(&one, "ferris", "bogus").await;
    assert_eq!(page.location.as_deref(), Some("/login"));
    assert_eq!(browser.get(&two, "/login").await.body, "log in; next=; wrong name or password");
    assert_eq!(browser.get(&one, "/login").await.body, "log in; next=; ");
    assert_eq!(browser.user(&two).await, None);
}

pub async fn login_changes_the_id_and_ends_the_old_one(world: &World) {
    let [one, two] = sites(world, &Users::new());
    let mut browser = Browser::default();
    browser.log_in(&one, "ferris", "bogus").await;
    let planted = browser.cookie.clone();
    let planted_key = browser.key();
    assert!(world.has_row(&planted_key).await);
    let page = browser.log_in(&one, "ferris", "hunter42").await;
    assert_eq!((page.status, page.location.as_deref()), (StatusCode::SEE_OTHER, Some("/")));
    assert_ne!(browser.cookie, planted);
    for site in [&one, &two] {
        assert_eq!(browser.user(site).await.as_deref(), Some("ferris"));
        assert_eq!(Browser { cookie: planted.clone() }.user(site).await, None);
    }
    assert!(!world.has_row(&planted_key).await);
}

pub async fn logout_on_one_node_is_final_on_the_other(world: &World) {
    let [one, two] = sites(world, &Users::new());
    let mut browser = Browser::default();
    browser.log_in(&one, "ferris", "hunter42").await;
    let mut copy = Browser { cookie: browser.cookie.clone() };
    assert_eq!(copy.user(&two).await.as_deref(), Some("ferris"));
    assert_eq!(browser.get(&two, "/logout").await.location.as_deref(), Some("/login"));
    assert_eq!(browser.cookie, None);
    for site in [&one, &two] {
        assert_eq!(Browser { cookie: copy.cookie.clone() }.user(site).await, None);
    }
    assert!(!world.has_row(&copy.key()).await);
}

pub async fn two_users_have_sessions_of_their_own(world: &World) {
    let [one, two] = sites(world, &Users::new());
    let (mut ferris, mut gopher) = (Browser::default(), Browser::default());
    ferris.log_in(&one, "ferris", "hunter42").await;
    gopher.log_in(&two, "gopher", "hunter43").await;
    assert_eq!(ferris.user(&two).await.as_deref(), Some("ferris"));
    assert_eq!(gopher.user(&one).await.as_deref(), Some("gopher"));
    ferris.get(&two, "/logout").await;
    assert_eq!(ferris.user(&one).await, None);
    assert_eq!(gopher.user(&one).await.as_deref(), Some("gopher"));
    // Another user logs in with the same browser.
    gopher.log_in(&one, "ferris", "hunter42").await;
    assert_eq!(gopher.user(&two).await.as_deref(), Some("ferris"));
}

pub async fn changed_password_ends_the_session(world: &World) {
    let users = Users::new();
    let [one, two] = sites(world, &users);
    let mut browser = Browser::default();
    browser.log_in(&one, "ferris", "hunter42").await;
    let key = browser.key();
    users.set_password("ferris", "another");
    assert_eq!(browser.user(&two).await, None);
    assert!(!world.has_row(&key).await);
    assert_eq!(browser.user(&one).await, None);
}

pub async fn dead_database_logs_no_one_in_or_out(world: &World) {
    let [one, two] = sites(world, &Users::new());
    let mut ferris = Browser::default();
    ferris.log_in(&one, "ferris", "hunter42").await;
    assert_eq!(ferris.user(&two).await.as_deref(), Some("ferris"));
    let cookie = ferris.cookie.clone();
    world.close_databases().await;

    // The cache has the session.
    assert_eq!(ferris.user(&one).await.as_deref(), Some("ferris"));
    assert_eq!(ferris.get(&one, "/logout").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(ferris.cookie, cookie, "the client must be able to log out later");
    let mut gopher = Browser::default();
    assert_eq!(gopher.log_in(&two, "gopher", "hunter43").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(gopher.cookie, None);
    // An id that no cache has.
    let mut unknown = Browser { cookie: Some("id=AAAAAAAAAAAAAAAAAAAAAA".to_owned()) };
    assert_eq!(unknown.get(&one, "/").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(unknown.cookie.is_some());
}

pub async fn unreadable_session_is_an_error_and_its_cookie_stays(world: &World) {
    let [one, _] = sites(world, &Users::new());
    let mut ferris = Browser::default();
    ferris.log_in(&one, "ferris", "hunter42").await;
    let cookie = ferris.cookie.clone();
    world.corrupt(&ferris.key()).await;
    assert_eq!(ferris.get(&one, "/").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(ferris.cookie, cookie, "another node may be able to read it");
    assert!(world.has_row(&ferris.key()).await);
}
