use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use crate::RandomnessUnavailable;

/// A key of 32 bytes by which payloads are sealed.
///
/// Wiped from memory when its last clone is dropped. `Debug` shows its [id](SealingKeyId) only.
#[derive(Clone)]
pub struct SealingKey {
    bytes: Arc<Zeroizing<[u8; Self::LEN]>>,
    id: SealingKeyId,
}

impl SealingKey {
    /// The length of a key, in bytes.
    pub const LEN: usize = 32;

    /// The longest text of a key: longer than any that is right, so that a length can be told of one that is not.
    const MAX_TEXT: usize = 256;

    /// The key that `bytes` are. They must be random: no passphrase, and nothing made from one without a function that is
    /// made for that.
    ///
    /// # Errors
    ///
    /// [`InvalidSealingKey::Length`] unless there are 32; [`InvalidSealingKey::Weak`] when all of them are the same.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidSealingKey> {
        let length = || InvalidSealingKey::Length { actual: bytes.len() };
        let mut own = Arc::new(Zeroizing::new([0; Self::LEN]));
        // On the heap first, so that no copy is left behind where it was made.
        let slot = Arc::get_mut(&mut own).ok_or_else(length)?;
        if bytes.len() != Self::LEN {
            return Err(length());
        }
        slot.copy_from_slice(bytes);
        if bytes.iter().all(|byte| Some(byte) == bytes.first()) {
            return Err(InvalidSealingKey::Weak);
        }
        let digest: [u8; 32] =
            Sha256::new().chain_update("session-core sealing key id\0").chain_update(bytes).finalize().into();
        let [a, b, c, d, ..] = digest;
        Ok(Self { bytes: own, id: SealingKeyId([a, b, c, d]) })
    }

    /// The key that `text` spells: 32 bytes in base64 (of either alphabet, with or without padding), as
    /// `openssl rand -base64 32` makes it, or in 64 hexadecimal digits. White space around it does not count.
    ///
    /// # Errors
    ///
    /// [`InvalidSealingKey::Encoding`] when it is neither, or as [`new`](Self::new).
    pub fn parse(text: &str) -> Result<Self, InvalidSealingKey> {
        let text = text.trim_ascii();
        if text.len() > Self::MAX_TEXT {
            return Err(InvalidSealingKey::Encoding);
        }
        // As large as it can get, so that it does not move and leave copies.
        let mut bytes = Zeroizing::new(Vec::with_capacity(Self::MAX_TEXT));
        if text.len() == 2 * Self::LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let digits: Zeroizing<Vec<u8>> = Zeroizing::new(
                text.chars().filter_map(|digit| digit.to_digit(16)?.try_into().ok()).collect(),
            );
            bytes.extend(digits.as_chunks().0.iter().map(|[high, low]| high << 4 | low));
        } else {
            let is_url_safe = text.bytes().any(|byte| matches!(byte, b'-' | b'_'));
            let engine = if is_url_safe { &URL_SAFE } else { &STANDARD };
            engine.decode_vec(text, &mut bytes).map_err(|_| InvalidSealingKey::Encoding)?;
        }
        Self::new(&bytes)
    }

    /// A new random key. To be kept: what it seals can be read with it only.
    ///
    /// # Errors
    ///
    /// [`RandomnessUnavailable`] when the operating system refuses random bytes.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        let mut bytes = Zeroizing::new([0; Self::LEN]);
        loop {
            getrandom::fill(&mut *bytes).map_err(RandomnessUnavailable::new)?;
            if let Ok(key) = Self::new(&*bytes) {
                return Ok(key);
            }
        }
    }

    /// What tells this key from others, and is not secret.
    #[must_use]
    pub const fn id(&self) -> SealingKeyId {
        self.id
    }

    #[cfg(test)]
    pub(super) fn stored(&self) -> &Zeroizing<[u8; Self::LEN]> {
        &self.bytes
    }

    pub(super) fn bytes(&self) -> &[u8; Self::LEN] {
        &self.bytes
    }
}

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.id)
    }
}

/// What tells a [`SealingKey`] from others: the first bytes of a hash of it. Stands in what it has sealed, and in errors.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SealingKeyId([u8; Self::LEN]);

impl SealingKeyId {
    pub(super) const LEN: usize = 4;

    pub(super) const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(super) const fn to_bytes(self) -> [u8; Self::LEN] {
        self.0
    }
}

impl fmt::Display for SealingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SealingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A ring of keys: the first one seals, all of them open.
///
/// To change the key: put the new one at the end everywhere; then to the front everywhere; let all rows be sealed anew;
/// take the old one away.
#[derive(Clone, Debug)]
pub struct SealingKeys {
    first: SealingKey,
    others: Vec<SealingKey>,
}

impl SealingKeys {
    /// A ring of one key.
    #[must_use]
    pub const fn new(key: SealingKey) -> Self {
        Self { first: key, others: Vec::new() }
    }

    /// The same, which also opens what `key` has sealed.
    ///
    /// # Errors
    ///
    /// [`InvalidSealingKey::Duplicate`] when it is in the ring already.
    pub fn with(mut self, key: SealingKey) -> Result<Self, InvalidSealingKey> {
        if self.get(key.id()).is_some() {
            return Err(InvalidSealingKey::Duplicate(key.id()));
        }
        self.others.push(key);
        Ok(self)
    }

    /// The keys that `text` spells, as [`SealingKey::parse`] reads them, between commas or white space; the first one
    /// seals.
    ///
    /// # Errors
    ///
    /// [`InvalidSealingKey::Missing`] when there is none, or as [`SealingKey::parse`] and [`with`](Self::with).
    pub fn parse(text: &str) -> Result<Self, InvalidSealingKey> {
        let mut texts = text
            .split(|character: char| character == ',' || character.is_ascii_whitespace())
            .filter(|text| !text.is_empty());
        let first = texts.next().ok_or(InvalidSealingKey::Missing)?;
        texts.try_fold(Self::new(SealingKey::parse(first)?), |ring, text| ring.with(SealingKey::parse(text)?))
    }

    /// The same, from an environment variable. Who may look into the process can see that; a file is better.
    ///
    /// # Errors
    ///
    /// [`InvalidSealingKey::Unset`] when there is no such variable, or it is no Unicode; or as [`parse`](Self::parse).
    pub fn from_env(variable: &str) -> Result<Self, InvalidSealingKey> {
        let text = std::env::var(variable)
            .map_err(|_| InvalidSealingKey::Unset { variable: variable.to_owned() })?;
        Self::parse(&Zeroizing::new(text))
    }

    /// The same, from a file: a secret that Docker, Kubernetes or systemd has mounted. Blocks while it is read.
    ///
    /// # Errors
    ///
    /// [`InvalidSealingKey::File`] when it cannot be read, is no UTF-8, or has 64 KiB or more; or as
    /// [`parse`](Self::parse).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, InvalidSealingKey> {
        const MAX_LEN: u16 = u16::MAX;
        let failed = |error: std::io::Error| InvalidSealingKey::File(Arc::new(error));
        // As large as it can get, so that it does not move and leave copies.
        let mut text = Zeroizing::new(String::with_capacity(usize::from(MAX_LEN) + 1));
        let file = std::fs::File::open(path).map_err(failed)?;
        let read = file.take(u64::from(MAX_LEN) + 1).read_to_string(&mut text).map_err(failed)?;
        if read > usize::from(MAX_LEN) {
            text.zeroize();
            return Err(failed(std::io::Error::other("it is larger than any list of keys")));
        }
        Self::parse(&text)
    }

    /// The ids of the keys; the first is that of the one that seals.
    pub fn ids(&self) -> impl Iterator<Item = SealingKeyId> {
        self.keys().map(SealingKey::id)
    }

    pub(super) const fn first(&self) -> &SealingKey {
        &self.first
    }

    pub(super) fn get(&self, id: SealingKeyId) -> Option<&SealingKey> {
        self.keys().find(|key| key.id() == id)
    }

    fn keys(&self) -> impl Iterator<Item = &SealingKey> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// The text or bytes are no sealing key, or no ring of them. Shows none of them.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSealingKey {
    /// There is none.
    #[error("there is no sealing key; make one with: openssl rand -base64 32")]
    Missing,
    /// The environment does not have it.
    #[error("the environment variable {variable} is missing or no Unicode; set it to the sealing keys")]
    Unset {
        /// The variable's name.
        variable: String,
    },
    /// The file with it cannot be read.
    #[error("the file of sealing keys cannot be read ({0})")]
    File(#[source] Arc<std::io::Error>),
    /// It is neither base64 nor hexadecimal.
    #[error("a sealing key is neither base64 nor hexadecimal; make one with: openssl rand -base64 32")]
    Encoding,
    /// It is too short, or too long.
    #[error("a sealing key has {actual} bytes instead of 32; make one with: openssl rand -base64 32")]
    Length {
        /// How many bytes it has.
        actual: usize,
    },
    /// It is one byte again and again.
    #[error("a sealing key is not random; make one with: openssl rand -base64 32")]
    Weak,
    /// It is in the ring twice.
    #[error("the sealing key {0} is there twice; take one away")]
    Duplicate(SealingKeyId),
}
