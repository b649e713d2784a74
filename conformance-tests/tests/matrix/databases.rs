//! The databases of the matrix. Each suite has a table of its own, because the server may have other users.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use conformance_tests::Suite;
use conformance_tests::cache::CacheFixture;
use conformance_tests::pair::Pair;
use conformance_tests::persistence::{Damage, PersistenceFixture};
use db_backends::mysql::MySqlPersistence;
use db_backends::postgres::PostgresPersistence;
use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, raw_sql};
use session_core::{PersistenceError, Rotations, Scan, StoredKey, SubjectIndex};
use tokio::sync::OnceCell;

use super::kind;

/// Few connections for each handle, because many cases run at once, with three handles each.
const MAX_CONNECTIONS: u16 = 4;

/// A database that is reached by URL.
trait Database: SubjectIndex + Scan + Rotations + Sized {
    fn open(url: &str, table: &str) -> impl Future<Output = Result<Self, PersistenceError>> + Send;
}

impl Database for SqlitePersistence {
    async fn open(url: &str, table: &str) -> Result<Self, PersistenceError> {
        Self::builder().table(table).connect(url).await
    }
}

impl Database for PostgresPersistence {
    async fn open(url: &str, table: &str) -> Result<Self, PersistenceError> {
        Self::builder().table(table).max_connections(MAX_CONNECTIONS).connect(url).await
    }
}

impl Database for MySqlPersistence {
    async fn open(url: &str, table: &str) -> Result<Self, PersistenceError> {
        Self::builder().table(table).max_connections(MAX_CONNECTIONS).connect(url).await
    }
}

/// Adds the contract of a database to a suite.
pub(crate) fn alone(suite: Suite, name: &str, url: &str, made: &Made) -> Suite {
    match kind(name) {
        "postgres" => contract::<PostgresPersistence>(suite, url, made),
        "mysql" | "mariadb" => contract::<MySqlPersistence>(suite, url, made),
        _ => panic!("no table of the database {name}: add it here"),
    }
}

fn contract<D: Database>(suite: Suite, url: &str, made: &Made) -> Suite {
    let table = || Table::<D>::new(url.to_owned(), made);
    suite.persistence(table()).subject_index(table()).scan(table()).rotations(table())
}

/// The database of a pair.
pub(crate) struct InPair<'a> {
    pub(crate) name: &'a str,
    pub(crate) url: String,
    pub(crate) made: &'a Made,
}

impl InPair<'_> {
    /// Adds the contract of the pair with `cache` to a suite.
    pub(crate) fn with<C: CacheFixture>(self, suite: Suite, cache: C) -> Suite {
        match kind(self.name) {
            "sqlite" => suite.pair(Pair { cache, persistence: self.table::<SqlitePersistence>() }),
            "postgres" => suite.pair(Pair { cache, persistence: self.table::<PostgresPersistence>() }),
            "mysql" | "mariadb" => suite.pair(Pair { cache, persistence: self.table::<MySqlPersistence>() }),
            name => panic!("no table of the database {name}: add it here"),
        }
    }

    fn table<D: Database>(self) -> Table<D> {
        Table::new(self.url, self.made)
    }
}

/// Tables that were made, each with the URL of its database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made(Arc<Mutex<Vec<(String, String)>>>);

impl Made {
    fn name(&self, url: &str) -> String {
        let name = format!("matrix_{:016x}", fastrand::u64(..));
        self.0.lock().expect("no panic").push((url.to_owned(), name.clone()));
        name
    }

    /// Drops the tables that are on servers of `urls`.
    pub(crate) async fn drop_on(&self, urls: &[String]) {
        let made = std::mem::take(&mut *self.0.lock().expect("no panic"));
        for (url, table) in made.into_iter().filter(|(url, _)| urls.contains(url)) {
            let dropped = drop_table(&url, &table).await;
            if let Err(error) = dropped {
                eprintln!("the table {table} stays: {error}");
            }
        }
    }
}

async fn drop_table(url: &str, table: &str) -> Result<(), db_backends::sqlx::Error> {
    run(url, format!("DROP TABLE IF EXISTS {table}, {table}_schema, {table}_rotations")).await
}

/// Runs statements as another program would.
async fn run(url: &str, sql: String) -> Result<(), db_backends::sqlx::Error> {
    let sql = AssertSqlSafe(sql);
    if url.starts_with("postgres") {
        let mut connection = PgConnection::connect(url).await?;
        raw_sql(sql).execute(&mut connection).await?;
    } else {
        let mut connection = MySqlConnection::connect(url).await?;
        raw_sql(sql).execute(&mut connection).await?;
    }
    Ok(())
}

/// A table that is migrated before it is used.
struct Table<D> {
    url: String,
    made: Made,
    /// The name of the table, once it is migrated.
    name: OnceCell<String>,
    database: PhantomData<fn() -> D>,
}

impl<D> Table<D> {
    fn new(url: String, made: &Made) -> Self {
        Self { url, made: made.clone(), name: OnceCell::new(), database: PhantomData }
    }
}

impl<D: Database> PersistenceFixture for Table<D> {
    type Persistence = D;

    async fn open(&self) -> D {
        let migrate = async || {
            let name = self.made.name(&self.url);
            let db = D::open(&self.url, &name).await.expect("the server lets us in");
            db.migrate().await.expect("the table can be made");
            name
        };
        let name = self.name.get_or_init(migrate).await;
        D::open(&self.url, name).await.expect("the server lets us in")
    }

    async fn open_before_migration(&self) -> Vec<D> {
        let name = self.made.name(&self.url);
        let mut handles = Vec::new();
        for _ in 0..3 {
            handles.push(D::open(&self.url, &name).await.expect("the server lets us in"));
        }
        handles
    }

    async fn damage(&self, key: &StoredKey, damage: Damage) -> bool {
        let Some(table) = self.name.get() else { return false };
        let is_postgres = self.url.starts_with("postgres");
        // The columns for times take only times.
        let change = match damage {
            Damage::Record => "subject = ''",
            Damage::Key if is_postgres => "key = key || ' x'",
            Damage::Key => "`key` = concat(`key`, ' x')",
            _ => return false,
        };
        let column = if is_postgres { "key" } else { "`key`" };
        let sql = format!("UPDATE {table} SET {change} WHERE {column} = '{}'", key.as_str());
        run(&self.url, sql).await.expect("the statement runs");
        true
    }
}
