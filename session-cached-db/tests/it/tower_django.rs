//! The cookie of a session in a Django site's table, which has no column for the time of the last use.

use std::sync::Arc;
use std::time::Duration;

use session_cached_db::db_backends::sqlx::sqlite::SqlitePoolOptions;
use session_cached_db::db_backends::sqlx::{AssertSqlSafe, Executor as _, SqlitePool};
use session_cached_db::django::{DjangoCodec, DjangoSqlite, SecretKeys};
use session_cached_db::tower::{SessionHandle, SessionLayer};
use session_cached_db::{CachedDb, Error, Expiry, MokaCache, NoCache, SqlitePersistence};
use session_core::{Cache, Persistence, Runtime as _, Timestamp};

use crate::common::{DAY, HOUR, ManualRuntime};
use crate::tower::{Answer, ask, site};

/// The age of sessions that choose none, at the site and here.
const SESSION_AGE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

async fn pool() -> SqlitePool {
    let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.unwrap();
    let table = DjangoSqlite::over(SqlitePersistence::from_pool(pool.clone()));
    let schema = table.schema_sql();
    pool.execute(AssertSqlSafe(schema)).await.unwrap();
    pool
}

async fn store<C: Cache>(cache: C, pool: &SqlitePool, runtime: &ManualRuntime) -> CachedDb<C, DjangoSqlite> {
    let clock = runtime.clone();
    let codec = DjangoCodec::new(&SecretKeys::new("the site's SECRET_KEY").unwrap());
    CachedDb::builder(cache, DjangoSqlite::over(SqlitePersistence::from_pool(pool.clone())))
        .codec(codec.with_clock(move || clock.now()))
        .runtime(runtime.clone())
        .sole_process()
        .reaper(None)
        .build()
        .await
        .unwrap()
}

async fn read(session: SessionHandle) -> Result<String, Error> {
    Ok(session.lock().await?.get::<i32>("visits")?.unwrap_or(0).to_string())
}

/// Returns the instant until which the client keeps the cookie that `answer` sets, if it sets one.
fn kept_until(answer: &Answer, now: Timestamp) -> Option<Timestamp> {
    let parts = answer.set_cookie()?;
    let age = parts.iter().find_map(|part| part.strip_prefix("Max-Age=")).expect("it has an age");
    Some(now + Duration::from_secs(age.parse().unwrap()))
}

/// A user comes back after each pause, and the session lives for `lifetime` after each use.
async fn comes_back<C: Cache>(cache: C, lifetime: Duration, pause: Duration) {
    let (runtime, pool) = (ManualRuntime::new(), pool().await);
    let store = store(cache, &pool, &runtime).await;
    let begin = async move |session: SessionHandle| -> Result<(), Error> {
        let mut session = session.lock().await?;
        session.set_expiry(Expiry::After(lifetime));
        session.insert("visits", 1)
    };
    let first = ask(&site(SessionLayer::new(store.clone()), begin), None).await;
    let mut until = kept_until(&first, runtime.now()).unwrap();
    let cookie = first.cookie();
    let page = site(SessionLayer::new(store.clone()), read);
    let key = *store.open(cookie.split_once('=').unwrap().1).await.unwrap().stored_key().unwrap();
    let last = runtime.now() + 3 * lifetime;
    while runtime.now() < last {
        runtime.advance(pause);
        let now = runtime.now();
        assert!(now < until, "the cookie of a user who comes back every {pause:?} has ended");
        let answer = ask(&page, Some(&cookie)).await;
        assert_eq!(answer.body, "1", "the session of a user who comes back every {pause:?} has ended");
        until = kept_until(&answer, now).unwrap_or(until);
        let table = DjangoSqlite::over(SqlitePersistence::from_pool(pool.clone()));
        let ends = table.load(&key, now).await.unwrap().unwrap().expires_at();
        // As the layer says: earlier by the touch interval at most, which is shorter than an hour.
        assert!(until + HOUR >= ends, "the cookie ends at {until:?}, and its session at {ends:?}");
    }
}

#[tokio::test]
async fn cookie_of_a_django_session_lives_as_long_as_its_own_expiry() {
    for lifetime in [30 * DAY, 15 * DAY, SESSION_AGE, 4 * DAY] {
        for pause in [17 * HOUR, 3 * DAY, lifetime - HOUR] {
            comes_back(NoCache, lifetime, pause).await;
            comes_back(MokaCache::builder().build(), lifetime, pause).await;
        }
    }
}

/// A session that has lived for longer than the site's own age without being prolonged is not prolonged sooner for it.
#[tokio::test]
async fn django_session_with_a_long_expiry_ends_when_it_is_not_used() {
    let (runtime, pool) = (ManualRuntime::new(), pool().await);
    let store = Arc::new(store(NoCache, &pool, &runtime).await);
    let mut session = store.new_session();
    session.set_expiry(Expiry::After(30 * DAY));
    session.insert("visits", 1).unwrap();
    session.save().await.unwrap();
    let key = session.key().unwrap().expose().to_owned();
    runtime.advance(30 * DAY - HOUR);
    assert!(store.open(&key).await.unwrap().key().is_some());
    runtime.advance(HOUR);
    assert!(store.open(&key).await.unwrap().key().is_none());
}
