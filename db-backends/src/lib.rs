#![doc = include_str!("../README.md")]

mod connect;
mod inspect;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
mod sql;

#[cfg(all(feature = "django", any(feature = "sqlite", feature = "postgres", feature = "mysql")))]
pub mod django;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;

pub use self::connect::{ConnectError, connect, connect_to_inspect};
pub use self::inspect::{Inspect, Inspection};
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub use self::sql::SqlPersistence;
/// The driver, for pools that the application makes itself.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub use sqlx;
