//! Arrangements: what cache the processes have, and what can happen to it.

/// The cache of a scenario, and the faults that are tried with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Arrangement {
    /// One cache is shared by all processes.
    Shared,
    /// The same, and a single failed call opens the circuit breaker.
    Sensitive,
    /// The same, and writes fail closed.
    Closed,
    /// A shared cache whose only faults are failovers: it loses the last change of an entry that it has acknowledged.
    Failover,
    /// A shared cache with a sensitive breaker, whose only faults are evictions, calls that fail, and processes that die.
    Fragile,
    /// The cache belongs to the only process.
    Process,
    /// Each process has memory in front of the shared cache. The only faults are those of channels. What is cached in the
    /// beginning is in all memories, too, unless it is about to end.
    Near,
    /// The same, and saves are strict.
    Strict,
    /// Near caches, with a sensitive breaker and all faults.
    NearSensitive,
    /// Near caches whose server refuses every channel.
    Deaf,
    /// Each process has memory alone, and the database reports what others commit. The only faults are those of channels. What
    /// is cached in the beginning is in all memories.
    Notified,
}

impl Arrangement {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Shared,
        Self::Sensitive,
        Self::Closed,
        Self::Failover,
        Self::Fragile,
        Self::Process,
        Self::Near,
        Self::Strict,
        Self::NearSensitive,
        Self::Deaf,
        Self::Notified,
    ];

    /// Returns the name that it has in the name of a scenario.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Sensitive => "sensitive",
            Self::Closed => "closed",
            Self::Failover => "failover",
            Self::Fragile => "fragile",
            Self::Process => "process",
            Self::Near => "near",
            Self::Strict => "strict",
            Self::NearSensitive => "near-sensitive",
            Self::Deaf => "deaf",
            Self::Notified => "notified",
        }
    }

    /// Returns `true` if several processes can have this cache.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        !matches!(self, Self::Process)
    }

    /// Returns `true` if a single failed call opens the circuit breaker.
    #[must_use]
    pub const fn is_sensitive(self) -> bool {
        matches!(self, Self::Sensitive | Self::Closed | Self::Fragile | Self::NearSensitive)
    }

    /// Returns `true` if each process has memory that is told what others write.
    #[must_use]
    pub const fn is_near(self) -> bool {
        matches!(self, Self::Near | Self::Strict | Self::NearSensitive | Self::Deaf | Self::Notified)
    }
}
