use std::io::{Read as _, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::ZlibDecoder;
use flate2::write::ZlibEncoder;

use crate::{Codec, CodecError, JsonCodec, SessionData, StoredKey};

/// A codec that compresses the payloads of another one if they are large enough: a `z`, then a zlib stream.
///
/// # Behavior
///
/// - Payloads below the [threshold](Self::with_threshold), and those that do not get smaller, are passed on
///   as they are. So this codec reads a table from before, and without this codec the small payloads remain
///   readable.
/// - Payloads that are larger than the [limit](Self::with_max_inflated_bytes) before compression are neither
///   read nor written. No more than that is ever inflated.
/// - zlib's checksum finds accidental damage, and bytes behind the stream are refused. Neither protects
///   against an attacker. For that, wrap this codec into a [`SealCodec`](crate::SealCodec), not the other way
///   round: encrypted payloads do not get smaller.
///
/// The compressed size reveals something about the contents. An attacker who chooses one value of a session,
/// and sees the size of its row or of its traffic to the cache, can guess at another value, even if the
/// payload is sealed. Do not compress where that matters.
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
    writes_uncompressed: bool,
}

/// The first byte of a compressed payload. JSON payloads, sealed ones and Django's begin with other bytes.
const MARK: u8 = b'z';

impl<C: Codec> CompressCodec<C> {
    /// The default of [`with_threshold`](Self::with_threshold): 1 KiB.
    pub const DEFAULT_THRESHOLD: usize = 1 << 10;

    /// The default of [`with_max_inflated_bytes`](Self::with_max_inflated_bytes): 4 MiB.
    pub const DEFAULT_MAX_INFLATED_BYTES: usize = 4 << 20;

    /// Creates a codec that compresses the payloads of `inner` from 1 KiB on.
    #[must_use]
    pub const fn new(inner: C) -> Self {
        Self {
            inner,
            threshold: Self::DEFAULT_THRESHOLD,
            max_inflated_bytes: Self::DEFAULT_MAX_INFLATED_BYTES,
            writes_uncompressed: false,
        }
    }

    /// Reads compressed payloads, and still writes uncompressed ones, as all nodes did before: the first step of a
    /// rollout.
    ///
    /// A node without this codec cannot read a compressed payload. So deploy this to all nodes first, and leave it away
    /// in the second step.
    #[must_use]
    pub const fn writing_uncompressed(mut self) -> Self {
        self.writes_uncompressed = true;
        self
    }

    /// Sets the size, in bytes, from which on payloads are compressed. Defaults to
    /// [`DEFAULT_THRESHOLD`](Self::DEFAULT_THRESHOLD).
    #[must_use]
    pub const fn with_threshold(mut self, threshold: usize) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets the largest payload before compression, in bytes. Defaults to
    /// [`DEFAULT_MAX_INFLATED_BYTES`](Self::DEFAULT_MAX_INFLATED_BYTES). Without a limit, a few kilobytes
    /// could inflate to gigabytes.
    #[must_use]
    pub const fn with_max_inflated_bytes(mut self, max_inflated_bytes: usize) -> Self {
        self.max_inflated_bytes = max_inflated_bytes;
        self
    }

    fn compress(&self, plain: &[u8]) -> Result<Bytes, CodecError> {
        if plain.len() > self.max_inflated_bytes {
            return Err(CodecError::TooLarge { actual: plain.len(), limit: self.max_inflated_bytes });
        }
        let mut encoder = ZlibEncoder::new(vec![MARK], Compression::default());
        let written = encoder.write_all(plain).and_then(|()| encoder.finish());
        written.map(Bytes::from).map_err(|error| CodecError::Failed(error.into()))
    }

    fn inflate(&self, mut stream: &[u8]) -> Result<Bytes, CodecError> {
        let mut plain = Vec::new();
        // Read one byte more than is allowed, to notice that there is more.
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
        // A payload that begins like a compressed one has to be compressed, or `decode` would take it for
        // one.
        let must = plain.first() == Some(&MARK);
        if !must && (self.writes_uncompressed || plain.len() < self.threshold) {
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

    /// Asks the inner codec about the inflated payload. How it is compressed does not count.
    fn is_current(&self, payload: &Bytes) -> bool {
        match payload.split_first() {
            Some((&MARK, stream)) => self.inflate(stream).is_ok_and(|plain| self.inner.is_current(&plain)),
            _ => self.inner.is_current(payload),
        }
    }
}

/// The error for a payload that is larger before compression than a [`CompressCodec`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it has {actual} bytes or more when it is not compressed, at most {limit} are allowed; if that is right, raise max_inflated_bytes"
)]
pub struct TooLargeInflated {
    /// The size of the payload, in bytes, as far as it was inflated.
    pub actual: usize,
    /// The largest size, in bytes.
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

    /// A codec whose payloads are a byte that the test chooses, then JSON.
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
    fn payload_below_the_threshold_is_not_compressed() {
        let codec = CompressCodec::new(JsonCodec).with_threshold(100);
        let at = |len: usize| codec.encode(&key(), &long(len)).unwrap();
        // Nine bytes more: the version of the format, and `{"x":""}`.
        assert_eq!(at(90).len(), 99);
        assert!(at(90).starts_with(b"1"));
        assert!(at(91).starts_with(b"z"));
        assert!(at(91).len() < 40);
    }

    #[test]
    fn first_step_of_a_rollout_reads_both_forms_and_writes_the_old_one() {
        let (before, after) = (JsonCodec, CompressCodec::new(JsonCodec));
        let between = after.writing_uncompressed();
        let payload = between.encode(&key(), &long(5_000)).unwrap();
        assert_eq!(before.decode(&key(), &payload).unwrap(), long(5_000));
        let compressed = after.encode(&key(), &long(5_000)).unwrap();
        assert!(before.decode(&key(), &compressed).is_err());
        assert_eq!(between.decode(&key(), &compressed).unwrap(), long(5_000));
    }

    #[test]
    fn payload_that_does_not_get_smaller_is_not_compressed() {
        let codec = CompressCodec::new(JsonCodec).with_threshold(0);
        assert_eq!(&codec.encode(&key(), &data("1")).unwrap()[..], br#"1{"x":1}"#);
    }

    #[test]
    fn payload_that_only_looks_compressed_is_decoded_to_itself() {
        let codec = CompressCodec::new(JsonCodec);
        let before = JsonCodec.encode(&key(), &long(5_000)).unwrap();
        assert_eq!(codec.decode(&key(), &before).unwrap(), long(5_000));
        let codec = CompressCodec::new(Marked(b'z'));
        let payload = codec.encode(&key(), &data("1")).unwrap();
        assert_eq!(codec.decode(&key(), &payload).unwrap(), data("1"));
    }

    #[test]
    fn record_decodes_compressed_and_uncompressed_payloads() {
        let codec = CompressCodec::new(JsonCodec).with_threshold(100);
        for len in [1, 5_000] {
            let payload = codec.encode(&key(), &long(len)).unwrap();
            assert_eq!(codec.json_start(&payload), (len == 1).then_some(1));
            let record = Arc::new(Record::new(payload, Timestamp::from_secs(0), Timestamp::MAX));
            assert_eq!(record.data(&key(), &codec).unwrap(), long(len));
        }
        // The inner codec does not say where its JSON begins, so this one does not either.
        assert_eq!(CompressCodec::new(Marked(b'a')).json_start(b"a1{}"), None);
    }

    #[test]
    fn payload_is_inflated_up_to_the_limit_only() {
        let roomy = CompressCodec::new(JsonCodec).with_max_inflated_bytes(1 << 30);
        let tight = CompressCodec::new(JsonCodec).with_max_inflated_bytes(5_009);
        let bomb = roomy.encode(&key(), &long(100 << 20)).unwrap();
        let error = tight.decode(&key(), &bomb).unwrap_err();
        let CodecError::Malformed(source) = &error else { panic!("{error}") };
        let too_large = source.downcast_ref::<TooLargeInflated>().unwrap();
        assert_eq!(*too_large, TooLargeInflated { actual: 5_010, limit: 5_009 });
        // A payload of exactly the limit is written and read.
        let fits = tight.encode(&key(), &long(5_000)).unwrap();
        assert_eq!(tight.decode(&key(), &fits).unwrap(), long(5_000));
        let refused = tight.encode(&key(), &long(5_001));
        assert!(matches!(refused, Err(CodecError::TooLarge { .. })), "{refused:?}");
    }

    #[test]
    fn damaged_truncated_or_extended_stream_is_malformed() {
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
    fn is_current_asks_the_inner_codec() {
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
        fn any_map_is_decoded_to_itself(values in prop::collection::vec("[a-z]{0,400}", 0..20), threshold in 0_usize..2_000) {
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
