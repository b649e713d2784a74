//! Payloads that a database may hold, and values that an application may store.

#![no_main]

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use session_core::{
    Codec, CompressCodec, JsonCodec, SealCodec, SealingKey, SealingKeys, SessionData, StoredKey,
};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    payload: &'a [u8],
    values: Vec<(&'a str, Json)>,
    /// The position of the byte of the sealed payload to change, and how to change it.
    position: usize,
    change: u8,
}

#[derive(Arbitrary, Debug)]
enum Json {
    Null,
    Integer(i64),
    Text(Box<str>),
    List(Vec<bool>),
}

impl Json {
    fn text(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Integer(number) => number.to_string(),
            Self::Text(text) => {
                let escaped = text.chars().map(|character| format!("\\u{:04x}", u32::from(character) & 0x7f));
                format!("\"{}\"", escaped.collect::<String>())
            }
            Self::List(items) => format!("{items:?}"),
        }
    }
}

const MAX_INFLATED_BYTES: usize = 1 << 16;

fn sealed() -> SealCodec<CompressCodec> {
    let key = SealingKey::new(b"0123456789abcdef0123456789abcdef").unwrap();
    SealCodec::new(compressed(), SealingKeys::new(key))
}

fn compressed() -> CompressCodec {
    CompressCodec::new(JsonCodec::default()).with_threshold(64).with_max_inflated_bytes(MAX_INFLATED_BYTES)
}

fuzz_target!(|input: Input<'_>| {
    let key = StoredKey::parse("the-key").unwrap();
    let payload = Bytes::copy_from_slice(input.payload);
    for codec in [&JsonCodec::default() as &dyn Codec, &compressed()] {
        if let Ok(data) = codec.decode(&key, &payload) {
            let again = codec.encode(&key, &data).unwrap();
            assert_eq!(codec.decode(&key, &again).unwrap(), data);
        }
        let _ = codec.is_current(&payload);
    }
    assert!(sealed().decode(&key, &payload).is_err(), "a payload was opened that had not been sealed");

    let mut data = SessionData::new();
    for (name, value) in &input.values {
        data.insert(name, value.text()).unwrap();
    }
    for codec in [&JsonCodec::default() as &dyn Codec, &compressed(), &sealed()] {
        let Ok(payload) = codec.encode(&key, &data) else { continue };
        assert_eq!(codec.decode(&key, &payload).unwrap(), data);
        assert!(codec.is_current(&payload));
    }
    if input.change != 0
        && let Ok(payload) = sealed().encode(&key, &data)
    {
        let mut changed = payload.to_vec();
        let position = input.position % changed.len();
        changed[position] ^= input.change;
        assert!(sealed().decode(&key, &changed.into()).is_err(), "a changed payload was opened");
        let other = StoredKey::parse("another").unwrap();
        assert!(sealed().decode(&other, &payload).is_err(), "a payload was opened under another key");
    }
});
