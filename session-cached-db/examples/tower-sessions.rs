//! A site with the middleware of tower-sessions, which counts the visits of each browser.
//!
//! ```sh
//! cargo run --example tower-sessions --features moka,sqlite,tower-sessions
//! ```

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;

use axum::{Router, http::StatusCode, routing::get};
use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
use tower_sessions::{Session, SessionManagerLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
    let db = SqlitePersistence::connect("sqlite://sessions.db").await?;
    let store = CachedDb::builder(cache, db).sole_process().build().await?;

    let sessions = SessionManagerLayer::new(store.clone()).with_name("__Host-session");
    let app = Router::new().route("/", get(visit)).layer(sessions);
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    store.close().await;
    Ok(())
}

async fn visit(session: Session) -> Result<String, StatusCode> {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let visits: u32 = session.get("visits").await.map_err(failed)?.unwrap_or(0) + 1;
    session.insert("visits", visits).await.map_err(failed)?;
    Ok(format!("visit number {visits}"))
}
