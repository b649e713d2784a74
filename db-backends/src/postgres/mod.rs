//! Postgres.
//!
//! When a caller drops the future in the middle of a statement, a task waits for the statement's end, so that
//! its connection can be used again. The task has one second. Then the connection is closed, and what the
//! server still does is bounded:
//!
//! | an abandoned statement | is bounded by |
//! |---|---|
//! | waits for a lock | that second, and `lock_timeout`, 3 s |
//! | reports, and waits at its commit for others that do | that second, and `lock_timeout`: `statement_timeout` does not hold there |
//! | waits or runs | that second, and a request to end the connection that is then sent over a new one |
//! | waits or runs, should the request fail | that second, `statement_timeout`, 5 s, and the time of its commit |
//! | has committed, and waits for a synchronous standby | that second and the request, after which the commit is shown |
//! | runs over the application's pool | that second: nothing commits its transaction later |

mod builder;
mod condition;
mod connect;
mod error;
mod inspect;
mod notices;
mod schema;
mod settings;
pub(crate) mod statements;

use std::sync::Arc;

use session_core::{DatabaseNotices, StoredKey};
use sqlx::{PgConnection, Postgres, SqlStr, query};

pub use self::builder::PostgresBuilder;

use self::connect::PostgresConnector;
use self::notices::PostgresNotices;
use crate::sql::checkout::Work;
use crate::sql::connections::Usage;
use crate::sql::connector::Query;
use crate::sql::persistence::{Backend, SqlPersistence};
use crate::sql::reports::InUse;
use crate::sql::server::ServerConnections;
use crate::sql::statements::{Rest, Syntax};
use crate::sql::table::TableName;
use crate::{Finding, Inspection};

/// Sessions in a Postgres database.
///
/// # Cancel safety
///
/// Dropping a future does not stop a statement that was sent: a task waits for its end, for one second, and
/// returns the connection. A statement that takes longer loses its connection, and ends within the bounds of
/// [this module](self). Outside of a tokio runtime there is no such task, and the connection is closed at
/// once.
pub type PostgresPersistence = SqlPersistence<Postgres>;

impl Backend for Postgres {
    type Connections = ServerConnections<PostgresConnector>;

    const SYNTAX: Syntax = statements::SYNTAX;

    /// Text cannot have a byte of zero.
    const LEAST_BYTE: u8 = 1;

    fn remove(
        connection: &mut PgConnection,
        rows: Query<Self>,
        _: Option<Rest>,
    ) -> Work<'_, Vec<Self::Row>, sqlx::Error> {
        Box::pin(rows.fetch_all(connection))
    }

    fn with_keys(sql: &SqlStr, keys: &[StoredKey]) -> Query<Self> {
        let keys: Vec<_> = keys.iter().map(StoredKey::as_str).collect();
        query(sql.clone()).bind(keys.join(" "))
    }

    fn notices(
        connections: &Self::Connections,
        table: &TableName,
        tag: &str,
        in_use: InUse,
    ) -> Option<Arc<dyn DatabaseNotices>> {
        let notices = PostgresNotices::new(connections.share(), table.clone(), tag.to_owned(), in_use);
        Some(Arc::new(notices))
    }

    async fn inspect(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Inspection> {
        inspect::inspect(connection, table).await
    }

    async fn examine(connection: &mut PgConnection, usage: Usage) -> sqlx::Result<Vec<Finding>> {
        settings::examine(connection, usage).await
    }
}
