use std::time::{Duration, Instant};

use session_core::{Outcome, PersistenceError, RecordWrite, Subject, Timestamp};

use crate::server::{LATER, NOW, Server, Settings, key, payload, record};

pub async fn bad_url_or_table_name_is_a_config_error(server: Server) {
    let scheme = server.sql("postgres", "mysql");
    let urls = [
        "".to_owned(),
        "sqlite::memory:".to_owned(),
        format!("{scheme}:"),
        format!("{scheme}://user:secret@[host/db"),
        format!("{scheme}://user:secret@host:port/db"),
        format!("{scheme}://user:secret@localhost/db?sslmode=secret"),
    ];
    for url in urls {
        // Postgres has defaults for what is missing.
        if url == "postgres:" {
            continue;
        }
        let error = server.connect_to(&url, Settings::default()).await.err().unwrap();
        assert!(matches!(error, PersistenceError::Config(_)), "{url:?}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
    let bad_table = Server { kind: server.kind, url: server.url.clone(), table: "a\"b`c".to_owned() };
    let error = bad_table.connect(Settings::default()).await.err().unwrap();
    assert!(matches!(error, PersistenceError::Config(_)), "{error:?}");
}

/// A server that takes no writes is a replica, or a primary that was deposed: what it shows may be old.
pub async fn server_that_takes_no_writes_is_not_even_read(server: Server) {
    server.database().await.insert_dyn(&key("a"), &record("kept")).await.unwrap();
    let read_only = server.sql("SET default_transaction_read_only = on", "SET SESSION TRANSACTION READ ONLY");
    let (db, _pool) = server.pooled(2, read_only.leak()).await;
    for error in [
        db.insert_dyn(&key("b"), &record("x")).await.unwrap_err(),
        db.update_dyn(&key("a"), RecordWrite::new(&record("x")), NOW).await.unwrap_err(),
        db.touch_dyn(&key("a"), LATER, Timestamp::MAX, NOW).await.unwrap_err(),
        db.delete_dyn(&key("a")).await.unwrap_err(),
        db.delete_expired_dyn(LATER, 1).await.unwrap_err(),
        db.load_dyn(&key("a"), NOW).await.unwrap_err(),
        db.check_schema_dyn().await.unwrap_err(),
        db.migrate_dyn().await.unwrap_err(),
    ] {
        assert!(matches!(error, PersistenceError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("read-only"), "{error}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(error.is_retryable());
    }
}

/// The refusal of a statement: here a role loses the right to write while its connections are open.
pub async fn connection_that_takes_no_writes_any_more_is_replaced(server: Server) {
    server.database().await.insert_dyn(&key("a"), &record("old")).await.unwrap();
    let (db, pool) = server.pooled(1, "SELECT 1").await;
    db.update_dyn(&key("a"), RecordWrite::new(&record("new")), NOW).await.unwrap();
    let statement = server.sql("SET default_transaction_read_only = on", "SET SESSION TRANSACTION READ ONLY");
    pool.run(&statement).await;
    db.update_dyn(&key("a"), RecordWrite::new(&record("newer")), NOW).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"newer");
}

pub async fn write_to_a_locked_row_is_busy_and_changes_nothing(server: Server) {
    let settings = Settings { lock_timeout: Duration::from_secs(1), ..Settings::default() };
    let db = server.database_with(settings).await;
    db.insert_dyn(&key("a"), &record("kept")).await.unwrap();
    let mut other = server.program().await;
    other.lock(&server, "a").await;

    let began = Instant::now();
    let error = db.update_dyn(&key("a"), RecordWrite::new(&record("x")), NOW).await.unwrap_err();
    assert!(matches!(error, PersistenceError::Busy(_)), "{error:?}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(error.is_retryable());
    assert!(began.elapsed() < Duration::from_secs(4), "it waited for {:?}", began.elapsed());
    assert_eq!(payload(&db, "a").await.unwrap(), b"kept", "reading goes on");

    other.unlock().await;
    db.update_dyn(&key("a"), RecordWrite::new(&record("new")), NOW).await.unwrap();
    assert_eq!(payload(&db, "a").await.unwrap(), b"new");
}

pub async fn unreadable_row_is_a_corrupt_row_error_and_stays(server: Server) {
    let db = server.database().await;
    let mut other = server.program().await;
    let too_large = server.sql("repeat('x', 16000000)::bytea", "repeat('x', 16000000)");
    for damage in ["subject = ''", &format!("payload = {too_large}")] {
        let written = record("secret").with_subject(Some(Subject::parse("secret").unwrap()));
        db.insert_dyn(&key("a"), &written).await.unwrap();
        other
            .run(
                &server
                    .sql(&format!(r#"UPDATE "{{t}}" SET {damage}"#), &format!("UPDATE `{{t}}` SET {damage}")),
            )
            .await;
        let error = db.load_dyn(&key("a"), NOW).await.unwrap_err();
        assert!(matches!(error, PersistenceError::CorruptRow(_)), "{damage}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        assert!(db.delete_dyn(&key("a")).await.unwrap(), "the row is still there");
    }
}

pub async fn message_that_quotes_no_value_is_shown(server: Server) {
    let db = server.database().await;
    let mandatory = r#"ALTER TABLE "{t}" ADD COLUMN kind varchar(9) NOT NULL"#;
    server.program().await.run(&server.sql(mandatory, &mandatory.replace('"', "`"))).await;
    let refused = db.insert_dyn(&key("secret-key"), &record("secret-payload")).await.unwrap_err();
    assert!(matches!(refused, PersistenceError::Refused(_)), "{refused:?}");
    assert!(refused.to_string().contains("kind"), "{refused}");
    assert!(!format!("{refused} {refused:?}").contains("secret"), "{refused:?}");

    // A trigger may quote values under any code.
    let trigger = server.sql(
        r#"CREATE FUNCTION "{t}_f"() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'no %', NEW.key USING ERRCODE = 'check_violation'; END $$;
           CREATE TRIGGER "{t}_r" BEFORE INSERT ON "{t}" FOR EACH ROW EXECUTE FUNCTION "{t}_f"()"#,
        "DO 1",
    );
    server.program().await.run(&trigger).await;
    let refused = db.insert_dyn(&key("secret-key"), &record("secret-payload")).await.unwrap_err();
    assert!(!format!("{refused} {refused:?}").contains("secret"), "{refused:?}");
}

pub async fn errors_show_neither_keys_nor_payloads(server: Server) {
    let db = server.database().await;
    db.insert_dyn(&key("secret-key"), &record("secret-payload")).await.unwrap();
    let duplicate = db.insert_dyn(&key("secret-key"), &record("secret-payload")).await.unwrap_err();
    assert!(matches!(duplicate, PersistenceError::AlreadyExists), "{duplicate:?}");

    let mut other = server.program().await;
    let trigger = server.sql(
        r#"CREATE FUNCTION "{t}_f"() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'no % %', NEW.key, NEW.payload; END $$;
           CREATE TRIGGER "{t}_r" BEFORE INSERT ON "{t}" FOR EACH ROW EXECUTE FUNCTION "{t}_f"()"#,
        "CREATE TRIGGER `{t}_r` BEFORE INSERT ON `{t}` FOR EACH ROW
           SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = NEW.`key`",
    );
    // MySQL takes a variable there, but no column.
    let trigger = trigger.replace(
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = NEW.`key`",
        "BEGIN SET @m = concat('no ', NEW.`key`, NEW.payload);
           SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = @m; END",
    );
    other.run(&trigger).await;
    let refused = db.insert_dyn(&key("secret-2"), &record("secret-payload")).await.unwrap_err();
    assert!(matches!(refused, PersistenceError::Refused(_)), "{refused:?}");
    for error in [duplicate, refused] {
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
    let debug = format!("{db:?}");
    assert!(!debug.contains("127.0.0.1"), "{debug}");
}
