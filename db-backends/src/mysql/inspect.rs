//! What an operator asks.

use session_core::{PersistenceError, Timestamp};
use sqlx::{MySqlConnection, Row as _, query, query_scalar};

use super::{DIALECT, MySqlPersistence};
use crate::Inspection;
use crate::sql::table::TableName;

pub(super) async fn inspect(db: &MySqlPersistence) -> Result<Inspection, PersistenceError> {
    let table = db.table.clone();
    let inspection = db
        .connections
        .lease()
        .await?
        .perform(move |connection| Box::pin(async move { look(connection, &table).await }))
        .await;
    inspection.map_err(|error| DIALECT.reading(&error, &db.table))
}

async fn look(connection: &mut MySqlConnection, table: &TableName) -> sqlx::Result<Inspection> {
    let server = query(
        "SELECT CAST(version() AS CHAR), timestampdiff(MICROSECOND, '1970-01-01', utc_timestamp(6)),
                CAST(@@global.read_only AS SIGNED)",
    )
    .fetch_one(&mut *connection)
    .await?;
    let indexed: Vec<String> = query_scalar(
        "SELECT CAST(column_name AS CHAR) FROM information_schema.statistics
         WHERE table_schema = database() AND table_name = ? AND seq_in_index = 1",
    )
    .bind(table.as_str())
    .fetch_all(connection)
    .await?;
    let clock = Timestamp::from_micros(server.try_get(1)?);
    let is_read_only = server.try_get::<i64, _>(2)? != 0;
    Ok(Inspection::new(server.try_get(0)?, Some(clock), is_read_only, &indexed))
}
