use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::{BoxError, SessionData, StoredKey};

/// A format of payloads: encodes a session's data into the payload that is stored, and decodes it.
///
/// # Behavior
///
/// - `decode` returns the map that was passed to `encode`, if both are called with the same key.
/// - A payload carries the version of its format. A version that this codec does not know is
///   [`CodecError::UnknownFormat`], never a guess.
/// - `decode` never panics and never allocates much more than the payload's size, for any payload.
/// - `key` is the key that the payload is stored under. A codec may bind the payload to it. A payload is
///   encoded again when its key changes.
pub trait Codec: Send + Sync + fmt::Debug + 'static {
    /// Encodes `data` to be stored under `key`.
    ///
    /// # Errors
    ///
    /// Returns [`CodecError`] if the data cannot be written in this format.
    fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError>;

    /// Decodes the payload that was stored under `key`.
    ///
    /// # Errors
    ///
    /// Returns [`CodecError`] if this codec did not write the payload under this key.
    fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError>;

    /// Returns the position in `payload` from which on it is a JSON object that is the map, so that the map
    /// can be read in place, without a copy. Defaults to `None`: the payload is always passed to `decode`.
    ///
    /// If this returns a position, `decode` must fail or return what [`SessionData::from_json`] returns for
    /// the part from there on. A codec that has to verify a payload first must return `None`, because a map
    /// that is read in place never goes through `decode`.
    fn json_start(&self, payload: &[u8]) -> Option<usize> {
        let _ = payload;
        None
    }

    /// Returns `false` if `payload` can be decoded but should be encoded again, for instance because it is
    /// sealed with an older key. Defaults to `true`.
    fn is_current(&self, payload: &Bytes) -> bool {
        let _ = payload;
        true
    }
}

macro_rules! codec_for_pointer {
    ($($pointer:ident),*) => {$(
        #[deny(clippy::missing_trait_methods)]
        impl<T: Codec + ?Sized> Codec for $pointer<T> {
            fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
                (**self).encode(key, data)
            }
            fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
                (**self).decode(key, payload)
            }
            fn json_start(&self, payload: &[u8]) -> Option<usize> {
                (**self).json_start(payload)
            }
            fn is_current(&self, payload: &Bytes) -> bool {
                (**self).is_current(payload)
            }
        }
    )*};
}

codec_for_pointer!(Arc, Box);

/// The error for a payload that cannot be read, or data that cannot be written. Shows nothing of either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A newer version or another program has written the payload.
    #[error(
        "the payload has format {0:#04x}, which this version does not know; was it written by a newer one? upgrade, or end the session"
    )]
    UnknownFormat(u8),
    /// The payload is damaged or empty.
    #[error("the payload cannot be read ({0}); keep the row for an investigation, or end the session")]
    Malformed(BoxError),
    /// The data cannot be written in this format: the data is to blame.
    #[error("the data cannot be encoded ({0})")]
    Unencodable(BoxError),
    /// The data is larger than the codec writes.
    #[error("the data has {actual} bytes in its format, but the codec writes at most {limit}")]
    TooLarge {
        /// The size, in bytes.
        actual: usize,
        /// The largest size, in bytes.
        limit: usize,
    },
    /// The codec cannot write anything at the moment, whatever the data is.
    #[error("the codec failed ({0})")]
    Failed(BoxError),
    /// The payload cannot be opened with the present keys.
    #[cfg(feature = "seal")]
    #[error("the payload cannot be opened: {0}")]
    Seal(#[source] crate::SealError),
}

impl CodecError {
    /// Returns a word for the kind of error that does not change, for logs and metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UnknownFormat(_) => "unknown_format",
            Self::Malformed(_) => "malformed",
            Self::Unencodable(_) => "unencodable",
            Self::TooLarge { .. } => "too_large",
            Self::Failed(_) => "failed",
            #[cfg(feature = "seal")]
            Self::Seal(error) => error.reason(),
        }
    }
}

/// The default codec: one byte for the version of the format (the digit `1`, legible in a database), then the
/// map as a JSON object.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct JsonCodec;

impl JsonCodec {
    const FORMAT: u8 = b'1';
}

impl Codec for JsonCodec {
    fn encode(&self, _key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        let mut payload = vec![Self::FORMAT];
        data.write_json(&mut payload);
        // Boxed to drop the spare capacity, because a cache in this process keeps the payload.
        Ok(payload.into_boxed_slice().into())
    }

    fn decode(&self, _key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        match payload.first() {
            Some(&Self::FORMAT) => SessionData::from_json(payload.slice(1..))
                .map_err(|error| CodecError::Malformed(error.into())),
            Some(&other) => Err(CodecError::UnknownFormat(other)),
            None => Err(CodecError::Malformed("it is empty".into())),
        }
    }

    fn json_start(&self, payload: &[u8]) -> Option<usize> {
        (payload.first() == Some(&Self::FORMAT)).then_some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> StoredKey {
        StoredKey::parse("some-stored-key").unwrap()
    }

    #[test]
    fn payload_begins_with_its_format_version() {
        let mut data = SessionData::new();
        data.insert("visits", "3".into()).unwrap();
        let payload = JsonCodec.encode(&key(), &data).unwrap();
        assert_eq!(&payload[..], br#"1{"visits":3}"#);
        assert_eq!(JsonCodec.decode(&key(), &payload).unwrap(), data);
    }

    #[test]
    fn unknown_empty_and_damaged_payloads_are_typed_errors() {
        let decode = |bytes: &'static [u8]| JsonCodec.decode(&key(), &Bytes::from_static(bytes));
        assert!(matches!(decode(b"2{}"), Err(CodecError::UnknownFormat(b'2'))));
        assert!(matches!(decode(b""), Err(CodecError::Malformed(_))));
        assert!(matches!(decode(b"1{\"visits\":"), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn errors_do_not_repeat_the_payload() {
        for payload in [&br#"1{"secret":secret}"#[..], br#"1"secret""#, br#"1{"secret":1}secret"#] {
            let error = JsonCodec.decode(&key(), &Bytes::from_static(payload)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = JsonCodec.decode(&key(), &bytes.into());
        }

        #[test]
        fn map_that_was_emptied_is_encoded_as_an_empty_map(keys in prop::collection::vec("[a-d]", 0..5)) {
            let mut data = SessionData::new();
            for key in &keys { data.insert(key, "1".into()).unwrap(); }
            for key in &keys { data.remove(key); }
            prop_assert_eq!(&JsonCodec.encode(&key(), &data).unwrap()[..], b"1{}");
        }
    }
}
