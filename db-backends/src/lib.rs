#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(docsrs, doc(auto_cfg(hide(feature = "_sqlx", feature = "_server", feature = "_tls"))))]

mod connect;
mod inspect;
#[cfg(feature = "_sqlx")]
mod sql;
#[cfg(feature = "_sqlx")]
mod url;

#[cfg(all(feature = "django", feature = "_sqlx"))]
pub mod django;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;

pub use self::connect::{ConnectError, connect, connect_to_inspect};
pub use self::inspect::{Finding, FindingSeverity, Inspect, Inspection};
#[cfg(feature = "_server")]
pub use self::sql::credentials::Credentials;
#[cfg(feature = "_sqlx")]
pub use self::sql::persistence::SqlPersistence;
/// The driver, for pools that the application makes.
#[cfg(feature = "_sqlx")]
pub use sqlx;
