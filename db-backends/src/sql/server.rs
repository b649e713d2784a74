//! The parts that the servers share: their settings, their connections, and what bounds a write.

use std::time::Duration;

use session_core::PersistenceError;
use sqlx::{Connection as _, Database, Executor, IntoArguments, Pool, SqlStr};

use crate::sql::checkout::{Checkout, FromDriver};
use crate::sql::connections::Connections;
use crate::sql::connector::{Arguments, Connection, Connector, Query};
use crate::sql::own_pool::OwnPool;
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
}

impl ServerSettings {
    pub(crate) const DEFAULT: Self = Self {
        table: None,
        statement_timeout: Duration::from_secs(5),
        lock_timeout: Duration::from_secs(3),
        acquire_timeout: Duration::from_secs(5),
        max_connections: 10,
    };

    /// Sets what a parameter of a URL says. Returns `false` if there is no setting of this name.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<bool, PersistenceError> {
        match name {
            "table" => self.table = Some(value.to_owned()),
            "max_connections" => self.max_connections = url::number(name, value)?,
            "statement_timeout_ms" => self.statement_timeout = url::millis(name, value)?,
            "lock_timeout_ms" => self.lock_timeout = url::millis(name, value)?,
            "acquire_timeout_ms" => self.acquire_timeout = url::millis(name, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(crate) fn table(&self) -> Result<TableName, PersistenceError> {
        TableName::parse_or_default(self.table.as_deref())
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

impl<C: Connector> Connections for ServerConnections<C>
where
    for<'c> &'c mut Connection<C>: Executor<'c, Database = C::Database>,
    Arguments<C>: IntoArguments<C::Database>,
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
        self.checkout().await?.read(query, table).await
    }

    async fn read_all(
        &self,
        query: Query<C::Database>,
        table: &TableName,
    ) -> Result<Vec<<C::Database as Database>::Row>, PersistenceError> {
        self.checkout().await?.read_all(query, table).await
    }

    async fn write(&self, query: Query<C::Database>, table: &TableName) -> Result<u64, PersistenceError> {
        let checkout = self.checkout().await?;
        let Self::Application { begin, .. } = self else { return checkout.write(query, table).await };
        let begin = begin.clone();
        let written =
            checkout.perform(move |connection| Box::pin(in_transaction::<C>(connection, begin, query))).await;
        written.map(|done| C::rows_affected(&done)).map_err(|failure| match failure {
            Failure::BeforeCommit(error) => C::ERRORS.reading(&error, table),
            Failure::Commit(error) => C::ERRORS.writing(&error, table),
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
            transaction.commit().await.map_err(Failure::Commit)?;
            Ok(done)
        }
        Err(error) => {
            // If this fails too, the connection goes, and the transaction with it.
            let _ = transaction.rollback().await;
            Err(Failure::BeforeCommit(error))
        }
    }
}

/// The error of a transaction, and the part of it that failed.
enum Failure {
    /// Before the commit was sent: nothing took effect.
    BeforeCommit(sqlx::Error),
    /// In the commit. The error says whether it took effect.
    Commit(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::BeforeCommit(error)
    }
}

impl FromDriver for Failure {
    fn driver_error(&self) -> &sqlx::Error {
        match self {
            Self::BeforeCommit(error) | Self::Commit(error) => error,
        }
    }
}
