//! Django's table, held to the contract of `Persistence` as far as it has columns for it.
//!
//! SQLite is always tested; Postgres, MySQL and MariaDB are tested at the URLs in `CONFORMANCE_POSTGRES_URL`,
//! `CONFORMANCE_MYSQL_URL` and `CONFORMANCE_MARIADB_URL`, in tables that are dropped afterwards. The tests of
//! a server without a URL are reported as ignored, or as failed if `CONFORMANCE_REQUIRE` is `all` or lists
//! the server.
//!
//! The table takes payloads of Django's form only, and keeps neither subjects nor the beginning of a session.
//! So [`InDjango`] packs whole records into its payloads. [`LACKING`] lists the cases that the table cannot
//! pass.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test"
)]

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conformance_tests::persistence::{self, PersistenceFixture};
use conformance_tests::{Case, Suite, libtest_mimic};
use db_backends::django::{DjangoMySql, DjangoPostgres, DjangoSqlite};
use db_backends::sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, MySqlConnection, PgConnection, SqliteConnection,
};
use session_core::{
    ExpiredSessions, Persistence, PersistenceError, PersistenceProperties, Record, RecordWrite, Rotation,
    Rotations, StoredKey, Subject, Timestamp, Version,
};

/// The cases that Django's table cannot pass, and why.
const LACKING: [(&str, &str); 9] = [
    ("touch_prolongs_and_notes_the_use", "there is no column for the last use"),
    ("late_touch_does_not_turn_the_last_use_back", "there is no column for the last use"),
    ("latest_of_several_concurrent_touches_counts", "there is no column for the last use"),
    ("touch_that_is_not_due_changes_nothing", "there is no column for the last use"),
    ("one_of_several_due_touches_is_written", "there is no column for the last use"),
    (
        "random_calls_are_answered_like_the_reference",
        "touches are among them, and there is no column for the last use",
    ),
    (
        "instants_are_kept_to_the_microsecond",
        "some are in years that Django cannot say, which become the year 9999",
    ),
    ("subject_is_kept_byte_for_byte", "there is no column for a subject"),
    ("removed_sessions_are_returned_with_their_subjects", "there is no column for a subject"),
];

/// The cases that it cannot pass in MySQL and MariaDB, besides.
const LACKING_IN_MYSQL: [(&str, &str); 1] = [(
    "keys_that_differ_in_case_are_different",
    "there cannot be two keys that differ in case only; neither is ever found under the other's",
)];

fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let directory = tempfile::tempdir().expect("a directory for a database");
    let sqlite = format!("sqlite://{}?mode=rwc", directory.path().join("django.db").display());
    let mut trials = suite::<DjangoSqlite>("django-sqlite", &sqlite, &LACKING).into_trials();
    let mut made = vec![sqlite];
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    for (name, variable) in [
        ("postgres", "CONFORMANCE_POSTGRES_URL"),
        ("mysql", "CONFORMANCE_MYSQL_URL"),
        ("mariadb", "CONFORMANCE_MARIADB_URL"),
    ] {
        let url = std::env::var(variable).unwrap_or_default();
        let backend = format!("django-{name}");
        let suite = if name == "postgres" {
            suite::<DjangoPostgres>(&backend, &url, &LACKING)
        } else {
            suite::<DjangoMySql>(&backend, &url, &[&LACKING[..], &LACKING_IN_MYSQL[..]].concat())
        };
        let is_required = required.split(',').any(|other| other.trim() == "all" || other.trim() == name);
        if url.is_empty() && !is_required {
            let reason = format!("no {name}: {variable} is not set");
            eprintln!("{reason}");
            trials.extend(suite.into_ignored_trials(&reason));
        } else {
            trials.extend(suite.into_trials());
            made.push(url);
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for url in made.iter().skip(1).filter(|url| !url.is_empty()) {
        for table in [table().to_owned(), format!("{}_rotations", table())] {
            block_on(async { run_sql(url, format!("DROP TABLE IF EXISTS {table}")).await });
        }
    }
    drop(directory);
    conclusion.exit();
}

fn suite<D: Django>(backend: &str, url: &str, lacking: &[(&str, &str)]) -> Suite {
    let made = Arc::<tokio::sync::OnceCell<()>>::default();
    let fixture = || Table::<D> { url: url.to_owned(), made: Arc::clone(&made), database: PhantomData };
    let mut cases = persistence::cases::<Table<D>>();
    let count = cases.len();
    cases.retain(|case| !lacking.iter().any(|(lacking, _)| *lacking == case.name));
    assert_eq!(
        cases.len(),
        count - lacking.len(),
        "a case in the list of those that cannot pass has another name now"
    );
    cases.push(Case {
        name: "one_of_several_touches_due_by_the_expiry_is_written",
        shows: "",
        run: |fixture| Box::pin(one_of_several_touches_due_by_the_expiry_is_written(fixture)),
    });
    Suite::new(backend).layer("persistence", fixture(), cases).rotations(fixture())
}

/// Replaces the case for the condition on the last use, which has no column: touches are due by the expiry.
async fn one_of_several_touches_due_by_the_expiry_is_written<D: Django>(fixture: &Table<D>) {
    const NOW: Timestamp = Timestamp::from_micros(1_600_000_000_123_457);
    const HOUR: Duration = Duration::from_secs(3_600);
    // Django's SESSION_COOKIE_AGE, and the default of the database.
    const AGE: Duration = Duration::from_secs(14 * 24 * 3_600);
    let db = Arc::new(fixture.open().await);
    let key = StoredKey::parse(&format!("due{:016x}", fastrand::u64(..))).unwrap();
    db.insert(&key, &Record::new("1{}".into(), NOW, NOW + AGE)).await.unwrap();
    let end = async || db.load(&key, NOW).await.unwrap().unwrap().expires_at();
    let before = NOW - Duration::from_micros(1);
    assert!(
        !db.touch(&key, NOW + HOUR + AGE, before, NOW + HOUR).await.unwrap(),
        "the session was used since then"
    );
    assert_eq!(end().await, NOW + AGE);
    let touches = (0..12).map(|_| {
        let db = Arc::clone(&db);
        tokio::spawn(async move { db.touch(&key, NOW + HOUR + AGE, NOW, NOW + HOUR).await })
    });
    let mut written = 0;
    for touch in touches.collect::<Vec<_>>() {
        written += usize::from(touch.await.unwrap().unwrap());
    }
    assert_eq!(written, 1, "the number of 12 touches that were written");
    assert_eq!(end().await, NOW + HOUR + AGE);
    let absent = db.touch(&key, NOW, Timestamp::MAX, NOW + 2 * HOUR + AGE).await;
    assert!(matches!(absent, Err(PersistenceError::NotFound)), "{absent:?}");
}

/// A suffix for the tables of this run.
fn table() -> &'static str {
    static NAME: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| format!("django_{:016x}", fastrand::u64(..)));
    &NAME
}

/// Django's table in one kind of database.
trait Django: Rotations + Sized {
    fn open(url: &str) -> impl Future<Output = Result<Self, PersistenceError>> + Send;
}

macro_rules! django {
    ($($database:ident),*) => {
        $(impl Django for $database {
            async fn open(url: &str) -> Result<Self, PersistenceError> {
                Self::connect(url).await?.with_table(table())
            }
        })*
    };
}

django!(DjangoSqlite, DjangoPostgres, DjangoMySql);

struct Table<D> {
    url: String,
    made: Arc<tokio::sync::OnceCell<()>>,
    database: PhantomData<fn() -> D>,
}

impl<D: Django> PersistenceFixture for Table<D> {
    type Persistence = InDjango<D>;

    async fn open(&self) -> InDjango<D> {
        assert!(!self.url.is_empty(), "its URL is not set, but CONFORMANCE_REQUIRE demands it");
        let db = D::open(&self.url).await.expect("the database lets us in");
        self.made.get_or_init(async || run_sql(&self.url, db.schema_sql()).await).await;
        InDjango(db)
    }
}

async fn run_sql(url: &str, sql: String) {
    let sql = AssertSqlSafe(sql);
    let ran = match url.split(':').next() {
        Some("sqlite") => SqliteConnection::connect(url).await.unwrap().execute(raw(sql)).await.map(|_| ()),
        Some("postgres") => PgConnection::connect(url).await.unwrap().execute(raw(sql)).await.map(|_| ()),
        _ => MySqlConnection::connect(url).await.unwrap().execute(raw(sql)).await.map(|_| ()),
    };
    ran.expect("the statements run");
}

fn raw(sql: AssertSqlSafe<String>) -> db_backends::sqlx::RawSql {
    db_backends::sqlx::raw_sql(sql)
}

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future);
}

/// Whole records in the payloads of Django's table.
#[derive(Debug)]
struct InDjango<D>(D);

impl<D: Django> InDjango<D> {
    /// Packs a record into a payload of the form that Django signs. Each payload is different, as if it were
    /// signed in another second.
    fn packed(record: &Record, created_at: Timestamp) -> Record {
        let subject = record.subject().map(Subject::as_str).unwrap_or_default();
        let [created, last_seen] = [created_at, record.last_seen_at()].map(Timestamp::as_micros);
        let head = format!("{created} {last_seen} {} {subject}", subject.len());
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let text = format!("{}-{}:{}:x", hex(head.as_bytes()), hex(record.payload()), fastrand::u32(..));
        Record::new(text.into(), created_at, record.expires_at())
    }

    fn unpacked(row: &Record) -> Record {
        let text = std::str::from_utf8(row.payload()).unwrap().split(':').next().unwrap();
        let (head, payload) = text.split_once('-').unwrap();
        let bytes = |hex: &str| -> Vec<u8> {
            hex.as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect()
        };
        let head = String::from_utf8(bytes(head)).unwrap();
        let mut parts = head.splitn(4, ' ');
        let mut number = || parts.next().unwrap().parse::<i64>().unwrap();
        let (created_at, last_seen_at, len) = (number(), number(), number());
        let subject = (len > 0).then(|| Subject::parse(parts.next().unwrap()).unwrap());
        let [created_at, last_seen_at] = [created_at, last_seen_at].map(Timestamp::from_micros);
        Record::new(Bytes::from(bytes(payload)), created_at, row.expires_at())
            .with_last_seen_at(last_seen_at)
            .with_subject(subject)
            .with_version(row.version())
    }

    fn check_size(&self, record: &Record) -> Result<(), PersistenceError> {
        let (actual, limit) = (record.payload().len(), self.properties().max_payload_bytes);
        if actual > limit { Err(PersistenceError::TooLarge { actual, limit }) } else { Ok(()) }
    }

    /// Writes `record` with the `created_at` of the present row, under the key `new` if there is one.
    async fn replace(
        &self,
        key: &StoredKey,
        new: Option<&StoredKey>,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.check_size(write.record)?;
        loop {
            let row = self.0.load(key, now).await?.ok_or(PersistenceError::NotFound)?;
            let packed = Self::packed(write.record, Self::unpacked(&row).created_at());
            let expected = write.expected.unwrap_or_else(|| row.version());
            let packed = RecordWrite::new(&packed).with_expected(expected).with_expiry(write.expiry);
            let written = match new {
                Some(new) => self.0.rename(key, new, packed, now).await,
                None => self.0.update(key, packed, now).await,
            };
            match written {
                Err(PersistenceError::Conflict) if write.expected.is_none() => {}
                result => return result,
            }
        }
    }
}

impl<D: Django> Persistence for InDjango<D> {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        Ok(self.0.load(key, now).await?.map(|row| Self::unpacked(&row)))
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        self.check_size(record)?;
        self.0.insert(key, &Self::packed(record, record.created_at())).await
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.replace(key, None, write, now).await
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        self.0.touch(key, expires_at, idle_since, now).await
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.replace(old, Some(new), write, now).await
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        self.0.delete(key).await
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        self.0.delete_expired(before, limit).await
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        self.0.now().await
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.0.migrate().await
    }

    fn schema_sql(&self) -> String {
        self.0.schema_sql()
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        self.0.check_schema().await
    }

    fn properties(&self) -> PersistenceProperties {
        let inner = self.0.properties();
        let packed = PersistenceProperties::new(inner.max_payload_bytes / 2 - (1 << 10));
        packed.with_keys(inner.key_form, inner.max_key_bytes).with_statement_bound(inner.statement_bound)
    }
}

impl<D: Django> Rotations for InDjango<D> {
    async fn note_rotation(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
        self.0.note_rotation(rotation).await
    }

    async fn rotations(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Rotation>, PersistenceError> {
        self.0.rotations(old, now, limit).await
    }

    async fn migrate_rotations(&self) -> Result<(), PersistenceError> {
        self.0.migrate_rotations().await
    }

    fn rotations_sql(&self) -> String {
        self.0.rotations_sql()
    }

    async fn check_rotations(&self) -> Result<(), PersistenceError> {
        self.0.check_rotations().await
    }
}
