//! SQLite: what is kept, and which errors bad input gets. conformance-tests holds it to the whole contract.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::future::Future;
use std::pin::pin;
use std::str::FromStr as _;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use db_backends::sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, raw_sql};
use session_core::{
    ExpiryWrite, Outcome, Persistence as _, PersistenceError, Record, Row, Scan as _, SchemaProblem,
    SessionTimes, StoredKey, Subject, SubjectIndex as _, Timestamp,
};
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const LATER: Timestamp = Timestamp::from_secs(1_800_086_400);

fn key(text: &str) -> StoredKey {
    StoredKey::parse(text).unwrap()
}

fn record(payload: impl Into<Vec<u8>>) -> Record {
    Record::new(payload.into().into(), NOW, LATER)
}

fn url(dir: &TempDir) -> String {
    format!("sqlite://{}", dir.path().join("sessions.db").display())
}

/// Returns a database with its table.
async fn database(dir: &TempDir) -> SqlitePersistence {
    let db = SqlitePersistence::connect(&url(dir)).await.unwrap();
    db.migrate().await.unwrap();
    db
}

/// Opens the same file as another program.
async fn other_program(dir: &TempDir) -> SqliteConnection {
    SqliteConnection::connect(&url(dir)).await.unwrap()
}

async fn run(connection: &mut SqliteConnection, sql: &'static str) {
    raw_sql(sql).execute(connection).await.unwrap();
}

async fn payload(db: &SqlitePersistence, name: &str) -> Option<Vec<u8>> {
    db.load(&key(name), NOW).await.unwrap().map(|record| record.payload().to_vec())
}

/// Returns the rows of a page, all of which must be readable.
fn readable<T>(page: Vec<Row<T>>) -> Vec<(StoredKey, T)> {
    page.into_iter().map(|row| (row.key, row.contents.unwrap())).collect()
}

/// Asserts that a row cannot be read, and that the error does not show what is in it.
fn assert_corrupt<T>(row: &Row<T>, damage: &str) {
    let Err(error) = &row.contents else { panic!("{damage}: it was read") };
    assert!(matches!(error, PersistenceError::CorruptRow(_)), "{damage}: {error:?}");
    assert!(!format!("{error} {error:?}").contains("secret"), "{damage}: {error:?}");
}

/// Asserts that an error says of its write that it had no effect.
fn assert_definite(error: &PersistenceError) {
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
}

#[tokio::test]
async fn record_outlives_the_connection_to_its_file() {
    let dir = TempDir::new().unwrap();
    let written = record("payload").with_subject(Some(Subject::parse("üser").unwrap()));
    let db = database(&dir).await;
    let version = db.insert(&key("a"), &written).await.unwrap();
    db.close().await;

    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.check_schema().await.unwrap();
    let loaded = db.load(&key("a"), NOW).await.unwrap().unwrap();
    assert_eq!(loaded, written.clone().with_version(version));
    let version = db.update(&key("a"), &written, Some(version), ExpiryWrite::Extend, NOW).await.unwrap();
    let listed = db.list_by_subject(&Subject::parse("üser").unwrap(), NOW, None, 10).await.unwrap();
    assert_eq!(readable(listed), [(key("a"), SessionTimes::from(&written))]);
    let scanned = readable(db.scan(None, 10).await.unwrap());
    assert_eq!(scanned, [(key("a"), written.with_version(version))]);
}

#[tokio::test]
async fn closed_database_is_unavailable() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    db.insert(&key("a"), &record("payload")).await.unwrap();
    db.close().await;
    assert!(matches!(db.load(&key("a"), NOW).await, Err(PersistenceError::Unavailable(_))));
    assert!(matches!(db.delete(&key("a")).await, Err(PersistenceError::Unavailable(_))));
    // No connection has the file open any more, so its log is merged into it.
    let files: Vec<_> = dir.path().read_dir().unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["sessions.db"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_in_memory_is_the_same_for_all_tasks() {
    for readers in [0, 4] {
        let builder = SqlitePersistence::builder().readers(readers);
        let db = Arc::new(builder.connect("sqlite::memory:").await.unwrap());
        db.migrate().await.unwrap();
        let tasks: Vec<_> = (0..32)
            .map(|n| {
                let db = Arc::clone(&db);
                tokio::spawn(async move {
                    let key = key(&format!("key-{n}"));
                    db.insert(&key, &record(vec![n])).await.unwrap();
                    assert_eq!(db.load(&key, NOW).await.unwrap().unwrap().payload()[..], [n]);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(db.delete_expired(LATER, 100).await.unwrap().count, 32);
    }
    // Another connection makes another database.
    let db = SqlitePersistence::connect("sqlite://:memory:").await.unwrap();
    assert!(matches!(db.check_schema().await, Err(PersistenceError::Schema(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_one_process_never_find_the_file_busy() {
    let dir = TempDir::new().unwrap();
    database(&dir).await.close().await;
    // No waiting for SQLite's lock at all, for our own connections and for an application's pool.
    let own = SqlitePersistence::builder().busy_timeout(Duration::ZERO).connect(&url(&dir)).await.unwrap();
    let options = SqliteConnectOptions::from_str(&url(&dir)).unwrap().busy_timeout(Duration::ZERO);
    let pooled = SqlitePersistence::from_pool(SqlitePoolOptions::new().connect_lazy_with(options));
    for db in [own, pooled] {
        let db = Arc::new(db);
        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let db = Arc::clone(&db);
                tokio::spawn(async move {
                    for n in 0..20 {
                        let key = key(&format!("{task}-{n}"));
                        db.insert(&key, &record("x")).await.unwrap();
                        db.load(&key, NOW).await.unwrap().unwrap();
                        assert!(db.delete(&key).await.unwrap());
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        db.close().await;
    }
}

#[tokio::test]
async fn bad_url_or_table_name_is_a_config_error() {
    for url in [
        "",
        "sessions.db",
        "postgres://u:secret@localhost/db",
        "sqlite:",
        "sqlite://",
        "sqlite://?mode=rw",
        "sqlite://file:a.db?secret=1",
        "sqlite://a.db?mode=sometimes",
        "sqlite://a.db?nonsense=secret",
    ] {
        let error = SqlitePersistence::connect(url).await.unwrap_err();
        assert!(matches!(error, PersistenceError::Config(_)), "{url:?}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        assert!(error.is_caller_error());
    }
    for table in ["", "a b", "sessions; DROP TABLE users", "sqlite_sessions", "\"x\""] {
        let error = SqlitePersistence::builder().table(table).connect("sqlite::memory:").await.unwrap_err();
        assert!(matches!(error, PersistenceError::Config(_)), "{table:?}: {error:?}");
    }
    assert!(!std::path::Path::new("a.db").exists());
}

#[tokio::test]
async fn table_name_may_be_a_word_of_sql() {
    let db = SqlitePersistence::builder().table("Order").connect("sqlite::memory:").await.unwrap();
    db.migrate().await.unwrap();
    db.insert(&key("a"), &record("x")).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"x");
}

#[tokio::test]
async fn file_that_cannot_be_opened_is_unavailable() {
    let dir = TempDir::new().unwrap();
    let missing_dir = format!("sqlite://{}/none/sessions.db", dir.path().display());
    let a_directory = format!("sqlite://{}", dir.path().display());
    for url in [missing_dir, a_directory, url(&dir) + "?mode=rw", url(&dir) + "?mode=ro"] {
        let found = match SqlitePersistence::connect(&url).await {
            Err(error) => error,
            // A read-only file is opened when it is needed.
            Ok(db) => db.load(&key("a"), NOW).await.unwrap_err(),
        };
        assert!(matches!(found, PersistenceError::Unavailable(_)), "{url}: {found:?}");
        assert!(found.to_string().contains("unable to open database file"), "{found}");
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "no file was created");
}

#[tokio::test]
async fn file_that_is_no_database_is_refused_and_kept() {
    let dir = TempDir::new().unwrap();
    let text = "Not a database, but long enough to be looked at. ".repeat(20);
    std::fs::write(dir.path().join("sessions.db"), &text).unwrap();
    let error = SqlitePersistence::connect(&url(&dir)).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Refused(_)), "{error:?}");
    assert_eq!(std::fs::read_to_string(dir.path().join("sessions.db")).unwrap(), text);
}

#[tokio::test]
async fn read_only_file_can_be_read_and_refuses_writes() {
    let dir = TempDir::new().unwrap();
    database(&dir).await.insert(&key("a"), &record("kept")).await.unwrap();
    let db = SqlitePersistence::connect(&(url(&dir) + "?mode=ro")).await.unwrap();
    db.migrate().await.unwrap();
    db.check_schema().await.unwrap();
    for error in [
        db.insert(&key("b"), &record("x")).await.unwrap_err(),
        db.update(&key("a"), &record("x"), None, ExpiryWrite::Extend, NOW).await.unwrap_err(),
        db.touch(&key("a"), LATER, Timestamp::MAX, NOW).await.unwrap_err(),
        db.delete(&key("a")).await.unwrap_err(),
        db.delete_expired(LATER, 1).await.unwrap_err(),
    ] {
        assert!(matches!(error, PersistenceError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains("readonly"), "{error}");
        assert_definite(&error);
    }
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept");
}

#[tokio::test]
async fn write_to_a_locked_file_is_busy_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    database(&dir).await.insert(&key("a"), &record("kept")).await.unwrap();
    let builder = SqlitePersistence::builder().busy_timeout(Duration::from_millis(50));
    let db = builder.connect(&url(&dir)).await.unwrap();
    let mut other = other_program(&dir).await;
    run(&mut other, "BEGIN IMMEDIATE").await;

    let error = db.update(&key("a"), &record("x"), None, ExpiryWrite::Extend, NOW).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Busy(_)), "{error:?}");
    assert!(error.is_retryable());
    assert_definite(&error);
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept", "reading goes on");

    run(&mut other, "ROLLBACK").await;
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept");
    db.update(&key("a"), &record("new"), None, ExpiryWrite::Extend, NOW).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"new");
}

#[tokio::test]
async fn file_that_another_program_keeps_locked_is_busy() {
    let dir = TempDir::new().unwrap();
    let mut other = SqliteConnection::connect(&(url(&dir) + "?mode=rwc")).await.unwrap();
    run(&mut other, "PRAGMA locking_mode = EXCLUSIVE; CREATE TABLE mine (x)").await;
    let builder = SqlitePersistence::builder().busy_timeout(Duration::from_millis(50));
    let error = builder.connect(&url(&dir)).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Busy(_)), "{error:?}");
}

#[tokio::test]
async fn write_to_a_full_disk_is_refused_as_a_whole() {
    let dir = TempDir::new().unwrap();
    drop(database(&dir).await);
    // The limit stands in for a full disk.
    let options = SqliteConnectOptions::from_str(&url(&dir)).unwrap().pragma("max_page_count", "64");
    let db = SqlitePersistence::from_pool(SqlitePoolOptions::new().connect_lazy_with(options));

    let mut kept = Vec::new();
    let error = loop {
        let name = format!("key-{}", kept.len());
        match db.insert(&key(&name), &record(vec![b'x'; 9_000])).await {
            Ok(_) => kept.push(name),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PersistenceError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains("full"), "{error}");
    assert!(!error.is_retryable());
    assert_definite(&error);
    assert!(!kept.is_empty());

    let larger = db.update(&key("key-0"), &record(vec![b'y'; 90_000]), None, ExpiryWrite::Extend, NOW).await;
    assert!(matches!(larger, Err(PersistenceError::Refused(_))), "{larger:?}");
    for name in &kept {
        assert_eq!(payload(&db, name).await.unwrap(), vec![b'x'; 9_000]);
    }
    assert_eq!(payload(&db, &format!("key-{}", kept.len())).await, None);
    // A logout works on a full disk, and makes room.
    assert!(db.delete(&key("key-0")).await.unwrap());
    db.insert(&key("again"), &record(vec![b'x'; 9_000])).await.unwrap();
}

#[tokio::test]
async fn payload_up_to_the_limit_is_kept_and_a_larger_one_is_refused() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    let large: Vec<u8> = (0..5 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    db.insert(&key("a"), &record(large.clone())).await.unwrap();
    assert!(payload(&db, "a").await.unwrap() == large);

    let limit = db.properties().max_payload_bytes;
    db.update(&key("a"), &record(vec![7; limit]), None, ExpiryWrite::Extend, NOW).await.unwrap();
    assert!(payload(&db, "a").await.unwrap() == vec![7; limit]);
    let too_large = record(vec![0; limit + 1]);
    for error in [
        db.insert(&key("b"), &too_large).await.unwrap_err(),
        db.update(&key("a"), &too_large, None, ExpiryWrite::Extend, NOW).await.unwrap_err(),
        db.rename(&key("a"), &key("b"), &too_large, None, ExpiryWrite::Extend, NOW).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, PersistenceError::TooLarge { actual, .. } if actual == limit + 1),
            "{error:?}"
        );
    }
    assert!(payload(&db, "a").await.unwrap() == vec![7; limit]);
}

/// Returns a database whose table was made by hand, without STRICT, so that columns take any type, and a
/// connection of another program.
async fn made_by_hand(dir: &TempDir) -> (SqlitePersistence, SqliteConnection) {
    let mut other = SqliteConnection::connect(&(url(dir) + "?mode=rwc")).await.unwrap();
    let by_hand =
        SqlitePersistence::connect("sqlite::memory:").await.unwrap().schema_sql().replace("STRICT", "");
    raw_sql(AssertSqlSafe(by_hand)).execute(&mut other).await.unwrap();
    let db = SqlitePersistence::connect(&url(dir)).await.unwrap();
    db.check_schema().await.unwrap();
    (db, other)
}

#[tokio::test]
async fn unreadable_row_is_a_corrupt_row_error_and_stays() {
    let dir = TempDir::new().unwrap();
    let (db, mut other) = made_by_hand(&dir).await;

    for damage in [
        "UPDATE sessions SET payload = 1.5",
        "UPDATE sessions SET payload = zeroblob(20000000)",
        "UPDATE sessions SET created_at = 'yesterday'",
        "UPDATE sessions SET expires_at = '2099-01-01 00:00:00'",
        "UPDATE sessions SET last_seen_at = x'00'",
        "UPDATE sessions SET version = 'secret'",
        "UPDATE sessions SET subject = ''",
        "UPDATE sessions SET subject = CAST(x'ff' AS TEXT)",
        "UPDATE sessions SET subject = hex(zeroblob(200))",
    ] {
        run(&mut other, "DELETE FROM sessions").await;
        db.insert(&key("a"), &record("secret").with_subject(Some(Subject::parse("u").unwrap())))
            .await
            .unwrap();
        run(&mut other, damage).await;
        let error = db.load(&key("a"), NOW).await.unwrap_err();
        assert!(matches!(error, PersistenceError::CorruptRow(_)), "{damage}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        assert!(db.delete(&key("a")).await.unwrap(), "the row is still there");
    }
}

#[tokio::test]
async fn errors_show_neither_keys_nor_payloads() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    db.insert(&key("secret-key"), &record("secret-payload")).await.unwrap();
    let mut other = other_program(&dir).await;
    let duplicate = db.insert(&key("secret-key"), &record("secret-payload")).await.unwrap_err();
    assert!(matches!(duplicate, PersistenceError::AlreadyExists), "{duplicate:?}");

    run(
        &mut other,
        "CREATE TRIGGER t BEFORE INSERT ON sessions
         BEGIN SELECT RAISE(ABORT, 'no ' || NEW.key || NEW.payload); END",
    )
    .await;
    let refused = db.insert(&key("secret-2"), &record("secret-payload")).await.unwrap_err();
    assert!(matches!(refused, PersistenceError::Refused(_)), "{refused:?}");
    for error in [duplicate, refused] {
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
    assert!(!format!("{db:?}").contains("db"), "{db:?}");
}

#[tokio::test]
async fn missing_table_is_named_by_every_statement() {
    let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    let missing = |error: PersistenceError| match error {
        PersistenceError::Schema(SchemaProblem::Missing { table }) => assert_eq!(table, "sessions"),
        other => panic!("{other:?}"),
    };
    missing(db.load(&key("a"), NOW).await.unwrap_err());
    missing(db.insert(&key("a"), &record("x")).await.unwrap_err());
    missing(db.check_schema().await.unwrap_err());
}

#[tokio::test]
async fn abandoned_write_ends_before_the_next_write_is_sent() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::builder()
        .acquire_timeout(Duration::from_millis(50))
        .connect(&url(&dir))
        .await
        .unwrap();
    db.migrate().await.unwrap();
    db.insert(&key("a"), &record("old")).await.unwrap();
    let mut other = other_program(&dir).await;
    run(&mut other, "BEGIN IMMEDIATE").await;

    // The first poll sends the write, which is then dropped.
    {
        let (key, abandoned) = (key("a"), record("abandoned"));
        let write = pin!(db.update(&key, &abandoned, None, ExpiryWrite::Extend, NOW));
        assert!(write.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let error = db.delete(&key("a")).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Busy(_)), "{error:?}");
    assert_eq!(payload(&db, "a").await.unwrap(), b"old");

    run(&mut other, "ROLLBACK").await;
    while db.touch(&key("a"), LATER, Timestamp::MAX, NOW).await.is_err() {}
    assert_eq!(payload(&db, "a").await.unwrap(), b"abandoned", "the abandoned write took effect as a whole");
}

#[tokio::test]
async fn close_waits_for_a_write_whose_caller_has_gone() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    db.insert(&key("a"), &record("old")).await.unwrap();
    let mut other = other_program(&dir).await;
    run(&mut other, "BEGIN IMMEDIATE").await;
    {
        let (key, abandoned) = (key("a"), record("abandoned"));
        let write = pin!(db.update(&key, &abandoned, None, ExpiryWrite::Extend, NOW));
        assert!(write.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let mut close = pin!(db.close());
    let early = tokio::time::timeout(Duration::from_millis(50), &mut close).await;
    assert!(early.is_err(), "the write still waits");
    run(&mut other, "ROLLBACK").await;
    close.await;
    assert_eq!(payload(&database(&dir).await, "a").await.unwrap(), b"abandoned");
}

#[test]
fn write_dropped_outside_of_a_runtime_leaves_a_usable_connection() {
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (db, mut other) = runtime.block_on(async {
        let (db, mut other) = (database(&dir).await, other_program(&dir).await);
        db.insert(&key("a"), &record("old")).await.unwrap();
        run(&mut other, "BEGIN IMMEDIATE").await;
        (db, other)
    });
    let (k, abandoned) = (key("a"), record("abandoned"));
    let mut write = Box::pin(db.update(&k, &abandoned, None, ExpiryWrite::Extend, NOW));
    {
        let _inside = runtime.enter();
        assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    drop(write);
    runtime.block_on(async {
        run(&mut other, "ROLLBACK").await;
        db.update(&key("a"), &record("later"), None, ExpiryWrite::Extend, NOW).await.unwrap();
        assert_eq!(payload(&db, "a").await.unwrap(), b"later");
        db.close().await;
    });
}

#[tokio::test]
async fn touch_is_written_only_if_the_session_is_idle_since_then() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    let micro = Duration::from_micros(1);
    db.insert(&key("a"), &record("x")).await.unwrap();
    assert!(!db.touch(&key("a"), LATER + micro, NOW - micro, NOW + micro).await.unwrap());
    assert_eq!(db.load(&key("a"), NOW).await.unwrap().unwrap().expires_at(), LATER, "nothing is changed");
    assert!(db.touch(&key("a"), LATER + micro, NOW, NOW + micro).await.unwrap());
    let touched = db.load(&key("a"), NOW).await.unwrap().unwrap();
    assert_eq!((touched.expires_at(), touched.last_seen_at()), (LATER + micro, NOW + micro));
    let absent = db.touch(&key("b"), LATER, Timestamp::MAX, NOW).await;
    assert!(matches!(absent, Err(PersistenceError::NotFound)), "{absent:?}");
    let expired = db.touch(&key("a"), LATER, NOW, LATER + micro).await;
    assert!(matches!(expired, Err(PersistenceError::NotFound)), "{expired:?}");
}

#[tokio::test]
async fn now_is_the_clock_of_this_machine() {
    let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    let before = Timestamp::from(std::time::SystemTime::now());
    let now = db.now().await.unwrap();
    let after = Timestamp::from(std::time::SystemTime::now());
    let milli = Duration::from_millis(1);
    assert!(before - milli <= now && now <= after + milli, "{before:?} {now:?} {after:?}");
}

#[tokio::test]
async fn table_id_depends_on_file_and_table() {
    let dir = TempDir::new().unwrap();
    let id = async |file: &str, table: &str| {
        let url = format!("sqlite://{}", dir.path().join(file).display());
        let db = SqlitePersistence::builder().table(table).connect(&url).await.unwrap();
        db.properties().table_id
    };
    let sessions = id("a.db", "sessions").await;
    assert_eq!(id("a.db", "sessions").await, sessions, "every connection to a table has its identity");
    assert_ne!(id("a.db", "logins").await, sessions);
    assert_ne!(id("b.db", "sessions").await, sessions);
}

#[tokio::test]
async fn sessions_of_a_subject_are_listed_in_pages_by_key() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    let subject = Subject::parse("u").unwrap();
    for name in ["b", "a", "~", "B", "ab"] {
        db.insert(&key(name), &record("x").with_subject(Some(subject.clone()))).await.unwrap();
    }
    db.insert(&key("aa"), &record("x")).await.unwrap();
    db.insert(&key("old"), &record("x").with_subject(Some(subject.clone())).with_expires_at(NOW))
        .await
        .unwrap();
    let list = async |after: Option<&str>, limit| {
        let after = after.map(key);
        let page = readable(db.list_by_subject(&subject, NOW, after.as_ref(), limit).await.unwrap());
        page.into_iter().map(|(key, _)| key.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(None, 10).await, ["B", "a", "ab", "b", "~"]);
    assert_eq!(list(None, 2).await, ["B", "a"]);
    assert_eq!(list(Some("a"), 2).await, ["ab", "b"]);
    assert_eq!(
        list(Some("aa"), 1).await,
        ["ab"],
        "a page can begin after a key of no session of the subject"
    );
    assert_eq!(list(Some("~"), 2).await, [""; 0]);
    assert_eq!(list(None, 0).await, [""; 0]);
}

#[tokio::test]
async fn corrupt_row_is_listed_in_its_place_and_can_be_deleted() {
    let dir = TempDir::new().unwrap();
    let (db, mut other) = made_by_hand(&dir).await;
    let subject = Subject::parse("u").unwrap();
    for (damage, is_of_the_subject) in [
        ("payload = 1.5", false),
        ("payload = zeroblob(20000000)", false),
        ("created_at = 'yesterday'", true),
        ("expires_at = '2099-01-01 00:00:00'", true),
        ("last_seen_at = x'00'", true),
        ("version = 'secret'", false),
        ("subject = ''", false),
        ("subject = CAST(x'ff' AS TEXT)", false),
    ] {
        for name in ["a", "b", "c"] {
            db.insert(&key(name), &record("secret").with_subject(Some(subject.clone()))).await.unwrap();
        }
        let damage_b = format!("UPDATE sessions SET {damage} WHERE key = 'b'");
        raw_sql(AssertSqlSafe(damage_b)).execute(&mut other).await.unwrap();
        let page = db.scan(None, 3).await.unwrap();
        assert_eq!(page.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["a", "b", "c"], "{damage}");
        assert!(page[0].contents.is_ok() && page[2].contents.is_ok(), "{damage}");
        assert_corrupt(&page[1], damage);

        if is_of_the_subject {
            let page = db.list_by_subject(&subject, NOW, None, 3).await.unwrap();
            let keys: Vec<_> = page.iter().map(|row| row.key.as_str()).collect();
            assert_eq!(keys, ["a", "b", "c"], "{damage}");
            assert_corrupt(&page[1], damage);
        }
        for row in page {
            assert!(db.delete(&row.key).await.unwrap(), "{damage}");
        }
        assert_eq!(db.scan(None, 3).await.unwrap().len(), 0);
    }
}

/// Collects the warnings of this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<std::sync::Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "db_backends"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn rows_without_a_stored_key_are_skipped_with_one_warning() {
    let dir = TempDir::new().unwrap();
    let (db, mut other) = made_by_hand(&dir).await;
    let subject = Subject::parse("u").unwrap();
    for name in ["a", "c", "e"] {
        db.insert(&key(name), &record("x").with_subject(Some(subject.clone()))).await.unwrap();
    }
    // Empty, with a space, too long, not ASCII, not UTF-8, bytes.
    for unreadable in
        ["''", "'a 1'", "'a 2'", "printf('%.*c', 65, 'b')", "'dä'", "CAST(x'64ff' AS TEXT)", "x'65'"]
    {
        let copy = format!(
            "INSERT INTO sessions SELECT {unreadable}, payload, created_at, expires_at, last_seen_at, version,
             subject, reap_at FROM sessions WHERE key = 'a'"
        );
        raw_sql(AssertSqlSafe(copy)).execute(&mut other).await.unwrap();
    }
    let warnings = Warnings::default();
    let _default = tracing::subscriber::set_default(warnings.clone());
    for limit in 1..8 {
        let (mut scanned, mut listed) = (Vec::new(), Vec::new());
        loop {
            let after = scanned.last().copied();
            let page = readable(db.scan(after.as_ref(), limit).await.unwrap());
            let is_last = page.len() < limit as usize;
            scanned.extend(page.into_iter().map(|(key, _)| key));
            if is_last {
                break;
            }
        }
        loop {
            let after = listed.last().copied();
            let page = readable(db.list_by_subject(&subject, NOW, after.as_ref(), limit).await.unwrap());
            let is_last = page.len() < limit as usize;
            listed.extend(page.into_iter().map(|(key, _)| key));
            if is_last {
                break;
            }
        }
        for found in [scanned, listed] {
            assert_eq!(found, ["a", "c", "e"].map(key), "in pages of {limit}");
        }
    }
    warnings.0.lock().unwrap().clear();
    db.scan(None, 10).await.unwrap();
    let warned = warnings.0.lock().unwrap().clone();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("event=\"row_key_unreadable\" count=7"), "{warned:?}");
    assert!(!warned[0].contains("bbbb"), "{warned:?}");
}

#[tokio::test]
async fn longest_busy_timeout_does_not_panic() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::builder().busy_timeout(Duration::MAX).connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    db.insert(&key("a"), &record("x")).await.unwrap();
    assert_eq!(db.properties().statement_bound, Duration::MAX);
}

/// Returns the size of the file, once what is in the log is in it.
async fn file_size(dir: &TempDir, other: &mut SqliteConnection) -> u64 {
    run(other, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    std::fs::metadata(url(dir).trim_start_matches("sqlite://")).unwrap().len()
}

#[tokio::test]
async fn file_gives_back_space_after_reaping() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    let mut other = SqliteConnection::connect(&url(&dir)).await.unwrap();
    let fill = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10000)
         INSERT INTO sessions SELECT 'key-' || n, zeroblob(1000), 0, 1, 0, n, NULL, 1 FROM n";
    run(&mut other, fill).await;
    let full = file_size(&dir, &mut other).await;
    while db.delete_expired(NOW, 500).await.unwrap().is_unfinished(500) {}
    // An eighth of the pages may stay empty, and the last batch of them.
    let empty = file_size(&dir, &mut other).await;
    assert!(empty < full / 4, "{full} bytes before, {empty} after");

    // A file of an older version.
    run(&mut other, "PRAGMA auto_vacuum = NONE; VACUUM").await;
    run(&mut other, fill).await;
    while db.delete_expired(NOW, 500).await.unwrap().is_unfinished(500) {}
    let full = file_size(&dir, &mut other).await;
    assert!(full > 8_000_000, "it gives back nothing");
    drop(other);
    let db = db_backends::connect_to_inspect(&url(&dir)).await.unwrap();
    let condition = db.inspect().await.unwrap().condition;
    assert!(condition[0].text.contains("never gives back space"), "{condition:?}");
    assert!(db.vacuum().await.unwrap());
    let condition = db.inspect().await.unwrap().condition;
    assert!(condition[0].text.contains("0 % are empty, and gives back space"), "{condition:?}");
    let mut other = SqliteConnection::connect(&url(&dir)).await.unwrap();
    assert!(file_size(&dir, &mut other).await < full / 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_stays_small_while_something_is_always_read() {
    let dir = TempDir::new().unwrap();
    let db = Arc::new(SqlitePersistence::connect(&url(&dir)).await.unwrap());
    db.migrate().await.unwrap();
    for n in 0..200 {
        db.insert(&key(&format!("key-{n}")), &record("x")).await.unwrap();
    }
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let db = Arc::clone(&db);
            tokio::spawn(async move {
                loop {
                    db.scan(None, 100).await.unwrap();
                }
            })
        })
        .collect();
    for n in 0..6_000 {
        let (key, record) = (key(&format!("key-{}", n % 200)), record(vec![b'x'; 1_000]));
        db.update(&key, &record, None, ExpiryWrite::Extend, NOW).await.unwrap();
    }
    for reader in readers {
        reader.abort();
    }
    let log = format!("{}-wal", url(&dir).trim_start_matches("sqlite://"));
    let bytes = std::fs::metadata(log).unwrap().len();
    assert!(bytes < 16 << 20, "the log has {bytes} bytes");
}
