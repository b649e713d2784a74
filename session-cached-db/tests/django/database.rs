//! The database of one run: its address for Rust and for Django, and how it is made and dropped.

use std::sync::Arc;

use serde_json::{Value, json};
use session_cached_db::db_backends::sqlx::mysql::{MySqlConnection, MySqlPool, MySqlPoolOptions};
use session_cached_db::db_backends::sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use session_cached_db::db_backends::sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, query, query_scalar,
};
use session_cached_db::django::{DjangoMySql, DjangoPersistence, DjangoPostgres, DjangoSqlite};
use session_cached_db::session_core::{DynPersistence, PersistenceError};
use session_cached_db::{MySqlPersistence, PostgresPersistence};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
    MySql,
    MariaDb,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Sqlite, Self::Postgres, Self::MySql, Self::MariaDb];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::MySql => "mysql",
            Self::MariaDb => "mariadb",
        }
    }

    /// Returns the server on which to make a database, or why there is none. SQLite needs none.
    pub fn server(self) -> Result<Option<Address>, String> {
        let variable = match self {
            Self::Sqlite => return Ok(None),
            Self::Postgres => "CONFORMANCE_POSTGRES_URL",
            Self::MySql => "CONFORMANCE_MYSQL_URL",
            Self::MariaDb => "CONFORMANCE_MARIADB_URL",
        };
        let url =
            std::env::var(variable).map_err(|_| format!("no {}: {variable} is not set", self.name()))?;
        Address::parse(&url)
            .map(Some)
            .ok_or_else(|| format!("{variable} is not scheme://user:password@host:port/name"))
    }
}

/// The parts of a URL.
#[derive(Clone)]
pub struct Address {
    scheme: String,
    user: String,
    password: String,
    host: String,
    port: String,
    database: String,
}

impl Address {
    fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (login, rest) = rest.split_once('@')?;
        let (user, password) = login.split_once(':')?;
        let (address, database) = rest.split_once('/')?;
        let (host, port) = address.rsplit_once(':')?;
        let [scheme, user, password, host, port, database] =
            [scheme, user, password, host, port, database].map(str::to_owned);
        Some(Self { scheme, user, password, host, port, database })
    }

    fn url(&self) -> String {
        let Self { scheme, user, password, host, port, database } = self;
        format!("{scheme}://{user}:{password}@{host}:{port}/{database}")
    }
}

/// A database that is made for one run.
pub struct Database {
    pub kind: Kind,
    /// Its server, and its name there.
    server: Option<(Address, String)>,
    directory: TempDir,
}

impl Database {
    pub fn make(kind: Kind, server: Option<Address>) -> Result<Self, String> {
        let name = format!("django_{:016x}", fastrand::u64(..));
        let database = Self {
            kind,
            server: server.map(|server| (server, name)),
            directory: tempfile::tempdir().unwrap(),
        };
        database.on_server(|name| match kind {
            // Collation and time zone are not the defaults, which would hide mistakes with case and zone.
            Kind::Postgres => format!("CREATE DATABASE {name}"),
            _ => format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"),
        })?;
        Ok(database)
    }

    pub fn remove(&self) {
        let removed = self.on_server(|name| match self.kind {
            Kind::Postgres => format!("DROP DATABASE {name} WITH (FORCE)"),
            _ => format!("DROP DATABASE {name}"),
        });
        if let Err(error) = removed {
            eprintln!("a database could not be dropped: {error}");
        }
    }

    fn on_server(&self, sql: impl Fn(&str) -> String) -> Result<(), String> {
        let Some((server, name)) = &self.server else { return Ok(()) };
        let (url, sql) = (server.url(), AssertSqlSafe(sql(name)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(async {
                match self.kind {
                    Kind::Postgres => PgConnection::connect(&url).await?.execute(sql).await.map(|_| ()),
                    _ => MySqlConnection::connect(&url).await?.execute(sql).await.map(|_| ()),
                }
            })
            .map_err(|error| format!("{}: {error}", self.kind.name()))
    }

    fn file(&self) -> String {
        self.directory.path().join("db.sqlite3").display().to_string()
    }

    pub fn url(&self) -> String {
        match &self.server {
            Some((server, name)) => Address { database: name.clone(), ..server.clone() }.url(),
            None => format!("sqlite://{}", self.file()),
        }
    }

    /// Returns the database's entry in Django's settings.
    pub fn settings(&self) -> Value {
        let Some((server, name)) = &self.server else {
            // Without this, SQLite refuses a transaction that reads first and then writes if another one has
            // written in between, instead of letting it wait. Django's own documentation advises it.
            let options = json!({"transaction_mode": "IMMEDIATE"});
            return json!({"ENGINE": "django.db.backends.sqlite3", "NAME": self.file(), "OPTIONS": options});
        };
        let engine = if self.kind == Kind::Postgres { "postgresql" } else { "mysql" };
        json!({
            "ENGINE": format!("django.db.backends.{engine}"),
            "NAME": name,
            "USER": server.user,
            "PASSWORD": server.password,
            "HOST": server.host,
            "PORT": server.port,
        })
    }

    pub async fn connect(&self) -> Arc<dyn DynPersistence> {
        match self.kind {
            Kind::Sqlite => Arc::new(DjangoSqlite::connect(&self.url()).await.unwrap()),
            Kind::Postgres => Arc::new(DjangoPostgres::connect(&self.url()).await.unwrap()),
            Kind::MySql | Kind::MariaDb => Arc::new(DjangoMySql::connect(&self.url()).await.unwrap()),
        }
    }

    /// Connects through a pool of one connection, with a table of this name. For servers only.
    pub async fn pooled(&self, table: &str) -> (Pool, Arc<dyn DynPersistence>) {
        match self.kind {
            Kind::Postgres => {
                let pool = PgPoolOptions::new().max_connections(1).connect(&self.url()).await.unwrap();
                let db = DjangoPersistence::over(PostgresPersistence::from_pool(pool.clone()));
                (Pool::Postgres(pool), Arc::new(db.with_table(table).unwrap()))
            }
            _ => {
                let pool = MySqlPoolOptions::new().max_connections(1).connect(&self.url()).await.unwrap();
                let db = DjangoPersistence::over(MySqlPersistence::from_pool(pool.clone()));
                (Pool::MySql(pool), Arc::new(db.with_table(table).unwrap()))
            }
        }
    }

    /// Connects with a table of this name.
    pub async fn connect_to(&self, table: &str) -> Result<Arc<dyn DynPersistence>, PersistenceError> {
        Ok(match self.kind {
            Kind::Sqlite => Arc::new(DjangoSqlite::connect(&self.url()).await?.with_table(table)?),
            Kind::Postgres => {
                let db = PostgresPersistence::connect(&self.url()).await?;
                Arc::new(DjangoPersistence::over(db).with_table(table)?)
            }
            Kind::MySql | Kind::MariaDb => {
                let db = MySqlPersistence::connect(&self.url()).await?;
                Arc::new(DjangoPersistence::over(db).with_table(table)?)
            }
        })
    }
}

/// A connection pool of the application.
pub enum Pool {
    Postgres(PgPool),
    MySql(MySqlPool),
}

impl Pool {
    /// Returns the number of rows that the server has read, from the table or for this pool's one connection.
    pub async fn rows_read(&self, kind: Kind, table: &str) -> i64 {
        match self {
            Self::Postgres(pool) => {
                // Postgres publishes its counts some time after the transaction, unless it is forced to.
                query("SELECT pg_stat_force_next_flush()").execute(pool).await.unwrap();
                let sql = "SELECT (coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint
                           FROM pg_stat_user_tables WHERE relname = $1";
                query_scalar(sql).bind(table).fetch_one(pool).await.unwrap()
            }
            Self::MySql(pool) => {
                let schema = if kind == Kind::MySql { "performance_schema" } else { "information_schema" };
                let sql = format!(
                    "SELECT CAST(sum(variable_value) AS SIGNED) FROM {schema}.session_status
                     WHERE variable_name IN ('HANDLER_READ_FIRST', 'HANDLER_READ_KEY', 'HANDLER_READ_LAST',
                         'HANDLER_READ_NEXT', 'HANDLER_READ_PREV', 'HANDLER_READ_RND', 'HANDLER_READ_RND_NEXT')"
                );
                query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
            }
        }
    }
}
