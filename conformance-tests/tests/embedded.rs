//! The backends that need no server, as they are and erased.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::sync::Arc;

use cache_backends::moka::MokaCache;
use conformance_tests::pair::Pair;
use conformance_tests::{Suite, libtest_mimic};
use db_backends::sqlite::SqlitePersistence;
use session_core::{Cache, DynCache, DynPersistence, DynSubjectIndex, Persistence};

fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let directory = tempfile::tempdir().expect("a directory for databases");
    let path = |name: &str| format!("sqlite://{}", directory.path().join(name).display());
    let (file, erased, erased_index) = (path("file.db"), path("erased.db"), path("erased-index.db"));

    let moka = || {
        let cache = MokaCache::builder().build();
        move || std::future::ready(cache.clone())
    };
    let erased_moka = MokaCache::builder().build();
    let shared_moka = Arc::new(MokaCache::builder().build());
    let twice_erased: Arc<dyn DynCache> =
        Arc::new(Box::new(MokaCache::builder().build()) as Box<dyn DynCache>);
    let in_memory = tokio::sync::OnceCell::const_new();
    let in_memory = Arc::new(in_memory);

    let suites = [
        Suite::new("moka").cache(moka()),
        Suite::new("erased-moka").cache(move || std::future::ready(erase(erased_moka.clone()))),
        Suite::new("shared-moka").cache(move || std::future::ready(Arc::clone(&shared_moka))),
        Suite::new("twice-erased-moka").cache(move || std::future::ready(Arc::clone(&twice_erased))),
        Suite::new("sqlite").persistence(at(file.clone())).subject_index(at(file.clone())).scan(at(file)),
        Suite::new("erased-sqlite").persistence(move || {
            let opened = opened(erased.clone());
            async move { Arc::new(opened.await) as Arc<dyn DynPersistence> }
        }),
        Suite::new("erased-index-sqlite")
            .persistence(erased_index_at(erased_index.clone()))
            .subject_index(erased_index_at(erased_index)),
        Suite::new("moka+sqlite").pair(Pair { cache: moka(), persistence: at(path("pair.db")) }),
        Suite::new("sqlite-in-memory").persistence(move || {
            // There is one handle to it: a second one would have a database of its own.
            let in_memory = Arc::clone(&in_memory);
            async move {
                Arc::clone(
                    in_memory
                        .get_or_init(|| async { Arc::new(opened("sqlite::memory:".into()).await) })
                        .await,
                )
            }
        }),
    ];
    let trials = suites.into_iter().flat_map(Suite::into_trials).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(directory);
    conclusion.exit();
}

fn erase(cache: impl Cache) -> Box<dyn DynCache> {
    Box::new(cache)
}

fn at(
    url: String,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = SqlitePersistence> + Send>> + Send + Sync {
    move || Box::pin(opened(url.clone()))
}

fn erased_index_at(
    url: String,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = Box<dyn DynSubjectIndex>> + Send>> + Send + Sync {
    move || {
        let opened = opened(url.clone());
        Box::pin(async move { Box::new(opened.await) as Box<dyn DynSubjectIndex> })
    }
}

async fn opened(url: String) -> SqlitePersistence {
    let db = SqlitePersistence::connect(&url).await.expect("the database opens");
    db.migrate().await.expect("the table can be made");
    db
}
