//! Serves pages with the stores of tower-sessions and actix-session, each as its documentation sets it up.
//! `cargo xtask bench http` starts it, and puts load on it in turn with ours.
//!
//! Usage: `http axum|actix PAIR DIRECTORY`. Prints its address when it is ready. tower-sessions has no store for
//! memcached, and has its MySQL store alone instead. actix-session has stores for Redis and in the cookie: the
//! cookie takes the place of moka+sqlite, and Redis that of the other pairs.

#[path = "../../../http/pages.rs"]
mod pages;

use actix_session::storage::{CookieSessionStore, RedisSessionStore};
use axum::http::StatusCode;
use axum::routing::{get, post};
use pages::{Answer, FIELD, failed, fields, url, user, value};
use tower_sessions::{CachingSessionStore, Session, SessionManagerLayer, SessionStore};
use tower_sessions_moka_store::MokaStore;
use tower_sessions_redis_store::RedisStore;
use tower_sessions_redis_store::fred::prelude::{ClientLike as _, Config, Pool};
use tower_sessions_sqlx_store::sqlx::sqlite::SqliteConnectOptions;
use tower_sessions_sqlx_store::sqlx::{MySqlPool, PgPool, SqlitePool};
use tower_sessions_sqlx_store::{MySqlStore, PostgresStore, SqliteStore};

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [stack, pair, dir] = args.as_slice() else { panic!("usage: http axum|actix PAIR DIRECTORY") };
    match stack.as_str() {
        "actix" => actix_web::rt::System::new().block_on(actix(pair)),
        "axum" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(axum(pair, dir));
        }
        other => panic!("there is no stack {other:?}"),
    }
}

async fn actix(pair: &str) {
    if pair == "moka+sqlite" {
        return pages::serve_actix(CookieSessionStore::default).await;
    }
    let store = RedisSessionStore::new(url("redis")).await.unwrap();
    pages::serve_actix(move || store.clone()).await;
}

async fn axum(pair: &str, dir: &str) {
    match pair {
        "moka+sqlite" => {
            let options =
                SqliteConnectOptions::new().filename(format!("{dir}/theirs.db")).create_if_missing(true);
            let db = SqliteStore::new(SqlitePool::connect_with(options).await.unwrap());
            db.migrate().await.unwrap();
            with(CachingSessionStore::new(MokaStore::new(Some(100_000)), db)).await;
        }
        "redis+postgres" => {
            // The store's own example has six connections.
            let redis = Pool::new(Config::from_url(&url("redis")).unwrap(), None, None, None, 6).unwrap();
            let _connections = redis.connect();
            redis.wait_for_connect().await.unwrap();
            let db = PostgresStore::new(PgPool::connect(&url("postgres")).await.unwrap());
            db.migrate().await.unwrap();
            with(CachingSessionStore::new(RedisStore::new(redis), db)).await;
        }
        "memcached+mysql" => {
            let db = MySqlStore::new(MySqlPool::connect(&url("mysql")).await.unwrap());
            db.migrate().await.unwrap();
            with(db).await;
        }
        other => panic!("there is no pair {other:?}"),
    }
}

async fn with(store: impl SessionStore + Clone) {
    let layer = SessionManagerLayer::new(store).with_secure(false);
    let app = pages::router(post(fill), get(read), post(write), post(log_in), post(log_out)).layer(layer);
    pages::serve_axum(app).await;
}

async fn fill(session: Session) -> Answer {
    for (key, value) in fields() {
        session.insert(&key, value).await.map_err(failed)?;
    }
    Ok("filled")
}

async fn read(session: Session) -> Answer<String> {
    session.get(FIELD).await.map_err(failed)?.ok_or(StatusCode::NOT_FOUND)
}

async fn write(session: Session) -> Answer {
    session.get::<String>(FIELD).await.map_err(failed)?.ok_or(StatusCode::NOT_FOUND)?;
    session.insert(FIELD, value()).await.map_err(failed)?;
    Ok("written")
}

async fn log_in(session: Session) -> Answer {
    session.insert("user", user()).await.map_err(failed)?;
    session.cycle_id().await.map_err(failed)?;
    Ok("logged in")
}

async fn log_out(session: Session) -> Answer {
    session.get::<String>("user").await.map_err(failed)?.ok_or(StatusCode::NOT_FOUND)?;
    session.flush().await.map_err(failed)?;
    Ok("logged out")
}
