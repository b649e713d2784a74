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
    DynDatabase, ExpiryWrite, Persistence as _, Record, StoredKey, Subject, Timestamp, Version,
};

/// The files of each database, with the variable that names a server.
const FILES: [(&str, Option<&str>, &str); 4] = [
    ("sqlite-1", None, include_str!("golden/sqlite-1.sql")),
    ("postgres-1", Some("CONFORMANCE_POSTGRES_URL"), include_str!("golden/postgres-1.sql")),
    ("mysql-1", Some("CONFORMANCE_MYSQL_URL"), include_str!("golden/mysql-1.sql")),
    ("mariadb-1", Some("CONFORMANCE_MARIADB_URL"), include_str!("golden/mysql-1.sql")),
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
    let checked = AssertUnwindSafe(check_table(&url, &table)).catch_unwind().await;
    run(&url, format!("DROP TABLE {table}; DROP TABLE {table}_schema")).await;
    if let Err(panic) = checked {
        resume_unwind(panic);
    }
}

async fn check_table(url: &str, table: &str) {
    let separator = if url.contains('?') { '&' } else { '?' };
    let database: Arc<dyn DynDatabase> =
        db_backends::connect(&format!("{url}{separator}table={table}")).await.unwrap();
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
    let updated = database.update(&key, &changed, Some(record.version()), ExpiryWrite::Extend, now).await;
    let loaded = database.load(&key, now).await.unwrap().unwrap();
    assert_eq!((loaded.version(), loaded.payload()), (updated.unwrap(), changed.payload()));
    assert!(database.delete(&other).await.unwrap());
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
