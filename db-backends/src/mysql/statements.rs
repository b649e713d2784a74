//! The SQL dialect of MySQL and MariaDB, and the values that they bind and read.

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, MySql, Row as _, SqlStr, query};

use crate::sql::columns::Column;
use crate::sql::connector::Query;
use crate::sql::statements::{DeleteExpired, Syntax};
use crate::sql::value::{Value, Values, bind};

pub(super) const SYNTAX: Syntax = Syntax {
    quote: '`',
    key: "`key`",
    greatest: "greatest",
    least: "least",
    numbers_parameters: false,
    // MySQL cannot return what it deletes. Rows that others have locked are deleted or written by them.
    delete_expired: DeleteExpired {
        rows: "SELECT {key}, subject, expires_at FROM {sessions} WHERE reap_at <= ?
               ORDER BY reap_at LIMIT ? FOR UPDATE SKIP LOCKED",
        by_keys: Some("DELETE FROM {sessions} WHERE {key} IN"),
        postpone: Some("UPDATE {sessions} SET reap_at = expires_at WHERE {key} IN"),
    },
    // In the order of the primary key, which the index of subjects ends with. Without the hint, the optimizer
    // might go through the whole table in that order.
    list_by_subject: "SELECT {times} FROM {sessions} IGNORE INDEX (PRIMARY)
                      WHERE subject = ? AND expires_at > ? AND {key} >= ? ORDER BY {key} LIMIT ?",
    delete_rotations: "DELETE FROM {rotations} WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
    // In UTC, so that the session's time zone does not matter.
    now: "SELECT timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(6)) AS {result}",
    reports: None,
};

/// Returns the statement that begins with `by_keys` and ends with the keys of `rows`.
pub(super) fn with_keys(by_keys: &SqlStr, rows: &[&MySqlRow]) -> sqlx::Result<Query<MySql>> {
    let text = format!("{} ({})", by_keys.as_str(), vec!["?"; rows.len()].join(", "));
    // Safe, because only question marks were added. Not kept by the server, because the last batch has its own length.
    let mut statement = query(AssertSqlSafe(text)).persistent(false);
    for row in rows {
        let key: &[u8] = row.try_get(Column::Key.name())?;
        // As text, where it is text: an index of text is of no use for bytes.
        statement = match std::str::from_utf8(key) {
            Ok(text) => statement.bind(text.to_owned()),
            Err(_) => statement.bind(key.to_owned()),
        };
    }
    Ok(statement)
}

impl Values for MySql {
    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self> {
        // Text as bytes, so that no collation has a say.
        match value {
            Value::Text(text) => bind(query, Value::Bytes(text.as_bytes())),
            Value::OptionalText(text) => bind(query, Value::OptionalBytes(text.map(str::as_bytes))),
            value => bind(query, value),
        }
    }

    fn text<'r>(row: &'r MySqlRow, column: &str) -> sqlx::Result<Option<&'r [u8]>> {
        row.try_get(column)
    }

    fn bytes<'r>(row: &'r MySqlRow, column: &str) -> sqlx::Result<&'r [u8]> {
        row.try_get(column)
    }

    fn integer(row: &MySqlRow, column: &str) -> sqlx::Result<i64> {
        row.try_get(column)
    }

    fn key(row: &MySqlRow) -> Option<&[u8]> {
        row.try_get(Column::Key.name()).ok()
    }
}
