//! What an operator asks.

use session_core::{PersistenceError, Timestamp};
use sqlx::{PgConnection, Row as _, query, query_scalar};

use super::{DIALECT, PostgresPersistence};
use crate::Inspection;
use crate::sql::table::TableName;

pub(super) async fn inspect(db: &PostgresPersistence) -> Result<Inspection, PersistenceError> {
    let table = db.table.clone();
    let inspection = db
        .connections
        .lease()
        .await?
        .perform(move |connection| Box::pin(async move { look(connection, &table).await }))
        .await;
    inspection.map_err(|error| DIALECT.reading(&error, &db.table))
}

async fn look(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Inspection> {
    // A replica's transactions are read-only.
    let server = query(
        "SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
                current_setting('transaction_read_only') = 'on'",
    )
    .fetch_one(&mut *connection)
    .await?;
    let indexed: Vec<String> = query_scalar(
        "SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
         WHERE indrelid = to_regclass(quote_ident($1)) AND indisvalid",
    )
    .bind(table.as_str())
    .fetch_all(connection)
    .await?;
    let clock = Timestamp::from_micros(server.try_get(1)?);
    Ok(Inspection::new(server.try_get(0)?, Some(clock), server.try_get(2)?, &indexed))
}
