//! The memory that cached sessions take.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use session_cached_db::MokaCache;
use session_cached_db::session_core::{
    Cache as _, Codec as _, Entry, Exchange, Expected, JsonCodec, Record, Stamp, StoreId, StoredKey,
    Timestamp, Value,
};

use crate::Effort;
use crate::figure::{Aim, Report};
use crate::sessions::data;

/// The argument of the process that holds only a cache. The number of sessions to hold is in [`COUNT`], and
/// their form in [`HELD`].
pub(crate) const CHILD: &str = "--size";
const COUNT: &str = "BENCH_SESSIONS";
const HELD: &str = "BENCH_HELD";

const DECODED: &str = "decoded";
const RECORD: &str = "record";
const PAYLOAD: &str = "payload";

pub(crate) fn measure(effort: Effort, report: &mut Report) {
    if !cfg!(target_os = "linux") {
        return report.skip("bytes_per_session", "resident memory is read from /proc");
    }
    let what = "resident bytes per session of 1 KB in moka, decoded, against its payload";
    report.add("bytes_per_session", Aim::AtMost(1.6), what, vec![of_child(effort, DECODED)]);
    let what = "the same of a bare moka, bounded by bytes, that holds only the key and the undecoded record";
    report.add("bytes_per_record_in_bare_moka", Aim::None, what, vec![of_child(effort, RECORD)]);
    let what = "the same of one that holds only the key and the payload";
    report.add("bytes_per_payload_in_bare_moka", Aim::None, what, vec![of_child(effort, PAYLOAD)]);
}

fn of_child(effort: Effort, held: &str) -> f64 {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.arg(CHILD).env(COUNT, effort.million.to_string()).env(HELD, held).stderr(Stdio::inherit());
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

pub(crate) fn measure_here() {
    let count: usize = std::env::var(COUNT).unwrap().parse().unwrap();
    let payload_bytes: usize = (1..=count).map(|number| payload(number).len()).sum();
    let before = resident_bytes();
    match std::env::var(HELD).unwrap().as_str() {
        DECODED => fill(count),
        RECORD => fill_bare(count, |number| Arc::new(record(number)), |record| record.payload().len()),
        _ => fill_bare(count, |number| Arc::<[u8]>::from(payload(number)), |payload| payload.len()),
    }
    println!("{}", (resident_bytes() - before) as f64 / payload_bytes as f64);
}

fn key(number: usize) -> StoredKey {
    StoredKey::parse(&format!("{number:043}")).unwrap()
}

/// Returns a payload as it comes from a database.
fn payload(number: usize) -> Box<[u8]> {
    JsonCodec::default().encode(&key(number), &data(number)).unwrap().to_vec().into_boxed_slice()
}

fn record(number: usize) -> Record {
    Record::new(payload(number).into(), Timestamp::from_micros(0), Timestamp::MAX)
}

fn fill(count: usize) {
    let cache = MokaCache::builder().max_bytes(1 << 40).build();
    for number in 1..=count {
        let key = key(number);
        let record = Arc::new(record(number));
        // Decode the record, as its first reader does.
        record.data(&key, &JsonCodec::default()).unwrap();
        let value = Value { record, made_at: Timestamp::from_micros(0), store: StoreId(1) };
        let entry = Entry::value(Stamp((number as u64).try_into().unwrap()), value);
        let stored = cache.compare_exchange(&key, Expected::Vacant, Some(entry), Duration::from_secs(3_600));
        assert_eq!(stored.now_or_never().unwrap().unwrap(), Exchange::Stored);
    }
    std::mem::forget(cache);
}

fn fill_bare<V>(count: usize, value: impl Fn(usize) -> V, len: impl Fn(&V) -> usize + Send + Sync + 'static)
where
    V: Clone + Send + Sync + 'static,
{
    let builder = moka::sync::Cache::builder().max_capacity(1 << 40);
    let cache = builder.weigher(move |_, value| len(value) as u32).build();
    for number in 1..=count {
        cache.insert(key(number), value(number));
    }
    std::mem::forget(cache);
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
