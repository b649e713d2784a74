//! Hits of a cache in the process, against the cache underneath.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use session_cached_db::session_core::{Record, StoredKey};
use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};

use crate::Effort;
use crate::figure::{Aim, Report, crowd, timed};
use crate::sessions::{SESSIONS, Stored, create, moka};

type Store = CachedDb<MokaCache, SqlitePersistence>;
type Raw = moka::sync::Cache<StoredKey, Arc<Record>>;

struct World {
    store: Store,
    raw: Raw,
    sessions: Vec<Stored>,
    keys: Vec<StoredKey>,
}

pub(crate) async fn measure(effort: Effort, report: &mut Report) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/bench.db", dir.path().display());
    let db = async || SqlitePersistence::connect(&url).await.unwrap();
    let store =
        async || CachedDb::builder(moka(), db().await).sole_process().reaper(None).build().await.unwrap();
    let sessions = create(&store().await, SESSIONS).await;
    // Fill both caches together, so that neither is spread wider over the memory than the other, and keep the
    // cookies' texts as close together as the keys: memory locality is not to be measured.
    let (store, raw) = (store().await, Raw::new(1 << 20));
    let sessions: Vec<_> = sessions.iter().map(Stored::clone).collect();
    let mut keys = Vec::new();
    for session in &sessions {
        raw.insert(session.key, store.load(&session.key).await.unwrap().unwrap());
        keys.push(session.key);
    }
    let world = World { store, raw, sessions, keys };
    let before = world.store.stats();
    world.hits(effort, report).await;
    world.scaling(effort, report).await;
    let after = world.store.stats();
    assert_eq!(after.misses + after.bypasses, before.misses + before.bypasses, "not all were hits");
    world.allocations(report);
    world.burst(db().await, report).await;
}

impl World {
    async fn hits(&self, effort: Effort, report: &mut Report) {
        let (mut hit, mut open) = (Vec::new(), Vec::new());
        let (mut hit_64, mut open_64) = (Vec::new(), Vec::new());
        // Rounds are short, so run more of them.
        for _ in 0..2 * effort.rounds {
            let raw_time = timed(async {
                for key in &self.keys {
                    black_box(self.raw.get(key));
                }
            })
            .await;
            let hit_time = timed(async {
                for key in &self.keys {
                    black_box(self.store.load(key).await.unwrap());
                }
            })
            .await;
            let open_time = timed(async {
                for session in &self.sessions {
                    black_box(self.store.open(&session.cookie).await.unwrap());
                }
            })
            .await;
            hit.push(hit_time / raw_time);
            open.push(open_time / raw_time);

            let raw_time = crowd(&self.keys, |keys| {
                let raw = self.raw.clone();
                async move {
                    for key in keys {
                        black_box(raw.get(&key));
                    }
                }
            });
            let raw_time = raw_time.await;
            let hit_time = crowd(&self.keys, |keys| {
                let store = self.store.clone();
                async move {
                    for key in keys {
                        black_box(store.load(&key).await.unwrap());
                    }
                }
            });
            hit_64.push(hit_time.await / raw_time);
            let open_time = crowd(&self.sessions, |sessions| {
                let store = self.store.clone();
                async move {
                    for session in sessions {
                        black_box(store.open(&session.cookie).await.unwrap());
                    }
                }
            });
            open_64.push(open_time.await / raw_time);
        }
        let what = "load, hit, against a raw moka get of an Arc";
        report.add("moka_hit", Aim::AtMost(1.25), what, hit);
        report.add("moka_hit_64", Aim::AtMost(1.25), what, hit_64);
        let what = "open from the cookie's text, against the same raw get";
        report.add("moka_open", Aim::AtMost(1.6), what, open);
        report.add("moka_open_64", Aim::AtMost(1.6), what, open_64);
    }

    /// Measures whether two threads gain as much over one as with moka alone.
    async fn scaling(&self, effort: Effort, report: &mut Report) {
        let raw = || {
            for key in &self.keys {
                black_box(self.raw.get(key));
            }
        };
        let load = || {
            for key in &self.keys {
                // A hit never waits, so one poll completes it.
                black_box(self.store.load(key).now_or_never().unwrap().unwrap());
            }
        };
        // Both sides run in threads outside of the runtime's workers.
        let rounds = tokio::task::block_in_place(|| {
            (0..2 * effort.rounds)
                .map(|_| {
                    let raw_speedup = in_threads(1, raw) / in_threads(2, raw);
                    let speedup = in_threads(1, load) / in_threads(2, load);
                    speedup / raw_speedup
                })
                .collect()
        });
        let what = "throughput of hits, two threads against one, relative to raw moka's own";
        report.add("scaling", Aim::AtLeast(0.9), what, rounds);
    }

    fn allocations(&self, report: &mut Report) {
        let key = &self.keys[0];
        let counted = allocation_counter::measure(|| {
            for _ in 0..1_000 {
                black_box(self.store.load(key).now_or_never().unwrap().unwrap());
            }
        });
        let what = "counted, moka, load to Arc";
        report.add("allocations_per_hit", Aim::AtMost(2.0), what, vec![counted.count_total as f64 / 1_000.0]);
    }

    /// Counts the database reads when all loads are of the same cold key.
    async fn burst(&self, db: SqlitePersistence, report: &mut Report) {
        let cold = CachedDb::builder(moka(), db).sole_process().reaper(None).build().await.unwrap();
        let key = self.keys[0];
        let loads: Vec<_> = (0..256)
            .map(|_| {
                let cold = cold.clone();
                tokio::spawn(async move { cold.load(&key).await.unwrap().unwrap() })
            })
            .collect();
        for load in loads {
            load.await.unwrap();
        }
        let stats = cold.stats();
        let reads = (stats.misses + stats.bypasses) as f64;
        let what = "database reads that 256 loads of a cold key make";
        report.add("burst_of_256_db_reads", Aim::AtMost(1.0), what, vec![reads]);
    }
}

/// Returns the time per piece of work in seconds, when this many threads do it at the same time.
fn in_threads(threads: usize, work: impl Fn() + Sync) -> f64 {
    let barrier = std::sync::Barrier::new(threads);
    let total: f64 = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let start = Instant::now();
                    for _ in 0..5 {
                        work();
                    }
                    start.elapsed().as_secs_f64()
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // The mean time of one thread, over the number of threads that worked at once.
    total / (threads * threads) as f64
}
