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

/// A key of 32 bytes that seals payloads.
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

    /// The longest text that is parsed, in bytes: longer than any valid key, so that the error can name a
    /// wrong length.
    const MAX_TEXT: usize = 256;

    /// Creates a key from `bytes`, which must be random. A passphrase is no key; to derive a key from one
    /// takes a function made for that.
    ///
    /// # Errors
    ///
    /// - Returns [`InvalidSealingKey::Length`] unless there are 32 bytes.
    /// - Returns [`InvalidSealingKey::Weak`] if all bytes are the same.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidSealingKey> {
        let length = || InvalidSealingKey::Length { actual: bytes.len() };
        let mut own = Arc::new(Zeroizing::new([0; Self::LEN]));
        // Allocate first and copy into it, so that no copy of the key is left on the stack.
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

    /// Reads a key as text: 32 bytes in base64 (of either alphabet, with or without padding), as `openssl
    /// rand -base64 32` prints it, or 64 hexadecimal digits. White space around it does not count.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSealingKey::Encoding`] if the text is neither, and the errors of [`new`](Self::new).
    pub fn parse(text: &str) -> Result<Self, InvalidSealingKey> {
        let text = text.trim_ascii();
        if text.len() > Self::MAX_TEXT {
            return Err(InvalidSealingKey::Encoding);
        }
        // Allocate the final size at once, because a buffer that grows leaves copies behind.
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

    /// Generates a random key. Keep it: only this key opens the payloads that it seals.
    ///
    /// # Errors
    ///
    /// Returns [`RandomnessUnavailable`] if the operating system refuses random bytes.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        let mut bytes = Zeroizing::new([0; Self::LEN]);
        loop {
            getrandom::fill(&mut *bytes).map_err(RandomnessUnavailable::new)?;
            if let Ok(key) = Self::new(&*bytes) {
                return Ok(key);
            }
        }
    }

    /// Returns the id of this key, which is not secret.
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

/// The id of a [`SealingKey`]: the first bytes of a hash of it. Sealed payloads and errors contain it.
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
/// To change the key, add the new one at the end on every node. Then move it to the front on every node, let
/// every row be sealed again, and remove the old key.
#[derive(Clone, Debug)]
pub struct SealingKeys {
    first: SealingKey,
    others: Vec<SealingKey>,
}

impl SealingKeys {
    /// Creates a ring of one key.
    #[must_use]
    pub const fn new(key: SealingKey) -> Self {
        Self { first: key, others: Vec::new() }
    }

    /// Adds a key at the end of the ring.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSealingKey::Duplicate`] if the key is in the ring already.
    pub fn with(mut self, key: SealingKey) -> Result<Self, InvalidSealingKey> {
        if self.get(key.id()).is_some() {
            return Err(InvalidSealingKey::Duplicate(key.id()));
        }
        self.others.push(key);
        Ok(self)
    }

    /// Reads a ring as text: keys as [`SealingKey::parse`] reads them, separated by commas or white space.
    /// The first one seals.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSealingKey::Missing`] if the text has no key, and the errors of [`SealingKey::parse`]
    /// and
    /// [`with`](Self::with).
    pub fn parse(text: &str) -> Result<Self, InvalidSealingKey> {
        let mut texts = text
            .split(|character: char| character == ',' || character.is_ascii_whitespace())
            .filter(|text| !text.is_empty());
        let first = texts.next().ok_or(InvalidSealingKey::Missing)?;
        texts.try_fold(Self::new(SealingKey::parse(first)?), |ring, text| ring.with(SealingKey::parse(text)?))
    }

    /// Reads a ring from an environment variable. Prefer [a file](Self::from_file): anyone who may inspect
    /// the process sees its environment.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSealingKey::Unset`] if the variable does not exist or is not valid Unicode, and the
    /// errors of [`parse`](Self::parse).
    pub fn from_env(variable: &str) -> Result<Self, InvalidSealingKey> {
        let text = std::env::var(variable)
            .map_err(|_| InvalidSealingKey::Unset { variable: variable.to_owned() })?;
        Self::parse(&Zeroizing::new(text))
    }

    /// Reads a ring from a file, such as a secret that Docker, Kubernetes or systemd has mounted. Blocks
    /// while it reads.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidSealingKey::File`] if the file cannot be read, is no UTF-8, or has 64 KiB or more,
    /// and the errors of [`parse`](Self::parse).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, InvalidSealingKey> {
        const MAX_LEN: u16 = u16::MAX;
        let failed = |error: std::io::Error| InvalidSealingKey::File(Arc::new(error));
        // Allocate the final size at once, because a buffer that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(usize::from(MAX_LEN) + 1));
        let file = std::fs::File::open(path).map_err(failed)?;
        let read = file.take(u64::from(MAX_LEN) + 1).read_to_string(&mut text).map_err(failed)?;
        if read > usize::from(MAX_LEN) {
            text.zeroize();
            return Err(failed(std::io::Error::other("it is larger than any list of keys")));
        }
        Self::parse(&text)
    }

    /// Iterates over the ids of the keys. The first id is that of the key that seals.
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

/// The error for text or bytes that are no sealing key, or no ring of them. Shows none of them.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSealingKey {
    /// There is no key.
    #[error("there is no sealing key; make one with: openssl rand -base64 32")]
    Missing,
    /// The environment variable is not set, or not valid Unicode.
    #[error(
        "the environment variable {variable} is not set, or not valid Unicode; set it to the sealing keys"
    )]
    Unset {
        /// The variable's name.
        variable: String,
    },
    /// The file of keys cannot be read.
    #[error("the file of sealing keys cannot be read ({0})")]
    File(#[source] Arc<std::io::Error>),
    /// The text is neither base64 nor hexadecimal.
    #[error("a sealing key is neither base64 nor hexadecimal; make one with: openssl rand -base64 32")]
    Encoding,
    /// The key is too short or too long.
    #[error("a sealing key has {actual} bytes instead of 32; make one with: openssl rand -base64 32")]
    Length {
        /// The number of bytes that it has.
        actual: usize,
    },
    /// The key repeats one byte.
    #[error("a sealing key is not random; make one with: openssl rand -base64 32")]
    Weak,
    /// The key is in the ring twice.
    #[error("the sealing key {0} is listed twice; remove one of the two")]
    Duplicate(SealingKeyId),
}
