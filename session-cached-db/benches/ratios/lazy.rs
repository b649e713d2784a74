//! Reading one value of a large session.

use std::collections::BTreeMap;
use std::hint::black_box;

use session_cached_db::{CachedDb, NoCache, SqlitePersistence};

use crate::Effort;
use crate::figure::{Aim, Report, Times};

const KEYS: usize = 500;

pub(crate) async fn measure(effort: Effort, report: &mut Report) {
    // Without a cache, every open reads and indexes the session again.
    let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    let store = CachedDb::builder(NoCache, db).reaper(None).build().await.unwrap();
    let mut session = store.new_session();
    for key in 0..KEYS {
        // Typical values of applications have a few fields each.
        let item = serde_json::json!({
            "id": key, "name": format!("item number {key}"), "tags": ["one", "two", "three"],
            "price": 12.5, "sold": false, "note": "y".repeat(32),
        });
        session.insert(&format!("key-{key:03}"), item).unwrap();
    }
    let _ = session.save().await.unwrap();
    let cookie = session.key().unwrap().expose().to_owned();
    let payload = store.load(session.stored_key().unwrap()).await.unwrap().unwrap().payload().clone();
    assert!((60_000..72_000).contains(&payload.len()), "{}", payload.len());

    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let (mut all, mut one) = (Times::default(), Times::default());
        for key in 0..100 {
            all.time(async {
                let parsed: BTreeMap<String, serde_json::Value> =
                    serde_json::from_slice(&payload[1..]).unwrap();
                black_box(parsed)
            })
            .await;
            one.time(async {
                let session = store.open(&cookie).await.unwrap();
                let value: Option<serde_json::Value> = session.get(&format!("key-{key:03}")).unwrap();
                assert!(black_box(value).is_some());
            })
            .await;
        }
        rounds.push(one.median() / all.median());
    }
    let what = "open of 64 KB from SQLite and a get of one of 500 keys, against parsing all of it in memory";
    report.add("open_read_one_key", Aim::AtMost(0.5), what, rounds);
}
