#![doc = include_str!("../README.md")]

#[cfg(feature = "_sqlx")]
mod error;
#[cfg(feature = "_sqlx")]
mod row;
#[cfg(feature = "_sqlx")]
mod schema;
#[cfg(feature = "_sqlx")]
mod table;

#[cfg(feature = "sqlite")]
pub mod sqlite;

/// The driver, for pools that the application makes itself.
#[cfg(feature = "_sqlx")]
pub use sqlx;
