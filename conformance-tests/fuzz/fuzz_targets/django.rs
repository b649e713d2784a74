//! Rows that a table of Django may hold.

#![no_main]

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use session_core::django::{DjangoCodec, SecretKeys, instant, is_signed_text, signed_at};
use session_core::{Codec, SessionData, StoredKey, Timestamp};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    row: &'a [u8],
    text: &'a str,
    instant: i64,
    values: Vec<(&'a str, i64)>,
    position: usize,
    change: u8,
}

fn codec() -> DjangoCodec {
    let keys = SecretKeys::new("a secret key of a site that does not exist").unwrap();
    DjangoCodec::new(&keys).with_max_json_bytes(1 << 16).with_clock(|| Timestamp::from_secs(1_700_000_000))
}

fuzz_target!(|input: Input<'_>| {
    let key = StoredKey::parse("the-key").unwrap();
    assert!(
        codec().decode(&key, &Bytes::copy_from_slice(input.row)).is_err(),
        "a row was read that had not been signed"
    );
    let _ = (is_signed_text(input.row), signed_at(input.row));

    // Earlier and later instants are written as the nearest that a table can hold.
    for instant in
        [instant::parse(input.text), Some(Timestamp::from_micros(input.instant))].into_iter().flatten()
    {
        let held = instant::parse(&instant::format(instant)).unwrap();
        assert_eq!(instant::parse(&instant::format(held)), Some(held));
        assert!(
            held == instant || instant.as_micros().unsigned_abs() > 30_000_000_000_000_000,
            "{instant:?} became {held:?}"
        );
    }

    let mut data = SessionData::new();
    // A session's own expiry is written in Django's form.
    for (name, value) in input.values.iter().filter(|(name, _)| *name != "_session_expiry") {
        data.insert(name, value.to_string()).unwrap();
    }
    let Ok(row) = codec().encode(&key, &data) else { return };
    assert_eq!(codec().decode(&key, &row).unwrap(), data);
    assert!(is_signed_text(&row));
    let mut changed = row.to_vec();
    let position = input.position % changed.len();
    changed[position] ^= input.change;
    if changed != row {
        assert!(codec().decode(&key, &changed.into()).is_err(), "a changed row was read");
    }
});
