use std::sync::Arc;

use db_backends::sqlx::migrate::Migrator;
use session_core::{PersistenceError, Rotation, SchemaProblem, Timestamp};
use tempfile::TempDir;

use crate::server::{Db, Kind, NOW, Program, Server, Settings, key, record};
use crate::warnings::Warnings;

async fn problem(db: &Db) -> SchemaProblem {
    match db.check_schema_dyn().await {
        Err(PersistenceError::Schema(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

async fn assert_usable(db: &Db) {
    db.check_schema_dyn().await.unwrap();
    let _ = db.delete_dyn(&key("key")).await.unwrap();
    db.insert_dyn(&key("key"), &record("x")).await.unwrap();
    assert!(db.load_dyn(&key("key"), NOW).await.unwrap().is_some());
    assert!(db.delete_dyn(&key("key")).await.unwrap());
}

/// Returns how many columns and indexes the tables of this test have.
async fn shape(server: &Server, program: &mut Program) -> (i64, i64) {
    let columns = server.sql(
        "SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relname LIKE '{t}%' AND c.relkind = 'r' AND attnum > 0",
        "SELECT count(*) FROM information_schema.columns
         WHERE table_schema = database() AND table_name LIKE '{t}%'",
    );
    let indexes = server.sql(
        "SELECT count(*) FROM pg_indexes WHERE tablename LIKE '{t}%'",
        "SELECT count(*) FROM information_schema.statistics
         WHERE table_schema = database() AND table_name LIKE '{t}%'",
    );
    (program.number(&columns).await, program.number(&indexes).await)
}

pub async fn second_migration_changes_nothing(server: Server) {
    let db = server.connect(Settings::default()).await.unwrap();
    assert_eq!(problem(&db).await, SchemaProblem::Missing { table: server.table.clone() });
    let error = db.load_dyn(&key("a"), NOW).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Schema(SchemaProblem::Missing { .. })), "{error:?}");
    db.migrate_dyn().await.unwrap();
    let mut program = server.program().await;
    let before = shape(&server, &mut program).await;
    db.migrate_dyn().await.unwrap();
    server.database().await;
    assert_eq!(shape(&server, &mut program).await, before);
    assert_usable(&db).await;
}

pub async fn schema_sql_makes_the_same_tables_as_migrate(server: Server) {
    let other = Server::new(server.kind, server.url.clone());
    other.database().await;
    let db = server.connect(Settings::default()).await.unwrap();
    let mut program = server.program().await;
    program.run(&db.schema_sql_dyn()).await;
    assert_usable(&db).await;
    assert_eq!(shape(&server, &mut program).await, shape(&other, &mut program).await);
    db.migrate_dyn().await.unwrap();
}

pub async fn foreign_table_is_refused_and_left_alone(server: Server) {
    for (foreign, reason) in [
        (r#"CREATE TABLE "{t}" (id INTEGER PRIMARY KEY, data TEXT)"#, "_schema beside it"),
        (r#"CREATE VIEW "{t}" AS SELECT 1 AS "key""#, "_schema beside it"),
        (r#"CREATE TABLE "{t}_schema" (name INTEGER)"#, "no primary key named version"),
        (
            r#"CREATE TABLE "{t}_schema" (version INTEGER PRIMARY KEY); CREATE TABLE "{t}" ("key" INTEGER PRIMARY KEY)"#,
            "its column key is not",
        ),
        (
            r#"CREATE TABLE "{t}_schema" (version INTEGER PRIMARY KEY); INSERT INTO "{t}_schema" VALUES (1);
               CREATE TABLE "{t}" (id INTEGER PRIMARY KEY)"#,
            "no column key",
        ),
    ] {
        let server = Server::new(server.kind, server.url.clone());
        let mut program = server.program().await;
        program.run(&server.sql(foreign, &foreign.replace('"', "`"))).await;
        let before = shape(&server, &mut program).await;
        let db = server.connect(Settings::default()).await.unwrap();
        let error = db.migrate_dyn().await.unwrap_err();
        assert!(
            matches!(&error, PersistenceError::Schema(SchemaProblem::Foreign { .. })),
            "{foreign}: {error:?}"
        );
        assert!(error.to_string().contains(reason), "{foreign}: {error}");
        assert!(matches!(problem(&db).await, SchemaProblem::Foreign { .. }));
        assert_eq!(shape(&server, &mut program).await, before);
    }
}

pub async fn newer_schema_is_refused(server: Server) {
    let db = server.database().await;
    let newer = r#"INSERT INTO "{t}_schema" VALUES (7); ALTER TABLE "{t}" DROP COLUMN last_seen_at"#;
    server.program().await.run(&server.sql(newer, &newer.replace('"', "`"))).await;
    let expected = SchemaProblem::TooNew { table: server.table.clone(), found: 7, known: 2 };
    assert_eq!(problem(&db).await, expected);
    assert!(matches!(db.migrate_dyn().await, Err(PersistenceError::Schema(problem)) if problem == expected));
}

pub async fn migration_that_was_cut_off_is_finished_by_the_next(server: Server) {
    let db = server.database().await;
    let mut program = server.program().await;
    let before = shape(&server, &mut program).await;
    let delete = r#"DELETE FROM "{t}_schema""#;
    program.run(&server.sql(delete, &delete.replace('"', "`"))).await;
    let expected = SchemaProblem::Outdated { table: server.table.clone(), found: 0, needed: 2 };
    assert_eq!(problem(&db).await, expected);
    db.migrate_dyn().await.unwrap();
    assert_eq!(shape(&server, &mut program).await, before);

    let drop = r#"DROP TABLE "{t}""#;
    program.run(&server.sql(drop, &drop.replace('"', "`"))).await;
    assert_eq!(problem(&db).await, SchemaProblem::Missing { table: server.table.clone() });
    db.migrate_dyn().await.unwrap();
    assert_usable(&db).await;
}

pub async fn several_nodes_can_migrate_at_once(server: Server) {
    for _ in 0..5 {
        let server = Arc::new(Server::new(server.kind, server.url.clone()));
        let nodes: Vec<_> = (0..8)
            .map(|n| {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    let db = if n % 2 == 0 {
                        server.connect(Settings::default()).await.unwrap()
                    } else {
                        server.pooled(1, "SELECT 1").await.0
                    };
                    db.migrate_dyn().await.unwrap();
                    db.check_schema_dyn().await.unwrap();
                    db
                })
            })
            .collect();
        for node in nodes {
            assert_usable(&node.await.unwrap()).await;
        }
    }
}

pub async fn missing_privilege_is_named(server: Server) {
    let mut root = server.program().await;
    let make = server.sql(
        "CREATE ROLE {t} LOGIN PASSWORD 'pw'; CREATE SCHEMA {t}; GRANT USAGE ON SCHEMA {t} TO {t};
         ALTER ROLE {t} SET search_path = {t}",
        "CREATE USER '{u}'@'%' IDENTIFIED BY 'pw'; GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO '{u}'@'%'",
    );
    // MySQL's user names have at most 32 characters.
    let user = server.sql("{t}", &server.table[server.table.len().saturating_sub(30)..]);
    root.run(&make.replace("{u}", &user)).await;
    let url = server.url_with(&server.address(), Some((user.as_str(), "pw")));
    let db = server.connect_to(&url, Settings::default()).await.unwrap();
    let error = db.migrate_dyn().await.unwrap_err();
    assert!(matches!(error, PersistenceError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains("denied"), "{error}");

    // A user with the privileges makes the tables.
    let in_schema = server.sql("SET search_path = {t}; ", "");
    root.run(&(in_schema + &db.schema_sql_dyn())).await;
    root.run(&server.sql("GRANT ALL ON ALL TABLES IN SCHEMA {t} TO {t}", "DO 1")).await;
    db.migrate_dyn().await.unwrap();
    assert_usable(&db).await;

    root.run(
        &server
            .sql("REVOKE UPDATE ON {t}.{t} FROM {t}", "REVOKE INSERT ON *.* FROM '{u}'@'%'")
            .replace("{u}", &user),
    )
    .await;
    let db = server.connect_to(&url, Settings::default()).await.unwrap();
    let refused = match server.kind {
        Kind::Postgres => db.touch_dyn(&key("a"), NOW, Timestamp::MAX, NOW).await.unwrap_err(),
        _ => db.insert_dyn(&key("a"), &record("x")).await.unwrap_err(),
    };
    assert!(matches!(refused, PersistenceError::Refused(_)), "{refused:?}");
    assert!(refused.to_string().contains("denied"), "{refused}");
}

pub async fn django_table_with_another_mandatory_column_is_refused(server: Server) {
    let mut program = server.program().await;
    let table = server.sql(
        r#"CREATE TABLE "{t}" (session_key varchar(40) PRIMARY KEY, session_data text NOT NULL,
           expire_date timestamp with time zone NOT NULL, note text, kind text NOT NULL DEFAULT 'x')"#,
        "CREATE TABLE `{t}` (session_key varchar(40) PRIMARY KEY, session_data longtext NOT NULL,
         expire_date datetime(6) NOT NULL, note text, kind varchar(9) NOT NULL DEFAULT 'x')",
    );
    program.run(&table).await;
    server.check_django().await.unwrap();
    let mandatory = r#"ALTER TABLE "{t}" ADD COLUMN ip_address varchar(9) NOT NULL"#;
    program.run(&server.sql(mandatory, &mandatory.replace('"', "`"))).await;
    let error = server.check_django().await.unwrap_err();
    assert!(matches!(error, PersistenceError::Schema(SchemaProblem::Foreign { .. })), "{error:?}");
    assert!(error.to_string().contains("ip_address is mandatory"), "{error}");
}

/// The notes are another role's to remove.
pub async fn role_that_may_not_remove_notes_reaps_all_the_same(server: Server) {
    let owner = server.database().await;
    owner.migrate_rotations_dyn().await.unwrap();
    owner.note_rotation_dyn(&Rotation::new(key("old"), key("new"), NOW)).await.unwrap();
    let mut root = server.program().await;
    let user = server.sql("{t}", &server.table[server.table.len().saturating_sub(30)..]);
    let make = server.sql(
        r#"CREATE ROLE {u} LOGIN PASSWORD 'pw'; GRANT ALL ON "{t}", "{t}_schema" TO {u};
           GRANT SELECT, INSERT ON "{t}_rotations" TO {u}"#,
        "CREATE USER '{u}'@'%' IDENTIFIED BY 'pw'; GRANT ALL ON `{t}` TO '{u}'@'%';
         GRANT SELECT ON `{t}_schema` TO '{u}'@'%'; GRANT SELECT, INSERT ON `{t}_rotations` TO '{u}'@'%'",
    );
    root.run(&make.replace("{u}", &user)).await;
    let url = server.url_with(&server.address(), Some((user.as_str(), "pw")));
    let db = server.connect_to(&url, Settings::default()).await.unwrap();
    let warnings = Warnings::default();
    let _default = tracing::subscriber::set_default(warnings.clone());
    for round in 0..3 {
        for n in 0..5 {
            db.insert_dyn(&key(&format!("{round}-{n}")), &record("x").with_expires_at(NOW)).await.unwrap();
        }
        let mut reaped = 0;
        loop {
            let removed = db.delete_expired_dyn(NOW, 2).await.unwrap();
            reaped += removed.count;
            // Noting goes on meanwhile, and is no reason to try again.
            db.note_rotation_dyn(&Rotation::new(key("old"), key(&format!("new-{round}-{reaped}")), NOW))
                .await
                .unwrap();
            if !removed.is_unfinished(2) {
                break;
            }
        }
        assert_eq!(reaped, 5, "the sessions of round {round}");
        let warned = warnings.take();
        assert_eq!(warned.len(), 1, "a warning in each round, not in each batch: {warned:?}");
        assert!(
            warned[0].contains("rotation_notes_kept") && warned[0].contains("grant DELETE"),
            "{warned:?}"
        );
    }
    // The owner removes them.
    while owner.delete_expired_dyn(NOW, 2).await.unwrap().is_unfinished(2) {}
    assert_eq!(owner.rotations_dyn(&key("old"), Timestamp::from_secs(0), 10).await.unwrap(), []);
}

/// An operator rebuilds the table of notes.
pub async fn locked_table_of_notes_keeps_no_session_from_being_reaped(server: Server) {
    let owner = server.database().await;
    owner.migrate_rotations_dyn().await.unwrap();
    owner.note_rotation_dyn(&Rotation::new(key("old"), key("new"), NOW)).await.unwrap();
    let lock_timeout = std::time::Duration::from_secs(1);
    let db = server.database_with(Settings { lock_timeout, ..Settings::default() }).await;
    db.insert_dyn(&key("a"), &record("x").with_expires_at(NOW)).await.unwrap();
    let mut program = server.program().await;
    program.run("BEGIN").await;
    program
        .run(&server.sql(
            r#"LOCK TABLE "{t}_rotations" IN ACCESS EXCLUSIVE MODE"#,
            "SELECT * FROM `{t}_rotations` FOR UPDATE",
        ))
        .await;
    let warnings = Warnings::default();
    let _default = tracing::subscriber::set_default(warnings.clone());
    assert_eq!(db.delete_expired_dyn(NOW, 10).await.unwrap().count, 1);
    let warned = warnings.take();
    assert!(warned.len() == 1 && warned[0].contains("rotation_notes_kept"), "{warned:?}");
    program.run("ROLLBACK").await;
    db.delete_expired_dyn(NOW, 10).await.unwrap();
    assert_eq!(owner.rotations_dyn(&key("old"), Timestamp::from_secs(0), 10).await.unwrap(), []);
}

pub async fn table_of_notes_is_the_same_by_its_statements_and_by_migration(mut server: Server) {
    let mut other = Server::new(server.kind, server.url.clone());
    for server in [&mut server, &mut other] {
        // The longest name that a table can have here: the suffixes must fit.
        server.table = format!("{:_<48}", server.table);
    }
    let (db, mut program) = (server.connect(Settings::default()).await.unwrap(), server.program().await);
    let migrated = other.connect(Settings::default()).await.unwrap();
    migrated.migrate_rotations_dyn().await.unwrap();
    program.run(&db.rotations_sql_dyn()).await;
    for db in [&db, &migrated] {
        db.check_rotations_dyn().await.unwrap();
        db.migrate_rotations_dyn().await.unwrap();
    }
    assert_eq!(shape(&server, &mut program).await, shape(&other, &mut program).await);
    let foreign = "DROP TABLE {t}_rotations; CREATE TABLE {t}_rotations (old_key INT)";
    program.run(&server.sql(foreign, foreign)).await;
    for refused in [db.check_rotations_dyn().await, db.migrate_rotations_dyn().await] {
        assert!(
            matches!(refused, Err(PersistenceError::Schema(SchemaProblem::Foreign { .. }))),
            "{refused:?}"
        );
    }
}

pub async fn migration_leaves_the_applications_migrations_alone(server: Server) {
    // A database of its own, because each database has one _sqlx_migrations.
    let mut root = server.program().await;
    root.run(&server.sql("CREATE DATABASE {t}", "CREATE DATABASE {t}")).await;
    let (base, _) = server.url.rsplit_once('/').unwrap();
    let server =
        Server { kind: server.kind, url: format!("{base}/{}", server.table), table: "sessions".into() };
    let migrations = TempDir::new().unwrap();
    let migration = |name: &str, sql: &str| std::fs::write(migrations.path().join(name), sql).unwrap();
    let run_all = async || {
        let migrator = Migrator::new(migrations.path()).await.unwrap();
        let mut program = server.program().await;
        match &mut program {
            Program::Postgres(connection) => migrator.run(connection).await.unwrap(),
            Program::MySql(connection) => migrator.run(connection).await.unwrap(),
        }
        program.number("SELECT count(*) FROM _sqlx_migrations").await
    };
    migration("1_users.sql", "CREATE TABLE users (id INTEGER PRIMARY KEY);");
    assert_eq!(run_all().await, 1);
    let (db, _pool) = server.pooled(2, "SELECT 1").await;
    db.migrate_dyn().await.unwrap();
    assert_usable(&db).await;
    migration("2_more.sql", "CREATE TABLE more (id INTEGER PRIMARY KEY);");
    assert_eq!(run_all().await, 2);
    db.migrate_dyn().await.unwrap();
    assert_usable(&db).await;
}
