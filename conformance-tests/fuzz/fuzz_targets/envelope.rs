//! Bytes that a cache may hold under a key: refused, or read and written again unchanged.

#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use session_core::{Entry, State, StoredKey};

fuzz_target!(|input: &[u8]| {
    let key = StoredKey::parse("the-key").unwrap();
    let other = StoredKey::parse("another").unwrap();
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(state) = State::decode(&key, bytes.clone()) {
        let mut again = BytesMut::new();
        state.encode(&key, &mut again);
        assert_eq!(again.len(), state.encoded_len(&key));
        assert_eq!(State::decode(&key, again.freeze()), Ok(state));
        assert!(State::decode(&other, bytes.clone()).is_err(), "an entry of another key was accepted");
    }
    if let Ok(entry) = Entry::decode(&key, bytes) {
        assert_eq!(Entry::decode(&key, entry.encode(&key)), Ok(entry));
    }
});
