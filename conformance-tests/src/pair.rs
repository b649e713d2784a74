//! What any cache with any database must do together, through [`CachedDb`].

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::time::Duration;

use session_cached_db::{CachedDb, Coherence, ConflictPolicy, Error, Schema, Session};
use session_core::{Cache, Expiry, Persistence as _, Scope, SubjectIndex, Timestamp};

use crate::cache::CacheFixture;
use crate::case::cases;
use crate::persistence::{PersistenceFixture, SubjectIndexFixture};

/// Makes handles to one cache and to one database.
pub trait PairFixture: Send + Sync + 'static {
    /// Makes handles to the cache.
    type Cache: CacheFixture;
    /// Makes handles to the database.
    type Persistence: SubjectIndexFixture;

    /// Makes handles to the cache.
    fn cache(&self) -> &Self::Cache;
    /// Makes handles to the database.
    fn persistence(&self) -> &Self::Persistence;
}

/// A cache and a database.
#[derive(Clone, Copy, Debug)]
pub struct Pair<C, P> {
    /// Makes handles to the cache.
    pub cache: C,
    /// Makes handles to the database.
    pub persistence: P,
}

impl<C: CacheFixture, P: SubjectIndexFixture> PairFixture for Pair<C, P> {
    type Cache = C;
    type Persistence = P;

    fn cache(&self) -> &C {
        &self.cache
    }

    fn persistence(&self) -> &P {
        &self.persistence
    }
}

cases! {
    /// All cases of this layer.
    for PairFixture:
    a_session_comes_back_on_every_node,
    a_hit_reads_no_database,
    a_save_is_seen_on_every_node,
    a_save_leaves_a_fresh_entry,
    logout_is_final,
    a_request_that_was_running_cannot_bring_a_session_back,
    a_rotated_key_opens_nothing,
    a_session_that_ended_cannot_be_rotated,
    two_requests_that_change_different_keys_both_win,
    sixty_four_concurrent_saves_all_survive,
    a_crowd_on_one_node_is_no_outage_and_no_conflict,
    a_counter_under_reject_counts_every_acknowledged_save,
    a_counter_under_last_write_refuses_no_save_and_is_what_was_written_last,
    the_last_write_stays_under_last_write,
    logging_out_everywhere_reaches_every_node,
    logging_out_everywhere_spares_others,
    applications_with_prefixes_of_their_own_keep_to_their_own_sessions,
    a_cached_session_is_shown_by_its_own_store_only,
    an_expired_session_is_served_by_nobody,
    a_shortened_session_ends_on_every_node,
    a_touch_prolongs_on_every_node,
    a_burst_of_loads_of_a_cold_key_makes_one_database_read,
    a_session_too_large_for_the_cache_works,
    concurrent_logins_and_logouts_end_with_nobody_logged_in,
}

type CacheOf<F> = <<F as PairFixture>::Cache as CacheFixture>::Cache;
type PersistenceOf<F> = <<F as PairFixture>::Persistence as PersistenceFixture>::Persistence;
type StoreOf<F> = CachedDb<CacheOf<F>, PersistenceOf<F>>;

async fn store<F: PairFixture>(fixture: &F, policy: ConflictPolicy) -> StoreOf<F> {
    let (cache, db) = (fixture.cache().open().await, fixture.persistence().open().await);
    CachedDb::builder(cache, db)
        .sole_process()
        .schema(Schema::Trust)
        .reaper(None)
        // Servers of tests share two cores: what is late here is no outage.
        .cache_timeout(Duration::from_secs(5))
        .conflict_policy(policy)
        .build()
        .await
        .expect("the defaults fit together")
}

/// Two nodes of one application. A cache in the process has one.
async fn nodes<F: PairFixture>(fixture: &F) -> (StoreOf<F>, StoreOf<F>) {
    nodes_with(fixture, ConflictPolicy::LastWrite).await
}

async fn nodes_with<F: PairFixture>(fixture: &F, policy: ConflictPolicy) -> (StoreOf<F>, StoreOf<F>) {
    let here = store(fixture, policy).await;
    let is_shared = fixture.cache().open().await.properties().scope == Scope::Shared;
    let there = if is_shared { store(fixture, policy).await } else { here.clone() };
    (here, there)
}

/// A session that was logged in on `store`, and its cookie.
async fn login<C: Cache, P: SubjectIndex>(store: &CachedDb<C, P>) -> (Session, String) {
    let mut session = store.new_session();
    session.insert("name", "Ada").unwrap();
    assert_eq!(session.save().await.expect("it can be saved"), Coherence::Coherent);
    let cookie = cookie(&session);
    (session, cookie)
}

fn cookie(session: &Session) -> String {
    session.key().expect("a saved session has a key").expose().to_owned()
}

async fn open<C: Cache, P: SubjectIndex>(store: &CachedDb<C, P>, cookie: &str) -> Session {
    store.open(cookie).await.expect("the database answers")
}

async fn assert_gone<C: Cache, P: SubjectIndex>(store: &CachedDb<C, P>, cookie: &str) {
    let session = open(store, cookie).await;
    assert!(session.key().is_none() && session.is_empty(), "a session that has ended was opened");
}

fn subject() -> String {
    format!("user-{:016x}", fastrand::u64(..))
}

pub async fn a_session_comes_back_on_every_node(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    session.insert("cart", vec![1, 2, 3]).unwrap();
    session.save().await.unwrap();
    for node in [&here, &there] {
        let found = open(node, &key).await;
        assert_eq!(found.get::<String>("name").unwrap().as_deref(), Some("Ada"));
        assert_eq!(found.get::<Vec<u32>>("cart").unwrap(), Some(vec![1, 2, 3]));
    }
}

pub async fn a_hit_reads_no_database(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let before = there.stats();
    for _ in 0..10 {
        assert!(open(&there, &key).await.key().is_some());
    }
    let now = there.stats();
    assert_eq!(now.hits - before.hits, 10);
    assert_eq!(now.misses + now.bypasses, before.misses + before.bypasses);
}

pub async fn a_save_is_seen_on_every_node(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    for n in 0..10 {
        let (writer, reader) = if n % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let mut session = open(writer, &key).await;
        session.insert("n", n).unwrap();
        session.save().await.unwrap();
        assert_eq!(open(reader, &key).await.get::<u32>("n").unwrap(), Some(n));
    }
}

pub async fn a_save_leaves_a_fresh_entry(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    session.insert("n", 1).unwrap();
    session.save().await.unwrap();
    let before = there.stats();
    assert_eq!(open(&there, &key).await.get::<u32>("n").unwrap(), Some(1));
    assert_eq!(there.stats().hits - before.hits, 1);
}

pub async fn logout_is_final(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    assert!(open(&there, &key).await.key().is_some());
    session.flush().await.unwrap();
    for node in [&there, &here, &there] {
        assert_gone(node, &key).await;
    }
}

pub async fn a_request_that_was_running_cannot_bring_a_session_back(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    let mut running = open(&there, &key).await;
    session.flush().await.unwrap();
    running.insert("late", true).unwrap();
    assert!(matches!(running.save().await, Err(Error::SessionGone)));
    assert_gone(&here, &key).await;
    assert_gone(&there, &key).await;
}

pub async fn a_rotated_key_opens_nothing(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, old) = login(&here).await;
    assert!(open(&there, &old).await.key().is_some());
    session.insert("is_admin", true).unwrap();
    session.cycle_key().await.unwrap();
    let new = cookie(&session);
    assert_ne!(old, new);
    for node in [&here, &there] {
        assert_gone(node, &old).await;
        let found = open(node, &new).await;
        assert_eq!(found.get::<String>("name").unwrap().as_deref(), Some("Ada"));
        assert_eq!(found.get::<bool>("is_admin").unwrap(), Some(true));
    }
}

pub async fn a_session_that_ended_cannot_be_rotated(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    let mut running = open(&there, &key).await;
    session.flush().await.unwrap();
    assert!(matches!(running.cycle_key().await, Err(Error::SessionGone)));
    assert_gone(&there, &cookie(&running)).await;
}

pub async fn two_requests_that_change_different_keys_both_win(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let (mut one, mut other) = (open(&here, &key).await, open(&there, &key).await);
    one.insert("one", 1).unwrap();
    other.insert("other", 2).unwrap();
    one.save().await.unwrap();
    other.save().await.unwrap();
    for node in [&here, &there] {
        let found = open(node, &key).await;
        assert_eq!((found.get("one").unwrap(), found.get("other").unwrap()), (Some(1), Some(2)));
    }
}

pub async fn a_crowd_on_one_node_is_no_outage_and_no_conflict(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let mut crowd = Vec::new();
    for n in 0..64 {
        let mut session = open(&here, &key).await;
        session.insert(&format!("key-{n}"), n).unwrap();
        crowd.push(session);
    }
    let before = here.stats();
    let saves = crowd.into_iter().map(|mut session| tokio::spawn(async move { session.save().await }));
    for save in saves.collect::<Vec<_>>() {
        assert_eq!(save.await.unwrap().expect("it can be saved"), Coherence::Coherent);
    }
    let after = here.stats();
    assert_eq!((after.conflicts, after.degraded_writes), (before.conflicts, before.degraded_writes));
    assert_eq!(
        (after.misses, after.bypasses),
        (before.misses, before.bypasses),
        "a save read the session again"
    );
    for node in [&here, &there] {
        assert_eq!(open(node, &key).await.keys().filter(|key| key.starts_with("key-")).count(), 64);
    }
}

pub async fn sixty_four_concurrent_saves_all_survive(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let mut saves = Vec::new();
    for n in 0..64 {
        let mut session = open(if n % 2 == 0 { &here } else { &there }, &key).await;
        session.insert(&format!("key-{n}"), n).unwrap();
        saves.push(tokio::spawn(async move { session.save().await }));
    }
    for save in saves {
        save.await.unwrap().expect("a save of a key of its own succeeds");
    }
    for node in [&here, &there] {
        let found = open(node, &key).await;
        for n in 0..64 {
            assert_eq!(
                found.get(&format!("key-{n}")).unwrap(),
                Some(n),
                "a save that was acknowledged is lost"
            );
        }
    }
}

pub async fn a_counter_under_reject_counts_every_acknowledged_save(fixture: &impl PairFixture) {
    let (here, there) = nodes_with(fixture, ConflictPolicy::Reject).await;
    let (_, key) = login(&here).await;
    let mut counters = Vec::new();
    for n in 0..4 {
        let (node, key) = (if n % 2 == 0 { here.clone() } else { there.clone() }, key.clone());
        counters.push(tokio::spawn(async move {
            let mut counted = 0;
            while counted < 5 {
                let mut session = open(&node, &key).await;
                session.modify("count", |count: &mut u32| *count += 1).unwrap();
                match session.save().await {
                    Ok(_) => counted += 1,
                    Err(Error::Conflict) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    for counter in counters {
        counter.await.unwrap();
    }
    assert_eq!(open(&there, &key).await.get::<u32>("count").unwrap(), Some(20));
}

pub async fn a_counter_under_last_write_refuses_no_save_and_is_what_was_written_last(
    fixture: &impl PairFixture,
) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let mut counters = Vec::new();
    for n in 0..4 {
        let (node, key) = (if n % 2 == 0 { here.clone() } else { there.clone() }, key.clone());
        counters.push(tokio::spawn(async move {
            let mut last = 0;
            for _ in 0..5 {
                let mut session = open(&node, &key).await;
                session.modify("count", |count: &mut u32| *count += 1).unwrap();
                session.save().await.expect("nothing is refused");
                last = session.get("count").unwrap().unwrap();
            }
            last
        }));
    }
    let mut lasts = Vec::new();
    for counter in counters {
        lasts.push(counter.await.unwrap());
    }
    let count = open(&here, &key).await.get::<u32>("count").unwrap().unwrap();
    assert!(lasts.contains(&count), "{count} is nobody's last write: {lasts:?}");
    assert_eq!(open(&there, &key).await.get::<u32>("count").unwrap(), Some(count), "the nodes see the same");
}

pub async fn the_last_write_stays_under_last_write(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (_, key) = login(&here).await;
    let (mut one, mut other) = (open(&here, &key).await, open(&there, &key).await);
    one.insert("theme", "dark").unwrap();
    other.insert("theme", "light").unwrap();
    one.save().await.unwrap();
    other.save().await.unwrap();
    for node in [&here, &there] {
        assert_eq!(open(node, &key).await.get::<String>("theme").unwrap().as_deref(), Some("light"));
    }
}

pub async fn logging_out_everywhere_reaches_every_node(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let subject = subject();
    let mut keys = Vec::new();
    for n in 0..6 {
        let (mut session, _) = login(if n % 2 == 0 { &here } else { &there }).await;
        session.set_subject(&subject).unwrap();
        session.cycle_key().await.unwrap();
        keys.push(cookie(&session));
    }
    assert_eq!(there.list_by_subject(&subject).await.unwrap().len(), 6);
    assert_eq!(here.revoke_subject(&subject).await.unwrap().value, 6);
    for key in &keys {
        assert_gone(&here, key).await;
        assert_gone(&there, key).await;
    }
}

pub async fn applications_with_prefixes_of_their_own_keep_to_their_own_sessions(fixture: &impl PairFixture) {
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

pub async fn a_cached_session_is_shown_by_its_own_store_only(fixture: &impl PairFixture) {
    let (here, _) = nodes(fixture).await;
    let (session, key) = login(&here).await;
    let stored_key = *session.stored_key().unwrap();
    // The cache still has it, and another application's database does not.
    let db = fixture.persistence().open().await;
    assert!(db.delete(&stored_key).await.expect("the database answers"));
    let builder = CachedDb::builder(fixture.cache().open().await, db).schema(Schema::Trust).reaper(None);
    let builder = builder.cache_timeout(Duration::from_secs(5)).name("another application");
    let other = builder.build().await.expect("the defaults fit together");
    assert_gone(&other, &key).await;
}

pub async fn logging_out_everywhere_spares_others(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut other, _) = login(&here).await;
    other.set_subject(&subject()).unwrap();
    other.save().await.unwrap();
    assert_eq!(there.revoke_subject(&subject()).await.unwrap().value, 0);
    assert!(open(&there, &cookie(&other)).await.key().is_some());
}

pub async fn an_expired_session_is_served_by_nobody(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    session.set_expiry(Expiry::After(Duration::from_millis(1_500)));
    session.save().await.unwrap();
    let ends_at = session.expires_at();
    while Timestamp::from(std::time::SystemTime::now()) < ends_at {
        open(&there, &key).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_gone(&here, &key).await;
    assert_gone(&there, &key).await;
}

pub async fn a_shortened_session_ends_on_every_node(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (mut session, key) = login(&here).await;
    assert!(open(&there, &key).await.key().is_some());
    session.set_expiry(Expiry::At(Timestamp::from_secs(1)));
    session.save().await.unwrap();
    assert_gone(&here, &key).await;
    assert_gone(&there, &key).await;
}

pub async fn a_touch_prolongs_on_every_node(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    let (session, key) = login(&here).await;
    let stored = *session.stored_key().unwrap();
    let before = there.load(&stored).await.unwrap().unwrap();
    let later = before.expires_at() + Duration::from_secs(1_000);
    here.touch(&stored, later).await.unwrap();
    let after = there.load(&stored).await.unwrap().unwrap();
    assert_eq!(after.expires_at(), later);
    assert_eq!((after.version(), after.payload()), (before.version(), before.payload()));
    assert!(open(&there, &key).await.key().is_some());
}

pub async fn a_burst_of_loads_of_a_cold_key_makes_one_database_read(fixture: &impl PairFixture) {
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

pub async fn a_session_too_large_for_the_cache_works(fixture: &impl PairFixture) {
    let (cache, db) = (fixture.cache().open().await, fixture.persistence().open().await);
    let limit = cache.properties().max_entry_bytes;
    if limit > 16 << 20 {
        // It takes anything that a session can be.
        return;
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
    assert!(!open(&here, &key).await.contains("large"), "an old value came from the cache");
}

pub async fn concurrent_logins_and_logouts_end_with_nobody_logged_in(fixture: &impl PairFixture) {
    let (here, there) = nodes(fixture).await;
    for _ in 0..5 {
        let (_, key) = login(&here).await;
        let mut requests = Vec::new();
        for n in 0..12 {
            let (node, key) = (if n % 2 == 0 { here.clone() } else { there.clone() }, key.clone());
            requests.push(tokio::spawn(async move {
                let mut session = open(&node, &key).await;
                let done = match n % 4 {
                    0 => session.flush().await,
                    1 => session.cycle_key().await,
                    _ => {
                        session.insert("n", n).unwrap();
                        session.key()?;
                        session.save().await
                    }
                };
                match done {
                    Ok(_) | Err(Error::SessionGone) => {}
                    Err(error) => panic!("{error}"),
                }
                session.key().map(|key| key.expose().to_owned())
            }));
        }
        let mut keys = vec![key];
        for request in requests {
            keys.extend(request.await.unwrap());
        }
        for key in &keys {
            let found = open(&here, key).await;
            let _ = open(&there, key).await;
            if found.key().is_some() {
                // Whoever rotated the key before the logout kept the session under a new one; it ends now.
                assert!(open(&there, key).await.key().is_some(), "one node knows it, and the other does not");
                let mut found = found;
                found.flush().await.unwrap();
            }
            assert_gone(&here, key).await;
            assert_gone(&there, key).await;
        }
    }
}
