use std::io::{Read as _, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::ZlibDecoder;
use flate2::write::ZlibEncoder;

use crate::{Codec, CodecError, JsonCodec, SessionData, StoredKey};

/// Compresses what another codec makes, when that is large enough to be worth it: a `z`, then a zlib stream.
///
/// # Behavior
///
/// - What is smaller than the [threshold](Self::with_threshold), or does not get smaller, is passed on as it is. So a
///   table from before can be read, and so can what is written here, without this codec, as long as it is small.
/// - What would be larger than the [limit](Self::with_max_inflated_bytes) once it is inflated is not read, and neither is
///   it written. No more than that is ever inflated.
/// - Damage is found by zlib's checksum, and so is what stands behind the stream; no protection against somebody who means
///   it. Put [`SealCodec`](crate::SealCodec) around it, not into it: what is encrypted cannot be compressed.
///
/// The size of what is compressed tells something of its contents. Who can choose one value of a session, and see the
/// size of its row or of what goes to the cache, can guess at another value of it, even if it is sealed. Where that
/// matters, do not compress.
///
/// ```
/// use session_core::{Codec as _, CompressCodec, JsonCodec, SessionData, StoredKey};
///
/// let codec = CompressCodec::new(JsonCodec::default());
/// let key = StoredKey::parse("one-session")?;
/// let mut data = SessionData::new();
/// data.insert("long", format!("\"{}\"", "x".repeat(10_000)))?;
/// let payload = codec.encode(&key, &data)?;
/// assert!(payload.len() < 100);
/// assert_eq!(codec.decode(&key, &payload)?, data);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct CompressCodec<C = JsonCodec> {
    inner: C,
    threshold: usize,
    max_inflated_bytes: usize,
}

/// What a compressed payload begins with. JSON payloads, sealed ones and Django's begin with something else.
const MARK: u8 = b'z';

impl<C: Codec> CompressCodec<C> {
    /// The default of [`with_threshold`](Self::with_threshold): 1 KiB.
    pub const DEFAULT_THRESHOLD: usize = 1 << 10;

    /// The default of [`with_max_inflated_bytes`](Self::with_max_inflated_bytes): 4 MiB.
    pub const DEFAULT_MAX_INFLATED_BYTES: usize = 4 << 20;

    /// Compresses what `inner` makes, from 1 KiB on.
    #[must_use]
    pub const fn new(inner: C) -> Self {
        Self {
            inner,
            threshold: Self::DEFAULT_THRESHOLD,
            max_inflated_bytes: Self::DEFAULT_MAX_INFLATED_BYTES,
        }
    }

    /// The same with another size, in bytes, from which on it is compressed. By default
    /// [`DEFAULT_THRESHOLD`](Self::DEFAULT_THRESHOLD).
    #[must_use]
    pub const fn with_threshold(mut self, threshold: usize) -> Self {
        self.threshold = threshold;
        self
    }

    /// The same with another limit on what is inflated, in bytes. By default
    /// [`DEFAULT_MAX_INFLATED_BYTES`](Self::DEFAULT_MAX_INFLATED_BYTES). A few kilobytes can be inflated to gigabytes.
    #[must_use]
    pub const fn with_max_inflated_bytes(mut self, max_inflated_bytes: usize) -> Self {
        self.max_inflated_bytes = max_inflated_bytes;
        self
    }

    fn compress(&self, plain: &[u8]) -> Result<Bytes, CodecError> {
        if plain.len() > self.max_inflated_bytes {
            return Err(CodecError::Unencodable(self.too_large(plain.len()).into()));
        }
        let mut encoder = ZlibEncoder::new(vec![MARK], Compression::default());
        let written = encoder.write_all(plain).and_then(|()| encoder.finish());
        written.map(Bytes::from).map_err(|error| CodecError::Unencodable(error.into()))
    }

    fn inflate(&self, mut stream: &[u8]) -> Result<Bytes, CodecError> {
        let mut plain = Vec::new();
        // One more than is allowed tells that there is more.
        let limit = u64::try_from(self.max_inflated_bytes).unwrap_or(u64::MAX).saturating_add(1);
        ZlibDecoder::new(&mut stream)
            .take(limit)
            .read_to_end(&mut plain)
            .map_err(|_| CodecError::Malformed("it cannot be inflated".into()))?;
        if plain.len() > self.max_inflated_bytes {
            return Err(CodecError::Malformed(self.too_large(plain.len()).into()));
        }
        if !stream.is_empty() {
            return Err(CodecError::Malformed("something stands behind the compressed data".into()));
        }
        Ok(plain.into())
    }

    fn too_large(&self, actual: usize) -> TooLargeInflated {
        TooLargeInflated { actual, limit: self.max_inflated_bytes }
    }
}

impl<C: Codec> Codec for CompressCodec<C> {
    fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
        let plain = self.inner.encode(key, data)?;
        // What looks compressed must be, or it could not be told apart.
        let must = plain.first() == Some(&MARK);
        if !must && plain.len() < self.threshold {
            return Ok(plain);
        }
        let compressed = self.compress(&plain)?;
        Ok(if must || compressed.len() < plain.len() { compressed } else { plain })
    }

    fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
        match payload.split_first() {
            Some((&MARK, stream)) => self.inner.decode(key, &self.inflate(stream)?),
            _ => self.inner.decode(key, payload),
        }
    }

    fn json_start(&self, payload: &[u8]) -> Option<usize> {
        if payload.first() == Some(&MARK) { None } else { self.inner.json_start(payload) }
    }

    /// Whether what is in it is. How it is compressed does not count.
    fn is_current(&self, payload: &Bytes) -> bool {
        match payload.split_first() {
            Some((&MARK, stream)) => self.inflate(stream).is_ok_and(|plain| self.inner.is_current(&plain)),
            _ => self.inner.is_current(payload),
        }
    }
}

/// A payload is larger than a [`CompressCodec`] allows, once it is inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it has {actual} bytes or more when it is not compressed, at most {limit} are allowed; if that is right, raise max_inflated_bytes"
)]
pub struct TooLargeInflated {
    /// How many bytes there are, at least.
    pub actual: usize,
    /// How many are allowed.
    pub limit: usize,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Record, Timestamp};
    use proptest::prelude::*;

    fn key() -> StoredKey {
        StoredKey::parse("some-stored-key").unwrap()
    }

    fn data(json: &str) -> SessionData {
        let mut data = SessionData::new();
        data.insert("x", json.to_owned()).unwrap();
        data
    }

    fn long(len: usize) -> SessionData {
        data(&format!("\"{}\"", "x".repeat(len)))
    }

    /// Begins with what the test says, then holds JSON.
    #[derive(Debug)]
    struct Marked(u8);

    impl Codec for Marked {
        fn encode(&self, key: &StoredKey, data: &SessionData) -> Result<Bytes, CodecError> {
            Ok([&[self.0], &JsonCodec.encode(key, data)?[..]].concat().into())
        }
        fn decode(&self, key: &StoredKey, payload: &Bytes) -> Result<SessionData, CodecError> {
            assert_eq!(payload[0], self.0);
            JsonCodec.decode(key, &payload.slice(1..))
        }
        fn is_current(&self, payload: &Bytes) -> bool {
            payload.ends_with(b"}")
        }
    }

    #[test]
    fn what_is_below_the_threshold_stays_as_it_is() {
        let codec = CompressCodec::new(JsonCodec).with_threshold(100);
        let at = |len: usize| codec.encode(&key(), &long(len)).unwrap();
        // The format, and `{"x":"…"}`.
        assert_eq!(at(90).len(), 99);
        assert!(at(90).starts_with(b"1"));
        assert!(at(91).starts_with(b"z"));
        assert!(at(91).len() < 40);
    }

    #[test]
    fn what_does_not_get_smaller_stays_as_it_is() {
        let codec = CompressCodec::new(JsonCodec).with_threshold(0);
        assert_eq!(&codec.encode(&key(), &data("1")).unwrap()[..], br#"1{"x":1}"#);
    }

    #[test]
    fn a_payload_from_before_is_read_and_one_that_looks_compressed_is_told_apart() {
        let codec = CompressCodec::new(JsonCodec);
        let before = JsonCodec.encode(&key(), &long(5_000)).unwrap();
        assert_eq!(codec.decode(&key(), &before).unwrap(), long(5_000));
        let codec = CompressCodec::new(Marked(b'z'));
        let payload = codec.encode(&key(), &data("1")).unwrap();
        assert_eq!(codec.decode(&key(), &payload).unwrap(), data("1"));
    }

    #[test]
    fn a_record_reads_what_is_compressed_and_what_is_not() {
        let codec = CompressCodec::new(JsonCodec).with_threshold(100);
        for len in [1, 5_000] {
            let payload = codec.encode(&key(), &long(len)).unwrap();
            assert_eq!(codec.json_start(&payload), (len == 1).then_some(1));
            let record = Arc::new(Record::new(payload, Timestamp::from_secs(0), Timestamp::MAX));
            assert_eq!(record.data(&key(), &codec).unwrap(), long(len));
        }
        // What is in it may look compressed; it is for the inner codec to say where its JSON is.
        assert_eq!(CompressCodec::new(Marked(b'a')).json_start(b"a1{}"), None);
    }

    #[test]
    fn no_more_is_inflated_than_is_allowed() {
        let roomy = CompressCodec::new(JsonCodec).with_max_inflated_bytes(1 << 30);
        let tight = CompressCodec::new(JsonCodec).with_max_inflated_bytes(5_009);
        let bomb = roomy.encode(&key(), &long(100 << 20)).unwrap();
        let error = tight.decode(&key(), &bomb).unwrap_err();
        let CodecError::Malformed(source) = &error else { panic!("{error}") };
        let too_large = source.downcast_ref::<TooLargeInflated>().unwrap();
        assert_eq!(*too_large, TooLargeInflated { actual: 5_010, limit: 5_009 });
        // And what is written can be read.
        let fits = tight.encode(&key(), &long(5_000)).unwrap();
        assert_eq!(tight.decode(&key(), &fits).unwrap(), long(5_000));
        assert!(matches!(tight.encode(&key(), &long(5_001)), Err(CodecError::Unencodable(_))));
    }

    #[test]
    fn a_damaged_cut_off_or_prolonged_stream_is_malformed() {
        let codec = CompressCodec::new(JsonCodec);
        let payload = codec.encode(&key(), &long(5_000)).unwrap();
        for cut in 1..payload.len() {
            let error = codec.decode(&key(), &payload.slice(..cut)).unwrap_err();
            assert!(matches!(error, CodecError::Malformed(_)), "{cut}: {error}");
        }
        let longer = Bytes::from([&payload[..], b"x"].concat());
        assert!(matches!(codec.decode(&key(), &longer), Err(CodecError::Malformed(_))));
        let mut damaged = payload.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(matches!(codec.decode(&key(), &damaged.into()), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn whether_a_payload_is_current_is_for_the_inner_codec_to_say() {
        let codec = CompressCodec::new(Marked(b'a'));
        for len in [1, 5_000] {
            let payload = codec.encode(&key(), &long(len)).unwrap();
            assert!(codec.is_current(&payload));
        }
        assert!(!codec.is_current(&Bytes::from_static(b"a1")));
        assert!(!codec.is_current(&codec.compress(b"a1").unwrap()));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_to_the_same(values in prop::collection::vec("[a-z]{0,400}", 0..20), threshold in 0_usize..2_000) {
            let codec = CompressCodec::new(JsonCodec).with_threshold(threshold);
            let mut data = SessionData::new();
            for (position, value) in values.iter().enumerate() {
                data.insert(&position.to_string(), format!("\"{value}\"")).unwrap();
            }
            let payload = codec.encode(&key(), &data).unwrap();
            prop_assert_eq!(codec.decode(&key(), &payload).unwrap(), data);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let payload = Bytes::from([&[MARK], &bytes[..]].concat());
            let _ = CompressCodec::new(JsonCodec).decode(&key(), &payload);
        }
    }
}
