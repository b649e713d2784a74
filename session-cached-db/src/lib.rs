#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

/// The place of a seeded fault of the protocol: asks whether the simulator has selected it, or runs the faulty code
/// instead. A normal build contains nothing of it.
#[cfg(feature = "__simulation")]
macro_rules! mutant {
    ($name:ident) => {
        crate::simulation::is_selected(crate::simulation::Mutant::$name)
    };
    ($name:ident => $instead:expr) => {
        if mutant!($name) {
            $instead
        }
    };
}
#[cfg(not(feature = "__simulation"))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
    ($name:ident => $instead:expr) => {};
}

mod coherence;
#[cfg(feature = "django")]
pub mod django;
mod error;
mod middleware;
mod runtime;
mod session;
#[cfg(feature = "__simulation")]
#[doc(hidden)]
pub mod simulation;
mod store;
mod telemetry;
mod watch;

pub use coherence::{Coherence, OutagePolicy, WriteOperation};
pub use error::{BuildError, Error};
pub use runtime::TokioRuntime;
pub use session::Session;
pub use store::{
    Builder, CacheHealth, CachedDb, ConflictPolicy, Health, ListedSession, NoCache, Reaper, Schema,
    SubjectPage, SweepPage, Written,
};
#[doc(hidden)]
pub use store::{DEFAULT_CLOCK_SLACK, DEFAULT_WRITE_TIMEOUT, SHORTEST_FRESHNESS_BOUND};
pub use telemetry::{Hooks, PresentedKey, Revocation, Stats};
pub use watch::{SessionEnd, SessionWatch};

#[cfg(feature = "actix-session")]
pub use middleware::actix_session;
#[cfg(feature = "tower")]
pub use middleware::tower;
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-0_14"))]
pub use middleware::tower_sessions;

pub use session_core;
pub use session_core::{Expiry, SessionKey, StoredKey, Timestamp};

/// The caches, with their builders, and [`connect`](cache_backends::connect) by URL.
#[cfg(any(feature = "cli", feature = "memcached", feature = "moka", feature = "redis"))]
pub use cache_backends;
#[cfg(feature = "memcached")]
pub use cache_backends::memcached::MemcachedCache;
#[cfg(feature = "moka")]
pub use cache_backends::moka::MokaCache;
#[cfg(feature = "near")]
pub use cache_backends::near::{NearCache, NotifiedCache, near, notified};
#[cfg(feature = "redis")]
pub use cache_backends::redis::RedisCache;

/// The databases, with their builders, their driver, and [`connect`](db_backends::connect) by URL.
#[cfg(any(feature = "cli", feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub use db_backends;
#[cfg(feature = "mysql")]
pub use db_backends::mysql::MySqlPersistence;
#[cfg(feature = "postgres")]
pub use db_backends::postgres::PostgresPersistence;
#[cfg(feature = "sqlite")]
pub use db_backends::sqlite::SqlitePersistence;

/// Compiles the examples of the repository's front page.
#[cfg(all(doctest, feature = "axum", feature = "moka", feature = "sqlite"))]
#[doc = include_str!("../../README.md")]
struct ReadmeDocument;

/// Compiles the examples of `docs/security.md`.
#[cfg(all(doctest, feature = "postgres", feature = "redis", feature = "seal"))]
#[doc = include_str!("../../docs/security.md")]
struct SecurityDocument;
