//! The simulator's seeded faults, to show that it would find them. The faulty code itself is beside the code that it
//! replaces, in the crates that drive the protocol.
//!
//! Not part of the interface. A build without the feature `__simulation` contains none of it.

use std::cell::Cell;

thread_local! {
    static SELECTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Selects the seeded fault of every store and cache that runs on this thread, until another one or none is selected.
pub fn select_mutant(mutant: Option<Mutant>) {
    SELECTED.set(mutant);
}

/// Returns `true` if this fault is selected.
#[must_use]
pub fn is_selected(mutant: Mutant) -> bool {
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
    /// A value is shown however old it is.
    AgeIgnored,
    /// A writer whose entry was evicted since it was loaded writes without a fence.
    EvictionUnfenced,
    /// A write fails when the cache does not answer, although it is to go on.
    OutageFailsWrites,
    /// A write goes on when the cache does not answer, although it is to fail closed.
    FailClosedWrites,
    /// The new key of a session is noted after the statement that moves it.
    RotationNotedLate,
    /// The note of a change of rights leads clients to the new key.
    RightsRevealed,
    /// A logout does not follow its session to another key.
    LogoutNotFollowed,
    /// Near cache: no lease in memory: what was read is kept, whatever was reported meanwhile.
    NearWithoutLease,
    /// Near cache: the basis is the instant at which the answer to a ping came, not that at which it was sent.
    NearBasisAtAnswer,
    /// Near cache: the answer to a ping on an older channel counts.
    NearOlderAnswer,
    /// Near cache: values in memory outlive their channel.
    NearValuesKept,
    /// Near cache: leases in memory outlive their channel.
    NearLeasesKept,
    /// Near cache: a writer leaves its own entry in memory.
    NearOwnKept,
    /// Near cache: a writer removes its own entry before its fence is confirmed, and not afterwards.
    NearOwnRemovedEarly,
    /// Near cache: a final operation is acknowledged without a wait.
    NearNoWait,
    /// Near cache: the wait of a final operation is counted from its beginning instead of its fence.
    NearWaitFromBeginning,
    /// Near cache: a report removes values, and leaves leases.
    NearNoticeKeepsLease,
    /// Near cache: reports are applied behind later answers.
    NearNoticesLate,
    /// Near cache: memory answers without a look at the basis.
    NearAlwaysFresh,
    /// Near cache: the basis is looked at after memory was asked.
    NearFreshnessLast,
    /// Near cache: a strict save is acknowledged like any other.
    NearStrictIgnored,
    /// Near cache: a load needs a channel.
    NearNeedsChannel,
    /// Near cache: memory keeps a value that is older than what this process has shown from the database or the cache.
    NearKeptOnBypass,
    /// Near cache: a client with the old key of a session gets the new one without a wait.
    NearLedAtOnce,
    /// Memory over a database that reports: a report leaves the fence of a writer as it is, which then publishes over it.
    NotifiedFenceKept,
    /// Memory over a database that reports: what was kept before the channel was opened is not forgotten.
    NotifiedKeptAtOpening,
    /// Memory over a database that reports: the wait of a final operation is counted from its fence instead of its commit.
    NotifiedWaitFromFence,
    /// Memory over a database that reports: a lookup shows what memory has, although the channel is behind.
    NotifiedStaleLookup,
    /// Memory over a database that reports: what was read long ago is good for every load, because its lease held.
    NotifiedFillUnchecked,
}
