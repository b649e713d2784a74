//! The settings of a Postgres database, and how it is connected to with them.

use std::path::PathBuf;
use std::time::Duration;

use session_core::{BoxError, PersistenceError};
use sqlx::{PgPool, Postgres};

use super::connect::{PostgresConnector, begin};
use crate::sql::credentials::{Credentials, Provider};
use crate::sql::persistence::SqlPersistence;
use crate::sql::run_to_end::GRACE;
use crate::sql::server::{ServerConnections, ServerSettings};
use crate::sql::table::TableName;
use crate::url;

impl SqlPersistence<Postgres> {
    /// Connects to the database of `url` with the defaults. See [`PostgresBuilder::connect`].
    ///
    /// ```no_run
    /// # use db_backends::postgres::PostgresPersistence;
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use session_core::Persistence as _;
    ///
    /// let db = PostgresPersistence::connect("postgres://app:password@localhost/app").await?;
    /// db.migrate().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`PostgresBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// When this future is dropped, a task may still open a connection, which it then closes.
    pub async fn connect(url: &str) -> Result<Self, PersistenceError> {
        Self::builder().connect(url).await
    }

    /// Returns a builder, for another table name, other timeouts, another number of connections, or an
    /// existing pool.
    pub const fn builder() -> PostgresBuilder {
        PostgresBuilder::new()
    }

    /// Uses an existing pool, and the table `sessions`. See [`PostgresBuilder::on_pool`], which takes another
    /// name.
    #[must_use]
    pub fn from_pool(pool: PgPool) -> Self {
        PostgresBuilder::new().on_pool_with(pool, TableName::default())
    }
}

/// A builder for a [`PostgresPersistence`](super::PostgresPersistence).
// The setters stand in both servers' builders: what their documentation says differs, and so does the builder in its examples.
#[derive(Clone, Debug)]
#[must_use]
pub struct PostgresBuilder(ServerSettings);

impl PostgresBuilder {
    const fn new() -> Self {
        Self(ServerSettings::DEFAULT)
    }

    /// Sets the name of the session table: 1 to 48 characters of `[A-Za-z0-9_]`, not beginning with a digit
    /// or `sqlite_`. Defaults to `sessions`. It is looked for in the schemas of the connection's
    /// `search_path`, and made in the first.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.0.table = Some(name.into());
        self
    }

    /// Sets how long a statement may take before the server ends it and it fails with
    /// [`PersistenceError::Busy`], even when its future was dropped. Defaults to 5 s.
    pub const fn statement_timeout(mut self, statement_timeout: Duration) -> Self {
        self.0.statement_timeout = statement_timeout;
        self
    }

    /// Sets how long a statement waits for another client's lock before it fails with
    /// [`PersistenceError::Busy`]. Defaults to 3 s.
    pub const fn lock_timeout(mut self, lock_timeout: Duration) -> Self {
        self.0.lock_timeout = lock_timeout;
        self
    }

    /// Sets how long a call waits for a connection: for its turn, and for the server's answer. Defaults to 5
    /// s each. An existing pool has a timeout of its own.
    pub const fn acquire_timeout(mut self, acquire_timeout: Duration) -> Self {
        self.0.acquire_timeout = acquire_timeout;
        self
    }

    /// Sets the maximum number of connections, at least 1. Defaults to 10. An existing pool has a number of
    /// its own.
    pub const fn max_connections(mut self, max_connections: u16) -> Self {
        self.0.max_connections = max_connections;
        self
    }

    /// Asks `provider` for the password of each new connection, and for the user if that changes as well: for
    /// tokens and passwords that expire or are rotated. Defaults to those of the URL. A connection that is
    /// open stays so: the server checks a password only when it opens.
    ///
    /// The provider has [`acquire_timeout`](Self::acquire_timeout) to answer, and should keep its answer for
    /// as long as it is valid, because a hundred connections may be opened at once. The text of its error is
    /// shown, so it must not contain the password. `docs/deployments.md` has the usual clouds.
    ///
    /// ```no_run
    /// # use db_backends::postgres::PostgresPersistence;
    /// # async fn new_token() -> Result<String, std::io::Error> { Ok("token".into()) }
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use db_backends::Credentials;
    ///
    /// let db = PostgresPersistence::builder()
    ///     .credentials(|| async { Ok::<_, std::io::Error>(Credentials::new(new_token().await?)) })
    ///     .connect("postgres://app@db.internal/app?sslmode=verify-full")
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn credentials<F, Fut, E>(mut self, provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.0.credentials = Some(Provider::new(provider));
        self
    }

    /// Reads the password from this file for each new connection, so that a rotated one is used without a
    /// restart. A line break at its end is left out. Defaults to the password of the URL.
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.credentials = Some(Provider::file(path.into()));
        self
    }

    /// Says whether a connection pooler, such as PgBouncer, stands between this store and the server. Defaults
    /// to finding out, which works for those that refuse or drop the settings of a connection, as PgBouncer
    /// does, and costs an existing pool one more connection for a moment.
    ///
    /// Behind a pooler, in session or transaction mode, every statement is a transaction of its own, which
    /// sets its own timeouts and prepares nothing under a name. That takes four round trips instead of one. A call
    /// that waits for one of the pooler's connections to the server, for as long as
    /// [`acquire_timeout`](Self::acquire_timeout) says, has sent nothing yet, and fails with an error that says so.
    /// With `false`, a connection without the settings that it was opened with is an error.
    pub const fn behind_pooler(mut self, behind_pooler: bool) -> Self {
        self.0.behind_pooler = Some(behind_pooler);
        self
    }

    /// Connects to the database of `url`: `postgres://user:password@host:5432/database`. The server must
    /// answer; more connections are made when they are needed.
    ///
    /// Several hosts, `postgres://user:password@a,b:5433/database`, are tried in this order, beginning with the
    /// last one that took writes; one that takes none is not used. `?host=/run/postgresql` connects by a
    /// socket, and `[::1]` is a literal address.
    ///
    /// `?sslmode=require`, `verify-ca` and `verify-full` need the feature `postgres-tls`;
    /// `?options=-c%20search_path=app` chooses a schema.
    ///
    /// # Errors
    ///
    /// - [`PersistenceError::Config`] if the URL or the table name is bad, or a connection pooler does not keep
    ///   what is needed.
    /// - [`PersistenceError::Unavailable`] if the server does not answer, or does not let this user in.
    ///
    /// # Cancel safety
    ///
    /// When this future is dropped, a task may still open a connection, which it then closes.
    pub async fn connect(self, url: &str) -> Result<SqlPersistence<Postgres>, PersistenceError> {
        let table = self.0.table()?;
        let connector = PostgresConnector::new(url, &self.0)?;
        let database = connector.database();
        let begin = connector.begin();
        let connections = self.0.connect(connector, begin).await?;
        Ok(self.finish(connections, table).in_database(database.as_deref()))
    }

    /// Connects to the database of `url`, with the settings that its parameters name.
    pub(crate) async fn connect_by_url(url: &str) -> Result<SqlPersistence<Postgres>, PersistenceError> {
        let mut builder = Self::new();
        let url = url::take_parameters(url, DRIVER_PARAMETERS, |name, value| match name {
            "behind_pooler" => {
                builder.0.behind_pooler = Some(url::flag(name, value)?);
                Ok(true)
            }
            _ => builder.0.set(name, value),
        })?;
        builder.connect(&url).await
    }

    /// Uses an existing pool. Its connections are used as they are. Every write is a transaction of its own,
    /// which takes two more round trips, with the timeouts of this builder.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] if the table name is bad.
    pub fn on_pool(self, pool: PgPool) -> Result<SqlPersistence<Postgres>, PersistenceError> {
        let table = self.0.table()?;
        Ok(self.on_pool_with(pool, table))
    }

    fn on_pool_with(&self, pool: PgPool, table: TableName) -> SqlPersistence<Postgres> {
        let begin = begin(&self.0);
        let options = pool.connect_options();
        self.finish(self.0.use_pool(pool, begin), table).in_database(options.get_database())
    }

    fn finish(
        &self,
        connections: ServerConnections<PostgresConnector>,
        table: TableName,
    ) -> SqlPersistence<Postgres> {
        // The statement may be sent when its grace period is nearly over. The commit takes some time of its
        // own.
        let bound = self.0.statement_timeout.saturating_add(GRACE + Duration::from_secs(5));
        // The commit of a transaction that notifies waits for a lock of the whole database, and statement_timeout does not
        // hold there.
        SqlPersistence::new(connections, table, bound).with_report_bound(self.0.lock_timeout)
    }
}

/// The parameters of a URL that the driver understands.
const DRIVER_PARAMETERS: &[&str] = &[
    "target_session_attrs",
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
