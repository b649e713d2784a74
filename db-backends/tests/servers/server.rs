//! A server of any kind, and what the tests do to it from outside.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use db_backends::django::DjangoPersistence;
use db_backends::mysql::{MySqlBuilder, MySqlPersistence};
use db_backends::postgres::{PostgresBuilder, PostgresPersistence};
use db_backends::sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPool, MySqlPoolOptions};
use db_backends::sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use db_backends::sqlx::{AssertSqlSafe, Connection as _, Row as _, query, raw_sql};
use session_core::{DynDatabase, Persistence as _, PersistenceError, Record, StoredKey, Timestamp};

use crate::proxy::Proxy;

pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
pub const LATER: Timestamp = Timestamp::from_secs(1_800_086_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    MySql,
    MariaDb,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MySql => "mysql",
            Self::MariaDb => "mariadb",
        }
    }

    pub fn url_var(self) -> &'static str {
        match self {
            Self::Postgres => "CONFORMANCE_POSTGRES_URL",
            Self::MySql => "CONFORMANCE_MYSQL_URL",
            Self::MariaDb => "CONFORMANCE_MARIADB_URL",
        }
    }
}

pub type Db = Arc<dyn DynDatabase>;

/// A server, and the name of a table on it that is the test's alone.
pub struct Server {
    pub kind: Kind,
    pub url: String,
    pub table: String,
}

impl Server {
    pub fn new(kind: Kind, url: String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let table = format!("t{nanos:x}_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { kind, url, table }
    }

    /// Connects over connections of its own.
    pub async fn connect(&self, settings: Settings) -> Result<Db, PersistenceError> {
        self.connect_to(&self.url, settings).await
    }

    pub async fn connect_to(&self, url: &str, settings: Settings) -> Result<Db, PersistenceError> {
        Ok(match self.kind {
            Kind::Postgres => Arc::new(settings.postgres().table(&self.table).connect(url).await?),
            _ => Arc::new(settings.mysql().table(&self.table).connect(url).await?),
        })
    }

    /// Returns the same server behind `proxy`.
    pub fn through(&self, proxy: &Proxy) -> Self {
        let url = self.url_with(&proxy.address, None);
        Self { kind: self.kind, url, table: self.table.clone() }
    }

    /// Connects over connections of its own, and returns also the future that closes them.
    pub async fn closable(&self, settings: Settings) -> (Db, Pin<Box<dyn Future<Output = ()> + Send>>) {
        match self.kind {
            Kind::Postgres => {
                let db = settings.postgres().table(&self.table).connect(&self.url).await.unwrap();
                let db = Arc::new(db);
                (Arc::<PostgresPersistence>::clone(&db) as Db, Box::pin(async move { db.close().await }))
            }
            _ => {
                let db = settings.mysql().table(&self.table).connect(&self.url).await.unwrap();
                let db = Arc::new(db);
                (Arc::<MySqlPersistence>::clone(&db) as Db, Box::pin(async move { db.close().await }))
            }
        }
    }

    /// Checks that the table is one of Django's.
    pub async fn check_django(&self) -> Result<(), PersistenceError> {
        match self.kind {
            Kind::Postgres => {
                let db = PostgresPersistence::connect(&self.url).await?;
                DjangoPersistence::over(db).with_table(&self.table)?.check_schema().await
            }
            _ => {
                let db = MySqlPersistence::connect(&self.url).await?;
                DjangoPersistence::over(db).with_table(&self.table)?.check_schema().await
            }
        }
    }

    /// Connects, and makes the table.
    pub async fn database(&self) -> Db {
        self.database_with(Settings::default()).await
    }

    pub async fn database_with(&self, settings: Settings) -> Db {
        let db = self.connect(settings).await.unwrap();
        db.migrate_dyn().await.unwrap();
        db
    }

    /// Uses an application's pool of this many connections, each of which runs `first` when it is opened.
    pub async fn pooled(&self, size: u32, first: &'static str) -> (Db, Pool) {
        let idle = Duration::from_secs(600);
        match self.kind {
            Kind::Postgres => {
                let pool = PgPoolOptions::new()
                    .max_connections(size)
                    .idle_timeout(idle)
                    .after_connect(move |connection, _| {
                        Box::pin(async move { raw_sql(first).execute(connection).await.map(|_| ()) })
                    })
                    .connect(&self.url)
                    .await
                    .unwrap();
                // Otherwise it makes one more connection to find out, and some tests count them.
                let builder = PostgresPersistence::builder().table(&self.table).behind_pooler(false);
                let db = builder.on_pool(pool.clone()).unwrap();
                (Arc::new(db), Pool::Postgres(pool))
            }
            _ => {
                let pool = MySqlPoolOptions::new()
                    .max_connections(size)
                    .idle_timeout(idle)
                    .after_connect(move |connection, _| {
                        Box::pin(async move { raw_sql(first).execute(connection).await.map(|_| ()) })
                    })
                    .connect(&self.url)
                    .await
                    .unwrap();
                let db = MySqlPersistence::builder().table(&self.table).on_pool(pool.clone()).unwrap();
                (Arc::new(db), Pool::MySql(pool))
            }
        }
    }

    /// Connects as another program.
    pub async fn program(&self) -> Program {
        match self.kind {
            Kind::Postgres => Program::Postgres(self.postgres().await),
            _ => Program::MySql(MySqlConnection::connect(&self.url).await.unwrap()),
        }
    }

    async fn postgres(&self) -> PgConnection {
        // Without what a pooler refuses.
        let options = PgConnectOptions::from_str(&self.url).unwrap().extra_float_digits(None);
        PgConnection::connect_with(&options).await.unwrap()
    }

    /// Returns the address where the server listens.
    pub fn address(&self) -> String {
        match self.kind {
            Kind::Postgres => {
                let options = PgConnectOptions::from_str(&self.url).unwrap();
                format!("{}:{}", options.get_host(), options.get_port())
            }
            _ => {
                let options = MySqlConnectOptions::from_str(&self.url).unwrap();
                format!("{}:{}", options.get_host(), options.get_port())
            }
        }
    }

    /// Returns this server's URL with another address, user and password.
    pub fn url_with(&self, address: &str, user: Option<(&str, &str)>) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap();
        let (authority, path) = rest.split_once('/').unwrap();
        let (login, _) = authority.rsplit_once('@').unwrap();
        match user {
            Some((name, password)) => format!("{scheme}://{name}:{password}@{address}/{path}"),
            None => format!("{scheme}://{login}@{address}/{path}"),
        }
    }

    /// Returns the statement in the form of this kind of database. `{t}` is the session table.
    pub fn sql(&self, postgres: &str, mysql: &str) -> String {
        match self.kind {
            Kind::Postgres => postgres.replace("{t}", &self.table),
            _ => mysql.replace("{t}", &self.table),
        }
    }

    /// Returns how many connections wait or work on a statement about the session table.
    pub async fn busy_connections(&self, program: &mut Program) -> i64 {
        let table = &self.table;
        if self.kind == Kind::Postgres {
            // Within a transaction, Postgres would return the same snapshot again.
            program.run("SELECT pg_stat_clear_snapshot()").await;
        }
        let sql = match self.kind {
            Kind::Postgres => format!(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE pid <> pg_backend_pid() AND state = 'active' AND query LIKE '%{table}%'"
            ),
            _ => format!(
                "SELECT CAST(count(*) AS SIGNED) FROM information_schema.processlist
                 WHERE id <> connection_id() AND info LIKE '%{table}%'"
            ),
        };
        program.number(&sql).await
    }

    /// Waits until `count` connections are busy.
    pub async fn wait_for_busy_connections(&self, program: &mut Program, count: i64) {
        for _ in 0..1_000 {
            if self.busy_connections(program).await == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} connections are busy, not {count}", self.busy_connections(program).await);
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    pub acquire_timeout: Duration,
    pub max_connections: u16,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            statement_timeout: seconds(5),
            lock_timeout: seconds(3),
            acquire_timeout: seconds(5),
            max_connections: 10,
        }
    }
}

impl Settings {
    fn postgres(self) -> PostgresBuilder {
        PostgresPersistence::builder()
            .statement_timeout(self.statement_timeout)
            .lock_timeout(self.lock_timeout)
            .acquire_timeout(self.acquire_timeout)
            .max_connections(self.max_connections)
    }

    fn mysql(self) -> MySqlBuilder {
        MySqlPersistence::builder()
            .statement_timeout(self.statement_timeout)
            .lock_timeout(self.lock_timeout)
            .acquire_timeout(self.acquire_timeout)
            .max_connections(self.max_connections)
    }
}

pub enum Pool {
    Postgres(PgPool),
    MySql(MySqlPool),
}

impl Pool {
    /// Runs a statement on one of the pool's connections.
    pub async fn run(&self, sql: &str) {
        let sql = raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::Postgres(pool) => sql.execute(pool).await.map(|_| ()).unwrap(),
            Self::MySql(pool) => sql.execute(pool).await.map(|_| ()).unwrap(),
        }
    }

    /// Reads a number over one of the pool's connections.
    pub async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(pool) => query(sql).fetch_one(pool).await.unwrap().get(0),
            Self::MySql(pool) => query(sql).fetch_one(pool).await.unwrap().get(0),
        }
    }
}

pub enum Program {
    Postgres(PgConnection),
    MySql(MySqlConnection),
}

impl Program {
    pub async fn run(&mut self, sql: &str) {
        self.try_run(sql).await.unwrap();
    }

    pub async fn try_run(&mut self, sql: &str) -> sqlx::Result<()> {
        let sql = raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::Postgres(connection) => sql.execute(connection).await.map(|_| ()),
            Self::MySql(connection) => sql.execute(connection).await.map(|_| ()),
        }
    }

    pub async fn number(&mut self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(connection) => query(sql).fetch_one(connection).await.unwrap().get(0),
            Self::MySql(connection) => query(sql).fetch_one(connection).await.unwrap().get(0),
        }
    }

    /// Prepares a statement with the parameters of a load and a single column, under the name that the driver
    /// gives to the first statement of a connection.
    pub async fn prepare_another_shape(&mut self) {
        let Self::Postgres(connection) = self else { panic!("only Postgres has such names") };
        let found = query("SELECT $1::text WHERE $2::bigint > 0").bind("a").bind(1_i64);
        found.fetch_one(connection).await.unwrap();
    }

    /// Locks the row of a session until [`unlock`](Self::unlock).
    pub async fn lock(&mut self, server: &Server, key: &str) {
        self.run("BEGIN").await;
        let update = server.sql(
            r#"UPDATE "{t}" SET created_at = created_at WHERE key = '{k}'"#,
            "UPDATE `{t}` SET created_at = created_at + 0 WHERE `key` = '{k}'",
        );
        self.run(&update.replace("{k}", key)).await;
    }

    pub async fn unlock(&mut self) {
        self.run("ROLLBACK").await;
    }
}

pub fn key(text: &str) -> StoredKey {
    StoredKey::parse(text).unwrap()
}

pub fn record(payload: impl Into<Vec<u8>>) -> Record {
    Record::new(payload.into().into(), NOW, LATER)
}

pub async fn payload(db: &Db, name: &str) -> Option<Vec<u8>> {
    db.load_dyn(&key(name), NOW).await.unwrap().map(|record| record.payload().to_vec())
}

/// Polls a future once, so that its statement is sent.
pub async fn start<F: Future + Unpin>(future: &mut F) {
    let mut has_started = false;
    std::future::poll_fn(|context| {
        if has_started {
            return std::task::Poll::Ready(());
        }
        has_started = true;
        assert!(Pin::new(&mut *future).poll(context).is_pending());
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
