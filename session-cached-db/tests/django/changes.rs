//! Each side reads the other's writes.

use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;
use session_cached_db::session_core::bytes::Bytes;
use session_cached_db::session_core::{
    ExpiryWrite, Persistence as _, PersistenceError, Record, RecordWrite, SessionData, StoredKey, Timestamp,
    Version,
};

use crate::site::{Site, key_of, now_micros};

/// Returns JSON text that is hard to pass on: characters beyond ASCII and beyond the basic plane, escapes,
/// numbers beyond those that machines calculate with, and enough of it to be compressed. It is formatted as
/// Python writes it.
fn tricky() -> String {
    let long = "compressible ".repeat(200);
    format!(
        "{{\"empty\":{{}},\"float\":1e+22,\"int\":123456789012345678901234567890,\"list\":[1.0,-0.0,null,true,\"\\u00e9\"],\
         \"long\":\"{long}\",\"max\":18446744073709551615,\"min\":-9223372036854775808,\
         \"name\":\"Jos\\u00e9 \\u7528\\u6237 \\ud83d\\ude00 \\\"\\\\/\\u007f\\u0001\"}}"
    )
}

pub async fn session_written_here_is_read_by_django(site: &Site) {
    let store = site.store().await;
    for json in [tricky(), "{\"a\":1}".to_owned()] {
        let data = SessionData::from_json(Bytes::from(json.clone())).unwrap();
        let mut session = store.new_session();
        for (key, value) in data.iter() {
            session.insert(key, RawValue::from_string(value.to_owned()).unwrap()).unwrap();
        }
        session.save().await.unwrap();
        assert_eq!(site.load(&key_of(&session)).unwrap(), json);
    }
    let mut session = store.new_session();
    session.insert("ключ 😀", "naïve 用户 😀 \u{7f} \u{2028}").unwrap();
    session.insert("numbers", (u64::MAX, i64::MIN, 0.1)).unwrap();
    session.save().await.unwrap();
    let expected = json!({"ключ 😀": "naïve 用户 😀 \u{7f} \u{2028}", "numbers": [u64::MAX, i64::MIN, 0.1]});
    let found: serde_json::Value = serde_json::from_str(&site.load(&key_of(&session)).unwrap()).unwrap();
    assert_eq!(found, expected);
}

pub async fn session_written_by_django_is_read_here(site: &Site) {
    let store = site.store().await;
    let session = store.open(&site.create(&tricky())).await.unwrap();
    assert_eq!(session.get_raw("int"), Some("123456789012345678901234567890"));
    assert_eq!(session.get::<u64>("max").unwrap(), Some(u64::MAX));
    assert_eq!(session.get::<i64>("min").unwrap(), Some(i64::MIN));
    assert_eq!(session.get::<f64>("float").unwrap(), Some(1e22));
    assert_eq!(session.get::<String>("name").unwrap().unwrap(), "José 用户 😀 \"\\/\u{7f}\u{1}");
    assert_eq!(session.get::<String>("long").unwrap().unwrap().len(), 13 * 200);
    assert!(site.row(&key_of(&session)).unwrap().0.starts_with('.'), "the payload should be compressed");
}

pub async fn changes_of_each_side_are_read_by_the_other(site: &Site) {
    let store = site.store().await;
    let key = site.create("{\"count\":0,\"gone\":1}");
    for round in 0..5 {
        let mut session = store.open(&key).await.unwrap();
        assert_eq!(session.get::<u32>("count").unwrap(), Some(2 * round));
        session.insert("count", 2 * round + 1).unwrap();
        session.remove("gone");
        session.save().await.unwrap();
        assert_eq!(site.load(&key).unwrap(), format!("{{\"count\":{}}}", 2 * round + 1));
        site.django(
            "save",
            json!({"key": key, "set": format!("{{\"count\":{},\"gone\":2}}", 2 * round + 2)}),
        );
    }
    site.django("save", json!({"key": key, "remove": ["gone", "count"]}));
    let session = store.open(&key).await.unwrap();
    assert_eq!((session.len(), session.key().is_some()), (0, true));
}

pub async fn untouched_values_come_back_byte_for_byte(site: &Site) {
    let store = site.store().await;
    // Python also writes half a surrogate pair, which no Rust string can hold.
    let json = tricky().replace("{\"empty\"", "{\"surrogate\":\"\\ud83d\",\"empty\"");
    let key = site.create(&json);
    let before = SessionData::from_json(Bytes::from(site.json(&key))).unwrap();

    let mut session = store.open(&key).await.unwrap();
    session.insert("new", "é").unwrap();
    session.insert("max", 1).unwrap();
    session.remove("min");
    session.save().await.unwrap();

    let after = SessionData::from_json(Bytes::from(site.json(&key))).unwrap();
    let untouched = |data: &SessionData| -> Vec<_> {
        let touched = ["new", "max", "min"];
        let rest = data.iter().filter(|(key, _)| !touched.contains(key));
        rest.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    assert_eq!(untouched(&after), untouched(&before));
    assert_eq!(untouched(&after).len(), 7);
    assert_eq!(
        (after.get("new"), after.get("max"), after.get("min")),
        (Some("\"\\u00e9\""), Some("1"), None)
    );
    assert!(site.load(&key).unwrap().contains("\"surrogate\":\"\\ud83d\""));
}

pub async fn session_saved_unchanged_comes_back_byte_for_byte(site: &Site) {
    let store = site.store().await;
    // The keys are not in order.
    let key = site.create("{\"z\":1,\"a\":[1.50, 2],\"\\u00e9\":null}");
    let before = site.json(&key);
    let mut session = store.open(&key).await.unwrap();
    session.save().await.unwrap();
    assert_eq!(site.json(&key), before);
    session.cycle_key().await.unwrap();
    assert_eq!(site.json(&key_of(&session)), before);
}

pub async fn changes_of_both_sides_are_merged_here(site: &Site) {
    let store = site.store().await;
    let key = site.create("{\"a\":0,\"b\":0}");
    let mut session = store.open(&key).await.unwrap();
    site.django("save", json!({"key": key, "set": "{\"b\":\"Django\"}"}));
    session.insert("a", "Rust").unwrap();
    session.save().await.unwrap();
    assert_eq!(site.load(&key).unwrap(), "{\"a\":\"Rust\",\"b\":\"Django\"}");
    assert_eq!(store.stats().merges, 1);
}

pub async fn one_of_two_writes_that_expect_the_same_version_succeeds(site: &Site) {
    let (one, other) = (site.database.connect().await, site.database.connect().await);
    let now = Timestamp::from_micros(now_micros());
    for round in 0..20 {
        let key = StoredKey::parse(&format!("race-{:016x}", fastrand::u64(..))).unwrap();
        // The values differ only in case, which some collations ignore.
        let with = |text: &str| {
            Record::new(Bytes::from(format!("{text}{round}:1r31eq:x")), now, now + Duration::from_secs(60))
        };
        one.insert(&key, &with("race")).await.unwrap();
        let found = one.load(&key, now).await.unwrap().unwrap();
        let (first, second) = (with("RACE"), with("RaCe"));
        let expected = Some(found.version());
        let (left, right) = tokio::join!(
            one.update(&key, RecordWrite::new(&first).with_expected(expected), now),
            other.update(&key, RecordWrite::new(&second).with_expected(expected), now),
        );
        let (won, lost, payload) = match (left, right) {
            (Ok(version), Err(error)) => (version, error, first.payload()),
            (Err(error), Ok(version)) => (version, error, second.payload()),
            both => panic!("of two writes, one must take place: {both:?}"),
        };
        assert!(matches!(lost, PersistenceError::Conflict), "{lost:?}");
        let found = other.load(&key, now).await.unwrap().unwrap();
        assert_eq!((found.version(), found.payload()), (won, payload));
        assert_ne!(Some(won), expected);
        one.delete(&key).await.unwrap();
    }
}

pub async fn keys_that_differ_in_case_are_different(site: &Site) {
    let store = site.store().await;
    let key = site.create("{\"a\":1}");
    let upper = key.to_uppercase();
    assert_ne!(upper, key);
    assert!(store.open(&upper).await.unwrap().key().is_none());
    let stored = StoredKey::parse(&upper).unwrap();
    assert!(!store.revoke(&stored).await.unwrap().value);
    let (db, now) = (site.database.connect().await, Timestamp::from_micros(now_micros()));
    let later = now + Duration::from_secs(90 * 24 * 60 * 60);
    let record = Record::new(Bytes::from_static(b"e30:1r31eq:x"), now, later);
    assert!(matches!(db.touch(&stored, later, Timestamp::MAX, now).await, Err(PersistenceError::NotFound)));
    for expected in [None, Some(Version::from_u64(1))] {
        let write = RecordWrite::new(&record).with_expected(expected).with_expiry(ExpiryWrite::Replace);
        let updated = db.update(&stored, write, now).await;
        assert!(matches!(updated, Err(PersistenceError::NotFound)), "{updated:?}");
        let new = StoredKey::parse("new-key-without-a-row").unwrap();
        let write = RecordWrite::new(&record).with_expected(expected).with_expiry(ExpiryWrite::Replace);
        let renamed = db.rename(&stored, &new, write, now).await;
        assert!(matches!(renamed, Err(PersistenceError::NotFound)), "{renamed:?}");
    }
    assert_eq!(site.load(&key).as_deref(), Some("{\"a\":1}"));
}
