//! A site with the logins of axum-login. The user is ferris, with the password hunter42.
//!
//! ```sh
//! cargo run --example axum-login --features moka,sqlite,tower-sessions-0_14
//! ```

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::convert::Infallible;
use std::error::Error;

use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::{Form, Router, http::StatusCode, routing::get};
use axum_login::tower_sessions::{Expiry, SessionManagerLayer};
use axum_login::{AuthManagerLayerBuilder, AuthUser, AuthnBackend, login_required};
use serde::Deserialize;
use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
use time::Duration;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
    let db = SqlitePersistence::connect("sqlite://sessions.db").await?;
    let store = CachedDb::builder(cache, db).sole_process().build().await?;

    let sessions = SessionManagerLayer::new(store.clone())
        .with_name("__Host-session")
        .with_expiry(Expiry::OnInactivity(Duration::days(1)));
    let app = Router::new()
        .route("/", get(greet))
        .route_layer(login_required!(Users, login_url = "/login"))
        .route("/login", get(Html(FORM)).post(log_in))
        .route("/logout", get(log_out))
        .layer(AuthManagerLayerBuilder::new(Users, sessions).build());
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    store.close().await;
    Ok(())
}

const FORM: &str = r#"<form method="post">
<input name="name" autocomplete="username"> <input name="password" type="password"> <button>Log in</button>
</form>"#;

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

    /// Returns what ends the user's sessions when it changes.
    fn session_auth_hash(&self) -> &[u8] {
        self.password.as_bytes()
    }
}

#[derive(Clone, Deserialize)]
struct Credentials {
    name: String,
    password: String,
}

/// The users. In a real program they are in a database, with hashes of their passwords.
#[derive(Clone)]
struct Users;

impl AuthnBackend for Users {
    type User = User;
    type Credentials = Credentials;
    type Error = Infallible;

    async fn authenticate(&self, credentials: Credentials) -> Result<Option<User>, Infallible> {
        let user = self.get_user(&credentials.name).await?;
        Ok(user.filter(|user| user.password == credentials.password))
    }

    async fn get_user(&self, name: &String) -> Result<Option<User>, Infallible> {
        let user = || User { name: name.clone(), password: "hunter42".to_owned() };
        Ok((name == "ferris").then(user))
    }
}

type AuthSession = axum_login::AuthSession<Users>;

async fn greet(auth: AuthSession) -> String {
    format!("hello {}", auth.user.map(|user| user.name).unwrap_or_default())
}

async fn log_in(mut auth: AuthSession, Form(credentials): Form<Credentials>) -> Response {
    let Ok(Some(user)) = auth.authenticate(credentials).await else {
        return Redirect::to("/login").into_response();
    };
    match auth.login(&user).await {
        Ok(()) => Redirect::to("/").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn log_out(mut auth: AuthSession) -> Response {
    match auth.logout().await {
        Ok(_) => Redirect::to("/login").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
