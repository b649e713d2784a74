//! MySQL and MariaDB.
//!
//! When a caller drops the future in the middle of a statement, a task waits for the statement's end, so that
//! its connection can be used again. The task has one second. Then the connection is closed, and what the
//! server still does is bounded:
//!
//! | an abandoned statement | is bounded by |
//! |---|---|
//! | any | that second, and a `KILL` that is then sent over a new connection |
//! | waits for a row's or a table's lock, should the `KILL` fail | that second, and `innodb_lock_wait_timeout` or `lock_wait_timeout`, 3 s |
//! | any, on MariaDB | that second, and `max_statement_time`, 5 s |
//! | runs over the application's pool | that second: nothing commits its transaction later |

mod builder;
mod condition;
mod connect;
mod error;
mod inspect;
mod schema;
mod settings;
mod statements;

use session_core::StoredKey;
use sqlx::mysql::MySqlRow;
use sqlx::{MySql, MySqlConnection, SqlStr};

pub use self::builder::MySqlBuilder;

use self::connect::MySqlConnector;
use crate::sql::checkout::Work;
use crate::sql::connections::Usage;
use crate::sql::connector::Query;
use crate::sql::persistence::{Backend, SqlPersistence};
use crate::sql::server::ServerConnections;
use crate::sql::statements::{Rest, Syntax};
use crate::sql::table::TableName;
use crate::{Finding, Inspection};

/// Sessions in a MySQL or MariaDB database.
///
/// # Cancel safety
///
/// Dropping a future does not stop a statement that was sent: a task waits for its end, for one second, and
/// returns the connection. A statement that takes longer loses its connection, and is killed; where that
/// fails, it ends within the bounds of [this module](self). Outside of a tokio runtime there is no such task,
/// and the connection is closed at once.
pub type MySqlPersistence = SqlPersistence<MySql>;

/// The number of keys in one statement that removes rows.
const KEYS_AT_ONCE: usize = 1_000;

impl Backend for MySql {
    type Connections = ServerConnections<MySqlConnector>;

    const SYNTAX: Syntax = statements::SYNTAX;

    fn remove(
        connection: &mut MySqlConnection,
        rows: Query<Self>,
        rest: Option<Rest>,
    ) -> Work<'_, Vec<MySqlRow>, sqlx::Error> {
        Box::pin(async move {
            let rows = rows.fetch_all(&mut *connection).await?;
            for (by_keys, rows) in rest.iter().flat_map(|rest| rest.split::<Self>(&rows)) {
                for some in rows.chunks(KEYS_AT_ONCE) {
                    statements::with_keys(by_keys, some)?.execute(&mut *connection).await?;
                }
            }
            Ok(rows)
        })
    }

    fn with_keys(sql: &SqlStr, keys: &[StoredKey]) -> Query<Self> {
        statements::locking(sql, keys)
    }

    async fn inspect(connection: &mut MySqlConnection, table: &TableName) -> sqlx::Result<Inspection> {
        inspect::inspect(connection, table).await
    }

    async fn examine(connection: &mut MySqlConnection, usage: Usage) -> sqlx::Result<Vec<Finding>> {
        settings::examine(connection, usage).await
    }
}
