use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::{Record, Timestamp};

/// Random, and new at every write of an [`Entry`]: two writes never have the same. The first bytes of the value in
/// Redis, the CAS value in memcached. Random rather than counted, because a cache that restarts would count again from
/// where it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp(pub NonZeroU64);

/// Random, and new for every fence that a writer places: says whose a [`Holder`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub NonZeroU64);

/// What a cache holds under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of the write that put it there.
    pub stamp: Stamp,
    /// What it says.
    pub state: State,
}

impl Entry {
    /// An entry with a committed record.
    #[must_use]
    pub const fn value(stamp: Stamp, value: Value) -> Self {
        Self { stamp, state: State::Value(value) }
    }

    /// An entry that says that somebody is reading the database to fill this key.
    #[must_use]
    pub const fn lease(stamp: Stamp) -> Self {
        Self { stamp, state: State::Lease }
    }

    /// An entry that keeps values out while writers are in flight.
    #[must_use]
    pub const fn fence(stamp: Stamp, fence: Fence) -> Self {
        Self { stamp, state: State::Fence(fence) }
    }
}

/// The three states of an [`Entry`]. The fourth is that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The committed record.
    Value(Value),
    /// One reader is reading the database to fill this key; the entry's stamp is the lease.
    Lease,
    /// Writers are in flight.
    Fence(Fence),
}

/// A committed record, and when it was known to be the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The record, shared.
    pub record: Arc<Record>,
    /// When the database read or write that made this value began. Its age is counted from here, however often the
    /// value moved since.
    pub made_at: Timestamp,
    /// The store that made it. A value of another store is not shown, and not trusted.
    pub store: StoreId,
}

/// The identity of a store, bound into every [`Value`] that it caches.
///
/// Two stores that share a cache by mistake, or on purpose, never show each other's sessions: a client that presents
/// the key of one to the other finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub u64);

impl StoreId {
    /// Returns the identity made of `parts`, such as a store's name, its table and its key prefix. The same on every
    /// node and in every version.
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

/// The writers in flight for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// One per writer, in the order of their arrival. Never empty in a cache.
    pub holders: Vec<Holder>,
    /// Two writers overlapped, or one was given up: nobody knows whose write came last, so nobody may publish.
    pub dirty: bool,
}

impl Fence {
    /// The time until the last holder's deadline: how long a cache has to keep the fence.
    #[must_use]
    pub fn ttl(&self, now: Timestamp) -> Duration {
        self.holders.iter().map(|holder| holder.deadline.since(now)).max().unwrap_or_default()
    }
}

/// One writer in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Whose it is.
    pub token: Token,
    /// When others may give it up: its statement can no longer commit then.
    pub deadline: Timestamp,
}
