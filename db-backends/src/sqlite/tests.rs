//! The plans of the statements, which can only be seen from within.

use session_core::Persistence as _;
use sqlx::{AssertSqlSafe, query, query_as};

use super::SqlitePersistence;
use crate::sql::connections::Connections as _;

async fn plan(db: &SqlitePersistence, sql: &str) -> Vec<String> {
    let explain = query_as(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
    let rows: Vec<(i64, i64, i64, String)> = db
        .connections
        .reader()
        .await
        .unwrap()
        .perform(move |connection| Box::pin(explain.fetch_all(connection)))
        .await
        .unwrap();
    rows.into_iter().map(|row| row.3).collect()
}

#[tokio::test]
async fn no_statement_scans_the_table() {
    let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    db.migrate().await.unwrap();
    db.write(query(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100000)
         INSERT INTO sessions SELECT 'key-' || n, zeroblob(100), n, n, n, n, 'user-' || (n % 1000), n FROM n",
    ))
    .await
    .unwrap();

    // With and without statistics.
    for preparation in ["SELECT 1", "ANALYZE"] {
        db.write(query(preparation)).await.unwrap();
        let sql = &db.sql;
        for (statement, index) in [
            (&sql.load, "sqlite_autoindex_sessions_1"),
            (&sql.update.extend, "sqlite_autoindex_sessions_1"),
            (&sql.update.replace, "sqlite_autoindex_sessions_1"),
            (&sql.touch, "sqlite_autoindex_sessions_1"),
            (&sql.rename.extend, "sqlite_autoindex_sessions_1"),
            (&sql.rename.replace, "sqlite_autoindex_sessions_1"),
            (&sql.is_there, "sqlite_autoindex_sessions_1"),
            (&sql.delete, "sqlite_autoindex_sessions_1"),
            (&sql.delete_expired.rows, "sessions_reap_at"),
            (sql.delete_expired.by_keys.as_ref().unwrap(), "INTEGER PRIMARY KEY"),
            (sql.delete_expired.postpone.as_ref().unwrap(), "INTEGER PRIMARY KEY"),
            (&sql.count_expired, "sessions_reap_at"),
            (&sql.list_by_subject, "sessions_subject_key (subject=? AND key>?)"),
            (&sql.scan, "sqlite_autoindex_sessions_1"),
        ] {
            let plan = plan(&db, statement.as_str()).await;
            let is_scan = |line: &String| line.contains("SCAN") && !line.contains("json_each");
            assert!(!plan.iter().any(is_scan), "{statement:?}: {plan:#?}");
            assert!(plan.iter().any(|line| line.contains(index)), "{statement:?}: {plan:#?}");
        }
    }
}
