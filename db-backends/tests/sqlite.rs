//! SQLite: what is kept, and what bad input gets. The contract as a whole is in conformance-tests.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use db_backends::sqlite::SqlitePersistence;
use session_core::{ExpiryWrite, Persistence as _, Record, StoredKey, Subject, SubjectIndex as _, Timestamp};
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

async fn in_memory() -> SqlitePersistence {
    let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    db.migrate().await.unwrap();
    db
}

#[tokio::test]
async fn a_file_keeps_what_was_written() {
    let dir = TempDir::new().unwrap();
    let written = record("payload").with_subject(Some(Subject::parse("üser").unwrap()));
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    let version = db.insert(&key("a"), &written).await.unwrap();
    db.close().await;

    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.check_schema().await.unwrap();
    let loaded = db.load(&key("a"), NOW).await.unwrap().unwrap();
    assert_eq!(loaded, written.clone().with_version(version));
    let version = db.update(&key("a"), &written, Some(version), ExpiryWrite::Extend, NOW).await.unwrap();
    let listed = db.list_by_subject(&Subject::parse("üser").unwrap(), NOW).await.unwrap();
    assert_eq!(listed, [(key("a"), written.with_version(version))]);
}
