//! The world of a scenario: a database, a cache or none, and the program.

use std::panic::AssertUnwindSafe;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use libtest_mimic::Failed;
use serde_json::Value;
use session_cached_db::db_backends::sqlx::{
    self, AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, raw_sql,
};
use session_cached_db::{CachedDb, NoCache, Session, cache_backends, db_backends};
use session_core::{
    Codec, DynCache, DynDatabase, JsonCodec, Record, SessionData, StoredKey, Subject, Timestamp,
};
use tempfile::TempDir;

pub type Store = CachedDb<Arc<dyn DynCache>, Arc<dyn DynDatabase>>;

/// The URLs of Redis and Postgres.
#[derive(Clone)]
pub struct Servers {
    redis: String,
    postgres: String,
}

impl Servers {
    pub fn of_environment() -> Result<Self, String> {
        let url = |name: &str| {
            std::env::var(name).ok().filter(|url| !url.is_empty()).ok_or_else(|| format!("{name} is not set"))
        };
        Ok(Self { redis: url("CONFORMANCE_REDIS_URL")?, postgres: url("CONFORMANCE_POSTGRES_URL")? })
    }
}

pub struct World {
    /// The database's URL, with the table of this scenario, which is not made yet.
    pub database_url: String,
    /// The cache's URL, with the key prefix of this scenario.
    pub cache_url: Option<String>,
    pub table: String,
    pub dir: TempDir,
    postgres: Option<String>,
}

impl World {
    pub fn new(servers: Option<Servers>) -> Self {
        let table = format!("ctl_{:016x}", fastrand::u64(..));
        let dir = tempfile::tempdir().unwrap();
        let Some(Servers { redis, postgres }) = servers else {
            let database_url = format!("sqlite://{}?table={table}", dir.path().join("sessions.db").display());
            return Self { database_url, cache_url: None, table, dir, postgres: None };
        };
        let with = |url: &str, name: &str| {
            format!("{url}{}{name}={table}", if url.contains('?') { '&' } else { '?' })
        };
        Self {
            database_url: with(&postgres, "table"),
            cache_url: Some(format!("{}:", with(&redis, "key_prefix"))),
            table,
            dir,
            postgres: Some(postgres),
        }
    }

    /// Runs a scenario, and returns a panic as an error.
    pub async fn catch(&self, scenario: impl Future<Output = ()>) -> Result<(), Failed> {
        let message = |panic: Box<dyn std::any::Any + Send>| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
        };
        AssertUnwindSafe(scenario).catch_unwind().await.map_err(|panic| Failed::from(message(panic)))
    }

    pub async fn clean_up(self) {
        if self.postgres.is_some() {
            self.sql(r#"DROP TABLE IF EXISTS "{t}", "{t}_schema", "{t}_rotations""#).await;
        }
    }

    pub const fn has_cache(&self) -> bool {
        self.cache_url.is_some()
    }

    /// Runs statements past the program. `{t}` stands for the table.
    pub async fn sql(&self, sql: &str) {
        self.try_sql(sql).await.unwrap();
    }

    pub async fn try_sql(&self, sql: &str) -> sqlx::Result<()> {
        let sql = raw_sql(AssertSqlSafe(sql.replace("{t}", &self.table)));
        if let Some(url) = &self.postgres {
            return sql.execute(&mut PgConnection::connect(url).await?).await.map(|_| ());
        }
        let file = format!("sqlite://{}?mode=rwc", self.dir.path().join("sessions.db").display());
        let mut connection = SqliteConnection::connect(&file).await?;
        sql.execute(&mut connection).await?;
        connection.close().await
    }

    pub async fn database(&self) -> Arc<dyn DynDatabase> {
        db_backends::connect(&self.database_url).await.unwrap()
    }

    pub fn cache(&self) -> Arc<dyn DynCache> {
        match &self.cache_url {
            Some(url) => cache_backends::connect(url).unwrap(),
            None => Arc::new(NoCache),
        }
    }

    /// Builds the application's store, which makes the table.
    pub async fn store(&self) -> Store {
        self.store_with(JsonCodec::default()).await
    }

    pub async fn store_with(&self, codec: impl Codec) -> Store {
        let store = CachedDb::builder(self.cache(), self.database().await).codec(codec);
        // A busy machine must not count as an outage.
        store.cache_timeout(Duration::from_secs(10)).fence_ttl(Duration::from_secs(60)).build().await.unwrap()
    }

    /// Makes the table, and adds sessions past the store. Each has a key, a subject, and the seconds that it
    /// lives, which are negative for an expired one.
    pub async fn filled(&self, sessions: &[(String, Option<&str>, i64)]) -> Arc<dyn DynDatabase> {
        let database = self.database().await;
        database.migrate_dyn().await.unwrap();
        for (key, subject, seconds) in sessions {
            let expires_at = Timestamp::from_micros(now().as_micros() + seconds * 1_000_000);
            let payload = JsonCodec::default().encode(&key_of(key), &SessionData::new()).unwrap();
            let record = Record::new(payload, now(), expires_at);
            let record = record.with_subject(subject.map(|subject| Subject::parse(subject).unwrap()));
            database.insert_dyn(&key_of(key), &record).await.unwrap();
        }
        database
    }

    /// Returns the number of rows.
    pub async fn rows(&self) -> usize {
        self.database().await.scan_dyn(None, 100_000).await.unwrap().len()
    }

    /// Returns the program with both URLs in its environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = bare(arguments);
        command.env("SESSIONCTL_DATABASE_URL", &self.database_url);
        if let Some(url) = &self.cache_url {
            command.env("SESSIONCTL_CACHE_URL", url);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }

    /// Runs a command that writes, like [`run`](Self::run), with `--no-cache` if there is no cache.
    pub fn write(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.write_command(arguments))
    }

    pub fn write_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        if !self.has_cache() {
            command.arg("--no-cache");
        }
        command
    }
}

/// Returns the program without URLs.
pub fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessionctl"));
    for name in ["DATABASE_URL", "CACHE_URL", "SEALING_KEYS", "SEALING_KEYS_FILE"] {
        command.env_remove(format!("SESSIONCTL_{name}"));
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The result of a run of the program.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        Self::new(command.output().unwrap())
    }

    pub fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(format!("{}{}", self.stdout, self.stderr).contains(text), "{text:?} is not in {self:#?}");
        self
    }

    #[track_caller]
    pub fn does_not_say(self, text: &str) -> Self {
        assert!(!format!("{}{}", self.stdout, self.stderr).contains(text), "{text:?} is in {self:#?}");
        self
    }
}

/// Starts the program.
pub fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Presses Ctrl-C, as soon as the program listens for it.
pub fn interrupt(child: &Child) {
    while !listens_to_interrupts(child.id()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Use the shell's own `kill`, because not every machine has a program of that name.
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
}

/// Returns `true` if the process handles SIGINT, or if there is no `/proc` to find out.
fn listens_to_interrupts(process: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/status")) else { return true };
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    // SIGINT is the second signal.
    u64::from_str_radix(caught.trim(), 16).unwrap() & 2 != 0
}

pub fn now() -> Timestamp {
    SystemTime::now().into()
}

pub fn key_of(text: &str) -> StoredKey {
    StoredKey::parse(text).unwrap()
}

/// Saves a session through the application, and returns it with its stored key.
pub async fn save(store: &Store, subject: Option<&str>, name: &str, value: &str) -> (Session, StoredKey) {
    let mut session = store.new_session();
    session.insert(name, value).unwrap();
    if let Some(subject) = subject {
        session.set_subject(subject).unwrap();
    }
    session.save().await.unwrap();
    let key = *session.stored_key().unwrap();
    (session, key)
}
