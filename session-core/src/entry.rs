use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::{Record, Timestamp};

/// The compare-and-swap token of an [`Entry`]: random, and new at every write, so that no two writes have the
/// same.
///
/// In Redis it is the first bytes of the value, in memcached the CAS value. It is random instead of counted,
/// because a cache that restarts would count from the beginning again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp(pub NonZeroU64);

/// The identity of one writer in a [`Fence`]: random, and new for every fence that a writer places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub NonZeroU64);

/// The contents of a cache under one key.
///
/// This and the types in it are exhaustive on purpose: another field is another version of the binary form,
/// and every place that builds or reads one has to decide about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The stamp of the write that put it there.
    pub stamp: Stamp,
    /// A value, a lease or a fence.
    pub state: State,
}

impl Entry {
    /// Creates an entry with a committed record.
    #[must_use]
    pub const fn value(stamp: Stamp, value: Value) -> Self {
        Self { stamp, state: State::Value(value) }
    }

    /// Creates an entry that says that one reader is reading the database to fill this key.
    #[must_use]
    pub const fn lease(stamp: Stamp) -> Self {
        Self { stamp, state: State::Lease }
    }

    /// Creates an entry that keeps values out while writers are in flight.
    #[must_use]
    pub const fn fence(stamp: Stamp, fence: Fence) -> Self {
        Self { stamp, state: State::Fence(fence) }
    }
}

/// The three states of an [`Entry`]. The fourth state of a key is to have no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The committed record.
    Value(Value),
    /// One reader is reading the database to fill this key; the entry's stamp is the lease.
    Lease,
    /// Writers are in flight.
    Fence(Fence),
}

/// A committed record, with the instant at which it was known to be the truth. Exhaustive on purpose, as
/// [`Entry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The record, shared.
    pub record: Arc<Record>,
    /// The instant at which the database read or write that made this value began. The value's age is counted
    /// from here, however often the value moved since.
    pub made_at: Timestamp,
    /// The store that made this value. Another store neither shows nor trusts it.
    pub store: StoreId,
}

/// The identity of a store, bound into every [`Value`] that it caches.
///
/// Two stores that share a cache, by mistake or on purpose, never show each other's sessions: a client that
/// presents the key of one store to the other finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub u64);

impl StoreId {
    /// Returns the identity made of `parts`, such as a store's name, its table and its key prefix. Equal
    /// parts give the same identity on every node and in every version.
    #[must_use]
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let first = digest.iter().take(8);
        Self(first.fold(0, |id, byte| id << 8 | u64::from(*byte)))
    }
}

/// The writers in flight for a key: no fencing token in the sense of distributed locks, but a mark in the
/// cache that keeps values out while they write. Exhaustive on purpose, as [`Entry`] is.
///
/// A fencing token is a growing number by which a resource refuses a late writer. A fence orders nothing, and
/// the database never sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// One holder per writer, in the order of their arrival. Never empty in a cache.
    pub holders: Vec<Holder>,
    /// `true` once two writers overlapped or one was given up: which write came last is unknown, so none may
    /// publish.
    pub dirty: bool,
}

impl Fence {
    /// Returns the time until the last holder's deadline, which is how long a cache has to keep the fence.
    #[must_use]
    pub fn ttl(&self, now: Timestamp) -> Duration {
        self.holders.iter().map(|holder| holder.deadline.since(now)).max().unwrap_or_default()
    }
}

/// One writer in flight. Exhaustive on purpose, as [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The writer's identity.
    pub token: Token,
    /// The instant from which on others may give the writer up, because its statement can no longer commit.
    pub deadline: Timestamp,
}

impl Holder {
    /// The deadline of a writer in a fence of another version, which cannot be read. The
    /// [protocol](crate::protocol) gives such a writer a deadline of its own when it writes the fence anew.
    pub const UNKNOWN_DEADLINE: Timestamp = Timestamp::MAX;
}
