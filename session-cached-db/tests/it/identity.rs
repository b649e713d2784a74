//! The identity of stores that share a table or a cache: by key prefix, table and name. And wrong clocks.

use std::time::Duration;

use db_backends::sqlx::query;
use db_backends::sqlx::sqlite::SqlitePoolOptions;
use session_cached_db::{CacheHealth, CachedDb, Error, MokaCache, Reaper, Session, SqlitePersistence};
use session_core::{Expiry, Persistence as _};

use crate::common::{
    Call, Fault, HOUR, Log, MINUTE, SECOND, Store, TestCache, TestDb, World, in_memory, key_of, until,
};

async fn with_prefix(world: &World, prefix: &str) -> Store {
    world.builder().key_prefix(prefix).build().await.unwrap()
}

async fn log_in(store: &Store, subject: &str) -> Session {
    let mut session = store.new_session();
    session.set_subject(subject).unwrap();
    session.insert("secret", 1).unwrap();
    session.save().await.unwrap();
    session
}

#[tokio::test]
async fn applications_with_own_prefixes_do_not_touch_each_others_sessions() {
    let world = World::shared().await;
    let (shop, blog) = (with_prefix(&world, "shop:").await, with_prefix(&world, "blog:").await);
    let in_shop = log_in(&shop, "user-42").await;
    let in_blog = log_in(&blog, "user-42").await;
    let listed = shop.list_by_subject("user-42").await.unwrap();
    assert_eq!(
        listed.iter().map(|session| session.key).collect::<Vec<_>>(),
        [*in_shop.stored_key().unwrap()]
    );

    assert_eq!(shop.reseal(None, 10).await.unwrap().seen, 1);
    assert_eq!(shop.hash_plain_keys(None, 10).await.unwrap().seen, 1);
    assert_eq!(shop.revoke_subject("user-42").await.unwrap().value, 1);
    assert!(in_blog.exists().await.unwrap());
    assert!(!in_shop.exists().await.unwrap());
    // A store without a prefix is another application.
    assert_eq!(world.store.list_by_subject("user-42").await.unwrap(), []);
    assert_eq!(world.store.revoke_subject("user-42").await.unwrap().value, 0);
    assert!(in_blog.exists().await.unwrap());
}

#[tokio::test]
async fn subject_limit_counts_only_sessions_of_its_own_application() {
    let world = World::shared().await;
    let limited = |prefix: &'static str| {
        let builder = world.builder().key_prefix(prefix).max_sessions_per_subject(1);
        async { builder.build().await.unwrap() }
    };
    let (shop, blog) = (limited("shop:").await, limited("blog:").await);
    let in_shop = log_in(&shop, "user-42").await;
    let in_blog = log_in(&blog, "user-42").await;
    assert!(in_shop.exists().await.unwrap() && in_blog.exists().await.unwrap());
}

#[tokio::test]
async fn stores_on_one_cache_do_not_open_each_others_sessions() {
    let cache = MokaCache::builder().build();
    let store = async || {
        let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
        CachedDb::builder(cache.clone(), db).sole_process().build().await.unwrap()
    };
    let (one, other) = (store().await, store().await);
    let mut session = one.new_session();
    session.insert("secret", 1).unwrap();
    session.save().await.unwrap();
    let key = key_of(&session);
    assert!(one.open(&key).await.unwrap().key().is_some());
    assert!(other.open(&key).await.unwrap().key().is_none());
    assert!(!other.exists(session.stored_key().unwrap()).await.unwrap());
    assert!(!other.revoke(session.stored_key().unwrap()).await.unwrap().value);
    assert!(one.open(&key).await.unwrap().key().is_some());
}

#[tokio::test]
async fn stores_of_other_tables_or_names_share_a_cache_but_no_session() {
    let cache =
        TestCache::new().with_properties(session_core::CacheProperties::new(session_core::Scope::Shared));
    let world = World::over(cache.clone(), in_memory().await, None, |builder| builder).await;
    let session = world.saved([("secret", 1)]).await;
    // Add a store with another database behind the same cache.
    let mut stores = Vec::new();
    for name in ["another name", "sessions"] {
        let db = in_memory().await;
        let db = if name == "sessions" {
            let properties = db.sqlite.properties().with_table_id(7);
            db.with_properties(properties)
        } else {
            db
        };
        let builder =
            CachedDb::builder(cache.clone(), db).reaper(None::<Reaper>).runtime(world.runtime.clone());
        stores.push(builder.name(name).build().await.unwrap());
    }
    for store in stores {
        assert!(store.open(&key_of(&session)).await.unwrap().key().is_none());
    }
    // A store of the same identity on another node shares the value.
    world.forget_calls();
    assert!(world.node().await.open(&key_of(&session)).await.unwrap().key().is_some());
    assert_eq!(world.db.calls.count(Call::Load), 0);
}

#[tokio::test]
async fn node_with_a_wrong_clock_deletes_nothing_and_reports_it() {
    for (is_ahead, difference) in [(true, HOUR), (true, 3 * SECOND), (false, HOUR)] {
        let world = World::shared().await;
        let log = Log::listen();
        let mut session = world.saved([("x", 1)]).await;
        session.set_expiry(Expiry::After(MINUTE));
        session.save().await.unwrap();
        // The database's clock stays as it is.
        let now = world.runtime.now_plus(Duration::ZERO);
        if is_ahead {
            world.db.set_clock(now);
            world.runtime.jump(difference);
        } else {
            world.db.set_clock(now + difference);
        }
        let error = world.store.clear_expired().await.unwrap_err();
        assert!(matches!(error, Error::ClockSkew { by } if by == difference), "{error}");
        assert_eq!(world.db.calls.count(Call::DeleteExpired), 0);
        assert_eq!(world.store.stats().clock_skews, 1);
        assert_eq!(log.events("clock_skew").len(), 1);
        assert_eq!(world.store.ping().await.unwrap().clock_skew, Some(difference));
        // Building another node warns.
        world.node().await;
        assert_eq!(log.events("clock_skew").len(), 2);
        // A difference within the slack does not count.
        world.db.set_clock(world.runtime.now_plus(2 * SECOND));
        world.store.clear_expired().await.unwrap();
        assert_eq!(world.store.ping().await.unwrap().clock_skew, None);
        assert_eq!(world.db.calls.count(Call::DeleteExpired), 1);
    }
}

#[tokio::test]
async fn reaper_skips_its_rounds_while_the_clock_is_wrong() {
    let world = World::shared().await;
    let log = Log::listen();
    let now = world.runtime.now_plus(Duration::ZERO);
    world.db.set_clock(now);
    let reaping = world.builder().reaper(Reaper::default().with_interval(MINUTE)).build().await.unwrap();
    let is_interval = |asked| asked >= MINUTE * 3 / 4 && asked <= MINUTE * 5 / 4;
    let pause = world.runtime.sleeping(is_interval).await;
    world.runtime.advance(pause);
    until(|| !log.events("clock_skew").is_empty()).await;
    assert_eq!(world.db.calls.count(Call::DeleteExpired), 0);
    // By the next round, the clock is right.
    let pause = world.runtime.sleeping(is_interval).await;
    world.db.set_clock(world.runtime.now_plus(pause));
    world.runtime.advance(pause);
    until(|| world.db.calls.count(Call::DeleteExpired) == 1).await;
    drop(reaping);
}

#[tokio::test]
async fn unreadable_row_is_listed_and_ended_like_the_others() {
    let options = SqlitePoolOptions::new().max_connections(1);
    let pool = options.connect("sqlite::memory:").await.unwrap();
    let db = TestDb::new(SqlitePersistence::from_pool(pool.clone()));
    let world = World::over(TestCache::new(), db, None, |builder| builder).await;
    let (_good, bad) = (log_in(&world.store, "user-42").await, log_in(&world.store, "user-42").await);
    // Make the payload larger than any payload may be.
    let damage = "UPDATE sessions SET payload = zeroblob(15 * 1024 * 1024 + 1) WHERE key = ?";
    let key = *bad.stored_key().unwrap();
    query(damage).bind(key.as_str()).execute(&pool).await.unwrap();

    let log = Log::listen();
    assert_eq!(world.store.list_by_subject("user-42").await.unwrap().len(), 2);
    let swept = world.store.reseal(None, 10).await.unwrap();
    assert_eq!((swept.seen, swept.unreadable), (2, vec![key]));
    assert_eq!(log.events("row_unreadable").len(), 1);
    assert_eq!(world.store.hash_plain_keys(None, 10).await.unwrap().unreadable, [key]);
    assert_eq!(world.store.revoke_subject("user-42").await.unwrap().value, 2);
    assert_eq!(world.store.list_by_subject("user-42").await.unwrap(), []);
}

#[tokio::test]
async fn ping_reports_a_cache_with_one_server_down() {
    let world = World::with_servers(3, |builder| builder.breaker_threshold(1)).await;
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Up);
    let session = world.saved([("x", 1)]).await;
    world.cache.kill_server_of(session.stored_key().unwrap());
    world.reopen(&session).await;
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Partial);
    world.cache.calls.fail_all(Fault::Unreachable);
    for _ in 0..50 {
        world.saved([("x", 1)]).await;
    }
    assert_eq!(world.store.ping().await.unwrap().cache, CacheHealth::Down);
}

#[tokio::test]
async fn accepting_plain_keys_does_not_accept_another_applications_hashes() {
    // Plain keys could begin with this prefix.
    let world = World::shared().await;
    let shop = world.builder().key_prefix("shop-").build().await.unwrap();
    let blog = world.builder().name("blog").accept_plain_keys().max_sessions_per_subject(1);
    let blog = blog.build().await.unwrap();
    let in_shop = log_in(&shop, "user-42").await;
    assert_eq!(blog.list_by_subject("user-42").await.unwrap(), []);
    assert_eq!(blog.revoke_subject("user-42").await.unwrap().value, 0);
    assert_eq!(blog.hash_plain_keys(None, 100).await.unwrap().written, 0);
    world.runtime.advance(MINUTE);
    log_in(&blog, "user-42").await;
    assert!(shop.open(&key_of(&in_shop)).await.unwrap().key().is_some());
    // A client that has read the table cannot open the session either.
    let stored = in_shop.stored_key().unwrap().as_str();
    assert!(blog.open(stored).await.unwrap().key().is_none());
}

#[tokio::test]
async fn prefix_that_begins_another_prefix_owns_none_of_its_sessions() {
    let world = World::shared().await;
    let (app, app2) = (with_prefix(&world, "app").await, with_prefix(&world, "app2").await);
    let mut of_app = Vec::new();
    for _ in 0..500 {
        of_app.push(log_in(&app, "user-42").await);
    }
    let in_app2 = log_in(&app2, "user-42").await;
    let looks_like_app2 = |session: &&Session| session.stored_key().unwrap().as_str().starts_with("app2");
    assert!(of_app.iter().filter(looks_like_app2).count() > 0, "the test needs more sessions");
    assert_eq!(app2.list_by_subject("user-42").await.unwrap().len(), 1);
    assert_eq!(app.list_by_subject("user-42").await.unwrap().len(), 500);
    assert_eq!(app2.reseal(None, 1_000).await.unwrap().seen, 1);
    assert_eq!(app2.revoke_subject("user-42").await.unwrap().value, 1);
    assert!(!in_app2.exists().await.unwrap());
    assert_eq!(app.revoke_subject("user-42").await.unwrap().value, 500);
}
