//! A small shop on axum: accounts, a cart, and the list of the places where a user is logged in.
//!
//! ```sh
//! cargo run --example webapp
//! cargo run --example webapp --features redis,postgres -- --cache redis://127.0.0.1/ --db postgres://postgres@127.0.0.1/shop
//! ```
//!
//! Start it twice over the same Redis and Postgres, on two addresses, and log out in one: the other knows at once. It does so
//! with `--cache near+redis://127.0.0.1/` (feature `near`), too, which answers from the memory of the process.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it explains itself to its user")]

mod site;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use session_cached_db::tower::SessionCookie;
use session_cached_db::{CachedDb, cache_backends, db_backends};
use tokio::net::TcpListener;

use site::{Accounts, Store};

const USAGE: &str = "\
Usage: webapp [--listen ADDRESS] [--cache URL] [--db URL] [--accounts URL] [--behind-tls]

  --listen ADDRESS  where to listen (127.0.0.1:3000)
  --cache URL       moka://, redis://.., near+redis://.., memcache://.. (moka://)
  --db URL          sqlite://.., postgres://.., mysql://.. (sqlite://webapp.db)
  --accounts URL    a SQLite database for names and passwords (sqlite://webapp-accounts.db)
  --behind-tls      a proxy in front speaks TLS: use the cookie for that";

struct Options {
    listen: SocketAddr,
    cache: String,
    db: String,
    accounts: String,
    is_behind_tls: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let accounts = Accounts::open(&options.accounts).await?;
    let store = store(options).await?;
    let cookie = SessionCookie::default().plain_http(!options.is_behind_tls);
    let site = site::router(store.clone(), accounts, cookie)?;

    let listener = TcpListener::bind(options.listen).await?;
    println!("Open http://{}/ in a browser. Ctrl+C ends it.", listener.local_addr()?);
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    axum::serve(listener, site).with_graceful_shutdown(interrupted).await?;
    store.close().await; // waits for writes in flight
    Ok(())
}

async fn store(options: &Options) -> Result<Store, Box<dyn Error>> {
    let is_embedded = options.cache.starts_with("moka:") && options.db.starts_with("sqlite:");
    let cache = cache_backends::connect(&options.cache)?;
    let db = db_backends::connect(&options.db).await?;
    let store = CachedDb::builder(cache, db)
        // The precision of "last used" in the list of sessions.
        .touch_interval(Duration::from_secs(60))
        // A user who keeps coming back must still log in again after this time.
        .absolute_timeout(Duration::from_secs(90 * 24 * 60 * 60));
    // Without servers, this program is the only one that uses the table.
    let store = if is_embedded { store.sole_process() } else { store };
    Ok(store.build().await?)
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            cache: "moka://".to_owned(),
            db: "sqlite://webapp.db".to_owned(),
            accounts: "sqlite://webapp-accounts.db".to_owned(),
            is_behind_tls: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--listen" => {
                    options.listen = value()?.parse().map_err(|error| format!("--listen: {error}"))?;
                }
                "--cache" => options.cache = value()?,
                "--db" => options.db = value()?,
                "--accounts" => options.accounts = value()?,
                "--behind-tls" => options.is_behind_tls = true,
                other => return Err(format!("unknown argument {other}")),
            }
        }
        Ok(options)
    }
}
