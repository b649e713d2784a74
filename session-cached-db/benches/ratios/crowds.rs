//! Saves of one session by many savers at once, each of its own key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use db_backends::sqlx::{Connection as _, MySqlConnection, PgConnection, query};
use futures_util::FutureExt as _;
use session_cached_db::session_core::{DynCache, DynDatabase};
use session_cached_db::{CachedDb, Coherence, Session, cache_backends};

use crate::Effort;
use crate::counted::{Count, Counted};
use crate::figure::{Aim, IN_FLIGHT, Report};
use crate::sessions::values;

/// The pairs of a cache and a database, after which the figures are named.
const FIGURES: [(&str, &str); 4] =
    [("moka", "sqlite"), ("redis", "postgres"), ("memcached", "mysql"), ("valkey", "mariadb")];

const CACHES: [&str; 5] = ["moka", "redis", "valkey", "redis-cluster", "memcached"];
const DATABASES: [&str; 4] = ["sqlite", "postgres", "mysql", "mariadb"];

/// The numbers of savers in the table.
const SAVERS: [usize; 4] = [1, 8, IN_FLIGHT, 512];

const TABLE: &str = "bench_crowds";
const DROP: &str = "DROP TABLE IF EXISTS bench_crowds, bench_crowds_schema";

pub(crate) async fn measure(effort: Effort, report: &mut Report) {
    for (cache, database) in FIGURES {
        let pair = format!("{cache}+{database}");
        match Hot::new(cache, database).await {
            Ok(hot) => hot.measure(&pair, effort, report).boxed().await,
            Err(reason) => {
                report.skip(&format!("crowd_{IN_FLIGHT}.{pair}, hot_statements_{IN_FLIGHT}.{pair}"), &reason);
            }
        }
    }
}

/// Prints a row for each pair and each number of savers, in Markdown. `wanted` has pairs such as
/// `redis+postgres`; an empty one means all.
pub(crate) async fn print_table(wanted: &[String]) {
    println!(
        "| pair | savers | statements per save | cache calls per save | degraded | failed | p50 | p99 |\n\
         |---|---|---|---|---|---|---|---|"
    );
    for cache in CACHES {
        for database in DATABASES {
            let pair = format!("{cache}+{database}");
            if !wanted.is_empty() && !wanted.contains(&pair) {
                continue;
            }
            match Hot::new(cache, database).await {
                Ok(hot) => hot.print_rows(&pair).boxed().await,
                Err(reason) => eprintln!("{pair}: NOT MEASURED, {reason}"),
            }
        }
    }
}

type Store = CachedDb<Counted<Arc<dyn DynCache>>, Counted<Arc<dyn DynDatabase>>>;

/// A session that many savers change.
struct Hot {
    store: Store,
    cache_calls: Count,
    statements: Count,
    cookie: String,
    database_url: String,
    _dir: tempfile::TempDir,
}

/// The outcomes of saves that were made at once.
#[derive(Default)]
struct Outcomes {
    latencies: Vec<Duration>,
    seconds: f64,
    degraded: usize,
    failed: usize,
    statements: u64,
    cache_calls: u64,
}

impl Hot {
    async fn new(cache: &str, database: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let cache_url = match cache {
            "moka" => "moka://".to_owned(),
            server => format!("{}?key_prefix=bench:", url_of(server)?),
        };
        let database_url = match database {
            "sqlite" => format!("sqlite://{}/bench.db", dir.path().display()),
            server => url_of(server)?,
        };
        drop_table(&database_url).await;
        let cache_backend = Counted::new(cache_backends::connect(&cache_url).unwrap());
        let db = db_backends::connect(&format!("{database_url}?table={TABLE}")).await.unwrap();
        let db = Counted::new(db);
        let (cache_calls, statements) = (cache_backend.count(), db.count());
        let builder = CachedDb::builder(cache_backend, db).reaper(None);
        let builder = if cache == "moka" { builder.sole_process() } else { builder };
        let store = builder.build().await.unwrap();
        let mut session = store.new_session();
        session.update(values(0)).unwrap();
        let _ = session.save().await.unwrap();
        let cookie = session.key().unwrap().expose().to_owned();
        Ok(Self { store, cache_calls, statements, cookie, database_url, _dir: dir })
    }

    async fn measure(self, pair: &str, effort: Effort, report: &mut Report) {
        let (mut times, mut statements) = (Vec::new(), Vec::new());
        // The first round is not measured: it adds the keys and makes all connections.
        for round in 0..=effort.rounds {
            let one_by_one = self.one_by_one(IN_FLIGHT, round).await;
            let at_once = self.at_once(IN_FLIGHT, round).await;
            assert_eq!(at_once.failed, 0, "not all were saved");
            if round > 0 {
                times.push(at_once.seconds / one_by_one);
                statements.push(at_once.statements as f64 / IN_FLIGHT as f64);
            }
        }
        self.close().await;
        let what =
            "time per save of 64 savers of one session at once, against 64 saves of it one after another";
        report.add(format!("crowd_{IN_FLIGHT}.{pair}"), Aim::AtMost(1.0), what, times);
        let what = "database statements per save when 64 savers of one session save at once, counted";
        report.add(format!("hot_statements_{IN_FLIGHT}.{pair}"), Aim::AtMost(1.0), what, statements);
    }

    async fn print_rows(self, pair: &str) {
        // Add the keys of the largest crowd, so that all crowds write as much.
        let mut session = self.store.open(&self.cookie).await.unwrap();
        for saver in 0..SAVERS[SAVERS.len() - 1] {
            session.insert(&key_of(saver), value_of(0)).unwrap();
        }
        let _ = session.save().await.unwrap();
        for savers in SAVERS {
            let rounds = 512_usize.div_ceil(savers).clamp(2, 200);
            let mut all = Outcomes::default();
            for round in 1..=rounds {
                all.add(self.at_once(savers, round).await);
            }
            all.latencies.sort_unstable();
            let saves = all.latencies.len();
            println!(
                "| {pair} | {savers} | {:.3} | {:.3} | {:.1} % | {:.1} % | {} | {} |",
                all.statements as f64 / saves as f64,
                all.cache_calls as f64 / saves as f64,
                100.0 * all.degraded as f64 / saves as f64,
                100.0 * all.failed as f64 / saves as f64,
                shown(all.latencies[saves / 2]),
                shown(all.latencies[saves * 99 / 100]),
            );
        }
        self.close().await;
    }

    /// Makes saves one after another, each of the session as it is then. Returns the time of the saves, in
    /// seconds.
    async fn one_by_one(&self, savers: usize, round: usize) -> f64 {
        let mut took = Duration::ZERO;
        for saver in 0..savers {
            let mut session = self.open(saver, round).await;
            let start = Instant::now();
            let _ = session.save().await.unwrap();
            took += start.elapsed();
        }
        took.as_secs_f64()
    }

    /// Makes saves at once, of sessions that were all opened before the first save.
    async fn at_once(&self, savers: usize, round: usize) -> Outcomes {
        let mut sessions = Vec::new();
        for saver in 0..savers {
            sessions.push(self.open(saver, round).await);
        }
        let (statements, cache_calls) = (self.statements.get(), self.cache_calls.get());
        let start = Instant::now();
        let saves = sessions.into_iter().map(|mut session| {
            tokio::spawn(async move {
                let start = Instant::now();
                let saved = session.save().await;
                (start.elapsed(), saved)
            })
        });
        let saves: Vec<_> = saves.collect();
        let mut outcomes = Outcomes::default();
        for save in saves {
            let (latency, saved) = save.await.unwrap();
            outcomes.latencies.push(latency);
            match saved {
                Ok(Coherence::Coherent) => {}
                Ok(Coherence::Degraded) => outcomes.degraded += 1,
                Err(_) => outcomes.failed += 1,
            }
        }
        outcomes.seconds = start.elapsed().as_secs_f64();
        outcomes.statements = self.statements.get() - statements;
        outcomes.cache_calls = self.cache_calls.get() - cache_calls;
        outcomes
    }

    /// Opens the session, and makes a saver's change.
    async fn open(&self, saver: usize, round: usize) -> Session {
        let mut session = self.store.open(&self.cookie).await.unwrap();
        session.insert(&key_of(saver), value_of(round)).unwrap();
        session
    }

    async fn close(self) {
        self.store.close().await;
        drop_table(&self.database_url).await;
    }
}

impl Outcomes {
    fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.seconds += other.seconds;
        self.degraded += other.degraded;
        self.failed += other.failed;
        self.statements += other.statements;
        self.cache_calls += other.cache_calls;
    }
}

fn key_of(saver: usize) -> String {
    format!("saver-{saver:03}")
}

/// Returns a value that differs from the one of the round before, and always has the same length.
fn value_of(round: usize) -> String {
    format!("{round:08}")
}

fn shown(latency: Duration) -> String {
    format!("{:.1} ms", latency.as_secs_f64() * 1_000.0)
}

fn url_of(server: &str) -> Result<String, String> {
    let variable = format!("CONFORMANCE_{}_URL", server.to_uppercase().replace('-', "_"));
    std::env::var(&variable).map_err(|_| format!("{variable} is not set"))
}

async fn drop_table(url: &str) {
    if url.starts_with("postgres") {
        let mut connection = PgConnection::connect(url).await.unwrap();
        query(DROP).execute(&mut connection).await.unwrap();
    } else if url.starts_with("mysql") {
        let mut connection = MySqlConnection::connect(url).await.unwrap();
        query(DROP).execute(&mut connection).await.unwrap();
    }
}
