//! A statement that was left behind, whose server another one has taken the place of meanwhile: the request to end it
//! must not reach a connection there that has the same number.

use std::time::Duration;

use db_backends::sqlx::{Connection as _, MySqlConnection, PgConnection, Row as _, query_scalar, raw_sql};
use session_core::{DynDatabase, RecordWrite, StoredKey};
use tokio::time::sleep;

use crate::database_failover::{key, now, pair, record};
use crate::pair::Kind;
use crate::{Link, Links};

/// Leaves a write of a row that is locked, and makes the address lead elsewhere by `switch`. Returns when the request to
/// end the statement must have been sent.
async fn leave_a_write(node: &dyn DynDatabase, key: &StoredKey, switch: impl Future<Output = ()>) {
    let (changed, at) = (record(1), now());
    let write = node.update_dyn(key, RecordWrite::new(&changed), at);
    let waited = tokio::time::timeout(Duration::from_millis(300), write).await;
    assert!(waited.is_err(), "the row is locked");
    switch.await;
    // The grace period of the statement, and the time to connect and to send the request.
    sleep(Duration::from_secs(3)).await;
}

/// MySQL and MariaDB number the connections of each server from 1.
async fn kill_is_not_sent_to_another_server(kind: Kind, link: &Link) {
    let pair = pair(kind, link).await;
    // So that the numbers here are ahead of those on the other server.
    for _ in 0..30 {
        pair.ask(0, "SELECT 1").await;
    }
    let node = db_backends::connect(&format!("{}?max_connections=1", pair.url)).await.unwrap();
    node.migrate_dyn().await.unwrap();
    let key = key();
    node.insert_dyn(&key, &record(0)).await.unwrap();
    let number = "SELECT CAST(max(id) AS CHAR) FROM information_schema.processlist WHERE user = 'app'";
    let number: u64 = pair.ask(0, number).await.parse().unwrap();
    // Victims on the other server, one of which has that number. They are of the same user, who may kill no one else's.
    let as_app = pair.admin_url(1).replace("//root:", "//app:");
    let mut victims = Vec::new();
    loop {
        let mut victim = MySqlConnection::connect(&as_app).await.unwrap();
        let rows = raw_sql("SELECT connection_id()").fetch_all(&mut victim).await.unwrap();
        let id: u64 = rows[0].try_get_unchecked(0).unwrap();
        assert!(id <= number, "no connection has the number {number}, because {id} came first");
        let is_the_one = id == number;
        victims.push(victim);
        if is_the_one {
            break;
        }
    }
    let mut locker = MySqlConnection::connect(&pair.admin_url(0)).await.unwrap();
    raw_sql("BEGIN; SELECT * FROM sessions FOR UPDATE").execute(&mut locker).await.unwrap();
    let before = pair.ways[1].connections();
    leave_a_write(&*node, &key, async {
        pair.promote().await;
        pair.switch();
    })
    .await;
    assert!(pair.ways[1].connections() > before, "the other server was not reached");
    for victim in &mut victims {
        victim.ping().await.expect("a connection to the other server was killed");
    }
}

pub async fn kill_is_not_sent_to_the_mysql_that_took_over(links: &Links) {
    kill_is_not_sent_to_another_server(Kind::MySql, links.only()).await;
}

pub async fn kill_is_not_sent_to_the_mariadb_that_took_over(links: &Links) {
    kill_is_not_sent_to_another_server(Kind::MariaDb, links.only()).await;
}

async fn process(connection: &mut PgConnection) -> i32 {
    query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// Postgres has the numbers of processes, which two containers have each of their own. They recur, so the other
/// connection is there before the one that is left.
pub async fn termination_is_not_sent_to_the_postgres_that_took_over(links: &Links) {
    const SPARE: usize = 40;
    let (old, new) = (links.get("postgres"), links.get("postgres-tls"));
    let connect = async |url: &str| PgConnection::connect(url).await.unwrap();
    let mut admin = connect(&old.direct).await;
    let reached = process(&mut admin).await;
    // Victims on the other server, with numbers that come later here.
    let mut victims: Vec<(i32, PgConnection)> = Vec::new();
    while victims.len() < SPARE || victims[victims.len() - SPARE].0 <= reached {
        let mut victim = connect(&new.direct).await;
        victims.push((process(&mut victim).await, victim));
        if victims.len() > 2 * SPARE {
            victims.remove(0);
        }
    }
    let latest = "SELECT max(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let node = loop {
        let node = db_backends::connect(&format!("{}?max_connections=1", old.url)).await.unwrap();
        let number: i32 = query_scalar(latest).fetch_one(&mut admin).await.unwrap();
        assert!(number <= victims[victims.len() - 1].0, "no connection has the number {number}");
        if victims.iter().any(|(of_victim, _)| *of_victim == number) {
            break node;
        }
    };
    node.migrate_dyn().await.unwrap();
    let key = key();
    node.insert_dyn(&key, &record(0)).await.unwrap();
    raw_sql("BEGIN; SELECT * FROM sessions FOR UPDATE").execute(&mut admin).await.unwrap();
    let before = old.proxy.connections();
    leave_a_write(&*node, &key, async { old.proxy.lead_to(crate::address(&new.direct)) }).await;
    assert!(old.proxy.connections() > before, "the other server was not reached");
    for (number, victim) in &mut victims {
        victim
            .ping()
            .await
            .unwrap_or_else(|error| panic!("connection {number} to the other server: {error}"));
    }
}
