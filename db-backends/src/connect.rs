//! Databases by URL, for programs that choose theirs when they start.

use std::sync::Arc;

use session_core::{DynDatabase, PersistenceError};

use crate::Inspect;

/// The schemes of URLs, and the cargo feature that each needs.
const SCHEMES: [(&str, &str); 5] = [
    ("postgres", "postgres"),
    ("postgresql", "postgres"),
    ("mysql", "mysql"),
    ("mariadb", "mysql"),
    ("sqlite", "sqlite"),
];

/// An error while connecting by URL. Shows no URL, because passwords are in them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL has a scheme that no database is known for.
    #[error("no database is known for URLs that begin with {scheme:?}; known are {}", known_schemes())]
    UnknownScheme {
        /// The scheme of the URL.
        scheme: String,
    },
    /// The database is known, but this program was built without it.
    #[error("{scheme}: URLs need the feature {feature:?} of db-backends; enable it in Cargo.toml")]
    FeatureDisabled {
        /// The scheme of the URL.
        scheme: String,
        /// The cargo feature to enable.
        feature: &'static str,
    },
    /// The URL or an option is wrong.
    #[error("the database's configuration is invalid: {0}")]
    Config(String),
    /// The URL is right, but the database cannot be reached, or does not let us in.
    #[error(transparent)]
    Database(PersistenceError),
}

impl From<PersistenceError> for ConnectError {
    fn from(error: PersistenceError) -> Self {
        match error {
            PersistenceError::Config(text) => Self::Config(text),
            error => Self::Database(error),
        }
    }
}

/// Connects to the database of `url`. Neither looks for its table nor makes it: call
/// [`migrate`](session_core::Persistence::migrate) for that, or build a store, which does.
///
/// | URL | feature | options as parameters, beside those of the driver |
/// |---|---|---|
/// | `postgres://user:password@host/database` | `postgres`; `postgres-tls` for `?sslmode=require` | `table`, `max_connections`, `statement_timeout_ms`, `lock_timeout_ms`, `acquire_timeout_ms`, `password_file`, `behind_pooler` |
/// | `mysql://…`, or `mariadb://…` | `mysql`; `mysql-tls` for `?ssl-mode=required` | the same but the last, and `cleartext_password` |
/// | `sqlite://sessions.db`, `sqlite::memory:` | `sqlite` | `table`, `readers`, `busy_timeout_ms`, `acquire_timeout_ms` |
///
/// The options are those of the builders, `PostgresBuilder`, `MySqlBuilder` and `SqliteBuilder`, where the
/// defaults are. Passwords are percent-encoded. A server's URL may name several hosts, separated by commas: the
/// first that takes writes is used.
///
/// A database has a URL if it is also a [`SubjectIndex`](session_core::SubjectIndex), a
/// [`Scan`](session_core::Scan) and a [`Rotations`](session_core::Rotations), because programs that take a URL,
/// such as `sessionctl`, may use any of them. One without ordered keys, or without subjects, such as Django's table, is for the store alone: construct it,
/// and pass it to the builder.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(feature = "sqlite")] {
/// use session_core::Persistence as _;
///
/// let db = db_backends::connect("sqlite::memory:?table=logins").await?;
/// db.migrate().await?;
/// # }
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// Returns [`ConnectError`]. It names the feature if one is missing.
///
/// # Cancel safety
///
/// When this future is dropped, the file of a SQLite database may have been created. It is safe to call
/// again.
pub async fn connect(url: &str) -> Result<Arc<dyn DynDatabase>, ConnectError> {
    let db = connect_to_inspect(url).await?;
    Ok(db)
}

/// Connects like [`connect`], for an operator's program: the result can also be [inspected](Inspect).
///
/// # Errors
///
/// The errors of [`connect`].
///
/// # Cancel safety
///
/// The same as [`connect`].
pub async fn connect_to_inspect(url: &str) -> Result<Arc<dyn Inspect>, ConnectError> {
    let scheme = scheme_of(url)?;
    let known = SCHEMES.into_iter().find(|(known, _)| *known == scheme);
    let Some((_, feature)) = known else {
        return Err(ConnectError::UnknownScheme { scheme: scheme.into() });
    };
    match feature {
        #[cfg(feature = "postgres")]
        "postgres" => Ok(Arc::new(crate::postgres::PostgresBuilder::connect_by_url(url).await?)),
        #[cfg(feature = "mysql")]
        "mysql" => Ok(Arc::new(crate::mysql::MySqlBuilder::connect_by_url(url).await?)),
        #[cfg(feature = "sqlite")]
        "sqlite" => Ok(Arc::new(crate::sqlite::SqliteBuilder::connect_by_url(url).await?)),
        _ => Err(ConnectError::FeatureDisabled { scheme: scheme.into(), feature }),
    }
}

/// Returns the scheme of `url`, if it looks like a URL.
fn scheme_of(url: &str) -> Result<&str, ConnectError> {
    let scheme = match url.split_once(':') {
        Some(("sqlite", _)) => Some("sqlite"),
        Some((scheme, rest)) if rest.starts_with("//") => Some(scheme),
        _ => None,
    };
    // No error repeats anything else: it may be a password.
    let is_scheme =
        |text: &&str| text.bytes().all(|byte| byte.is_ascii_lowercase() || b"+-.".contains(&byte));
    scheme
        .filter(is_scheme)
        .ok_or_else(|| ConnectError::Config("a URL looks like postgres://user:password@host/database".into()))
}

/// Returns the known schemes as a list in a sentence.
fn known_schemes() -> String {
    let [first @ .., last] = SCHEMES.map(|(scheme, _)| scheme);
    format!("{} and {last}", first.join(", "))
}
