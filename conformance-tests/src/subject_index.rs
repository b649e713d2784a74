//! The contract of [`SubjectIndex`], case by case, beyond that of [`Persistence`].

#![allow(missing_docs, reason = "a case is named after what it shows")]

use session_core::{ExpiryWrite, Persistence, Record, StoredKey, Subject, SubjectIndex, Timestamp};

use crate::case::cases;
use crate::persistence::{
    HOUR, MICRO, NOW, SubjectIndexFixture, insert, key, load, record, replace, written,
};

cases! {
    /// All cases of this layer.
    for SubjectIndexFixture:
    all_sessions_of_a_subject_are_listed => "All sessions of `subject`, in no particular order.",
    hundreds_of_sessions_are_listed => "All sessions of `subject`, in no particular order.",
    a_session_is_listed_where_its_last_write_put_it => "All sessions of `subject`, in no particular order.",
    what_is_listed_is_what_is_found => "All sessions of `subject`, in no particular order.",
    an_expired_session_is_not_listed => "Expired sessions are not listed.",
    subjects_are_compared_byte_for_byte => "Subjects are compared byte for byte.",
}

/// A subject that no other case and no other run uses.
fn subject() -> Subject {
    with_suffix(&format!("{:016x}", fastrand::u64(..)), "")
}

fn with_suffix(random: &str, suffix: &str) -> Subject {
    Subject::parse(&format!("{random}{suffix}")).expect("it is a subject")
}

fn of(subject: &Subject) -> Record {
    record("1{}").with_subject(Some(subject.clone()))
}

/// In the order of keys.
async fn list(db: &impl SubjectIndex, subject: &Subject, now: Timestamp) -> Vec<(StoredKey, Record)> {
    sorted(db.list_by_subject(subject, now).await.expect("the database answers"))
}

fn sorted(mut sessions: Vec<(StoredKey, Record)>) -> Vec<(StoredKey, Record)> {
    sessions.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    sessions
}

pub async fn all_sessions_of_a_subject_are_listed(fixture: &impl SubjectIndexFixture) {
    let (here, there, mine, theirs) = (fixture.open().await, fixture.open().await, subject(), subject());
    assert_eq!(list(&here, &mine, NOW).await, [], "it has none yet");
    insert(&here, &key(), &of(&theirs)).await;
    insert(&here, &key(), &record("1{}").with_subject(None)).await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        let key = key();
        sessions.push((key, insert(&here, &key, &of(&mine)).await));
    }
    let sessions = sorted(sessions);
    for node in [&here, &there] {
        assert_eq!(list(node, &mine, NOW).await, sessions);
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

pub async fn a_session_is_listed_where_its_last_write_put_it(fixture: &impl SubjectIndexFixture) {
    let (db, old, new) = (fixture.open().await, key(), key());
    let (one, other) = (subject(), subject());
    let row = insert(&db, &old, &record("1{}").with_subject(None)).await;

    let version = replace(&db, &old, &of(&one), NOW).await;
    let row = written(&row, &of(&one), version);
    assert_eq!(list(&db, &one, NOW).await, [(old, row.clone())], "after it got a subject");

    let renamed = db.rename(&old, &new, &of(&other), None, ExpiryWrite::Replace, NOW).await;
    let row = written(&row, &of(&other), renamed.expect("it is there"));
    assert_eq!(list(&db, &one, NOW).await, [], "after it became somebody else's");
    assert_eq!(list(&db, &other, NOW).await, [(new, row.clone())]);

    let nobodys = of(&other).with_subject(None);
    replace(&db, &new, &nobodys, NOW).await;
    assert_eq!(list(&db, &other, NOW).await, [], "after it lost its subject");

    replace(&db, &new, &of(&other), NOW).await;
    assert_eq!(list(&db, &other, NOW).await.len(), 1);
    db.delete(&new).await.expect("the database answers");
    assert_eq!(list(&db, &other, NOW).await, [], "after it was deleted");
}

pub async fn what_is_listed_is_what_is_found(fixture: &impl SubjectIndexFixture) {
    let (db, subject) = (fixture.open().await, subject());
    let mut rows = Vec::new();
    for payload in [&b""[..], b"\0\xff", &[b'x'; 70_000]] {
        let key = key();
        let record =
            record(payload.to_vec()).with_subject(Some(subject.clone())).with_last_seen_at(NOW - MICRO);
        insert(&db, &key, &record).await;
        db.touch(&key, NOW + 2 * HOUR + MICRO, NOW).await.expect("it is there");
        rows.push((key, load(&db, &key, NOW).await.expect("it is there")));
    }
    assert_eq!(list(&db, &subject, NOW).await, sorted(rows));
}

pub async fn an_expired_session_is_not_listed(fixture: &impl SubjectIndexFixture) {
    let (db, subject, key) = (fixture.open().await, subject(), key());
    let row = insert(&db, &key, &of(&subject)).await;
    let end = row.expires_at();
    let lasting = [insert(&db, &self::key(), &of(&subject).with_expires_at(Timestamp::MAX)).await];
    assert_eq!(list(&db, &subject, end - MICRO).await.len(), 2);
    for late in [end, end + MICRO, end + HOUR] {
        let rows = list(&db, &subject, late).await.into_iter().map(|(_, row)| row).collect::<Vec<_>>();
        assert_eq!(rows, lasting, "one of them has expired");
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
        assert_eq!(keys.len(), 1, "one session has the subject that ends with {suffix:?}");
        assert!(keys == [key], "the session that is listed has another subject than {suffix:?}");
    }
}
