//! Texts that a client may present as a key, a database as a stored key, and a configuration as a prefix.

#![no_main]

use libfuzzer_sys::fuzz_target;
use session_core::{KeyForm, KeyPrefix, SessionKey, StoredKey};

fuzz_target!(|input: (&str, &str)| {
    let (text, prefix) = input;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let key = SessionKey::parse(text);
    assert_eq!(key.is_ok(), (8..=64).contains(&text.len()) && text.bytes().all(is_word));
    let stored = StoredKey::parse(text);
    assert_eq!(
        stored.is_ok(),
        (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    );
    if let Ok(stored) = stored {
        assert_eq!(stored.as_str(), text);
    }
    let prefix = KeyPrefix::parse(prefix);
    let (Ok(key), Ok(prefix)) = (key, prefix) else { return };
    assert_eq!(key.expose(), text);
    let another = SessionKey::parse("another-key").unwrap();
    assert_eq!(format!("{key:?}"), format!("{another:?}"), "Debug shows the key");
    let hashed = StoredKey::derive(&key, KeyForm::Hashed, &prefix).unwrap();
    let hash = hashed.as_str().strip_prefix(prefix.as_str()).unwrap();
    assert!(!hash.contains(text), "a stored key shows the session key");
    assert_eq!(StoredKey::parse(hashed.as_str()).unwrap(), hashed);
    if let Ok(plain) = StoredKey::derive(&key, KeyForm::Plain, &prefix) {
        assert_eq!(plain.as_str().strip_prefix(prefix.as_str()), Some(text));
    }
});
