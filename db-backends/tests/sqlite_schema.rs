//! SQLite: how the table is made and migrated, beside the application's own tables.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::process::{Command, Stdio};
use std::str::FromStr as _;
use std::time::Duration;

use db_backends::sqlite::SqlitePersistence;
use db_backends::sqlx::migrate::Migrator;
use db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use db_backends::sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, query_as, query_scalar, raw_sql};
use session_core::{
    Persistence as _, PersistenceError, Record, Rotation, Rotations as _, SchemaProblem, StoredKey, Timestamp,
};
use tempfile::TempDir;

fn url(dir: &TempDir) -> String {
    format!("sqlite://{}?mode=rwc", dir.path().join("app.db").display())
}

/// Opens a connection of the application.
async fn application(dir: &TempDir) -> SqliteConnection {
    SqliteConnection::connect(&url(dir)).await.unwrap()
}

async fn run(connection: &mut SqliteConnection, sql: &str) {
    raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// Returns everything that the database stores about its schema.
async fn dump(connection: &mut SqliteConnection) -> Vec<String> {
    query_scalar("SELECT coalesce(sql, name) FROM sqlite_schema ORDER BY name")
        .fetch_all(connection)
        .await
        .unwrap()
}

async fn problem(db: &SqlitePersistence) -> SchemaProblem {
    match db.check_schema().await {
        Err(PersistenceError::Schema(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

async fn assert_usable(db: &SqlitePersistence) {
    db.check_schema().await.unwrap();
    let key = StoredKey::parse("key").unwrap();
    let (now, later) = (Timestamp::from_secs(1), Timestamp::from_secs(2));
    db.insert(&key, &Record::new("x".into(), now, later)).await.unwrap();
    assert!(db.load(&key, now).await.unwrap().is_some());
    assert!(db.delete(&key).await.unwrap());
}

#[tokio::test]
async fn second_migration_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    assert_eq!(problem(&db).await, SchemaProblem::Missing { table: "sessions".into() });
    db.migrate().await.unwrap();
    let before = dump(&mut application(&dir).await).await;
    db.migrate().await.unwrap();
    SqlitePersistence::connect(&url(&dir)).await.unwrap().migrate().await.unwrap();
    assert_eq!(dump(&mut application(&dir).await).await, before);
    assert_usable(&db).await;
}

#[tokio::test]
async fn schema_sql_makes_the_same_tables_as_migrate() {
    let dir = TempDir::new().unwrap();
    let mut by_hand = application(&dir).await;
    let db = SqlitePersistence::builder().table("logins").connect(&url(&dir)).await.unwrap();
    run(&mut by_hand, &db.schema_sql()).await;
    assert_usable(&db).await;
    let by_hand = dump(&mut by_hand).await;

    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::builder().table("logins").connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    assert_eq!(dump(&mut application(&dir).await).await, by_hand);
}

#[tokio::test]
async fn several_session_tables_live_in_one_database() {
    let dir = TempDir::new().unwrap();
    for table in ["sessions", "admin_sessions"] {
        let db = SqlitePersistence::builder().table(table).connect(&url(&dir)).await.unwrap();
        db.migrate().await.unwrap();
        assert_usable(&db).await;
    }
}

#[tokio::test]
async fn foreign_table_is_refused_and_left_alone() {
    for (foreign, reason) in [
        ("CREATE TABLE sessions (id INTEGER PRIMARY KEY, data TEXT)", "no table sessions_schema"),
        ("CREATE VIEW sessions AS SELECT 1 AS key", "no table sessions_schema"),
        ("CREATE TABLE sessions_schema (name TEXT)", "no primary key named version"),
        ("CREATE VIEW sessions_schema AS SELECT 1 AS version", "no primary key named version"),
        (
            "CREATE TABLE sessions_schema (version INTEGER PRIMARY KEY); CREATE TABLE sessions (key TEXT PRIMARY KEY NOT NULL)",
            "no column payload",
        ),
        (
            "CREATE TABLE sessions_schema (version INTEGER PRIMARY KEY); INSERT INTO sessions_schema VALUES (1);
             CREATE TABLE sessions (key TEXT NOT NULL PRIMARY KEY, payload TEXT NOT NULL)",
            "payload is not BLOB not null",
        ),
        (
            "CREATE TABLE sessions_schema (version INTEGER PRIMARY KEY); INSERT INTO sessions_schema VALUES (1);
             CREATE TABLE sessions (key TEXT NOT NULL, id INTEGER PRIMARY KEY)",
            "primary key is not the column key",
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let mut application = application(&dir).await;
        run(&mut application, foreign).await;
        let before = dump(&mut application).await;
        let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
        let error = db.migrate().await.unwrap_err();
        assert!(
            matches!(&error, PersistenceError::Schema(SchemaProblem::Foreign { .. })),
            "{foreign}: {error:?}"
        );
        assert!(error.to_string().contains(reason), "{foreign}: {error}");
        assert!(matches!(problem(&db).await, SchemaProblem::Foreign { .. }));
        assert_eq!(dump(&mut application).await, before);
    }
}

#[tokio::test]
async fn newer_schema_is_refused() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    let mut newer = application(&dir).await;
    run(&mut newer, "INSERT INTO sessions_schema VALUES (7); ALTER TABLE sessions DROP COLUMN last_seen_at")
        .await;
    let expected = SchemaProblem::TooNew { table: "sessions".into(), found: 7, known: 2 };
    assert_eq!(problem(&db).await, expected);
    assert!(matches!(db.migrate().await, Err(PersistenceError::Schema(problem)) if problem == expected));
}

#[tokio::test]
async fn older_schema_is_brought_up_to_date() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    let before = dump(&mut application(&dir).await).await;
    // The tables as a migration leaves them that was cut off where there are no transactions.
    run(&mut application(&dir).await, "DELETE FROM sessions_schema; DROP INDEX sessions_reap_at").await;
    let expected = SchemaProblem::Outdated { table: "sessions".into(), found: 0, needed: 2 };
    assert_eq!(problem(&db).await, expected);
    db.migrate().await.unwrap();
    assert_eq!(dump(&mut application(&dir).await).await, before);
    assert_usable(&db).await;
}

#[tokio::test]
async fn dropped_table_is_missing_and_made_again() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    run(&mut application(&dir).await, "DROP TABLE sessions").await;
    assert_eq!(problem(&db).await, SchemaProblem::Missing { table: "sessions".into() });
    db.migrate().await.unwrap();
    assert_usable(&db).await;
}

#[tokio::test]
async fn migration_leaves_the_applications_tables_and_versions_alone() {
    let dir = TempDir::new().unwrap();
    let migrations = TempDir::new().unwrap();
    let migration = |name: &str, sql: &str| std::fs::write(migrations.path().join(name), sql).unwrap();
    migration("1_users.sql", "CREATE TABLE users (id INTEGER PRIMARY KEY); PRAGMA user_version = 42;");
    let mut application = application(&dir).await;
    let run_all = async |application: &mut SqliteConnection| {
        let migrator = Migrator::new(migrations.path()).await.unwrap();
        migrator.run(&mut *application).await.unwrap();
        let applied: i64 =
            query_scalar("SELECT count(*) FROM _sqlx_migrations").fetch_one(application).await.unwrap();
        applied
    };
    assert_eq!(run_all(&mut application).await, 1);

    // Over the application's pool.
    let options = SqliteConnectOptions::from_str(&url(&dir)).unwrap();
    let db = SqlitePersistence::from_pool(SqlitePoolOptions::new().connect_lazy_with(options));
    db.migrate().await.unwrap();
    assert_usable(&db).await;

    migration("2_more.sql", "CREATE TABLE more (id INTEGER REFERENCES users)");
    assert_eq!(run_all(&mut application).await, 2);
    db.migrate().await.unwrap();
    assert_usable(&db).await;
    let version: i64 = query_scalar("PRAGMA user_version").fetch_one(&mut application).await.unwrap();
    assert_eq!(version, 42);
    let mode: String = query_scalar("PRAGMA journal_mode").fetch_one(&mut application).await.unwrap();
    assert_eq!(mode, "delete", "an application's pool is used as it is");
}

/// SQLite refuses, without waiting, some of several connections that put a file into write-ahead mode at
/// once. Hence the many rounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_programs_can_open_a_new_file_at_once() {
    for _ in 0..100 {
        let dir = TempDir::new().unwrap();
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let url = url(&dir);
                tokio::spawn(async move { SqlitePersistence::connect(&url).await.unwrap() })
            })
            .collect();
        for start in starts {
            start.await.unwrap().close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_pools_can_migrate_at_once() {
    for _ in 0..10 {
        let dir = TempDir::new().unwrap();
        let starts: Vec<_> = (0..8)
            .map(|n| {
                let url = url(&dir);
                tokio::spawn(async move {
                    let db = if n % 2 == 0 {
                        SqlitePersistence::connect(&url).await.unwrap()
                    } else {
                        let options = SqliteConnectOptions::from_str(&url).unwrap();
                        SqlitePersistence::from_pool(SqlitePoolOptions::new().connect_lazy_with(options))
                    };
                    db.migrate().await.unwrap();
                    db.check_schema().await.unwrap();
                    db
                })
            })
            .collect();
        for start in starts {
            assert_usable(&start.await.unwrap()).await;
        }
    }
}

/// Starts this test in several processes, which find the file in the environment.
#[tokio::test]
async fn several_processes_can_migrate_at_once() {
    const URL: &str = "DB_BACKENDS_TEST_MIGRATE";
    if let Ok(url) = std::env::var(URL) {
        let db = SqlitePersistence::connect(&url).await.unwrap();
        db.migrate().await.unwrap();
        db.check_schema().await.unwrap();
        db.close().await;
        return;
    }
    for _ in 0..3 {
        let dir = TempDir::new().unwrap();
        let children: Vec<_> = (0..6)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "several_processes_can_migrate_at_once", "--quiet"])
                    .env(URL, url(&dir))
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        assert_usable(&SqlitePersistence::connect(&url(&dir)).await.unwrap()).await;
    }
}

#[tokio::test]
async fn pool_with_a_longer_busy_timeout_than_set_is_refused() {
    let dir = TempDir::new().unwrap();
    let options = SqliteConnectOptions::from_str(&url(&dir)).unwrap().busy_timeout(Duration::from_secs(8));
    let pool = SqlitePoolOptions::new().connect_lazy_with(options);
    let db = SqlitePersistence::from_pool(pool.clone());
    for error in [db.migrate().await.unwrap_err(), db.check_schema().await.unwrap_err()] {
        assert!(matches!(error, PersistenceError::Config(_)), "{error:?}");
        assert!(error.to_string().contains("busy_timeout"), "{error}");
    }
    let told = SqlitePersistence::builder().busy_timeout(Duration::from_secs(8)).on_pool(pool).unwrap();
    told.migrate().await.unwrap();
    assert!(told.properties().statement_bound > Duration::from_secs(8));
}

#[tokio::test]
async fn pool_of_several_databases_in_memory_is_refused() {
    // The driver's URL for memory has a shared cache.
    let shared = SqliteConnectOptions::from_str("sqlite::memory:").unwrap();
    let pool = |options| SqlitePoolOptions::new().max_connections(3).connect_lazy_with(options);
    let apart = pool(SqliteConnectOptions::new().filename(":memory:"));
    let error = SqlitePersistence::from_pool(apart).migrate().await.unwrap_err();
    assert!(matches!(error, PersistenceError::Config(_)), "{error:?}");
    assert!(error.to_string().contains("shared_cache"), "{error}");
    SqlitePersistence::from_pool(pool(shared)).migrate().await.unwrap();
}

#[tokio::test]
async fn note_that_another_program_has_damaged_is_left_out() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate_rotations().await.unwrap();
    let [old, good, bad] = ["old", "good", "bad"].map(|text| StoredKey::parse(text).unwrap());
    let later = Timestamp::from_secs(2);
    for new in [good, bad] {
        db.note_rotation(&Rotation::new(old, new, later)).await.unwrap();
    }
    let damage = "UPDATE sessions_rotations SET new_key = 'no key' WHERE new_key = 'bad'";
    run(&mut application(&dir).await, damage).await;
    let found = db.rotations(&old, Timestamp::from_secs(1), 10).await.unwrap();
    assert_eq!(found, [Rotation::new(old, good, later)]);
}

#[tokio::test]
async fn foreign_table_in_place_of_the_notes_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate().await.unwrap();
    let mut application = application(&dir).await;
    run(&mut application, "CREATE TABLE sessions_rotations (old_key TEXT NOT NULL, new_key TEXT)").await;
    let before = dump(&mut application).await;
    for refused in [db.check_rotations().await, db.migrate_rotations().await] {
        match refused {
            Err(PersistenceError::Schema(SchemaProblem::Foreign { table, reason })) => {
                assert_eq!((table.as_str(), reason.contains("new_key")), ("sessions_rotations", true));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(dump(&mut application).await, before);
    // The session table has nothing to do with it.
    assert_usable(&db).await;
}

#[tokio::test]
async fn notes_are_found_and_removed_by_an_index() {
    let dir = TempDir::new().unwrap();
    let db = SqlitePersistence::connect(&url(&dir)).await.unwrap();
    db.migrate_rotations().await.unwrap();
    let mut application = application(&dir).await;
    for (sql, index) in [
        ("SELECT * FROM sessions_rotations WHERE old_key = 'a' AND expires_at > 1", "old_key=?"),
        ("DELETE FROM sessions_rotations WHERE expires_at <= 1", "sessions_rotations_end"),
    ] {
        let plan = format!("EXPLAIN QUERY PLAN {sql}");
        let steps: Vec<(i64, i64, i64, String)> =
            query_as(AssertSqlSafe(plan)).fetch_all(&mut application).await.unwrap();
        assert!(steps.iter().all(|(.., step)| step.contains(index)), "{steps:?}");
    }
}
