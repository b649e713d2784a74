//! The example application, in the test's process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use session_cached_db::session_core::{DynCache, DynDatabase};
use session_cached_db::tower::{SessionCookie, SessionHandle};
use session_cached_db::{Builder, CachedDb, MokaCache, SqlitePersistence, cache_backends, db_backends};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Barrier;

use crate::site::{self, Accounts, Store};

type StoreBuilder = Builder<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

pub struct Server {
    pub store: Store,
    pub router: Router,
    meeting: Meeting,
    _directory: Arc<TempDir>,
}

/// A point at which requests that add to the cart wait for each other, if the test says so: each has read the
/// session, and none has changed it.
#[derive(Clone, Default)]
struct Meeting(Arc<Mutex<Option<Arc<Barrier>>>>);

impl Server {
    pub async fn new() -> Self {
        let cache: Arc<dyn DynCache> = Arc::new(MokaCache::builder().build());
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let db = sessions_in(&directory).await;
        Self::over(cache, db, Builder::sole_process, &directory).await
    }

    /// Creates two nodes of one site, each with a near cache in front of the Redis of this URL.
    pub async fn two_with_near_caches(redis: &str) -> [Self; 2] {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let prefix = format!("webapp-{:016x}:", fastrand::u64(..));
        let separator = if redis.contains('?') { '&' } else { '?' };
        // The bound is long enough that a busy machine does not make memory stale between two pages.
        let url = format!("near+{redis}{separator}key_prefix={prefix}&freshness_bound_ms=2000");
        let node = async || {
            let cache = cache_backends::connect(&url).unwrap();
            let db = sessions_in(&directory).await;
            Self::over(cache, db, |builder| builder.cache_timeout(Duration::from_secs(5)), &directory).await
        };
        [node().await, node().await]
    }

    /// Creates two nodes of one site, each with memory of its own, which the Postgres of this URL tells of changes.
    pub async fn two_told_by_postgres(postgres: &str) -> [Self; 2] {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let separator = if postgres.contains('?') { '&' } else { '?' };
        let url = format!("{postgres}{separator}table=webapp_{:016x}", fastrand::u64(..));
        let node = async || {
            let cache = cache_backends::connect("notified+moka://?freshness_bound_ms=2000").unwrap();
            let db = db_backends::connect(&url).await.unwrap();
            Self::over(cache, db, |builder| builder, &directory).await
        };
        [node().await, node().await]
    }

    async fn over(
        cache: Arc<dyn DynCache>,
        db: Arc<dyn DynDatabase>,
        configure: impl FnOnce(StoreBuilder) -> StoreBuilder,
        directory: &Arc<TempDir>,
    ) -> Self {
        let accounts = Accounts::open(&url_in(directory, "accounts.db")).await.unwrap();
        let store: Store = configure(CachedDb::builder(cache, db)).build().await.unwrap();

        let meeting = Meeting::default();
        let wait = meeting.clone();
        let wait = move |session: SessionHandle, request: Request, next: Next| {
            let meeting = wait.clone();
            async move {
                meeting.pass(&session, request.uri().path()).await;
                next.run(request).await
            }
        };
        let pages = site::pages_with_sessions().layer(middleware::from_fn(wait));
        let cookie = SessionCookie::default().plain_http(true);
        let router = site::complete(pages, store.clone(), accounts, cookie).unwrap();
        Self { store, router, meeting, _directory: Arc::clone(directory) }
    }

    /// Starts to listen, and returns the URL.
    pub async fn listen(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = self.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    /// Makes this many requests that add to the cart wait for each other.
    pub fn let_meet(&self, count: usize) {
        *self.meeting.0.lock().unwrap() = Some(Arc::new(Barrier::new(count)));
    }
}

fn url_in(directory: &TempDir, name: &str) -> String {
    format!("sqlite://{}", directory.path().join(name).display())
}

async fn sessions_in(directory: &TempDir) -> Arc<dyn DynDatabase> {
    Arc::new(SqlitePersistence::connect(&url_in(directory, "sessions.db")).await.unwrap())
}

impl Meeting {
    async fn pass(&self, session: &SessionHandle, path: &str) {
        let barrier = self.0.lock().unwrap().clone();
        if let (Some(barrier), "/cart/add") = (barrier, path) {
            drop(session.lock().await.unwrap());
            barrier.wait().await;
        }
    }
}
