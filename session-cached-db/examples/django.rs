//! A Rust service beside a Django site: it knows which user is logged in there, counts visits in the same
//! session, and can log the user out of both.
//!
//! ```sh
//! export DJANGO_SECRET_KEY='the SECRET_KEY of the site'
//! cargo run --example django --features django,sqlite -- sqlite://db.sqlite3 COOKIE [logout]
//! ```
//!
//! `COOKIE` is what a browser holds as `sessionid` for the site.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it explains itself to its user")]

use std::error::Error;
use std::process::ExitCode;

use session_cached_db::db_backends::sqlx::{Row as _, SqlitePool, query};
use session_cached_db::django::{DjangoCodec, DjangoLogin, DjangoSqlite, SecretKeys, VerifiedBy};
use session_cached_db::{CachedDb, NoCache, Session, SqlitePersistence};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(cookie)) = (arguments.next(), arguments.next()) else {
        return Err("usage: django sqlite://DATABASE COOKIE [logout]".into());
    };

    // Without the site's key, no payload and no login can be trusted.
    let keys = SecretKeys::from_env("DJANGO_SECRET_KEY")?;
    // The program's own pool, which also serves to look up users.
    let users = SqlitePool::connect(&url).await?;
    let table = DjangoSqlite::over(SqlitePersistence::from_pool(users.clone()));
    // No cache, because the site writes to the table, too.
    let store = CachedDb::builder(NoCache, table).codec(DjangoCodec::new(&keys)).build().await?;

    let mut session = store.open(&cookie).await?;
    match user(&mut session, &keys, &users).await? {
        Some(name) => println!("{name} is logged in."),
        None => println!("No user is logged in."),
    }

    if arguments.next().as_deref() == Some("logout") {
        session.flush().await?;
        println!("Logged out, here and at the site.");
    } else if session.key().is_some() {
        let visits = session.modify("visits_to_rust", |visits: &mut u32| {
            *visits += 1;
            *visits
        })?;
        session.save().await?;
        println!("Visit number {visits}; the site finds the number in request.session.");
        if let Some(key) = session.key().filter(|key| key.expose() != cookie) {
            println!("Set the cookie to {} from now on.", key.expose());
        }
    }
    store.close().await;
    Ok(())
}

/// Returns the name of the user who is logged in, after checking the login against the database.
async fn user(
    session: &mut Session,
    keys: &SecretKeys,
    users: &SqlitePool,
) -> Result<Option<String>, Box<dyn Error>> {
    let Some(login) = DjangoLogin::of(session) else { return Ok(None) };
    let row = query("SELECT username, password FROM auth_user WHERE id = ? AND is_active")
        .bind(login.user_id().parse::<i64>()?)
        .fetch_optional(users)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let password: String = row.try_get("password")?;
    match login.verify(keys, &password) {
        Some(VerifiedBy::SecretKey) => {}
        Some(VerifiedBy::Fallback) => drop(login.renew(session, keys, &password).await?),
        None => {
            // The password was changed since the login.
            session.flush().await?;
            return Ok(None);
        }
    }
    Ok(Some(row.try_get("username")?))
}
