//! The SQL dialect of SQLite, and the values that it binds and reads.

use session_core::StoredKey;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, Sqlite, TypeInfo as _, ValueRef as _};

use crate::sql::columns::Column;
use crate::sql::connector::Query;
use crate::sql::statements::{DeleteRows, Syntax};
use crate::sql::value::{Value, Values, bind};

pub(super) const SYNTAX: Syntax = Syntax {
    quote: '"',
    key: "key",
    greatest: "max",
    least: "min",
    numbers_parameters: false,
    delete_all: DeleteRows::returning(
        "DELETE FROM {sessions} WHERE {key} IN (SELECT value FROM json_each(?)){returning}",
    ),
    // By the numbers of rows, because a table that was made by hand may have keys of any type.
    delete_expired: DeleteRows {
        rows: "SELECT rowid, {key}, subject, expires_at FROM {sessions} WHERE reap_at <= ?
               ORDER BY reap_at LIMIT ?",
        by_keys: Some("DELETE FROM {sessions} WHERE rowid IN (SELECT value FROM json_each(?))"),
        postpone: Some(
            "UPDATE {sessions} SET reap_at = expires_at WHERE rowid IN (SELECT value FROM json_each(?))",
        ),
    },
    // The sign keeps SQLite from an index of the expiry that the application may have made.
    list_by_subject: "SELECT {times} FROM {sessions}
                      WHERE subject = ? AND +expires_at > ? AND {key} >= ? ORDER BY {key} LIMIT ?",
    delete_rotations: "DELETE FROM {rotations} WHERE rowid IN
                           (SELECT rowid FROM {rotations} WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
    // To the millisecond.
    now: "SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000 AS {result}",
    reports: None,
};

/// Returns the numbers of `rows` as JSON, for a statement that takes them so.
pub(super) fn numbers(rows: &[&SqliteRow]) -> sqlx::Result<String> {
    let numbers = rows.iter().map(|row| row.try_get::<i64, _>("rowid").map(|number| number.to_string()));
    Ok(format!("[{}]", numbers.collect::<sqlx::Result<Vec<_>>>()?.join(",")))
}

/// Returns keys as JSON, for a statement that takes them so.
pub(super) fn texts(keys: &[StoredKey]) -> String {
    // Keys are visible ASCII, so nothing else needs an escape.
    let text = |key: &StoredKey| format!("\"{}\"", key.as_str().replace('\\', "\\\\").replace('"', "\\\""));
    format!("[{}]", keys.iter().map(text).collect::<Vec<_>>().join(","))
}

impl Values for Sqlite {
    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self> {
        bind(query, value)
    }

    fn text<'r>(row: &'r SqliteRow, column: &str) -> sqlx::Result<Option<&'r [u8]>> {
        row.try_get(column)
    }

    fn bytes<'r>(row: &'r SqliteRow, column: &str) -> sqlx::Result<&'r [u8]> {
        row.try_get(column)
    }

    fn integer(row: &SqliteRow, column: &str) -> sqlx::Result<i64> {
        row.try_get(column)
    }

    fn key(row: &SqliteRow) -> Option<&[u8]> {
        let value = row.try_get_raw(Column::Key.name()).ok()?;
        // A table that was made by hand may have keys of other types. Those of bytes come after all text.
        if value.type_info().name() != "TEXT" {
            return None;
        }
        row.try_get(Column::Key.name()).ok()
    }
}
