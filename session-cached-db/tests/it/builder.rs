//! Settings with which a store can be built, and settings that are refused.

use std::time::Duration;

use session_cached_db::{BuildError, Builder, CachedDb, MokaCache, Reaper, SqlitePersistence};
use session_core::{
    Cache, CacheProperties, Expiry, KeyForm, Persistence, PersistenceProperties, Scope, Timestamp,
};

use crate::common::{
    Call, DAY, Fault, HOUR, MINUTE, ManualRuntime, SECOND, StoreBuilder, TestCache, TestDb, World, in_memory,
    key_of, map, values_of,
};

async fn build_over(
    cache: TestCache,
    db: TestDb,
    configure: impl FnOnce(StoreBuilder) -> StoreBuilder,
) -> Result<(), BuildError> {
    let builder = CachedDb::builder(cache, db.clone()).sole_process().reaper(None);
    let built = configure(builder.runtime(ManualRuntime::new())).build().await;
    if built.is_err() {
        assert_eq!(db.calls.total(), 0, "refused only after the database was touched");
    }
    built.map(drop)
}

async fn build(configure: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Result<(), BuildError> {
    build_over(TestCache::new(), in_memory().await, configure).await
}

/// Asserts that the build was refused with an error that names `culprit`.
fn refused(result: Result<(), BuildError>, culprit: &str) {
    match result {
        Err(BuildError::Invalid(text)) => assert!(text.contains(culprit), "{culprit} in: {text}"),
        other => panic!("{culprit}: {other:?}"),
    }
}

#[tokio::test]
async fn touch_interval_as_long_as_the_idle_timeout_is_refused() {
    refused(build(|builder| builder.touch_interval(14 * DAY)).await, "touch_interval");
    refused(build(|builder| builder.idle_timeout(MINUTE).touch_interval(MINUTE)).await, "touch_interval");
    build(|builder| builder.idle_timeout(MINUTE).touch_interval(MINUTE - SECOND)).await.unwrap();
    build(|builder| builder.idle_timeout(SECOND)).await.unwrap();
    build(|builder| builder.touch_interval(Duration::ZERO)).await.unwrap();
}

#[tokio::test]
async fn session_timeouts_of_zero_are_refused() {
    refused(build(|builder| builder.idle_timeout(Duration::ZERO)).await, "idle_timeout");
    refused(build(|builder| builder.absolute_timeout(Duration::ZERO)).await, "absolute_timeout");
}

#[tokio::test]
async fn payload_limit_beyond_the_databases_is_refused() {
    let db = in_memory().await;
    let limit = db.sqlite.properties().max_payload_bytes;
    refused(build(|builder| builder.max_payload_bytes(limit + 1)).await, "max_payload_bytes");
    build(|builder| builder.max_payload_bytes(limit)).await.unwrap();
    // The default fits every database.
    let small = db.with_properties(PersistenceProperties::new(1_000));
    build_over(TestCache::new(), small, |builder| builder).await.unwrap();
}

#[tokio::test]
async fn malformed_key_prefix_is_refused() {
    for prefix in ["with space", "sl/ash", "ünicode", "quote'", "new\nline", &"p".repeat(22)] {
        refused(build(|builder| builder.key_prefix(prefix)).await, "key_prefix");
    }
    for prefix in ["", "shop:", "a.b_c-d:9", &"p".repeat(21)] {
        build(|builder| builder.key_prefix(prefix)).await.unwrap();
    }
}

/// Returns a database whose keys have this form and length.
async fn keys(form: KeyForm, longest: usize) -> TestDb {
    let properties = PersistenceProperties::new(1 << 20).with_keys(form, longest);
    in_memory().await.with_properties(properties)
}

#[tokio::test]
async fn keys_too_long_for_the_database_are_refused() {
    let over = async |form, longest, prefix| {
        build_over(TestCache::new(), keys(form, longest).await, |builder| builder.key_prefix(prefix)).await
    };
    refused(over(KeyForm::Hashed, 42, "").await, "43");
    over(KeyForm::Hashed, 43, "").await.unwrap();
    refused(over(KeyForm::Hashed, 47, "shop:").await, "key_prefix");
    over(KeyForm::Hashed, 48, "shop:").await.unwrap();
    refused(over(KeyForm::Plain, 64, "shop:").await, "key_prefix");
    refused(over(KeyForm::Plain, 31, "").await, "32");
    over(KeyForm::Plain, 32, "").await.unwrap();
}

#[tokio::test]
async fn plain_key_database_stores_the_keys_themselves_up_to_its_length() {
    let world = World::over(TestCache::new(), keys(KeyForm::Plain, 40).await, None, |builder| builder).await;
    let session = world.saved([("x", 1)]).await;
    assert_eq!(session.stored_key().unwrap().as_str(), key_of(&session));
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    world.forget_calls();
    assert!(world.store.open(&"k".repeat(41)).await.unwrap().key().is_none());
    assert_eq!(world.calls(), 0);
}

#[tokio::test]
async fn durations_of_zero_are_refused() {
    let zero = Duration::ZERO;
    refused(build(|builder| builder.lease_ttl(zero)).await, "lease_ttl");
    refused(build(|builder| builder.fence_ttl(zero)).await, "fence_ttl");
    refused(build(|builder| builder.max_cache_age(zero)).await, "max_cache_age");
    refused(build(|builder| builder.cache_timeout(zero)).await, "cache_timeout");
    refused(build(|builder| builder.read_timeout(zero)).await, "read_timeout");
    refused(build(|builder| builder.write_timeout(zero)).await, "write_timeout");
    refused(build(|builder| builder.probe_interval(zero)).await, "probe_interval");
    build(|builder| builder.clock_slack(zero)).await.unwrap();
}

#[tokio::test]
async fn durations_finer_than_the_caches_granularity_are_refused() {
    let coarse = CacheProperties::new(Scope::Shared).with_ttl_granularity(SECOND);
    let over = async |configure: fn(StoreBuilder) -> StoreBuilder| {
        build_over(TestCache::new().with_properties(coarse), in_memory().await, configure).await
    };
    let short = |builder: StoreBuilder| builder.max_cache_age(Duration::from_millis(999));
    refused(over(short).await, "granularity");
    refused(over(|builder| builder.lease_ttl(Duration::from_millis(500))).await, "granularity");
    over(|builder| builder.max_cache_age(SECOND).lease_ttl(SECOND)).await.unwrap();
}

#[tokio::test]
async fn fence_ttl_that_a_statement_can_outlive_is_refused() {
    // The fence must outlive the write's 10 s and the time for which a statement can go on without its
    // caller.
    let db = async || {
        let properties = PersistenceProperties::new(1 << 20).with_statement_bound(15 * SECOND);
        in_memory().await.with_properties(properties)
    };
    let over = async |configure: fn(StoreBuilder) -> StoreBuilder| {
        build_over(TestCache::new(), db().await, configure).await
    };
    // 10 s for the write, 15 s for the database, and 100 ms until the cache has confirmed the fence.
    refused(over(|builder| builder.fence_ttl(25 * SECOND)).await, "25.1s");
    over(|builder| builder.fence_ttl(26 * SECOND)).await.unwrap();
    refused(over(|builder| builder.write_timeout(16 * SECOND)).await, "fence_ttl");
    over(|builder| builder.write_timeout(16 * SECOND).fence_ttl(32 * SECOND)).await.unwrap();
}

#[tokio::test]
async fn reaper_without_a_batch_or_an_interval_is_refused() {
    refused(build(|builder| builder.reaper(Reaper::default().with_batch(0))).await, "batch");
    refused(
        build(|builder| builder.reaper(Reaper::default().with_interval(Duration::ZERO))).await,
        "interval",
    );
    build(|builder| builder.reaper(Reaper::default().with_pause(Duration::ZERO))).await.unwrap();
}

#[tokio::test]
async fn breaker_that_is_always_open_is_refused() {
    refused(build(|builder| builder.breaker_threshold(0)).await, "breaker_threshold");
}

#[tokio::test]
async fn longest_durations_do_not_panic() {
    let max = Duration::MAX;
    let world = World::with(|builder| {
        let builder = builder.idle_timeout(max).absolute_timeout(max).touch_interval(HOUR).max_cache_age(max);
        let builder = builder.lease_ttl(max).fence_ttl(max).clock_slack(max).cache_timeout(max);
        let builder = builder.read_timeout(max).write_timeout(max).probe_interval(max);
        builder.reaper(Reaper::default().with_interval(max).with_pause(max))
    })
    .await;
    let mut session = world.saved([("x", 1)]).await;
    session.set_expiry(Expiry::After(max));
    session.save().await.unwrap();
    world.runtime.advance(HOUR);
    session.touch().await.unwrap();
    session.cycle_key().await.unwrap();
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    assert_eq!(world.store.clear_expired().await.unwrap(), 0);
    world.store.close().await;
}

#[test]
fn store_outside_of_a_runtime_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (cache, db) = (TestCache::new(), runtime.block_on(in_memory()));
    let building = CachedDb::builder(cache, db.clone()).build();
    let built = futures_util::FutureExt::now_or_never(building).unwrap();
    assert!(matches!(built, Err(BuildError::NoRuntime)));
    assert_eq!(db.calls.count(Call::Migrate), 0);
}

#[tokio::test]
async fn store_and_its_builder_can_be_shown() {
    let world = World::new().await;
    assert!(format!("{:?}", world.builder()).contains("idle_timeout"));
    assert!(format!("{:?}", world.store).contains("CachedDb"));
}

/// Sets every duration to `time`.
fn all_of<C: Cache, P: Persistence>(builder: Builder<C, P>, time: Duration) -> Builder<C, P> {
    builder
        .idle_timeout(time)
        .absolute_timeout(time)
        .max_cache_age(time)
        .lease_ttl(time)
        .fence_ttl(Duration::MAX)
        .clock_slack(time)
        .cache_timeout(time)
        .read_timeout(time)
        .write_timeout(time)
        .probe_interval(time)
        .reaper(Reaper::default().with_interval(time).with_pause(time))
}

#[tokio::test]
async fn longest_durations_and_instants_work_everywhere() {
    for time in
        [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_micros(i64::MAX.cast_unsigned())]
    {
        let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
        let builder = CachedDb::builder(MokaCache::builder().build(), db).sole_process();
        let store = all_of(builder, time).build().await.unwrap();
        use_with_every_expiry(&store).await;
        store.close().await;
        let world = World::shared_with(|builder| all_of(builder, time)).await;
        use_with_every_expiry(&world.store).await;
        world.cache.calls.fail_all(Fault::NoAnswer);
        use_with_every_expiry(&world.store).await;
    }
}

async fn use_with_every_expiry<C: Cache, P: Persistence>(store: &CachedDb<C, P>) {
    for expiry in [
        Expiry::After(Duration::MAX),
        Expiry::After(Duration::from_nanos(1)),
        Expiry::After(Duration::ZERO),
        Expiry::At(Timestamp::MIN),
        Expiry::At(Timestamp::MAX),
        Expiry::fixed(Duration::MAX, Timestamp::MAX),
        Expiry::fixed(Duration::MAX, Timestamp::MIN),
        Expiry::BrowserSession,
    ] {
        let mut session = store.new_session();
        session.insert("x", 1).unwrap();
        session.set_expiry(expiry);
        let _ = (
            session.expiry_age(),
            session.expiry_age_from(Timestamp::MIN),
            session.expires_at_from(Timestamp::MAX),
        );
        session.save().await.unwrap();
        for time in [Timestamp::MIN, Timestamp::MAX] {
            let _ = store.touch(session.stored_key().unwrap(), time).await;
        }
        let _ = session.touch().await;
        let _ = session.save().await;
        let _ = store.open(session.key().unwrap().expose()).await.unwrap();
        session.log_out().await.unwrap();
    }
    let _ = store.clear_expired().await;
    let _ = store.ping().await;
}

#[tokio::test]
async fn freshness_bound_of_a_near_cache_is_below_the_write_timeout() {
    let build = async |bound| {
        let cache = TestCache::new().near(bound);
        let builder = CachedDb::builder(cache, in_memory().await).write_timeout(10 * SECOND);
        builder.max_cache_age(MINUTE).build().await
    };
    build(10 * SECOND - Duration::from_millis(1)).await.unwrap();
    let refused = build(10 * SECOND).await.unwrap_err().to_string();
    assert!(refused.contains("below write_timeout, 10s"), "{refused}");
}
