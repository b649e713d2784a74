//! The SQL dialect of MySQL and MariaDB, and the values that they bind and read.

use session_core::StoredKey;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, MySql, Row as _, SqlStr, query};

use crate::sql::columns::Column;
use crate::sql::connector::Query;
use crate::sql::statements::{DeleteRows, Syntax};
use crate::sql::value::{Value, Values, bind};

pub(super) const SYNTAX: Syntax = Syntax {
    quote: '`',
    key: "`key`",
    greatest: "greatest",
    least: "least",
    numbers_parameters: false,
    delete_all: DeleteRows {
        rows: "SELECT {key} FROM {sessions} WHERE {key} IN",
        by_keys: Some("DELETE FROM {sessions} WHERE {key} IN"),
        postpone: None,
    },
    // MySQL cannot return what it deletes. Rows that others have locked are deleted or written by them.
    delete_expired: DeleteRows {
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

/// Returns the statement that begins with `by_keys`, and ends with these keys and with `end`.
///
/// There is a statement for each power of two, which the last key fills up, so that connections keep the few statements. One that
/// is not kept is closed by a packet without an answer, behind which the next one waited for 40 ms: the driver does not set
/// `TCP_NODELAY`, and the server delays its acknowledgement.
fn with_room<'k>(by_keys: &SqlStr, keys: impl ExactSizeIterator<Item = &'k [u8]>, end: &str) -> Query<MySql> {
    let room = keys.len().next_power_of_two();
    let text = format!("{} ({}){end}", by_keys.as_str(), vec!["?"; room].join(", "));
    let (mut last, count) = (None, keys.len());
    // Safe, because only question marks and text of this crate were added.
    let statement = keys.fold(query(AssertSqlSafe(text)), |statement, key| {
        last = Some(key);
        with_key(statement, key)
    });
    last.into_iter().fold(statement, |statement, key| {
        (count..room).fold(statement, |statement, _| with_key(statement, key))
    })
}

/// Binds a key as text, where it is text: an index of text is of no use for bytes.
fn with_key(statement: Query<MySql>, key: &[u8]) -> Query<MySql> {
    match std::str::from_utf8(key) {
        Ok(text) => statement.bind(text.to_owned()),
        Err(_) => statement.bind(key.to_owned()),
    }
}

/// Returns the statement that begins with `by_keys` and locks the rows with these keys.
pub(super) fn locking(by_keys: &SqlStr, keys: &[StoredKey]) -> Query<MySql> {
    with_room(by_keys, keys.iter().map(StoredKey::as_bytes), " FOR UPDATE")
}

/// Returns the statement that begins with `by_keys` and ends with the keys of `rows`.
pub(super) fn with_keys(by_keys: &SqlStr, rows: &[&MySqlRow]) -> sqlx::Result<Query<MySql>> {
    let keys = rows.iter().map(|row| row.try_get(Column::Key.name()));
    let keys = keys.collect::<sqlx::Result<Vec<&[u8]>>>()?;
    Ok(with_room(by_keys, keys.into_iter(), ""))
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
