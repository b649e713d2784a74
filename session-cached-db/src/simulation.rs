//! The simulator's side of a store: seeded faults, to show that the simulator would find them, and digests,
//! to recognise a state that was explored before.
//!
//! Not part of the interface. A build without the feature `__simulation` contains none of it. The faulty code
//! itself is in each folder's `mutants.rs`, beside the code that it replaces.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};

use session_core::Record;

thread_local! {
    static CURRENT: Cell<u64> = const { Cell::new(0) };
    static TURNS: Cell<u64> = const { Cell::new(0) };
}

/// Sets the task that is polled on this thread from now on. Loads and writes carry its number, so that a
/// digest shows which task waits for what.
pub fn enter_task(number: u64) {
    CURRENT.set(number);
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

thread_local! {
    static SELECTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Selects the seeded fault of every store that runs on this thread, until another one or none is selected.
pub fn select_mutant(mutant: Option<Mutant>) {
    SELECTED.set(mutant);
}

pub(crate) fn is_selected(mutant: Mutant) -> bool {
    SELECTED.get() == Some(mutant)
}

macro_rules! mutants {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// A seeded fault of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Mutant {
            $($(#[doc = $doc])* $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns a description of the fault.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),*).trim_ascii(),)*
                }
            }
        }
    };
}

mutants! {
    /// No lease check: a fill replaces any entry.
    NoLeaseCheck,
    /// No fence: a writer only deletes the entry after its write.
    NoFence,
    /// A second writer's fence replaces the first one's, instead of joining it.
    FenceOverwritten,
    /// No poisoning: a writer whose fence was lost leaves another writer's fence as it is.
    NoPoisoning,
    /// A dead holder is never pruned, but kept as long as a living one.
    NeverPruned,
    /// A fence is settled although the outcome of the write is unknown.
    SettledOnUnknown,
    /// Ungated single flight: every follower takes the next result.
    UngatedFlight,
    /// An upserting save: a session that is missing is inserted.
    UpsertingSave,
    /// A fill whose lease was removed fills the vacant key (after a delete, for instance).
    FillAfterDelete,
    /// The cache's TTL is trusted, instead of the session's expiry.
    TtlTrusted,
    /// An ambiguous fence is retried as it was, with the same token and stamp.
    FenceRetriedAsItWas,
    /// An ambiguous lease is retried with the same stamp.
    LeaseRetriedAsItWas,
    /// A create publishes over a vacant key, without a lease.
    PublishOverVacancy,
    /// A follower that joined after the fill was applied takes its result.
    LateFollower,
    /// A writer that could not fence publishes, instead of having the key repaired.
    DegradedPublishes,
    /// A repair leaves another writer's fence clean.
    CleanRepair,
    /// A touch publishes the record that was loaded before it.
    TouchPublishes,
    /// A revoke lists a subject's sessions once.
    RevokeListsOnce,
    /// A write is sent although it may outlive its fence.
    WritePastDeadline,
    /// Losing a few exchanges in a row counts as an outage of the cache.
    LosingIsOutage,
    /// Writes of one process do not queue.
    QueueSkipped,
    /// A save is composed onto the session as it was loaded, although its queue has written it since.
    BaseNotRenewed,
    /// Saves that become one are answered before they are written.
    BatchAnswersEarly,
    /// The breaker does not close while a key waits to be repaired.
    BreakerWaitsForQueue,
    /// A key that cannot be repaired yet holds up the repair of the others.
    RepairBlocksOthers,
    /// Only the load that began an attempt drives it.
    LeaderOwnsFlight,
    /// An attempt ends with the last load that waits for it.
    CallerOwnsStatement,
    /// An operation of several writes ends with its caller.
    CallerOwnsRevocation,
    /// A process does not remember which sessions it has touched.
    TouchRepeated,
    /// The statement touches a session that was used a moment ago.
    TouchNotDue,
}
