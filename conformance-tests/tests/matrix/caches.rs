//! The caches of the matrix. Keys are random, so a server with other users is safe.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cache_backends::memcached::MemcachedCache;
use cache_backends::moka::MokaCache;
use cache_backends::near::{NearCache, near};
use cache_backends::redis::RedisCache;
use cache_backends::redis::driver::aio::ConnectionLike;
use cache_backends::redis::driver::cluster::ClusterClient;
use cache_backends::redis::driver::{Client, Value, cmd};
use conformance_tests::cache::CacheFixture;
use conformance_tests::notices::NoticeFixture;
use memcache::exp::{AsyncMetaClient, Get, MetaClient, MutationStatus, Set, Ttl};
use session_cached_db::TokioRuntime;
use session_core::{Cache as _, DynCache, NearEvent, NearObserver, Runtime, Stamp, StoredKey};

/// The default prefix that the backends put in front of keys.
const PREFIX: &str = "session:";

/// A TTL longer than any case takes.
const TTL: Duration = Duration::from_secs(120);

fn name(key: &StoredKey) -> String {
    format!("{PREFIX}{}", key.as_str())
}

/// A cache by URL, erased.
pub(crate) struct Erased(pub(crate) String);

impl CacheFixture for Erased {
    type Cache = Arc<dyn DynCache>;

    async fn open(&self) -> Self::Cache {
        cache_backends::connect(&self.0).expect("the URL is right")
    }
}

/// Redis or Valkey: in a cluster, behind sentinels, or neither.
pub(crate) struct Redis(pub(crate) String);

/// Returns the URL of the present master for a URL of sentinels.
async fn master(url: &str) -> String {
    let (hosts, service) = url
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once('/'))
        .expect("the URL of sentinels ends with a name");
    let sentinel = hosts.split(',').next().unwrap_or_default();
    let client = Client::open(format!("redis://{sentinel}/")).expect("the URL is right");
    let mut connection = client.get_multiplexed_async_connection().await.expect("the sentinel answers");
    let mut question = cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
    let (host, port): (String, u16) = question.query_async(&mut connection).await.expect("it knows the name");
    format!("redis://{host}:{port}/")
}

impl Redis {
    async fn connection(&self) -> Box<dyn ConnectionLike + Send> {
        match self.0.split_once("+cluster") {
            Some((scheme, rest)) => {
                let hosts = rest.trim_start_matches("://").trim_end_matches('/');
                let urls = hosts.split(',').map(|host| format!("{scheme}://{host}/"));
                let client = ClusterClient::new(urls).expect("the URL is right");
                Box::new(client.get_async_connection().await.expect("the cluster answers"))
            }
            None => {
                let is_sentinels = self.0.contains("+sentinel");
                let url = if is_sentinels { master(&self.0).await } else { self.0.clone() };
                let client = Client::open(url).expect("the URL is right");
                Box::new(client.get_multiplexed_async_connection().await.expect("the server answers"))
            }
        }
    }
}

impl NoticeFixture for Redis {
    type Source = RedisCache;

    async fn open(&self) -> RedisCache {
        CacheFixture::open(self).await
    }
}

impl CacheFixture for Redis {
    type Cache = RedisCache;

    async fn open(&self) -> RedisCache {
        RedisCache::builder().url(&self.0).build().expect("the URL is right")
    }

    async fn plant(&self, key: &StoredKey, bytes: Bytes) -> bool {
        let mut connection = self.connection().await;
        let mut set = cmd("SET");
        set.arg(name(key)).arg(&*bytes).arg("EX").arg(TTL.as_secs());
        connection.req_packed_command(&set).await.expect("Redis takes it");
        true
    }

    async fn plant_state(&self, key: &StoredKey, stamp: Stamp, state: Bytes) -> bool {
        self.plant(key, [&stamp.0.get().to_be_bytes(), &*state].concat().into()).await
    }

    async fn copy(&self, from: &StoredKey, to: &StoredKey) -> bool {
        // `COPY` does not work: the keys may be on different nodes of a cluster.
        let mut connection = self.connection().await;
        let found = connection.req_packed_command(cmd("GET").arg(name(from))).await;
        let Ok(Value::BulkString(bytes)) = found else { panic!("the entry is not there") };
        self.plant(to, bytes.into()).await
    }
}

/// Returns a near cache in front of Redis or Valkey, with memory of its own, as on a node of its own.
pub(crate) fn node(url: &str) -> NearCache<RedisCache> {
    let shared = RedisCache::builder().url(url).build().expect("the URL is right");
    near(MokaCache::builder().build(), shared)
}

/// Near caches without a store.
pub(crate) struct Near(pub(crate) Redis);

/// The events of a near cache that belongs to no store.
#[derive(Debug)]
struct Unobserved;

impl NearObserver for Unobserved {
    fn note(&self, _: NearEvent<'_>) {}
}

impl CacheFixture for Near {
    type Cache = NearCache<RedisCache>;

    async fn open(&self) -> Self::Cache {
        let cache = node(&self.0.0);
        // As a store does. Otherwise memory would not be used.
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::current().expect("a case runs on one"));
        cache
            .near()
            .expect("it is one")
            .start(&runtime, Arc::new(Unobserved), None)
            .expect("it takes any store");
        cache
    }

    async fn plant(&self, key: &StoredKey, bytes: Bytes) -> bool {
        self.0.plant(key, bytes).await
    }

    async fn plant_state(&self, key: &StoredKey, stamp: Stamp, state: Bytes) -> bool {
        self.0.plant_state(key, stamp, state).await
    }

    async fn copy(&self, from: &StoredKey, to: &StoredKey) -> bool {
        self.0.copy(from, to).await
    }
}

/// A single memcached server.
pub(crate) struct Memcached(pub(crate) String);

impl Memcached {
    async fn client(&self) -> AsyncMetaClient {
        let address = self.0.split_once("://").map_or("", |(_, address)| address).trim_end_matches('/');
        MetaClient::builder().connect_async(address.to_owned()).await.expect("the server answers")
    }
}

impl CacheFixture for Memcached {
    type Cache = MemcachedCache;

    async fn open(&self) -> MemcachedCache {
        MemcachedCache::builder().url(&self.0).build().expect("the URL is right")
    }

    async fn plant(&self, key: &StoredKey, bytes: Bytes) -> bool {
        let set = Set::new(name(key), &bytes).ttl(Ttl::from(TTL));
        let done = self.client().await.run(set).await.expect("memcached answers");
        assert_eq!(done.status, MutationStatus::Applied);
        true
    }

    async fn plant_state(&self, key: &StoredKey, stamp: Stamp, state: Bytes) -> bool {
        let set = Set::new(name(key), &state).ttl(Ttl::from(TTL)).force_cas(stamp.0.get());
        let done = self.client().await.run(set).await.expect("memcached answers");
        assert_eq!(done.status, MutationStatus::Applied);
        true
    }

    async fn copy(&self, from: &StoredKey, to: &StoredKey) -> bool {
        let found = self.client().await.run(Get::new(name(from))).await.expect("memcached answers");
        self.plant(to, found.value.expect("it is there").into()).await
    }
}
