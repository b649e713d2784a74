//! The time that a save has to wait while a table of millions is migrated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use db_backends::sqlx::{AssertSqlSafe, query};
use session_core::Persistence as _;

use crate::table::{DAY, Table, key, now, number, quantile};

const FIRST_VERSION: &str = include_str!("../golden/postgres-1.sql");

/// Saves as a node of the first version does, until `is_over`, and returns how long each save took.
async fn save_as_before(table: Arc<Table>, rows: u64, is_over: Arc<AtomicBool>) -> Vec<Duration> {
    let mut connection = table.connection().await;
    let save = format!(
        "UPDATE {} SET payload = $1, last_seen_at = $2, version = $3, subject = subject,
             expires_at = greatest($4, least($5, expires_at))
         WHERE key = $6 AND expires_at > $2 AND version = coalesce(NULL, version)",
        table.name
    );
    let mut times = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let (began, now) = (Instant::now(), now());
        let saved = query(AssertSqlSafe(save.clone()))
            .bind(vec![7_u8; 300])
            .bind(now.as_micros())
            .bind(fastrand::i64(..))
            .bind((now + 14 * DAY).as_micros())
            .bind(i64::MAX)
            .bind(key(fastrand::u64(1..=rows)).as_str().to_owned())
            .execute(&mut connection)
            .await
            .unwrap();
        times.push(began.elapsed());
        assert_eq!(saved.rows_affected(), 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures for minutes"]
async fn save_waits_less_than_a_second_for_a_migration() {
    let rows = number("SCALE_ROWS", 5_000_000);
    let table = Arc::new(Table::new());
    let make = FIRST_VERSION.lines().filter(|line| !line.starts_with("INSERT INTO \"{table}\" "));
    table.run(&make.collect::<Vec<_>>().join("\n").replace("{table}", &table.name)).await;
    let in_two_weeks = (now() + 14 * DAY).as_micros();
    table.fill(rows, 300, &format!("{in_two_weeks} + n"), "'user-' || n % 100000").await;
    table.run("ANALYZE {t}").await;

    let is_over = Arc::new(AtomicBool::new(false));
    let savers: Vec<_> = (0..8)
        .map(|_| tokio::spawn(save_as_before(Arc::clone(&table), rows, Arc::clone(&is_over))))
        .collect();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = Instant::now();
    table.migrated().await;
    let took = began.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    is_over.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for saver in savers {
        times.extend(saver.await.unwrap());
    }
    let (median, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    let longest = quantile(&mut times, 1.0);
    println!(
        "{rows} rows migrated in {took:.1?}; of {} saves meanwhile the longest took {longest:.1?}, p99 {p99:.1?}, median \
         {median:.1?}",
        times.len()
    );
    let table = Arc::into_inner(table).unwrap();

    // All rows are due once: they are postponed, not removed.
    let (db, began, mut calls) = (table.open().await, Instant::now(), 0);
    while db.delete_expired(now(), 1_000).await.unwrap().is_unfinished(1_000) {
        calls += 1;
    }
    println!("the reaper passed over all rows in {calls} batches, {:.1?} in all", began.elapsed());
    assert_eq!(table.number("SELECT count(*) FROM {t}").await, i64::try_from(rows).unwrap());
    drop(db);
    table.drop().await;
    assert!(longest < Duration::from_secs(1));
}
