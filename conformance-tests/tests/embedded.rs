//! The backends that need no server, as they are and erased.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::sync::Arc;

use cache_backends::moka::MokaCache;
use conformance_tests::pair::Pair;
use conformance_tests::persistence::{Damage, PersistenceFixture};
use conformance_tests::{Suite, libtest_mimic};
use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, raw_sql};
use session_core::{Cache, DynCache, DynDatabase, DynPersistence, Persistence, StoredKey};

fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let directory = tempfile::tempdir().expect("a directory for databases");
    let path = |name: &str| format!("sqlite://{}", directory.path().join(name).display());
    let (erased, erased_index) = (path("erased.db"), path("erased-index.db"));
    let file = |is_by_hand| File { url: path("file.db"), is_by_hand };
    let by_hand = |is_by_hand| File { url: path("by-hand.db"), is_by_hand };

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
        Suite::new("sqlite")
            .persistence(file(false))
            .subject_index(file(false))
            .scan(file(false))
            .rotations(file(false)),
        Suite::new("sqlite-by-hand").subject_index(by_hand(true)).scan(by_hand(true)),
        Suite::new("erased-sqlite").persistence(move || {
            let opened = opened(erased.clone());
            async move { Arc::new(opened.await) as Arc<dyn DynPersistence> }
        }),
        Suite::new("erased-index-sqlite")
            .persistence(erased_index_at(erased_index.clone()))
            .subject_index(erased_index_at(erased_index.clone()))
            .rotations(erased_index_at(erased_index)),
        Suite::new("moka+sqlite").pair(Pair { cache: moka(), persistence: at(path("pair.db")) }),
        Suite::new("sqlite-in-memory").persistence(move || {
            // There is only one handle: a second one would have a database of its own.
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

/// SQLite in a file, and another program that damages it.
struct File {
    url: String,
    /// `true` if the table was made by hand, so that its columns take values of any type.
    is_by_hand: bool,
}

impl File {
    async fn opened(&self) -> SqlitePersistence {
        SqlitePersistence::connect(&self.url).await.expect("the database opens")
    }

    async fn run(&self, sql: String) {
        let mut program =
            SqliteConnection::connect(&(self.url.clone() + "?mode=rwc")).await.expect("it opens");
        raw_sql(AssertSqlSafe(sql)).execute(&mut program).await.expect("the statements run");
    }
}

impl PersistenceFixture for File {
    type Persistence = SqlitePersistence;

    async fn open(&self) -> SqlitePersistence {
        let db = self.opened().await;
        if self.is_by_hand {
            self.run(db.schema_sql().replace("STRICT", "")).await;
        }
        db.migrate().await.expect("the table can be made");
        db
    }

    async fn open_before_migration(&self) -> Vec<SqlitePersistence> {
        let other = Self { url: format!("{}.{:016x}", self.url, fastrand::u64(..)), ..*self };
        vec![other.opened().await, other.opened().await, other.opened().await]
    }

    async fn damage(&self, key: &StoredKey, damage: Damage) -> bool {
        let change = match damage {
            Damage::Record => "subject = ''",
            Damage::Key => "key = key || ' x'",
            Damage::Times if self.is_by_hand => "created_at = 'yesterday'",
            _ => return false,
        };
        self.run(format!("UPDATE sessions SET {change} WHERE key = '{}'", key.as_str())).await;
        true
    }
}

fn erased_index_at(
    url: String,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = Box<dyn DynDatabase>> + Send>> + Send + Sync {
    move || {
        let opened = opened(url.clone());
        Box::pin(async move { Box::new(opened.await) as Box<dyn DynDatabase> })
    }
}

async fn opened(url: String) -> SqlitePersistence {
    let db = SqlitePersistence::connect(&url).await.expect("the database opens");
    db.migrate().await.expect("the table can be made");
    db
}
