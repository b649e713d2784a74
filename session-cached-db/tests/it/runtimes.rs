//! A store that is used on another runtime than the one on which it was built, as workers of actix-web do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
use session_core::{Cache, CacheError, CacheProperties, Entry, Exchange, Expected, Scope, StoredKey};
use tokio::runtime::{Builder, Runtime};

/// A cache like one on a server, which needs a task for each call. It notes the threads on which its tasks run.
#[derive(Debug)]
struct WithTasks {
    entries: MokaCache,
    threads: Mutex<Vec<String>>,
}

impl WithTasks {
    async fn task(&self) {
        let name = async { std::thread::current().name().unwrap_or_default().to_owned() };
        let name = tokio::spawn(name).await.unwrap();
        self.threads.lock().unwrap().push(name);
    }
}

impl Cache for WithTasks {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        self.task().await;
        self.entries.get(key).await
    }

    async fn compare_exchange(
        &self,
        key: &StoredKey,
        expected: Expected,
        new: Option<Entry>,
        ttl: Duration,
    ) -> Result<Exchange, CacheError> {
        self.task().await;
        self.entries.compare_exchange(key, expected, new, ttl).await
    }

    fn properties(&self) -> CacheProperties {
        CacheProperties::new(Scope::Shared)
    }
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().unwrap()
}

#[test]
fn tasks_and_connections_of_backends_belong_to_the_runtime_of_the_store() {
    let (home, worker) = (runtime("home"), runtime("worker"));
    let cache = Arc::new(WithTasks { entries: MokaCache::builder().build(), threads: Mutex::default() });
    let store = home.block_on(async {
        let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
        CachedDb::builder(Arc::clone(&cache), db).build().await.unwrap()
    });
    let key = worker.block_on(async {
        let mut session = store.new_session();
        session.insert("visits", 1).unwrap();
        session.save().await.unwrap();
        let key = session.key().unwrap().expose().to_owned();
        assert!(store.open(&key).await.unwrap().key().is_some());
        assert!(store.open("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").await.unwrap().key().is_none());
        key
    });
    let threads = std::mem::take(&mut *cache.threads.lock().unwrap());
    assert!(threads.len() > 3 && threads.iter().all(|name| name == "home"), "{threads:?}");

    // The worker ends, and the store goes on.
    drop(worker);
    runtime("another worker").block_on(async {
        assert_eq!(store.open(&key).await.unwrap().get::<u32>("visits").unwrap(), Some(1));
        store.close().await;
    });
}
