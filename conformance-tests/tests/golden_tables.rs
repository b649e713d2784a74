//! The tables, as each version has made and filled them: read, written and migrated for ever.
//!
//! With another version of the schema, a file for each database joins those that are here. A database that no
//! `CONFORMANCE_…_URL` names is reported as ignored.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;

use conformance_tests::libtest_mimic::{self, Arguments, Trial};
use db_backends::sqlx::{
    AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, SqliteConnection, raw_sql,
};
use futures_util::FutureExt as _;
use session_core::bytes::Bytes;
use session_core::{
    DynDatabase, KeyForm, KeyPrefix, MaskedKey, Persistence as _, Record, RecordWrite, Rotations as _,
    SessionKey, StoredKey, Subject, Timestamp, Version,
};

/// The files of each database, with the variable that names a server.
const FILES: [(&str, Option<&str>, &str); 12] = [
    ("sqlite-1", None, include_str!("golden/sqlite-1.sql")),
    ("sqlite-2", None, include_str!("golden/sqlite-2.sql")),
    ("postgres-1", Some("CONFORMANCE_POSTGRES_URL"), include_str!("golden/postgres-1.sql")),
    ("postgres-2", Some("CONFORMANCE_POSTGRES_URL"), include_str!("golden/postgres-2.sql")),
    ("mysql-1", Some("CONFORMANCE_MYSQL_URL"), include_str!("golden/mysql-1.sql")),
    ("mysql-2", Some("CONFORMANCE_MYSQL_URL"), include_str!("golden/mysql-2.sql")),
    ("mariadb-1", Some("CONFORMANCE_MARIADB_URL"), include_str!("golden/mysql-1.sql")),
    ("mariadb-2", Some("CONFORMANCE_MARIADB_URL"), include_str!("golden/mysql-2.sql")),
    ("sqlite-rotations-1", None, include_str!("golden/sqlite-rotations-1.sql")),
    (
        "postgres-rotations-1",
        Some("CONFORMANCE_POSTGRES_URL"),
        include_str!("golden/postgres-rotations-1.sql"),
    ),
    ("mysql-rotations-1", Some("CONFORMANCE_MYSQL_URL"), include_str!("golden/mysql-rotations-1.sql")),
    ("mariadb-rotations-1", Some("CONFORMANCE_MARIADB_URL"), include_str!("golden/mysql-rotations-1.sql")),
];

fn main() {
    let trials = FILES.map(|(name, variable, sql)| {
        let url = match variable {
            None => Ok(None),
            Some(variable) => std::env::var(variable).map(Some).map_err(|_| variable),
        };
        let name = format!("table_is_read_written_and_migrated::{name}");
        match url {
            Ok(url) => Trial::test(name, move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(check(url, sql));
                Ok(())
            }),
            Err(variable) => Trial::test(name, || Ok(()))
                .with_kind(format!("{variable} is not set"))
                .with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

async fn check(url: Option<String>, sql: &str) {
    let directory = tempfile::tempdir().unwrap();
    let url =
        url.unwrap_or_else(|| format!("sqlite://{}?mode=rwc", directory.path().join("golden.db").display()));
    let table = format!("golden_{:016x}", fastrand::u64(..));
    run(&url, sql.replace("{table}", &table)).await;
    if sql.contains("_rotations") {
        let checked = AssertUnwindSafe(check_rotations(&url, &table)).catch_unwind().await;
        run(&url, format!("DROP TABLE {table}_rotations")).await;
        return checked.unwrap_or_else(|panic| resume_unwind(panic));
    }
    let checked = AssertUnwindSafe(check_table(&url, &table)).catch_unwind().await;
    let checked = match checked {
        Ok(()) => AssertUnwindSafe(check_older_node(&url, &table)).catch_unwind().await,
        failed => failed,
    };
    run(&url, format!("DROP TABLE {table}; DROP TABLE {table}_schema")).await;
    if let Err(panic) = checked {
        resume_unwind(panic);
    }
}

async fn connected(url: &str, table: &str) -> Arc<dyn DynDatabase> {
    let separator = if url.contains('?') { '&' } else { '?' };
    db_backends::connect(&format!("{url}{separator}table={table}")).await.unwrap()
}

/// Checks that notes of which key a session has got are read and followed.
async fn check_rotations(url: &str, table: &str) {
    let database = connected(url, table).await;
    database.check_rotations().await.unwrap();
    database.migrate_rotations().await.unwrap();
    let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000 + 123_456);
    let key = |text: &str| SessionKey::parse(text).unwrap();
    let stored = |key: &SessionKey| {
        StoredKey::derive(key, KeyForm::Hashed, &KeyPrefix::parse("shop:").unwrap()).unwrap()
    };
    let (old, new) = (key("0123456789abcdefghijklmnopqrstuv"), key("zyxwvutsrqponmlkjihgfedcba987654"));
    let notes = database.rotations(&stored(&old), at(1_700_000_200), 10).await.unwrap();
    // The one that expires first comes first.
    let [hidden, revealed] = &*notes else { panic!("{notes:?}") };
    assert_eq!((&revealed.new, revealed.expires_at), (&stored(&new), at(4_000_000_000)));
    let masked = revealed.masked_key.unwrap();
    assert_eq!(masked.unmask(&revealed.new, &old), Some(new.clone()));
    // Written in the same way, so that an older node can read it.
    assert_eq!(MaskedKey::mask(&new, &stored(&new), &old), Some(masked));
    assert_eq!((hidden.new.as_str(), hidden.masked_key), ("without-masked-key", None));
}

async fn check_table(url: &str, table: &str) {
    let database = connected(url, table).await;
    database.migrate().await.unwrap();
    database.check_schema().await.unwrap();
    let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000 + 123_456);
    let key = StoredKey::parse("shop:4fQm1yBv9K7cTz0pLrXw2sNhJd8uEaGi6oVkYbC3MtR").unwrap();
    let now = at(1_700_000_200);
    let expected = |payload: &'static [u8], version, subject: Option<&str>| {
        Record::new(Bytes::from_static(payload), at(1_700_000_000), at(4_000_000_000))
            .with_last_seen_at(at(1_700_000_100))
            .with_version(Version::from_u64(version))
            .with_subject(subject.map(|subject| Subject::parse(subject).unwrap()))
    };
    let record = expected(b"1{\"cart\":[1,2]}", 0xfedc_ba98_7654_3210, Some("üser-42"));
    assert_eq!(database.load(&key, now).await.unwrap(), Some(record.clone()));
    let other = StoredKey::parse("without-subject").unwrap();
    assert_eq!(database.load(&other, now).await.unwrap(), Some(expected(b"1{}", 7, None)));

    let changed = record.clone().with_payload(Bytes::from_static(b"1{\"cart\":[]}"));
    let write = RecordWrite::new(&changed).with_expected(record.version());
    let updated = database.update(&key, write, now).await;
    let loaded = database.load(&key, now).await.unwrap().unwrap();
    assert_eq!((loaded.version(), loaded.payload()), (updated.unwrap(), changed.payload()));
    assert!(database.delete(&other).await.unwrap());
}

/// Checks that a node of the first version can work beside this one: it may start, and its sessions are reaped.
async fn check_older_node(url: &str, table: &str) {
    // It looks for the greatest number.
    run(url, format!("INSERT INTO {table}_schema SELECT 3 FROM (SELECT max(version) AS newest FROM {table}_schema) v WHERE newest <> 1"))
        .await;
    let database = connected(url, table).await;
    database.check_schema().await.unwrap();
    let key = if url.starts_with("mysql") { "`key`" } else { "key" };
    for (name, expires_at) in [("old-1", 1), ("old-2", 5_000_000_000_000_000_i64)] {
        let insert = format!(
            "INSERT INTO {table} ({key}, payload, created_at, expires_at, last_seen_at, version)
             VALUES ('{name}', '1', 0, {expires_at}, 0, 7)"
        );
        run(url, if url.starts_with("sqlite") { insert.replace("'1'", "x'31'") } else { insert }).await;
    }
    let reap = async |seconds| {
        let (mut removed, mut is_unfinished) = (0, true);
        while is_unfinished {
            let batch = database.delete_expired(Timestamp::from_secs(seconds), 1).await.unwrap();
            is_unfinished = batch.is_unfinished(1);
            removed += batch.count;
        }
        removed
    };
    assert_eq!(reap(1).await, 1, "a session of the older node has expired");
    assert_eq!(reap(3_999_999_999).await, 0);
    assert_eq!(reap(4_000_000_001).await, 1, "the session that was there before the migration has expired");
    assert_eq!(reap(5_000_000_001).await, 1, "the last session of the older node has expired");
}

/// Runs statements as another program would.
async fn run(url: &str, sql: String) {
    let sql = AssertSqlSafe(sql);
    if url.starts_with("postgres") {
        raw_sql(sql).execute(&mut PgConnection::connect(url).await.unwrap()).await.unwrap();
    } else if url.starts_with("sqlite") {
        raw_sql(sql).execute(&mut SqliteConnection::connect(url).await.unwrap()).await.unwrap();
    } else {
        raw_sql(sql).execute(&mut MySqlConnection::connect(url).await.unwrap()).await.unwrap();
    }
}
