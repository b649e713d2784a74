use db_backends::{ConnectError, connect};
use session_core::{PersistenceError, Scan as _, SchemaProblem, Subject, SubjectIndex as _};

use crate::server::{Kind, NOW, Server, key, record};

/// The server's URL with the test's table, and more parameters.
fn url(server: &Server, more: &str) -> String {
    let separator = if server.url.contains('?') { '&' } else { '?' };
    format!("{}{separator}table={}{more}", server.url, server.table)
}

pub async fn a_url_gives_a_database_with_subjects_that_can_be_scanned(server: Server) {
    let subject = Subject::parse("user-1").unwrap();
    let db = connect(&url(&server, "&max_connections=2&acquire_timeout_ms=20000")).await.unwrap();
    let missing = db.check_schema_dyn().await.unwrap_err();
    let expected = SchemaProblem::Missing { table: server.table.clone() };
    assert!(matches!(missing, PersistenceError::Schema(problem) if problem == expected));
    db.migrate_dyn().await.unwrap();
    db.insert_dyn(&key("a"), &record("x").with_subject(Some(subject.clone()))).await.unwrap();
    assert_eq!(db.list_by_subject(&subject, NOW).await.unwrap()[0].0, key("a"));
    assert_eq!(db.scan(None, 10).await.unwrap()[0].0, key("a"));

    // It is the table that the builder makes by that name.
    let db = server.connect(crate::server::Settings::default()).await.unwrap();
    assert!(db.load_dyn(&key("a"), NOW).await.unwrap().is_some());
}

pub async fn the_other_name_of_a_scheme_does_as_well(server: Server) {
    let (_, rest) = server.url.split_once(':').unwrap();
    let other = if server.kind == Kind::Postgres { "postgresql" } else { "mariadb" };
    let server = Server { url: format!("{other}:{rest}"), ..server };
    connect(&url(&server, "")).await.unwrap().migrate_dyn().await.unwrap();
}

pub async fn a_url_with_a_wrong_password_is_refused_without_showing_it(server: Server) {
    let wrong = Server {
        url: server.url_with(&server.address(), Some(("nobody", "s3cr3t"))),
        kind: server.kind,
        table: server.table.clone(),
    };
    let error = connect(&url(&wrong, "")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Database(PersistenceError::Unavailable(_))), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error:?}");
}
