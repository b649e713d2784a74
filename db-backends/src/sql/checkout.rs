//! The right to use a connection, and what is done with it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use session_core::PersistenceError;
use sqlx::pool::PoolConnection;
use sqlx::{Database, Executor, IntoArguments, Pool};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::sql::connector::{Arguments, Connection, Connector, Query};
use crate::sql::own_pool::{OwnCheckout, Witness};
use crate::sql::primary::Primary;
use crate::sql::run_to_end::{GRACE, GRACE_TO_CONNECT, run_to_end};
use crate::sql::session_check::ServerId;
use crate::sql::table::TableName;

/// The right to use a connection.
pub(crate) enum Checkout<C: Connector> {
    /// A connection of our own.
    Own(OwnCheckout<C>),
    /// A connection of the application's pool.
    Application(ApplicationCheckout<C>),
}

impl<C: Connector> Checkout<C> {
    /// Takes a connection from the application's pool, within `behind_pooler` if a pooler stands before the server: there,
    /// the pool's own checks wait for a connection to the server as well. The checkout keeps `permit` until the
    /// connection is back.
    ///
    /// A connection to a server is checked each time, because nothing tells whether it was checked before.
    /// A connection that is broken, or leads to a server that takes no writes, is closed, and the next one is
    /// tried; when all have been closed, a new one. What is learnt of the server is noted in `primary`.
    pub(crate) async fn from_pool(
        pool: &Pool<C::Database>,
        primary: Option<&Arc<Primary>>,
        permit: Option<OwnedSemaphorePermit>,
        behind_pooler: Option<Duration>,
    ) -> Result<Self, PersistenceError> {
        let (pool, primary) = (pool.clone(), primary.cloned());
        let (is_pooled, patience) = (behind_pooler.is_some(), behind_pooler.unwrap_or(Duration::MAX));
        run_to_end(GRACE_TO_CONNECT, async move {
            let found = timeout(patience, Self::find_fit(&pool, primary.as_deref(), permit, is_pooled)).await;
            found.unwrap_or_else(|_| Err(C::ERRORS.connecting(&sqlx::Error::PoolTimedOut)))
        })
        .await
    }

    async fn find_fit(
        pool: &Pool<C::Database>,
        primary: Option<&Primary>,
        mut permit: Option<OwnedSemaphorePermit>,
        is_pooled: bool,
    ) -> Result<Self, PersistenceError> {
        // All that may be there now, and a new one.
        let mut chances = if C::IS_REMOTE { pool.size() } else { 0 };
        loop {
            let connection = pool.acquire().await.map_err(|error| C::ERRORS.connecting(&error))?;
            let mut checkout =
                ApplicationCheckout { connection, is_abandoned: C::IS_REMOTE, permit: permit.take() };
            if C::IS_REMOTE {
                match C::check(&mut checkout.connection, is_pooled).await {
                    Ok(server) => note(primary, server.as_ref()),
                    Err(unfit) if chances == 0 => {
                        return Err(unfit.into_error(|error| C::ERRORS.connecting(error)));
                    }
                    Err(_) => {
                        chances -= 1;
                        permit = checkout.permit.take();
                        continue;
                    }
                }
            }
            checkout.is_abandoned = false;
            return Ok(Self::Application(checkout));
        }
    }

    /// Returns the connection for a statement. Call [`give_back`](Self::give_back) when the statement has
    /// ended; otherwise the connection counts as abandoned.
    fn connection(&mut self) -> sqlx::Result<&mut Connection<C>> {
        match self {
            Self::Own(own) => {
                own.set_abandoned(true);
                own.connection()
            }
            Self::Application(application) => {
                application.is_abandoned = true;
                Ok(&mut application.connection)
            }
        }
    }

    /// Returns a witness to what becomes of the connection's server, if it is a connection of our own.
    fn witness(&self) -> Option<Witness<C>> {
        match self {
            Self::Own(own) => Some(own.witness()),
            Self::Application(_) => None,
        }
    }

    /// Returns the connection to its pool after its statements. `error` is that of the last one, if it had
    /// one.
    fn give_back(mut self, error: Option<&sqlx::Error>) {
        let is_abandoned = error.is_some_and(|error| !C::ERRORS.leaves_connection_usable(error));
        match &mut self {
            Self::Own(own) => {
                own.set_abandoned(is_abandoned);
                if error.is_some_and(|error| C::ERRORS.is_not_primary(error)) {
                    own.leave_server();
                }
            }
            Self::Application(application) => application.is_abandoned = is_abandoned,
        }
    }
}

/// Notes that a connection of an application's pool leads to `server`.
fn note(primary: Option<&Primary>, server: Option<&ServerId>) {
    if let (Some(primary), Some(server)) = (primary, server) {
        // When it was opened is not known. What was opened before now is opened anew, if this is another server.
        primary.found(server, Instant::now());
    }
}

async fn server_is_replaced<C: Connector>(witness: Option<Witness<C>>) {
    match witness {
        Some(witness) => witness.server_is_replaced().await,
        None => std::future::pending().await,
    }
}

/// Returns the error of a statement that was not answered before its server was replaced.
fn server_was_replaced() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the server was replaced"))
}

/// An error that comes from the driver, or carries one that does.
pub(crate) trait FromDriver: From<sqlx::Error> {
    fn driver_error(&self) -> &sqlx::Error;
}

impl FromDriver for sqlx::Error {
    fn driver_error(&self) -> &sqlx::Error {
        self
    }
}

/// Work on a connection.
pub(crate) type Work<'c, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>>;

impl<C: Connector> Checkout<C> {
    /// Does `work` with the connection, to its end, even when the returned future is dropped meanwhile.
    pub(crate) async fn perform<T, E>(
        mut self,
        work: impl for<'c> FnOnce(&'c mut Connection<C>) -> Work<'c, T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: FromDriver + Send + 'static,
    {
        run_to_end(GRACE, async move {
            let witness = self.witness();
            let done = {
                let working = work(self.connection()?);
                tokio::select! {
                    biased;
                    done = working => done,
                    () = server_is_replaced(witness) => Err(E::from(server_was_replaced())),
                }
            };
            self.give_back(done.as_ref().err().map(FromDriver::driver_error));
            done
        })
        .await
    }
}

#[cfg_attr(
    not(feature = "sqlite"),
    expect(dead_code, reason = "servers run statements by a way of their own")
)]
impl<C: Connector> Checkout<C>
where
    for<'c> &'c mut Connection<C>: Executor<'c, Database = C::Database>,
    Arguments<C>: IntoArguments<C::Database>,
{
    /// Runs a statement that writes, and returns how many rows it matched.
    pub(crate) async fn write(
        self,
        query: Query<C::Database>,
        table: &TableName,
    ) -> Result<u64, PersistenceError> {
        let done = self.perform(move |connection| connection.execute(query)).await;
        done.map(|done| C::rows_affected(&done)).map_err(|error| C::ERRORS.writing(&error, table))
    }

    /// Runs a statement that finds at most one row.
    pub(crate) async fn read(
        self,
        query: Query<C::Database>,
        table: &TableName,
    ) -> Result<Option<<C::Database as Database>::Row>, PersistenceError> {
        let row = self.perform(move |connection| connection.fetch_optional(query)).await;
        row.map_err(|error| C::ERRORS.reading(&error, table))
    }

    /// Runs a statement that finds several rows.
    pub(crate) async fn read_all(
        self,
        query: Query<C::Database>,
        table: &TableName,
    ) -> Result<Vec<<C::Database as Database>::Row>, PersistenceError> {
        let rows = self.perform(move |connection| connection.fetch_all(query)).await;
        rows.map_err(|error| C::ERRORS.reading(&error, table))
    }
}

/// The right to use a connection of the application's pool.
pub(crate) struct ApplicationCheckout<C: Connector> {
    connection: PoolConnection<C::Database>,
    is_abandoned: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl<C: Connector> Drop for ApplicationCheckout<C> {
    fn drop(&mut self) {
        if self.is_abandoned && C::IS_REMOTE {
            self.connection.close_on_drop();
        }
    }
}
