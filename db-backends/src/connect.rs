//! Databases by URL, for programs that choose theirs when they start.

use std::sync::Arc;

use session_core::{DynDatabase, PersistenceError};

use crate::Inspect;

/// Why no database could be had by a URL. Shows no URL, because passwords are in them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL begins with something that no database is known for.
    #[error(
        "no database is known for URLs that begin with {scheme:?}; known are postgres, postgresql, mysql, mariadb and \
         sqlite"
    )]
    UnknownScheme {
        /// What it begins with.
        scheme: String,
    },
    /// The database is known, but this program was built without it.
    #[error("{scheme}: URLs need the feature {feature:?} of db-backends; enable it in Cargo.toml")]
    FeatureDisabled {
        /// What the URL begins with.
        scheme: String,
        /// The cargo feature to enable.
        feature: &'static str,
    },
    /// The URL or an option is wrong.
    #[error("the database's configuration is invalid: {0}")]
    Config(String),
    /// The URL is right, but the database does not let us in.
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

/// The database that `url` names, connected. Its table is neither looked at nor made: that is for
/// [`migrate`](session_core::Persistence::migrate), or for who builds a store with it.
///
/// | URL | feature | options as parameters, beside those of the driver |
/// |---|---|---|
/// | `postgres://user:password@host/database` | `postgres`; `postgres-tls` for `?sslmode=require` | `table`, `max_connections`, `statement_timeout_ms`, `lock_timeout_ms`, `acquire_timeout_ms` |
/// | `mysql://…`, or `mariadb://…` | `mysql`; `mysql-tls` for `?ssl-mode=required` | the same |
/// | `sqlite://sessions.db`, `sqlite::memory:` | `sqlite` | `table`, `readers`, `busy_timeout_ms`, `acquire_timeout_ms` |
///
/// The options are those of the builders, `PostgresBuilder`, `MySqlBuilder` and `SqliteBuilder`, which tell the defaults.
/// Passwords are percent-encoded.
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
/// [`ConnectError`], which names the feature that is missing.
///
/// # Cancel safety
///
/// A file of SQLite's may be there already when this future is dropped. Calling again is right.
pub async fn connect(url: &str) -> Result<Arc<dyn DynDatabase>, ConnectError> {
    let db = connect_to_inspect(url).await?;
    Ok(db)
}

/// As [`connect`], for an operator's program: what comes back can also be [inspected](Inspect).
///
/// # Errors
///
/// As [`connect`].
///
/// # Cancel safety
///
/// As [`connect`].
pub async fn connect_to_inspect(url: &str) -> Result<Arc<dyn Inspect>, ConnectError> {
    match scheme_of(url)? {
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Ok(Arc::new(by_url::postgres(url).await?)),
        #[cfg(feature = "mysql")]
        "mysql" | "mariadb" => Ok(Arc::new(by_url::mysql(url).await?)),
        #[cfg(feature = "sqlite")]
        "sqlite" => Ok(Arc::new(by_url::sqlite(url).await?)),
        scheme => Err(unknown_or_disabled(scheme)),
    }
}

/// What `url` begins with, if it looks like a URL.
fn scheme_of(url: &str) -> Result<&str, ConnectError> {
    let scheme = match url.split_once(':') {
        Some(("sqlite", _)) => Some("sqlite"),
        Some((scheme, rest)) if rest.starts_with("//") => Some(scheme),
        _ => None,
    };
    // Anything else is not repeated in an error: it may be a password.
    let is_scheme =
        |text: &&str| text.bytes().all(|byte| byte.is_ascii_lowercase() || b"+-.".contains(&byte));
    scheme
        .filter(is_scheme)
        .ok_or_else(|| ConnectError::Config("a URL looks like postgres://user:password@host/database".into()))
}

fn unknown_or_disabled(scheme: &str) -> ConnectError {
    let feature = match scheme {
        "postgres" | "postgresql" => "postgres",
        "mysql" | "mariadb" => "mysql",
        "sqlite" => "sqlite",
        _ => return ConnectError::UnknownScheme { scheme: scheme.into() },
    };
    ConnectError::FeatureDisabled { scheme: scheme.into(), feature }
}

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
mod by_url {
    use std::str::FromStr;
    use std::time::Duration;

    use super::ConnectError;
    #[cfg(feature = "mysql")]
    use crate::mysql::MySqlPersistence;
    #[cfg(feature = "postgres")]
    use crate::postgres::PostgresPersistence;
    #[cfg(feature = "sqlite")]
    use crate::sqlite::SqlitePersistence;

    #[cfg(feature = "postgres")]
    pub(super) async fn postgres(url: &str) -> Result<PostgresPersistence, ConnectError> {
        let mut builder = PostgresPersistence::builder();
        let url = take_parameters(url, POSTGRES, |name, value| {
            builder = match name {
                "table" => builder.clone().table(value),
                "max_connections" => builder.clone().max_connections(number(name, value)?),
                "statement_timeout_ms" => builder.clone().statement_timeout(millis(name, value)?),
                "lock_timeout_ms" => builder.clone().lock_timeout(millis(name, value)?),
                "acquire_timeout_ms" => builder.clone().acquire_timeout(millis(name, value)?),
                _ => return Ok(false),
            };
            Ok(true)
        })?;
        Ok(builder.connect(&url).await?)
    }

    #[cfg(feature = "mysql")]
    pub(super) async fn mysql(url: &str) -> Result<MySqlPersistence, ConnectError> {
        let mut builder = MySqlPersistence::builder();
        let url = take_parameters(url, MYSQL, |name, value| {
            builder = match name {
                "table" => builder.clone().table(value),
                "max_connections" => builder.clone().max_connections(number(name, value)?),
                "statement_timeout_ms" => builder.clone().statement_timeout(millis(name, value)?),
                "lock_timeout_ms" => builder.clone().lock_timeout(millis(name, value)?),
                "acquire_timeout_ms" => builder.clone().acquire_timeout(millis(name, value)?),
                _ => return Ok(false),
            };
            Ok(true)
        })?;
        Ok(builder.connect(&url).await?)
    }

    #[cfg(feature = "sqlite")]
    pub(super) async fn sqlite(url: &str) -> Result<SqlitePersistence, ConnectError> {
        let mut builder = SqlitePersistence::builder();
        let url = take_parameters(url, SQLITE, |name, value| {
            builder = match name {
                "table" => builder.clone().table(value),
                "readers" => builder.clone().readers(number(name, value)?),
                "busy_timeout_ms" => builder.clone().busy_timeout(millis(name, value)?),
                "acquire_timeout_ms" => builder.clone().acquire_timeout(millis(name, value)?),
                _ => return Ok(false),
            };
            Ok(true)
        })?;
        Ok(builder.connect(&url).await?)
    }

    /// What the drivers understand. They would pass over anything else in silence, or say it in a log, and a table whose
    /// name was misspelled would be another table.
    #[cfg(feature = "postgres")]
    const POSTGRES: &[&str] = &[
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ];
    #[cfg(feature = "mysql")]
    const MYSQL: &[&str] = &[
        "sslmode",
        "ssl-mode",
        "sslca",
        "ssl-ca",
        "charset",
        "collation",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "socket",
        "timezone",
        "time-zone",
    ];
    #[cfg(feature = "sqlite")]
    const SQLITE: &[&str] = &["mode", "cache", "immutable", "vfs"];

    /// Gives `take` each parameter of the URL, and gives back the URL with those that it did not take, which must be
    /// `drivers`.
    fn take_parameters(
        url: &str,
        drivers: &[&str],
        mut take: impl FnMut(&str, &str) -> Result<bool, ConnectError>,
    ) -> Result<String, ConnectError> {
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut left = String::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if take(name, value)? {
                continue;
            }
            // Postgres has a form `options[name]=value`.
            let is_drivers = drivers.contains(&name.split('[').next().unwrap_or(name));
            if !is_drivers {
                // It is not repeated: a password that should have been encoded may have got there.
                return Err(ConnectError::Config(format!(
                    "the URL has an unknown parameter; see db_backends::connect for those that are known, beside the \
                     driver's {}",
                    drivers.join(", ")
                )));
            }
            left.push(if left.is_empty() { '?' } else { '&' });
            left.push_str(pair);
        }
        Ok(format!("{address}{left}"))
    }

    fn number<N: FromStr>(name: &str, value: &str) -> Result<N, ConnectError> {
        value.parse().map_err(|_| ConnectError::Config(format!("{name} is not a whole number, or too large")))
    }

    fn millis(name: &str, value: &str) -> Result<Duration, ConnectError> {
        number(name, value).map(Duration::from_millis)
    }
}
