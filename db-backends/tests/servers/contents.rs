use std::sync::Arc;
use std::time::{Duration, SystemTime};

use session_core::{ExpiredSessions, PersistenceError, Record, RecordWrite, Subject, Timestamp};

use crate::server::Settings;
use crate::server::{Kind, LATER, NOW, Server, key, payload, record};

/// The connection has another time zone and another character set.
pub async fn record_is_read_as_it_was_written(server: Server) {
    let odd = server.sql("?options=-c%20TimeZone%3DAsia/Kathmandu", "?timezone=%2B05:45&charset=latin1");
    let separator = if server.url.contains('?') { odd.replacen('?', "&", 1) } else { odd };
    let db = server.connect_to(&(server.url.clone() + &separator), Settings::default()).await.unwrap();
    db.migrate_dyn().await.unwrap();
    let (clock, now) = (db.now_dyn().await.unwrap(), Timestamp::from(SystemTime::now()));
    assert!(clock.since(now).max(now.since(clock)) < Duration::from_secs(60), "{clock:?} {now:?}");
    let payload: Vec<u8> = (0..=255).collect();
    let (first, last) = (Timestamp::from_micros(i64::MIN + 1), Timestamp::MAX);
    let written = Record::new(payload.into(), first, last)
        .with_last_seen_at(Timestamp::from_micros(-1))
        .with_subject(Some(Subject::parse("Üser '\\\" 中 🦀 ").unwrap()));
    let long = "k".repeat(64);
    for name in ["Key", "key", "kéy".replace('é', "e").as_str(), "key'\"\\%_`", long.as_str()] {
        let version = match db.insert_dyn(&key(name), &written).await {
            Ok(version) => version,
            Err(PersistenceError::AlreadyExists) if name == "key" => continue,
            Err(error) => panic!("{error:?}"),
        };
        let loaded = db.load_dyn(&key(name), NOW).await.unwrap().unwrap();
        assert_eq!(loaded, written.clone().with_version(version), "{name}");
    }
    let subject = written.subject().unwrap();
    assert_eq!(db.list_by_subject_dyn(subject, NOW, None, 10).await.unwrap().len(), 4);
    for other in ["üser '\\\" 中 🦀 ", "Üser '\\\" 中 🦀"] {
        let other = Subject::parse(other).unwrap();
        assert_eq!(db.list_by_subject_dyn(&other, NOW, None, 10).await.unwrap().len(), 0);
    }
}

pub async fn payload_up_to_the_limit_is_kept_and_a_larger_one_is_refused(server: Server) {
    let db = server.database().await;
    let large: Vec<u8> = (0..5 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    db.insert_dyn(&key("a"), &record(large.clone())).await.unwrap();
    assert!(payload(&db, "a").await.unwrap() == large);
    let limit = db.properties_dyn().max_payload_bytes;
    db.update_dyn(&key("a"), RecordWrite::new(&record(vec![7; limit])), NOW).await.unwrap();
    assert!(payload(&db, "a").await.unwrap() == vec![7; limit]);
    let error = db.insert_dyn(&key("b"), &record(vec![7; limit + 1])).await.unwrap_err();
    assert!(matches!(error, PersistenceError::TooLarge { .. }), "{error:?}");
}

/// Counts the rows that the server reads, on a table of 100,000 rows, with and without statistics, and after
/// the driver's statements have become generic plans.
pub async fn no_statement_reads_the_whole_table(server: Server) {
    let (db, pool) = server.pooled(1, "SELECT 1").await;
    db.migrate_dyn().await.unwrap();
    let mut program = server.program().await;
    let digits = "(SELECT 0 d UNION SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5
                   UNION SELECT 6 UNION SELECT 7 UNION SELECT 8 UNION SELECT 9)";
    let numbers = format!(
        "SELECT a.d + 10*b.d + 100*c.d + 1000*e.d + 10000*f.d AS n
         FROM {digits} a, {digits} b, {digits} c, {digits} e, {digits} f"
    );
    let fill = server.sql(
        r#"INSERT INTO "{t}" SELECT 'key-' || n, 'payload', n, n, n, n, 'user-' || n % 1000, n
           FROM generate_series(0, 99999) n"#,
        "INSERT INTO `{t}` SELECT concat('key-', n), 'payload', n, n, n, n, concat('user-', n % 1000), n
         FROM ({numbers}) numbers",
    );
    program.run(&fill.replace("{numbers}", &numbers)).await;

    for statistics in [false, true] {
        if statistics {
            program.run(&server.sql(r#"ANALYZE "{t}""#, "ANALYZE TABLE `{t}`")).await;
        }
        for round in 0..10 {
            let now = Timestamp::from_micros(50_000);
            let subject = Subject::parse("user-500").unwrap();
            let before = rows_read(&server, &pool).await;
            let k = key(&format!("key-{}", 60_000 + round));
            let version = db.load_dyn(&k, now).await.unwrap().unwrap().version();
            let new = record("new");
            let update = db.update_dyn(&k, RecordWrite::new(&new).with_expected(version), now).await;
            assert!(update.is_ok());
            let conflict = db.update_dyn(&k, RecordWrite::new(&new).with_expected(version), now).await;
            assert!(matches!(conflict, Err(PersistenceError::Conflict)), "{conflict:?}");
            assert!(db.touch_dyn(&k, LATER, LATER, now).await.unwrap());
            assert!(!db.touch_dyn(&k, LATER, Timestamp::from_micros(0), now).await.unwrap());
            let renamed = key(&format!("renamed-{statistics}-{round}"));
            db.rename_dyn(&k, &renamed, RecordWrite::new(&new), now).await.unwrap();
            db.insert_dyn(&k, &new).await.unwrap();
            assert!(db.delete_dyn(&renamed).await.unwrap());
            assert_eq!(db.list_by_subject_dyn(&subject, now, None, 1_000).await.unwrap().len(), 50);
            let read = rows_read(&server, &pool).await - before;
            assert!(read < 400, "round {round}: {read} rows were read for 50 and some");

            // A page reads no more than its own rows.
            let before = rows_read(&server, &pool).await;
            let after = key("key-7049");
            let page = db.list_by_subject_dyn(&subject, now, Some(&after), 10).await.unwrap();
            assert_eq!((page.len(), page[0].key), (10, key("key-70500")));
            let read = rows_read(&server, &pool).await - before;
            assert!(read < 50, "round {round}: {read} rows were read for a page of a subject");
            let before = rows_read(&server, &pool).await;
            let page = db.scan_dyn(Some(&after), 10).await.unwrap();
            assert_eq!((page.len(), page[0].key), (10, key("key-70490")));
            let read = rows_read(&server, &pool).await - before;
            assert!(read < 50, "round {round}: {read} rows were read for a page of 10");

            let before = rows_read(&server, &pool).await;
            assert_eq!(db.delete_expired_dyn(now, 100).await.unwrap().count, 100);
            let read = rows_read(&server, &pool).await - before;
            // Entries of rows that are gone stay in Postgres's index as long as another transaction may see
            // them.
            assert!(read < 5_000, "round {round}: {read} rows were read to delete 100");
        }
    }
}

/// Returns how many rows the server has read: for the pool's one connection, or of the table.
async fn rows_read(server: &Server, pool: &crate::server::Pool) -> i64 {
    match server.kind {
        // Postgres counts when a transaction ends, and publishes the counts when it is asked to.
        Kind::Postgres => {
            let _ = pool.number("SELECT 1::bigint FROM pg_stat_force_next_flush()").await;
            let sql = "SELECT (coalesce(seq_tup_read, 0)
                + (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes i WHERE i.relid = t.relid))::bigint
                FROM pg_stat_user_tables t WHERE relname = '{t}'";
            pool.number(&sql.replace("{t}", &server.table)).await
        }
        _ => {
            pool.number(
                "SELECT CAST(sum(variable_value) AS SIGNED) FROM {schema}.session_status
                 WHERE variable_name IN ('HANDLER_READ_FIRST', 'HANDLER_READ_KEY', 'HANDLER_READ_LAST',
                     'HANDLER_READ_NEXT', 'HANDLER_READ_PREV', 'HANDLER_READ_RND', 'HANDLER_READ_RND_NEXT')"
                    .replace(
                        "{schema}",
                        if server.kind == Kind::MySql { "performance_schema" } else { "information_schema" },
                    )
                    .as_str(),
            )
            .await
        }
    }
}

/// The server begins its transactions with another isolation level.
pub async fn concurrent_writes_of_one_session_all_have_an_outcome(server: Server) {
    let own = server.database().await;
    let strict = server.sql(
        "SET default_transaction_isolation = 'serializable'",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    );
    let (pooled, _pool) = server.pooled(8, strict.leak()).await;
    for db in [own, pooled] {
        let version = db.insert_dyn(&key("a"), &record("0")).await.unwrap();
        let tasks: Vec<_> = (0..40)
            .map(|n| {
                let db = Arc::clone(&db);
                tokio::spawn(async move {
                    let expected = (n % 2 == 0).then_some(version);
                    db.update_dyn(
                        &key("a"),
                        RecordWrite::new(&record(format!("{n}"))).with_expected(expected),
                        NOW,
                    )
                    .await
                })
            })
            .collect();
        let mut expecting_won = 0;
        for (n, task) in tasks.into_iter().enumerate() {
            match task.await.unwrap() {
                Ok(_) => expecting_won += usize::from(n % 2 == 0),
                Err(error) => {
                    assert!(n % 2 == 0 && matches!(error, PersistenceError::Conflict), "{n}: {error:?}");
                }
            }
        }
        assert!(expecting_won <= 1, "{expecting_won} writes found the same version");
        assert!(db.delete_dyn(&key("a")).await.unwrap());
    }
}

pub async fn several_nodes_can_delete_expired_sessions_at_once(server: Server) {
    let db = server.database().await;
    let mut program = server.program().await;
    for n in 0..500 {
        let expired = record("x").with_expires_at(NOW - Duration::from_micros(n));
        db.insert_dyn(&key(&format!("old-{n}")), &expired).await.unwrap();
    }
    db.insert_dyn(&key("young"), &record("x")).await.unwrap();
    let nodes: Vec<_> = (0..4)
        .map(|_| {
            let db = Arc::clone(&db);
            tokio::spawn(async move {
                let mut deleted = 0;
                loop {
                    match db.delete_expired_dyn(NOW, 20).await {
                        Ok(ExpiredSessions { count, .. }) => {
                            deleted += count;
                            if count < 20 {
                                return deleted;
                            }
                        }
                        // A deadlock with another node, or a wait for it that took too long.
                        Err(error) => assert!(matches!(error, PersistenceError::Busy(_)), "{error:?}"),
                    }
                }
            })
        })
        .collect();
    let mut deleted = 0;
    for node in nodes {
        deleted += node.await.unwrap();
    }
    // A row that each of them passed over, because another one had just looked at it, is left to the next round.
    deleted += db.delete_expired_dyn(NOW, 20).await.unwrap().count;
    assert_eq!(deleted, 500);
    let left = server.sql(r#"SELECT count(*) FROM "{t}""#, "SELECT count(*) FROM `{t}`");
    assert_eq!(program.number(&left).await, 1);
}
