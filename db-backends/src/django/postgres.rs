//! Postgres. Instants are sent and read as text in UTC, so that the time zone and the date style of the
//! session do not matter.

use session_core::PersistenceError;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row as _};

use super::error::Corrupt;
use super::persistence::DjangoPersistence;
use super::statements::{DjangoBackend, Statements};
use crate::postgres::PostgresPersistence;
use crate::postgres::statements::value;
use crate::sql::connector::Query;
use crate::sql::statements::DeleteRows;

impl DjangoPersistence<Postgres> {
    /// Uses the table `django_session` of the database that `url` names, with defaults for everything else.
    /// See [`PostgresBuilder::connect`](crate::postgres::PostgresBuilder::connect), and [`over`](Self::over)
    /// for other settings.
    ///
    /// # Errors
    ///
    /// The errors of [`PostgresBuilder::connect`](crate::postgres::PostgresBuilder::connect).
    pub async fn connect(url: &str) -> Result<Self, PersistenceError> {
        Ok(Self::over(PostgresPersistence::connect(url).await?))
    }
}

impl DjangoBackend for Postgres {
    const TEMPLATES: Statements<&'static str> = Statements {
        load: r#"SELECT session_key, session_data,
                        to_char(expire_date AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') AS expire_date
                 FROM "{table}" WHERE session_key = $1 AND expire_date > ($2 || '+00')::timestamptz"#,
        insert: r#"INSERT INTO "{table}" ({columns})
                   VALUES ($1, $2, ($3 || '+00')::timestamptz)"#,
        update: r#"UPDATE "{table}"
                   SET session_data = $1,
                       expire_date = greatest(($2 || '+00')::timestamptz,
                                              least(($3 || '+00')::timestamptz, expire_date))
                   WHERE session_key = $4 AND expire_date > ($5 || '+00')::timestamptz
                     AND session_data = coalesce($6, session_data)"#,
        touch: r#"UPDATE "{table}" SET expire_date = greatest(($1 || '+00')::timestamptz, expire_date)
                  WHERE session_key = $2 AND expire_date > ($3 || '+00')::timestamptz
                    AND expire_date <= ($4 || '+00')::timestamptz"#,
        rename: r#"UPDATE "{table}"
                   SET session_data = $1,
                       expire_date = greatest(($2 || '+00')::timestamptz,
                                              least(($3 || '+00')::timestamptz, expire_date)),
                       session_key = $4
                   WHERE session_key = $5 AND expire_date > ($6 || '+00')::timestamptz
                     AND session_data = coalesce($7, session_data)"#,
        is_there: r#"SELECT 1 FROM "{table}"
                     WHERE session_key = $1 AND expire_date > ($2 || '+00')::timestamptz"#,
        delete: r#"DELETE FROM "{table}" WHERE session_key = $1"#,
        // The same as in a table of ours: rows that others have locked are deleted or written by them.
        delete_expired: DeleteRows::returning(
            r#"DELETE FROM "{table}" WHERE session_key = ANY (ARRAY(
                   SELECT session_key FROM "{table}"
                   WHERE expire_date <= ($1 || '+00')::timestamptz
                   ORDER BY expire_date LIMIT $2 FOR UPDATE SKIP LOCKED))
               RETURNING session_key AS key, NULL::text AS subject"#,
        ),
        describe: "SELECT attname::text AS name, format_type(atttypid, NULL) AS type, EXISTS (
                      SELECT FROM pg_index
                      WHERE indrelid = attrelid AND indisprimary AND attnum = ANY (indkey))::text AS is_key,
                      (attnotnull AND NOT atthasdef AND attidentity = '')::text AS is_mandatory
                  FROM pg_attribute
                  WHERE attrelid = to_regclass(quote_ident($1)) AND attnum > 0 AND NOT attisdropped",
    };

    const SCHEMA: &'static str = r#"CREATE TABLE "{table}" (
    "session_key" varchar(40) NOT NULL PRIMARY KEY,
    "session_data" text NOT NULL,
    "expire_date" timestamp with time zone NOT NULL
);
CREATE INDEX "{table}_session_key_c0390e0f_like" ON "{table}" ("session_key" varchar_pattern_ops);
CREATE INDEX "{table}_expire_date_a5c62663" ON "{table}" ("expire_date");
"#;

    const TYPES: [&'static str; 3] = ["character varying", "text", "timestamp with time zone"];

    fn bind_text(query: Query<Self>, text: Option<&str>) -> Query<Self> {
        query.bind(text)
    }

    fn read_text<'r>(row: &'r PgRow, column: &'static str) -> Result<&'r str, Corrupt> {
        value(row, |row| row.try_get(column)).map_err(|_| Corrupt::Column(column))
    }
}
