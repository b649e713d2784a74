//! Lists of rows, and rows that cannot be read.

use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection, query, raw_sql};
use session_core::{
    Persistence as _, PersistenceError, Rotation, Rotations as _, Row, Scan as _, Subject, SubjectIndex as _,
};
use tempfile::TempDir;

use crate::warnings::Warnings;
use crate::{LATER, NOW, database, key, readable, record, run, url};

/// Asserts that a row cannot be read, and that the error does not show what is in it.
fn assert_corrupt<T>(row: &Row<T>, damage: &str) {
    let Err(error) = &row.contents else { panic!("{damage}: it was read") };
    assert!(matches!(error, PersistenceError::CorruptRow(_)), "{damage}: {error:?}");
    assert!(!format!("{error} {error:?}").contains("secret"), "{damage}: {error:?}");
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
    for (damage, damages_subject) in [
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

        if damages_subject {
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
    warnings.take();
    db.scan(None, 10).await.unwrap();
    let warned = warnings.take();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("event=\"row_key_unreadable\" count=7"), "{warned:?}");
    assert!(!warned[0].contains("bbbb"), "{warned:?}");
}

#[tokio::test]
async fn corrupt_note_of_a_rotation_hides_no_other_and_is_removed() {
    let dir = TempDir::new().unwrap();
    let db = database(&dir).await;
    db.migrate_rotations().await.unwrap();
    let note = Rotation::new(key("old"), key("new"), LATER);
    db.note_rotation(&note).await.unwrap();
    let mut other = SqliteConnection::connect(&url(&dir)).await.unwrap();
    for (new, masked) in
        [("''", "x''"), ("'d\u{e4}'", "x''"), ("'a b'", "x'00'"), ("printf('%.*c', 65, 'b')", "x''")]
    {
        let corrupt = format!(
            "INSERT INTO sessions_rotations (old_key, new_key, masked_key, expires_at)
             VALUES ('old', {new}, {masked}, {})",
            LATER.as_micros()
        );
        raw_sql(AssertSqlSafe(corrupt)).execute(&mut other).await.unwrap();
    }
    assert_eq!(db.rotations(&key("old"), NOW, 10).await.unwrap(), [note]);
    assert!(!db.delete_expired(LATER, 10).await.unwrap().is_unfinished(10));
    let left: i64 =
        query("SELECT count(*) FROM sessions_rotations").fetch_one(&mut other).await.unwrap().get(0);
    assert_eq!(left, 0);
}
