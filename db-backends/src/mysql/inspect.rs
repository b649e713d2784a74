//! The state of a MySQL or MariaDB server.

use session_core::Timestamp;
use sqlx::{MySqlConnection, query_as, query_scalar};

use super::condition;
use crate::Inspection;
use crate::sql::columns::Column;
use crate::sql::table::TableName;

pub(super) async fn inspect(connection: &mut MySqlConnection, table: &TableName) -> sqlx::Result<Inspection> {
    let (version, clock, read_only) = query_as::<_, (String, i64, i64)>(
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
    .fetch_all(&mut *connection)
    .await?;
    let condition = condition::examine(connection, table).await?;
    Ok(Inspection {
        version,
        clock: Some(Timestamp::from_micros(clock)),
        is_read_only: read_only != 0,
        findings: Vec::new(),
        condition,
        missing_indexes: Column::missing_indexes(&indexed),
    })
}
