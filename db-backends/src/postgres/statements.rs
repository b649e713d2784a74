//! The SQL dialect of Postgres, and the values that it binds and reads.

use std::panic::AssertUnwindSafe;

use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row as _};

use crate::sql::columns::Column;
use crate::sql::connector::Query;
use crate::sql::statements::{DeleteRows, ReportSyntax, Syntax};
use crate::sql::value::{Value, Values, bind};

/// Removes the sessions in `removed` and postpones those in `postponed`, before `$then`. Rows that others have locked are deleted or
/// written by them. Arrays, because the planner might join a subquery with the whole table.
macro_rules! reap {
    ($then:literal) => {
        concat!(
            "WITH due AS MATERIALIZED (
                 SELECT {key}, expires_at FROM {sessions} WHERE reap_at <= $1
                 ORDER BY reap_at LIMIT $2 FOR UPDATE SKIP LOCKED),
             removed AS (
                 DELETE FROM {sessions} WHERE {key} = ANY (ARRAY(SELECT {key} FROM due WHERE expires_at <= $1))
                 RETURNING {key}, subject, expires_at),
             postponed AS (
                 UPDATE {sessions} SET reap_at = expires_at
                 WHERE {key} = ANY (ARRAY(SELECT {key} FROM due WHERE expires_at > $1))
                 RETURNING {key}, subject, expires_at) ",
            $then
        )
    };
}

pub(super) const SYNTAX: Syntax = Syntax {
    quote: '"',
    key: "key",
    greatest: "greatest",
    least: "least",
    numbers_parameters: true,
    // No key has a space.
    delete_all: DeleteRows::returning(
        "DELETE FROM {sessions} WHERE {key} = ANY (string_to_array(?, ' ')){returning}",
    ),
    delete_expired: DeleteRows::returning(reap!(
        "SELECT {key}, subject, expires_at FROM removed
         UNION ALL SELECT {key}, subject, expires_at FROM postponed"
    )),
    list_by_subject: "SELECT {times} FROM {sessions}
                      WHERE subject = ? AND expires_at > ? AND {key} >= ? ORDER BY {key} LIMIT ?",
    delete_rotations: "DELETE FROM {rotations} WHERE ctid = ANY (ARRAY(
                           SELECT ctid FROM {rotations} WHERE expires_at <= ?
                           ORDER BY expires_at LIMIT ? FOR UPDATE SKIP LOCKED))",
    now: "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS {result}",
    reports: Some(ReportSyntax {
        // Every role of the database can listen. A key that is shorter than a hashed one may be a session's own key, which
        // opens it, so it is not told: such a write is reported as one of any key.
        key: " RETURNING pg_notify('{channel}', '{tag} ' ||
               CASE WHEN octet_length({key}) < 43 THEN '*' ELSE {key} END)",
        both_keys: " RETURNING pg_notify('{channel}', '{tag} ' ||
                     CASE WHEN octet_length({key}) < 43 THEN '*' ELSE {key} END || ' ' ||
                     (SELECT CASE WHEN octet_length(old) < 43 THEN '*' ELSE old END FROM (VALUES (?::text)) AS renamed (old)))",
        // In batches, because a report has 8,000 bytes at most. Materialized, because what no one reads is not run.
        delete_expired: DeleteRows::returning(reap!(
            ", numbered AS (
                 SELECT {key}, (row_number() OVER () - 1) / 100 AS batch FROM removed WHERE octet_length({key}) <= 64),
             reported AS MATERIALIZED (
                 SELECT pg_notify('{channel}', '{tag} ' || string_agg({key}, ' ')) FROM numbered GROUP BY batch)
             SELECT {key}, subject, expires_at FROM removed WHERE (SELECT count(*) FROM reported) >= 0
             UNION ALL SELECT {key}, subject, expires_at FROM postponed"
        )),
    }),
};

impl Values for Postgres {
    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self> {
        bind(query, value)
    }

    fn text<'r>(row: &'r PgRow, column: &str) -> sqlx::Result<Option<&'r [u8]>> {
        Ok(value(row, |row| row.try_get::<Option<&str>, _>(column))?.map(str::as_bytes))
    }

    fn bytes<'r>(row: &'r PgRow, column: &str) -> sqlx::Result<&'r [u8]> {
        value(row, |row| row.try_get(column))
    }

    fn integer(row: &PgRow, column: &str) -> sqlx::Result<i64> {
        value(row, |row| row.try_get(column))
    }

    fn key(row: &PgRow) -> Option<&[u8]> {
        value(row, |row| row.try_get_raw(Column::Key.name())).ok()?.as_bytes().ok()
    }
}

/// Reads a column of a row.
///
/// The driver takes the columns from when the statement was prepared, and panics over a row that has fewer: a
/// pooler that the application said was not there has answered with another client's statement.
pub(crate) fn value<'r, T>(
    row: &'r PgRow,
    read: impl FnOnce(&'r PgRow) -> sqlx::Result<T>,
) -> sqlx::Result<T> {
    let other_shape =
        |_| Err(sqlx::Error::Protocol("the row is not of the statement that was prepared".to_owned()));
    std::panic::catch_unwind(AssertUnwindSafe(|| read(row))).unwrap_or_else(other_shape)
}
