//! The contract of [`Cache`], case by case.

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use session_core::{
    Acquired, Cache, CacheError, DynCache, Entry, Exchange, Expected, Fence, Holder, KeyForm, KeyPrefix,
    Record, SessionKey, Stamp, State, StoreId, StoredKey, Subject, Timestamp, Token, Value, Version,
};

use crate::case::cases;
use crate::crowd::at_once;

/// Makes handles to one cache.
///
/// A closure that returns a future of a cache is one, too.
pub trait CacheFixture: Send + Sync + 'static {
    /// The cache.
    type Cache: Cache;

    /// Another handle to the same cache, as another node has it.
    fn open(&self) -> impl Future<Output = Self::Cache> + Send;

    /// Puts `bytes` where the cache keeps what is under `key`, past the cache. `false` if there is no such place,
    /// because entries are never encoded; cases that need it pass then.
    fn plant(&self, key: &StoredKey, bytes: Bytes) -> impl Future<Output = bool> + Send {
        let _ = (key, bytes);
        std::future::ready(false)
    }

    /// Copies what the cache keeps under `from` to where it keeps what is under `to`, past the cache. `false` as with
    /// [`plant`](Self::plant).
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

cases! {
    /// All cases of this layer.
    for CacheFixture:
    what_was_stored_is_found_with_its_stamp => "What was stored is found under the same key",
    another_handle_finds_it_as_well => "What was stored is found under the same key",
    every_state_comes_back_as_it_was => "What was stored is found under the same key",
    an_entry_is_gone_after_its_ttl => "What was stored is found under the same key",
    an_entry_is_there_until_its_ttl_has_passed => "What was stored is found under the same key",
    a_replaced_entry_has_the_ttl_of_its_replacement => "What was stored is found under the same key",
    a_ttl_of_two_months_is_kept => "What was stored is found under the same key",
    a_ttl_of_zero_stores_nothing => "A TTL of zero stores nothing",
    a_ttl_of_zero_removes_what_was_expected => "A TTL of zero stores nothing",
    keys_that_differ_in_case_are_different => "Keys are compared byte for byte",
    the_longest_and_the_strangest_keys_are_kept_apart => "Keys are compared byte for byte",
    what_cannot_be_read_counts_as_nothing => "An entry that cannot be read",
    what_cannot_be_read_is_replaced_by_an_exchange => "An entry that cannot be read",
    what_cannot_be_read_is_replaced_by_a_lease => "An entry that cannot be read",
    an_entry_of_another_key_is_never_returned => "An entry of another key is never returned",
    a_replaced_entry_does_not_come_back => "An entry may disappear before its TTL",
    a_removed_entry_does_not_come_back => "An entry may disappear before its TTL",
    a_value_that_is_too_large_leaves_nothing_stale => "A value that is too large",
    a_large_value_comes_back_whole => "A value that is too large",
    of_exchanges_that_expect_the_same_stamp_one_is_stored => "Atomic against every other exchange",
    of_exchanges_that_expect_nothing_one_is_stored => "Atomic against every other exchange",
    of_many_exchanges_none_is_lost => "Atomic against every other exchange",
    a_lost_exchange_changes_nothing => "[`Exchange::Lost`] changes nothing",
    a_lost_exchange_tells_what_was_there => "[`Exchange::Lost`] changes nothing",
    a_lost_exchange_tells_that_nothing_was_there => "[`Exchange::Lost`] changes nothing",
    an_exchange_for_nothing_removes_what_was_expected => "Atomic against every other exchange",
    the_new_stamp_is_the_one_to_expect => "The stamp of `new` becomes",
    a_stamp_that_was_replaced_is_not_expected_again => "The stamp of `new` becomes",
    a_lease_is_placed_on_a_vacant_key => "[`Acquired::Placed`] only if nothing was there",
    of_acquisitions_one_places_its_lease => "[`Acquired::Placed`] only if nothing was there",
    a_placed_lease_ends_after_its_ttl => "[`Acquired::Placed`] only if nothing was there",
    an_acquisition_finds_every_state_and_changes_nothing => "[`Acquired::Found`] changes nothing",
    random_histories_are_those_of_a_register => "Atomic against every other exchange",
    every_key_has_a_server_below_their_number => "Returns the number of the server that has `key`, below",
    a_key_keeps_its_server_whatever_is_stored => "The same key has the same number",
    every_handle_names_the_same_server => "The same key has the same number",
}

const MINUTE: Duration = Duration::from_secs(60);

/// A key that no other case and no other run uses.
fn key() -> StoredKey {
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

fn value() -> Entry {
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

async fn exchange(
    cache: &impl Cache,
    key: &StoredKey,
    expected: Expected,
    new: Option<Entry>,
    ttl: Duration,
) -> Exchange {
    cache.compare_exchange(key, expected, new, ttl).await.expect("the cache answers")
}

async fn get(cache: &impl Cache, key: &StoredKey) -> Option<Entry> {
    // A cache in the process never waits, and would keep others from getting on.
    tokio::task::yield_now().await;
    cache.get(key).await.expect("the cache answers")
}

/// Puts `entry` under a vacant `key`.
async fn put(cache: &impl Cache, key: &StoredKey, entry: &Entry, ttl: Duration) {
    let stored = exchange(cache, key, Expected::Vacant, Some(entry.clone()), ttl).await;
    assert_eq!(stored, Exchange::Stored, "nothing was under this key, so the exchange must happen");
}

/// A time that is surely over after this cache's coarsest rounding.
fn short_ttl(cache: &impl Cache) -> Duration {
    cache.properties().ttl_granularity.max(Duration::from_millis(100))
}

/// Waits until nothing is under `key`, which must be within `ttl` and what rounding adds.
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

pub async fn what_was_stored_is_found_with_its_stamp(fixture: &impl CacheFixture) {
    let (cache, key, entry) = (fixture.open().await, key(), value());
    assert_eq!(get(&cache, &key).await, None, "nothing was stored yet");
    put(&cache, &key, &entry, MINUTE).await;
    assert_eq!(get(&cache, &key).await, Some(entry));
}

pub async fn another_handle_finds_it_as_well(fixture: &impl CacheFixture) {
    let (here, there, key, entry) = (fixture.open().await, fixture.open().await, key(), value());
    put(&here, &key, &entry, MINUTE).await;
    assert_eq!(get(&there, &key).await, Some(entry.clone()));
    let removed = exchange(&there, &key, Expected::Stamp(entry.stamp), None, MINUTE).await;
    assert_eq!(removed, Exchange::Stored);
    assert_eq!(get(&here, &key).await, None);
}

pub async fn every_state_comes_back_as_it_was(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let bare = Entry::value(
        Stamp(NonZeroU64::MAX),
        Value {
            record: Arc::new(Record::new(Bytes::new(), now(), now() + MINUTE)),
            made_at: now(),
            store: StoreId(u64::MAX),
        },
    );
    let every_byte = value_of((0..=255).collect::<Vec<u8>>());
    for entry in every_state().into_iter().chain([bare, every_byte]) {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        assert_eq!(get(&cache, &key).await, Some(entry));
    }
}

pub async fn an_entry_is_gone_after_its_ttl(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let ttl = short_ttl(&cache);
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, ttl).await;
        wait_until_gone(&cache, &key, ttl).await;
        put(&cache, &key, &value(), MINUTE).await;
    }
}

pub async fn an_entry_is_there_until_its_ttl_has_passed(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    // Neither a whole number of seconds nor of milliseconds.
    let ttl = Duration::from_micros(1_300_500);
    let (key, entry) = (key(), fence());
    let begin = std::time::Instant::now();
    put(&cache, &key, &entry, ttl).await;
    loop {
        let found = get(&cache, &key).await;
        // Looked at afterwards: while the TTL had not passed at the end of the call, it had not during it.
        if begin.elapsed() >= ttl {
            break;
        }
        assert_eq!(found, Some(entry.clone()), "gone after {:?} of a TTL of {ttl:?}", begin.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn a_replaced_entry_has_the_ttl_of_its_replacement(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let ttl = short_ttl(&cache);
    let (shortened, first) = (key(), value());
    put(&cache, &shortened, &first, MINUTE).await;
    exchange(&cache, &shortened, Expected::Stamp(first.stamp), Some(value()), ttl).await;
    let (prolonged, second, third) = (key(), value(), value());
    put(&cache, &prolonged, &second, ttl).await;
    // Where the first one was lost by then, that is its right.
    exchange(&cache, &prolonged, Expected::Stamp(second.stamp), Some(third.clone()), MINUTE).await;
    wait_until_gone(&cache, &shortened, ttl).await;
    assert_eq!(get(&cache, &prolonged).await, Some(third), "gone at the end of the TTL that it replaced");
}

pub async fn a_ttl_of_two_months_is_kept(fixture: &impl CacheFixture) {
    let (cache, key, entry) = (fixture.open().await, key(), value());
    put(&cache, &key, &entry, 60 * 24 * 60 * MINUTE).await;
    assert_eq!(get(&cache, &key).await, Some(entry), "memcached takes more than 30 days for a date");
}

pub async fn a_ttl_of_zero_stores_nothing(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, Duration::ZERO).await;
        assert_eq!(get(&cache, &key).await, None);
    }
}

pub async fn a_ttl_of_zero_removes_what_was_expected(fixture: &impl CacheFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    put(&cache, &key, &old, MINUTE).await;
    let done = exchange(&cache, &key, Expected::Stamp(old.stamp), Some(value()), Duration::ZERO).await;
    assert_eq!(done, Exchange::Stored);
    assert_eq!(get(&cache, &key).await, None);
}

pub async fn keys_that_differ_in_case_are_different(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let random = fastrand::u64(..);
    let upper = StoredKey::parse(&format!("Case-{random:x}")).expect("it is a key");
    let lower = StoredKey::parse(&format!("case-{random:x}")).expect("it is a key");
    let (one, other) = (value(), value());
    put(&cache, &upper, &one, MINUTE).await;
    assert_eq!(get(&cache, &lower).await, None);
    put(&cache, &lower, &other, MINUTE).await;
    assert_eq!(get(&cache, &upper).await, Some(one));
}

pub async fn the_longest_and_the_strangest_keys_are_kept_apart(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let random = format!("{:016x}", fastrand::u64(..));
    let longest = format!("{random}{}", "k".repeat(StoredKey::MAX_LEN - random.len()));
    let texts = [longest[..StoredKey::MAX_LEN - 1].to_owned(), longest]
        .into_iter()
        .chain("%{}*?[]'\"\\:$!#".chars().map(|strange| format!("{random}{strange}")));
    let mut stored = Vec::new();
    for text in texts {
        let (key, entry) = (StoredKey::parse(&text).expect("it is a key"), value());
        put(&cache, &key, &entry, MINUTE).await;
        stored.push((key, entry));
    }
    for (key, entry) in stored {
        assert_eq!(get(&cache, &key).await, Some(entry), "under {:?}", key.as_str());
    }
}

/// What no version of the envelope is: nothing, text, and the beginning of an entry with a version to come.
fn unreadable() -> [Bytes; 4] {
    let mut newer = lease().encode(&key()).to_vec();
    newer[Stamp::LEN] = 255;
    [
        Bytes::new(),
        Bytes::from_static(b"x"),
        Bytes::from_static(b"what another program keeps here"),
        newer.into(),
    ]
}

pub async fn what_cannot_be_read_counts_as_nothing(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for bytes in unreadable() {
        let key = key();
        if fixture.plant(&key, bytes).await {
            assert_eq!(get(&cache, &key).await, None);
        }
    }
}

pub async fn what_cannot_be_read_is_replaced_by_an_exchange(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for bytes in unreadable() {
        let (key, entry) = (key(), fence());
        if fixture.plant(&key, bytes).await {
            put(&cache, &key, &entry, MINUTE).await;
            assert_eq!(get(&cache, &key).await, Some(entry));
        }
    }
}

pub async fn what_cannot_be_read_is_replaced_by_a_lease(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for bytes in unreadable() {
        let (key, lease) = (key(), lease());
        if fixture.plant(&key, bytes).await {
            let acquired = cache.acquire(&key, lease.clone(), MINUTE).await.expect("the cache answers");
            assert_eq!(acquired, Acquired::Placed);
            assert_eq!(get(&cache, &key).await, Some(lease));
        }
    }
}

pub async fn an_entry_of_another_key_is_never_returned(fixture: &impl CacheFixture) {
    let (cache, mine, theirs, entry) = (fixture.open().await, key(), key(), value());
    put(&cache, &theirs, &entry, MINUTE).await;
    if !fixture.copy(&theirs, &mine).await {
        return;
    }
    let wrong = |found: &dyn std::fmt::Debug| panic!("somebody else's session came back: {found:?}");
    match cache.get(&mine).await {
        Err(CacheError::WrongKey) => {}
        found => wrong(&found),
    }
    match cache.acquire(&mine, lease(), MINUTE).await {
        Err(CacheError::WrongKey) => {}
        found => wrong(&found),
    }
    match cache.compare_exchange(&mine, Expected::Vacant, Some(lease()), MINUTE).await {
        Err(CacheError::WrongKey) => {}
        found => wrong(&found),
    }
}

pub async fn a_replaced_entry_does_not_come_back(fixture: &impl CacheFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    put(&cache, &key, &old, MINUTE).await;
    let mut last = old;
    for _ in 0..50 {
        let new = if fastrand::bool() { value() } else { fence() };
        let done = exchange(&cache, &key, Expected::Stamp(last.stamp), Some(new.clone()), MINUTE).await;
        assert_eq!(done, Exchange::Stored);
        assert_eq!(get(&cache, &key).await, Some(new.clone()));
        last = new;
    }
}

pub async fn a_removed_entry_does_not_come_back(fixture: &impl CacheFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    for entry in every_state() {
        put(&here, &key, &entry, MINUTE).await;
        assert_eq!(get(&there, &key).await, Some(entry.clone()));
        exchange(&there, &key, Expected::Stamp(entry.stamp), None, MINUTE).await;
        assert_eq!(get(&here, &key).await, None);
        assert_eq!(get(&there, &key).await, None);
    }
}

pub async fn a_value_that_is_too_large_leaves_nothing_stale(fixture: &impl CacheFixture) {
    let (cache, key, old) = (fixture.open().await, key(), fence());
    let limit = cache.properties().max_entry_bytes;
    if limit > 64 << 20 {
        // It takes anything that a session can be.
        return;
    }
    put(&cache, &key, &old, MINUTE).await;
    let large = value_of(vec![b'x'; limit + 1]);
    let tried = cache.compare_exchange(&key, Expected::Stamp(old.stamp), Some(large.clone()), MINUTE).await;
    let found = get(&cache, &key).await;
    match tried {
        Ok(Exchange::Stored) => {
            assert!(found.is_none() || found == Some(large), "stored, and yet something else is there");
        }
        Ok(Exchange::Lost(_)) => panic!("what was expected was there"),
        Err(_) => assert!(found.is_none() || found == Some(old), "failed, and yet something new is there"),
    }
}

pub async fn a_large_value_comes_back_whole(fixture: &impl CacheFixture) {
    let (cache, key) = (fixture.open().await, key());
    let len = (300 << 10).min(cache.properties().max_entry_bytes / 2);
    let entry = value_of((0..len).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect::<Vec<_>>());
    put(&cache, &key, &entry, MINUTE).await;
    assert_eq!(get(&cache, &key).await, Some(entry));
}

/// Several handles, as several nodes have them.
async fn nodes<F: CacheFixture>(fixture: &F) -> Vec<Arc<F::Cache>> {
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(Arc::new(fixture.open().await));
    }
    nodes
}

/// Of many exchanges that expect the same, one is stored, and that is what is there afterwards.
async fn race<C: Cache>(nodes: &[Arc<C>], key: StoredKey, expected: Expected) {
    let stored = at_once(nodes, 16, |cache, _| async move {
        let new = value();
        let done = exchange(&*cache, &key, expected, Some(new.clone()), MINUTE).await;
        (done == Exchange::Stored).then_some(new)
    });
    let stored = stored.await.into_iter().flatten().collect::<Vec<_>>();
    assert_eq!(stored.len(), 1, "exchanges that expect the same and were stored");
    assert_eq!(get(&*nodes[0], &key).await.as_ref(), stored.first(), "this one was stored");
}

pub async fn of_exchanges_that_expect_the_same_stamp_one_is_stored(fixture: &impl CacheFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..20 {
        let (key, old) = (key(), lease());
        put(&*nodes[0], &key, &old, MINUTE).await;
        race(&nodes, key, Expected::Stamp(old.stamp)).await;
    }
}

pub async fn of_exchanges_that_expect_nothing_one_is_stored(fixture: &impl CacheFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..20 {
        race(&nodes, key(), Expected::Vacant).await;
    }
}

/// A counter that several tasks count up by get and exchange: what they counted must be its end.
pub async fn of_many_exchanges_none_is_lost(fixture: &impl CacheFixture) {
    const TASKS: usize = 4;
    const EACH: usize = 25;
    let (nodes, key) = (nodes(fixture).await, key());
    put(&*nodes[0], &key, &value_of("0"), MINUTE).await;
    at_once(&nodes, TASKS, |cache, _| async move {
        let mut counted = 0;
        while counted < EACH {
            let old = get(&*cache, &key).await.expect("an entry that nobody removed is there");
            let new = value_of((count(&old) + 1).to_string());
            let done = exchange(&*cache, &key, Expected::Stamp(old.stamp), Some(new), MINUTE).await;
            counted += usize::from(done == Exchange::Stored);
        }
    })
    .await;
    let end = get(&*nodes[0], &key).await.expect("it is there");
    assert_eq!(count(&end), TASKS * EACH);
}

fn count(entry: &Entry) -> usize {
    let State::Value(value) = &entry.state else { panic!("a value was stored, and {entry:?} is there") };
    std::str::from_utf8(value.record.payload()).unwrap().parse().unwrap()
}

pub async fn a_lost_exchange_changes_nothing(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        for expected in [Expected::Vacant, Expected::Stamp(stamp())] {
            for new in [Some(value()), Some(fence()), None] {
                let done = exchange(&cache, &key, expected, new, MINUTE).await;
                assert!(
                    matches!(done, Exchange::Lost(_)),
                    "{expected:?} was not there, and yet it is {done:?}"
                );
                assert_eq!(get(&cache, &key).await, Some(entry.clone()));
            }
        }
    }
}

pub async fn a_lost_exchange_tells_what_was_there(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        for expected in [Expected::Vacant, Expected::Stamp(stamp())] {
            let done = exchange(&cache, &key, expected, Some(value()), MINUTE).await;
            assert_eq!(done, Exchange::Lost(Some(entry.clone())));
        }
    }
}

pub async fn a_lost_exchange_tells_that_nothing_was_there(fixture: &impl CacheFixture) {
    let (cache, key) = (fixture.open().await, key());
    for new in [Some(value()), None] {
        let done = exchange(&cache, &key, Expected::Stamp(stamp()), new, MINUTE).await;
        assert_eq!(done, Exchange::Lost(None));
        assert_eq!(get(&cache, &key).await, None);
    }
}

pub async fn an_exchange_for_nothing_removes_what_was_expected(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        let done = exchange(&cache, &key, Expected::Stamp(entry.stamp), None, MINUTE).await;
        assert_eq!(done, Exchange::Stored);
        assert_eq!(get(&cache, &key).await, None);
        let again = exchange(&cache, &key, Expected::Vacant, None, MINUTE).await;
        assert_eq!(again, Exchange::Stored, "nothing was expected, and nothing was there");
    }
}

pub async fn the_new_stamp_is_the_one_to_expect(fixture: &impl CacheFixture) {
    let (cache, key) = (fixture.open().await, key());
    let mut last = value();
    put(&cache, &key, &last, MINUTE).await;
    for number in [NonZeroU64::MIN, NonZeroU64::MAX, number()] {
        let new = Entry { stamp: Stamp(number), ..value() };
        let done = exchange(&cache, &key, Expected::Stamp(last.stamp), Some(new.clone()), MINUTE).await;
        assert_eq!(done, Exchange::Stored);
        last = new;
    }
    assert_eq!(get(&cache, &key).await.map(|entry| entry.stamp), Some(last.stamp));
}

pub async fn a_stamp_that_was_replaced_is_not_expected_again(fixture: &impl CacheFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    // The same content under another stamp is another entry.
    let new = Entry { stamp: stamp(), ..old.clone() };
    put(&cache, &key, &old, MINUTE).await;
    exchange(&cache, &key, Expected::Stamp(old.stamp), Some(new.clone()), MINUTE).await;
    let late = exchange(&cache, &key, Expected::Stamp(old.stamp), Some(value()), MINUTE).await;
    assert_eq!(late, Exchange::Lost(Some(new.clone())));
    exchange(&cache, &key, Expected::Stamp(new.stamp), None, MINUTE).await;
    put(&cache, &key, &fence(), MINUTE).await;
    let later = exchange(&cache, &key, Expected::Stamp(new.stamp), None, MINUTE).await;
    assert!(matches!(later, Exchange::Lost(Some(_))), "an entry of before was taken for the one of now");
}

pub async fn a_lease_is_placed_on_a_vacant_key(fixture: &impl CacheFixture) {
    let (cache, key, lease) = (fixture.open().await, key(), lease());
    let acquired = cache.acquire(&key, lease.clone(), MINUTE).await.expect("the cache answers");
    assert_eq!(acquired, Acquired::Placed);
    assert_eq!(get(&cache, &key).await, Some(lease.clone()));
    let filled = exchange(&cache, &key, Expected::Stamp(lease.stamp), Some(value()), MINUTE).await;
    assert_eq!(filled, Exchange::Stored, "a lease is there to be filled");
}

pub async fn of_acquisitions_one_places_its_lease(fixture: &impl CacheFixture) {
    let nodes = nodes(fixture).await;
    for _ in 0..20 {
        let key = key();
        let acquired = at_once(&nodes, 8, |cache, _| async move {
            let lease = lease();
            (lease.clone(), cache.acquire(&key, lease, MINUTE).await.expect("the cache answers"))
        });
        let (mut placed, mut found) = (Vec::new(), Vec::new());
        for (lease, acquired) in acquired.await {
            match acquired {
                Acquired::Placed => placed.push(lease),
                Acquired::Found(entry) => found.push(entry),
            }
        }
        assert_eq!(placed.len(), 1, "leases placed at the same time");
        assert!(found.iter().all(|entry| *entry == placed[0]), "found is what was placed");
    }
}

pub async fn a_placed_lease_ends_after_its_ttl(fixture: &impl CacheFixture) {
    let (cache, key) = (fixture.open().await, key());
    let ttl = short_ttl(&cache);
    assert_eq!(cache.acquire(&key, lease(), ttl).await.expect("the cache answers"), Acquired::Placed);
    wait_until_gone(&cache, &key, ttl).await;
}

pub async fn an_acquisition_finds_every_state_and_changes_nothing(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for entry in every_state() {
        let key = key();
        put(&cache, &key, &entry, MINUTE).await;
        let acquired = cache.acquire(&key, lease(), Duration::from_secs(1)).await.expect("the cache answers");
        assert_eq!(acquired, Acquired::Found(entry.clone()));
        assert_eq!(get(&cache, &key).await, Some(entry));
    }
}

/// Random calls, one after the other, on few keys; each answer must be that of a register.
pub async fn random_histories_are_those_of_a_register(fixture: &impl CacheFixture) {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let handles = [fixture.open().await, fixture.open().await];
    let keys = [key(), key()];
    let mut model: [Option<Entry>; 2] = [None, None];
    let mut gone: Vec<Stamp> = vec![stamp()];
    for step in 0..300 {
        let (cache, which) = (&handles[random.usize(..2)], random.usize(..2));
        let (key, there) = (&keys[which], &mut model[which]);
        let hint = format!("step {step} of seed {seed}");
        match random.u8(..4) {
            0 => assert_eq!(get(cache, key).await, *there, "{hint}"),
            1 => {
                let new = lease();
                let acquired = cache.acquire(key, new.clone(), MINUTE).await.expect("the cache answers");
                let expected = there.clone().map_or(Acquired::Placed, Acquired::Found);
                assert_eq!(acquired, expected, "{hint}");
                there.get_or_insert(new);
            }
            _ => {
                let expected = match there {
                    Some(entry) if random.u8(..4) > 0 => Expected::Stamp(entry.stamp),
                    _ if random.bool() => Expected::Vacant,
                    _ => Expected::Stamp(gone[random.usize(..gone.len())]),
                };
                let new = match random.u8(..4) {
                    0 => None,
                    1 => Some(lease()),
                    2 => Some(fence()),
                    _ => Some(value()),
                };
                let holds = match expected {
                    Expected::Vacant => there.is_none(),
                    Expected::Stamp(stamp) => there.as_ref().is_some_and(|entry| entry.stamp == stamp),
                };
                let done = exchange(cache, key, expected, new.clone(), MINUTE).await;
                if holds {
                    assert_eq!(done, Exchange::Stored, "{hint}");
                    gone.extend(std::mem::replace(there, new).map(|entry| entry.stamp));
                } else {
                    assert_eq!(done, Exchange::Lost(there.clone()), "{hint}");
                }
            }
        }
    }
}

/// Keys that several servers share out among them.
fn many_keys() -> Vec<StoredKey> {
    let mut keys: Vec<_> = (0..200).map(|_| key()).collect();
    // Braces and the like mean something to some servers.
    for text in ["{", "}", "{}", "{a}b", "a{b}c", "{}{a}", "{{a}}", "a:b", "%7B"] {
        keys.push(StoredKey::parse(text).expect("it is a key"));
    }
    keys
}

pub async fn every_key_has_a_server_below_their_number(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    let servers = cache.properties().servers;
    assert!(servers > 0, "there is at least one server");
    for key in many_keys() {
        let server = cache.server(&key);
        assert!(server < servers, "{:?} is on server {server} of {servers}, counted from 0", key.as_str());
    }
}

pub async fn a_key_keeps_its_server_whatever_is_stored(fixture: &impl CacheFixture) {
    let cache = fixture.open().await;
    for _ in 0..20 {
        let (key, entry) = (key(), value());
        let server = cache.server(&key);
        put(&cache, &key, &entry, MINUTE).await;
        assert_eq!(cache.server(&key), server, "it moved when something was stored");
        assert_eq!(get(&cache, &key).await, Some(entry.clone()));
        exchange(&cache, &key, Expected::Stamp(entry.stamp), None, MINUTE).await;
        assert_eq!(cache.server(&key), server, "it moved when something was removed");
    }
}

pub async fn every_handle_names_the_same_server(fixture: &impl CacheFixture) {
    let (here, there) = (Arc::new(fixture.open().await), fixture.open().await);
    let (clone, erased) = (Arc::clone(&here), Arc::clone(&here) as Arc<dyn DynCache>);
    let servers = here.properties().servers;
    let others = [there.properties(), clone.properties(), erased.properties()].map(|other| other.servers);
    assert_eq!(others, [servers; 3], "handles to the same cache count different servers");
    for key in many_keys() {
        let server = here.server(&key);
        let others = [there.server(&key), clone.server(&key), erased.server(&key)];
        assert_eq!(others, [server; 3], "handles to the same cache look for a key on different servers");
    }
}
