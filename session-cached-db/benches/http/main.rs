//! Serves pages with our sessions. `cargo xtask bench http` starts it, beside a program that serves the same
//! pages with the stores of tower-sessions or actix-session, and puts load on both in turn.
//!
//! Usage: `http axum|actix|bare PAIR DIRECTORY`. Prints its address when it is ready. `bare` has no session layer,
//! and serves only the page that uses none. The directory is for SQLite.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a program that is measured, and that may stop when it cannot"
)]

mod pages;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use db_backends::sqlx::{self, Connection as _};
use pages::{Answer, FIELD, failed, fields, plain, url, user, value};
use session_cached_db::session_core::{Cache, SubjectIndex};
use session_cached_db::tower::{SessionCookie, SessionHandle, SessionLayer};
use session_cached_db::{
    CachedDb, MemcachedCache, MokaCache, MySqlPersistence, PostgresPersistence, RedisCache,
    SqlitePersistence, near,
};

const TABLE: &str = "bench_http";
const DROP: &str = "DROP TABLE IF EXISTS bench_http, bench_http_schema, bench_http_rotations";
const PREFIX: &str = "bench-http:";

fn main() {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [stack, pair, dir] = args.as_slice() else { panic!("usage: http axum|actix|bare PAIR DIRECTORY") };
    match stack.as_str() {
        "actix" => actix_web::rt::System::new().block_on(serve(stack, pair, dir)),
        "axum" => runtime().block_on(serve(stack, pair, dir)),
        "bare" => runtime().block_on(pages::serve_axum(Router::new().route("/plain", get(plain)))),
        other => panic!("there is no stack {other:?}"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

async fn serve(stack: &str, pair: &str, dir: &str) {
    match pair {
        "moka+sqlite" => {
            let url = format!("sqlite://{dir}/ours-{stack}.db");
            let db = SqlitePersistence::builder().table(TABLE).connect(&url).await.unwrap();
            with(stack, CachedDb::builder(moka(), db).sole_process().build().await.unwrap()).await;
        }
        "redis+postgres" => {
            with(stack, CachedDb::builder(redis(), postgres().await).build().await.unwrap()).await;
        }
        "near+redis+postgres" => {
            let cache = near(moka(), redis());
            with(stack, CachedDb::builder(cache, postgres().await).build().await.unwrap()).await;
        }
        "memcached+mysql" => {
            let cache = MemcachedCache::builder().url(url("memcached")).key_prefix(PREFIX).build().unwrap();
            with(stack, CachedDb::builder(cache, mysql().await).build().await.unwrap()).await;
        }
        other => panic!("there is no pair {other:?}"),
    }
}

fn moka() -> MokaCache {
    MokaCache::builder().max_bytes(256 << 20).build()
}

fn redis() -> RedisCache {
    RedisCache::builder().url(url("redis")).key_prefix(PREFIX).build().unwrap()
}

/// Connects, without what an earlier run has left.
async fn postgres() -> PostgresPersistence {
    let url = url("postgres");
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::query(DROP).execute(&mut connection).await.unwrap();
    PostgresPersistence::builder().table(TABLE).connect(&url).await.unwrap()
}

/// Connects, without what an earlier run has left.
async fn mysql() -> MySqlPersistence {
    let url = url("mysql");
    let mut connection = sqlx::MySqlConnection::connect(&url).await.unwrap();
    sqlx::query(DROP).execute(&mut connection).await.unwrap();
    MySqlPersistence::builder().table(TABLE).connect(&url).await.unwrap()
}

async fn with<C: Cache + 'static, P: SubjectIndex + 'static>(stack: &str, store: CachedDb<C, P>) {
    if stack == "actix" {
        return pages::serve_actix(move || store.clone()).await;
    }
    let cookie = SessionCookie::default().plain_http(true);
    let layer = SessionLayer::new(store).with_cookie(cookie).unwrap();
    let app = pages::router(post(fill), get(read), post(write), post(log_in), post(log_out)).layer(layer);
    pages::serve_axum(app).await;
}

async fn fill(session: SessionHandle) -> Answer {
    session.lock().await.map_err(failed)?.update(fields()).map_err(failed)?;
    Ok("filled")
}

async fn read(session: SessionHandle) -> Answer<String> {
    let session = session.lock().await.map_err(failed)?;
    session.get(FIELD).map_err(failed)?.ok_or(StatusCode::NOT_FOUND)
}

async fn write(session: SessionHandle) -> Answer {
    let mut session = session.lock().await.map_err(failed)?;
    session.get::<String>(FIELD).map_err(failed)?.ok_or(StatusCode::NOT_FOUND)?;
    session.insert(FIELD, value()).map_err(failed)?;
    Ok("written")
}

async fn log_in(session: SessionHandle) -> Answer {
    session.lock().await.map_err(failed)?.log_in(user().as_str()).await.map_err(failed)?;
    Ok("logged in")
}

async fn log_out(session: SessionHandle) -> Answer {
    let mut session = session.lock().await.map_err(failed)?;
    session.subject().ok_or(StatusCode::NOT_FOUND)?;
    session.log_out().await.map_err(failed)?;
    Ok("logged out")
}
