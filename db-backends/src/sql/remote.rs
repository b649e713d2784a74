//! What the servers have in common: how connections are had, and how a write is bounded.

use std::time::Duration;

use session_core::PersistenceError;
use sqlx::{Connection as _, Database, Executor, IntoArguments, Pool, SqlStr};

use crate::sql::Query;
use crate::sql::connections::{Arguments, Connection, Lanes, Lease, Link, OfDriver};
use crate::sql::table::TableName;

/// The connections to a server.
pub(crate) enum Remote<L: Link> {
    /// Our own, for which the server was told how long a statement may take.
    Own(Lanes<L>),
    /// A pool that the application has, and how a transaction begins there.
    ///
    /// How long a statement may take is the application's to say, so a write is a transaction: nothing commits it when
    /// its caller has gone and the grace is over.
    Pool { pool: Pool<L::Database>, begin: SqlStr },
}

impl<L: Link> Remote<L> {
    pub(crate) fn own(link: L, count: u16, patience: Duration) -> Self {
        Self::Own(Lanes::new(link, count, patience))
    }

    pub(crate) async fn lease(&self) -> Result<Lease<L>, PersistenceError> {
        match self {
            Self::Own(lanes) => lanes.lease().await,
            Self::Pool { pool, .. } => Lease::from_pool(pool, None).await,
        }
    }

    pub(crate) async fn close(&self) {
        if let Self::Own(lanes) = self {
            lanes.close().await;
        }
    }
}

impl<L: Link> Remote<L>
where
    for<'c> &'c mut Connection<L>: Executor<'c, Database = L::Database>,
    Arguments<L>: IntoArguments<L::Database>,
{
    /// Runs a statement that writes, and returns how many rows it matched.
    pub(crate) async fn write(
        &self,
        query: Query<L::Database>,
        table: &TableName,
    ) -> Result<u64, PersistenceError> {
        let lease = self.lease().await?;
        let Self::Pool { begin, .. } = self else { return lease.write(query, table).await };
        let begin = begin.clone();
        let written =
            lease.perform(move |connection| Box::pin(in_transaction::<L>(connection, begin, query))).await;
        written.map(|done| L::rows_affected(&done)).map_err(|failure| match failure {
            Failure::BeforeCommit(error) => L::DIALECT.reading(&error, table),
            Failure::Commit(error) => L::DIALECT.writing(&error, table),
        })
    }
}

async fn in_transaction<L: Link>(
    connection: &mut Connection<L>,
    begin: SqlStr,
    query: Query<L::Database>,
) -> Result<<L::Database as Database>::QueryResult, Failure>
where
    for<'c> &'c mut Connection<L>: Executor<'c, Database = L::Database>,
    Arguments<L>: IntoArguments<L::Database>,
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

/// Where a transaction failed.
enum Failure {
    /// Nothing happened.
    BeforeCommit(sqlx::Error),
    /// What happened is for the error to tell.
    Commit(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::BeforeCommit(error)
    }
}

impl OfDriver for Failure {
    fn error(&self) -> &sqlx::Error {
        match self {
            Self::BeforeCommit(error) | Self::Commit(error) => error,
        }
    }
}
