//! The contract of [`Cache`], case by case.

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use session_core::{
    Cache, Entry, Exchange, Expected, Fence, Holder, KeyForm, KeyPrefix, Record, SessionKey, Stamp, StoreId,
    StoredKey, Subject, Timestamp, Token, Value, Version,
};

use crate::suite::case::Case;

pub mod entries;
pub mod exchanges;
pub mod histories;
pub mod leases;
pub mod servers;
pub mod ttls;
pub mod unreadable;

/// A fixture that makes handles to one cache.
///
/// A closure that returns a future of a cache is one.
pub trait CacheFixture: Send + Sync + 'static {
    /// The cache.
    type Cache: Cache;

    /// Opens another handle to the same cache, as another node would.
    fn open(&self) -> impl Future<Output = Self::Cache> + Send;

    /// Puts `bytes`, bypassing the cache, where it keeps the entry of `key`. Returns `false` if there is no
    /// such place, because entries are never encoded, or if the fixture cannot reach it. Cases that need it
    /// are then skipped. Defaults to `false`.
    fn plant(&self, key: &StoredKey, bytes: Bytes) -> impl Future<Output = bool> + Send {
        let _ = (key, bytes);
        std::future::ready(false)
    }

    /// Puts `state`, bypassing the cache, where it keeps the encoded [`State`](session_core::State) of `key`, as the
    /// entry with this stamp. Returns `false` as [`plant`](Self::plant) does.
    fn plant_state(&self, key: &StoredKey, stamp: Stamp, state: Bytes) -> impl Future<Output = bool> + Send {
        let _ = (key, stamp, state);
        std::future::ready(false)
    }

    /// Copies, bypassing the cache, the encoded entry of `from` to where the cache keeps that of `to`.
    /// Returns `false` as [`plant`](Self::plant) does.
    fn copy(&self, from: &StoredKey, to: &StoredKey) -> impl Future<Output = bool> + Send {
        let _ = (from, to);
        std::future::ready(false)
    }
}

impl<F, Fut> CacheFixture for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output: Cache> + Send,
{
    type Cache = Fut::Output;

    fn open(&self) -> impl Future<Output = Self::Cache> + Send {
        self()
    }
}

/// Returns all cases of this layer.
#[must_use]
pub fn cases<F: CacheFixture>() -> Vec<Case<F>> {
    let parts = [
        entries::cases(),
        ttls::cases(),
        unreadable::cases(),
        exchanges::cases(),
        leases::cases(),
        histories::cases(),
        servers::cases(),
    ];
    parts.into_iter().flatten().collect()
}

pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// Returns a key that no other case and no other run uses.
pub(super) fn key() -> StoredKey {
    let key = SessionKey::generate().expect("the system has random numbers");
    StoredKey::derive(&key, KeyForm::Hashed, &KeyPrefix::NONE).expect("a hashed key fits")
}

fn number() -> NonZeroU64 {
    NonZeroU64::new(fastrand::u64(1..)).expect("it is above zero")
}

fn stamp() -> Stamp {
    Stamp(number())
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

fn value_of(payload: impl Into<Bytes>) -> Entry {
    let record = Record::new(payload.into(), now(), now() + 90 * 24 * 60 * MINUTE)
        .with_version(Version::from_u64(fastrand::u64(..)))
        .with_last_seen_at(now() + Duration::from_micros(1))
        .with_subject(Some(Subject::parse("üser-42").expect("it is a subject")));
    Entry::value(
        stamp(),
        Value { record: Arc::new(record), made_at: now(), store: StoreId(fastrand::u64(..)) },
    )
}

pub(super) fn value() -> Entry {
    value_of(format!("1{{\"n\":{}}}", fastrand::u64(..)))
}

fn lease() -> Entry {
    Entry::lease(stamp())
}

fn fence() -> Entry {
    let holder = |seconds| Holder { token: Token(number()), deadline: now() + Duration::from_secs(seconds) };
    Entry::fence(stamp(), Fence { holders: vec![holder(10), holder(30)], dirty: true })
}

fn every_state() -> [Entry; 3] {
    [value(), lease(), fence()]
}

pub(super) async fn exchange(
    cache: &impl Cache,
    key: &StoredKey,
    expected: Expected,
    new: Option<Entry>,
    ttl: Duration,
) -> Exchange {
    cache.compare_exchange(key, expected, new, ttl).await.expect("the cache answers")
}

async fn get(cache: &impl Cache, key: &StoredKey) -> Option<Entry> {
    // An in-process cache never waits, and would keep other tasks from running.
    tokio::task::yield_now().await;
    cache.get(key).await.expect("the cache answers")
}

/// Stores `entry` under a vacant `key`.
pub(super) async fn put(cache: &impl Cache, key: &StoredKey, entry: &Entry, ttl: Duration) {
    let stored = exchange(cache, key, Expected::Vacant, Some(entry.clone()), ttl).await;
    assert_eq!(stored, Exchange::Stored, "nothing was under this key, so the exchange must happen");
}

/// Returns a short TTL that this cache does not round to zero.
pub(super) fn short_ttl(cache: &impl Cache) -> Duration {
    cache.properties().ttl_granularity.max(Duration::from_millis(100))
}

/// Waits until nothing is under `key`. That must happen within `ttl` and the time that rounding adds.
async fn wait_until_gone(cache: &impl Cache, key: &StoredKey, ttl: Duration) {
    let granularity = cache.properties().ttl_granularity;
    let patience = ttl + 2 * granularity + Duration::from_secs(2);
    let begin = std::time::Instant::now();
    while get(cache, key).await.is_some() {
        assert!(
            begin.elapsed() < patience,
            "an entry with a TTL of {ttl:?} is still there after {patience:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Opens several handles, as several nodes would.
async fn nodes<F: CacheFixture>(fixture: &F) -> Vec<Arc<F::Cache>> {
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(Arc::new(fixture.open().await));
    }
    nodes
}
