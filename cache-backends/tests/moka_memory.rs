//! The memory of a full cache, which shows that a value's weight is right. The memory is that of the process,
//! so this file has one test only.
#![cfg(all(feature = "moka", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use cache_backends::moka::MokaCache;
use futures_util::FutureExt;
use session_core::bytes::Bytes;
use session_core::{
    Cache, Codec, Entry, Exchange, Expected, JsonCodec, Record, SessionData, Stamp, StoreId, StoredKey,
    Timestamp, Value,
};

#[test]
fn full_cache_takes_the_memory_that_it_may() {
    const MAX_BYTES: usize = 16 << 20;
    let cache = MokaCache::builder().max_bytes(MAX_BYTES as u64).build();
    let before = resident_bytes();
    // Decoded sessions of 1 KB each, several times as many as there is room for.
    for number in 1..=24_000 {
        let key = StoredKey::parse(&format!("{number:043}")).unwrap();
        let entry = Entry::value(Stamp(NonZeroU64::new(number).unwrap()), session(&key));
        let stored = cache.compare_exchange(&key, Expected::Vacant, Some(entry), Duration::from_secs(300));
        assert_eq!(stored.now_or_never().unwrap().unwrap(), Exchange::Stored);
    }
    let taken = resident_bytes() - before;
    assert!(taken < MAX_BYTES + MAX_BYTES / 8, "{taken} bytes taken, {MAX_BYTES} allowed");
    assert!(taken > MAX_BYTES / 4 * 3, "{taken} bytes taken, {MAX_BYTES} allowed: room is wasted");
}

fn session(key: &StoredKey) -> Value {
    let codec = JsonCodec::default();
    let mut data = SessionData::new();
    for number in 0..10 {
        data.insert(&format!("key-{number:02}"), format!("\"{}\"", "v".repeat(85))).unwrap();
    }
    let payload = Bytes::from(codec.encode(key, &data).unwrap().to_vec());
    let record = Arc::new(Record::new(payload, Timestamp::from_secs(0), Timestamp::MAX));
    record.data(key, &codec).unwrap();
    Value { record, made_at: Timestamp::from_secs(0), store: StoreId(1) }
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
