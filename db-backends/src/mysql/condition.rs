//! The condition of the session table in MySQL and MariaDB after use.

use sqlx::{MySqlConnection, query_as};

use crate::Finding;
use crate::inspect::{mebibytes, percent};
use crate::sql::table::TableName;

pub(super) async fn examine(
    connection: &mut MySqlConnection,
    table: &TableName,
) -> sqlx::Result<Vec<Finding>> {
    let sizes = query_as::<_, (i64, i64, i64)>(
        "SELECT CAST(coalesce(data_length, 0) AS SIGNED), CAST(coalesce(index_length, 0) AS SIGNED),
                CAST(coalesce(data_free, 0) AS SIGNED)
         FROM information_schema.tables WHERE table_schema = database() AND table_name = ?",
    );
    let sizes = sizes.bind(table.as_str()).fetch_optional(connection).await?;
    Ok(sizes.map(|(data, indexes, free)| vec![finding(data, indexes, free)]).unwrap_or_default())
}

/// InnoDB writes an index only when a value in it changes, so there is no share of updates to count.
fn finding(data: i64, indexes: i64, free: i64) -> Finding {
    let share = percent(free, data.saturating_add(indexes).saturating_add(free));
    Finding::noted_or_warned(
        share > 50 && free > 64 << 20,
        format!(
            "the table has {} and its indexes {}; {share} % of its file are free",
            mebibytes(data),
            mebibytes(indexes)
        ),
        "new rows will use the room; to give it back, run OPTIMIZE TABLE, which copies the table",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FindingSeverity::{Note, Warning};

    #[test]
    fn mostly_empty_file_is_warned_of() {
        for (data, free, severity) in [(100, 90, Note), (100, 200, Warning), (1, 60, Note)] {
            assert_eq!(finding(data << 20, 1 << 20, free << 20).severity, severity);
        }
    }
}
