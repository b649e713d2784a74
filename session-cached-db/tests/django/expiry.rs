//! The expiry of sessions, and the removal of expired ones.

use std::time::Duration;

use serde_json::json;
use session_cached_db::session_core::{Expiry, Persistence as _, StoredKey, Timestamp};
use session_cached_db::{Error, Session};

use crate::database::Kind;
use crate::site::{Site, key_of, now_micros};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The largest difference between the times at which the two sides read the clock, in microseconds.
const MINUTE: i64 = 60_000_000;

fn now() -> Timestamp {
    Timestamp::from_micros(now_micros())
}

fn is_about(found: i64, expected: Timestamp) -> bool {
    (found - expected.as_micros()).abs() < MINUTE
}

pub async fn expiry_set_here_counts_in_django(site: &Site) {
    let store = site.store().await;
    let fixed = Timestamp::from_micros(now_micros() / 1_000_000 * 1_000_000) + 3 * DAY;
    let choices: [(Option<Expiry>, Timestamp, bool); 7] = [
        (None, now() + 14 * DAY, false),
        (Some(Expiry::BrowserSession), now() + 14 * DAY, true),
        (Some(Expiry::After(Duration::from_secs(1_800))), now() + Duration::from_secs(1_800), false),
        (Some(Expiry::After(Duration::from_millis(90_500))), now() + Duration::from_millis(90_500), false),
        (Some(Expiry::At(fixed)), fixed, false),
        (Some(Expiry::At(fixed + Duration::from_micros(1))), fixed, false),
        (Some(Expiry::At(Timestamp::MAX)), Timestamp::from_micros(253_402_300_799_999_999), false),
    ];
    for (choice, end, browser_close) in choices {
        let mut session = store.new_session();
        session.insert("a", 1).unwrap();
        session.set_expiry(choice);
        session.save().await.unwrap();
        let key = key_of(&session);
        let (_, expire_date) = site.row(&key).unwrap();
        assert!(is_about(expire_date, end), "{choice:?}: the row says {expire_date}");
        let found = site.django("load", json!({"key": key}));
        assert!(is_about(found["expiry_date"].as_i64().unwrap(), end), "{choice:?}: {found}");
        assert_eq!(found["browser_close"], browser_close, "{choice:?}");
        // A save by Django does not change the expiry.
        site.django("save", json!({"key": key, "set": "{\"b\":2}"}));
        let session = store.open(&key).await.unwrap();
        let expected = match choice {
            // Django can represent no later instant.
            Some(Expiry::At(Timestamp::MAX)) => Some(Expiry::At(end)),
            other => other,
        };
        assert_eq!(session.expiry(), expected);
        assert!(is_about(site.row(&key).unwrap().1, end));
    }
}

pub async fn expiry_set_in_django_counts_here(site: &Site) {
    let store = site.store().await;
    let date = "2031-01-02T03:04:05.678901+01:00";
    let instant = Timestamp::from_micros(1_925_085_845_678_901);
    for (choice, expiry, end) in [
        (json!(null), None, now() + 14 * DAY),
        (json!(0), Some(Expiry::BrowserSession), now() + 14 * DAY),
        (json!(1800), Some(Expiry::After(Duration::from_secs(1_800))), now() + Duration::from_secs(1_800)),
        (json!(date), Some(Expiry::At(instant)), instant),
    ] {
        let key = site.create("{\"a\":1}");
        site.django("save", json!({"key": key, "expiry": choice}));
        let before = site.json(&key);
        let mut session = store.open(&key).await.unwrap();
        assert_eq!(session.expiry(), expiry);
        assert!(is_about(session.expires_at().as_micros(), end), "{choice}: {:?}", session.expires_at());
        assert_eq!(session.len(), 1, "the expiry must not be among the application's values");
        session.insert("b", 2).unwrap();
        session.save().await.unwrap();
        assert!(is_about(site.row(&key).unwrap().1, end), "{choice}");
        let chosen = |json: &str| {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            value["_session_expiry"].to_string()
        };
        assert_eq!(chosen(&site.json(&key)), chosen(&before), "the expiry must not be rewritten");
    }
}

pub async fn session_expired_in_django_is_over_here(site: &Site) {
    let store = site.store().await;
    let key = site.create("{\"a\":1}");
    let mut open = store.open(&key).await.unwrap();
    site.django("save", json!({"key": key, "expiry": -10}));
    let before = site.row(&key);
    assert!(store.open(&key).await.unwrap().key().is_none());
    // Django would revive the session; this side does not.
    open.insert("a", 2).unwrap();
    assert!(matches!(open.save().await, Err(Error::SessionGone)));
    assert!(matches!(open.cycle_key().await, Err(Error::SessionGone)));
    let key = StoredKey::parse(&key).unwrap();
    assert!(matches!(store.touch(&key, now() + DAY).await, Err(Error::SessionGone)));
    if let Some(after) = site.row(key.as_str()) {
        assert_eq!(Some(after), before, "the row must be unchanged, unless another test has removed it");
    }
}

pub async fn session_expired_here_is_over_in_django(site: &Site) {
    let store = site.store().await;
    let mut session = store.new_session();
    session.insert("a", 1).unwrap();
    session.save().await.unwrap();
    session.set_expiry(Expiry::After(Duration::ZERO));
    session.save().await.unwrap();
    assert_eq!(site.load(&key_of(&session)), None);
    assert!(store.open(&key_of(&session)).await.unwrap().key().is_none());
}

pub async fn each_side_removes_expired_sessions(site: &Site) {
    let store = site.store().await;
    let alive = site.create("{\"a\":1}");
    for _ in 0..3 {
        let expired = site.create("{\"a\":1}");
        site.django("put", json!({"key": expired, "row": "whatever", "expire_in": -3600}));
        store.clear_expired().await.unwrap();
        assert_eq!(site.row(&expired), None);
    }
    let mut session = store.new_session();
    session.insert("a", 1).unwrap();
    session.set_expiry(Expiry::After(Duration::ZERO));
    session.save().await.unwrap();
    site.django("clear_expired", json!({}));
    assert_eq!(site.row(&key_of(&session)), None);
    assert_eq!(site.load(&alive).as_deref(), Some("{\"a\":1}"));
}

pub async fn touch_prolongs_a_session_and_changes_nothing_else(site: &Site) {
    let store = site.builder(session_cached_db::NoCache, &[crate::site::SECRET_KEY]).await;
    let store = store.touch_interval(Duration::from_secs(60)).build().await.unwrap();
    let key = site.create("{\"a\":1}");
    let (data, fresh) = site.row(&key).unwrap();
    // The session was saved just now, so the touch writes nothing.
    store.open(&key).await.unwrap().touch().await.unwrap();
    assert_eq!(site.row(&key).unwrap(), (data.clone(), fresh));
    // Django writes the time of signing into the row, so an older session needs an older signature.
    let old = "e30:1r31eq:rRYHGhb1jV4dwr5oVRYhRrCekFWAE5w9Nyo1VnYM5Bo";
    let hour = Duration::from_secs(60 * 60);
    let lives_for = 14 * DAY - hour;
    let secret = "django-insecure-test-secret-key";
    site.django("put", json!({"key": key, "row": old, "expire_in": lives_for.as_secs()}));
    let store = site.builder(session_cached_db::NoCache, &[secret]).await;
    let store = store.touch_interval(Duration::from_secs(60)).build().await.unwrap();
    let mut session: Session = store.open(&key).await.unwrap();
    assert!(is_about(session.last_seen_at().unwrap().as_micros(), now() - hour));
    session.touch().await.unwrap();
    let (data, touched) = site.row(&key).unwrap();
    assert_eq!(data, old);
    assert!(is_about(touched, now() + 14 * DAY));
    // A second touch within the minute writes nothing.
    store.open(&key).await.unwrap().touch().await.unwrap();
    assert_eq!(site.row(&key).unwrap(), (data.clone(), touched));
    // A touch never shortens a session, and a late one does nothing.
    let stored = StoredKey::parse(&key).unwrap();
    store.touch(&stored, now() + DAY).await.unwrap();
    assert_eq!(site.row(&key).unwrap(), (data, touched));
}

/// Expiries in the format of Django, which omits digits behind the point in SQLite when all are zero, and in
/// formats of other programs.
pub async fn expiries_are_compared_to_the_microsecond(site: &Site) {
    let db = site.database.connect().await;
    if site.database.kind == Kind::Sqlite {
        let key = site.create("{}");
        let zeros =
            "UPDATE django_session SET expire_date = '2031-01-02 02:04:05.000000' WHERE session_key = ";
        site.django("sql", json!({"statements": format!("{zeros}'{key}'")}));
        let (key, end) = (StoredKey::parse(&key).unwrap(), Timestamp::from_micros(1_925_085_845_000_000));
        let before = db.load(&key, end - Duration::from_micros(1)).await.unwrap();
        assert_eq!(before.map(|found| found.expires_at()), Some(end));
        assert!(db.load(&key, end).await.unwrap().is_none());
        db.delete(&key).await.unwrap();
    }
    let micro = Duration::from_micros(1);
    let whole = Timestamp::from_micros(1_925_085_845_000_000);
    for (date, end) in [
        ("2031-01-02T02:04:05+00:00", whole),
        ("2031-01-02T02:04:05.000001+00:00", whole + micro),
        ("2031-01-02T02:04:04.999999+00:00", whole - micro),
        ("2031-01-02T02:04:05.500000+00:00", whole + 500_000 * micro),
    ] {
        let key = site.create("{\"a\":1}");
        site.django("put_date", json!({"key": key, "date": date}));
        let stored = StoredKey::parse(&key).unwrap();
        let found = db.load(&stored, end - micro).await.unwrap().unwrap();
        assert_eq!(found.expires_at(), end, "{date}");
        assert!(db.load(&stored, end).await.unwrap().is_none(), "{date} is over at that instant");
        let touched = db.touch(&stored, end + micro, Timestamp::MAX, end).await;
        assert!(touched.is_err(), "{date} is over at that instant");
        db.touch(&stored, end + micro, Timestamp::MAX, end - micro).await.unwrap();
        assert_eq!(site.row(&key).unwrap().1, (end + micro).as_micros());
        assert_eq!(db.load(&stored, end).await.unwrap().unwrap().expires_at(), end + micro);
        db.delete(&stored).await.unwrap();
    }
}
