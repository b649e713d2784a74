use std::mem::size_of;

use session_core::Record;

use super::Held;

/// What moka keeps per entry besides key and value: its own bookkeeping, the map's slots, and what the allocator adds.
/// `tests/moka_memory.rs` measures whether the sum is right.
const OVERHEAD: usize = 400;

/// What the decoded form of a record takes per key of the session, the spare room of its vector included.
const PER_SESSION_KEY: usize = 32;

/// The memory that a value takes, in bytes: counted where it can be, and otherwise an upper estimate.
pub(super) fn of(held: &Held) -> u32 {
    let record = &*held.value.record;
    let payload = record.payload();
    // A session that nobody has read yet is going to be decoded when somebody does. Its keys are counted by what
    // separates keys from values in JSON.
    let session_keys = payload.iter().filter(|byte| **byte == b':').count();
    let bytes = OVERHEAD
        + size_of::<Record>()
        + record.subject().map_or(0, |subject| subject.as_str().len())
        + payload.len()
        + session_keys * PER_SESSION_KEY;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
