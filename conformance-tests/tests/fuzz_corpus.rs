//! The seeds that the fuzzer begins with.

use bytes::Bytes;
use session_core::{Entry, State, StoredKey};

/// Entries that are refused at once would lead the fuzzer nowhere.
#[test]
fn seeds_of_envelopes_are_read() {
    let key = StoredKey::parse("the-key").unwrap();
    let mut count = 0;
    for seed in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/envelope")).unwrap() {
        let seed = seed.unwrap();
        let bytes = Bytes::from(std::fs::read(seed.path()).unwrap());
        let name = seed.file_name().into_string().unwrap();
        let is_read = match name.strip_prefix("stamped-") {
            Some(_) => Entry::decode(&key, bytes).is_ok(),
            None => State::decode(&key, bytes).is_ok(),
        };
        // One of a newer version is read as a lease or a fence.
        assert!(is_read, "{name}");
        count += 1;
    }
    assert!(count >= 7, "{count}");
}
