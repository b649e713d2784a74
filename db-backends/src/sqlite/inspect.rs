//! The state of a SQLite database.

use sqlx::{SqliteConnection, query_scalar};

use super::space;
use crate::Inspection;
use crate::sql::columns::Column;
use crate::sql::table::TableName;

pub(super) async fn inspect(
    connection: &mut SqliteConnection,
    table: &TableName,
) -> sqlx::Result<Inspection> {
    let version = query_scalar("SELECT sqlite_version()").fetch_one(&mut *connection).await?;
    let indexed: Vec<String> = query_scalar(
        "SELECT c.name FROM pragma_index_list(?1) i, pragma_index_info(i.name) c
         WHERE c.seqno = 0 AND c.name IS NOT NULL",
    )
    .bind(table.as_str())
    .fetch_all(&mut *connection)
    .await?;
    let condition = space::examine(connection).await?;
    let missing_indexes = Column::missing_indexes(&indexed);
    Ok(Inspection {
        version,
        clock: None,
        is_read_only: false,
        findings: Vec::new(),
        condition,
        missing_indexes,
    })
}
