//! The rows of the table, and how an application uses them.

use bytes::Bytes;
use session_cached_db::{BuildError, Schema};
use session_core::{
    Expiry, JsonCodec, Persistence as _, PersistenceError, Record, RecordWrite, SchemaProblem,
};

use crate::common::{
    Call, Fault, HOUR, MINUTE, ManualRuntime, Moment, SECOND, START, TestCache, World, each_database,
    in_memory, map, values_of,
};

#[tokio::test]
async fn row_is_found_by_the_stored_key_in_a_list() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_subject("user-42").unwrap();
        session.save().await.unwrap();
        let [listed] = &world.store.list_by_subject("user-42").await.unwrap()[..] else { panic!() };
        assert_eq!(Some(&listed.key), session.stored_key());
        let record = world.store.load(&listed.key).await.unwrap().unwrap();
        assert_eq!(listed.times, Some((&*record).into()));
        assert_eq!(world.store.data(&listed.key).await.unwrap().unwrap().get("x"), Some("1"));
    })
    .await;
}

#[tokio::test]
async fn record_can_decode_its_own_data() {
    each_database(async |world| {
        let session = world.saved([("x", 1)]).await;
        let key = session.stored_key().unwrap();
        let record = world.store.load(key).await.unwrap().unwrap();
        assert_eq!(record.data(key, &JsonCodec::default()).unwrap().get("x"), Some("1"));
    })
    .await;
}

#[tokio::test]
async fn row_changed_behind_the_store_is_seen_when_its_entry_has_expired() {
    each_database(async |world| {
        let session = world.saved([("y", 1)]).await;
        let key = session.stored_key().unwrap();
        let changed = Record::new(Bytes::from_static(b"1{\"y\":2}"), START, START + HOUR);
        world.db.sqlite.update(key, RecordWrite::new(&changed), START).await.unwrap();
        world.runtime.advance(5 * MINUTE - SECOND);
        assert_eq!(values_of(&world.reopen(&session).await), map([("y", 1)]));
        world.runtime.advance(SECOND);
        assert_eq!(values_of(&world.reopen(&session).await), map([("y", 2)]));
    })
    .await;
}

#[tokio::test]
async fn clear_expired_removes_only_expired_sessions() {
    each_database(async |world| {
        let mut one = world.store.new_session();
        one.insert("foo", 1).unwrap();
        one.set_expiry(Expiry::After(HOUR));
        one.save().await.unwrap();
        let mut other = world.store.new_session();
        other.insert("foo", 2).unwrap();
        other.set_expiry(Expiry::At(START - HOUR));
        other.save().await.unwrap();
        assert_eq!(world.store.clear_expired().await.unwrap(), 1);
        assert_eq!(world.store.clear_expired().await.unwrap(), 0);
        assert!(!world.db.sqlite.delete(other.stored_key().unwrap()).await.unwrap());
        assert_eq!(values_of(&world.reopen(&one).await), map([("foo", 1)]));
    })
    .await;
}

#[tokio::test]
async fn subject_of_a_session_can_be_searched_and_cleared() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_subject("1").unwrap();
        session.save().await.unwrap();
        assert_eq!(world.store.list_by_subject("1").await.unwrap().len(), 1);
        let mut session = world.reopen(&session).await;
        assert_eq!(session.subject(), Some("1"));
        session.clear_subject();
        session.save().await.unwrap();
        assert!(world.store.list_by_subject("1").await.unwrap().is_empty());
        assert_eq!(world.reopen(&session).await.subject(), None);
    })
    .await;
}

#[tokio::test]
async fn write_refused_by_the_database_leaves_the_cache_in_agreement() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.insert("x", 99).unwrap();
        world.db.calls.fail(Call::Update, Moment::Before, Fault::Refused);
        assert!(session.save().await.is_err());
        let key = session.stored_key().unwrap();
        assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
        assert_eq!(world.in_database(key).await, Some(map([("x", 1)])));
    })
    .await;
}

#[tokio::test]
async fn building_a_store_makes_the_table_unless_schema_says_otherwise() {
    let build = async |schema| {
        let (cache, db) = (TestCache::new(), in_memory().await);
        let builder = session_cached_db::CachedDb::builder(cache, db.clone()).runtime(ManualRuntime::new());
        let built = builder.reaper(None).schema(schema).build().await;
        (built, db)
    };
    let (built, db) = build(Schema::Migrate).await;
    built.unwrap();
    db.sqlite.check_schema().await.unwrap();

    let (built, _) = build(Schema::Check).await;
    let error = built.unwrap_err();
    assert!(matches!(error, BuildError::Schema(SchemaProblem::Missing { .. })), "{error}");
    assert!(error.to_string().contains("migrate"), "{error}");

    let (built, db) = build(Schema::Trust).await;
    built.unwrap();
    // The only call is the one that reads the database's clock.
    assert_eq!(db.calls.total(), db.calls.count(Call::Now));
    let missing = db.sqlite.check_schema().await;
    assert!(matches!(missing, Err(PersistenceError::Schema(SchemaProblem::Missing { .. }))));
}

#[tokio::test]
async fn build_fails_when_the_database_does_not_answer() {
    let (cache, db) = (TestCache::new(), in_memory().await);
    db.calls.fail(Call::Migrate, Moment::Before, Fault::Unreachable);
    let builder = session_cached_db::CachedDb::builder(cache, db).runtime(ManualRuntime::new());
    assert!(matches!(builder.build().await, Err(BuildError::Database(PersistenceError::Unavailable(_)))));
}

#[tokio::test]
async fn ping_reports_whether_the_database_answers() {
    let world = World::new().await;
    world.store.ping().await.unwrap();
    assert_eq!(world.db.calls.count(Call::Load), 1);
    world.db.calls.fail(Call::Load, Moment::Before, Fault::Unreachable);
    assert!(world.store.ping().await.unwrap_err().is_retryable());
}

#[tokio::test]
async fn read_that_hangs_ends_at_the_read_timeout() {
    let world = World::new().await;
    let session = world.saved([("x", 1)]).await;
    let key = *session.stored_key().unwrap();
    world.cache.plant(&key, None).await;
    for call in [Call::Load, Call::List] {
        world.db.calls.fail(call, Moment::Before, Fault::Hangs);
        let store = world.store.clone();
        let reading = tokio::spawn(async move {
            match call {
                Call::Load => store.load(&key).await.map(drop),
                _ => store.list_by_subject("user-42").await.map(drop),
            }
        });
        world.runtime.sleeping(|asked| asked == 5 * SECOND).await;
        world.runtime.advance(5 * SECOND);
        let error = reading.await.unwrap().unwrap_err();
        assert!(error.is_retryable(), "{error}");
    }
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
}
