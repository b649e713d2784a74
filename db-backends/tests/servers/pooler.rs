//! Postgres behind PgBouncer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use db_backends::postgres::PostgresPersistence;
use db_backends::sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use session_core::{ExpiryWrite, Outcome, PersistenceError, RecordWrite, Rotation, Subject, Timestamp};

use crate::pgbouncer::{Mode, PgBouncer, version};
use crate::server::{Db, LATER, NOW, Server, Settings, key, payload, record, start};

/// The setting with which PgBouncer drops the parameters of a connection, where it would refuse it otherwise.
const DROPS: &str = "ignore_startup_parameters = extra_float_digits, options";

/// Returns `server` as it is reached through a pooler.
pub fn through(bouncer: &PgBouncer, server: &Server) -> Server {
    let url = server.url_with(&bouncer.address, None);
    Server { kind: server.kind, url, table: server.table.clone() }
}

/// Makes an application's pool of this many connections.
async fn application_pool(server: &Server, size: u32) -> PgPool {
    let options: PgConnectOptions = server.url.parse().unwrap();
    let options = options.extra_float_digits(None);
    PgPoolOptions::new().max_connections(size).connect_with(options).await.unwrap()
}

fn on_pool(server: &Server, pool: PgPool) -> Db {
    Arc::new(PostgresPersistence::builder().table(&server.table).on_pool(pool).unwrap())
}

/// Makes every call once, under keys of its own.
async fn call_everything(db: &Db, name: &str) -> Result<(), PersistenceError> {
    let (k, renamed) = (key(name), key(&format!("{name}-renamed")));
    let subject = Subject::parse(name).unwrap();
    let first = record("first").with_subject(Some(subject.clone()));
    let version = db.insert_dyn(&k, &first).await?;
    assert_eq!(payload(db, name).await.as_deref(), Some(&b"first"[..]), "{name} was lost");
    assert!(matches!(db.insert_dyn(&k, &first).await, Err(PersistenceError::AlreadyExists)));
    let second = record("second").with_subject(Some(subject.clone()));
    let version = db.update_dyn(&k, RecordWrite::new(&second).with_expected(version), NOW).await?;
    assert!(db.touch_dyn(&k, LATER, Timestamp::MAX, NOW).await?);
    assert_eq!(db.list_by_subject_dyn(&subject, NOW, None, 10).await?.len(), 1, "{name} is not listed");
    let third = record("third");
    db.rename_dyn(
        &k,
        &renamed,
        RecordWrite::new(&third).with_expected(version).with_expiry(ExpiryWrite::Replace),
        NOW,
    )
    .await?;
    assert!(db.load_dyn(&k, NOW).await?.is_none());
    assert!(db.load_dyn(&renamed, NOW).await?.is_some(), "{name} was lost");
    assert_eq!(db.scan_dyn(Some(&renamed), 5).await?.iter().filter(|row| row.key == renamed).count(), 0);
    db.now_dyn().await?;
    assert!(db.delete_dyn(&renamed).await?, "{name} was lost");
    assert!(!db.delete_dyn(&renamed).await?);
    Ok(())
}

/// Two applications, one over connections of its own and one over its pool, share a few slots.
pub async fn every_call_works_behind_a_pooler_in_either_mode(server: Server) {
    for mode in [Mode::Session, Mode::Transaction] {
        for parameters in ["", DROPS] {
            // In session mode, a slot belongs to a client as long as that is connected.
            let slots = if mode == Mode::Session { 16 } else { 3 };
            let bouncer = PgBouncer::before(&server.url, mode, slots, &[parameters]).await;
            let through = through(&bouncer, &server);
            let own = through.database_with(Settings { max_connections: 6, ..Settings::default() }).await;
            let pooled = on_pool(&through, application_pool(&through, 6).await);
            pooled.migrate_dyn().await.unwrap();
            let mut tasks = Vec::new();
            for (app, db) in [("own", own), ("pooled", pooled)] {
                for n in 0..8 {
                    let db = Arc::clone(&db);
                    tasks.push(tokio::spawn(async move {
                        for round in 0..8 {
                            let name = format!("{app}-{n}-{round}");
                            let called = call_everything(&db, &name).await;
                            called.unwrap_or_else(|error| {
                                panic!("{mode:?}, {parameters:?}, {name}: {error:?}")
                            });
                        }
                    }));
                }
            }
            for task in tasks {
                task.await.unwrap();
            }
        }
    }
}

pub async fn tables_are_made_and_inspected_behind_a_pooler(server: Server) {
    let bouncer = PgBouncer::before(&server.url, Mode::Transaction, 2, &[DROPS]).await;
    let through = through(&bouncer, &server);
    let nodes: Vec<_> = (0..6)
        .map(|node| {
            let server =
                Server { kind: through.kind, url: through.url.clone(), table: through.table.clone() };
            tokio::spawn(async move {
                let url = format!("{}?table={}", server.url, server.table);
                let db = db_backends::connect_to_inspect(&url).await.unwrap();
                for round in 0..5 {
                    db.migrate_dyn().await.unwrap();
                    db.check_schema_dyn().await.unwrap();
                    db.migrate_rotations_dyn().await.unwrap();
                    db.check_rotations_dyn().await.unwrap();
                    let note = Rotation::new(key("old"), key(&format!("{node}-{round}")), LATER);
                    db.note_rotation_dyn(&note).await.unwrap();
                    assert!(db.rotations_dyn(&note.old, NOW, 100).await.unwrap().contains(&note));
                    assert_eq!(db.delete_expired_dyn(NOW, 100).await.unwrap().count, 0);
                    assert_eq!(db.inspect().await.unwrap().missing_indexes, [""; 0]);
                }
            })
        })
        .collect();
    for node in nodes {
        node.await.unwrap();
    }
}

/// A logout waits for a lock that another client keeps for longer than the bound.
pub async fn late_write_behind_a_pooler_ends_within_its_bound(server: Server) {
    for mode in [Mode::Session, Mode::Transaction] {
        let bouncer = PgBouncer::before(&server.url, mode, 12, &[DROPS]).await;
        let through = through(&bouncer, &server);
        let seconds = Duration::from_secs;
        let short =
            Settings { lock_timeout: seconds(1), statement_timeout: seconds(2), ..Settings::default() };
        let own = through.database_with(short).await;
        let builder = PostgresPersistence::builder().table(&server.table);
        let builder = builder.lock_timeout(seconds(1)).statement_timeout(seconds(2));
        let pooled: Db = Arc::new(builder.on_pool(application_pool(&through, 2).await).unwrap());
        for db in [own, pooled] {
            db.insert_dyn(&key("a"), &record("kept")).await.unwrap();
            let mut other = server.program().await;
            other.lock(&server, "a").await;
            let began = Instant::now();
            let error = db.delete_dyn(&key("a")).await.unwrap_err();
            assert!(matches!(error, PersistenceError::Busy(_)), "{mode:?}: {error:?}");
            assert!(began.elapsed() < seconds(4), "{mode:?}: it went on for {:?}", began.elapsed());
            // One whose caller goes away.
            let (k, mut observer) = (key("a"), server.program().await);
            let mut delete = Box::pin(db.delete_dyn(&k));
            start(&mut delete).await;
            tokio::select! {
                _ = &mut delete => panic!("the row is locked"),
                () = server.wait_for_busy_connections(&mut observer, 1) => {}
            }
            drop(delete);
            server.wait_for_busy_connections(&mut observer, 0).await;
            assert!(began.elapsed() < seconds(8), "{mode:?}: it went on for {:?}", began.elapsed());
            other.unlock().await;
            assert_eq!(payload(&db, "a").await.as_deref(), Some(&b"kept"[..]), "{mode:?}");
            assert!(db.delete_dyn(&key("a")).await.unwrap());
        }
    }
}

/// Another program keeps the only slot.
pub async fn write_that_waits_for_a_slot_is_not_applied(server: Server) {
    let bouncer = PgBouncer::before(&server.url, Mode::Transaction, 1, &[DROPS]).await;
    let through = through(&bouncer, &server);
    let short = Settings { acquire_timeout: Duration::from_secs(1), ..Settings::default() };
    let own = through.database_with(short).await;
    let builder = PostgresPersistence::builder().table(&server.table);
    let builder = builder.acquire_timeout(Duration::from_secs(1));
    let pooled: Db = Arc::new(builder.on_pool(application_pool(&through, 4).await).unwrap());
    own.insert_dyn(&key("a"), &record("kept")).await.unwrap();
    assert_eq!(payload(&pooled, "a").await.as_deref(), Some(&b"kept"[..]));
    for db in [own, pooled] {
        let mut other = through.program().await;
        other.run("BEGIN").await;
        let waiting: Vec<_> = (0..6)
            .map(|_| {
                let db = Arc::clone(&db);
                tokio::spawn(async move {
                    let began = Instant::now();
                    (db.delete_dyn(&key("a")).await.unwrap_err(), began.elapsed())
                })
            })
            .collect();
        for write in waiting {
            let (error, took) = write.await.unwrap();
            assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
            assert!(error.is_retryable(), "{error:?}");
            assert!(error.to_string().contains("became free"), "{error}");
            assert!(took < Duration::from_secs(3), "it waited for {took:?}");
        }
        other.unlock().await;
        assert_eq!(payload(&db, "a").await.as_deref(), Some(&b"kept"[..]), "a write came late");
    }
}

/// Stores may open more connections than the pooler has slots. In session mode, each keeps the slot that it has got.
pub async fn stores_with_more_connections_than_slots_write_nothing_late(server: Server) {
    for mode in [Mode::Session, Mode::Transaction] {
        let bouncer = PgBouncer::before(&server.url, mode, 3, &[DROPS]).await;
        let through = through(&bouncer, &server);
        let short =
            Settings { max_connections: 4, acquire_timeout: Duration::from_secs(1), ..Settings::default() };
        let (one, other) = (through.database_with(short).await, through.connect(short).await.unwrap());
        let writes: Vec<_> = (0..60)
            .map(|n| {
                let db = Arc::clone(if n % 2 == 0 { &one } else { &other });
                tokio::spawn(
                    async move { (n, db.insert_dyn(&key(&format!("{mode:?}-{n}")), &record("x")).await) },
                )
            })
            .collect();
        let mut written = 0;
        for write in writes {
            let (n, result) = write.await.unwrap();
            if let Err(error) = &result {
                assert_eq!(error.outcome(), Outcome::NotApplied, "{mode:?}: {error:?}");
                assert!(error.is_retryable(), "{mode:?}: {error:?}");
            }
            written += u32::from(result.is_ok());
            let is_there =
                payload(&server.connect(short).await.unwrap(), &format!("{mode:?}-{n}")).await.is_some();
            assert_eq!(is_there, result.is_ok(), "{mode:?}: {n}");
        }
        assert!(written > 0, "{mode:?}: nothing was written");
        // Nothing of it keeps a slot: a write now succeeds at each store that has a connection.
        one.delete_dyn(&key("none")).await.unwrap();
    }
}

pub async fn settings_that_a_pooler_drops_are_refused_with_the_remedy(server: Server) {
    for parameters in ["", DROPS] {
        let bouncer = PgBouncer::before(&server.url, Mode::Transaction, 2, &[parameters]).await;
        let url = format!("{}?options=-c%20search_path=elsewhere", through(&bouncer, &server).url);
        let error = server.connect_to(&url, Settings::default()).await.err().unwrap();
        assert!(matches!(error, PersistenceError::Config(_)), "{error:?}");
        assert!(error.to_string().contains("ALTER ROLE"), "{error}");
    }
    let bouncer = PgBouncer::before(&server.url, Mode::Statement, 2, &[DROPS]).await;
    let error = through(&bouncer, &server).connect(Settings::default()).await.err().unwrap();
    assert!(matches!(error, PersistenceError::Config(_)), "{error:?}");
    assert!(error.to_string().contains("pool_mode"), "{error}");
}

/// The settings are those of the role, so that nothing seems to be amiss but for the pooler.
pub async fn pooler_is_noticed_when_the_role_has_the_right_settings(server: Server) {
    let mut root = server.program().await;
    root.run(&server.sql(
        "CREATE ROLE {t} SUPERUSER LOGIN PASSWORD 'pw'; ALTER ROLE {t} SET statement_timeout = 5000;
         ALTER ROLE {t} SET lock_timeout = 3000; ALTER ROLE {t} SET default_transaction_isolation = 'read committed'",
        "",
    ))
    .await;
    let url = server.url_with(&server.address(), Some((&server.table, "pw")));
    let server = Server { kind: server.kind, url, table: server.table };
    let bouncer = PgBouncer::before(&server.url, Mode::Transaction, 2, &[DROPS]).await;
    let through = through(&bouncer, &server);
    let db = through.database().await;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let db = Arc::clone(&db);
            tokio::spawn(async move {
                for round in 0..10 {
                    call_everything(&db, &format!("{n}-{round}")).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// The check of a connection and the statement after it reach different servers, if the pooler has connections to several.
/// Here its only one becomes that to a former primary, and so does every other.
pub async fn former_primary_behind_a_pooler_is_not_read(server: Server) {
    let mut root = server.program().await;
    root.run(&server.sql("CREATE ROLE {t} SUPERUSER LOGIN PASSWORD 'pw'", "")).await;
    let url = server.url_with(&server.address(), Some((&server.table, "pw")));
    let server = Server { kind: server.kind, url, table: server.table };
    let bouncer = PgBouncer::before(&server.url, Mode::Transaction, 1, &[DROPS]).await;
    let through = through(&bouncer, &server);
    let own = through.database().await;
    let pooled = on_pool(&through, application_pool(&through, 2).await);
    for (name, db) in [("own", own), ("pooled", pooled)] {
        db.insert_dyn(&key(name), &record("kept")).await.unwrap();
        assert_eq!(payload(&db, name).await.as_deref(), Some(&b"kept"[..]));
        root.run(&server.sql("ALTER ROLE {t} SET default_transaction_read_only = on", "")).await;
        through.program().await.run("SET default_transaction_read_only = on").await;
        let error = db.load_dyn(&key(name), NOW).await.expect_err("a former primary was read");
        assert!(matches!(error, PersistenceError::Unavailable(_)), "{name}: {error:?}");
        assert!(error.is_retryable(), "{error:?}");
        // Its connections are not used again.
        root.run(&server.sql("ALTER ROLE {t} RESET default_transaction_read_only", "")).await;
        assert_eq!(payload(&db, name).await.as_deref(), Some(&b"kept"[..]), "{name}");
    }
}

/// Another client's prepared statement, with as many parameters and fewer columns, is behind the name that the
/// driver uses: the application says that there is no pooler.
pub async fn row_of_another_shape_is_an_error_and_no_panic(server: Server) {
    let without = if version().unwrap() >= (1, 21) { "max_prepared_statements = 0" } else { "" };
    let bouncer = PgBouncer::before(&server.url, Mode::Transaction, 2, &[DROPS, without]).await;
    let through = through(&bouncer, &server);
    server.database().await.insert_dyn(&key("a"), &record("kept")).await.unwrap();
    let mut other = through.program().await;
    other.run("BEGIN").await;
    let builder = PostgresPersistence::builder().table(&server.table).behind_pooler(false);
    let db: Db = Arc::new(builder.on_pool(application_pool(&through, 1).await).unwrap());
    // Prepared on the slot that is left.
    assert!(db.load_dyn(&key("a"), NOW).await.unwrap().is_some());
    other.prepare_another_shape().await;
    // The slot that was used last is used next.
    other.run("COMMIT").await;
    let error = db.load_dyn(&key("a"), NOW).await.unwrap_err();
    assert!(matches!(error, PersistenceError::CorruptRow(_)), "{error:?}");
}
