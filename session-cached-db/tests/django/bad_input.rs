//! Unreadable rows, and cookies that are not keys.

use serde_json::json;
use session_cached_db::StoredKey;
use session_cached_db::{CacheHealth, Error};

use crate::log::Log;
use crate::site::{SECRET_KEY, Site, text};

pub async fn unreadable_payloads_are_reported_and_left_alone(site: &Site) {
    let sign = |text_: &str, key: Option<&str>, compress: bool| {
        text(&site.django("sign", json!({"text": text_, "key": key, "compress": compress}))["row"])
    };
    let good = sign("{\"visits\":1}", None, false);
    let (value, signature) = good.rsplit_once(':').unwrap();
    let rows = [
        ("tampered with", format!("x{good}")),
        ("with another signature", format!("{value}:{}", signature.chars().rev().collect::<String>())),
        ("cut off", good[..good.len() - 5].to_owned()),
        ("cut off before its signature", value.to_owned()),
        ("empty", String::new()),
        ("signed with a foreign key", sign("{\"visits\":1}", Some("foreign"), false)),
        ("too large when inflated", text(&site.django("bomb", json!({"megabytes": 64}))["row"])),
        ("no JSON", sign("\u{80}\u{4}}q.", None, false)),
        ("no JSON object", sign("[1,2]", None, false)),
        ("JSON that only Python has", sign("{\"a\":NaN}", None, false)),
        ("no JSON, compressed", sign(&"secret ".repeat(100), None, true)),
    ];
    for (what, row) in rows {
        // A store logs ten such lines in ten seconds.
        let store = site.store().await;
        let key = site.create("{\"a\":1}");
        site.django("put", json!({"key": key, "row": row, "expire_in": 3600}));
        let before = site.row(&key).unwrap();
        assert_eq!(before.0, row);

        let log = Log::listen();
        let stored = StoredKey::parse(&key).unwrap();
        let error = store.load(&stored).await.unwrap_err();
        assert!(matches!(error, Error::Unreadable(_)), "{what}: {error:?}");
        let error = store.open(&key).await.unwrap_err();
        assert!(matches!(error, Error::Unreadable(_)), "{what}: {error:?}");
        let events = log.events("payload_unreadable");
        assert_eq!(events.len(), 2, "{what}: {:?}", log.lines());
        for line in log.lines() {
            let shows = [&key, SECRET_KEY, "secret", "visits"].iter().any(|secret| line.contains(*secret))
                || (row.len() > 20 && line.contains(&row[..20]));
            assert!(!shows || line.contains("SECRET_KEY"), "{what}: {line}");
            assert!(!line.contains(&key) && !line.contains(SECRET_KEY), "{what}: {line}");
        }
        drop(log);

        assert_eq!(site.row(&key).unwrap(), before, "{what}: the row must stay as evidence");
        store.revoke(&stored).await.unwrap();
    }

    // A session that becomes unreadable while it is open is not overwritten.
    let store = site.store().await;
    let key = site.create("{\"a\":1}");
    let mut session = store.open(&key).await.unwrap();
    site.django("put", json!({"key": key, "row": "evidence", "expire_in": 3600}));
    session.insert("a", 2).unwrap();
    assert!(matches!(session.save().await, Err(Error::Unreadable(_))));
    assert!(matches!(session.cycle_key().await, Err(Error::Unreadable(_))));
    assert_eq!(site.row(&key).unwrap().0, "evidence");
}

pub async fn malformed_cookies_cause_no_io(site: &Site) {
    let store = site.store().await;
    let long = "k".repeat(41);
    let longer = "k".repeat(1_240);
    let cookies = [
        "",
        "short",
        &long,
        &longer,
        "../../../etc/passwd",
        "with spaces in it",
        "ключключключ",
        "a'; DROP TABLE django_session; --",
        "nul\0nul\0nul\0",
        "eyJhIjoxfQ:1r31eq:FksILNxBF-juWQwx_lmXoOUj-CluPawHYke7jcHhfX4",
    ];
    for cookie in cookies {
        let session = store.open(cookie).await.unwrap();
        assert!(session.is_empty() && session.key().is_none(), "{cookie:?}");
    }
    let stats = store.stats();
    assert_eq!((stats.hits, stats.misses, stats.bypasses), (0, 0, 0), "malformed cookies must cost no I/O");
    // This one is as long as Django's keys, and longer than this crate's: it is looked up.
    store.open(&long[..40]).await.unwrap();
    assert_eq!(store.stats().misses, 1);
    assert_eq!(store.ping().await.unwrap().cache, CacheHealth::Up);
}
