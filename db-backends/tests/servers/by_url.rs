use std::time::{Duration, SystemTime};

use db_backends::{ConnectError, FindingSeverity, connect, connect_to_inspect};
use session_core::{PersistenceError, Scan as _, SchemaProblem, Subject, SubjectIndex as _, Timestamp};

use crate::server::{Kind, NOW, Server, key, record};
use crate::warnings::Warnings;

/// Returns the server's URL with the test's table, and more parameters.
fn url(server: &Server, more: &str) -> String {
    let separator = if server.url.contains('?') { '&' } else { '?' };
    format!("{}{separator}table={}{more}", server.url, server.table)
}

pub async fn database_by_url_has_subjects_and_can_be_scanned(server: Server) {
    let subject = Subject::parse("user-1").unwrap();
    let db = connect(&url(&server, "&max_connections=2&acquire_timeout_ms=20000")).await.unwrap();
    let missing = db.check_schema_dyn().await.unwrap_err();
    let expected = SchemaProblem::Missing { table: server.table.clone() };
    assert!(matches!(missing, PersistenceError::Schema(problem) if problem == expected));
    db.migrate_dyn().await.unwrap();
    db.insert_dyn(&key("a"), &record("x").with_subject(Some(subject.clone()))).await.unwrap();
    assert_eq!(db.list_by_subject(&subject, NOW, None, 10).await.unwrap()[0].key, key("a"));
    assert_eq!(db.scan(None, 10).await.unwrap()[0].key, key("a"));

    // The builder finds the same table by its name.
    let db = server.connect(crate::server::Settings::default()).await.unwrap();
    assert!(db.load_dyn(&key("a"), NOW).await.unwrap().is_some());
}

pub async fn other_name_of_a_scheme_works_as_well(server: Server) {
    let (_, rest) = server.url.split_once(':').unwrap();
    let other = if server.kind == Kind::Postgres { "postgresql" } else { "mariadb" };
    let server = Server { url: format!("{other}:{rest}"), ..server };
    connect(&url(&server, "")).await.unwrap().migrate_dyn().await.unwrap();
}

pub async fn wrong_password_in_a_url_is_refused_without_showing_it(server: Server) {
    let wrong = Server {
        url: server.url_with(&server.address(), Some(("nobody", "s3cr3t"))),
        kind: server.kind,
        table: server.table.clone(),
    };
    let error = connect(&url(&wrong, "")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Database(PersistenceError::Unavailable(_))), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error:?}");
}

/// The role, or the session of a pool, has settings that weaken or break the contract.
pub async fn wrong_settings_are_found_and_the_worst_are_refused(server: Server) {
    let mut root = server.program().await;
    let user = server.sql("{t}", &server.table[server.table.len().saturating_sub(30)..]);
    let make = server.sql(
        "CREATE ROLE {u} SUPERUSER LOGIN PASSWORD 'pw' CONNECTION LIMIT 4; ALTER ROLE {u} SET synchronous_commit = off;
         ALTER ROLE {u} SET default_transaction_isolation = 'serializable'",
        "CREATE USER '{u}'@'%' IDENTIFIED BY 'pw' WITH MAX_USER_CONNECTIONS 4; GRANT ALL ON *.* TO '{u}'@'%'",
    );
    root.run(&make.replace("{u}", &user)).await;
    let login = server.url_with(&server.address(), Some((&user, "pw")));
    let own = Server { url: login, kind: server.kind, table: server.table.clone() };
    let db = connect_to_inspect(&url(&own, "&max_connections=5")).await.unwrap();
    // None of this keeps a store from being built, which logs everything that `sessionctl doctor` reports.
    let log = Warnings::default();
    let listening = tracing::subscriber::set_default(log.clone());
    db.migrate_dyn().await.unwrap();
    drop(listening);
    let (found, logged) = (db.inspect().await.unwrap().findings, log.take());
    // What others have opened meanwhile is in the text.
    let of_settings = found.iter().filter(|finding| !finding.text.contains("others have opened"));
    for finding in of_settings {
        let is_logged = |line: &String| line.contains("database_setting") && line.contains(&finding.text);
        assert!(logged.iter().any(is_logged), "{finding:?} is not among {logged:?}");
    }
    let has = |severity, word: &str| {
        found.iter().any(|finding| finding.severity == severity && finding.text.contains(word))
    };
    let limit = own.sql("CONNECTION LIMIT is 4", "max_user_connections is 4");
    assert!(has(FindingSeverity::Warning, &limit), "{found:?}");
    if own.kind != Kind::Postgres {
        // What the servers of the tests are set to, or have by default.
        assert!(has(FindingSeverity::Warning, "innodb_flush_log_at_trx_commit is 0"), "{found:?}");
        assert!(has(FindingSeverity::Note, "max_connect_errors is 100"), "{found:?}");
    }
    if own.kind == Kind::Postgres {
        // Other nodes have opened what this one may need. What this one has opened itself is not in its way.
        root.run(&format!("ALTER ROLE {user} CONNECTION LIMIT 6")).await;
        let (one, other, third) = tokio::join!(db.inspect(), db.inspect(), db.inspect());
        assert!(one.is_ok() && other.is_ok() && third.is_ok());
        let alone = db.inspect().await.unwrap().findings;
        assert!(!alone.iter().any(|finding| finding.text.contains("CONNECTION LIMIT")), "{alone:?}");
        let others = [own.program().await, own.program().await];
        let crowded = db.inspect().await.unwrap().findings;
        assert!(crowded.iter().any(|finding| finding.text.contains("others have opened 2")), "{crowded:?}");
        drop(others);
        assert!(has(FindingSeverity::Warning, "synchronous_commit"), "{found:?}");
        assert!(has(FindingSeverity::Note, "serializable"), "{found:?}");
        root.run(&format!("ALTER ROLE {user} SET default_transaction_read_only = on")).await;
        let refused = connect(&url(&own, "")).await.expect_err("the role may not write");
        assert!(refused.to_string().contains("default_transaction_read_only"), "{refused}");
        let found = connect_to_inspect(&url(&own, "")).await.err().map(|error| error.to_string());
        assert!(
            found.as_ref().is_some_and(|text| text.contains("default_transaction_read_only")),
            "{found:?}"
        );
        return;
    }
    // Our own session is strict, whatever the server's default.
    assert!(!found.iter().any(|finding| finding.severity == FindingSeverity::Problem), "{found:?}");
    for (first, word) in
        [("SET SESSION autocommit = 0", "autocommit"), ("SET SESSION sql_mode = ''", "STRICT")]
    {
        let (db, _pool) = server.pooled(1, first).await;
        let error = db.check_schema_dyn().await.unwrap_err();
        assert!(matches!(error, PersistenceError::Config(_)), "{first}: {error:?}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

pub async fn inspection_shows_version_clock_and_missing_indexes(server: Server) {
    let db = connect_to_inspect(&url(&server, "")).await.unwrap();
    assert_eq!(db.inspect().await.unwrap().missing_indexes, ["key", "subject", "reap_at"]);
    db.migrate_dyn().await.unwrap();
    db.insert_dyn(&key("a"), &record("x")).await.unwrap();
    let inspection = db.inspect().await.unwrap();
    assert_eq!(inspection.missing_indexes, [""; 0]);
    assert!(!inspection.is_read_only);
    assert_eq!(inspection.version.contains("MariaDB"), server.kind == Kind::MariaDb, "{inspection:?}");
    // The server is on this machine.
    let (clock, now) = (inspection.clock.unwrap(), Timestamp::from(SystemTime::now()));
    assert!(clock.since(now).max(now.since(clock)) < Duration::from_secs(60), "{clock:?} {now:?}");

    assert_eq!(db.count_expired(NOW).await.unwrap(), 0);
    assert_eq!(db.count_expired(crate::server::LATER).await.unwrap(), 1);

    let drop = server.sql(r#"DROP INDEX "{t}_reap_at""#, "DROP INDEX `{t}_reap_at` ON `{t}`");
    server.program().await.run(&drop).await;
    assert_eq!(db.inspect().await.unwrap().missing_indexes, ["reap_at"]);
}
