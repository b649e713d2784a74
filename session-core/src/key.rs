use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// The longest key, in bytes.
const MAX_LEN: usize = 64;

/// At most 64 ASCII bytes, inline: copying a key allocates nothing.
#[derive(Clone, Copy)]
struct Text {
    len: u8,
    bytes: [u8; MAX_LEN],
}

impl Text {
    const EMPTY: Self = Self { len: 0, bytes: [0; MAX_LEN] };
    const DASH: Self = {
        let mut bytes = [0; MAX_LEN];
        bytes[0] = b'-';
        Self { len: 1, bytes }
    };

    /// Appends `text`. Appends nothing if there is no room for it, so callers check lengths first.
    #[inline]
    fn push(&mut self, text: &[u8]) {
        let end = usize::from(self.len).saturating_add(text.len());
        if let (Some(slots), Ok(len)) = (self.bytes.get_mut(self.len.into()..end), u8::try_from(end)) {
            slots.copy_from_slice(text);
            self.len = len;
        }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }

    fn as_str(&self) -> &str {
        // This does not fail: only ASCII is ever appended.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Text {}

/// The key that the client holds, usually in a cookie. It is a secret: every client that presents it is in
/// the session.
///
/// A generated key has 32 characters of `a-z0-9` from the operating system's random number generator (165
/// bits; ASVS 5.0 7.2.3 asks for at least 128). A parsed key has 8 to 64 characters of `[A-Za-z0-9_-]`.
/// `Debug` does not show it; [`expose`](Self::expose) does.
///
/// ```
/// use session_core::SessionKey;
///
/// let key = SessionKey::generate()?;
/// assert_eq!(SessionKey::parse(key.expose())?, key);
/// assert!(SessionKey::parse("../../etc/passwd").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey(Text);

impl SessionKey {
    const ALPHABET: [u8; 36] = *b"abcdefghijklmnopqrstuvwxyz0123456789";
    /// The length of a generated key, in characters.
    pub const GENERATED_LEN: usize = 32;

    /// Generates a random key.
    ///
    /// # Errors
    ///
    /// Returns [`RandomnessUnavailable`] if the operating system refuses random bytes.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        // The largest multiple of the alphabet's length in a byte. Larger bytes would favour some characters.
        const FAIR: u8 = 252;
        let mut text = Text::EMPTY;
        while usize::from(text.len) < Self::GENERATED_LEN {
            let mut random = [0_u8; 40];
            getrandom::fill(&mut random).map_err(RandomnessUnavailable)?;
            let wanted = Self::GENERATED_LEN - usize::from(text.len);
            for byte in random.into_iter().filter(|byte| *byte < FAIR).take(wanted) {
                if let Some(character) = Self::ALPHABET.get(usize::from(byte) % Self::ALPHABET.len()) {
                    text.push(&[*character]);
                }
            }
        }
        Ok(Self(text))
    }

    /// Reads a key that a client presented. No I/O happens before this has succeeded.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidKey`] unless `text` has 8 to 64 characters, all of `[A-Za-z0-9_-]`.
    #[inline]
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let bytes = text.as_bytes();
        if !(8..=MAX_LEN).contains(&bytes.len()) {
            return Err(InvalidKey);
        }
        // Do not stop at the first forbidden byte: without an early exit, the compiler checks many bytes at
        // once.
        let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() | matches!(byte, b'_' | b'-');
        if !bytes.iter().fold(true, |allowed, byte| allowed & is_allowed(byte)) {
            return Err(InvalidKey);
        }
        let mut key = Text::EMPTY;
        key.push(bytes);
        Ok(Self(key))
    }

    /// Returns the key's text, to be sent to the client and to no one else.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for SessionKey {
    type Err = InvalidKey;
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::parse(text)
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

/// The key that databases and caches hold instead of the [`SessionKey`]: by default its hash, so that a
/// leaked table or cache dump opens no session.
///
/// At most 64 printable ASCII bytes without spaces, inline, never on the heap. `Debug` does not show it,
/// because in
/// [`KeyForm::Plain`] it is the session key itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StoredKey(Text);

impl StoredKey {
    /// The longest stored key, in bytes.
    pub const MAX_LEN: usize = MAX_LEN;

    /// A key that no session has, because it is shorter than any. It serves to check whether a backend
    /// answers.
    pub const PROBE: Self = Self(Text::DASH);

    /// Returns the key under which a session is stored: `prefix`, then the session key in `form`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidKey`] if the result would have more than 64 bytes, which happens with
    /// [`KeyForm::Plain`] only.
    #[inline]
    pub fn derive(key: &SessionKey, form: KeyForm, prefix: &KeyPrefix) -> Result<Self, InvalidKey> {
        let mut stored = prefix.0;
        match form {
            KeyForm::Hashed => {
                let digest = Sha256::digest(key.0.as_bytes());
                let end = usize::from(stored.len) + KeyForm::HASHED_LEN;
                let slots = stored.bytes.get_mut(stored.len.into()..end).ok_or(InvalidKey)?;
                URL_SAFE_NO_PAD.encode_slice(digest, slots).map_err(|_| InvalidKey)?;
                stored.len = u8::try_from(end).map_err(|_| InvalidKey)?;
            }
            KeyForm::Plain => {
                if usize::from(stored.len) + key.0.as_bytes().len() > MAX_LEN {
                    return Err(InvalidKey);
                }
                stored.push(key.0.as_bytes());
            }
        }
        Ok(Self(stored))
    }

    /// Reads a stored key from a database, a cache or a list of sessions.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidKey`] unless `text` has 1 to 64 printable ASCII characters and no space.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_LEN || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(InvalidKey);
        }
        let mut key = Text::EMPTY;
        key.push(bytes);
        Ok(Self(key))
    }

    /// Returns `true` if a session under this key belongs to a store with this `prefix` and key `form`, and not to another
    /// application on the same table.
    ///
    /// - A hashed key belongs to the store whose prefix it begins with, followed by exactly 43 characters. It never belongs to
    ///   a store with another prefix, even if the one prefix begins with the other.
    /// - A key that an application chooses itself belongs to every store whose prefix it begins with. So no prefix should begin
    ///   with another one: end them with a colon. A key whose last 43 characters are all of base64url's alphabet may be a hashed
    ///   key of another application, and belongs to a store only if it looks like one of its hashed keys.
    /// - Plain keys have no prefix, and belong to every store.
    #[must_use]
    pub fn belongs_to(&self, form: KeyForm, prefix: &KeyPrefix) -> bool {
        let Some(rest) = self.as_str().strip_prefix(prefix.as_str()) else { return false };
        let is_hashed = rest.len() == KeyForm::HASHED_LEN;
        form == KeyForm::Plain || is_hashed || !self.may_end_with_a_hash()
    }

    /// Returns `true` if this may be a hashed key, with any prefix.
    fn may_end_with_a_hash(&self) -> bool {
        let is_of_a_hash = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        self.as_bytes()
            .last_chunk::<{ KeyForm::HASHED_LEN }>()
            .is_some_and(|end| end.iter().all(is_of_a_hash))
    }

    /// Returns the key's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Returns the key's bytes, all of them printable ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Hash for StoredKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredKey(..)")
    }
}

/// The way in which a [`StoredKey`] is made from a [`SessionKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyForm {
    /// SHA-256, then base64url without padding: 43 characters.
    Hashed,
    /// The session key itself, for tables that other programs share, such as Django's. A leak of the table
    /// opens sessions.
    Plain,
}

impl KeyForm {
    /// The length of a hashed key without its prefix, in bytes.
    pub const HASHED_LEN: usize = 43;

    /// Returns the length of the longest key of this form without a prefix, in bytes.
    #[must_use]
    pub const fn max_len(self) -> usize {
        match self {
            Self::Hashed => Self::HASHED_LEN,
            Self::Plain => MAX_LEN,
        }
    }
}

/// The prefix of every stored key, so that several applications can share one table and one cache. Empty by
/// default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPrefix(Text);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl KeyPrefix {
    /// No prefix.
    pub const NONE: Self = Self(Text::EMPTY);
    /// The longest prefix, in bytes: the room that a hashed key leaves.
    pub const MAX_LEN: usize = MAX_LEN - KeyForm::HASHED_LEN;

    /// Reads a prefix.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidKey`] unless `text` has at most 21 characters, all of `[A-Za-z0-9_.:-]`.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-');
        if text.len() > Self::MAX_LEN || !text.as_bytes().iter().all(allowed) {
            return Err(InvalidKey);
        }
        let mut prefix = Text::EMPTY;
        prefix.push(text.as_bytes());
        Ok(Self(prefix))
    }

    /// Returns the prefix's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// The error for text that is no key. It does not contain the text, which may be a mistyped key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a session key: wrong length or alphabet; treat the client as having no session")]
pub struct InvalidKey;

/// The error for an operating system that refuses random bytes, so that no key can be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the operating system's random number generator failed; no session key can be made")]
pub struct RandomnessUnavailable(#[source] getrandom::Error);

#[cfg(feature = "seal")]
impl RandomnessUnavailable {
    pub(crate) const fn new(error: getrandom::Error) -> Self {
        Self(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_belongs_to_the_longest_prefix_that_it_may_have() {
        let key = SessionKey::generate().unwrap();
        let prefixes = ["", "shop:", "shop:eu:"].map(|text| KeyPrefix::parse(text).unwrap());
        for (number, prefix) in prefixes.iter().enumerate() {
            let stored = StoredKey::derive(&key, KeyForm::Hashed, prefix).unwrap();
            let owners = prefixes.each_ref().map(|prefix| stored.belongs_to(KeyForm::Hashed, prefix));
            assert_eq!(owners, [0, 1, 2].map(|owner| owner == number));
        }
        let chosen = StoredKey::parse("shop:by-hand").unwrap();
        assert!(chosen.belongs_to(KeyForm::Hashed, &prefixes[1]));
    }

    #[test]
    fn hashed_key_belongs_to_no_other_prefix_whatever_the_hash_begins_with() {
        let [app, app2] = ["app", "app2"].map(|text| KeyPrefix::parse(text).unwrap());
        let belongs = |text: &str| {
            let key = StoredKey::parse(text).unwrap();
            [app, app2].map(|prefix| key.belongs_to(KeyForm::Hashed, &prefix))
        };
        for begin in ["2", "2-", "x", "22222"] {
            let hash = format!("{begin:_<43}");
            assert_eq!(belongs(&format!("app{hash}")), [true, false], "{hash}");
            assert_eq!(belongs(&format!("app2{hash}")), [false, true], "{hash}");
            assert!(!StoredKey::parse(&hash).unwrap().belongs_to(KeyForm::Hashed, &app), "{hash}");
        }
        // A key that an application chooses itself belongs to every prefix that it begins with, if no hash fits in.
        assert_eq!(belongs("app2-by-hand"), [true, true]);
        assert_eq!(belongs(&format!("app2{}", "x".repeat(38))), [true, true]);
        assert_eq!(belongs(&format!("app2{}", "x".repeat(39))), [false, false]);
        // However long it is, a key with another character near its end is no hashed key.
        assert_eq!(belongs(&format!("app2{}:1", "x".repeat(50))), [true, true]);
    }

    #[test]
    fn generated_keys_have_32_characters_of_the_alphabet_and_differ() {
        let keys: Vec<_> = (0..100).map(|_| SessionKey::generate().unwrap()).collect();
        for key in &keys {
            assert_eq!(key.expose().len(), 32);
            assert!(key.expose().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        }
        let distinct: std::collections::HashSet<_> = keys.iter().map(SessionKey::expose).collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn malformed_session_keys_are_refused() {
        let long = "a".repeat(65);
        for text in [
            "",
            "1234567",
            &long,
            "../../../etc/passwd",
            "with space",
            "zürich-key",
            "nul\0nul-nul",
            "semi;colon",
        ] {
            assert_eq!(SessionKey::parse(text), Err(InvalidKey), "{text:?}");
        }
        for text in ["12345678", "ABC_def-123", &"a".repeat(64)] {
            assert_eq!(SessionKey::parse(text).unwrap().expose(), text);
        }
    }

    #[test]
    fn hashed_key_is_the_sha256_of_the_session_key_in_base64url() {
        let key = SessionKey::parse("abcdefgh").unwrap();
        let stored = StoredKey::derive(&key, KeyForm::Hashed, &KeyPrefix::NONE).unwrap();
        // printf abcdefgh | openssl dgst -sha256 -binary | base64 | tr '+/' '-_' | tr -d =
        assert_eq!(stored.as_str(), "nFbMUbN0w7oYkhDVttS_V3kNNRyWxHwCGQ7PHkMGNas");
        let plain = StoredKey::derive(&key, KeyForm::Plain, &KeyPrefix::NONE).unwrap();
        assert_eq!(plain.as_str(), "abcdefgh");
        let prefixed = StoredKey::derive(&key, KeyForm::Hashed, &KeyPrefix::parse("shop:").unwrap()).unwrap();
        assert_eq!(prefixed.as_str(), format!("shop:{}", stored.as_str()));
    }

    #[test]
    fn prefix_that_leaves_no_room_for_a_hash_is_refused() {
        assert!(KeyPrefix::parse(&"p".repeat(KeyPrefix::MAX_LEN)).is_ok());
        assert_eq!(KeyPrefix::parse(&"p".repeat(KeyPrefix::MAX_LEN + 1)), Err(InvalidKey));
        assert_eq!(KeyPrefix::parse("with space"), Err(InvalidKey));
        let key = SessionKey::parse(&"k".repeat(60)).unwrap();
        let prefix = KeyPrefix::parse("12345").unwrap();
        assert_eq!(StoredKey::derive(&key, KeyForm::Plain, &prefix), Err(InvalidKey));
    }

    #[test]
    fn keys_that_differ_only_in_case_are_different() {
        assert_ne!(StoredKey::parse("abcDEFgh").unwrap(), StoredKey::parse("abcdefgh").unwrap());
    }

    #[test]
    fn debug_shows_no_key() {
        let key = SessionKey::parse("supersecretkey").unwrap();
        let stored = StoredKey::derive(&key, KeyForm::Plain, &KeyPrefix::NONE).unwrap();
        assert!(!format!("{key:?}{stored:?}").contains("secret"));
    }
}
