//! The binary form of an [`Entry`], for caches outside of the process. Version 2, all numbers big-endian:
//!
//! ```text
//! u8 version | u8 kind | u8 key length | key
//! kind 1, Value: u64 store | i64 made_at | i64 created_at | i64 expires_at | i64 last_seen_at | u64 version
//!                | u16 subject length | subject | payload to the end     (microseconds; length 0 is no subject)
//! kind 2, Lease: nothing
//! kind 3, Fence: u8 dirty | u16 number of holders | u64 token, i64 deadline of each
//! ```
//!
//! The stamp is not part of it: the backend chooses where to keep that.
//!
//! Every version to come begins with the same four fields, and kinds 1 and 2 remain a value and a lease. So a node that
//! does not know a version still sees whose entry it is, and that it must neither show it nor count it as nothing.

use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    Entry, Fence, Holder, Record, RecordParts, Stamp, State, StoreId, StoredKey, Subject, Timestamp, Token,
    Value, Version,
};

const VERSION: u8 = 2;
const VALUE: u8 = 1;
const LEASE: u8 = 2;
const FENCE: u8 = 3;

/// The writer in a fence of another version.
const STRANGER: Holder = Holder { token: Token(NonZeroU64::MAX), deadline: Holder::UNKNOWN_DEADLINE };

impl State {
    /// Appends the binary form to `out`. It contains `key`, which is checked when it is read.
    pub fn encode(&self, key: &StoredKey, out: &mut BytesMut) {
        let key = key.as_bytes();
        out.put_u8(VERSION);
        out.put_u8(match self {
            Self::Value(_) => VALUE,
            Self::Lease => LEASE,
            Self::Fence(_) => FENCE,
        });
        out.put_u8(u8::try_from(key.len()).unwrap_or(u8::MAX));
        out.put_slice(key);
        match self {
            Self::Value(value) => encode_value(value, out),
            Self::Lease => {}
            Self::Fence(fence) => encode_fence(fence, out),
        }
    }

    /// Returns the exact length of the binary form, in bytes.
    #[must_use]
    pub fn encoded_len(&self, key: &StoredKey) -> usize {
        let body = match self {
            Self::Value(Value { record, .. }) => {
                6 * 8
                    + 2
                    + record.subject().map_or(0, |subject| subject.as_str().len())
                    + record.payload().len()
            }
            Self::Lease => 0,
            Self::Fence(fence) => 3 + 16 * fence.holders.len().min(u16::MAX.into()),
        };
        3 + key.as_bytes().len() + body
    }

    /// Reads the binary form. The payload of a value shares `bytes` instead of copying from it.
    ///
    /// A value or a lease of another version is returned as a lease, which is neither shown nor filled. Anything else
    /// of another version is returned as a dirty fence of one writer, whose deadline is
    /// [not known](Holder::UNKNOWN_DEADLINE).
    ///
    /// # Errors
    ///
    /// - Returns [`EnvelopeError::Unreadable`] if another program has written `bytes`, or if they are damaged. A cache
    ///   treats the key as vacant then.
    /// - Returns [`EnvelopeError::WrongKey`] if the entry is another key's. A cache returns
    ///   [`CacheError::WrongKey`](crate::CacheError::WrongKey) then, because a client was about to get
    ///   another client's session.
    pub fn decode(key: &StoredKey, bytes: Bytes) -> Result<Self, EnvelopeError> {
        let mut reader = Reader(bytes);
        let is_known = reader.u8()? == VERSION;
        let kind = reader.u8()?;
        let key_len = reader.u8()?;
        let is_same_key = reader.take(key_len.into(), |stored| stored == key.as_bytes())?;
        match (kind, is_known, is_same_key) {
            (_, true, true) => {}
            (_, true, false) => return Err(EnvelopeError::WrongKey),
            // It may be no entry at all.
            (_, false, false) => return Err(EnvelopeError::Unreadable),
            (VALUE | LEASE, false, true) => return Ok(Self::Lease),
            (_, false, true) => return Ok(Self::Fence(Fence { holders: vec![STRANGER], dirty: true })),
        }
        match kind {
            VALUE => decode_value(reader).map(Self::Value),
            LEASE => reader.end().map(|()| Self::Lease),
            FENCE => decode_fence(reader).map(Self::Fence),
            _ => Err(EnvelopeError::Unreadable),
        }
    }
}

impl Entry {
    /// Returns the binary form with the stamp in front of it, for caches that keep no stamp of their own.
    #[must_use]
    pub fn encode(&self, key: &StoredKey) -> Bytes {
        let mut out = BytesMut::with_capacity(Stamp::LEN + self.state.encoded_len(key));
        out.put_u64(self.stamp.0.get());
        self.state.encode(key, &mut out);
        out.freeze()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`State::decode`].
    pub fn decode(key: &StoredKey, bytes: Bytes) -> Result<Self, EnvelopeError> {
        let mut reader = Reader(bytes);
        let stamp = Stamp(reader.token()?);
        Ok(Self { stamp, state: State::decode(key, reader.0)? })
    }
}

impl Stamp {
    /// The length of a stamp in front of an encoded entry, in bytes.
    pub const LEN: usize = 8;
}

fn encode_value(value: &Value, out: &mut BytesMut) {
    let Value { record, made_at, store } = value;
    let RecordParts { payload, created_at, expires_at, last_seen_at, version, subject } = record.parts();
    out.put_u64(store.0);
    for instant in [*made_at, created_at, expires_at, last_seen_at] {
        out.put_i64(instant.as_micros());
    }
    out.put_u64(version.as_u64());
    let subject = subject.map_or("", Subject::as_str);
    out.put_u16(u16::try_from(subject.len()).unwrap_or(u16::MAX));
    out.put_slice(subject.as_bytes());
    out.put_slice(payload);
}

fn decode_value(mut reader: Reader) -> Result<Value, EnvelopeError> {
    let store = StoreId(reader.u64()?);
    let made_at = reader.instant()?;
    let (created_at, expires_at, last_seen_at) = (reader.instant()?, reader.instant()?, reader.instant()?);
    let version = Version::from_u64(reader.u64()?);
    let subject_len = reader.u16()?;
    let subject = reader.take(subject_len.into(), decode_subject)??;
    let record = Record::new(reader.0, created_at, expires_at)
        .with_last_seen_at(last_seen_at)
        .with_version(version)
        .with_subject(subject);
    Ok(Value { record: Arc::new(record), made_at, store })
}

fn decode_subject(bytes: &[u8]) -> Result<Option<Subject>, EnvelopeError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| EnvelopeError::Unreadable)?;
    Subject::parse(text).map(Some).map_err(|_| EnvelopeError::Unreadable)
}

fn encode_fence(fence: &Fence, out: &mut BytesMut) {
    let Fence { holders, dirty } = fence;
    let count = u16::try_from(holders.len()).unwrap_or(u16::MAX);
    // Holders that do not fit are lost; a dirty fence stays safe without them until the last deadline.
    let dirty = *dirty || usize::from(count) < holders.len();
    out.put_u8(dirty.into());
    out.put_u16(count);
    for Holder { token, deadline } in holders.iter().take(count.into()) {
        out.put_u64(token.0.get());
        out.put_i64(deadline.as_micros());
    }
}

fn decode_fence(mut reader: Reader) -> Result<Fence, EnvelopeError> {
    let dirty = reader.u8()? != 0;
    let count = reader.u16()?;
    let holders = (0..count)
        .map(|_| Ok(Holder { token: Token(reader.token()?), deadline: reader.instant()? }))
        .collect::<Result<Vec<_>, _>>()?;
    reader.end()?;
    Ok(Fence { holders, dirty })
}

/// Reads bytes from the front, and never beyond the end.
struct Reader(Bytes);

impl Reader {
    /// Passes the next `len` bytes to `read` and returns its result. The bytes are not split off, because
    /// that would allocate a shared reference count.
    fn take<T>(&mut self, len: usize, read: impl FnOnce(&[u8]) -> T) -> Result<T, EnvelopeError> {
        let result = self.0.get(..len).map(read).ok_or(EnvelopeError::Unreadable)?;
        self.0.advance(len);
        Ok(result)
    }

    fn u8(&mut self) -> Result<u8, EnvelopeError> {
        self.0.try_get_u8().map_err(|_| EnvelopeError::Unreadable)
    }

    fn u16(&mut self) -> Result<u16, EnvelopeError> {
        self.0.try_get_u16().map_err(|_| EnvelopeError::Unreadable)
    }

    fn u64(&mut self) -> Result<u64, EnvelopeError> {
        self.0.try_get_u64().map_err(|_| EnvelopeError::Unreadable)
    }

    fn instant(&mut self) -> Result<Timestamp, EnvelopeError> {
        self.0.try_get_i64().map(Timestamp::from_micros).map_err(|_| EnvelopeError::Unreadable)
    }

    fn token(&mut self) -> Result<NonZeroU64, EnvelopeError> {
        NonZeroU64::new(self.u64()?).ok_or(EnvelopeError::Unreadable)
    }

    fn end(&self) -> Result<(), EnvelopeError> {
        if self.0.is_empty() { Ok(()) } else { Err(EnvelopeError::Unreadable) }
    }
}

/// The error for bytes that are not the expected entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The bytes are no entry. The key counts as vacant.
    #[error("not a readable cache entry")]
    Unreadable,
    /// The entry is another key's.
    #[error("the cache entry belongs to another key")]
    WrongKey,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> StoredKey {
        StoredKey::parse("the-stored-key").unwrap()
    }

    fn any_state() -> impl Strategy<Value = State> {
        let instant = || any::<i64>().prop_map(Timestamp::from_micros);
        let holder = (any::<NonZeroU64>(), instant())
            .prop_map(|(token, deadline)| Holder { token: Token(token), deadline });
        let value = (
            (instant(), instant(), instant(), instant()),
            any::<u64>(),
            prop::option::of("[a-zé]{1,20}"),
            prop::collection::vec(any::<u8>(), 0..50),
        )
            .prop_map(|((made_at, created, expires, seen), version, subject, payload)| {
                let record = Record::new(payload.into(), created, expires)
                    .with_last_seen_at(seen)
                    .with_version(Version::from_u64(version))
                    .with_subject(subject.map(|text| Subject::parse(&text).unwrap()));
                State::Value(Value { record: Arc::new(record), made_at, store: StoreId(7) })
            });
        let fence = (prop::collection::vec(holder, 0..5), any::<bool>())
            .prop_map(|(holders, dirty)| State::Fence(Fence { holders, dirty }));
        prop_oneof![value, Just(State::Lease), fence]
    }

    proptest! {
        #[test]
        fn every_entry_is_decoded_to_itself(state in any_state(), stamp in any::<NonZeroU64>()) {
            let entry = Entry { stamp: Stamp(stamp), state };
            let bytes = entry.encode(&key());
            prop_assert_eq!(bytes.len(), Stamp::LEN + entry.state.encoded_len(&key()));
            prop_assert_eq!(Entry::decode(&key(), bytes).unwrap(), entry);
        }

        #[test]
        fn truncated_lease_or_fence_is_unreadable(state in any_state(), cut in any::<prop::sample::Index>()) {
            prop_assume!(!matches!(state, State::Value(_)));
            let bytes = Entry { stamp: Stamp(NonZeroU64::MIN), state }.encode(&key());
            let cut = bytes.slice(..cut.index(bytes.len()));
            prop_assert_eq!(Entry::decode(&key(), cut), Err(EnvelopeError::Unreadable));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Entry::decode(&key(), bytes.into());
        }
    }

    #[test]
    fn entry_of_another_key_is_refused() {
        let bytes = Entry::lease(Stamp(NonZeroU64::MIN)).encode(&key());
        let other = StoredKey::parse("the-stored-kez").unwrap();
        assert_eq!(Entry::decode(&other, bytes), Err(EnvelopeError::WrongKey));
    }

    #[test]
    fn entry_of_another_version_is_a_lease_or_a_fence_of_its_key() {
        let of_version = |version, kind| {
            let mut bytes = BytesMut::from(&*Entry::lease(Stamp(NonZeroU64::MIN)).encode(&key()));
            bytes[Stamp::LEN] = version;
            bytes[Stamp::LEN + 1] = kind;
            bytes.extend_from_slice(b"whatever this version has here");
            bytes.freeze()
        };
        let other = StoredKey::parse("the-stored-kez").unwrap();
        for version in [0, 1, VERSION + 1, 255] {
            for kind in [VALUE, LEASE] {
                let entry = Entry::decode(&key(), of_version(version, kind)).unwrap();
                assert_eq!(entry, Entry::lease(Stamp(NonZeroU64::MIN)));
            }
            for kind in [FENCE, 4, 255] {
                let entry = Entry::decode(&key(), of_version(version, kind)).unwrap();
                let State::Fence(fence) = entry.state else { panic!("{:?}", entry.state) };
                assert_eq!(fence, Fence { holders: vec![STRANGER], dirty: true });
            }
            // Without the key, there is no telling that it is an entry.
            let unreadable = Entry::decode(&other, of_version(version, FENCE));
            assert_eq!(unreadable, Err(EnvelopeError::Unreadable));
        }
    }

    #[test]
    fn binary_form_of_version_2_does_not_change() {
        let record =
            Record::new(Bytes::from_static(b"1{}"), Timestamp::from_micros(2), Timestamp::from_micros(3))
                .with_last_seen_at(Timestamp::from_micros(4))
                .with_version(Version::from_u64(5))
                .with_subject(Some(Subject::parse("me").unwrap()));
        let value = Value { record: Arc::new(record), made_at: Timestamp::from_micros(1), store: StoreId(7) };
        let bytes = Entry::value(Stamp(NonZeroU64::MAX), value).encode(&StoredKey::parse("k").unwrap());
        let mut expected = vec![0xff; 8];
        expected.extend([2, 1, 1, b'k']);
        for number in [7, 1, 2, 3, 4, 5_u64] {
            expected.extend(number.to_be_bytes());
        }
        expected.extend(*b"\0\x02me1{}");
        assert_eq!(&bytes[..], &expected[..]);
    }
}
