//! Records with any instants and contents: a cache returns them unchanged.

#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use session_core::{JsonCodec, Record, State, StoredKey, Subject, Timestamp, Value, Version};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    payload: &'a [u8],
    subject: Option<&'a str>,
    created_at: i64,
    last_seen_at: i64,
    expires_at: i64,
    version: u64,
    made_at: i64,
    now: i64,
}

fuzz_target!(|input: Input<'_>| {
    let key = StoredKey::parse("the-key").unwrap();
    let [created_at, last_seen_at, expires_at, made_at, now] =
        [input.created_at, input.last_seen_at, input.expires_at, input.made_at, input.now]
            .map(Timestamp::from_micros);
    let subject = input.subject.and_then(|subject| Subject::parse(subject).ok());
    let record = Record::new(Bytes::copy_from_slice(input.payload), created_at, expires_at)
        .with_last_seen_at(last_seen_at)
        .with_version(Version::from_u64(input.version))
        .with_subject(subject);
    let record = Arc::new(record);
    assert_eq!(record.is_expired(now), expires_at <= now);
    // The payload is read or refused, with the same result the second time.
    let (first, second) =
        (record.data(&key, &JsonCodec::default()).ok(), record.data(&key, &JsonCodec::default()).ok());
    assert_eq!(first, second);

    let state = State::Value(Value { record: Arc::clone(&record), made_at, store: session_core::StoreId(1) });
    let mut bytes = BytesMut::new();
    state.encode(&key, &mut bytes);
    assert_eq!(bytes.len(), state.encoded_len(&key));
    assert_eq!(State::decode(&key, bytes.freeze()), Ok(state));
    assert!(!format!("{record:?}").contains("payload: b"), "Debug shows the payload");
});
