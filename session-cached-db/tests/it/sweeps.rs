//! Sweeps over the table, in which one session cannot be written.

use session_cached_db::{Error, OutagePolicy, SweepPage, WriteOperation};
use session_core::bytes::Bytes;
use session_core::{Codec, CodecError, JsonCodec, Persistence as _, Record, SessionData, StoredKey};

use crate::common::{Fault, HOUR, Log, START, Store, World};

/// A codec of which no payload is current, and which some sessions defeat.
#[derive(Debug)]
struct Choosy;

impl Codec for Choosy {
    fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        assert!(!data.contains("encoding panics"), "the test says so");
        if data.contains("unencodable") {
            return Err(CodecError::Unencodable("the test says so".into()));
        }
        JsonCodec::default().encode(key, data)
    }
    fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        let data = JsonCodec::default().decode(key, payload)?;
        assert!(!data.contains("decoding panics"), "the test says so");
        Ok(data)
    }
    fn is_current(&self, _payload: &Bytes) -> bool {
        false
    }
}

/// Stores a session of these values under each of three keys, the second of which has `name` in addition.
async fn three(world: &World, name: &str) -> [StoredKey; 3] {
    let keys = ["a-plain-key-1", "b-plain-key-2", "c-plain-key-3"].map(|key| StoredKey::parse(key).unwrap());
    for (number, key) in keys.iter().enumerate() {
        let name = if number == 1 { name } else { "x" };
        let payload = Bytes::from(format!("1{{\"{name}\":\"{}\"}}", "y".repeat(name.len() * 10)));
        let record = Record::new(payload, START, START + HOUR);
        world.db.sqlite.insert(key, &record).await.unwrap();
    }
    keys
}

/// Sweeps one after the other until the end of the table, a session a page.
async fn sweep(store: &Store, hashes: bool) -> SweepPage {
    let (mut sum, mut after) = (SweepPage::default(), None);
    loop {
        let page = match hashes {
            true => store.hash_plain_keys(after.as_ref(), 1).await.unwrap(),
            false => store.reseal(after.as_ref(), 1).await.unwrap(),
        };
        sum.seen += page.seen;
        sum.written += page.written;
        sum.failed.extend(page.failed);
        assert_eq!((page.missed, page.unreadable), (0, vec![]));
        after = page.next;
        if after.is_none() {
            return sum;
        }
    }
}

#[tokio::test]
async fn session_that_cannot_be_written_does_not_stop_a_sweep() {
    for hashes in [false, true] {
        for name in [
            "unencodable",
            "encoding panics",
            "decoding panics",
            "too large",
            "not fenced",
            "refused",
            "write panics",
        ] {
            let world = World::shared_with(|builder| {
                let operation = if hashes { WriteOperation::Rename } else { WriteOperation::Save };
                builder
                    .codec(Choosy)
                    .accept_plain_keys()
                    .max_payload_bytes(110)
                    .outage_policy(operation, OutagePolicy::FailClosed)
            });
            let world = world.await;
            let keys = three(&world, if name == "too large" { "long enough" } else { name }).await;
            match name {
                "not fenced" => world.cache.silence(&keys[1]),
                "refused" => world.db.fail_for(&keys[1], Fault::Refused),
                "write panics" => world.db.fail_for(&keys[1], Fault::Panics),
                _ => {}
            }
            let log = Log::listen();
            let swept = sweep(&world.store, hashes).await;
            assert_eq!((swept.seen, swept.written), (3, 2), "{name}");
            assert_eq!(swept.failed, [keys[1]], "{name}");
            let events = log.events("row_not_rewritten");
            assert_eq!(events.len(), 1, "{name}: {events:?}");
            assert!(!events[0].contains("plain-key"), "{events:?}");
        }
    }
}

#[tokio::test]
async fn sweep_stops_when_the_database_is_out_of_reach() {
    let world = World::shared_with(|builder| builder.codec(Choosy).accept_plain_keys()).await;
    let keys = three(&world, "x").await;
    world.db.fail_for(&keys[1], Fault::Unreachable);
    assert!(world.store.reseal(None, 10).await.unwrap_err().is_retryable());
}

#[tokio::test]
async fn sweep_stops_when_the_cache_does_not_answer_and_writes_are_to_fail() {
    let world = World::shared_with(|builder| {
        let builder = builder.codec(Choosy).accept_plain_keys().breaker_threshold(1);
        builder.outage_policy(WriteOperation::Save, OutagePolicy::FailClosed)
    });
    let world = world.await;
    three(&world, "x").await;
    world.cache.calls.fail_all(Fault::Unreachable);
    let page = world.store.reseal(None, 10).await;
    assert!(matches!(page, Err(Error::CacheUnavailable)), "{page:?}");
}
