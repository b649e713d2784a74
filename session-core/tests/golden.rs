//! The binary formats, as each version has written them. These files are read for ever: data of an older version are in
//! databases, and nodes of two versions run side by side.
//!
//! With another version of a format, a file joins those that are here. `GOLDEN_WRITE=1 cargo test -p session-core
//! --all-features --test golden` writes the files that are missing, and never one that is there.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use session_core::django::{DjangoCodec, SecretKeys};
use session_core::{
    Codec, CompressCodec, Entry, Fence, Holder, JsonCodec, Record, SealCodec, SealingKey, SealingKeys,
    SessionData, Stamp, StoreId, StoredKey, Subject, Timestamp, Token, Value, Version,
};

/// Returns the contents of a file. Writes them first if they are missing and are to be written.
fn golden(name: &str, made_now: impl FnOnce() -> Bytes) -> Bytes {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name);
    if !path.exists() && std::env::var_os("GOLDEN_WRITE").is_some() {
        std::fs::write(&path, made_now()).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

fn key() -> StoredKey {
    StoredKey::parse("shop:4fQm1yBv9K7cTz0pLrXw2sNhJd8uEaGi6oVkYbC3MtR").unwrap()
}

fn number(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000 + 123_456)
}

fn data() -> SessionData {
    let mut data = SessionData::new();
    data.insert("cart", "[1,2,{\"ä\":null}]".into()).unwrap();
    data.insert("text", format!("\"{}\"", "long enough to be compressed ".repeat(4))).unwrap();
    data
}

fn entries() -> [(&'static str, Entry); 4] {
    let record = Record::new(Bytes::from_static(b"1{\"cart\":[1,2]}"), at(1_700_000_000), at(1_800_000_000))
        .with_last_seen_at(at(1_700_000_100))
        .with_version(Version::from_u64(0xfedc_ba98_7654_3210));
    let with_subject = record.clone().with_subject(Some(Subject::parse("üser-42").unwrap()));
    let value = |record| Value { record: Arc::new(record), made_at: at(1_700_000_200), store: StoreId(7) };
    let holder = |token, seconds| Holder { token: Token(number(token)), deadline: at(seconds) };
    let fence =
        Fence { holders: vec![holder(5, 1_700_000_030), holder(u64::MAX - 1, 1_700_000_031)], dirty: true };
    [
        ("envelope-2-value.bin", Entry::value(Stamp(number(1)), value(with_subject))),
        ("envelope-2-value-without-subject.bin", Entry::value(Stamp(number(2)), value(record))),
        ("envelope-2-lease.bin", Entry::lease(Stamp(number(u64::MAX)))),
        ("envelope-2-fence.bin", Entry::fence(Stamp(number(4)), fence)),
    ]
}

#[test]
fn entries_of_version_2_are_read_and_written_as_they_were() {
    for (name, entry) in entries() {
        let bytes = golden(name, || entry.encode(&key()));
        assert_eq!(entry.encode(&key()), bytes, "{name} is written in another way by now");
        assert_eq!(Entry::decode(&key(), bytes).unwrap(), entry, "{name}");
    }
}

#[test]
fn json_payload_of_format_1_is_read_and_written_as_it_was() {
    let codec = JsonCodec::default();
    let payload = golden("payload-json-1.txt", || codec.encode(&key(), &data()).unwrap());
    assert_eq!(codec.decode(&key(), &payload).unwrap(), data());
    assert_eq!(codec.encode(&key(), &data()).unwrap(), payload);
}

/// A later version may compress in another way, so only reading is a promise.
#[test]
fn compressed_payload_of_format_z_is_read() {
    let codec = CompressCodec::new(JsonCodec::default()).with_threshold(16);
    let payload = golden("payload-compressed-z.bin", || codec.encode(&key(), &data()).unwrap());
    assert!(payload.starts_with(b"z"));
    assert_eq!(codec.decode(&key(), &payload).unwrap(), data());
}

#[test]
fn sealed_payload_of_version_1_is_opened() {
    let keys = SealingKeys::new(SealingKey::new(b"0123456789abcdef0123456789abcdef").unwrap());
    let compressed = CompressCodec::new(JsonCodec::default()).with_threshold(16);
    for (name, codec) in [
        ("payload-sealed-1.bin", &SealCodec::new(JsonCodec::default(), keys.clone()) as &dyn Codec),
        ("payload-sealed-1-compressed-z.bin", &SealCodec::new(compressed, keys.clone())),
    ] {
        let payload = golden(name, || codec.encode(&key(), &data()).unwrap());
        assert!(payload.starts_with(b"S1"));
        assert_eq!(codec.decode(&key(), &payload).unwrap(), data(), "{name}");
    }
}

/// The time of the signature is in them, so they are written in another way each time.
#[test]
fn django_payloads_are_read() {
    let codec = DjangoCodec::new(&SecretKeys::new("a golden SECRET_KEY").unwrap());
    let (mut short, mut long) = (SessionData::new(), SessionData::new());
    short.insert("visits", "3".into()).unwrap();
    long.insert("text", format!("\"{}\"", "long enough to be compressed ".repeat(4))).unwrap();
    for (name, data) in [("payload-django.txt", short), ("payload-django-compressed.txt", long)] {
        let payload = golden(name, || codec.encode(&key(), &data).unwrap());
        assert_eq!(codec.decode(&key(), &payload).unwrap(), data, "{name}");
    }
}
