//! The memory that cached sessions of 1 KB take, in this process and in servers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use session_cached_db::cache_backends::{self, redis::driver};
use session_cached_db::session_core::{
    Cache as _, DynCache, Entry, Exchange, Expected, JsonCodec, Record, Stamp, StoreId, Timestamp,
    Value as Cached,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::database::{key, payload, variable};

/// The number of sessions in this process.
const IN_PROCESS: u64 = 1_000_000;

/// The number of sessions in a server: they fit into memcached's default of 64 MB.
const IN_SERVER: u64 = 30_000;

const TTL: Duration = Duration::from_secs(600);

pub(crate) async fn measure(cache: &str) -> Value {
    let (url, sessions) = match cache {
        "moka" => ("moka://?max_bytes=1099511627776".to_owned(), IN_PROCESS),
        server => (variable(server), IN_SERVER),
    };
    let store = cache_backends::connect(&url).unwrap();
    let names = fastrand::u64(1_000_000_000..2_000_000_000);
    let before = used(cache, &url).await;
    fill(&*store, names, sessions).await;
    let bytes = used(cache, &url).await - before;
    empty(&*store, names, sessions).await;
    let (each, payload) = (bytes / sessions as f64, payload(0).len());
    let figures = json!({
        "cache": cache, "sessions": sessions, "bytes": bytes.round(), "bytes_per_session": each.round(),
        "payload_bytes": payload, "ratio": (each / payload as f64 * 100.0).round() / 100.0,
    });
    eprintln!("memory {figures}");
    figures
}

async fn fill(cache: &dyn DynCache, names: u64, sessions: u64) {
    for number in 1..=sessions {
        let key = key(names + number);
        let record = Arc::new(Record::new(payload(number).into(), Timestamp::from_micros(0), Timestamp::MAX));
        // Decode the record, as its first reader does.
        record.data(&key, &JsonCodec::default()).unwrap();
        let value = Cached { record, made_at: std::time::SystemTime::now().into(), store: StoreId(1) };
        let entry = Entry::value(stamp(number), value);
        let stored = cache.compare_exchange(&key, Expected::Vacant, Some(entry), TTL).await;
        assert_eq!(stored.unwrap(), Exchange::Stored);
        if number % 100_000 == 0 {
            eprintln!("{number} of {sessions} sessions are cached");
        }
    }
}

/// Removes the entries from a server, which others use as well.
async fn empty(cache: &dyn DynCache, names: u64, sessions: u64) {
    for number in 1..=sessions {
        let (key, expected) = (key(names + number), Expected::Stamp(stamp(number)));
        let _ = cache.compare_exchange(&key, expected, None, TTL).await.unwrap();
    }
}

fn stamp(number: u64) -> Stamp {
    Stamp(number.try_into().unwrap())
}

/// Returns the bytes that a cache has in use.
async fn used(cache: &str, url: &str) -> f64 {
    match cache {
        "moka" => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
        }
        "redis" => {
            let client = driver::Client::open(url).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let info: String = driver::cmd("INFO").arg("memory").query_async(&mut connection).await.unwrap();
            info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
        }
        _ => slabs(url).await,
    }
}

/// Returns the bytes of the chunks that memcached has in use: an item takes a whole one.
async fn slabs(url: &str) -> f64 {
    let address = url.trim_start_matches("memcache://").split([',', '/', '?']).next().unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"stats slabs\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"END\r\n") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "memcached ended the connection");
    }
    let answer = String::from_utf8(answer).unwrap();
    let number = |slab: &str, name: &str| -> f64 {
        let line = answer.lines().find_map(|line| line.strip_prefix(&format!("STAT {slab}:{name} ")));
        line.unwrap().parse().unwrap()
    };
    let slab_of = |line: &str| {
        let (slab, name) = line.strip_prefix("STAT ")?.split_once(':')?;
        name.starts_with("chunk_size ").then(|| slab.to_owned())
    };
    let slabs = answer.lines().filter_map(slab_of);
    slabs.map(|slab| number(&slab, "chunk_size") * number(&slab, "used_chunks")).sum()
}
