//! Records are read as they were written, under their keys.

use bytes::Bytes;
use session_core::{ExpiryWrite, Persistence, Record, RecordWrite, StoredKey, Timestamp};

use super::{
    HOUR, MICRO, NOW, PersistenceFixture, alone, insert, key, load, record, replace, subject, written,
};
use crate::suite::case::{cases, skip};

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    every_byte_of_a_payload_is_kept => "A record comes back as it was written",
    large_payload_is_read_whole => "A record comes back as it was written",
    subject_is_kept_byte_for_byte => "A record comes back as it was written",
    instants_are_kept_to_the_microsecond => "A record comes back as it was written",
    created_at_stays => "`created_at` stays.",
    keys_that_differ_in_case_are_different => "Keys are compared byte for byte",
    longest_and_strangest_keys_are_kept_apart => "Keys are compared byte for byte",
    payload_above_the_limit_is_refused => "A payload above [`PersistenceProperties::max_payload_bytes`]",
}

/// Writes `record` by insert, update and rename, and fails unless it is read as it was written each time.
async fn comes_back(db: &impl Persistence, record: &Record) {
    let now = record.expires_at() - MICRO;
    let (inserted, updated, old, new) = (key(), key(), key(), key());
    let row = insert(db, &inserted, record).await;
    assert_same(load(db, &inserted, now).await, &row, "inserted");

    let endless = |payload| Record::new(Bytes::from_static(payload), NOW, Timestamp::MAX);
    let before = insert(db, &updated, &endless(b"before")).await;
    let version = replace(db, &updated, record, now).await;
    assert_same(load(db, &updated, now).await, &written(&before, record, version), "updated");

    let before = insert(db, &old, &endless(b"before")).await;
    let write = RecordWrite::new(record).with_expiry(ExpiryWrite::Replace);
    let renamed = db.rename(&old, &new, write, now).await;
    let version = renamed.expect("a session that is there can be renamed");
    assert_same(load(db, &new, now).await, &written(&before, record, version), "renamed");
}

/// Fails with the difference. Of payloads, it shows only the place.
fn assert_same(found: Option<Record>, wanted: &Record, how: &str) {
    let found = found.unwrap_or_else(|| panic!("the {how} session is not found"));
    let first = found.payload().iter().zip(wanted.payload()).position(|(one, other)| one != other);
    let lens = (found.payload().len(), wanted.payload().len());
    assert!(
        found.payload() == wanted.payload(),
        "the payload of the {how} session has changed: {} bytes of {}, the first difference at {first:?}",
        lens.0,
        lens.1
    );
    assert_eq!(
        found.subject().map(|s| s.as_str()),
        wanted.subject().map(|s| s.as_str()),
        "of the {how} session"
    );
    assert_eq!(&found, wanted, "of the {how} session");
}

pub async fn every_byte_of_a_payload_is_kept(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    let every_byte = (0..=255).collect::<Vec<u8>>();
    let texts = [
        &b""[..],
        b"\0",
        b"\0\0end",
        b" spaces ",
        br#"1{"quote":"\"'`\\"}"#,
        b"\xff\xfe",
        b"%s ?1 $1 :x",
        &every_byte,
    ];
    for payload in texts {
        comes_back(&db, &record(payload.to_vec())).await;
    }
}

pub async fn large_payload_is_read_whole(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    let limit = db.properties().max_payload_bytes;
    for len in [65_535, 65_536, 70_001, 1 << 20, limit] {
        if len <= limit.min(64 << 20) {
            let bytes = (0..len).map(|n| u8::try_from(n % 251).unwrap_or(0));
            comes_back(&db, &record(bytes.collect::<Vec<_>>())).await;
        }
    }
}

pub async fn subject_is_kept_byte_for_byte(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    comes_back(&db, &record("1{}").with_subject(None)).await;
    let (longest, widest) = ("s".repeat(255), "😀".repeat(63));
    for text in [
        "42",
        " 42 ",
        "Ada",
        "ada",
        "Müller",
        "Mu\u{308}ller",
        "用户\u{200b}",
        "😀",
        "'; --",
        "\\",
        "%_",
        "\t\n",
        &longest,
        &widest,
    ] {
        comes_back(&db, &record("1{}").with_subject(subject(text))).await;
    }
}

pub async fn instants_are_kept_to_the_microsecond(fixture: &impl PersistenceFixture) {
    let (db, _alone) = (fixture.open().await, alone().await);
    // Around the epoch, where seconds get another digit, where 31 and 32 bits of them end, and where years
    // get a fifth digit.
    let seconds = [0, 1_000_000_000, 1 << 31, 1 << 32, 253_402_300_800];
    let around = seconds.into_iter().map(Timestamp::from_secs).flat_map(|at| [at - MICRO, at, at + MICRO]);
    // The nights in which clocks were changed, in time zones that a server may have.
    let nights = [1_604_192_400, 1_604_196_000, 1_616_893_200].map(|at| Timestamp::from_secs(at) + HOUR / 2);
    for instant in around.chain(nights).chain([NOW, Timestamp::MAX]) {
        let record = Record::new("1{}".into(), instant, instant).with_last_seen_at(instant);
        comes_back(&db, &record).await;
    }
}

pub async fn created_at_stays(fixture: &impl PersistenceFixture) {
    let (db, old, new) = (fixture.open().await, key(), key());
    let began = insert(&db, &old, &record("1{}")).await.created_at();
    let later = Record::new("2{}".into(), NOW, NOW + HOUR);
    replace(&db, &old, &later, NOW).await;
    assert_eq!(load(&db, &old, NOW).await.map(|found| found.created_at()), Some(began), "after an update");
    db.touch(&old, NOW + 2 * HOUR, Timestamp::MAX, NOW).await.expect("it is there");
    assert_eq!(load(&db, &old, NOW).await.map(|found| found.created_at()), Some(began), "after a touch");
    db.rename(&old, &new, RecordWrite::new(&later), NOW).await.expect("it is there");
    assert_eq!(load(&db, &new, NOW).await.map(|found| found.created_at()), Some(began), "after a rename");
}

pub async fn keys_that_differ_in_case_are_different(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    let random = fastrand::u64(..);
    let parse = |text: String| StoredKey::parse(&text).expect("it is a key");
    let [upper, lower] = [parse(format!("Case-{random:x}")), parse(format!("case-{random:x}"))];
    let one = insert(&db, &upper, &record("upper")).await;
    assert_eq!(load(&db, &lower, NOW).await, None, "found under a key that differs in case");
    assert!(
        !db.delete(&lower).await.expect("the database answers"),
        "deleted under a key that differs in case"
    );
    let other = insert(&db, &lower, &record("lower")).await;
    assert_eq!(load(&db, &upper, NOW).await, Some(one));
    assert_eq!(load(&db, &lower, NOW).await, Some(other));
}

pub async fn longest_and_strangest_keys_are_kept_apart(fixture: &impl PersistenceFixture) {
    let db = fixture.open().await;
    let random = format!("{:016x}", fastrand::u64(..));
    let max_len = db.properties().max_key_bytes;
    let longest = format!("{random}{}", "k".repeat(max_len - random.len()));
    let other_end = format!("{}x", &longest[..max_len - 1]);
    let texts = [longest[..max_len - 1].to_owned(), longest, other_end]
        .into_iter()
        .chain("_%{}*?[]()'\"`\\:;$!#@&-".chars().map(|strange| format!("{random}{strange}")));
    let mut stored = Vec::new();
    for text in texts {
        let key = StoredKey::parse(&text).expect("it is a key");
        stored.push((key, insert(&db, &key, &record(text)).await));
    }
    for (key, row) in &stored {
        assert_eq!(load(&db, key, NOW).await.as_ref(), Some(row), "under {:?}", key.as_str());
    }
    for (key, _) in &stored {
        assert!(db.delete(key).await.expect("the database answers"), "{:?} is gone already", key.as_str());
    }
}

pub async fn payload_above_the_limit_is_refused(fixture: &impl PersistenceFixture) {
    let (db, kept, new) = (fixture.open().await, key(), key());
    let limit = db.properties().max_payload_bytes;
    if limit > 1 << 30 {
        return skip("the limit is more than fits into memory");
    }
    let row = insert(&db, &kept, &record("kept")).await;
    let large = record(vec![0; limit + 1]);
    let is_refused = |result| {
        let error = session_core::PersistenceError::TooLarge { actual: limit + 1, limit };
        match result {
            Err(found) if format!("{found:?}") == format!("{error:?}") => {}
            Err(found) => panic!("should be {error:?}, and is {found:?}"),
            Ok(_) => panic!("a payload above the limit of {limit} bytes was written"),
        }
    };
    is_refused(db.insert(&new, &large).await);
    for key in [&kept, &new] {
        // The refusal comes before any I/O, so it does not matter whether there is a session.
        is_refused(db.update(key, RecordWrite::new(&large), NOW).await);
        is_refused(db.rename(key, &self::key(), RecordWrite::new(&large), NOW).await);
    }
    assert_eq!(load(&db, &kept, NOW).await, Some(row));
    assert_eq!(load(&db, &new, NOW).await, None);
}
