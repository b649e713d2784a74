//! The traces that saves and touches leave in a table.

use std::sync::Arc;
use std::time::Instant;

use session_core::{Persistence as _, Record, RecordWrite, Timestamp};

use crate::table::{DAY, Table, key, now, number};

const TASKS: u64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures for minutes"]
async fn saves_and_touches_are_hot_updates() {
    let (rows, writes) = (number("SCALE_ROWS", 100_000), number("SCALE_WRITES", 200_000));
    let table = Table::new();
    let db = Arc::new(table.migrated().await);
    let in_two_weeks = (now() + 14 * DAY).as_micros();
    table.fill(rows, 1_000, &format!("{in_two_weeks} + n"), "'user-' || n % 1000").await;
    let (index_filled, _) = sizes(&table).await;
    // Keys that come in no order leave room in the pages of an index. What updates add is told by an index without it.
    table.run("REINDEX TABLE {t}").await;
    table.run("VACUUM ANALYZE {t}").await;
    let (index_before, heap_before) = sizes(&table).await;
    let began = Instant::now();
    let tasks = (0..TASKS).map(|task| {
        let db = Arc::clone(&db);
        tokio::spawn(async move {
            for n in 0..writes / TASKS {
                let (key, now) = (key(fastrand::u64(1..=rows)), now());
                if (n + task) % 2 == 0 {
                    db.touch(&key, now + 14 * DAY, Timestamp::MAX, now).await.unwrap();
                } else {
                    let mut record = db.load(&key, now).await.unwrap().unwrap();
                    record = Record::with_expires_at(record, now + 14 * DAY).with_last_seen_at(now);
                    db.update(&key, RecordWrite::new(&record), now).await.unwrap();
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let took = began.elapsed();
    // Other connections publish their counts within a second.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let counted =
        |column: &str| format!("SELECT {column}::bigint FROM pg_stat_user_tables WHERE relname = '{{t}}'");
    let (updates, hot) =
        (table.number(&counted("n_tup_upd")).await, table.number(&counted("n_tup_hot_upd")).await);
    let (index_after, heap_after) = sizes(&table).await;
    let share = hot as f64 / updates as f64;
    println!(
        "{rows} sessions of 1,000 bytes, {updates} updates in {took:.0?}: {:.2} % HOT; indexes {index_filled} bytes when \
         filled, {index_before} when made again -> {index_after}; table {heap_before} -> {heap_after} bytes",
        share * 100.0
    );
    table.drop().await;
    assert!(share >= 0.95, "{hot} of {updates} updates were HOT");
    assert!(index_after as f64 <= 1.2 * index_before as f64);
}

async fn sizes(table: &Table) -> (i64, i64) {
    let indexes = table.number("SELECT pg_indexes_size('{t}')").await;
    (indexes, table.number("SELECT pg_relation_size('{t}')").await)
}
