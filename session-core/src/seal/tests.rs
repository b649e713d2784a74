use std::sync::Arc;

use proptest::prelude::*;
use zeroize::ZeroizeOnDrop;

use super::*;
use crate::{Record, Timestamp};

fn key(text: &str) -> StoredKey {
    StoredKey::parse(text).unwrap()
}

fn here() -> StoredKey {
    key("here")
}

fn sealing_key(byte: u8) -> SealingKey {
    let bytes: Vec<u8> = (0..32).map(|position| byte.wrapping_add(position)).collect();
    SealingKey::new(&bytes).unwrap()
}

fn ring(bytes: &[u8]) -> SealingKeys {
    let (first, others) = bytes.split_first().unwrap();
    others
        .iter()
        .fold(SealingKeys::new(sealing_key(*first)), |ring, byte| ring.with(sealing_key(*byte)).unwrap())
}

fn codec(bytes: &[u8]) -> SealCodec {
    SealCodec::new(JsonCodec, ring(bytes))
}

fn data() -> SessionData {
    let mut data = SessionData::new();
    data.insert("secret", "\"hunter2\"".into()).unwrap();
    data
}

fn sealed() -> Bytes {
    codec(&[1]).encode(&here(), &data()).unwrap()
}

fn refusal(codec: &impl Codec, key: &StoredKey, payload: &Bytes) -> SealError {
    match codec.decode(key, payload) {
        Err(CodecError::Seal(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sealed_payload_shows_nothing_and_is_opened_with_its_key() {
    let payload = sealed();
    assert!(payload.starts_with(b"S1"));
    assert_eq!(payload.len(), br#"1{"secret":"hunter2"}"#.len() + SealCodec::<JsonCodec>::OVERHEAD);
    for part in [&b"secret"[..], b"hunter2", b"1{"] {
        assert!(!payload.windows(part.len()).any(|window| window == part));
    }
    assert_eq!(codec(&[1]).decode(&here(), &payload).unwrap(), data());
    // The nonce is random, so no two payloads are equal.
    assert_ne!(sealed(), payload);
}

#[test]
fn payload_moved_to_another_session_is_not_authentic() {
    for other in ["there", "her", "here-", "hereS1", "Here"] {
        assert_eq!(refusal(&codec(&[1]), &key(other), &sealed()), SealError::NotAuthentic);
    }
}

#[test]
fn payload_with_any_bit_flipped_is_refused() {
    let payload = sealed();
    for position in 0..payload.len() {
        for bit in 0..8 {
            let mut changed = payload.to_vec();
            changed[position] ^= 1 << bit;
            assert!(codec(&[1]).decode(&here(), &changed.into()).is_err(), "byte {position}, bit {bit}");
        }
    }
}

#[test]
fn payload_truncated_anywhere_is_refused() {
    let payload = sealed();
    for len in 0..payload.len() {
        let error = refusal(&codec(&[1]), &here(), &payload.slice(..len));
        let expected = match len {
            0 => SealError::Unsealed,
            1..46 => SealError::Truncated,
            _ => SealError::NotAuthentic,
        };
        assert_eq!(error, expected, "{len}");
    }
}

#[test]
fn error_names_the_key_that_is_not_in_the_ring() {
    let error = refusal(&codec(&[2, 3]), &here(), &sealed());
    assert_eq!(error, SealError::UnknownKey(sealing_key(1).id()));
    assert!(error.to_string().contains(&sealing_key(1).id().to_string()), "{error}");
}

#[test]
fn payload_that_names_another_key_of_the_ring_is_not_authentic() {
    let mut payload = sealed().to_vec();
    payload[2..6].copy_from_slice(&sealing_key(2).id().to_bytes());
    assert_eq!(refusal(&codec(&[1, 2]), &here(), &payload.into()), SealError::NotAuthentic);
}

#[test]
fn payload_of_a_newer_version_is_refused_by_its_version() {
    let mut payload = sealed().to_vec();
    payload[1] = b'2';
    assert_eq!(refusal(&codec(&[1]), &here(), &payload.into()), SealError::UnknownVersion(b'2'));
}

#[test]
fn first_key_seals_and_every_key_opens() {
    let (old, both, new) = (codec(&[1]), codec(&[2, 1]), codec(&[2]));
    let before = old.encode(&here(), &data()).unwrap();
    assert_eq!(both.decode(&here(), &before).unwrap(), data());
    assert!(old.is_current(&before) && !both.is_current(&before));
    let after = both.encode(&here(), &data()).unwrap();
    assert!(both.is_current(&after));
    assert_eq!(new.decode(&here(), &after).unwrap(), data());
    assert_eq!(refusal(&old, &here(), &after), SealError::UnknownKey(sealing_key(2).id()));
}

#[test]
fn unsealed_payload_is_refused_unless_unsealed_ones_are_accepted() {
    let plain = JsonCodec.encode(&here(), &data()).unwrap();
    assert_eq!(refusal(&codec(&[1]), &here(), &plain), SealError::Unsealed);
    let lenient = codec(&[1]).accepting_unsealed();
    assert_eq!(lenient.decode(&here(), &plain).unwrap(), data());
    assert!(!lenient.is_current(&plain));
    assert!(lenient.encode(&here(), &data()).unwrap().starts_with(b"S1"));
    // Accepting unsealed payloads lets nothing else through.
    assert_eq!(refusal(&lenient, &key("there"), &sealed()), SealError::NotAuthentic);
    assert_eq!(refusal(&lenient, &here(), &sealed().slice(..40)), SealError::Truncated);
}

#[test]
fn unsealed_payload_of_a_record_is_not_read_in_place() {
    let plain = JsonCodec.encode(&here(), &data()).unwrap();
    let record = Arc::new(Record::new(plain, Timestamp::from_secs(0), Timestamp::MAX));
    assert!(matches!(record.decode(&here(), &codec(&[1])), Err(CodecError::Seal(SealError::Unsealed))));
    assert!(record.data(&here(), &codec(&[1])).is_err());
}

#[cfg(feature = "compress")]
#[test]
fn payload_is_compressed_before_it_is_sealed() {
    use crate::CompressCodec;
    let codec = SealCodec::new(CompressCodec::new(JsonCodec), ring(&[1]));
    let mut long = SessionData::new();
    long.insert("x", format!("\"{}\"", "x".repeat(5_000))).unwrap();
    let payload = codec.encode(&here(), &long).unwrap();
    assert!(payload.len() < 200);
    assert_eq!(codec.decode(&here(), &payload).unwrap(), long);
}

#[test]
fn sealed_form_of_version_1_does_not_change() {
    // Made by another implementation, from the draft of XChaCha20-Poly1305 and the description of the format.
    let payload = hex(concat!(
        "5331cc09613f000102030405060708090a0b0c0d0e0f1011121314151617a45ef01fac7e7523835e",
        "c7a07d7c63484c1718fd0ece1ca7f1380dfbbd497664dea6784ce9",
    ));
    assert_eq!(codec(&[1]).decode(&here(), &payload.into()).unwrap(), data());
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn key_is_32_bytes_in_base64_or_hexadecimal() {
    let expected = sealing_key(0).id();
    for text in [
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        " AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F",
    ] {
        assert_eq!(SealingKey::parse(text).unwrap().id(), expected, "{text}");
    }
    let [url_safe, standard] =
        ["-_ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", "+/ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"]
            .map(|text| SealingKey::parse(text).unwrap().id());
    assert_eq!(url_safe, standard);
}

#[test]
fn wrong_short_and_missing_keys_are_refused() {
    let parse = |text: &str| SealingKeys::parse(text).unwrap_err();
    assert!(matches!(parse(""), InvalidSealingKey::Missing));
    assert!(matches!(parse(" , \n"), InvalidSealingKey::Missing));
    assert!(matches!(parse("AAECAwQFBgcICQoLDA0ODw=="), InvalidSealingKey::Length { actual: 16 }));
    assert!(matches!(parse(&"A".repeat(128)), InvalidSealingKey::Length { actual: 96 }));
    assert!(matches!(parse(&"A".repeat(43)), InvalidSealingKey::Weak));
    for text in ["correct horse battery staple!", "ä", &"A".repeat(10_000), "+-AAAAAAAAAA"] {
        assert!(matches!(SealingKey::parse(text), Err(InvalidSealingKey::Encoding)), "{text}");
    }
    let one = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    assert!(matches!(parse(&format!("{one},{one}")), InvalidSealingKey::Duplicate(_)));
    for len in [0, 31, 33] {
        assert!(
            matches!(SealingKey::new(&vec![7; len]), Err(InvalidSealingKey::Length { actual }) if actual == len)
        );
    }
    let unset = SealingKeys::from_env("NO_SUCH_VARIABLE_OF_SEALING_KEYS").unwrap_err();
    assert!(unset.to_string().contains("NO_SUCH_VARIABLE_OF_SEALING_KEYS"));
}

#[test]
fn ring_is_read_from_a_file() {
    let path = std::env::temp_dir().join(format!("sealing-keys-{}", std::process::id()));
    let keys = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\
                000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff\n";
    std::fs::write(&path, keys).unwrap();
    let ring = SealingKeys::from_file(&path).unwrap();
    assert_eq!(ring.ids().count(), 2);
    assert_eq!(ring.ids().next(), Some(sealing_key(0).id()));
    std::fs::write(&path, "x".repeat(70_000)).unwrap();
    assert!(matches!(SealingKeys::from_file(&path), Err(InvalidSealingKey::File(_))));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(SealingKeys::from_file(&path), Err(InvalidSealingKey::File(_))));
}

#[test]
fn generated_keys_differ() {
    let (one, other) = (SealingKey::generate().unwrap(), SealingKey::generate().unwrap());
    assert_ne!(one.bytes(), other.bytes());
}

#[test]
fn debug_and_errors_show_no_key_and_no_payload() {
    let bytes = *b"hunter2hunter3hunter4hunter5hunt";
    let key = SealingKey::new(&bytes).unwrap();
    let codec = SealCodec::new(JsonCodec, SealingKeys::new(key.clone()));
    let error = SealingKeys::parse("hunter2hunter3").unwrap_err();
    let refusal = codec.decode(&here(), &sealed()).unwrap_err();
    let shown = format!("{key:?} {codec:?} {error:?} {error} {refusal:?} {refusal}");
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(!shown.contains("104, 117, 110"), "{shown}");
}

#[test]
fn keys_are_wiped_when_they_are_dropped() {
    const fn is_wiped<T: ZeroizeOnDrop>(_: &T) {}
    let key = sealing_key(1);
    is_wiped(key.stored());
    is_wiped(&cipher(&key));
}

proptest! {
    #[test]
    fn any_bytes_are_opened_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..90)) {
        let mut payload = header(sealing_key(1).id()).to_vec();
        payload.extend(bytes);
        prop_assert!(codec(&[1]).decode(&here(), &payload.into()).is_err());
    }
}

#[test]
fn first_step_of_a_rollout_opens_sealed_payloads_and_writes_unsealed_ones() {
    let (before, after) = (JsonCodec, codec(&[1]).accepting_unsealed());
    let between = codec(&[1]).writing_unsealed();
    let unsealed = between.encode(&here(), &data()).unwrap();
    assert_eq!(before.decode(&here(), &unsealed).unwrap(), data());
    assert_eq!(after.decode(&here(), &unsealed).unwrap(), data());
    assert_eq!(between.decode(&here(), &unsealed).unwrap(), data());
    // Nodes of the second step are beside those of the first.
    assert_eq!(between.decode(&here(), &sealed()).unwrap(), data());
    assert!(before.decode(&here(), &sealed()).is_err());
    // So a sweep goes back to the old form, and not to and fro.
    assert!(between.is_current(&unsealed) && !between.is_current(&sealed()));
    assert!(after.is_current(&sealed()) && !after.is_current(&unsealed));
}
