//! The parts that the servers share: their settings, their connections, and what bounds a write.

use std::time::Duration;

use session_core::PersistenceError;
use sqlx::{Connection as _, Database, Execute as _, Executor, IntoArguments, Pool, SqlStr, query_with};

use crate::sql::checkout::{Checkout, FromDriver};
use crate::sql::connections::Connections;
use crate::sql::connector::{Arguments, Connection, Connector, Query};
use crate::sql::credentials::{Credentials, Provider};
use crate::sql::errors::DriverErrors;
use crate::sql::own_pool::OwnPool;
use crate::sql::session_check::Unfit;
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
    pub(crate) cleartext_password: bool,
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

    /// Asks for the credentials of a new connection, if they are not those of the URL.
    pub(crate) async fn login(provider: Option<&Provider>) -> Result<Option<Credentials>, Unfit> {
        match provider {
            Some(provider) => provider.ask().await.map(Some).map_err(Unfit::NoPassword),
            None => Ok(None),
        }
    }

    /// Connects over connections of our own. Waits for the server to answer on one.
    pub(crate) async fn connect<C: Connector>(
        &self,
        connector: C,
    ) -> Result<ServerConnections<C>, PersistenceError> {
        let pool = OwnPool::new(connector, self.max_connections.max(1), self.acquire_timeout);
        drop(pool.checkout().await?);
        Ok(ServerConnections::Own(pool))
    }
}

/// The connections to a server.
pub(crate) enum ServerConnections<C: Connector> {
    /// Connections of our own, on which the server limits how long a statement may take.
    Own(OwnPool<C>),
    /// The application's pool, and the statement that begins a transaction there.
    ///
    /// The application sets how long a statement may take, so a write is a transaction: nothing commits it
    /// when its future was dropped and the grace period is over.
    Application { pool: Pool<C::Database>, begin: SqlStr },
}

impl<C: Connector> ServerConnections<C> {
    async fn checkout(&self) -> Result<Checkout<C>, PersistenceError> {
        match self {
            Self::Own(pool) => pool.checkout().await.map(Checkout::Own),
            Self::Application { pool, .. } => Checkout::from_pool(pool, None).await,
        }
    }
}

impl<C: Connector> ServerConnections<C>
where
    Arguments<C>: IntoArguments<C::Database> + Clone,
{
    /// Attempts `work`, and once more on another connection if the first one was lost and nothing took
    /// effect.
    async fn repeated<T, E, F>(
        &self,
        mut query: Query<C::Database>,
        work: impl Fn(Checkout<C>, Query<C::Database>) -> F + Send + Sync,
    ) -> Result<Result<T, E>, PersistenceError>
    where
        E: Attempted,
        F: Future<Output = Result<T, E>> + Send,
    {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode);
        let arguments = match arguments {
            Ok(arguments) => arguments.unwrap_or_default(),
            Err(error) => return Ok(Err(E::from(error))),
        };
        let sql = query.sql();
        let again = query_with(sql.clone(), arguments.clone());
        match work(self.checkout().await?, query_with(sql, arguments)).await {
            Err(error) if error.may_be_repeated(&C::ERRORS) => Ok(work(self.checkout().await?, again).await),
            done => Ok(done),
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
        self.checkout().await
    }

    async fn writer(&self) -> Result<Checkout<C>, PersistenceError> {
        self.checkout().await
    }

    async fn read(
        &self,
        query: Query<C::Database>,
        table: &TableName,
    ) -> Result<Option<<C::Database as Database>::Row>, PersistenceError> {
        let read = self.repeated(query, |checkout, query| {
            checkout.perform(move |connection| connection.fetch_optional(query))
        });
        read.await?.map_err(|error| C::ERRORS.reading(&error, table))
    }

    async fn read_all(
        &self,
        query: Query<C::Database>,
        table: &TableName,
    ) -> Result<Vec<<C::Database as Database>::Row>, PersistenceError> {
        let read = self.repeated(query, |checkout, query| {
            checkout.perform(move |connection| connection.fetch_all(query))
        });
        read.await?.map_err(|error| C::ERRORS.reading(&error, table))
    }

    async fn write(&self, query: Query<C::Database>, table: &TableName) -> Result<u64, PersistenceError> {
        let written = match self {
            Self::Own(_) => {
                let write = self.repeated(query, |checkout, query| async move {
                    let done = checkout.perform(move |connection| connection.execute(query)).await;
                    done.map_err(Failure::Statement)
                });
                write.await?
            }
            Self::Application { begin, .. } => {
                let write = self.repeated(query, |checkout, query| {
                    let begin = begin.clone();
                    checkout
                        .perform(move |connection| Box::pin(in_transaction::<C>(connection, begin, query)))
                });
                write.await?
            }
        };
        written.map(|done| C::rows_affected(&done)).map_err(|failure| match failure {
            Failure::BeforeCommit(error) => C::ERRORS.reading(&error, table),
            Failure::Statement(error) => C::ERRORS.writing(&error, table),
        })
    }

    async fn close(&self) {
        if let Self::Own(pool) = self {
            pool.close().await;
        }
    }
}

async fn in_transaction<C: Connector>(
    connection: &mut Connection<C>,
    begin: SqlStr,
    query: Query<C::Database>,
) -> Result<<C::Database as Database>::QueryResult, Failure>
where
    for<'c> &'c mut Connection<C>: Executor<'c, Database = C::Database>,
    Arguments<C>: IntoArguments<C::Database>,
{
    let mut transaction = connection.begin_with(begin).await.map_err(Failure::BeforeCommit)?;
    match query.execute(&mut *transaction).await {
        Ok(done) => {
            transaction.commit().await.map_err(Failure::Statement)?;
            Ok(done)
        }
        Err(error) => {
            // If this fails too, the connection goes, and the transaction with it.
            let _ = transaction.rollback().await;
            Err(Failure::BeforeCommit(error))
        }
    }
}

/// The error of a write, and the part of it that failed.
enum Failure {
    /// Before the commit was sent: nothing took effect.
    BeforeCommit(sqlx::Error),
    /// In the commit, or in a statement that commits itself. The error says whether it took effect.
    Statement(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::BeforeCommit(error)
    }
}

impl FromDriver for Failure {
    fn driver_error(&self) -> &sqlx::Error {
        match self {
            Self::BeforeCommit(error) | Self::Statement(error) => error,
        }
    }
}

/// A failed attempt, which may make sense on another connection.
trait Attempted: FromDriver {
    /// Returns `true` if the connection was the reason, and nothing took effect.
    fn may_be_repeated(&self, errors: &DriverErrors) -> bool;
}

/// The error of a statement that changes nothing.
impl Attempted for sqlx::Error {
    fn may_be_repeated(&self, errors: &DriverErrors) -> bool {
        errors.is_lost(self)
    }
}

impl Attempted for Failure {
    fn may_be_repeated(&self, errors: &DriverErrors) -> bool {
        match self {
            Self::BeforeCommit(error) => errors.is_lost(error),
            Self::Statement(error) => errors.is_not_primary(error),
        }
    }
}
