//! Django's own session table, shared with a Django site.
//!
//! The site makes the table and maintains it. Here, sessions are read from it and written to it under the
//! keys that Django's cookies hold. The payloads are Django's, so the store needs the codec
//! `session_core::django::DjangoCodec`: a payload of any other form is refused.
//!
//! The table has no columns for some of what a store can do:
//!
//! - There are no subjects: a record that has one is refused, and there is no `SubjectIndex`.
//! - The beginning of a session is not known: a record's `created_at` is when it was last saved.
//! - A record's `last_seen_at` is computed from when it was last saved and from when it expires; see
//!   [`DjangoPersistence::session_age`].
//! - A record's version is a hash of its row. A write that expects a version reads the row, and then writes
//!   only if the row still has what was read, in one statement. A client that changes a session and changes
//!   it back within one second brings a version back; a write that expects that version then replaces the
//!   very content that was read.
//! - An expiry after the year 9999 becomes the end of that year.
//! - In MySQL and MariaDB, two keys cannot differ in case alone, because Django's collation takes them for
//!   the same. Neither is ever found under the other. Keys that are made here or by Django are in lower case.
//!
//! Instants are in UTC. At the site, `USE_TZ` must be true, which is the default, and no database may have a
//! `TIME_ZONE` other than UTC.

mod error;
mod persistence;
mod row;
mod schema;
mod statements;

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use self::persistence::DjangoPersistence;

/// Sessions in Django's table in a SQLite file.
#[cfg(feature = "sqlite")]
pub type DjangoSqlite = DjangoPersistence<sqlx::Sqlite>;
/// Sessions in Django's table in a Postgres database.
#[cfg(feature = "postgres")]
pub type DjangoPostgres = DjangoPersistence<sqlx::Postgres>;
/// Sessions in Django's table in a MySQL or MariaDB database.
#[cfg(feature = "mysql")]
pub type DjangoMySql = DjangoPersistence<sqlx::MySql>;
