//! The contract of [`SubjectIndex`], case by case, beyond that of [`Persistence`].

#![allow(missing_docs, reason = "a case is named after what it shows")]

use session_core::{
    ExpiryWrite, Persistence, PersistenceError, Record, RecordWrite, SessionTimes, StoredKey, Subject,
    SubjectIndex, Timestamp,
};

use crate::suite::case::{cases, skip};
use crate::suite::persistence::{
    Damage, HOUR, MICRO, NOW, SubjectIndexFixture, insert, key, load, record, replace, written,
};

cases! {
    /// Returns all cases of this layer.
    for SubjectIndexFixture:
    every_session_of_a_subject_is_listed => "Returns at most `limit` sessions of `subject`",
    hundreds_of_sessions_are_listed => "Returns at most `limit` sessions of `subject`",
    session_is_listed_under_the_subject_of_its_last_write => "Returns at most `limit` sessions of `subject`",
    listed_times_are_those_of_the_session => "Returns at most `limit` sessions of `subject`",
    sessions_are_listed_in_the_order_of_their_keys => "Returns at most `limit` sessions of `subject` whose keys come after",
    page_continues_after_any_key => "Returns at most `limit` sessions of `subject` whose keys come after",
    short_page_is_the_last_one => "Fewer than `limit` means that no more came after them.",
    row_with_unreadable_times_is_listed_in_its_place => "A row whose times cannot be read is listed",
    session_without_a_stored_key_is_not_listed => "A row whose key is no stored key is passed over",
    expired_session_is_not_listed => "Expired sessions are not listed.",
    subjects_are_compared_byte_for_byte => "Subjects are compared byte for byte.",
}

/// Returns a subject that no other case and no other run uses.
fn subject() -> Subject {
    with_suffix(&format!("{:016x}", fastrand::u64(..)), "")
}

fn with_suffix(random: &str, suffix: &str) -> Subject {
    Subject::parse(&format!("{random}{suffix}")).expect("it is a subject")
}

fn of(subject: &Subject) -> Record {
    record("1{}").with_subject(Some(subject.clone()))
}

/// Lists all sessions of a subject, on one page.
async fn list(db: &impl SubjectIndex, subject: &Subject, now: Timestamp) -> Vec<(StoredKey, SessionTimes)> {
    page(db, subject, now, None, 1_000).await
}

async fn page(
    db: &impl SubjectIndex,
    subject: &Subject,
    now: Timestamp,
    after: Option<&StoredKey>,
    limit: u32,
) -> Vec<(StoredKey, SessionTimes)> {
    let page = db.list_by_subject(subject, now, after, limit).await.expect("the database answers");
    assert!(page.len() <= limit as usize, "the page is longer than the limit");
    page.into_iter().map(|row| (row.key, row.contents.expect("its times can be read"))).collect()
}

/// Returns what must be listed of these rows, in the order of keys.
fn times<'r>(rows: impl IntoIterator<Item = &'r (StoredKey, Record)>) -> Vec<(StoredKey, SessionTimes)> {
    let mut times = rows.into_iter().map(|(key, row)| (*key, row.into())).collect::<Vec<_>>();
    times.sort_by(|(one, _), (other, _)| one.as_bytes().cmp(other.as_bytes()));
    times
}

pub async fn every_session_of_a_subject_is_listed(fixture: &impl SubjectIndexFixture) {
    let (here, there, mine, theirs) = (fixture.open().await, fixture.open().await, subject(), subject());
    assert_eq!(list(&here, &mine, NOW).await, [], "the subject has no session yet");
    insert(&here, &key(), &of(&theirs)).await;
    insert(&here, &key(), &record("1{}").with_subject(None)).await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        let key = key();
        sessions.push((key, insert(&here, &key, &of(&mine)).await));
    }
    for node in [&here, &there] {
        assert_eq!(list(node, &mine, NOW).await, times(&sessions));
        assert_eq!(list(node, &theirs, NOW).await.len(), 1);
    }
}

pub async fn hundreds_of_sessions_are_listed(fixture: &impl SubjectIndexFixture) {
    let (db, subject) = (fixture.open().await, subject());
    for _ in 0..300 {
        insert(&db, &key(), &of(&subject)).await;
    }
    assert_eq!(list(&db, &subject, NOW).await.len(), 300);
}

pub async fn session_is_listed_under_the_subject_of_its_last_write(fixture: &impl SubjectIndexFixture) {
    let (db, old, new) = (fixture.open().await, key(), key());
    let (one, other) = (subject(), subject());
    let row = insert(&db, &old, &record("1{}").with_subject(None)).await;

    let version = replace(&db, &old, &of(&one), NOW).await;
    let row = written(&row, &of(&one), version);
    assert_eq!(list(&db, &one, NOW).await, times(&[(old, row.clone())]), "after the session got a subject");

    let record = of(&other);
    let write = RecordWrite::new(&record).with_expiry(ExpiryWrite::Replace);
    let renamed = db.rename(&old, &new, write, NOW).await;
    let row = written(&row, &of(&other), renamed.expect("it is there"));
    assert_eq!(list(&db, &one, NOW).await, [], "after the session got another subject");
    assert_eq!(list(&db, &other, NOW).await, times(&[(new, row.clone())]));

    let of_none = of(&other).with_subject(None);
    replace(&db, &new, &of_none, NOW).await;
    assert_eq!(list(&db, &other, NOW).await, [], "after the session lost its subject");

    replace(&db, &new, &of(&other), NOW).await;
    assert_eq!(list(&db, &other, NOW).await.len(), 1);
    db.delete(&new).await.expect("the database answers");
    assert_eq!(list(&db, &other, NOW).await, [], "after the session was deleted");
}

pub async fn listed_times_are_those_of_the_session(fixture: &impl SubjectIndexFixture) {
    let (db, subject) = (fixture.open().await, subject());
    let mut rows = Vec::new();
    for payload in [&b""[..], b"\0\xff", &[b'x'; 70_000]] {
        let key = key();
        let record =
            record(payload.to_vec()).with_subject(Some(subject.clone())).with_last_seen_at(NOW - MICRO);
        insert(&db, &key, &record).await;
        db.touch(&key, NOW + 2 * HOUR + MICRO, Timestamp::MAX, NOW).await.expect("it is there");
        rows.push((key, load(&db, &key, NOW).await.expect("it is there")));
    }
    assert_eq!(list(&db, &subject, NOW).await, times(&rows));
}

/// Inserts sessions under keys with a common random prefix and these ends, and returns the keys.
async fn insert_all(db: &impl SubjectIndex, subject: &Subject, ends: &[&str]) -> Vec<StoredKey> {
    let random = format!("{:016x}", fastrand::u64(..));
    let mut keys = Vec::new();
    for end in ends {
        let key = StoredKey::parse(&format!("{random}{end}")).expect("it is a stored key");
        insert(db, &key, &of(subject)).await;
        keys.push(key);
    }
    keys
}

fn keys_of(page: Vec<(StoredKey, SessionTimes)>) -> Vec<StoredKey> {
    page.into_iter().map(|(key, _)| key).collect()
}

pub async fn sessions_are_listed_in_the_order_of_their_keys(fixture: &impl SubjectIndexFixture) {
    let (db, subject) = (fixture.open().await, subject());
    let ends = ["b", "~", "a", "B", "_", "aa", "-", "1", "ab", "!"];
    let mut keys = insert_all(&db, &subject, &ends).await;
    keys.sort_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
    assert_eq!(keys_of(list(&db, &subject, NOW).await), keys);
    for limit in 1..=11 {
        let mut found = Vec::new();
        loop {
            let after = found.last().copied();
            let next = keys_of(page(&db, &subject, NOW, after.as_ref(), limit).await);
            let is_last = next.len() < limit as usize;
            found.extend(next);
            assert!(found.len() <= keys.len(), "a session is found more than once, in pages of {limit}");
            if is_last {
                break;
            }
        }
        assert_eq!(found, keys, "in pages of {limit}");
    }
}

pub async fn page_continues_after_any_key(fixture: &impl SubjectIndexFixture) {
    let (db, subject) = (fixture.open().await, subject());
    let keys = insert_all(&db, &subject, &["b", "d", "f"]).await;
    let between = |key: &StoredKey| StoredKey::parse(&format!("{}!", key.as_str())).expect("it is a key");
    for (after, wanted) in [
        (None, &keys[..2]),
        (Some(keys[0]), &keys[1..]),
        (Some(between(&keys[0])), &keys[1..]),
        (Some(between(&keys[1])), &keys[2..]),
        (Some(keys[2]), &[]),
    ] {
        assert_eq!(keys_of(page(&db, &subject, NOW, after.as_ref(), 2).await), wanted);
    }
    // The session with this key may be gone.
    db.delete(&keys[1]).await.expect("the database answers");
    assert_eq!(keys_of(page(&db, &subject, NOW, Some(&keys[1]), 2).await), &keys[2..]);
}

pub async fn short_page_is_the_last_one(fixture: &impl SubjectIndexFixture) {
    let (db, subject) = (fixture.open().await, subject());
    let keys = insert_all(&db, &subject, &["a", "b", "c", "d"]).await;
    // Expired sessions are not listed, and do not count.
    for key in &keys[..2] {
        replace(&db, key, &of(&subject).with_expires_at(NOW + MICRO), NOW).await;
    }
    for (limit, wanted) in [(1, 1), (2, 2), (3, 2)] {
        assert_eq!(page(&db, &subject, NOW + MICRO, None, limit).await.len(), wanted, "of at most {limit}");
    }
    assert_eq!(page(&db, &subject, NOW, None, 0).await, [], "the limit is zero");
}

pub async fn row_with_unreadable_times_is_listed_in_its_place(fixture: &impl SubjectIndexFixture) {
    let (db, subject) = (fixture.open().await, subject());
    let keys = insert_all(&db, &subject, &["a", "b", "c"]).await;
    if !fixture.damage(&keys[1], Damage::Times).await {
        return skip("the fixture cannot make times unreadable");
    }
    let page = db.list_by_subject(&subject, NOW, None, 3).await.expect("the others can be read");
    assert_eq!(page.iter().map(|row| row.key).collect::<Vec<_>>(), keys);
    for (row, key) in page.iter().zip(&keys) {
        let is_corrupt = matches!(row.contents, Err(PersistenceError::CorruptRow(_)));
        assert_eq!(is_corrupt, *key == keys[1], "only the damaged row is unreadable: {:?}", row.contents);
    }
    for key in &keys {
        assert!(db.delete(key).await.expect("a session whose row cannot be read can be deleted"));
    }
    assert_eq!(list(&db, &subject, NOW).await, []);
}

pub async fn session_without_a_stored_key_is_not_listed(fixture: &impl SubjectIndexFixture) {
    let (db, subject) = (fixture.open().await, subject());
    let keys = insert_all(&db, &subject, &["a", "b", "c", "d"]).await;
    for key in &keys[1..3] {
        if !fixture.damage(key, Damage::Key).await {
            return skip("the fixture cannot make keys unreadable");
        }
    }
    for limit in 1..4 {
        let first = keys_of(page(&db, &subject, NOW, None, limit).await);
        assert_eq!(first, [keys[0], keys[3]][..first.len()]);
        assert_eq!(
            first.len(),
            2.min(limit as usize),
            "a page that is shorter than its limit means that none comes after it"
        );
    }
}

pub async fn expired_session_is_not_listed(fixture: &impl SubjectIndexFixture) {
    let (db, subject, key) = (fixture.open().await, subject(), key());
    let row = insert(&db, &key, &of(&subject)).await;
    let end = row.expires_at();
    let lasting = self::key();
    insert(&db, &lasting, &of(&subject).with_expires_at(Timestamp::MAX)).await;
    assert_eq!(list(&db, &subject, end - MICRO).await.len(), 2);
    for late in [end, end + MICRO, end + HOUR] {
        let listed = keys_of(list(&db, &subject, late).await);
        assert!(listed == [lasting], "only the session that has not expired is listed");
    }
}

pub async fn subjects_are_compared_byte_for_byte(fixture: &impl SubjectIndexFixture) {
    let db = fixture.open().await;
    let random = format!("{:016x}", fastrand::u64(..));
    let longest = "s".repeat(Subject::MAX_LEN - random.len() - 1);
    let longest = ["", "x", "y"].map(|end| format!("{longest}{end}"));
    let suffixes = [
        "",
        " ",
        "  ",
        "\t",
        "a",
        "A",
        "ä",
        "a\u{308}",
        "Ä",
        "ß",
        "ss",
        "i",
        "ı",
        "İ",
        "%",
        "_",
        "\\",
        "😀",
        "😁",
        "\u{200b}",
        &longest[0],
        &longest[1],
        &longest[2],
    ];
    let mut sessions = Vec::new();
    for suffix in suffixes {
        let key = key();
        insert(&db, &key, &of(&with_suffix(&random, suffix))).await;
        sessions.push((suffix, key));
    }
    for (suffix, key) in sessions {
        let listed = list(&db, &with_suffix(&random, suffix), NOW).await;
        let keys = listed.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys.len(), 1, "the number of sessions of the subject that ends with {suffix:?}");
        assert!(keys == [key], "the session that is listed has another subject than {suffix:?}");
    }
}
