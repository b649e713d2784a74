//! The state of a Postgres server.

use session_core::Timestamp;
use sqlx::{Connection as _, PgConnection, query_as, query_scalar};

use super::condition;
use crate::Inspection;
use crate::sql::columns::Column;
use crate::sql::table::TableName;

pub(super) async fn inspect(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Inspection> {
    // A pooler may run each statement outside of a transaction on another connection.
    let mut transaction = connection.begin().await?;
    // A replica's transactions are read-only.
    let (version, clock, is_read_only) = query_as::<_, (String, i64, bool)>(
        "SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
                current_setting('transaction_read_only') = 'on'",
    )
    .persistent(false)
    .fetch_one(&mut *transaction)
    .await?;
    let indexed: Vec<String> = query_scalar(
        "SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
         WHERE indrelid = to_regclass(quote_ident($1)) AND indisvalid",
    )
    .bind(table.as_str())
    .persistent(false)
    .fetch_all(&mut *transaction)
    .await?;
    let condition = condition::examine(&mut transaction, table).await?;
    transaction.rollback().await?;
    let missing_indexes = Column::missing_indexes(&indexed);
    Ok(Inspection {
        version,
        clock: Some(Timestamp::from_micros(clock)),
        is_read_only,
        findings: Vec::new(),
        condition,
        missing_indexes,
    })
}
