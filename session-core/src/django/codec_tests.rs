use std::io::Write as _;

use proptest::prelude::*;

use super::*;

const SECRET: &str = "django-insecure-test-secret-key";
const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_999_999);

fn key() -> StoredKey {
    StoredKey::parse("k9s0bpcv0lx1ch2pqcrtjaxpn2kuw3ol").unwrap()
}

fn codec(current: &str, fallbacks: &[&str]) -> DjangoCodec {
    let keys = SecretKeys::new(current).unwrap().with_fallbacks(fallbacks).unwrap();
    DjangoCodec::new(&keys).with_clock(|| NOW)
}

fn data(json: &str) -> SessionData {
    SessionData::from_json(Bytes::copy_from_slice(json.as_bytes())).unwrap()
}

fn read(codec: &DjangoCodec, payload: &str) -> Result<SessionData, UnreadablePayload> {
    codec.decode(&key(), &Bytes::copy_from_slice(payload.as_bytes())).map_err(|error| match error {
        CodecError::Malformed(source) => *source.downcast::<UnreadablePayload>().unwrap(),
        other => panic!("{other:?}"),
    })
}

fn json_of(data: &SessionData) -> String {
    let mut json = Vec::new();
    data.write_json(&mut json);
    String::from_utf8(json).unwrap()
}

/// The text that Django signs if its serializer returns `json`.
fn signed(json: &[u8]) -> String {
    signing::sign(&codec(SECRET, &[]).signers[0], &URL_SAFE_NO_PAD.encode(json), NOW)
}

fn signed_compressed(json: &[u8]) -> String {
    let payload = format!(".{}", URL_SAFE_NO_PAD.encode(compress(json).unwrap()));
    signing::sign(&codec(SECRET, &[]).signers[0], &payload, NOW)
}

/// `django.core.signing.dumps(value, salt=…, compress=True)` with the secret key above, at that time.
const DJANGOS: [(&str, &str); 3] = [
    ("{}", "e30:1r31eq:rRYHGhb1jV4dwr5oVRYhRrCekFWAE5w9Nyo1VnYM5Bo"),
    (r#"{"a":1}"#, "eyJhIjoxfQ:1r31eq:FksILNxBF-juWQwx_lmXoOUj-CluPawHYke7jcHhfX4"),
    (r#"{"k":"@"}"#, ".eJyrVspWslKqGCZAqRYAxxtf5g:1r31eq:kS7d4U-YG7oY1DsV7uzhA3_242L0_imkczJmb53udZI"),
];

#[test]
fn payloads_of_django_are_decoded() {
    for (json, payload) in DJANGOS {
        let json = json.replace('@', &"x".repeat(200));
        assert_eq!(json_of(&read(&codec(SECRET, &[]), payload).unwrap()), json);
    }
}

#[test]
fn short_payload_is_encoded_as_django_encodes_it() {
    for (json, payload) in &DJANGOS[..2] {
        let written = codec(SECRET, &[]).encode(&key(), &data(json)).unwrap();
        assert_eq!(std::str::from_utf8(&written).unwrap(), *payload);
    }
}

#[test]
fn payload_that_gets_smaller_is_compressed() {
    let long = data(&format!(r#"{{"k":"{}"}}"#, "x".repeat(200)));
    let payload = codec(SECRET, &[]).encode(&key(), &long).unwrap();
    assert!(payload.starts_with(b".") && payload.len() < 120);
    assert_eq!(codec(SECRET, &[]).decode(&key(), &payload).unwrap(), long);
}

#[test]
fn fallback_verifies_and_does_not_sign() {
    let payload = String::from_utf8(codec("old", &[]).encode(&key(), &data("{}")).unwrap().into()).unwrap();
    let rotated = codec("new", &["older", "old"]);
    let read_back = read(&rotated, &payload).unwrap();
    let again = rotated.encode(&key(), &read_back).unwrap();
    assert!(codec("new", &[]).decode(&key(), &again).is_ok());
    assert!(codec("old", &[]).decode(&key(), &again).is_err());
}

#[test]
fn payload_of_another_salt_is_refused() {
    let payload = codec(SECRET, &[]).with_salt("django.contrib.sessions.Mine").encode(&key(), &data("{}"));
    let payload = String::from_utf8(payload.unwrap().into()).unwrap();
    assert_eq!(read(&codec(SECRET, &[]), &payload), Err(UnreadablePayload::Signature));
    assert!(read(&codec(SECRET, &[]).with_salt("django.contrib.sessions.Mine"), &payload).is_ok());
}

#[test]
fn tampered_truncated_and_foreign_payloads_are_unreadable() {
    let good = DJANGOS[1].1;
    assert!(read(&codec(SECRET, &[]), good).is_ok());
    assert_eq!(read(&codec("another", &["one more"]), good), Err(UnreadablePayload::Signature));
    for position in 0..good.len() {
        let mut tampered = good.as_bytes().to_vec();
        tampered[position] = if tampered[position] == b'A' { b'B' } else { b'A' };
        let tampered = String::from_utf8(tampered).unwrap();
        assert_eq!(read(&codec(SECRET, &[]), &tampered), Err(UnreadablePayload::Signature), "{tampered}");
        assert_eq!(read(&codec(SECRET, &[]), &good[..position]), Err(UnreadablePayload::Signature));
    }
    let (value, signature) = good.rsplit_once(':').unwrap();
    for other in [String::new(), "::".into(), format!("{value}:"), format!("{value}x:{signature}")] {
        assert_eq!(read(&codec(SECRET, &[]), &other), Err(UnreadablePayload::Signature), "{other}");
    }
}

#[test]
fn signed_payload_of_another_form_is_unreadable() {
    let sign = |payload: &str| signing::sign(&codec(SECRET, &[]).signers[0], payload, NOW);
    for payload in ["e30=", "e3", "é", "..e30", "e30 "] {
        assert!(read(&codec(SECRET, &[]), &sign(payload)).is_err(), "{payload}");
    }
    let without_time = {
        let signer = &codec(SECRET, &[]).signers[0];
        format!("e30:{}", URL_SAFE_NO_PAD.encode(crate::django::keys::tag(signer, "e30")))
    };
    assert_eq!(read(&codec(SECRET, &[]), &without_time), Err(UnreadablePayload::Form));
    for json in [&b""[..], b"[]", b"null", b"{", b"\x80\x04}q\x00.", b"{\"a\":NaN}", b"{}{}"] {
        let found = read(&codec(SECRET, &[]), &signed(json));
        assert!(matches!(found, Err(UnreadablePayload::Json(_))), "{json:?}: {found:?}");
    }
}

#[test]
fn payload_that_cannot_be_inflated_is_unreadable() {
    let deflated = compress(br#"{"a":1,"b":2,"c":3}"#).unwrap();
    let sign = |bytes: &[u8]| {
        let payload = format!(".{}", URL_SAFE_NO_PAD.encode(bytes));
        signing::sign(&codec(SECRET, &[]).signers[0], &payload, NOW)
    };
    for bytes in [&b""[..], b"not zlib", &deflated[..deflated.len() - 1], &deflated[..8]] {
        assert_eq!(read(&codec(SECRET, &[]), &sign(bytes)), Err(UnreadablePayload::Compression));
    }
}

#[test]
fn payload_that_inflates_beyond_the_limit_is_not_inflated() {
    // 32 MiB of spaces in 32 KB.
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    for _ in 0..32 {
        encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    let payload =
        signing::sign(&codec(SECRET, &[]).signers[0], &format!(".{}", URL_SAFE_NO_PAD.encode(bomb)), NOW);
    let limit = DjangoCodec::DEFAULT_MAX_JSON_BYTES;
    assert_eq!(read(&codec(SECRET, &[]), &payload), Err(UnreadablePayload::TooLarge { limit }));
}

#[test]
fn size_limit_is_the_same_for_encoding_and_decoding() {
    let json = format!(r#"{{"k":"{}"}}"#, "x".repeat(92));
    let (exact, less) = (
        codec(SECRET, &[]).with_max_json_bytes(json.len()),
        codec(SECRET, &[]).with_max_json_bytes(json.len() - 1),
    );
    for payload in [signed(json.as_bytes()), signed_compressed(json.as_bytes())] {
        assert!(read(&exact, &payload).is_ok());
        assert_eq!(read(&less, &payload), Err(UnreadablePayload::TooLarge { limit: json.len() - 1 }));
    }
    assert!(exact.encode(&key(), &data(&json)).is_ok());
    let (actual, limit) = (json.len(), json.len() - 1);
    let refused = less.encode(&key(), &data(&json));
    assert!(
        matches!(refused, Err(CodecError::TooLarge { actual: a, limit: l }) if (a, l) == (actual, limit)),
        "{refused:?}"
    );
}

#[test]
fn encoded_json_is_ascii() {
    let mut changed = data(r#"{"kept":"caf\u00e9","raw":"é"}"#);
    changed.insert("new", "\"naïve 😀\u{7f}\"".into()).unwrap();
    changed.insert("schlüssel", "1".into()).unwrap();
    let payload = codec(SECRET, &[]).encode(&key(), &changed).unwrap();
    let json = codec(SECRET, &[]).json(payload_of(&payload)).unwrap();
    assert_eq!(
        std::str::from_utf8(&json).unwrap(),
        "{\"kept\":\"caf\\u00e9\",\"new\":\"na\\u00efve \\ud83d\\ude00\u{7f}\",\"raw\":\"\\u00e9\",\"schl\\u00fcssel\":1}"
    );
}

fn payload_of(text: &Bytes) -> &str {
    std::str::from_utf8(text).unwrap().split(':').next().unwrap()
}

#[test]
fn bytes_beyond_ascii_are_read_as_latin_1_like_in_django() {
    assert_eq!(json_of(&read(&codec(SECRET, &[]), &signed(b"{\"a\":\"\xe9\"}")).unwrap()), r#"{"a":"é"}"#);
}

#[test]
fn untouched_values_are_encoded_byte_for_byte() {
    let json = r#"{"z":123456789012345678901234567890,"a":[1.0, 1e3 ],"s":"\ud800\/é","_auth_user_id":"42"}"#;
    let ascii = json.replace('é', "\\u00e9");
    let mut found = read(&codec(SECRET, &[]), &signed(ascii.as_bytes())).unwrap();
    let unchanged = codec(SECRET, &[]).encode(&key(), &found).unwrap();
    assert_eq!(&codec(SECRET, &[]).json(payload_of(&unchanged)).unwrap()[..], ascii.as_bytes());

    found.insert("new", "true".into()).unwrap();
    let changed = codec(SECRET, &[]).encode(&key(), &found).unwrap();
    let changed = read(&codec(SECRET, &[]), std::str::from_utf8(&changed).unwrap()).unwrap();
    let original = data(&ascii);
    for (key, value) in original.iter() {
        assert_eq!(changed.get(key), Some(value));
    }
    assert_eq!(changed.len(), original.len() + 1);
}

#[test]
fn expiry_is_encoded_in_a_form_that_django_reads() {
    let written = |expiry: Expiry| {
        let mut changed = SessionData::new();
        changed.insert(EXPIRY_KEY, expiry.to_json()).unwrap();
        let payload = codec(SECRET, &[]).encode(&key(), &changed).unwrap();
        let read_back = codec(SECRET, &[]).decode(&key(), &payload).unwrap();
        let json = read_back.get(EXPIRY_KEY).unwrap().to_owned();
        (Expiry::from_json(&json).unwrap(), json)
    };
    let at = Expiry::At(Timestamp::from_micros(1_795_428_647_459_413));
    assert_eq!(written(at), (at, "\"2026-11-23T10:10:47.459413+00:00\"".to_owned()));
    let end = Expiry::At(Timestamp::from_micros(253_402_300_799_999_999));
    assert_eq!(written(Expiry::At(Timestamp::MAX)), (end, "\"9999-12-31T23:59:59.999999+00:00\"".to_owned()));
    assert_eq!(written(Expiry::BrowserSession), (Expiry::BrowserSession, "0".to_owned()));
    let ten = Expiry::After(Duration::from_secs(10));
    assert_eq!(written(ten), (ten, "10".to_owned()));
    let years = Expiry::After(LONGEST_EXPIRY);
    assert_eq!(written(Expiry::After(Duration::MAX)), (years, "3153600000".to_owned()));
}

#[test]
fn expiry_that_django_wrote_is_kept() {
    for expiry in
        ["0", "1800", "-10", "10.5", "\"2026-11-23T10:10:47+02:00\"", "\"2026-11-23T10:10:47\"", "null"]
    {
        let mut changed = data(&format!(r#"{{"_session_expiry":{expiry}}}"#));
        changed.insert("other", "1".into()).unwrap();
        let payload = codec(SECRET, &[]).encode(&key(), &changed).unwrap();
        let read_back = codec(SECRET, &[]).decode(&key(), &payload).unwrap();
        assert_eq!(read_back.get(EXPIRY_KEY), Some(expiry));
    }
}

#[test]
fn errors_show_nothing_of_the_payload() {
    for payload in [signed(b"secret"), "secret:secret:secret".to_owned(), signed(b"{\"a\":secret}")] {
        let error = codec(SECRET, &[]).decode(&key(), &Bytes::from(payload)).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(
            !shown.contains("secret\"") && !shown.contains("c2VjcmV0") && !shown.contains("secret:"),
            "{shown}"
        );
    }
}

proptest! {
    #[test]
    fn any_map_is_decoded_to_itself(values in prop::collection::btree_map(".*", ".*", 0..6)) {
        let mut map = SessionData::new();
        for (name, value) in &values {
            map.insert(name, serde_json::to_string(value).unwrap()).unwrap();
        }
        let codec = codec(SECRET, &[]);
        let payload = codec.encode(&key(), &map).unwrap();
        prop_assert!(signing::is_signed_text(&payload));
        prop_assert_eq!(signing::signed_at(&payload), Some(Timestamp::from_secs(1_700_000_000)));
        let found = codec.decode(&key(), &payload).unwrap();
        prop_assert_eq!(found.len(), values.len());
        for (name, value) in &values {
            if name != EXPIRY_KEY {
                prop_assert_eq!(&serde_json::from_str::<String>(found.get(name).unwrap()).unwrap(), value);
            }
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = codec(SECRET, &[]).decode(&key(), &bytes.into());
    }

    #[test]
    fn any_signed_bytes_are_decoded_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = read(&codec(SECRET, &[]), &signed(&bytes));
        let payload = format!(".{}", URL_SAFE_NO_PAD.encode(&bytes));
        let _ = read(&codec(SECRET, &[]), &signing::sign(&codec(SECRET, &[]).signers[0], &payload, NOW));
    }
}
