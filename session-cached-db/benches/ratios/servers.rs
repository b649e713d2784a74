//! Hits of caches in servers, against the bare command through the same kind of connection.

use std::hint::black_box;
use std::time::Duration;

use memcache::exp::{AsyncMetaClient, Get, Meta, MetaClientBuilder, Op, OpResult, Set, Ttl};
use session_cached_db::cache_backends::redis::driver;
use session_cached_db::session_core::{Cache, StoredKey};
use session_cached_db::{CachedDb, MemcachedCache, RedisCache, SqlitePersistence};

use crate::Effort;
use crate::figure::{Aim, Report, Times, crowd, median};
use crate::sessions::{SESSIONS, create};

const PREFIX: &str = "bench:";

/// Number of loads of a round that are made one at a time.
const ALONE: usize = 1_000;

/// Number of measurements with many loads in flight in a round, for the median: the same crowd takes twice
/// the time if the runtime's two threads and the server compete for two processors.
const CROWDS: usize = 5;

pub(crate) async fn redis(effort: Effort, report: &mut Report) {
    let Ok(url) = std::env::var("CONFORMANCE_REDIS_URL") else {
        return report.skip("redis_hit, redis_set_nx_get", "CONFORMANCE_REDIS_URL is not set");
    };
    let cache = RedisCache::builder().url(&url).key_prefix(PREFIX).build().unwrap();
    let world = World::new("redis", cache).await;
    // Connect as the cache itself does.
    let info = driver::IntoConnectionInfo::into_connection_info(url.as_str()).unwrap();
    let info = info.set_tcp_settings(driver::io::tcp::TcpSettings::default().set_nodelay(true));
    let client = driver::Client::open(info).unwrap();
    let config = driver::AsyncConnectionConfig::new().set_response_timeout(None);
    let get = Redis(client.get_multiplexed_async_connection_with_config(&config).await.unwrap());
    world.hits(get.clone(), effort, report).await;
    let what = "raw SET NX GET, which a load sends, against a raw GET";
    world.acquisitions("redis_set_nx_get", what, get, effort, report).await;
}

pub(crate) async fn memcached(effort: Effort, report: &mut Report) {
    let Ok(url) = std::env::var("CONFORMANCE_MEMCACHED_URL") else {
        return report.skip("memcached_hit, memcached_mg_ms", "CONFORMANCE_MEMCACHED_URL is not set");
    };
    let servers = url.trim_start_matches("memcache://").split(',');
    let cache = MemcachedCache::builder().servers(servers.clone()).key_prefix(PREFIX).build().unwrap();
    let world = World::new("memcached", cache).await;
    let client = MetaClientBuilder::new()
        .max_connections(Some(64))
        .max_idle(64)
        .connect_timeout(Some(Duration::from_secs(1)))
        .io_timeout(Some(Duration::from_millis(500)));
    let first = servers.clone().next().unwrap().to_owned();
    let client = client.connect_async(first).await.unwrap();
    let get = Memcached(client);
    world.hits(get.clone(), effort, report).await;
    let what = "raw mg and ms in one write, which a load sends, against a raw mg";
    world.acquisitions("memcached_mg_ms", what, get, effort, report).await;
}

/// Bare commands. Each returns the number of bytes that it finds under a key.
trait Raw: Clone + Send + Sync + 'static {
    /// Sends the command that only gets.
    fn get(&mut self, key: &StoredKey) -> impl Future<Output = usize> + Send;

    /// Sends the command, or the two in one write, that gets the record or the right to fill it.
    fn acquire(&mut self, key: &StoredKey) -> impl Future<Output = usize> + Send;
}

/// The lease that `acquire` places under a vacant key, which does not happen here.
const LEASE: [u8; 10] = [0; 10];

#[derive(Clone)]
struct Redis(driver::aio::MultiplexedConnection);

impl Raw for Redis {
    async fn get(&mut self, key: &StoredKey) -> usize {
        let bytes: Vec<u8> = driver::cmd("GET")
            .arg(format!("{PREFIX}{}", key.as_str()))
            .query_async(&mut self.0)
            .await
            .unwrap();
        bytes.len()
    }

    async fn acquire(&mut self, key: &StoredKey) -> usize {
        let mut command = driver::cmd("SET");
        command.arg(format!("{PREFIX}{}", key.as_str())).arg(LEASE.as_slice());
        let bytes: Vec<u8> =
            command.arg("NX").arg("GET").arg("PX").arg(10_000).query_async(&mut self.0).await.unwrap();
        bytes.len()
    }
}

#[derive(Clone)]
struct Memcached(AsyncMetaClient);

impl Raw for Memcached {
    async fn get(&mut self, key: &StoredKey) -> usize {
        let get = Get::new(format!("{PREFIX}{}", key.as_str())).meta(Meta::NONE.cas());
        self.0.run(get).await.unwrap().value.unwrap().len()
    }

    async fn acquire(&mut self, key: &StoredKey) -> usize {
        let name = format!("{PREFIX}{}", key.as_str());
        let get = Get::new(&name).meta(Meta::NONE.cas());
        let add = Set::new(&name, LEASE).ttl(Ttl::secs(10)).force_cas(fastrand::u64(1..)).add();
        let mut answers = self.0.run_batch([Op::Get(get), Op::Set(add)]).await.unwrap();
        let Ok(OpResult::Get(found)) = answers.swap_remove(0) else { panic!("nothing was found") };
        found.value.unwrap().len()
    }
}

struct World<C> {
    name: &'static str,
    store: CachedDb<C, SqlitePersistence>,
    keys: Vec<StoredKey>,
    _dir: tempfile::TempDir,
}

impl<C: Cache + Clone> World<C> {
    async fn new(name: &'static str, cache: C) -> Self {
        eprintln!("{name}: making {SESSIONS} sessions");
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/bench.db", dir.path().display());
        let db = SqlitePersistence::connect(&url).await.unwrap();
        let store = CachedDb::builder(cache, db).reaper(None).build().await.unwrap();
        let keys = create(&store, SESSIONS).await.iter().map(|session| session.key).collect();
        Self { name, store, keys, _dir: dir }
    }

    async fn load(&self, key: &StoredKey) {
        black_box(self.store.load(key).await.unwrap().unwrap());
    }

    /// Loads the sessions that the cache no longer holds.
    async fn warm(&self) {
        for key in &self.keys {
            self.load(key).await;
        }
    }

    async fn hits(&self, mut get: impl Raw, effort: Effort, report: &mut Report) {
        self.warm().await;
        let before = self.store.stats();
        let (mut one, mut many) = (Vec::new(), Vec::new());
        for round in 0..effort.rounds {
            let start = round * ALONE % self.keys.len();
            let (mut raw, mut hit) = (Times::default(), Times::default());
            for key in &self.keys[start..start + ALONE] {
                assert!(raw.time(get.get(key)).await > 900);
                hit.time(self.load(key)).await;
            }
            one.push(hit.median() / raw.median());

            let (mut raw, mut hit) = (Vec::new(), Vec::new());
            for _ in 0..CROWDS {
                raw.push(self.gets_of_many(&get).await);
                hit.push(self.loads_of_many().await);
            }
            many.push(median(&hit) / median(&raw));
        }
        let after = self.store.stats();
        assert_eq!(after.misses + after.bypasses, before.misses + before.bypasses, "not all were hits");
        let what = "load, hit, against the raw command that gets as many bytes";
        report.add(format!("{}_hit", self.name), Aim::AtMost(1.1), what, one);
        report.add(format!("{}_hit_64", self.name), Aim::AtMost(1.1), what, many);
    }

    async fn loads_of_many(&self) -> f64 {
        let hit = crowd(&self.keys, |keys| {
            let store = self.store.clone();
            async move {
                for key in keys {
                    black_box(store.load(&key).await.unwrap().unwrap());
                }
            }
        });
        hit.await
    }

    async fn gets_of_many(&self, raw: &impl Raw) -> f64 {
        let got = crowd(&self.keys, |keys| {
            let mut raw = raw.clone();
            async move {
                for key in keys {
                    black_box(raw.get(&key).await);
                }
            }
        });
        got.await
    }

    async fn acquires_of_many(&self, raw: &impl Raw) -> f64 {
        let acquired = crowd(&self.keys, |keys| {
            let mut raw = raw.clone();
            async move {
                for key in keys {
                    black_box(raw.acquire(&key).await);
                }
            }
        });
        acquired.await
    }

    /// Measures the command that gets the record or the right to fill it, against the one that only gets.
    async fn acquisitions(
        &self,
        name: &str,
        what: &'static str,
        mut raw: impl Raw,
        effort: Effort,
        report: &mut Report,
    ) {
        let (mut one, mut many) = (Vec::new(), Vec::new());
        let (mut against, mut against_many) = (Vec::new(), Vec::new());
        for round in 0..effort.rounds {
            let start = round * ALONE % self.keys.len();
            let (mut get, mut acquire, mut hit) = (Times::default(), Times::default(), Times::default());
            for key in &self.keys[start..start + ALONE] {
                get.time(raw.get(key)).await;
                assert!(acquire.time(raw.acquire(key)).await > 900);
                hit.time(self.load(key)).await;
            }
            one.push(acquire.median() / get.median());
            against.push(hit.median() / acquire.median());

            let (mut get, mut acquire, mut hit) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..CROWDS {
                get.push(self.gets_of_many(&raw).await);
                acquire.push(self.acquires_of_many(&raw).await);
                hit.push(self.loads_of_many().await);
            }
            many.push(median(&acquire) / median(&get));
            against_many.push(median(&hit) / median(&acquire));
        }
        let hit = format!("{}_hit_vs_{}", self.name, name.split_once('_').unwrap().1);
        report.add(name, Aim::None, what, one);
        report.add(format!("{name}_64"), Aim::None, what, many);
        let what = "load, hit, against the same";
        report.add(format!("{hit}_64"), Aim::None, what, against_many);
        report.add(hit, Aim::None, what, against);
    }
}
