//! The behavior of any cache with any database, through [`CachedDb`].

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::time::Duration;

use session_cached_db::{CachedDb, Coherence, ConflictPolicy, Schema, Session};
use session_core::{Cache, NearSource, Scope, SubjectIndex};

use crate::suite::cache::CacheFixture;
use crate::suite::case::{Case, skip};
use crate::suite::persistence::{PersistenceFixture, SubjectIndexFixture};

pub mod endings;
pub mod visibility;
pub mod writers;

/// A fixture that makes handles to one cache and to one database.
pub trait PairFixture: Send + Sync + 'static {
    /// The fixture of the cache.
    type Cache: CacheFixture;
    /// The fixture of the database.
    type Persistence: SubjectIndexFixture;

    /// Returns the fixture of the cache.
    fn cache(&self) -> &Self::Cache;
    /// Returns the fixture of the database.
    fn persistence(&self) -> &Self::Persistence;
}

/// The fixtures of a cache and of a database.
#[derive(Clone, Copy, Debug)]
pub struct Pair<C, P> {
    /// The fixture of the cache.
    pub cache: C,
    /// The fixture of the database.
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

/// Returns all cases of this layer.
#[must_use]
pub fn cases<F: PairFixture>() -> Vec<Case<F>> {
    let parts = [visibility::cases(), endings::cases(), writers::cases()];
    parts.into_iter().flatten().collect()
}

type CacheOf<F> = <<F as PairFixture>::Cache as CacheFixture>::Cache;

type PersistenceOf<F> = <<F as PairFixture>::Persistence as PersistenceFixture>::Persistence;

type StoreOf<F> = CachedDb<CacheOf<F>, PersistenceOf<F>>;

async fn store<F: PairFixture>(fixture: &F, policy: ConflictPolicy) -> StoreOf<F> {
    let (cache, db) = (fixture.cache().open().await, fixture.persistence().open().await);
    let is_told = is_told_by_database(&cache);
    let store = CachedDb::builder(cache, db)
        .sole_process()
        .schema(Schema::Trust)
        .reaper(None)
        // The servers of tests share two cores, so a late answer is no outage.
        .cache_timeout(Duration::from_secs(5))
        .conflict_policy(policy)
        .build()
        .await
        .expect("the defaults fit together");
    if is_told {
        // Its memory answers from the moment on at which the database has been heard of.
        let (session, key) = login(&store).await;
        while store.stats().near_hits == 0 {
            assert!(open(&store, &key).await.key().is_some());
        }
        store.revoke(session.stored_key().expect("it was saved")).await.expect("the database answers");
    }
    store
}

/// Returns `true` if each node has memory for itself, of which the database tells it what has changed.
fn is_told_by_database(cache: &impl Cache) -> bool {
    cache.near().is_some_and(|near| near.source() == NearSource::Database)
}

/// Opens two nodes of one application. An in-process cache has one node, which is returned twice.
async fn nodes<F: PairFixture>(fixture: &F) -> (StoreOf<F>, StoreOf<F>) {
    nodes_with(fixture, ConflictPolicy::LastWrite).await
}

async fn nodes_with<F: PairFixture>(fixture: &F, policy: ConflictPolicy) -> (StoreOf<F>, StoreOf<F>) {
    let here = store(fixture, policy).await;
    let there = if has_other_nodes(fixture).await { store(fixture, policy).await } else { here.clone() };
    (here, there)
}

/// Opens two nodes, of which each has what the other has cached. Where each has a cache for itself, one is returned twice.
async fn nodes_that_share<F: PairFixture>(fixture: &F) -> (StoreOf<F>, StoreOf<F>) {
    if is_told_by_database(&fixture.cache().open().await) {
        let here = store(fixture, ConflictPolicy::LastWrite).await;
        return (here.clone(), here);
    }
    nodes(fixture).await
}

/// Opens two nodes, for a case about what the one sees of the other's work. With an in-process cache the case runs, too, but is
/// reported as ignored, because no other node was asked.
async fn every_node<F: PairFixture>(fixture: &F) -> (StoreOf<F>, StoreOf<F>) {
    if !has_other_nodes(fixture).await {
        skip("the cache is in one process, so there is no other node to ask");
    }
    nodes(fixture).await
}

async fn has_other_nodes<F: PairFixture>(fixture: &F) -> bool {
    let cache = fixture.cache().open().await;
    cache.properties().scope == Scope::Shared || is_told_by_database(&cache)
}

/// Waits until every node shows what was saved before: at once, unless nodes have near caches, which may be behind by their
/// bound.
async fn reach_every_node<F: PairFixture>(fixture: &F) {
    let cache = fixture.cache().open().await;
    if let Some(near) = cache.near() {
        tokio::time::sleep(near.freshness_bound()).await;
    }
}

/// Logs a session in on `store`, and returns it with its cookie.
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
