//! Payloads that are encrypted and authenticated: reading a table or a cache reveals nothing of the sessions'
//! contents, and writing to them can neither change contents nor move them to another session. Version 1:
//!
//! ```text
//! 'S' | version '1' | 4 bytes key id | 24 bytes nonce | ciphertext | 16 bytes tag
//! ```
//!
//! XChaCha20-Poly1305, with a random nonce. The associated data are the first six bytes and the stored key.

mod error;
mod key;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut as _, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};

pub use error::SealError;
pub use key::{InvalidSealingKey, SealingKey, SealingKeyId, SealingKeys};

use crate::{Codec, CodecError, JsonCodec, RandomnessUnavailable, SessionData, StoredKey};

/// A codec that seals the payloads of another one: it encrypts them, and only with a key can they be changed
/// or moved to another session.
///
/// # Behavior
///
/// - Seals with the first key of the ring, and opens with any key of it. [`is_current`](Codec::is_current)
///   returns `false` for a payload that is not sealed with the first key. It is sealed again when the session
///   is saved.
/// - A payload is bound to its format and to the key that it is stored under: under another key it is not
///   authentic.
/// - An unsealed payload is [`SealError::Unsealed`], unless [`accepting_unsealed`](Self::accepting_unsealed)
///   is set. There is no other way back to a weaker format.
/// - Sealing adds 46 bytes. It hides neither the size of the payload nor subject, version and times, which
///   are columns of their own.
/// - An older payload of the same session is authentic: an attacker who can write to the table can put it
///   back.
///
/// `Debug` shows no key.
///
/// ```
/// use session_core::{Codec as _, JsonCodec, SealCodec, SealingKey, SealingKeys, SessionData, StoredKey};
///
/// let keys = SealingKeys::new(SealingKey::generate()?);
/// let codec = SealCodec::new(JsonCodec::default(), keys);
/// let (here, there) = (StoredKey::parse("one-session")?, StoredKey::parse("another-session")?);
/// let mut data = SessionData::new();
/// data.insert("visits", "3".to_owned())?;
/// let payload = codec.encode(&here, &data)?;
/// assert_eq!(codec.decode(&here, &payload)?, data);
/// assert!(codec.decode(&there, &payload).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SealCodec<C = JsonCodec> {
    inner: C,
    keys: SealingKeys,
    accepts_unsealed: bool,
    writes_unsealed: bool,
}

/// The first byte of a sealed payload, before the version. Payloads of this crate's other codecs begin with
/// other bytes.
const MARK: u8 = b'S';
const VERSION: u8 = b'1';
const HEADER_LEN: usize = 2 + SealingKeyId::LEN;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

impl<C: Codec> SealCodec<C> {
    /// The number of bytes that sealing adds to a payload.
    pub const OVERHEAD: usize = HEADER_LEN + NONCE_LEN + TAG_LEN;

    /// Creates a codec that seals the payloads of `inner` with the first of `keys`.
    #[must_use]
    pub const fn new(inner: C, keys: SealingKeys) -> Self {
        Self { inner, keys, accepts_unsealed: false, writes_unsealed: false }
    }

    /// Also reads unsealed payloads, for a table from before. Such a session is sealed when it is saved.
    ///
    /// As long as this is set, an attacker who can write to the table or to the cache can put any payload
    /// there. Set it until the table is sealed, and no longer.
    #[must_use]
    pub const fn accepting_unsealed(mut self) -> Self {
        self.accepts_unsealed = true;
        self
    }

    /// Reads sealed payloads, and still writes unsealed ones, as all nodes did before: the first step of a rollout.
    ///
    /// A node without this codec cannot read a sealed payload. So deploy this to all nodes first, and leave it away in the
    /// second step, in which [`accepting_unsealed`](Self::accepting_unsealed) takes its place. Unsealed payloads are
    /// accepted, too, and a sealed one is not [current](Codec::is_current).
    #[must_use]
    pub const fn writing_unsealed(mut self) -> Self {
        self.accepts_unsealed = true;
        self.writes_unsealed = true;
        self
    }

    fn seal(&self, key: &StoredKey, plain: &[u8]) -> Result<Bytes, CodecError> {
        let sealing_key = self.keys.first();
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)
            .map_err(|error| CodecError::Failed(RandomnessUnavailable::new(error).into()))?;
        let header = header(sealing_key.id());
        let mut sealed = Vec::with_capacity(Self::OVERHEAD + plain.len());
        sealed.extend_from_slice(&header);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let text = sealed.get_mut(HEADER_LEN + NONCE_LEN..).unwrap_or_default();
        let tag = cipher(sealing_key)
            .encrypt_inout_detached(&XNonce::from(nonce), &associated_data(header, key), InOutBuf::from(text))
            .map_err(|_| CodecError::Unencodable("it is too large to be sealed".into()))?;
        sealed.extend_from_slice(&tag);
        Ok(sealed.into())
    }

    fn open(&self, key: &StoredKey, payload: &[u8]) -> Result<Bytes, SealError> {
        match payload {
            [MARK, VERSION, ..] => {}
            [MARK, version, ..] => return Err(SealError::UnknownVersion(*version)),
            [MARK] => return Err(SealError::Truncated),
            _ => return Err(SealError::Unsealed),
        }
        let (header, rest) = payload.split_first_chunk::<HEADER_LEN>().ok_or(SealError::Truncated)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Truncated)?;
        let (text, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(SealError::Truncated)?;
        let [_, _, id @ ..] = *header;
        let id = SealingKeyId::from_bytes(id);
        let sealing_key = self.keys.get(id).ok_or(SealError::UnknownKey(id))?;
        let mut plain = text.to_vec();
        cipher(sealing_key)
            .decrypt_inout_detached(
                &XNonce::from(*nonce),
                &associated_data(*header, key),
                InOutBuf::from(&mut *plain),
                &Tag::from(*tag),
            )
            .map_err(|_| SealError::NotAuthentic)?;
        Ok(plain.into())
    }
}

impl<C: Codec> Codec for SealCodec<C> {
    fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        let plain = self.inner.encode(key, data)?;
        if self.writes_unsealed { Ok(plain) } else { self.seal(key, &plain) }
    }

    fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        match self.open(key, payload) {
            Ok(plain) => self.inner.decode(key, &plain),
            Err(SealError::Unsealed) if self.accepts_unsealed => self.inner.decode(key, payload),
            Err(error) => Err(CodecError::Seal(error)),
        }
    }

    /// Returns `true` if `payload` is sealed with the first key, or is not sealed where none is to be.
    fn is_current(&self, payload: &Bytes) -> bool {
        if self.writes_unsealed {
            return payload.first() != Some(&MARK) && self.inner.is_current(payload);
        }
        payload.starts_with(&header(self.keys.first().id()))
    }
}

impl<C: Codec> fmt::Debug for SealCodec<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealCodec")
            .field("inner", &self.inner)
            .field("keys", &self.keys)
            .field("accepts_unsealed", &self.accepts_unsealed)
            .field("writes_unsealed", &self.writes_unsealed)
            .finish()
    }
}

fn header(id: SealingKeyId) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = id.to_bytes();
    [MARK, VERSION, a, b, c, d]
}

/// The header has a fixed length, so no byte can move between it and the key.
fn associated_data(header: [u8; HEADER_LEN], key: &StoredKey) -> Vec<u8> {
    [&header, key.as_bytes()].concat()
}

/// Returns the cipher, which wipes its copy of the key when it is dropped.
fn cipher(key: &SealingKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.bytes().into())
}
