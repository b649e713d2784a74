//! The parts that the programs with our stores and with others' have in common. Shared with
//! `../vs-tower-sessions`.
//!
//! Both serve the same pages, which do the same work:
//!
//! | page | work |
//! |---|---|
//! | `GET /plain` | uses no session |
//! | `POST /fill` | makes a session of ten keys and about 1 KB |
//! | `GET /read` | reads a key |
//! | `POST /write` | changes a key |
//! | `POST /log_in` | makes a session of a user, with a key of its own |
//! | `POST /log_out` | ends it |
//!
//! A page that needs a session, and finds none, answers 404.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use actix_session::storage::SessionStore;
use actix_session::{Session, SessionMiddleware};
use actix_web::error::{ErrorInternalServerError, ErrorNotFound};
use actix_web::{App, HttpServer, cookie, web};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, get};

/// The key that is read and changed.
pub(crate) const FIELD: &str = "field-3";

/// A free port of this machine.
const ADDRESS: (&str, u16) = ("127.0.0.1", 0);

/// The answer of a page of axum.
pub(crate) type Answer<T = &'static str> = Result<T, StatusCode>;

/// Returns a value that differs at every call.
pub(crate) fn value() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:08}{}", COUNT.fetch_add(1, Ordering::Relaxed), "x".repeat(80))
}

/// Returns the ten keys and values of a new session.
pub(crate) fn fields() -> impl Iterator<Item = (String, String)> {
    (0..10).map(|field| (format!("field-{field}"), value()))
}

/// Returns the id of a user that logs in.
pub(crate) fn user() -> String {
    value()[..8].to_owned()
}

pub(crate) async fn plain() -> &'static str {
    "plain"
}

/// Prints the error, and answers 500.
pub(crate) fn failed(error: impl Display) -> StatusCode {
    eprintln!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Returns the URL of a server.
pub(crate) fn url(name: &str) -> String {
    let variable = format!("CONFORMANCE_{}_URL", name.to_uppercase());
    std::env::var(&variable).unwrap_or_else(|_| panic!("{variable} is not set"))
}

/// Returns the pages of axum, without a layer.
pub(crate) fn router(
    fill: MethodRouter,
    read: MethodRouter,
    write: MethodRouter,
    log_in: MethodRouter,
    log_out: MethodRouter,
) -> Router {
    Router::new()
        .route("/plain", get(plain))
        .route("/fill", fill)
        .route("/read", read)
        .route("/write", write)
        .route("/log_in", log_in)
        .route("/log_out", log_out)
}

/// Serves the pages until the program that started this one closes its end of the input.
pub(crate) async fn serve_axum(app: Router) {
    let listener = tokio::net::TcpListener::bind(ADDRESS).await.unwrap();
    announce(listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}

/// Serves the pages with actix-session until the program that started this one closes its end of the input.
pub(crate) async fn serve_actix<S: SessionStore + 'static>(store: impl Fn() -> S + Clone + Send + 'static) {
    let key = cookie::Key::generate();
    let app = move || {
        let sessions = SessionMiddleware::new(store(), key.clone());
        App::new()
            .wrap(sessions)
            .route("/plain", web::get().to(plain))
            .route("/fill", web::post().to(fill))
            .route("/read", web::get().to(read))
            .route("/write", web::post().to(write))
            .route("/log_in", web::post().to(log_in))
            .route("/log_out", web::post().to(log_out))
    };
    let server = HttpServer::new(app).bind(ADDRESS).unwrap();
    announce(server.addrs()[0]);
    server.run().await.unwrap();
}

fn announce(address: SocketAddr) {
    println!("{address}");
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

async fn fill(session: Session) -> actix_web::Result<&'static str> {
    for (key, value) in fields() {
        session.insert(key, value).map_err(ErrorInternalServerError)?;
    }
    Ok("filled")
}

async fn read(session: Session) -> actix_web::Result<String> {
    found(&session, FIELD)
}

async fn write(session: Session) -> actix_web::Result<&'static str> {
    found(&session, FIELD)?;
    session.insert(FIELD, value()).map_err(ErrorInternalServerError)?;
    Ok("written")
}

async fn log_in(session: Session) -> actix_web::Result<&'static str> {
    session.insert("user", user()).map_err(ErrorInternalServerError)?;
    session.renew();
    Ok("logged in")
}

async fn log_out(session: Session) -> actix_web::Result<&'static str> {
    found(&session, "user")?;
    session.purge();
    Ok("logged out")
}

fn found(session: &Session, key: &str) -> actix_web::Result<String> {
    let value = session.get(key).map_err(ErrorInternalServerError)?;
    value.ok_or_else(|| ErrorNotFound("there is no such session"))
}
