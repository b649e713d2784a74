//! Logins of subjects that have many sessions.

use std::time::{Duration, Instant};

use cache_backends::moka::MokaCache;
use session_cached_db::{CachedDb, Schema};

use crate::table::{DAY, Table, now, number, quantile};

const LIMIT: usize = 10;
const ROUNDS: u32 = 20;

/// Logs in once, in a process of its own as it were: what goes on in the background ends with the runtime.
fn log_in(table: &Table, subject: &str) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let took = runtime.block_on(async {
        let cache = MokaCache::builder().max_bytes(64 << 20).build();
        let builder = CachedDb::builder(cache, table.open().await).schema(Schema::Trust).reaper(None);
        let store = builder.sole_process().max_sessions_per_subject(LIMIT).build().await.unwrap();
        // Prepares the statements.
        let mut took = Duration::ZERO;
        for subject in ["nobody", "nobody", subject] {
            let mut session = store.new_session();
            session.set_subject(subject).unwrap();
            let began = Instant::now();
            session.save().await.unwrap();
            took = began.elapsed();
        }
        took
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    took
}

#[test]
#[ignore = "measures for minutes"]
fn login_with_50_000_sessions_costs_as_much_as_with_5() {
    let many = number("SCALE_ROWS", 50_000);
    let table = Table::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        table.migrated().await;
        let (in_two_weeks, rows) = ((now() + 14 * DAY).as_micros(), many * u64::from(ROUNDS));
        table.fill(rows, 100, &format!("{in_two_weeks} + n"), &format!("'many-' || n % {ROUNDS}")).await;
        let few = format!("UPDATE {{t}} SET subject = 'few-' || n % {ROUNDS} FROM (SELECT key AS k, row_number() OVER () AS n FROM {{t}} LIMIT {}) AS few WHERE key = k", ROUNDS * 5);
        table.run(&few).await;
        table.run("VACUUM ANALYZE {t}").await;
    });
    let (mut with_few, mut with_many) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        with_few.push(log_in(&table, &format!("few-{round}")));
        with_many.push(log_in(&table, &format!("many-{round}")));
    }
    let (few, many_took) = (quantile(&mut with_few, 0.5), quantile(&mut with_many, 0.5));
    println!(
        "a login with 5 sessions of its subject took {few:.2?}, with {many} sessions {many_took:.2?} (medians of {ROUNDS})"
    );
    runtime.block_on(table.drop());
    assert!(many_took < few.mul_f64(1.5));
}
