//! The space of a SQLite file and its log: how much of it is empty, and how the file shrinks.
//!
//! A file that we make has incremental auto-vacuum: SQLite keeps notes of where pages are referred to, so that
//! pages can be moved. A file that was made without it needs one whole `VACUUM` first.

use sqlx::{Row as _, SqliteConnection, query, query_as};

use crate::Finding;
use crate::inspect::{mebibytes, percent};

/// The maximum number of pages by which the file shrinks after a batch of removals: 1 MiB, about what a batch leaves.
const PAGES_AT_ONCE: i64 = 256;

/// The value of `auto_vacuum` for a file that gives back space when it is told to.
const INCREMENTAL: i64 = 2;

#[derive(Clone, Copy, Debug)]
struct Pages {
    all: i64,
    empty: i64,
    bytes: i64,
    auto_vacuum: i64,
}

async fn pages(connection: &mut SqliteConnection) -> sqlx::Result<Pages> {
    let (all, empty, bytes, auto_vacuum) = query_as(
        "SELECT page_count, freelist_count, page_size, auto_vacuum
         FROM pragma_page_count, pragma_freelist_count, pragma_page_size, pragma_auto_vacuum",
    )
    .fetch_one(connection)
    .await?;
    Ok(Pages { all, empty, bytes, auto_vacuum })
}

impl Pages {
    /// Returns how many pages to give back now. An eighth of the file stays empty, for the next sessions.
    fn surplus(self) -> i64 {
        let surplus = self.empty.saturating_sub(self.all / 8).clamp(0, PAGES_AT_ONCE);
        if self.auto_vacuum == INCREMENTAL { surplus } else { 0 }
    }

    fn finding(self) -> Finding {
        let share = percent(self.empty, self.all);
        let size = mebibytes(self.all.saturating_mul(self.bytes));
        let is_large = self.empty.saturating_mul(self.bytes) > 16 << 20;
        let gives_back = self.auto_vacuum == INCREMENTAL;
        let how = if gives_back { "and gives back space" } else { "and never gives back space" };
        Finding::noted_or_warned(
            share > 50 && is_large && !gives_back,
            format!("the file has {size}, of which {share} % are empty, {how}"),
            "run `sessionctl vacuum` while the application does not write",
        )
    }
}

/// Makes a new file one that gives back space. On a file that is not new, this would wait for the lock to write,
/// and change nothing.
pub(super) async fn prepare_new_file(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    if pages(connection).await?.all == 0 {
        query("PRAGMA auto_vacuum = INCREMENTAL").persistent(false).execute(connection).await?;
    }
    Ok(())
}

/// The milliseconds for which the log waits for readers before it is begun anew.
const PATIENCE: i64 = 50;

/// Begins the write-ahead log anew. Returns `false` if a reader was in the way for too long.
pub(super) async fn restart_log(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    let timeout = query("PRAGMA busy_timeout").persistent(false).fetch_one(&mut *connection).await?;
    let timeout: i64 = timeout.try_get(0)?;
    set_busy_timeout(connection, PATIENCE.min(timeout)).await?;
    let restart = query("PRAGMA wal_checkpoint(RESTART)").persistent(false);
    let restarted = restart.fetch_one(&mut *connection).await;
    set_busy_timeout(connection, timeout).await?;
    Ok(restarted?.try_get::<i64, _>(0)? == 0)
}

async fn set_busy_timeout(connection: &mut SqliteConnection, millis: i64) -> sqlx::Result<()> {
    let set = format!("PRAGMA busy_timeout = {millis}");
    // Safe, because it is a number.
    query(sqlx::AssertSqlSafe(set)).persistent(false).execute(connection).await?;
    Ok(())
}

/// Shrinks the file by some empty pages at its end, if there are many.
pub(super) async fn shrink(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let surplus = pages(connection).await?.surplus();
    if surplus > 0 {
        let shrink = format!("PRAGMA incremental_vacuum({surplus})");
        // Safe, because it is a number. Each page is a row of the answer.
        query(sqlx::AssertSqlSafe(shrink)).persistent(false).fetch_all(connection).await?;
    }
    Ok(())
}

pub(super) async fn examine(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Finding>> {
    Ok(vec![pages(connection).await?.finding()])
}

/// Rewrites the file without its empty pages, so that it gives back space from then on.
pub(super) async fn vacuum(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    for statement in ["PRAGMA auto_vacuum = INCREMENTAL", "VACUUM"] {
        query(statement).persistent(false).execute(&mut *connection).await?;
    }
    // Pages that do not fit into the file yet stay in the log until the last reader has gone.
    let checkpoint = query("PRAGMA wal_checkpoint(TRUNCATE)").persistent(false);
    checkpoint.fetch_one(connection).await?.try_get::<i64, _>(0)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FindingSeverity::{Note, Warning};

    const FULL: Pages = Pages { all: 80_000, empty: 1_000, bytes: 4_096, auto_vacuum: INCREMENTAL };

    #[test]
    fn only_surplus_of_a_file_that_can_is_given_back_bit_by_bit() {
        for (pages, surplus) in [
            (FULL, 0),
            (Pages { empty: 10_001, ..FULL }, 1),
            (Pages { empty: 60_000, ..FULL }, PAGES_AT_ONCE),
            (Pages { empty: 60_000, auto_vacuum: 0, ..FULL }, 0),
        ] {
            assert_eq!(pages.surplus(), surplus, "{pages:?}");
        }
    }

    #[test]
    fn mostly_empty_file_that_gives_nothing_back_is_warned_of() {
        for (pages, severity) in [
            (FULL, Note),
            (Pages { empty: 60_000, ..FULL }, Note),
            (Pages { empty: 60_000, auto_vacuum: 0, ..FULL }, Warning),
            (Pages { all: 100, empty: 90, auto_vacuum: 0, ..FULL }, Note),
        ] {
            assert_eq!(pages.finding().severity, severity, "{pages:?}");
        }
    }
}
