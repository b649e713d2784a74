//! SQLite. Django writes instants to it as text, `2026-11-23 10:10:47.459413` in UTC, and omits the digits
//! after the point if all are zero. The text that they are compared with here always has six of them: an
//! expiry without digits is then less than, and never greater than, the same instant with them. This is
//! right, because a session that expires now is over.

use session_core::django::instant;
use session_core::{PersistenceError, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, Sqlite};

use super::error::Corrupt;
use super::persistence::DjangoPersistence;
use super::statements::{DjangoBackend, Statements};
use crate::sql::connector::Query;
use crate::sql::statements::DeleteRows;
use crate::sqlite::SqlitePersistence;

impl DjangoPersistence<Sqlite> {
    /// Uses the table `django_session` of the file that `url` names, with defaults for everything else. See
    /// [`SqliteBuilder::connect`](crate::sqlite::SqliteBuilder::connect), and [`over`](Self::over) for other
    /// settings.
    ///
    /// The file is put into write-ahead mode, which it then keeps, for Django as well: readers and the writer
    /// no longer wait for each other.
    ///
    /// # Errors
    ///
    /// The errors of [`SqliteBuilder::connect`](crate::sqlite::SqliteBuilder::connect).
    pub async fn connect(url: &str) -> Result<Self, PersistenceError> {
        Ok(Self::over(SqlitePersistence::connect(url).await?))
    }
}

impl DjangoBackend for Sqlite {
    const TEMPLATES: Statements<&'static str> = Statements {
        load: r#"SELECT session_key, session_data, CAST(expire_date AS TEXT) AS expire_date
                 FROM "{table}" WHERE session_key = ? AND expire_date > ?"#,
        insert: r#"INSERT INTO "{table}" ({columns}) VALUES (?, ?, ?)"#,
        update: r#"UPDATE "{table}"
                   SET session_data = ?, expire_date = max(?, min(?, expire_date))
                   WHERE session_key = ? AND expire_date > ? AND session_data = coalesce(?, session_data)"#,
        touch: r#"UPDATE "{table}" SET expire_date = max(?, expire_date)
                  WHERE session_key = ? AND expire_date > ? AND expire_date <= ?"#,
        rename: r#"UPDATE "{table}"
                   SET session_data = ?, expire_date = max(?, min(?, expire_date)), session_key = ?
                   WHERE session_key = ? AND expire_date > ? AND session_data = coalesce(?, session_data)"#,
        is_there: r#"SELECT 1 FROM "{table}" WHERE session_key = ? AND expire_date > ?"#,
        delete: r#"DELETE FROM "{table}" WHERE session_key = ?"#,
        delete_expired: DeleteRows::returning(
            r#"DELETE FROM "{table}" WHERE rowid IN
                   (SELECT rowid FROM "{table}" WHERE expire_date <= ? ORDER BY expire_date LIMIT ?)
               RETURNING session_key AS key, NULL AS subject"#,
        ),
        describe: r#"SELECT name, type, iif(pk > 0, 'true', 'false') AS is_key,
                            iif("notnull" AND dflt_value IS NULL, 'true', 'false') AS is_mandatory
                     FROM pragma_table_info(?)"#,
    };

    const SCHEMA: &'static str = r#"CREATE TABLE "{table}" (
    "session_key" varchar(40) NOT NULL PRIMARY KEY,
    "session_data" text NOT NULL,
    "expire_date" datetime NOT NULL
);
CREATE INDEX "{table}_expire_date_a5c62663" ON "{table}" ("expire_date");
"#;

    const TYPES: [&'static str; 3] = ["varchar(40)", "text", "datetime"];

    fn bind_text(query: Query<Self>, text: Option<&str>) -> Query<Self> {
        query.bind(text)
    }

    fn read_text<'r>(row: &'r SqliteRow, column: &'static str) -> Result<&'r str, Corrupt> {
        row.try_get(column).map_err(|_| Corrupt::Column(column))
    }

    fn expiry(expiry: Timestamp) -> String {
        let mut text = instant::format(expiry);
        if text.ends_with(".000000") {
            text.truncate(text.len() - ".000000".len());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Connection as _, SqlSafeStr as _, SqliteConnection, query, raw_sql};

    use super::*;
    use crate::sql::table::TableName;

    /// On servers, other tests count the rows that they read.
    #[tokio::test]
    async fn no_statement_reads_the_whole_table() {
        let table = TableName::django();
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let schema = AssertSqlSafe(table.fill(Sqlite::SCHEMA)).into_sql_str();
        raw_sql(schema).execute(&mut connection).await.unwrap();
        let Statements { load, update, touch, rename, is_there, delete, delete_expired, .. } =
            Sqlite::TEMPLATES;
        for statement in [load, update, touch, rename, is_there, delete, delete_expired.rows] {
            let explained = format!("EXPLAIN QUERY PLAN {}", table.fill(statement));
            let plan = query(AssertSqlSafe(explained)).fetch_all(&mut connection).await.unwrap();
            for step in plan.iter().map(|row| row.get::<String, _>(3)) {
                assert!(!step.starts_with("SCAN"), "{step} in {statement}");
            }
        }
    }
}
