//! SQLite: what is kept, and which errors bad input gets. conformance-tests holds it to the whole contract.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod connections;
mod rows;
mod space;
mod trouble;
#[path = "../servers/warnings.rs"]
mod warnings;

use std::time::Duration;

use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::{Connection as _, SqliteConnection, raw_sql};
use session_core::{
    Persistence as _, PersistenceError, Record, RecordWrite, Row, Scan as _, SessionTimes, StoredKey,
    Subject, SubjectIndex as _, Timestamp,
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
    let version = db.update(&key("a"), RecordWrite::new(&written).with_expected(version), NOW).await.unwrap();
    let listed = db.list_by_subject(&Subject::parse("üser").unwrap(), NOW, None, 10).await.unwrap();
    assert_eq!(readable(listed), [(key("a"), SessionTimes::from(&written))]);
    let scanned = readable(db.scan(None, 10).await.unwrap());
    assert_eq!(scanned, [(key("a"), written.with_version(version))]);
}

#[tokio::test]
async fn table_name_may_be_a_word_of_sql() {
    let db = SqlitePersistence::builder().table("Order").connect("sqlite::memory:").await.unwrap();
    db.migrate().await.unwrap();
    db.insert(&key("a"), &record("x")).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"x");
}

#[tokio::test]
async fn payload_up_to_the_limit_is_kept_and_a_larger_one_is_refused() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    let large: Vec<u8> = (0..5 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    db.insert(&key("a"), &record(large.clone())).await.unwrap();
    assert!(payload(&db, "a").await.unwrap() == large);

    let limit = db.properties().max_payload_bytes;
    db.update(&key("a"), RecordWrite::new(&record(vec![7; limit])), NOW).await.unwrap();
    assert!(payload(&db, "a").await.unwrap() == vec![7; limit]);
    let too_large = record(vec![0; limit + 1]);
    for error in [
        db.insert(&key("b"), &too_large).await.unwrap_err(),
        db.update(&key("a"), RecordWrite::new(&too_large), NOW).await.unwrap_err(),
        db.rename(&key("a"), &key("b"), RecordWrite::new(&too_large), NOW).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, PersistenceError::TooLarge { actual, .. } if actual == limit + 1),
            "{error:?}"
        );
    }
    assert!(payload(&db, "a").await.unwrap() == vec![7; limit]);
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
