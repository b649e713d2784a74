use std::time::{Duration, SystemTime};

use db_backends::{ConnectError, connect, connect_to_inspect};
use session_core::{PersistenceError, Scan as _, SchemaProblem, Subject, SubjectIndex as _, Timestamp};

use crate::server::{Kind, NOW, Server, key, record};

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

pub async fn inspection_shows_version_clock_and_missing_indexes(server: Server) {
    let db = connect_to_inspect(&url(&server, "")).await.unwrap();
    assert_eq!(db.inspect().await.unwrap().missing_indexes, ["key", "expires_at", "subject"]);
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

    let drop = server.sql(r#"DROP INDEX "{t}_expires_at""#, "DROP INDEX `{t}_expires_at` ON `{t}`");
    server.program().await.run(&drop).await;
    assert_eq!(db.inspect().await.unwrap().missing_indexes, ["expires_at"]);
}
