//! The work of one node is seen by every node.

use std::time::Duration;

use session_cached_db::{CachedDb, Schema};
use session_core::{Cache as _, Persistence as _};

use super::{
    PairFixture, assert_gone, cookie, every_node, login, nodes, nodes_that_share, open, reach_every_node,
    subject,
};
use crate::suite::cache::CacheFixture as _;
use crate::suite::case::{cases, skip};
use crate::suite::persistence::PersistenceFixture as _;

cases! {
    /// Returns the cases of this part.
    for PairFixture:
    saved_session_is_found_on_every_node,
    hit_reads_no_database,
    save_is_seen_on_every_node,
    save_leaves_a_fresh_entry,
    touch_prolongs_the_session_on_every_node,
    burst_of_loads_of_a_cold_key_makes_one_database_read,
    session_too_large_for_the_cache_works,
    application_with_a_prefix_sees_only_its_own_sessions,
    cached_session_is_shown_by_its_own_store_only,
}

pub async fn saved_session_is_found_on_every_node(fixture: &impl PairFixture) {
    let (here, there) = every_node(fixture).await;
    let (mut session, key) = login(&here).await;
    session.insert("cart", vec![1, 2, 3]).unwrap();
    session.save().await.unwrap();
    for node in [&here, &there] {
        let found = open(node, &key).await;
        assert_eq!(found.get::<String>("name").unwrap().as_deref(), Some("Ada"));
        assert_eq!(found.get::<Vec<u32>>("cart").unwrap(), Some(vec![1, 2, 3]));
    }
}

pub async fn hit_reads_no_database(fixture: &impl PairFixture) {
    let (here, there) = nodes_that_share(fixture).await;
    let (_, key) = login(&here).await;
    let before = there.stats();
    for _ in 0..10 {
        assert!(open(&there, &key).await.key().is_some());
    }
    let now = there.stats();
    assert_eq!(now.hits - before.hits, 10);
    assert_eq!(now.misses + now.bypasses, before.misses + before.bypasses);
}

pub async fn save_is_seen_on_every_node(fixture: &impl PairFixture) {
    let (here, there) = every_node(fixture).await;
    let (_, key) = login(&here).await;
    for n in 0..10 {
        let (writer, reader) = if n % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let mut session = open(writer, &key).await;
        session.insert("n", n).unwrap();
        session.save().await.unwrap();
        reach_every_node(fixture).await;
        assert_eq!(open(reader, &key).await.get::<u32>("n").unwrap(), Some(n));
    }
}

pub async fn save_leaves_a_fresh_entry(fixture: &impl PairFixture) {
    let (here, there) = nodes_that_share(fixture).await;
    let (mut session, key) = login(&here).await;
    session.insert("n", 1).unwrap();
    session.save().await.unwrap();
    let before = there.stats();
    assert_eq!(open(&there, &key).await.get::<u32>("n").unwrap(), Some(1));
    assert_eq!(there.stats().hits - before.hits, 1);
}

pub async fn touch_prolongs_the_session_on_every_node(fixture: &impl PairFixture) {
    let (here, there) = every_node(fixture).await;
    let (session, key) = login(&here).await;
    let stored = *session.stored_key().unwrap();
    let before = there.load(&stored).await.unwrap().unwrap();
    let later = before.expires_at() + Duration::from_secs(1_000);
    here.touch(&stored, later).await.unwrap();
    reach_every_node(fixture).await;
    let after = there.load(&stored).await.unwrap().unwrap();
    assert_eq!(after.expires_at(), later);
    assert_eq!((after.version(), after.payload()), (before.version(), before.payload()));
    assert!(open(&there, &key).await.key().is_some());
}

pub async fn burst_of_loads_of_a_cold_key_makes_one_database_read(fixture: &impl PairFixture) {
    let (here, _) = nodes(fixture).await;
    let (session, _) = login(&here).await;
    let stored = *session.stored_key().unwrap();
    // A touch publishes nothing, so the key is cold afterwards.
    here.touch(&stored, session.expires_at() + Duration::from_secs(60)).await.unwrap();
    let before = here.stats();
    let loads: Vec<_> = (0..64)
        .map(|_| {
            let here = here.clone();
            tokio::spawn(async move { here.load(&stored).await.unwrap().unwrap() })
        })
        .collect();
    for load in loads {
        load.await.unwrap();
    }
    let now = here.stats();
    assert_eq!(now.misses + now.bypasses - before.misses - before.bypasses, 1);
}

pub async fn session_too_large_for_the_cache_works(fixture: &impl PairFixture) {
    let (cache, db) = (fixture.cache().open().await, fixture.persistence().open().await);
    let limit = cache.properties().max_entry_bytes;
    if limit > 16 << 20 {
        return skip("the cache takes any session, however large");
    }
    let here = CachedDb::builder(cache, db)
        .sole_process()
        .schema(Schema::Trust)
        .reaper(None)
        .cache_timeout(Duration::from_secs(5))
        .max_payload_bytes(limit + 1_000)
        .build()
        .await
        .unwrap();
    let (mut session, key) = login(&here).await;
    session.insert("large", "x".repeat(limit)).unwrap();
    session.save().await.unwrap();
    for _ in 0..3 {
        let found = open(&here, &key).await;
        assert_eq!(found.get::<String>("large").unwrap().map(|text| text.len()), Some(limit));
    }
    session.remove("large");
    session.save().await.unwrap();
    assert!(!open(&here, &key).await.contains("large"), "the cache returned an old value");
}

pub async fn application_with_a_prefix_sees_only_its_own_sessions(fixture: &impl PairFixture) {
    let application = async |prefix: &str, limit| {
        let (cache, db) = (fixture.cache().open().await, fixture.persistence().open().await);
        let builder = CachedDb::builder(cache, db).schema(Schema::Trust).reaper(None);
        let builder = builder.cache_timeout(Duration::from_secs(5)).key_prefix(prefix);
        builder.max_sessions_per_subject(limit).build().await.expect("the defaults fit together")
    };
    let (shop, blog) = (application("shop:", 1).await, application("blog:", 2).await);
    let subject = subject();
    let log_in = async |store| {
        let (mut session, _) = login(store).await;
        session.set_subject(&subject).unwrap();
        session.cycle_key().await.unwrap();
        cookie(&session)
    };
    let in_blog = [log_in(&blog).await, log_in(&blog).await];
    let in_shop = log_in(&shop).await;
    assert_eq!(shop.list_by_subject(&subject).await.unwrap().len(), 1);
    assert_eq!(blog.list_by_subject(&subject).await.unwrap().len(), 2);
    assert_gone(&shop, &in_blog[0]).await;
    assert_eq!(shop.revoke_subject(&subject).await.unwrap().value, 1);
    assert_gone(&shop, &in_shop).await;
    for key in &in_blog {
        assert_eq!(open(&blog, key).await.get::<String>("name").unwrap().as_deref(), Some("Ada"));
    }
}

pub async fn cached_session_is_shown_by_its_own_store_only(fixture: &impl PairFixture) {
    let (here, _) = nodes(fixture).await;
    let (session, key) = login(&here).await;
    let stored_key = *session.stored_key().unwrap();
    // The cache still has the session, and the database of another application does not.
    let db = fixture.persistence().open().await;
    assert!(db.delete(&stored_key).await.expect("the database answers"));
    let builder = CachedDb::builder(fixture.cache().open().await, db).schema(Schema::Trust).reaper(None);
    let builder = builder.cache_timeout(Duration::from_secs(5)).name("another application");
    let other = builder.build().await.expect("the defaults fit together");
    assert_gone(&other, &key).await;
}
