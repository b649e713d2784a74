#![doc = include_str!("../README.md")]

#[cfg(feature = "_sqlx")]
mod connections;
#[cfg(feature = "_sqlx")]
mod error;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod remote;
#[cfg(feature = "_sqlx")]
mod row;
#[cfg(feature = "_sqlx")]
mod schema;
#[cfg(feature = "_sqlx")]
mod sql;
#[cfg(feature = "_sqlx")]
mod table;

#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "_sqlx")]
pub use self::sql::SqlPersistence;
/// The driver, for pools that the application makes itself.
#[cfg(feature = "_sqlx")]
pub use sqlx;
