#![doc = include_str!("../README.md")]

/// Where a seeded fault of the protocol comes in: whether the simulator has selected it, or what is done then. A normal
/// build contains nothing of it.
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

#[cfg(feature = "actix-session")]
pub mod actix_session;
#[cfg(any(feature = "actix-session", feature = "tower-sessions"))]
mod adapter;
mod builder;
mod cache_guard;
mod config;
#[cfg(feature = "django")]
pub mod django;
mod error;
mod events;
mod flight;
mod inner;
mod limits;
mod load;
mod maintenance;
mod measured;
mod metrics;
mod no_cache;
mod operations;
mod queue;
mod reaper;
mod repair;
mod runtime;
mod session;
#[cfg(feature = "__simulation")]
#[doc(hidden)]
pub mod simulation;
mod stats;
mod store;
mod tasks;
#[cfg(feature = "tower")]
pub mod tower;
#[cfg(feature = "tower-sessions")]
pub mod tower_sessions;
mod trace;
mod write;

pub use builder::Builder;
pub use config::{Coherence, ConflictPolicy, Operation, OutagePolicy, Schema};
pub use error::{BuildError, Error};
pub use events::{Events, PresentedKey, Revocation};
pub use maintenance::SweepPage;
pub use no_cache::NoCache;
pub use operations::Written;
pub use reaper::Reaper;
pub use runtime::TokioRuntime;
pub use session::Session;
pub use stats::Stats;
pub use store::{CacheHealth, CachedDb, Health, ListedSession};

pub use session_core;
pub use session_core::{Expiry, SessionKey, StoredKey, Timestamp};

/// The caches, with their builders, and [`connect`](cache_backends::connect) by URL.
#[cfg(any(feature = "cli", feature = "memcached", feature = "moka", feature = "redis"))]
pub use cache_backends;
#[cfg(feature = "memcached")]
pub use cache_backends::memcached::MemcachedCache;
#[cfg(feature = "moka")]
pub use cache_backends::moka::MokaCache;
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

/// The examples of the documents are compiled, too.
#[cfg(all(doctest, feature = "postgres", feature = "redis", feature = "seal"))]
#[doc = include_str!("../../docs/security.md")]
struct SecurityDocument;

/// Where a session's own expiry is kept among its data, out of the application's sight. The name is Django's.
const EXPIRY_KEY: &str = "_session_expiry";
