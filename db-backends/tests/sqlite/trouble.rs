//! Bad input, and files that cannot be read or written.

use std::str::FromStr as _;
use std::time::Duration;

use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use db_backends::sqlx::{Connection as _, SqliteConnection};
use session_core::{Outcome, Persistence as _, PersistenceError, RecordWrite, SchemaProblem, Timestamp};
use tempfile::TempDir;

use crate::{LATER, NOW, database, key, other_program, payload, record, run, url};

/// Asserts that an error says of its write that it had no effect.
fn assert_definite(error: &PersistenceError) {
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
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
        db.update(&key("a"), RecordWrite::new(&record("x")), NOW).await.unwrap_err(),
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

    let error = db.update(&key("a"), RecordWrite::new(&record("x")), NOW).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Busy(_)), "{error:?}");
    assert!(error.is_retryable());
    assert_definite(&error);
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept", "reading goes on");

    run(&mut other, "ROLLBACK").await;
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept");
    db.update(&key("a"), RecordWrite::new(&record("new")), NOW).await.unwrap();
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

    let larger = db.update(&key("key-0"), RecordWrite::new(&record(vec![b'y'; 90_000])), NOW).await;
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
async fn longest_busy_timeout_does_not_panic() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::builder().busy_timeout(Duration::MAX).connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    db.insert(&key("a"), &record("x")).await.unwrap();
    assert_eq!(db.properties().statement_bound, Duration::MAX);
}
