//! A login with a limit on the sessions of its subject, which has few of them or very many.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use session_cached_db::{CachedDb, MokaCache, Schema};

use crate::database::{DAY, Rows, Table, now};
use crate::times::Times;

const LIMIT: usize = 10;
const ROUNDS: u64 = 10;
const FEW: u64 = 5;
const MANY: u64 = 50_000;

/// The subject of the first round that has few sessions. Those before have many.
const FIRST_FEW: u64 = 1_000;

pub(crate) fn measure(database: &str) -> Value {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let table = runtime.block_on(async {
        let table = Table::open(database, "scale_logins").await;
        // Logins end sessions, so the table is made anew.
        table.run("DELETE FROM {t}").await;
        table.fill(ROUNDS * MANY, &format!("n % {ROUNDS}")).await;
        let subject = format!("{FIRST_FEW} + n % {ROUNDS}");
        let expires_at = now() + 14 * DAY;
        let few = Rows { first: 1, count: ROUNDS * FEW, key_prefix: Some("w"), subject, expires_at };
        table.add(&few).await;
        table
    });
    let (mut few, mut many) = (Times::default(), Times::default());
    for round in 0..ROUNDS {
        few.add(log_in(&table, &format!("user-{}", FIRST_FEW + round)));
        many.add(log_in(&table, &format!("user-{round}")));
    }
    runtime.block_on(table.run("DROP TABLE {t}"));
    runtime.block_on(table.run("DROP TABLE {t}_schema"));
    let figures = json!({ "database": database, "5": few.json(), "50000": many.json() });
    eprintln!("logins {figures}");
    figures
}

/// Logs in once, in a process of its own as it were: its background work ends with the runtime.
fn log_in(table: &Table, subject: &str) -> Duration {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let took = runtime.block_on(async {
        let cache = MokaCache::builder().max_bytes(64 << 20).build();
        let builder = CachedDb::builder(cache, table.db().await).schema(Schema::Trust).reaper(None);
        let store = builder.sole_process().max_sessions_per_subject(LIMIT).build().await.unwrap();
        let mut took = Duration::ZERO;
        // The first two prepare the statements.
        for subject in ["warm", "warm", subject] {
            let mut session = store.new_session();
            session.set_subject(subject).unwrap();
            let began = Instant::now();
            let _ = session.save().await.unwrap();
            took = began.elapsed();
        }
        took
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    took
}
