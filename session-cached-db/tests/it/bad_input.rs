//! Bad input: the answer is a clear typed error or a new session. Nothing is lost, half-written or revealed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use db_backends::sqlx::SqlitePool;
use db_backends::sqlx::sqlite::SqlitePoolOptions;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use session_cached_db::{CachedDb, Error, Session, SqlitePersistence};
use session_core::{
    Entry, Expiry, ExpiryWrite, Outcome, Persistence as _, PersistenceError, Record, RecordWrite,
    SessionData, SessionKey, Stamp, StoredKey, Subject, Value,
};

use crate::common::{
    Call, Fault, HOUR, Log, Moment, START, TestCache, TestDb, World, each_database, each_database_with,
    key_of, map, values_of,
};

/// Text that is not a key.
fn malformed_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "",
        "1",
        "1234567",
        "../../../etc/passwd",
        "..\\..\\..\\boot.ini",
        "/etc/passwd",
        "%2e%2e%2fetc%2fpasswd",
        "with a space",
        "abcdefgh\0",
        "abcdefgh\r\nSet-Cookie: a=b",
        "' OR '1'='1' --",
        "\"; DROP TABLE sessions; --",
        "abcdefgh;ijklmnop",
        "abcdefgh.ijklmnop",
        "abcdefgh:ijklmnop",
        "zürich-key",
        "аbcdefgh", // Cyrillic а
        "ａｂｃｄｅｆｇｈ",
        "🦊🦊🦊🦊🦊🦊🦊🦊",
        "\u{202e}abcdefgh",
    ]
    .map(str::to_owned)
    .into();
    keys.extend([65, 500, 1_240, 10_000_000].map(|len| "a".repeat(len)));
    keys
}

#[tokio::test]
async fn malformed_key_opens_a_new_session_without_io() {
    each_database(async |world| {
        for key in malformed_keys() {
            assert!(SessionKey::parse(&key).is_err());
            let session = world.store.open(&key).await.unwrap();
            assert!(session.key().is_none() && session.is_empty());
        }
        assert_eq!(world.calls(), 0);
    })
    .await;
}

#[tokio::test]
async fn session_of_a_malformed_key_is_saved_under_a_generated_key() {
    each_database(async |world| {
        for key in malformed_keys() {
            let mut session = world.store.open(&key).await.unwrap();
            session.insert("x", 1).unwrap();
            session.save().await.unwrap();
            assert_ne!(key_of(&session), key);
            assert_eq!(key_of(&session).len(), 32);
            assert!(world.store.open(&key).await.unwrap().key().is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn unknown_or_expired_key_opens_a_new_session() {
    each_database(async |world| {
        let mut session = world.saved([("x", 1)]).await;
        session.set_expiry(Expiry::After(HOUR));
        session.save().await.unwrap();
        world.runtime.advance(HOUR);
        for key in [key_of(&session), "unknown-but-well-formed".to_owned()] {
            let mut opened = world.store.open(&key).await.unwrap();
            assert!(opened.key().is_none() && opened.is_empty());
            opened.save().await.unwrap();
            assert_ne!(key_of(&opened), key);
        }
    })
    .await;
}

/// Returns a text for which the payload `{"x":"aa…"}` has this many bytes. It is eight bytes longer than the
/// text, plus the byte of the format.
fn of_size(bytes: usize) -> String {
    "a".repeat(bytes - 9)
}

#[tokio::test]
async fn payload_over_the_limit_is_refused_without_io() {
    each_database_with(
        |builder| builder.max_payload_bytes(1_000),
        async |world| {
            let refused = |result: Result<_, Error>| {
                let error = result.map(|_| ()).unwrap_err();
                assert!(matches!(error, Error::TooLarge { actual: 1_001, limit: 1_000 }), "{error}");
                assert!(error.to_string().contains("max_payload_bytes"), "{error}");
                assert_eq!(error.outcome(), Outcome::NotApplied);
                assert!(!error.is_retryable());
            };
            let mut new = world.store.new_session();
            new.insert("x", of_size(1_001)).unwrap();
            refused(new.save().await);
            assert!(new.key().is_none());
            assert_eq!(world.calls(), 0);

            let mut session = world.saved([("kept", 1)]).await;
            let before = values_of(&session);
            world.forget_calls();
            session.remove("kept");
            session.insert("x", of_size(1_001)).unwrap();
            refused(session.save().await);
            refused(session.cycle_key().await);
            refused(session.create().await);
            assert_eq!(world.calls(), 0);
            assert_eq!(values_of(&world.reopen(&session).await), before);

            // One byte less fits.
            session.insert("x", of_size(1_000)).unwrap();
            session.save().await.unwrap();
            let stored = world.store.load(session.stored_key().unwrap()).await.unwrap().unwrap();
            assert_eq!(stored.payload().len(), 1_000);
        },
    )
    .await;
}

#[tokio::test]
async fn record_over_the_limit_is_refused() {
    let world = World::with(|builder| builder.max_payload_bytes(10)).await;
    let (store, key) = (&world.store, StoredKey::parse("some-key").unwrap());
    let record = || Record::new("1{\"x\":1234}".into(), START, START + HOUR);
    let extend = ExpiryWrite::Extend;
    assert!(matches!(store.create(&key, record()).await, Err(Error::TooLarge { .. })));
    assert!(matches!(store.update(&key, record(), None, extend).await, Err(Error::TooLarge { .. })));
    assert!(matches!(store.rename(&key, &key, record(), None, extend).await, Err(Error::TooLarge { .. })));
    assert_eq!(world.calls(), 0);
}

struct Unserialisable;

impl Serialize for Unserialisable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("this cannot be written"))
    }
}

#[tokio::test]
async fn value_that_does_not_serialise_changes_nothing() {
    let world = World::new().await;
    let saved = world.saved([("x", 1)]).await;
    let mut session = world.reopen(&saved).await;
    let refused = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Serialize { key, .. } if key == "x"), "{error}");
        assert!(error.to_string().contains("\"x\""), "{error}");
    };
    refused(session.insert("x", Unserialisable));
    refused(session.insert("x", HashMap::from([((1, 2), 3)])));
    refused(session.update([("x", Unserialisable)]));
    assert!(!session.modified());
    assert_eq!(values_of(&session), map([("x", 1)]));
}

#[tokio::test]
async fn value_of_another_type_stays_and_the_error_names_both_types() {
    each_database(async |world| {
        let mut session = world.store.new_session();
        session.insert("name", "s3cret-value").unwrap();
        session.save().await.unwrap();
        let mut session = world.reopen(&session).await;
        let refused = |error: Error| {
            assert!(
                matches!(&error, Error::Deserialize { key, wanted: "u32", .. } if key == "name"),
                "{error}"
            );
            let text = format!("{error} {error:?}");
            assert!(text.contains("name") && text.contains("u32") && !text.contains("s3cret"), "{text}");
        };
        refused(session.get::<u32>("name").unwrap_err());
        refused(session.pop::<u32>("name").unwrap_err());
        refused(session.get_or_insert_with("name", || 1_u32).unwrap_err());
        refused(session.modify("name", |_: &mut u32| panic!("no number to change")).unwrap_err());
        assert!(!session.modified());
        assert_eq!(session.get::<String>("name").unwrap().as_deref(), Some("s3cret-value"));
    })
    .await;
}

/// JSON has no such numbers: they would be stored as `null`, and could not be read again.
#[tokio::test]
async fn numbers_that_json_does_not_have_are_refused() {
    #[derive(Serialize)]
    enum Shape {
        Circle { radius: f32 },
        Point(f64, Option<f64>),
    }
    each_database(async |world| {
        let mut session = world.store.new_session();
        let refused = |result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::Serialize { ref key, .. }) if key == "x"), "{result:?}");
        };
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refused(session.insert("x", number));
            refused(session.insert("x", [Some(number), None]));
            refused(session.insert("x", BTreeMap::from([("key", ((), number))])));
            refused(session.insert("x", Shape::Point(0.0, Some(number))));
            refused(session.insert("x", Shape::Circle { radius: f32::NAN }));
            refused(session.update([("kept", 1.0), ("x", number)]));
            refused(session.modify("x", move |x: &mut f64| *x = number));
            refused(session.get_or_insert_with("x", || number).map(drop));
            assert!(session.is_empty());
        }
        session.insert("x", (None::<f64>, (), "null", Some(1.5), Shape::Point(1.0, None))).unwrap();
        session.insert("null", BTreeMap::from([("null", None::<Vec<u8>>)])).unwrap();
        assert_eq!(session.get_raw("x"), Some(r#"[null,null,"null",1.5,{"Point":[1.0,null]}]"#));
    })
    .await;
}

#[tokio::test]
async fn deep_nesting_and_odd_keys_do_not_panic() {
    each_database(async |world| {
        let nested = |depth: usize| {
            let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            RawValue::from_string(text).unwrap()
        };
        let mut session = world.store.new_session();
        session.insert("deep", nested(SessionData::MAX_DEPTH)).unwrap();
        for depth in [SessionData::MAX_DEPTH + 1, 200, 50_000] {
            let refused = |result: Result<(), Error>| {
                let Err(Error::TooDeep { key, limit: SessionData::MAX_DEPTH }) = result else { panic!() };
                assert_eq!(key, "deeper");
            };
            let value = nested(depth);
            refused(session.insert("deeper", &value));
            refused(session.update([("kept", &nested(1)), ("deeper", &value)]));
            refused(session.get_or_insert_with("deeper", || value.clone()).map(drop));
            refused(
                session.modify("deeper", move |old: &mut Option<Box<RawValue>>| *old = Some(value.clone())),
            );
            assert!(!session.contains("deeper") && !session.contains("kept"));
        }
        for key in ["", "\0", "\u{7f}\u{2028}", "\"\\", "🦊", &"k".repeat(10_000)] {
            session.insert(key, 1).unwrap();
        }
        session.save().await.unwrap();
        world.cache.plant(session.stored_key().unwrap(), None).await;
        let reopened = world.reopen(&session).await;
        assert_eq!(reopened.len(), 7);
        assert!(reopened.get::<serde_json::Value>("deep").unwrap().is_some());
        assert_eq!(reopened.get("🦊").unwrap(), Some(1));
    })
    .await;
}

/// Returns a world, and a pool on its database for the test.
async fn with_sql() -> (World, SqlitePool) {
    let world = World::in_file_with(|builder| builder).await;
    let file = world.directory.as_ref().unwrap().path().join("sessions.db");
    let pool = SqlitePool::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    (world, pool)
}

async fn run(pool: &SqlitePool, sql: &'static str) {
    db_backends::sqlx::query(sql).execute(pool).await.unwrap();
}

#[tokio::test]
async fn corrupt_row_is_an_error_and_is_logged_and_kept() {
    let (world, pool) = with_sql().await;
    let session = world.saved([("x", 1)]).await;
    let key = session.stored_key().unwrap();
    // No version of this crate writes an empty subject.
    run(&pool, "UPDATE sessions SET subject = ''").await;
    world.cache.plant(key, None).await;
    let log = Log::listen();
    let error = world.unreadable(&session).await;
    assert!(matches!(&error, Error::Database(source) if matches!(**source, PersistenceError::CorruptRow(_))));
    assert_eq!(log.events("row_unreadable").len(), 1);
    let error = world.store.load(key).await.unwrap_err();
    let Error::Database(source) = &error else { panic!("{error}") };
    assert!(matches!(**source, PersistenceError::CorruptRow(_)));
    assert!(error.to_string().contains("left alone"), "{error}");
    assert!(!error.is_retryable());
    assert_eq!(world.cache.peek(key).await, None);
    run(&pool, "UPDATE sessions SET subject = NULL WHERE subject = ''").await;
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
}

#[tokio::test]
async fn locked_database_is_a_retryable_error() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("sessions.db").display());
    let impatient = SqlitePersistence::builder().busy_timeout(Duration::from_millis(1)).connect(&url).await;
    let db = TestDb::new(impatient.unwrap());
    let world = World::over(TestCache::new(), db, Some(directory), |builder| builder).await;
    let mut session = world.saved([("x", 1)]).await;
    session.insert("x", 2).unwrap();

    let pool = SqlitePool::connect(&url).await.unwrap();
    let lock = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = session.save().await.unwrap_err();
    let Error::Database(source) = &error else { panic!("{error}") };
    assert!(matches!(**source, PersistenceError::Busy(_)), "{error}");
    assert!(error.is_retryable() && error.outcome() == Outcome::NotApplied);
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    lock.rollback().await.unwrap();
    session.save().await.unwrap();
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
}

#[tokio::test]
async fn read_only_database_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("sessions.db").display());
    let store = |url: String| async move {
        let db = SqlitePersistence::connect(&url).await.unwrap();
        CachedDb::builder(TestCache::new(), db).sole_process().reaper(None).build().await.unwrap()
    };
    let writer = store(url.clone()).await;
    let mut session = writer.new_session();
    session.insert("x", 1).unwrap();
    session.save().await.unwrap();
    let reader = store(format!("{url}?mode=ro")).await;
    let mut opened = reader.open(&key_of(&session)).await.unwrap();
    assert_eq!(values_of(&opened), map([("x", 1)]));
    opened.insert("x", 2).unwrap();
    let error = opened.save().await.unwrap_err();
    let Error::Database(source) = &error else { panic!("{error}") };
    assert!(matches!(**source, PersistenceError::Refused(_)), "{error}");
    assert!(!error.is_retryable() && error.outcome() == Outcome::NotApplied);
    assert_eq!(values_of(&reader.open(&key_of(&session)).await.unwrap()), map([("x", 1)]));
}

#[tokio::test]
async fn full_disk_loses_no_stored_session() {
    let options = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let pool = options.connect("sqlite::memory:").await.unwrap();
    let db = TestDb::new(SqlitePersistence::from_pool(pool.clone()));
    let world = World::over(TestCache::new(), db, None, |builder| builder).await;
    let mut session = world.saved([("x", 1)]).await;
    run(&pool, "PRAGMA max_page_count = 20").await;
    session.insert("large", "x".repeat(1 << 20).as_str().get(..500_000).unwrap()).unwrap();
    let error = session.save().await.unwrap_err();
    let Error::Database(source) = &error else { panic!("{error}") };
    assert!(matches!(**source, PersistenceError::Refused(_)), "{error}");
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 1)]));
    session.remove("large");
    session.insert("x", 2).unwrap();
    session.save().await.unwrap();
    assert_eq!(values_of(&world.reopen(&session).await), map([("x", 2)]));
}

#[tokio::test]
async fn bad_url_or_table_name_is_named_by_an_error_without_password() {
    for url in ["", "sessions.db", "postgres://user:pa55word@host/db", "sqlite", "http://user:pa55word@host"]
    {
        let error = SqlitePersistence::connect(url).await.unwrap_err();
        assert!(matches!(error, PersistenceError::Config(_)), "{url}: {error}");
        assert!(!format!("{error} {error:?}").contains("pa55word"), "{error}");
    }
    for table in ["", "1st", "a b", "sessions; DROP TABLE users", "\"", &"t".repeat(100)] {
        let error = SqlitePersistence::builder().table(table).connect("sqlite::memory:").await.unwrap_err();
        assert!(matches!(error, PersistenceError::Config(_)), "{table}: {error}");
    }
    let nowhere = SqlitePersistence::connect("sqlite:///no/such/directory/sessions.db").await.unwrap_err();
    assert!(!nowhere.to_string().is_empty());
}

const NAME: &str = "s3cret-name";
const VALUE: &str = "s3cret-value";
const USER: &str = "s3cret-user";
const MALFORMED: &str = "s3cretkey of a client";

fn shown<T: std::fmt::Debug>(result: &Result<T, Error>) -> String {
    let error = result.as_ref().err().map(ToString::to_string);
    format!("{result:?} {error:?}")
}

/// Makes requests of a client with secrets, some of which fail. Returns the output of `Debug` and the errors,
/// and the client's keys.
async fn secretive_requests(world: &World) -> (Vec<String>, [String; 2]) {
    let store = &world.store;
    let mut said = Vec::new();
    let mut session = store.new_session();
    session.insert(NAME, VALUE).unwrap();
    session.set_subject(USER).unwrap();
    session.save().await.unwrap();
    let (key, stored_key) = (session.key().unwrap().clone(), *session.stored_key().unwrap());

    let record = store.load(&stored_key).await.unwrap().unwrap();
    let entry = Entry::value(
        Stamp(std::num::NonZeroU64::MIN),
        Value { record, made_at: START, store: session_core::StoreId(1) },
    );
    said.push(format!("{session:?} {key:?} {stored_key:?} {store:?} {entry:?}"));
    said.push(format!("{:?} {:?}", Subject::parse(USER), SessionKey::parse(MALFORMED)));
    said.push(shown(&store.list_by_subject(USER).await));
    let wrong_type = session.get::<u32>(NAME).unwrap_err();
    // The error itself names the key of the value, for which the program asked.
    said.push(format!("{:?}", std::error::Error::source(&wrong_type)));
    store.open(MALFORMED).await.unwrap();

    for fault in [Fault::Unreachable, Fault::NoAnswer, Fault::Refused] {
        for call in [Call::Update, Call::Insert] {
            world.db.calls.fail(call, Moment::Before, fault);
            let mut session = store.open(key.expose()).await.unwrap();
            session.insert(NAME, VALUE).unwrap();
            let failed = if call == Call::Update { session.save().await } else { session.create().await };
            assert!(failed.is_err());
            said.push(shown(&failed));
        }
        world.cache.calls.fail_all(fault);
        let mut session = store.open(key.expose()).await.unwrap();
        said.push(shown(&session.save().await));
        world.cache.calls.heal();
    }

    let garbage = Record::new(format!("1{{\"{NAME}\":{VALUE}").into(), START, START + HOUR);
    world.db.sqlite.update(&stored_key, RecordWrite::new(&garbage), START).await.unwrap();
    world.cache.plant(&stored_key, None).await;
    said.push(shown(&store.load(&stored_key).await));
    said.push(shown(&session.save().await));
    store.revoke_subject(USER).await.unwrap();
    store.revoke(&stored_key).await.unwrap();
    said.push(shown(&session.save().await));
    store.clear_expired().await.unwrap();
    (said, [key.expose().to_owned(), stored_key.as_str().to_owned()])
}

#[tokio::test]
async fn secrets_are_absent_from_debug_errors_and_logs() {
    // Listen to all threads, because the database has one of its own.
    let log = Log::listen_everywhere();
    for world in [World::shared().await, World::in_file_with(|builder| builder).await] {
        let (said, keys) = secretive_requests(&world).await;
        for secret in keys.iter().map(String::as_str).chain([NAME, VALUE, USER, MALFORMED]) {
            for text in said.iter().chain(&log.lines()) {
                assert!(!text.contains(secret), "{secret} in: {text}");
            }
        }
    }
    for heard in ["payload_unreadable", "cache_error", "degraded_write", "SELECT"] {
        assert!(log.lines().iter().any(|line| line.contains(heard)), "{heard} was not heard");
    }
}

#[tokio::test]
async fn session_key_is_shown_by_expose_only() {
    fn shows_nothing(session: &Session) {
        let text = format!("{session:?}");
        assert!(!text.contains(session.key().unwrap().expose()), "{text}");
        assert!(!text.contains(session.stored_key().unwrap().as_str()), "{text}");
    }
    let world = World::new().await;
    shows_nothing(&world.saved([("x", 1)]).await);
}
