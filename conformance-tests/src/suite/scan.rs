//! The contract of [`Scan`], case by case, beyond that of [`Persistence`].
//!
//! Other cases use the table at the same time, so each case looks only for its own keys, which have a prefix.

#![allow(missing_docs, reason = "a case is named after what it shows")]

use session_core::{
    Persistence, PersistenceError, Record, RecordWrite, Row, Scan, SessionKey, StoredKey, Timestamp,
};

use crate::suite::case::{cases, skip};
use crate::suite::persistence::{Damage, HOUR, NOW, PersistenceFixture, insert, load, record};

/// A [`PersistenceFixture`] whose table can be scanned. Implemented for all of them.
pub trait ScanFixture: PersistenceFixture<Persistence: Scan> {}

impl<F: PersistenceFixture<Persistence: Scan>> ScanFixture for F {}

cases! {
    /// Returns all cases of this layer.
    for ScanFixture:
    expired_sessions_are_found => "Expired sessions are there, too.",
    keys_are_in_the_order_of_their_bytes => "Keys are in the order of their bytes.",
    page_shorter_than_the_limit_is_the_last => "Keys are in the order of their bytes. Fewer than `limit`",
    scan_in_pages_finds_each_session_once => "Going on after the last key finds, exactly once,",
    scanned_record_is_the_loaded_one => "Going on after the last key finds, exactly once,",
    unreadable_row_is_in_its_place => "A row that cannot be read is in the page, with its key and the error",
    row_without_a_stored_key_is_skipped => "A row whose key is no stored key is passed over",
    scan_without_a_key_begins_with_the_first => "Going on after the last key finds, exactly once,",
}

/// Returns a prefix for the keys of one case, which no other case has.
fn prefix() -> String {
    let key = SessionKey::generate().expect("the system has random numbers");
    format!("scan-{}-", key.expose())
}

fn key(prefix: &str, text: &str) -> StoredKey {
    StoredKey::parse(&format!("{prefix}{text}")).expect("it is a stored key")
}

/// Returns the sessions of one case that a scan in pages of `limit` finds. All must be readable.
async fn scan(db: &impl Scan, prefix: &str, limit: u32) -> Vec<(StoredKey, Record)> {
    let rows = scan_rows(db, prefix, limit).await;
    rows.into_iter().map(|row| (row.key, row.contents.expect("it can be read"))).collect()
}

async fn scan_rows(db: &impl Scan, prefix: &str, limit: u32) -> Vec<Row<Record>> {
    let mut found = Vec::new();
    let mut after = StoredKey::parse(prefix).expect("it is a stored key");
    loop {
        let page = db.scan(Some(&after), limit).await.expect("the database answers");
        assert!(page.len() <= limit as usize, "the page is longer than the limit");
        let is_last = page.len() < limit as usize;
        for row in page {
            if !row.key.as_str().starts_with(prefix) {
                return found;
            }
            assert!(row.key.as_bytes() > after.as_bytes(), "the key does not come after the last one");
            after = row.key;
            found.push(row);
        }
        if is_last {
            return found;
        }
    }
}

async fn insert_all(db: &impl Persistence, prefix: &str, texts: &[&str]) {
    for text in texts {
        insert(db, &key(prefix, text), &record(format!("1{{\"x\":\"{text}\"}}"))).await;
    }
}

pub async fn expired_sessions_are_found(fixture: &impl ScanFixture) {
    let (db, prefix) = (fixture.open().await, prefix());
    let expired = record("1{}").with_expires_at(NOW - HOUR);
    // It expires after the year 2000, so that no other case removes it.
    let row = insert(&db, &key(&prefix, "expired"), &expired).await;
    assert!(load(&db, &key(&prefix, "expired"), NOW).await.is_none(), "the session has expired");
    assert!(scan(&db, &prefix, 10).await == [(key(&prefix, "expired"), row)]);
}

pub async fn keys_are_in_the_order_of_their_bytes(fixture: &impl ScanFixture) {
    let (db, prefix) = (fixture.open().await, prefix());
    insert_all(&db, &prefix, &["b", "a", "B", "~", "_", "aa", "-", "1", "ab", "!"]).await;
    let found = scan(&db, &prefix, 100).await;
    let texts = found.iter().map(|(key, _)| key.as_str().strip_prefix(&prefix).unwrap()).collect::<Vec<_>>();
    assert_eq!(texts, ["!", "-", "1", "B", "_", "a", "aa", "ab", "b", "~"]);
}

pub async fn page_shorter_than_the_limit_is_the_last(fixture: &impl ScanFixture) {
    let db = fixture.open().await;
    // This key comes after every key that a case uses.
    let last = StoredKey::parse(&"~".repeat(StoredKey::MAX_LEN)).unwrap();
    assert!(db.scan(Some(&last), 1).await.unwrap().is_empty());
    let prefix = prefix();
    insert_all(&db, &prefix, &["a", "b", "c"]).await;
    let before = StoredKey::parse(&prefix).unwrap();
    assert_eq!(db.scan(Some(&before), 3).await.unwrap().len(), 3);
    assert_eq!(db.scan(Some(&before), 2).await.unwrap().len(), 2);
}

pub async fn scan_in_pages_finds_each_session_once(fixture: &impl ScanFixture) {
    let (db, prefix) = (fixture.open().await, prefix());
    let texts = (10..60).map(|number| number.to_string()).collect::<Vec<_>>();
    insert_all(&db, &prefix, &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for limit in [1, 7, 50, 1_000] {
        let found = scan(&db, &prefix, limit).await;
        let found = found.iter().map(|(key, _)| key.as_str().strip_prefix(&prefix).unwrap());
        assert!(found.eq(texts.iter()), "in pages of {limit}");
    }
    // Sessions that are removed or written meanwhile do not disturb the scan.
    let before = StoredKey::parse(&prefix).unwrap();
    let page = db.scan(Some(&before), 20).await.unwrap();
    let last = &page.last().unwrap().key;
    db.delete(last).await.unwrap();
    db.update(&key(&prefix, "40"), RecordWrite::new(&record("1{}")), NOW).await.unwrap();
    insert_all(&db, &prefix, &["05"]).await;
    let next = db.scan(Some(last), 1).await.unwrap().remove(0);
    assert!(next.key == key(&prefix, "30"), "the key after the twentieth");
}

pub async fn scanned_record_is_the_loaded_one(fixture: &impl ScanFixture) {
    let (db, prefix) = (fixture.open().await, prefix());
    for (text, payload) in [("a", &b""[..]), ("b", b"\0\xff"), ("c", &[b'x'; 70_000])] {
        insert(&db, &key(&prefix, text), &record(payload.to_vec()).with_subject(None)).await;
        db.touch(&key(&prefix, text), NOW + 2 * HOUR, Timestamp::MAX, NOW).await.expect("it is there");
    }
    let found = scan(&db, &prefix, 2).await;
    assert_eq!(found.len(), 3);
    for (key, record) in found {
        assert_eq!(load(&db, &key, NOW).await, Some(record));
    }
}

pub async fn unreadable_row_is_in_its_place(fixture: &impl ScanFixture) {
    let (db, prefix) = (fixture.open().await, prefix());
    insert_all(&db, &prefix, &["a", "b", "c"]).await;
    let damaged = key(&prefix, "b");
    if !fixture.damage(&damaged, Damage::Record).await {
        return skip("the fixture cannot make a row unreadable");
    }
    for limit in [1, 2, 10] {
        let rows = scan_rows(&db, &prefix, limit).await;
        let keys = rows.iter().map(|row| row.key);
        assert!(keys.eq(["a", "b", "c"].map(|text| key(&prefix, text))), "in pages of {limit}");
        for row in &rows {
            let is_corrupt = matches!(row.contents, Err(PersistenceError::CorruptRow(_)));
            assert_eq!(
                is_corrupt,
                row.key == damaged,
                "only the damaged row is unreadable: {:?}",
                row.contents
            );
        }
    }
    let loaded = db.load(&damaged, NOW).await;
    assert!(
        matches!(loaded, Err(PersistenceError::CorruptRow(_))),
        "the damaged row is loaded as {loaded:?}"
    );
    assert!(db.delete(&damaged).await.expect("a session whose row cannot be read can be deleted"));
    assert_eq!(scan(&db, &prefix, 10).await.len(), 2);
}

pub async fn row_without_a_stored_key_is_skipped(fixture: &impl ScanFixture) {
    let (db, prefix) = (fixture.open().await, prefix());
    insert_all(&db, &prefix, &["a", "b", "c", "d"]).await;
    for text in ["b", "c"] {
        if !fixture.damage(&key(&prefix, text), Damage::Key).await {
            return skip("the fixture cannot make keys unreadable");
        }
    }
    let before = StoredKey::parse(&prefix).unwrap();
    for limit in 1..4 {
        let keys = scan(&db, &prefix, limit).await.into_iter().map(|(key, _)| key);
        assert!(keys.eq(["a", "d"].map(|text| key(&prefix, text))), "in pages of {limit}");
        let page = db.scan(Some(&before), limit.min(2)).await.expect("the database answers");
        assert_eq!(
            page.len(),
            limit.min(2) as usize,
            "a page that is shorter than its limit means that none comes after it"
        );
    }
}

pub async fn scan_without_a_key_begins_with_the_first(fixture: &impl ScanFixture) {
    let db = fixture.open().await;
    let first = StoredKey::parse("!").unwrap();
    if load(&db, &first, NOW).await.is_none() {
        // Another run may have inserted it first.
        let _ = db.insert(&first, &record("1{}")).await;
    }
    let page = db.scan(None, 1).await.expect("the database answers");
    assert!(page.len() == 1 && page[0].key == first, "no key comes before that");
}
