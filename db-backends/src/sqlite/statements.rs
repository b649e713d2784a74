//! The SQL dialect of SQLite, and the values that it binds and reads.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, Sqlite, TypeInfo as _, ValueRef as _};

use crate::sql::columns::Column;
use crate::sql::connector::Query;
use crate::sql::statements::{DeleteExpired, Syntax};
use crate::sql::value::{Value, Values, bind};

pub(super) const SYNTAX: Syntax = Syntax {
    quote: '"',
    key: "key",
    greatest: "max",
    least: "min",
    numbers_parameters: false,
    delete_expired: DeleteExpired::returning(
        "DELETE FROM {sessions} WHERE rowid IN
             (SELECT rowid FROM {sessions} WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)
         RETURNING {key}, subject",
    ),
    // The signs keep SQLite from using another index than that of subjects.
    list_by_subject: "SELECT {times} FROM {sessions}
                      WHERE subject = ? AND +expires_at > ? AND +{key} >= ? ORDER BY +{key} LIMIT ?",
    delete_rotations: "DELETE FROM {rotations} WHERE rowid IN
                           (SELECT rowid FROM {rotations} WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
    // To the millisecond.
    now: "SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000 AS {result}",
};

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
