use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use session_core::{Fence, Holder, Record, Stamp, StoreId, Timestamp, Token, Value};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A cache whose clock a test advances.
struct Bench {
    cache: MokaCache,
    nanos: Arc<AtomicU64>,
}

impl Bench {
    fn new() -> Self {
        Self::bounded(1 << 20)
    }

    fn bounded(max_bytes: u64) -> Self {
        let nanos = Arc::new(AtomicU64::new(1));
        let clock = Clock::Manual(Arc::clone(&nanos));
        Self { cache: MokaCache::builder().max_bytes(max_bytes).build_on(clock), nanos }
    }

    fn advance(&self, by: Duration) {
        self.nanos.fetch_add(by.as_nanos().try_into().unwrap(), Ordering::SeqCst);
    }

    fn get(&self, key: &StoredKey) -> Option<Entry> {
        get(&self.cache, key)
    }

    fn exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: impl Into<Option<Entry>>,
        ttl: Duration,
    ) -> Exchange {
        exchange(&self.cache, key, expected, new.into(), ttl)
    }

    fn acquire(&self, key: &StoredKey, lease: Entry, ttl: Duration) -> Acquired {
        self.cache.acquire(key, lease, ttl).now_or_never().unwrap().unwrap()
    }
}

// `now_or_never` returns an answer only if no call ever waits.
fn get(cache: &MokaCache, key: &StoredKey) -> Option<Entry> {
    cache.get(key).now_or_never().unwrap().unwrap()
}

fn exchange(
    cache: &MokaCache,
    key: &StoredKey,
    expected: Expected,
    new: Option<Entry>,
    ttl: Duration,
) -> Exchange {
    cache.compare_exchange(key, expected, new, ttl).now_or_never().unwrap().unwrap()
}

fn key(name: &str) -> StoredKey {
    StoredKey::parse(name).unwrap()
}

fn stamp(number: u64) -> Stamp {
    Stamp(NonZeroU64::new(number).unwrap())
}

fn value(number: u64, payload_len: usize) -> Entry {
    let record =
        Record::new(vec![b'x'; payload_len].into(), Timestamp::from_secs(0), Timestamp::from_secs(100));
    Entry::value(
        stamp(number),
        Value { record: Arc::new(record), made_at: Timestamp::from_secs(1), store: StoreId(1) },
    )
}

fn fence(number: u64) -> Entry {
    let holder =
        Holder { token: Token(NonZeroU64::new(number).unwrap()), deadline: Timestamp::from_secs(30) };
    Entry::fence(stamp(number), Fence { holders: vec![holder], dirty: false })
}

fn record(entry: Option<Entry>) -> Arc<Record> {
    match entry {
        Some(Entry { state: State::Value(value), .. }) => value.record,
        other => panic!("{other:?} is no value"),
    }
}

#[test]
fn keys_of_every_length_have_entries_of_their_own() {
    let bench = Bench::new();
    let keys: Vec<_> = (1..=StoredKey::MAX_LEN).map(|len| key(&"k".repeat(len))).collect();
    for (number, key) in (1..).zip(&keys) {
        assert_eq!(bench.exchange(key, Expected::Vacant, value(number, 10), MINUTE), Exchange::Stored);
    }
    for (number, key) in (1..).zip(&keys) {
        assert_eq!(bench.get(key), Some(value(number, 10)));
    }
    for (number, key) in (1..).zip(&keys) {
        assert_eq!(bench.exchange(key, Expected::Stamp(stamp(number)), None, MINUTE), Exchange::Stored);
        assert_eq!(bench.get(key), None);
    }
}

#[test]
fn every_kind_of_entry_replaces_every_other() {
    let kinds = [|n| value(n, 10), |n| Entry::lease(stamp(n)), fence];
    for before in kinds {
        for after in kinds {
            let bench = Bench::new();
            let key = key("k");
            assert_eq!(bench.exchange(&key, Expected::Vacant, before(1), MINUTE), Exchange::Stored);
            assert_eq!(bench.get(&key), Some(before(1)));
            let lost = bench.exchange(&key, Expected::Vacant, after(2), MINUTE);
            assert_eq!(lost, Exchange::Lost(Some(before(1))));
            let lost = bench.exchange(&key, Expected::Stamp(stamp(9)), after(2), MINUTE);
            assert_eq!(lost, Exchange::Lost(Some(before(1))));
            let stored = bench.exchange(&key, Expected::Stamp(stamp(1)), after(2), MINUTE);
            assert_eq!(stored, Exchange::Stored);
            assert_eq!(bench.get(&key), Some(after(2)));
            let stored = bench.exchange(&key, Expected::Stamp(stamp(2)), None, MINUTE);
            assert_eq!(stored, Exchange::Stored);
            assert_eq!(bench.get(&key), None);
            let lost = bench.exchange(&key, Expected::Stamp(stamp(2)), after(3), MINUTE);
            assert_eq!(lost, Exchange::Lost(None));
        }
    }
}

#[test]
fn every_kind_of_entry_is_kept_for_its_ttl_and_no_longer() {
    for entry in [value(1, 10), Entry::lease(stamp(1)), fence(1)] {
        let bench = Bench::new();
        let key = key("k");
        bench.exchange(&key, Expected::Vacant, entry.clone(), MINUTE);
        bench.advance(MINUTE);
        assert_eq!(bench.get(&key), Some(entry));
        bench.advance(clock::GRANULARITY);
        assert_eq!(bench.get(&key), None);
        assert_eq!(bench.exchange(&key, Expected::Vacant, fence(2), MINUTE), Exchange::Stored);
    }
}

#[test]
fn replacement_has_its_own_ttl() {
    for entry in [|n| value(n, 10), |n| Entry::lease(stamp(n)), fence] {
        let bench = Bench::new();
        let key = key("k");
        bench.exchange(&key, Expected::Vacant, entry(1), MINUTE);
        bench.exchange(&key, Expected::Stamp(stamp(1)), entry(2), 2 * MINUTE);
        bench.advance(2 * MINUTE);
        assert_eq!(bench.get(&key), Some(entry(2)));
    }
}

#[test]
fn ttl_of_zero_stores_nothing() {
    for entry in [value(2, 10), Entry::lease(stamp(2)), fence(2)] {
        let bench = Bench::new();
        let key = key("k");
        assert_eq!(bench.acquire(&key, entry.clone(), Duration::ZERO), Acquired::Placed);
        assert_eq!(bench.get(&key), None);
        bench.exchange(&key, Expected::Vacant, fence(1), MINUTE);
        let stored = bench.exchange(&key, Expected::Stamp(stamp(1)), entry, Duration::ZERO);
        assert_eq!(stored, Exchange::Stored);
        assert_eq!(bench.get(&key), None);
    }
}

#[test]
fn longest_ttl_does_not_overflow() {
    let bench = Bench::new();
    bench.exchange(&key("k"), Expected::Vacant, value(1, 10), Duration::MAX);
    bench.advance(1000 * MINUTE);
    assert!(bench.get(&key("k")).is_some());
}

#[test]
fn lease_is_placed_once_and_only_over_a_vacant_key() {
    let bench = Bench::new();
    let lease = |n| Entry::lease(stamp(n));
    assert_eq!(bench.acquire(&key("a"), lease(1), MINUTE), Acquired::Placed);
    assert_eq!(bench.acquire(&key("a"), lease(2), MINUTE), Acquired::Found(lease(1)));
    bench.exchange(&key("b"), Expected::Vacant, value(3, 10), MINUTE);
    assert_eq!(bench.acquire(&key("b"), lease(4), MINUTE), Acquired::Found(value(3, 10)));
    bench.exchange(&key("c"), Expected::Vacant, fence(5), MINUTE);
    assert_eq!(bench.acquire(&key("c"), lease(6), MINUTE), Acquired::Found(fence(5)));
    bench.advance(MINUTE + clock::GRANULARITY);
    assert_eq!(bench.acquire(&key("b"), lease(7), MINUTE), Acquired::Placed);
    assert_eq!(bench.get(&key("b")), Some(lease(7)));
}

#[test]
fn all_readers_share_one_record() {
    let bench = Bench::new();
    let key = key("k");
    bench.exchange(&key, Expected::Vacant, value(1, 10), MINUTE);
    let Acquired::Found(acquired) = bench.acquire(&key, Entry::lease(stamp(2)), MINUTE) else {
        panic!("a value is there")
    };
    assert!(Arc::ptr_eq(&record(bench.get(&key)), &record(Some(acquired))));
}

#[test]
fn clone_is_a_handle_to_the_same_cache() {
    let bench = Bench::new();
    let clone = bench.cache.clone();
    for entry in [value(1, 10), fence(2)] {
        exchange(&clone, &key("k"), Expected::Vacant, Some(entry.clone()), MINUTE);
        assert_eq!(bench.get(&key("k")), Some(entry.clone()));
        exchange(&bench.cache, &key("k"), Expected::Stamp(entry.stamp), None, MINUTE);
        assert_eq!(get(&clone, &key("k")), None);
    }
}

#[test]
fn full_cache_evicts_values_and_keeps_leases_and_fences() {
    let max_bytes = 100_000;
    let bench = Bench::bounded(max_bytes);
    bench.exchange(&key("fence"), Expected::Vacant, fence(1), MINUTE);
    bench.exchange(&key("lease"), Expected::Vacant, Entry::lease(stamp(2)), MINUTE);
    for number in 0..1_000 {
        let key = key(&format!("value-{number}"));
        bench.exchange(&key, Expected::Vacant, value(number + 10, 1_000), MINUTE);
    }
    bench.cache.values.run_pending_tasks();
    let kept = (0..1_000).filter(|number| bench.get(&key(&format!("value-{number}"))).is_some()).count();
    assert!((10..100).contains(&kept), "{kept} values of 1000 bytes in {max_bytes} bytes");
    assert!(bench.get(&key("value-999")).is_some(), "the newest value made no room for itself");
    assert_eq!(bench.get(&key("fence")), Some(fence(1)));
    assert_eq!(bench.get(&key("lease")), Some(Entry::lease(stamp(2))));
}

#[test]
fn value_larger_than_the_cache_leaves_the_key_vacant() {
    let bench = Bench::bounded(10_000);
    let key = key("k");
    bench.exchange(&key, Expected::Vacant, value(1, 10), MINUTE);
    bench.exchange(&key, Expected::Stamp(stamp(1)), fence(2), MINUTE);
    bench.exchange(&key, Expected::Stamp(stamp(2)), value(3, 100_000), MINUTE);
    bench.cache.values.run_pending_tasks();
    assert_eq!(bench.get(&key), None);
}

#[test]
fn scan_of_unknown_keys_leaves_no_entries() {
    let bench = Bench::new();
    for number in 1..=100_000 {
        let (key, lease) = (key(&format!("unknown-{number}")), Entry::lease(stamp(number)));
        assert_eq!(bench.acquire(&key, lease.clone(), MINUTE), Acquired::Placed);
        assert_eq!(bench.exchange(&key, Expected::Stamp(lease.stamp), None, MINUTE), Exchange::Stored);
    }
    bench.cache.values.run_pending_tasks();
    assert_eq!(bench.cache.values.entry_count(), 0);
    assert_eq!(bench.cache.pending.len(), 0);
}

#[test]
fn abandoned_leases_and_fences_are_removed_by_later_insertions() {
    let bench = Bench::new();
    let abandon = |round: u64| {
        for number in 1..=10_000 {
            let key = key(&format!("{round}-{number}"));
            let entry = if number % 2 == 0 { fence(number) } else { Entry::lease(stamp(number)) };
            bench.acquire(&key, entry, MINUTE);
        }
    };
    for round in 0..10 {
        abandon(round);
        bench.advance(2 * MINUTE);
    }
    assert!(bench.cache.pending.len() <= 20_000, "{} are left", bench.cache.pending.len());
}

#[test]
fn expired_value_is_dropped_when_it_is_looked_up() {
    let bench = Bench::new();
    bench.exchange(&key("k"), Expected::Vacant, value(1, 10), MINUTE);
    bench.advance(2 * MINUTE);
    assert_eq!(bench.get(&key("k")), None);
    bench.cache.values.run_pending_tasks();
    assert_eq!(bench.cache.values.entry_count(), 0);
}

/// An entry that keeps `count`: a value if it is even, a fence if it is odd.
fn counting(stamp: Stamp, count: u64) -> Entry {
    if count.is_multiple_of(2) {
        let payload = count.to_string().into_bytes();
        let record = Arc::new(Record::new(payload.into(), Timestamp::from_secs(0), Timestamp::MAX));
        return Entry::value(stamp, Value { record, made_at: Timestamp::from_secs(0), store: StoreId(1) });
    }
    let token = Token(NonZeroU64::new(count).unwrap());
    let holder = Holder { token, deadline: Timestamp::from_secs(0) };
    Entry::fence(stamp, Fence { holders: vec![holder], dirty: false })
}

/// Returns the number that [`counting`] has put into an entry.
fn count(entry: &Entry) -> u64 {
    match &entry.state {
        State::Value(value) => std::str::from_utf8(value.record.payload()).unwrap().parse().unwrap(),
        State::Fence(fence) => fence.holders[0].token.0.get(),
        State::Lease => panic!("no thread places a lease"),
    }
}

/// Threads increment a number that is kept in the entry. Half of the entries are values and half are fences,
/// so that the register moves between moka and the table all the time.
#[test]
fn no_exchange_is_lost_or_made_twice_between_threads() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 10_000;
    let bench = Bench::new();
    let (cache, key) = (&bench.cache, key("counter"));
    let (next_stamp, stored) = (AtomicU64::new(1), AtomicU64::new(0));
    let entry = |count: u64| counting(stamp(next_stamp.fetch_add(1, Ordering::SeqCst)), count);
    exchange(cache, &key, Expected::Vacant, Some(entry(0)), MINUTE);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut seen = 0;
                for _ in 0..ROUNDS {
                    // Nothing is ever removed, so a reader that finds nothing has looked in the wrong place.
                    let found = get(cache, &key).expect("the register is never vacant");
                    let number = count(&found);
                    assert!(number >= seen, "read {number} after {seen}");
                    seen = number;
                    let expected = Expected::Stamp(found.stamp);
                    match exchange(cache, &key, expected, Some(entry(number + 1)), MINUTE) {
                        Exchange::Stored => {
                            stored.fetch_add(1, Ordering::SeqCst);
                        }
                        Exchange::Lost(found) => {
                            seen = seen.max(count(&found.expect("the register is never vacant")));
                        }
                    }
                }
            });
        }
    });
    let stored = stored.into_inner();
    assert!(stored >= ROUNDS, "only {stored} exchanges were made");
    assert_eq!(count(&get(cache, &key).unwrap()), stored);
}

#[test]
fn reader_never_sees_a_value_that_a_fence_has_replaced() {
    let bench = Bench::new();
    let (cache, key) = (&bench.cache, key("k"));
    let fenced = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            exchange(cache, &key, Expected::Vacant, Some(value(1, 10)), MINUTE);
            for number in (1..40_000).step_by(2) {
                let fence = Some(fence(number + 1));
                assert_eq!(
                    exchange(cache, &key, Expected::Stamp(stamp(number)), fence, MINUTE),
                    Exchange::Stored
                );
                fenced.store(number + 1, Ordering::SeqCst);
                let value = Some(value(number + 2, 10));
                assert_eq!(
                    exchange(cache, &key, Expected::Stamp(stamp(number + 1)), value, MINUTE),
                    Exchange::Stored
                );
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..40_000 {
                    let before = fenced.load(Ordering::SeqCst);
                    let found = get(cache, &key);
                    let number = found.map_or(u64::MAX, |entry| entry.stamp.0.get());
                    assert!(number >= before, "read {number} after the fence {before}");
                }
            });
        }
    });
}

#[test]
fn debug_shows_no_key_and_no_value() {
    let bench = Bench::new();
    bench.exchange(&key("secret-key"), Expected::Vacant, fence(1), MINUTE);
    assert_eq!(format!("{:?}", bench.cache), "MokaCache { max_bytes: 1048576, .. }");
}
