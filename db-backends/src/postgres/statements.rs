//! The SQL dialect of Postgres, and the values that it binds and reads.

use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row as _};

use crate::sql::columns::Column;
use crate::sql::connector::Query;
use crate::sql::statements::Syntax;
use crate::sql::value::{Value, Values, bind};

pub(super) const SYNTAX: Syntax = Syntax {
    quote: '"',
    key: "key",
    greatest: "greatest",
    least: "least",
    numbers_parameters: true,
    // Rows that others have locked are deleted or written by them. An array, because the planner might join a
    // subquery with the whole table.
    delete_expired: "DELETE FROM {sessions} WHERE {key} = ANY (ARRAY(
                         SELECT {key} FROM {sessions} WHERE expires_at <= ?
                         ORDER BY expires_at LIMIT ? FOR UPDATE SKIP LOCKED))",
    // Materialized, because the planner might go through the whole table in the order of its keys.
    list_by_subject: "WITH mine AS MATERIALIZED (
                          SELECT {times} FROM {sessions} WHERE subject = ? AND expires_at > ?)
                      SELECT {times} FROM mine WHERE {key} >= ? ORDER BY {key} LIMIT ?",
    now: "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS {result}",
};

impl Values for Postgres {
    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self> {
        bind(query, value)
    }

    fn text<'r>(row: &'r PgRow, column: &str) -> sqlx::Result<Option<&'r [u8]>> {
        Ok(row.try_get::<Option<&str>, _>(column)?.map(str::as_bytes))
    }

    fn bytes<'r>(row: &'r PgRow, column: &str) -> sqlx::Result<&'r [u8]> {
        row.try_get(column)
    }

    fn integer(row: &PgRow, column: &str) -> sqlx::Result<i64> {
        row.try_get(column)
    }

    fn key(row: &PgRow) -> Option<&[u8]> {
        row.try_get_raw(Column::Key.name()).ok()?.as_bytes().ok()
    }
}
