//! MySQL and MariaDB.
//!
//! A statement whose caller has gone is seen to its end by a task, so that its connection can be used again. The task has
//! one second. Then the connection is closed, and what the server still does is bounded:
//!
//! | a statement whose caller has gone | is bounded by |
//! |---|---|
//! | any | that second, and a `KILL` that is then sent over a new connection |
//! | waits for a row's or a table's lock, should the `KILL` fail | that second, and `innodb_lock_wait_timeout` or `lock_wait_timeout`, 3 s |
//! | any, on MariaDB | that second, and `max_statement_time`, 5 s |
//! | over a pool of the application's | that second: nothing commits its transaction later |

mod builder;
mod connection;
mod inspect;
mod schema;

use session_core::PersistenceError;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlDatabaseError, MySqlRow};
use sqlx::{MySql, MySqlPool, Row as _, SqlStr};

pub use builder::MySqlBuilder;

use self::connection::MySqlLink;
use crate::Inspection;
use crate::sql::error::{Dialect, Meaning};
use crate::sql::remote::Remote;
use crate::sql::row::{Corrupt, Row};
use crate::sql::table::TableName;
use crate::sql::{Backend, Query, SqlPersistence, Statements, Value};

/// Sessions in a MySQL or MariaDB database.
///
/// # Cancel safety
///
/// Dropping a future does not stop a statement that was sent: a task sees it to its end, for one second, and gives the
/// connection back. A statement that takes longer loses its connection, and is killed; where that fails, it ends within
/// the bounds of [this module](self). Outside of a tokio runtime there is no such task, and the connection is closed at
/// once.
pub type MySqlPersistence = SqlPersistence<MySql>;

impl MySqlPersistence {
    /// Connects to the database of `url` with the defaults. See [`MySqlBuilder::connect`].
    ///
    /// ```no_run
    /// # use db_backends::mysql::MySqlPersistence;
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use session_core::Persistence as _;
    ///
    /// let db = MySqlPersistence::connect("mysql://app:password@localhost/app").await?;
    /// db.migrate().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`MySqlBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a connection that is still opened by a task, and then closed.
    pub async fn connect(url: &str) -> Result<Self, PersistenceError> {
        Self::builder().connect(url).await
    }

    /// Another table name, other timeouts, another number of connections, or a pool that is there already.
    pub const fn builder() -> MySqlBuilder {
        MySqlBuilder::new()
    }

    /// Over a pool that the application has, in the table `sessions`. See [`MySqlBuilder::on_pool`], which takes
    /// another name.
    #[must_use]
    pub fn from_pool(pool: MySqlPool) -> Self {
        MySqlBuilder::new().on_pool_with(pool, TableName::default())
    }
}

fn statements(table: &TableName) -> Statements {
    Statements {
        load: table.sql(
            "SELECT `key`, payload, created_at, expires_at, last_seen_at, version, subject
             FROM `{table}` WHERE `key` = ? AND expires_at > ?",
        ),
        insert: table.sql(
            "INSERT INTO `{table}` (`key`, payload, created_at, expires_at, last_seen_at, version, subject)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        ),
        update: table.sql(
            "UPDATE `{table}`
             SET payload = ?, subject = ?, last_seen_at = ?, version = ?,
                 expires_at = greatest(?, least(?, expires_at))
             WHERE `key` = ? AND expires_at > ? AND version = coalesce(?, version)",
        ),
        touch: table.sql(
            "UPDATE `{table}`
             SET expires_at = greatest(?, expires_at), last_seen_at = greatest(?, last_seen_at)
             WHERE `key` = ? AND expires_at > ? AND last_seen_at <= ?",
        ),
        rename: table.sql(
            "UPDATE `{table}`
             SET payload = ?, subject = ?, last_seen_at = ?, version = ?,
                 expires_at = greatest(?, least(?, expires_at)), `key` = ?
             WHERE `key` = ? AND expires_at > ? AND version = coalesce(?, version)",
        ),
        is_there: table.sql("SELECT 1 FROM `{table}` WHERE `key` = ? AND expires_at > ?"),
        delete: table.sql("DELETE FROM `{table}` WHERE `key` = ?"),
        delete_expired: table.sql("DELETE FROM `{table}` WHERE expires_at <= ? ORDER BY expires_at LIMIT ?"),
        count_expired: table.sql("SELECT count(*) FROM `{table}` WHERE expires_at <= ?"),
        // In the order of the primary key, which the index of subjects ends with. Without the hint, the optimizer might
        // go through the whole table in that order.
        list_by_subject: table.sql(
            "SELECT `key`, created_at, expires_at, last_seen_at
             FROM `{table}` IGNORE INDEX (PRIMARY)
             WHERE subject = ? AND `key` >= ? AND expires_at > ? ORDER BY `key` LIMIT ?",
        ),
        scan: table.sql(
            "SELECT `key`, payload, created_at, expires_at, last_seen_at, version, subject
             FROM `{table}` WHERE `key` >= ? ORDER BY `key` LIMIT ?",
        ),
        // In UTC, so that the session's time zone does not matter.
        now: SqlStr::from_static("SELECT timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(6))"),
    }
}

impl Backend for MySql {
    type Connections = Remote<MySqlLink>;

    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self> {
        // Text as bytes, so that no collation has a say.
        match value {
            Value::Text(text) => query.bind(text.as_bytes()),
            Value::Bytes(bytes) => query.bind(bytes),
            Value::Integer(integer) => query.bind(integer),
            Value::OptionalText(text) => query.bind(text.map(str::as_bytes)),
            Value::OptionalInteger(integer) => query.bind(integer),
        }
    }

    fn columns(row: &MySqlRow) -> Result<Row<'_>, Corrupt> {
        Ok(Row {
            key: row.try_get(0).map_err(|_| Corrupt::Type("key"))?,
            payload: row.try_get(1).map_err(|_| Corrupt::Type("payload"))?,
            created_at: row.try_get(2).map_err(|_| Corrupt::Type("created_at"))?,
            expires_at: row.try_get(3).map_err(|_| Corrupt::Type("expires_at"))?,
            last_seen_at: row.try_get(4).map_err(|_| Corrupt::Type("last_seen_at"))?,
            version: row.try_get(5).map_err(|_| Corrupt::Type("version"))?,
            subject: row.try_get(6).map_err(|_| Corrupt::Type("subject"))?,
        })
    }

    fn key(row: &MySqlRow) -> Option<&[u8]> {
        row.try_get(0).ok()
    }

    fn integer(row: &MySqlRow, index: usize) -> Option<i64> {
        row.try_get(index).ok()
    }

    async fn write(db: &MySqlPersistence, query: Query<Self>) -> Result<u64, PersistenceError> {
        db.connections.write(query, &db.table).await
    }

    async fn read(db: &MySqlPersistence, query: Query<Self>) -> Result<Option<MySqlRow>, PersistenceError> {
        db.connections.lease().await?.read(query, &db.table).await
    }

    async fn read_all(db: &MySqlPersistence, query: Query<Self>) -> Result<Vec<MySqlRow>, PersistenceError> {
        db.connections.lease().await?.read_all(query, &db.table).await
    }

    async fn migrate(db: &MySqlPersistence) -> Result<(), PersistenceError> {
        schema::migrate(db).await
    }

    fn schema_sql(table: &TableName) -> String {
        schema::sql(table)
    }

    async fn check_schema(db: &MySqlPersistence) -> Result<(), PersistenceError> {
        schema::check(db).await
    }

    async fn inspect(db: &MySqlPersistence) -> Result<Inspection, PersistenceError> {
        inspect::inspect(db).await
    }

    async fn close(connections: &Self::Connections) {
        connections.close().await;
    }
}

const DIALECT: Dialect = Dialect {
    name: "MySQL",
    meaning,
    may_be_shown,
    advice: "TLS to MySQL, and a password for its caching_sha2_password, need the feature mysql-tls of db-backends (on a \
             network that is trusted, mysql-rsa does for the latter); with it, check the certificates that the URL names",
};

/// By number, as in <https://dev.mysql.com/doc/mysql-errors/en/server-error-reference.html> and
/// <https://mariadb.com/kb/en/mariadb-error-code-reference/>.
fn meaning(error: &dyn DatabaseError) -> Meaning {
    if error.is_unique_violation() {
        return Meaning::Duplicate;
    }
    match number(error) {
        // No such table.
        1146 => Meaning::NoTable,
        // Changed since the transaction's snapshot; lock wait timeout, deadlock; killed; MariaDB's max_statement_time.
        1020 | 1205 | 1213 | 1317 | 1969 => Meaning::Busy,
        // Too many connections, host not allowed or blocked, access denied, no such database, too many of this user's.
        1040 | 1044 | 1045 | 1049 | 1129 | 1130 | 1203 | 1226 | 1698 => Meaning::Unavailable,
        // Error during the commit; shutdown; killed; connection lost; disconnected because idle.
        1053 | 1152 | 1158..=1161 | 1180 | 1184 | 1927 | 3169 | 4031 => Meaning::Unknown,
        _ => Meaning::Refused,
    }
}

/// Messages about connections, users, databases, privileges, names, locks, limits and read-only servers quote no values.
/// Many others do.
fn may_be_shown(error: &dyn DatabaseError) -> bool {
    matches!(
        number(error),
        1020 | 1021
            | 1030
            | 1036
            | 1037
            | 1040
            | 1044..=1046
            | 1049
            | 1053
            | 1054
            | 1114
            | 1129
            | 1130
            | 1142
            | 1143
            | 1146
            | 1153
            | 1158..=1161
            | 1180
            | 1184
            | 1203
            | 1205
            | 1213
            | 1226
            | 1227
            | 1290
            | 1317
            | 1637
            | 1698
            | 1792
            | 1836
            | 1927
            | 1969
            | 3169
            | 4031
    )
}

fn number(error: &dyn DatabaseError) -> u16 {
    error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number)
}
