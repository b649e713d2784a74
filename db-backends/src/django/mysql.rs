//! MySQL and MariaDB. Django's keys and data have the database's collation there, which takes `a` for `A`. So
//! keys are looked for in the index as text, and then compared as bytes; data are compared as bytes.

use session_core::PersistenceError;
use sqlx::mysql::MySqlRow;
use sqlx::{MySql, Row as _};

use super::error::Corrupt;
use super::persistence::DjangoPersistence;
use super::statements::{DjangoBackend, Statements};
use crate::mysql::MySqlPersistence;
use crate::sql::connector::Query;
use crate::sql::statements::DeleteRows;

impl DjangoPersistence<MySql> {
    /// Uses the table `django_session` of the database that `url` names, with defaults for everything else.
    /// See [`MySqlBuilder::connect`](crate::mysql::MySqlBuilder::connect), and [`over`](Self::over) for other
    /// settings.
    ///
    /// # Errors
    ///
    /// The errors of [`MySqlBuilder::connect`](crate::mysql::MySqlBuilder::connect).
    pub async fn connect(url: &str) -> Result<Self, PersistenceError> {
        Ok(Self::over(MySqlPersistence::connect(url).await?))
    }
}

impl DjangoBackend for MySql {
    const TEMPLATES: Statements<&'static str> = Statements {
        load: "SELECT session_key, session_data, DATE_FORMAT(expire_date, '%Y-%m-%d %H:%i:%s.%f') AS expire_date
               FROM `{table}`
               WHERE session_key = ? AND CAST(session_key AS BINARY) = CAST(? AS BINARY)
                 AND expire_date > CAST(? AS DATETIME(6))",
        insert: "INSERT INTO `{table}` ({columns})
                 VALUES (?, ?, CAST(? AS DATETIME(6)))",
        update: "UPDATE `{table}`
                 SET session_data = ?,
                     expire_date = GREATEST(CAST(? AS DATETIME(6)), LEAST(CAST(? AS DATETIME(6)), expire_date))
                 WHERE session_key = ? AND CAST(session_key AS BINARY) = CAST(? AS BINARY)
                   AND expire_date > CAST(? AS DATETIME(6))
                   AND CAST(session_data AS BINARY) = CAST(COALESCE(?, session_data) AS BINARY)",
        touch: "UPDATE `{table}` SET expire_date = GREATEST(CAST(? AS DATETIME(6)), expire_date)
                WHERE session_key = ? AND CAST(session_key AS BINARY) = CAST(? AS BINARY)
                  AND expire_date > CAST(? AS DATETIME(6)) AND expire_date <= CAST(? AS DATETIME(6))",
        rename: "UPDATE `{table}`
                 SET session_data = ?,
                     expire_date = GREATEST(CAST(? AS DATETIME(6)), LEAST(CAST(? AS DATETIME(6)), expire_date)),
                     session_key = ?
                 WHERE session_key = ? AND CAST(session_key AS BINARY) = CAST(? AS BINARY)
                   AND expire_date > CAST(? AS DATETIME(6))
                   AND CAST(session_data AS BINARY) = CAST(COALESCE(?, session_data) AS BINARY)",
        is_there: "SELECT 1 FROM `{table}`
                   WHERE session_key = ? AND CAST(session_key AS BINARY) = CAST(? AS BINARY)
                     AND expire_date > CAST(? AS DATETIME(6))",
        delete: "DELETE FROM `{table}`
                 WHERE session_key = ? AND CAST(session_key AS BINARY) = CAST(? AS BINARY)",
        delete_expired: DeleteRows {
            rows: "SELECT CAST(session_key AS BINARY) AS `key`, NULL AS subject FROM `{table}`
                   WHERE expire_date <= CAST(? AS DATETIME(6)) ORDER BY expire_date LIMIT ? FOR UPDATE",
            by_keys: Some("DELETE FROM `{table}` WHERE session_key IN"),
            postpone: None,
        },
        describe: "SELECT CAST(column_name AS CHAR) AS name, CAST(data_type AS CHAR) AS type,
                          IF(column_key = 'PRI', 'true', 'false') AS is_key,
                          IF(is_nullable = 'NO' AND column_default IS NULL AND extra NOT LIKE '%auto_increment%'
                             AND extra NOT LIKE '%GENERATED%', 'true', 'false') AS is_mandatory
                  FROM information_schema.columns WHERE table_schema = database() AND table_name = ?",
    };

    const SCHEMA: &'static str = "CREATE TABLE `{table}` (
    `session_key` varchar(40) NOT NULL PRIMARY KEY,
    `session_data` longtext NOT NULL,
    `expire_date` datetime(6) NOT NULL
);
CREATE INDEX `{table}_expire_date_a5c62663` ON `{table}` (`expire_date`);
";

    const TYPES: [&'static str; 3] = ["varchar", "longtext", "datetime"];

    fn bind_text(query: Query<Self>, text: Option<&str>) -> Query<Self> {
        query.bind(text.map(str::to_owned))
    }

    fn bind_key(query: Query<Self>, key: &str) -> Query<Self> {
        Self::bind_text(Self::bind_text(query, Some(key)), Some(key))
    }

    fn read_text<'r>(row: &'r MySqlRow, column: &'static str) -> Result<&'r str, Corrupt> {
        row.try_get(column).map_err(|_| Corrupt::Column(column))
    }
}
