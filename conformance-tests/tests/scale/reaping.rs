//! Reaping beside logins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cache_backends::moka::MokaCache;
use db_backends::postgres::PostgresPersistence;
use session_cached_db::{CachedDb, Reaper, Schema};

use crate::table::{DAY, Table, now, number, quantile};

const LOGINS_PER_SECOND: u64 = 200;

/// The time within which the reapers have to be done.
const PATIENCE: Duration = Duration::from_secs(1_200);

type Store = CachedDb<MokaCache, PostgresPersistence>;

async fn node(table: &Table, reaper: Option<Reaper>) -> Store {
    let cache = MokaCache::builder().max_bytes(64 << 20).build();
    let builder = CachedDb::builder(cache, table.open().await).schema(Schema::Trust).reaper(reaper);
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
    let logins = tokio::spawn(log_in(node(&table, None).await, Arc::clone(&alone)));
    tokio::time::sleep(Duration::from_secs(20)).await;
    alone.store(true, Ordering::Relaxed);
    let (mut before, failed_before) = logins.await.unwrap();

    let beside = Arc::new(AtomicBool::new(false));
    let logins = tokio::spawn(log_in(node(&table, None).await, Arc::clone(&beside)));
    // With the settings of every store, but for the ten minutes until the first round.
    let reaper = Some(Reaper::default().with_interval(Duration::from_secs(1)));
    let nodes = [node(&table, reaper).await, node(&table, reaper).await, node(&table, reaper).await];
    let began = Instant::now();
    let reaped = loop {
        let reaped = nodes.each_ref().map(|node| node.stats().reaped);
        if reaped.iter().sum::<u64>() >= rows || began.elapsed() > PATIENCE {
            break reaped;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
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
