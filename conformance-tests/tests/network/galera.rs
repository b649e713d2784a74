//! A Galera cluster, each node of which another store uses.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use db_backends::mysql::MySqlPersistence;
use db_backends::sqlx::mysql::{MySqlPool, MySqlPoolOptions};
use db_backends::sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, query_scalar, raw_sql};
use session_core::{
    DynDatabase, KeyForm, KeyPrefix, Persistence as _, PersistenceError, Record, RecordWrite, SessionKey,
    StoredKey, Timestamp,
};

use crate::{Link, Links};

type Db = Arc<dyn DynDatabase>;

fn key() -> StoredKey {
    StoredKey::derive(&SessionKey::generate().unwrap(), KeyForm::Hashed, &KeyPrefix::NONE).unwrap()
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

fn record(payload: &str) -> Record {
    Record::new(Bytes::copy_from_slice(payload.as_bytes()), now(), now() + Duration::from_secs(600))
}

/// Returns the URL of each node.
pub fn nodes(link: &Link) -> Vec<String> {
    (0..3).map(|node| several(link, &[node])).collect()
}

/// Returns a URL with these nodes, in this order.
pub fn several(link: &Link, order: &[usize]) -> String {
    let (login, rest) = link.direct.split_once('@').unwrap();
    let (addresses, database) = rest.split_once('/').unwrap();
    let addresses: Vec<_> = addresses.split(',').collect();
    let chosen: Vec<_> = order.iter().map(|node| addresses[*node]).collect();
    format!("{login}@{}/{database}", chosen.join(","))
}

async fn program(url: &str) -> MySqlConnection {
    MySqlConnection::connect(url).await.unwrap()
}

async fn run(program: &mut MySqlConnection, sql: &str) {
    raw_sql(AssertSqlSafe(sql.to_owned())).execute(program).await.unwrap();
}

/// Connects a store's database to a node. A node is unavailable now and then while the cluster comes together.
pub async fn connected(url: &str) -> MySqlPersistence {
    let began = Instant::now();
    loop {
        match MySqlPersistence::connect(url).await {
            Err(PersistenceError::Unavailable(_)) if began.elapsed() < Duration::from_secs(30) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            connected => return connected.unwrap(),
        }
    }
}

/// Connects a store's database to every node, and migrates on all at once.
async fn databases(link: &Link) -> Vec<Db> {
    let mut connecting = Vec::new();
    for url in nodes(link) {
        connecting.push(tokio::spawn(async move {
            let db = connected(&url).await;
            db.migrate().await.unwrap();
            db.check_schema().await.unwrap();
            Arc::new(db) as Db
        }));
    }
    let mut databases = Vec::new();
    for connected in connecting {
        databases.push(connected.await.unwrap());
    }
    databases
}

/// Makes the other nodes busy for a while: they go through a table without a key for each row that changed.
async fn lag(program: &mut MySqlConnection) {
    run(program, "UPDATE unkeyed SET n = n + 1").await;
}

pub async fn galera_node_sees_what_another_has_committed(links: &Links) {
    let link = links.only();
    let databases = databases(link).await;
    let [first, second, ..] = &*databases else { panic!("there are three nodes") };
    let mut busy = program(&nodes(link)[0]).await;
    run(&mut busy, "CREATE TABLE unkeyed (n INT, filler CHAR(200)) ENGINE = InnoDB").await;
    run(&mut busy, "INSERT INTO unkeyed SELECT seq, '' FROM seq_1_to_40000").await;
    let mut other = program(&nodes(link)[1]).await;
    run(&mut other, "SET SESSION wsrep_sync_wait = 1; SELECT 1 FROM unkeyed LIMIT 1").await;
    // How far behind the other node is, by its own account.
    lag(&mut busy).await;
    let began = Instant::now();
    run(&mut other, "SELECT 1 FROM unkeyed LIMIT 1").await;
    let behind = began.elapsed();
    assert!(behind > Duration::from_millis(30), "the other node was not behind: {behind:?}");

    let (saved, renamed, ended) = (key(), key(), key());
    let version = first.insert_dyn(&saved, &record("old")).await.unwrap();
    lag(&mut busy).await;
    first.insert_dyn(&ended, &record("to be ended")).await.unwrap();
    // A logout at the other node must find the session of a moment ago.
    assert!(second.delete_dyn(&ended).await.unwrap(), "a logout found no session");
    assert!(first.load_dyn(&ended, now()).await.unwrap().is_none(), "an ended session was seen");

    lag(&mut busy).await;
    let changed = record("new");
    let version =
        first.update_dyn(&saved, RecordWrite::new(&changed).with_expected(version), now()).await.unwrap();
    let seen = second.load_dyn(&saved, now()).await.unwrap().unwrap();
    assert_eq!((seen.payload(), seen.version()), (changed.payload(), version), "an old session was seen");

    lag(&mut busy).await;
    first.rename_dyn(&saved, &renamed, RecordWrite::new(&changed), now()).await.unwrap();
    second.touch_dyn(&renamed, now() + Duration::from_secs(900), Timestamp::MAX, now()).await.unwrap();
    assert!(second.load_dyn(&saved, now()).await.unwrap().is_none(), "the former key still works");
}

pub async fn galera_conflicts_at_commit_are_repeated_and_fail_no_write(links: &Links) {
    let link = links.only();
    let databases = databases(link).await;
    let mut pools: Vec<MySqlPool> = Vec::new();
    let mut all = databases.clone();
    for url in nodes(link) {
        let refused = pool(&url, "SELECT 1").await;
        let error = MySqlPersistence::from_pool(refused).migrate().await.unwrap_err();
        assert!(matches!(error, PersistenceError::Config(_)), "{error:?}");
        assert!(error.to_string().contains("wsrep_sync_wait"), "{error}");
        pools.push(pool(&url, "SET SESSION wsrep_sync_wait = 3").await);
        let db = MySqlPersistence::from_pool(pools.last().unwrap().clone());
        db.migrate().await.unwrap();
        all.push(Arc::new(db));
    }
    let hot = key();
    databases[0].insert_dyn(&hot, &record("0")).await.unwrap();
    let writers: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(n, db)| {
            let (db, hot) = (Arc::clone(db), hot);
            tokio::spawn(async move {
                for round in 0..40 {
                    let written = record(&format!("{n}-{round}"));
                    db.update_dyn(&hot, RecordWrite::new(&written), now()).await.expect("no write fails");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    // Conflicts there were.
    let mut conflicts = 0_i64;
    for url in nodes(link) {
        let status = "SELECT CAST(sum(variable_value) AS SIGNED) FROM information_schema.global_status
                      WHERE variable_name IN ('wsrep_local_cert_failures', 'wsrep_local_bf_aborts')";
        conflicts += query_scalar::<_, i64>(status).fetch_one(&mut program(&url).await).await.unwrap();
    }
    assert!(conflicts > 0, "no two nodes wrote at the same time");
    let expected = databases[0].load_dyn(&hot, now()).await.unwrap();
    for db in &all {
        assert_eq!(db.load_dyn(&hot, now()).await.unwrap(), expected);
    }
}

async fn pool(url: &str, first: &'static str) -> MySqlPool {
    MySqlPoolOptions::new()
        .max_connections(2)
        .after_connect(move |connection, _| {
            Box::pin(async move { raw_sql(first).execute(connection).await.map(|_| ()) })
        })
        .connect(url)
        .await
        .unwrap()
}

pub async fn galera_node_that_is_not_ready_is_unavailable_and_says_why(links: &Links) {
    let link = links.only();
    let databases = databases(link).await;
    let k = key();
    databases[0].insert_dyn(&k, &record("kept")).await.unwrap();
    let mut last = program(&nodes(link)[2]).await;
    // It answers as a node that has no quorum, or is still receiving its state.
    run(&mut last, "SET GLOBAL wsrep_reject_queries = 'ALL'").await;
    for error in
        [databases[2].load_dyn(&k, now()).await.unwrap_err(), databases[2].delete_dyn(&k).await.unwrap_err()]
    {
        assert!(matches!(error, PersistenceError::Unavailable(_)), "{error:?}");
        let text = error.to_string().to_lowercase();
        assert!(text.contains("wsrep") || text.contains("galera"), "{text}");
    }
    // The others go on.
    assert!(databases[1].load_dyn(&k, now()).await.unwrap().is_some());
    run(&mut last, "SET GLOBAL wsrep_reject_queries = 'NONE'").await;
    assert!(databases[2].delete_dyn(&k).await.unwrap());
}
