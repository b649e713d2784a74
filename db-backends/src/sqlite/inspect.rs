//! What an operator asks.

use session_core::PersistenceError;
use sqlx::{SqliteConnection, query_scalar};

use super::{DIALECT, SqlitePersistence};
use crate::Inspection;
use crate::sql::table::TableName;

pub(super) async fn inspect(db: &SqlitePersistence) -> Result<Inspection, PersistenceError> {
    let table = db.table.clone();
    let inspection = db
        .connections
        .reader()
        .await?
        .perform(move |connection| Box::pin(async move { look(connection, &table).await }))
        .await;
    inspection.map_err(|error| DIALECT.reading(&error, &db.table))
}

async fn look(connection: &mut SqliteConnection, table: &TableName) -> sqlx::Result<Inspection> {
    let version = query_scalar("SELECT sqlite_version()").fetch_one(&mut *connection).await?;
    let indexed: Vec<String> = query_scalar(
        "SELECT c.name FROM pragma_index_list(?1) i, pragma_index_info(i.name) c
         WHERE c.seqno = 0 AND c.name IS NOT NULL",
    )
    .bind(table.as_str())
    .fetch_all(connection)
    .await?;
    Ok(Inspection::new(version, None, false, &indexed))
}
