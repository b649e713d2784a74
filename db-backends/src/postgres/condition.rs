//! The condition of the session table in Postgres after use.

use sqlx::{PgConnection, query_as};

use crate::Finding;
use crate::inspect::{mebibytes, percent};
use crate::sql::table::TableName;

/// Counts of the server, and sizes.
#[derive(Clone, Copy, Debug)]
struct Counts {
    updates: i64,
    hot: i64,
    live: i64,
    dead: i64,
    heap_bytes: i64,
    index_bytes: i64,
    /// The bytes of an average row, by the last `ANALYZE`; 0 before the first one.
    row_bytes: i64,
}

impl From<(i64, i64, i64, i64, i64, i64, i64)> for Counts {
    fn from(columns: (i64, i64, i64, i64, i64, i64, i64)) -> Self {
        let (updates, hot, live, dead, heap_bytes, index_bytes, row_bytes) = columns;
        Self { updates, hot, live, dead, heap_bytes, index_bytes, row_bytes }
    }
}

/// Fewer than these say nothing yet.
const ENOUGH_ROWS: i64 = 10_000;

/// The bytes of a row's header and its line pointer.
const ROW_OVERHEAD: i64 = 28;

/// The part of a page that the table's `fillfactor` fills, in percent.
const FILLED: i64 = 85;

pub(super) async fn examine(connection: &mut PgConnection, table: &TableName) -> sqlx::Result<Vec<Finding>> {
    let counts = query_as::<_, (i64, i64, i64, i64, i64, i64, i64)>(
        "SELECT coalesce(n_tup_upd, 0) AS updates, coalesce(n_tup_hot_upd, 0) AS hot,
                coalesce(n_live_tup, 0) AS live, coalesce(n_dead_tup, 0) AS dead,
                pg_relation_size(relid) AS heap_bytes, pg_indexes_size(relid) AS index_bytes,
                (SELECT coalesce(sum(avg_width), 0)::bigint FROM pg_stats
                 WHERE schemaname = t.schemaname AND tablename = t.relname) AS row_bytes
         FROM pg_stat_user_tables t WHERE relid = to_regclass(quote_ident($1))",
    );
    let counts = counts.bind(table.as_str()).persistent(false).fetch_optional(connection).await?;
    Ok(counts.map(|counts| findings(&counts.into())).unwrap_or_default())
}

fn findings(counts: &Counts) -> Vec<Finding> {
    let &Counts { updates, hot, live, dead, heap_bytes, index_bytes, row_bytes } = counts;
    let mut findings = Vec::new();
    if updates > 0 {
        let share = percent(hot, updates);
        findings.push(Finding::noted_or_warned(
            updates >= ENOUGH_ROWS && share < 80,
            format!("{share} % of {updates} updates touched no index (HOT)"),
            "is there an index of your own on expires_at, last_seen_at, version or payload? drop it. After a migration, \
             the share grows as pages get room; pg_stat_reset_single_table_counters begins to count anew",
        ));
    }
    let share = percent(dead, live.saturating_add(dead));
    findings.push(Finding::noted_or_warned(
        dead >= ENOUGH_ROWS && share > 20,
        format!("{dead} of {} rows are dead ({share} %)", live.saturating_add(dead)),
        "vacuum does not keep up: end transactions that are open for long (pg_stat_activity), look whether autovacuum \
         runs, and run VACUUM",
    ));
    let needed = live.saturating_mul(row_bytes.saturating_add(ROW_OVERHEAD)).saturating_mul(100) / FILLED;
    let empty = if row_bytes == 0 { 0 } else { heap_bytes.saturating_sub(needed).max(0) };
    let share = percent(empty, heap_bytes);
    findings.push(Finding::noted_or_warned(
        share > 50 && heap_bytes > 64 << 20,
        format!(
            "the table has {}, of which about {share} % are empty, and its indexes {}",
            mebibytes(heap_bytes),
            mebibytes(index_bytes)
        ),
        "new rows will use the room; to give it back, run pg_repack, or VACUUM FULL while no application runs, and \
         REINDEX TABLE CONCURRENTLY for the indexes",
    ));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FindingSeverity::{Note, Warning};

    const SOUND: Counts = Counts {
        updates: 100_000,
        hot: 98_000,
        live: 100_000,
        dead: 10_000,
        heap_bytes: 140 << 20,
        index_bytes: 16 << 20,
        row_bytes: 1_100,
    };

    #[test]
    fn table_that_does_not_age_well_is_warned_of() {
        for (counts, severities) in [
            (SOUND, [Note, Note, Note]),
            (Counts { hot: 50_000, ..SOUND }, [Warning, Note, Note]),
            (Counts { dead: 40_000, ..SOUND }, [Note, Warning, Note]),
            (Counts { live: 10_000, dead: 100, ..SOUND }, [Note, Note, Warning]),
            // Never analyzed.
            (Counts { live: 10_000, dead: 100, row_bytes: 0, ..SOUND }, [Note, Note, Note]),
        ] {
            let found = findings(&counts);
            let found_severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
            assert_eq!(found_severities, severities, "{found:#?}");
        }
    }
}
