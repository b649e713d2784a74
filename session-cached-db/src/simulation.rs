//! The simulator's side of a store: digests, to recognise a state that was explored before. The seeded faults are listed
//! in `session_core`; the faulty code itself is in each folder's `mutants.rs`, beside the code that it replaces.
//!
//! Not part of the interface. A build without the feature `__simulation` contains none of it.

use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash, Hasher};

pub use session_core::simulation::{Mutant, is_selected, select_mutant};
use session_core::{Record, SessionKey};

thread_local! {
    static CURRENT: Cell<u64> = const { Cell::new(0) };
    static TURNS: Cell<u64> = const { Cell::new(0) };
    static NEW_KEY: RefCell<Option<SessionKey>> = const { RefCell::new(None) };
}

/// Digests of what the tasks of a store have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedState {
    /// Attempts of loads.
    pub attempts: u64,
    /// Write queues.
    pub queues: u64,
    /// Repairs and breakers, without failures that are too few to make a difference.
    pub repairs: u64,
    /// Repairs and breakers.
    pub repairs_in_full: u64,
}

/// Sets the task that is polled on this thread from now on. Loads and writes carry its number, so that a
/// digest shows which task waits for what.
pub fn enter_task(number: u64) {
    CURRENT.set(number);
}

/// Sets the key that sessions of this thread get from now on in the place of a random one, so that a simulated database knows
/// it.
pub fn set_new_key(key: Option<SessionKey>) {
    NEW_KEY.set(key);
}

pub(crate) fn new_key() -> Option<SessionKey> {
    NEW_KEY.with_borrow(Clone::clone)
}

pub(crate) fn current_task() -> u64 {
    CURRENT.get()
}

/// Returns how often a write queue on this thread has begun its next job. From before that, a queue's task
/// keeps only what is in the digest.
#[must_use]
pub fn turns() -> u64 {
    TURNS.get()
}

pub(crate) fn note_turn() {
    TURNS.set(TURNS.get() + 1);
}

pub(crate) fn digest_of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn digest_record(record: &Record) -> u64 {
    digest_of(record.parts())
}
