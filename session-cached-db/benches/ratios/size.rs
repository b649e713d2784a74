//! The memory that cached sessions take.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use session_cached_db::MokaCache;
use session_cached_db::core::{
    Cache as _, Codec as _, Entry, Exchange, Expected, JsonCodec, Record, Stamp, StoredKey, Timestamp, Value,
};

use crate::Effort;
use crate::figure::{Aim, Report};
use crate::sessions::data;

/// The argument of the process that holds nothing but the cache; how many sessions it is to hold is in [`COUNT`].
pub(crate) const CHILD: &str = "--size";
const COUNT: &str = "BENCH_SESSIONS";

pub(crate) fn measure(effort: Effort, report: &mut Report) {
    if !cfg!(target_os = "linux") {
        return report.skip("bytes_per_session", "resident memory is read from /proc");
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.arg(CHILD).env(COUNT, effort.million.to_string()).stderr(Stdio::inherit());
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let ratio: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let what = "resident bytes per session of 1 KB in moka, decoded, against its payload";
    report.add("bytes_per_session", Aim::AtMost(1.6), what, vec![ratio]);
}

pub(crate) fn measure_here() {
    let count: u64 = std::env::var(COUNT).unwrap().parse().unwrap();
    let cache = MokaCache::builder().max_bytes(1 << 40).build();
    let codec = JsonCodec::default();
    let before = resident_bytes();
    let mut payload_bytes = 0;
    for number in 1..=count {
        let key = StoredKey::parse(&format!("{number:043}")).unwrap();
        // As it comes from a database, and as whoever reads it leaves it.
        let payload = codec.encode(&key, &data(number as usize)).unwrap().to_vec();
        payload_bytes += payload.len();
        let record =
            Record::new(payload.into_boxed_slice().into(), Timestamp::from_micros(0), Timestamp::MAX);
        record.data(&key, &codec).unwrap();
        let value = Value { record: Arc::new(record), made_at: Timestamp::from_micros(0) };
        let entry = Entry::value(Stamp(number.try_into().unwrap()), value);
        let stored = cache.compare_exchange(&key, Expected::Vacant, Some(entry), Duration::from_secs(3_600));
        assert_eq!(stored.now_or_never().unwrap().unwrap(), Exchange::Stored);
    }
    println!("{}", (resident_bytes() - before) as f64 / payload_bytes as f64);
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
