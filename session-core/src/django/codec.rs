use std::fmt;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use super::error::UnreadablePayload;
use super::keys::{HmacSha256, SecretKeys};
use super::signing;
use crate::{Codec, CodecError, Expiry, SessionData, StoredKey, Timestamp, datetime};

/// The key under which Django and this program keep a session's own expiry among its data.
const EXPIRY_KEY: &str = "_session_expiry";

/// A hundred years: a time that Python can add to any present date.
const LONGEST_EXPIRY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The format in which Django stores sessions: `django.core.signing.dumps(…, compress=True)` with the JSON
/// serializer, which is the default of `SESSION_SERIALIZER`.
///
/// # Behavior
///
/// - Reads payloads that the current key or a fallback has signed, and signs with the current key. The time
///   of signing does not matter, as in Django: a session's end is in its row.
/// - Unchanged values are written as they were read, byte for byte. If nothing was changed, so is the whole
///   text.
/// - Writes ASCII only, as Django does: Django would misread anything else.
/// - Writes the session's own expiry in a form that Django reads: seconds, or a date in ISO format.
/// - A payload whose JSON text is larger than [`max_json_bytes`](Self::max_json_bytes) is neither read nor
///   written.
/// - An unreadable payload is [`CodecError::Malformed`] with an [`UnreadablePayload`] as its source.
///
/// A signature is not bound to a row, neither here nor in Django: a person who can write to the table can
/// copy a session to another key.
///
/// `Debug` shows no key.
///
/// ```
/// use session_core::django::{DjangoCodec, SecretKeys};
/// use session_core::{Codec as _, SessionData, StoredKey};
///
/// let codec = DjangoCodec::new(&SecretKeys::new("the site's SECRET_KEY")?);
/// let key = StoredKey::parse("k9s0bpcv0lx1ch2pqcrtjaxpn2kuw3ol")?;
/// let mut data = SessionData::new();
/// data.insert("visits", "3".to_owned())?;
/// let payload = codec.encode(&key, &data)?;
/// assert!(payload.starts_with(b"eyJ2aXNpdHMiOjN9:"));
/// assert_eq!(codec.decode(&key, &payload)?, data);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct DjangoCodec {
    keys: SecretKeys,
    signers: Vec<HmacSha256>,
    max_json_bytes: usize,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl DjangoCodec {
    /// The salt of Django's own session backends.
    pub const SALT: &str = "django.contrib.sessions.SessionStore";

    /// The default of [`max_json_bytes`](Self::max_json_bytes): 4 MiB.
    pub const DEFAULT_MAX_JSON_BYTES: usize = 4 << 20;

    /// Creates the codec of Django's own session backends at a site with these keys.
    #[must_use]
    pub fn new(keys: &SecretKeys) -> Self {
        Self {
            keys: keys.clone(),
            signers: Vec::new(),
            max_json_bytes: Self::DEFAULT_MAX_JSON_BYTES,
            clock: Arc::new(|| SystemTime::now().into()),
        }
        .with_salt(Self::SALT)
    }

    /// Sets the salt. Defaults to [`SALT`](Self::SALT). If the class of a site's session engine has another
    /// name, its salt is `django.contrib.sessions.` and that name.
    #[must_use]
    pub fn with_salt(mut self, salt: &str) -> Self {
        self.signers = self.keys.signers(&format!("{salt}signer")).collect();
        self
    }

    /// Sets the largest JSON text of a session, in bytes and before compression. Defaults to
    /// [`DEFAULT_MAX_JSON_BYTES`](Self::DEFAULT_MAX_JSON_BYTES).
    ///
    /// A few kilobytes can inflate to gigabytes. To sign such a payload takes a key, but more people may know
    /// a fallback than should.
    #[must_use]
    pub const fn with_max_json_bytes(mut self, max_json_bytes: usize) -> Self {
        self.max_json_bytes = max_json_bytes;
        self
    }

    /// Sets the clock for the time of signing, which is part of the signed text. Defaults to the system's
    /// clock.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Returns the largest JSON text of a session, in bytes.
    #[must_use]
    pub const fn max_json_bytes(&self) -> usize {
        self.max_json_bytes
    }

    fn json(&self, payload: &str) -> Result<Bytes, UnreadablePayload> {
        let (is_compressed, text) = match payload.strip_prefix('.') {
            Some(text) => (true, text),
            None => (false, payload),
        };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| UnreadablePayload::Form)?;
        let json = if is_compressed { self.inflate(&bytes)? } else { bytes };
        if json.len() > self.max_json_bytes {
            return Err(UnreadablePayload::TooLarge { limit: self.max_json_bytes });
        }
        // Django reads the bytes as Latin-1, so other bytes than ASCII mean what they mean there.
        let is_ascii = json.is_ascii();
        Ok(if is_ascii { json.into() } else { json.into_iter().map(char::from).collect::<String>().into() })
    }

    fn inflate(&self, bytes: &[u8]) -> Result<Vec<u8>, UnreadablePayload> {
        let mut json = Vec::new();
        // Read one byte more than is allowed, to notice that there is more.
        let limit = u64::try_from(self.max_json_bytes).unwrap_or(u64::MAX).saturating_add(1);
        let inflated = ZlibDecoder::new(bytes).take(limit).read_to_end(&mut json);
        inflated.map_err(|_| UnreadablePayload::Compression)?;
        Ok(json)
    }
}

impl Codec for DjangoCodec {
    fn encode(&self, _key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        let mut json = Vec::new();
        with_djangos_expiry(data).as_ref().unwrap_or(data).write_json(&mut json);
        let json = in_ascii(json);
        if json.len() > self.max_json_bytes {
            return Err(CodecError::TooLarge { actual: json.len(), limit: self.max_json_bytes });
        }
        let compressed = compress(&json).map_err(|error| CodecError::Failed(error.into()))?;
        let payload = if compressed.len() + 1 < json.len() {
            format!(".{}", URL_SAFE_NO_PAD.encode(compressed))
        } else {
            URL_SAFE_NO_PAD.encode(json)
        };
        let Some(signer) = self.signers.first() else {
            return Err(CodecError::Failed("there is no secret key".into()));
        };
        Ok(signing::sign(signer, &payload, (self.clock)()).into())
    }

    fn decode(&self, _key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        let decoded = std::str::from_utf8(payload)
            .map_err(|_| UnreadablePayload::Form)
            .and_then(|text| signing::unsign(&self.signers, text))
            .and_then(|payload| self.json(payload))
            .and_then(|json| SessionData::from_json(json).map_err(UnreadablePayload::Json));
        decoded.map_err(|error| CodecError::Malformed(error.into()))
    }
}

impl fmt::Debug for DjangoCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DjangoCodec")
            .field("keys", &self.keys)
            .field("max_json_bytes", &self.max_json_bytes)
            .finish_non_exhaustive()
    }
}

/// Returns `data` with its own expiry in Django's form, or `None` if it has that form already, or no expiry.
fn with_djangos_expiry(data: &SessionData) -> Option<SessionData> {
    let stored = data.get(EXPIRY_KEY)?;
    let expiry = match Expiry::from_json(stored)? {
        Expiry::At(instant) if stored.starts_with('{') => format!("\"{}\"", datetime::isoformat(instant)),
        Expiry::After(duration) if duration > LONGEST_EXPIRY => Expiry::After(LONGEST_EXPIRY).to_json(),
        _ => return None,
    };
    let mut data = data.clone();
    // This does not fail: the expiry is JSON.
    let _ = data.insert(EXPIRY_KEY, expiry);
    Some(data)
}

/// Escapes every character beyond ASCII in a JSON text. Outside of strings, there are none.
fn in_ascii(json: Vec<u8>) -> Vec<u8> {
    if json.is_ascii() {
        return json;
    }
    let mut escaped = Vec::with_capacity(json.len() + json.len() / 2);
    // Nothing is lost: the text was UTF-8 before it was bytes.
    for character in String::from_utf8_lossy(&json).chars() {
        match u8::try_from(character) {
            Ok(byte) if byte.is_ascii() => escaped.push(byte),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    escaped.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
    escaped
}

fn compress(json: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(json)?;
    encoder.finish()
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
