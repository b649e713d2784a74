//! Reaping beside logins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cache_backends::moka::MokaCache;
use db_backends::postgres::PostgresPersistence;
use session_cached_db::{CachedDb, Schema};

use crate::table::{DAY, Table, now, number, quantile};

const LOGINS_PER_SECOND: u64 = 200;

type Store = CachedDb<MokaCache, PostgresPersistence>;

async fn node(table: &Table) -> Store {
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
    let builder = CachedDb::builder(cache, table.open().await).schema(Schema::Trust).reaper(None);
    builder.build().await.unwrap()
}

/// Logs in at a steady rate until `is_over`, and returns how long each login took, or that it failed.
async fn log_in(store: Store, is_over: Arc<AtomicBool>) -> (Vec<Duration>, usize) {
    let mut timer = tokio::time::interval(Duration::from_micros(1_000_000 / LOGINS_PER_SECOND));
    let mut logins = tokio::task::JoinSet::new();
    while !is_over.load(Ordering::Relaxed) {
        timer.tick().await;
        let store = store.clone();
        logins.spawn(async move {
            let mut session = store.new_session();
            session.set_subject(&format!("user-{}", fastrand::u32(..))).unwrap();
            let began = Instant::now();
            session.save().await.map(|_| began.elapsed())
        });
    }
    let (mut times, mut failed) = (Vec::new(), 0);
    while let Some(login) = logins.join_next().await {
        match login.unwrap() {
            Ok(time) => times.push(time),
            Err(_) => failed += 1,
        }
    }
    (times, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures for minutes"]
async fn three_nodes_reap_beside_logins() {
    let rows = number("SCALE_ROWS", 1_000_000);
    let table = Table::new();
    table.migrated().await;
    let yesterday = now().as_micros() - i64::try_from(DAY.as_micros()).unwrap();
    table.fill(rows, 300, &format!("{yesterday} - n"), "'user-' || n % 1000").await;
    table.run("VACUUM ANALYZE {t}").await;

    let alone = Arc::new(AtomicBool::new(false));
    let logins = tokio::spawn(log_in(node(&table).await, Arc::clone(&alone)));
    tokio::time::sleep(Duration::from_secs(20)).await;
    alone.store(true, Ordering::Relaxed);
    let (mut before, failed_before) = logins.await.unwrap();

    let beside = Arc::new(AtomicBool::new(false));
    let logins = tokio::spawn(log_in(node(&table).await, Arc::clone(&beside)));
    let began = Instant::now();
    let mut reapers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let store = node(&table).await;
        reapers.spawn(async move { store.clear_expired().await.unwrap() });
    }
    let reaped = reapers.join_all().await;
    let took = began.elapsed();
    beside.store(true, Ordering::Relaxed);
    let (mut during, failed) = logins.await.unwrap();
    let (p99_before, p99) = (quantile(&mut before, 0.99), quantile(&mut during, 0.99));
    println!(
        "three nodes reaped {reaped:?} of {rows} sessions in {took:.1?}; {} logins beside them: {failed} failed, p99 {p99:.2?}, \
         median {:.2?}; {} logins without: {failed_before} failed, p99 {p99_before:.2?}, median {:.2?}",
        during.len(),
        quantile(&mut during, 0.5),
        before.len(),
        quantile(&mut before, 0.5)
    );
    table.drop().await;
    assert_eq!(reaped.iter().sum::<u64>(), rows);
    assert_eq!(failed, 0);
    assert!(p99 <= p99_before * 2);
}
