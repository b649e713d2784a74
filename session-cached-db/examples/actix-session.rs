//! A site with the middleware of actix-session, which counts the visits of each browser.
//!
//! ```sh
//! cargo run --example actix-session --features actix-session,moka,sqlite
//! ```

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::error::Error;

use actix_session::{Session, SessionMiddleware};
use actix_web::{App, HttpServer, cookie::Key, error::ErrorInternalServerError, web};
use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Here and not in a worker, so that the connections outlive every worker.
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
    let db = SqlitePersistence::connect("sqlite://sessions.db").await?;
    let store = CachedDb::builder(cache, db).sole_process().build().await?;

    let key = Key::generate(); // store a key of your own, or all cookies end with this process
    let sessions = store.clone();
    let app = move || {
        let sessions = SessionMiddleware::new(sessions.clone(), key.clone());
        App::new().wrap(sessions).route("/", web::get().to(visit))
    };
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let server = HttpServer::new(app).bind(address)?;
    println!("listening on {}", server.addrs().first().ok_or("no address")?);
    server.run().await?;
    store.close().await;
    Ok(())
}

async fn visit(session: Session) -> actix_web::Result<String> {
    let visits = session.get::<u32>("visits").map_err(ErrorInternalServerError)?.unwrap_or(0) + 1;
    session.insert("visits", visits).map_err(ErrorInternalServerError)?;
    Ok(format!("visit number {visits}"))
}
