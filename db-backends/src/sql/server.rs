//! The parts that the servers share: their settings, their connections, and what bounds a write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use session_core::PersistenceError;
use sqlx::{Connection as _, Database, Execute as _, Executor, IntoArguments, Pool, SqlStr, query_with};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::sql::checkout::{Checkout, FromDriver, Work};
use crate::sql::connections::{Connections, Usage};
use crate::sql::connector::{Arguments, Connection, Connector, Query};
use crate::sql::credentials::Provider;
use crate::sql::error::DriverErrors;
use crate::sql::own_pool::OwnPool;
use crate::sql::primary::Primary;
use crate::sql::run_to_end::{GRACE_TO_CONNECT, run_to_end};
use crate::sql::table::TableName;
use crate::url;

/// The settings of a server's builder.
#[derive(Clone, Debug)]
pub(crate) struct ServerSettings {
    pub(crate) table: Option<String>,
    pub(crate) statement_timeout: Duration,
    pub(crate) lock_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    pub(crate) max_connections: u16,
    pub(crate) credentials: Option<Provider>,
    /// The server may ask for the password as it is. MySQL only.
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "only MySQL asks so"))]
    pub(crate) cleartext_password: bool,
    /// The answer to whether a pooler stands before the server. `None` if it is to be found out.
    pub(crate) behind_pooler: Option<bool>,
}

impl ServerSettings {
    pub(crate) const DEFAULT: Self = Self {
        table: None,
        statement_timeout: Duration::from_secs(5),
        lock_timeout: Duration::from_secs(3),
        acquire_timeout: Duration::from_secs(5),
        max_connections: 10,
        credentials: None,
        cleartext_password: false,
        behind_pooler: None,
    };

    /// Sets what a parameter of a URL says. Returns `false` if there is no setting of this name.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<bool, PersistenceError> {
        match name {
            "table" => self.table = Some(value.to_owned()),
            "max_connections" => self.max_connections = url::number(name, value)?,
            "statement_timeout_ms" => self.statement_timeout = url::millis(name, value)?,
            "lock_timeout_ms" => self.lock_timeout = url::millis(name, value)?,
            "acquire_timeout_ms" => self.acquire_timeout = url::millis(name, value)?,
            "password_file" => {
                let path = url::decoded(value).ok_or_else(|| {
                    PersistenceError::Config("password_file is no percent-encoded path".to_owned())
                })?;
                self.credentials = Some(Provider::file(path.into()));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(crate) fn table(&self) -> Result<TableName, PersistenceError> {
        TableName::parse_or_default(self.table.as_deref())
    }

    /// Connects over connections of our own. Waits for the server to answer on one. `begin` begins a
    /// transaction with these settings.
    pub(crate) async fn connect<C: Connector>(
        &self,
        connector: C,
        begin: SqlStr,
    ) -> Result<ServerConnections<C>, PersistenceError> {
        let pool = OwnPool::new(connector, self.max_connections.max(1), self.acquire_timeout);
        drop(pool.checkout().await?);
        Ok(ServerConnections {
            pool: Pooled::Own(pool),
            begin_reading: C::begin_reading(&begin),
            begin,
            patience: self.acquire_timeout,
            max_connections: self.max_connections.max(1).into(),
        })
    }

    /// Uses an application's pool. `begin` begins a transaction with these settings.
    pub(crate) fn use_pool<C: Connector>(
        &self,
        pool: Pool<C::Database>,
        begin: SqlStr,
    ) -> ServerConnections<C> {
        let is_pooled = Arc::new(OnceCell::new_with(self.behind_pooler));
        let max_connections = pool.options().get_max_connections();
        ServerConnections {
            pool: Pooled::Application { pool, is_pooled, primary: Arc::default() },
            begin_reading: C::begin_reading(&begin),
            begin,
            patience: self.acquire_timeout,
            max_connections,
        }
    }
}

/// The connections to a server.
pub(crate) struct ServerConnections<C: Connector> {
    pool: Pooled<C>,
    /// The statement that begins a transaction with the settings of the builder.
    begin: SqlStr,
    /// The same for a transaction to read in.
    begin_reading: SqlStr,
    /// The time that a transaction has to begin. Behind a pooler, it may wait for a connection to the server.
    patience: Duration,
    max_connections: u32,
}

enum Pooled<C: Connector> {
    /// Connections of our own, on which the server limits how long a statement may take.
    Own(OwnPool<C>),
    /// The application's pool. The application sets how long a statement may take there, so a write is a
    /// transaction: nothing commits it when its future was dropped and the grace period is over.
    Application {
        pool: Pool<C::Database>,
        /// A pooler stands between this pool and the server. Found out by the first call.
        is_pooled: Arc<OnceCell<bool>>,
        /// The server that its connections lead to, for the connection that listens.
        primary: Arc<Primary>,
    },
}

#[cfg(feature = "postgres")]
impl<C: Connector> ServerConnections<C> {
    /// Returns another handle to the same connections.
    pub(crate) fn share(&self) -> Self {
        let pool = match &self.pool {
            Pooled::Own(pool) => Pooled::Own(OwnPool(Arc::clone(&pool.0))),
            Pooled::Application { pool, is_pooled, primary } => Pooled::Application {
                pool: pool.clone(),
                is_pooled: Arc::clone(is_pooled),
                primary: Arc::clone(primary),
            },
        };
        Self {
            pool,
            begin: self.begin.clone(),
            begin_reading: self.begin_reading.clone(),
            patience: self.patience,
            max_connections: self.max_connections,
        }
    }

    /// Returns how long a call may wait for a connection.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    /// Returns the connector of our own connections, or else the application's pool.
    pub(crate) fn connector_or_pool(&self) -> Result<&C, &Pool<C::Database>> {
        match &self.pool {
            Pooled::Own(pool) => Ok(&pool.0.connector),
            Pooled::Application { pool, .. } => Err(pool),
        }
    }

    /// Returns `true` unless another server has been found to be the primary since `opened_at`.
    pub(crate) fn leads_to_primary_of(&self, opened_at: Instant) -> bool {
        match &self.pool {
            Pooled::Own(pool) => pool.0.primary.may_use(opened_at),
            Pooled::Application { primary, .. } => primary.may_use(opened_at),
        }
    }
}

impl<C: Connector> ServerConnections<C> {
    async fn checkout(&self) -> Result<Checkout<C>, PersistenceError> {
        match &self.pool {
            Pooled::Own(pool) => pool.checkout().await.map(Checkout::Own),
            Pooled::Application { pool, is_pooled, primary } => {
                let is_pooled = is_pooled.get().is_some_and(|is_pooled| *is_pooled);
                Checkout::from_pool(pool, Some(primary), None, is_pooled.then_some(self.patience)).await
            }
        }
    }

    /// Returns `true` if a pooler stands before the server.
    pub(crate) async fn is_pooled(&self) -> Result<bool, PersistenceError> {
        match &self.pool {
            Pooled::Own(pool) => Ok(pool.is_pooled()),
            Pooled::Application { pool, is_pooled, .. } => {
                if let Some(is_pooled) = is_pooled.get() {
                    return Ok(*is_pooled);
                }
                // A caller that goes must not make the next one connect again.
                let (pool, is_pooled) = (pool.clone(), Arc::clone(is_pooled));
                run_to_end(GRACE_TO_CONNECT, async move {
                    is_pooled.get_or_try_init(|| C::pools_over_pooler(&pool)).await.copied()
                })
                .await
            }
        }
    }
}

/// The way to run a query on a connection.
type Run<C, T> =
    for<'c> fn(&'c mut Connection<C>, Query<<C as Connector>::Database>) -> Work<'c, T, sqlx::Error>;

/// The effect of a query, which decides if it needs a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It changes nothing.
    None,
    /// It is one statement that writes.
    Write,
    /// It is the first of several statements that write.
    Writes,
}

/// The longest pause before a statement is run again that the server undid for another one.
const MAX_PAUSE: Duration = Duration::from_millis(64);

impl<C: Connector> ServerConnections<C>
where
    for<'c> &'c mut Connection<C>: Executor<'c, Database = C::Database>,
    Arguments<C>: IntoArguments<C::Database> + Clone,
{
    /// Runs a query, in a transaction where it needs one. Runs it again where nothing took effect: on another
    /// connection if the first one was lost; and, if the server undid it for another client's, for as long as a call
    /// may wait for a connection. Among many clients, no fixed number of attempts would be enough.
    async fn run<T: Send + 'static>(
        &self,
        mut query: Query<C::Database>,
        effect: Effect,
        run: impl for<'c> Fn(&'c mut Connection<C>, Query<C::Database>) -> Work<'c, T, sqlx::Error>
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> Result<Result<T, Failure>, PersistenceError> {
        let is_write = effect != Effect::None;
        let arguments = match query.take_arguments() {
            Ok(arguments) => arguments.unwrap_or_default(),
            Err(error) => return Ok(Err(Failure::NotApplied(sqlx::Error::Encode(error)))),
        };
        let sql = query.sql();
        let began = Instant::now();
        let (mut longest_pause, mut lost) = (Duration::from_millis(1), 0);
        loop {
            let is_pooled = self.is_pooled().await?;
            let checkout = self.checkout().await?;
            // It may have been noticed at this moment. In a pooler, a prepared statement may be another client's.
            let is_pooled = is_pooled || self.is_pooled().await?;
            let query = query_with(sql.clone(), arguments.clone()).persistent(!is_pooled);
            let is_application = matches!(self.pool, Pooled::Application { .. });
            let needs_transaction = is_pooled || effect == Effect::Writes || is_write && is_application;
            let begin = if is_write { &self.begin } else { &self.begin_reading };
            let begin = needs_transaction.then(|| begin.clone());
            // In all, a call waits no longer for a connection than it may, or not by much.
            let patience = self.patience.saturating_sub(began.elapsed()).max(self.patience / 5);
            let run = run.clone();
            let done = checkout
                .perform(move |connection| Box::pin(attempt::<C, T>(connection, begin, patience, query, run)))
                .await;
            // A statement that changes nothing has no effect.
            let done = done.map_err(|failure| if is_write { failure } else { failure.of_a_read() });
            match &done {
                Err(failure) if failure.is_undone(&C::ERRORS) && began.elapsed() < self.patience => {
                    // The others are in the same place, so the pauses differ.
                    tokio::time::sleep(longest_pause.mul_f64(fastrand::f64())).await;
                    longest_pause = (longest_pause * 2).min(MAX_PAUSE);
                }
                Err(failure) if failure.is_connection_error(&C::ERRORS) && lost == 0 => lost += 1,
                _ => return Ok(done),
            }
        }
    }
}

impl<C: Connector> Connections for ServerConnections<C>
where
    for<'c> &'c mut Connection<C>: Executor<'c, Database = C::Database>,
    Arguments<C>: IntoArguments<C::Database> + Clone,
{
    type Database = C::Database;
    type Connector = C;

    async fn reader(&self) -> Result<Checkout<C>, PersistenceError> {
        self.is_pooled().await?;
        self.checkout().await
    }

    async fn writer(&self) -> Result<Checkout<C>, PersistenceError> {
        self.reader().await
    }

    async fn read(
        &self,
        query: Query<C::Database>,
        table: &TableName,
    ) -> Result<Option<<C::Database as Database>::Row>, PersistenceError> {
        let fetch: Run<C, _> = |connection, query| connection.fetch_optional(query);
        let read = self.run(query, Effect::None, fetch);
        read.await?.map_err(|failure| failure.translate(&C::ERRORS, table))
    }

    async fn read_all(
        &self,
        query: Query<C::Database>,
        table: &TableName,
    ) -> Result<Vec<<C::Database as Database>::Row>, PersistenceError> {
        let fetch: Run<C, _> = |connection, query| connection.fetch_all(query);
        let read = self.run(query, Effect::None, fetch);
        read.await?.map_err(|failure| failure.translate(&C::ERRORS, table))
    }

    async fn write(&self, query: Query<C::Database>, table: &TableName) -> Result<u64, PersistenceError> {
        let execute: Run<C, _> = |connection, query| connection.execute(query);
        let write = self.run(query, Effect::Write, execute);
        let done = write.await?.map_err(|failure| failure.translate(&C::ERRORS, table))?;
        Ok(C::rows_affected(&done))
    }

    async fn write_all(
        &self,
        query: Query<C::Database>,
        is_transaction: bool,
        run: impl for<'c> Fn(
            &'c mut Connection<C>,
            Query<C::Database>,
        ) -> Work<'c, Vec<<C::Database as Database>::Row>, sqlx::Error>
        + Clone
        + Send
        + Sync
        + 'static,
        table: &TableName,
    ) -> Result<Vec<<C::Database as Database>::Row>, PersistenceError> {
        let effect = if is_transaction { Effect::Writes } else { Effect::Write };
        self.run(query, effect, run).await?.map_err(|failure| failure.translate(&C::ERRORS, table))
    }

    fn usage(&self) -> Usage {
        let is_application = matches!(self.pool, Pooled::Application { .. });
        let open = match &self.pool {
            Pooled::Own(pool) => pool.0.open_connections(),
            Pooled::Application { pool, .. } => pool.size(),
        };
        Usage { is_application, max_connections: self.max_connections, open }
    }

    async fn close(&self) {
        if let Pooled::Own(pool) = &self.pool {
            pool.close().await;
        }
    }
}

/// Runs a query once, in a transaction if there is a statement to begin one.
async fn attempt<C: Connector, T>(
    connection: &mut Connection<C>,
    begin: Option<SqlStr>,
    patience: Duration,
    query: Query<C::Database>,
    run: impl for<'c> Fn(&'c mut Connection<C>, Query<C::Database>) -> Work<'c, T, sqlx::Error> + Send,
) -> Result<T, Failure> {
    let Some(begin) = begin else { return run(connection, query).await.map_err(Failure::Unknown) };
    // The driver's error for a pool: no connection became free in time.
    let begun =
        timeout(patience, connection.begin_with(begin)).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    let mut transaction = begun?;
    match run(&mut *transaction, query).await {
        Ok(done) => {
            transaction.commit().await.map_err(Failure::Unknown)?;
            Ok(done)
        }
        Err(error) => {
            // If this fails too, the connection goes, and the transaction with it.
            let _ = transaction.rollback().await;
            Err(Failure::NotApplied(error))
        }
    }
}

/// The error of a query, and the part of it that failed.
enum Failure {
    /// Before anything took effect.
    NotApplied(sqlx::Error),
    /// In the commit, or in a statement that commits itself. The error says whether it took effect.
    Unknown(sqlx::Error),
}

impl Failure {
    fn of_a_read(self) -> Self {
        let (Self::NotApplied(error) | Self::Unknown(error)) = self;
        Self::NotApplied(error)
    }

    /// Returns `true` if the server undid the statement for another client's.
    fn is_undone(&self, errors: &DriverErrors) -> bool {
        errors.is_undone(self.driver_error())
    }

    /// Returns `true` if the connection was the reason, and nothing took effect.
    fn is_connection_error(&self, errors: &DriverErrors) -> bool {
        match self {
            Self::NotApplied(error) => errors.is_lost(error),
            Self::Unknown(error) => errors.is_not_primary(error),
        }
    }

    fn translate(&self, errors: &DriverErrors, table: &TableName) -> PersistenceError {
        match self {
            Self::NotApplied(error) => errors.reading(error, table),
            Self::Unknown(error) => errors.writing(error, table),
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::NotApplied(error)
    }
}

impl FromDriver for Failure {
    fn driver_error(&self) -> &sqlx::Error {
        match self {
            Self::NotApplied(error) | Self::Unknown(error) => error,
        }
    }
}
