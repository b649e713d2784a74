//! SQLite: a file, or in memory.
//!
//! | an abandoned statement | is bounded by |
//! |---|---|
//! | waits for another writer | `busy_timeout`, 5 s |
//! | runs | the process: nothing goes on after it has ended |
//!
//! A statement is abandoned when its caller drops the future. A task waits for its end, for one second,
//! before it returns the connection. If the statement takes longer, the next call on that connection waits
//! for it.

mod builder;
mod connect;
mod error;
mod inspect;
mod schema;
mod settings;
mod space;
mod statements;
#[cfg(test)]
mod tests;

use session_core::StoredKey;
use sqlx::{Connection as _, SqlStr, Sqlite, SqliteConnection, query};

pub use self::builder::SqliteBuilder;

use self::connect::SqliteConnections;
use crate::sql::checkout::Work;
use crate::sql::connections::Usage;
use crate::sql::connector::Query;
use crate::sql::persistence::{Backend, SqlPersistence};
use crate::sql::statements::{Rest, Syntax};
use crate::sql::table::TableName;
use crate::{Finding, Inspection};

/// Sessions in a SQLite database.
///
/// # Cancel safety
///
/// A statement runs in the connection's own thread. Dropping the future does not stop a statement that was
/// sent there: it takes effect, or fails, within `busy_timeout` and the time that it takes.
pub type SqlitePersistence = SqlPersistence<Sqlite>;

impl Backend for Sqlite {
    type Connections = SqliteConnections;

    const SYNTAX: Syntax = statements::SYNTAX;

    fn remove(
        connection: &mut SqliteConnection,
        rows: Query<Self>,
        rest: Option<Rest>,
    ) -> Work<'_, Vec<Self::Row>, sqlx::Error> {
        Box::pin(async move {
            let Some(rest) = rest else { return rows.fetch_all(connection).await };
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let rows = rows.fetch_all(&mut *transaction).await?;
            for (by_numbers, rows) in rest.split::<Self>(&rows) {
                let numbers = statements::numbers(&rows)?;
                query(by_numbers.clone()).bind(numbers).execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            // The rows are gone, so an error would only hide them.
            let _ = space::shrink(connection).await;
            Ok(rows)
        })
    }

    fn with_keys(sql: &SqlStr, keys: &[StoredKey]) -> Query<Self> {
        query(sql.clone()).bind(statements::texts(keys))
    }

    async fn inspect(connection: &mut SqliteConnection, table: &TableName) -> sqlx::Result<Inspection> {
        inspect::inspect(connection, table).await
    }

    async fn vacuum(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
        space::vacuum(connection).await
    }

    async fn examine(connection: &mut SqliteConnection, usage: Usage) -> sqlx::Result<Vec<Finding>> {
        settings::examine(connection, usage).await
    }
}
