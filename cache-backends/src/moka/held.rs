use session_core::{Record, Stamp, Value};

use super::clock::Tick;

/// A value as moka keeps it. A reader's copy costs one reference count.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) stamp: Stamp,
    pub(super) value: Value,
    pub(super) deadline: Tick,
    /// The generation of the cache's contents to which it belongs.
    pub(super) generation: u64,
}

/// The memory of an entry besides what [`Held::weight`] counts: key, stamp, store, moka's own bookkeeping,
/// the decoded form's own allocations, and the allocator's losses. Chosen so that `tests/moka_memory.rs`
/// measures the allowed memory.
const OVERHEAD: usize = 556;

/// The memory of a record's decoded form per key of the session, in a payload that is short enough for places
/// of two bytes, and in a longer one.
const PER_SESSION_KEY: usize = 4;
const PER_SESSION_KEY_OF_LONG: usize = 16;

impl Held {
    /// Returns the memory that the value takes, in bytes: counted, and for the decoded form estimated.
    pub(super) fn weight(&self) -> u32 {
        let record = &*self.value.record;
        let payload = record.payload();
        // Count the decoded form of a session that was not read yet, too, because its first reader decodes
        // it. The colons between keys and values in JSON count its keys, and with them the keys inside of
        // values.
        let session_keys = count(payload, b':');
        let is_long = payload.len() > usize::from(u16::MAX);
        let bytes = OVERHEAD
            + size_of::<Record>()
            + record.subject().map_or(0, |subject| subject.as_str().len())
            + payload.len()
            + session_keys * if is_long { PER_SESSION_KEY_OF_LONG } else { PER_SESSION_KEY };
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

/// Counts the bytes that are `wanted`. Sums of one byte let the compiler add many at once, because every
/// write counts.
fn count(bytes: &[u8], wanted: u8) -> usize {
    let in_chunk = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(*byte == wanted)).sum::<u8>();
    bytes.chunks(u8::MAX.into()).map(|chunk| usize::from(in_chunk(chunk))).sum()
}
