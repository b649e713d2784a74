use session_core::Record;

use super::Held;

/// What an entry takes besides what is counted below: key, stamp, store and moka's own bookkeeping, the decoded form's own
/// allocations, and what the allocator loses. Chosen so that `tests/moka_memory.rs` measures what was allowed.
const OVERHEAD: usize = 548;

/// What the decoded form of a record takes per key of the session, in a payload whose places two bytes can tell, and in a
/// longer one.
const PER_SESSION_KEY: usize = 4;
const PER_SESSION_KEY_OF_LONG: usize = 16;

/// The memory that a value takes, in bytes: counted, and for the decoded form estimated.
pub(super) fn of(held: &Held) -> u32 {
    let record = &*held.value.record;
    let payload = record.payload();
    // A session that nobody has read yet is going to be decoded when somebody does. Its keys are counted by what
    // separates keys from values in JSON; those of values inside values are counted with them.
    let session_keys = count(payload, b':');
    let is_long = payload.len() > usize::from(u16::MAX);
    let bytes = OVERHEAD
        + size_of::<Record>()
        + record.subject().map_or(0, |subject| subject.as_str().len())
        + payload.len()
        + session_keys * if is_long { PER_SESSION_KEY_OF_LONG } else { PER_SESSION_KEY };
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// How many of `bytes` are `wanted`. In small sums, which the compiler makes of many bytes at once: every write counts.
fn count(bytes: &[u8], wanted: u8) -> usize {
    let in_chunk = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(*byte == wanted)).sum::<u8>();
    bytes.chunks(u8::MAX.into()).map(|chunk| usize::from(in_chunk(chunk))).sum()
}
