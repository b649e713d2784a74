//! The cost of outages of a database that are no failover to a replica: a server that is killed and starts again, a node of
//! a cluster that is lost, and a failover behind a connection pooler.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conformance_tests::proxy::Mode;
use db_backends::postgres::PostgresPersistence;
use db_backends::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use db_backends::sqlx::{Connection as _, MySqlConnection, PgConnection, raw_sql};
use tokio::time::sleep;

use crate::database_failover::Load;
use crate::failover::until;
use crate::galera;
use crate::pair::{Kind, Pair, UNCHECKED};
use crate::pgbouncer::{self, PgBouncer};
use crate::{Link, Links};

/// A server without a replica, behind an address that stays.
async fn killed_and_started(links: &Links, name: &str) {
    let link = links.only();
    if link.url.starts_with("mysql") {
        // The test's servers spare the disk, and lose what was acknowledged.
        let mut connection = MySqlConnection::connect(&link.direct).await.unwrap();
        raw_sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1").execute(&mut connection).await.unwrap();
    } else {
        // In an unoptimized build, the driver computes a SCRAM proof for so long that this would be measured.
        let cheap = "SET scram_iterations = 1; ALTER ROLE postgres PASSWORD 'conformance'";
        let mut connection = PgConnection::connect(&link.direct).await.unwrap();
        raw_sql(cheap).execute(&mut connection).await.unwrap();
    }
    let load = Load::by([&link.url, &link.url]).await;
    let killed_at = Instant::now();
    links.kill(name).await;
    links.start_again(name).await;
    eprintln!("{name}: it took {:?} to start again", killed_at.elapsed());
    load.recovers(name, Instant::now()).await;
    load.shows_nothing_old().await;
}

pub async fn postgres_that_is_killed_and_starts_again_loses_nothing(links: &Links) {
    killed_and_started(links, "postgres").await;
}

pub async fn mysql_that_is_killed_and_starts_again_loses_nothing(links: &Links) {
    killed_and_started(links, "mysql").await;
}

pub async fn mariadb_that_is_killed_and_starts_again_loses_nothing(links: &Links) {
    killed_and_started(links, "mariadb").await;
}

/// Two nodes of the application, each of which begins with another node of the cluster.
async fn galera_node_lost(link: &Link, lose: impl AsyncFnOnce(&str)) {
    let nodes = galera::nodes(link);
    let urls = [[0, 1, 2], [1, 2, 0]].map(|order| galera::several(link, &order));
    // The cluster is complete.
    for node in &nodes {
        drop(galera::connected(node).await);
    }
    let load = Load::by([&urls[0], &urls[1]]).await;
    let lost_at = Instant::now();
    lose(&nodes[0]).await;
    until("the others know", || async {
        let Ok(mut connection) = MySqlConnection::connect(&nodes[1]).await else { return false };
        let size = "SELECT 1 FROM information_schema.global_status
                    WHERE variable_name = 'wsrep_cluster_size' AND variable_value = 2";
        raw_sql(size).fetch_optional(&mut connection).await.is_ok_and(|row| row.is_some())
    })
    .await;
    eprintln!("the cluster was without its node after {:?}", lost_at.elapsed());
    load.recovers("a node of Galera", Instant::now()).await;
    load.shows_nothing_old().await;
}

pub async fn galera_node_that_leaves_is_left_for_another(links: &Links) {
    let link = links.only();
    galera_node_lost(link, async |node| {
        let mut connection = MySqlConnection::connect(node).await.unwrap();
        // It may be gone before it answers.
        let _ = raw_sql("SHUTDOWN").execute(&mut connection).await;
    })
    .await;
}

pub async fn galera_node_that_dies_is_left_for_another(links: &Links) {
    galera_node_lost(links.only(), async |node| {
        let (_, port) = node.rsplit_once('/').unwrap().0.rsplit_once(':').unwrap();
        links.run("galera", &format!("kill -9 $(cat /tmp/node-{port}/pid)")).await;
    })
    .await;
}

/// The times for which PgBouncer tries nothing after a server that it did not reach, and waits for one that says nothing:
/// 15 s each by default.
const SETTINGS: [&str; 2] = ["server_login_retry = 1", "server_connect_timeout = 1"];

/// Puts PgBouncer before the address of a primary with a synchronous standby.
async fn pooled(link: &Link) -> (Pair, PgBouncer) {
    pooled_in(pgbouncer::Mode::Transaction, link).await
}

async fn pooled_in(mode: pgbouncer::Mode, link: &Link) -> (Pair, PgBouncer) {
    let mut pair = Pair::new(Kind::Postgres, &link.direct).await;
    pair.be_synchronous().await;
    let bouncer = PgBouncer::before(&pair.url, mode, 20, &SETTINGS).await;
    pair.url = pair.url.replace(&pair.address.address().to_string(), &bouncer.address);
    (pair, bouncer)
}

pub async fn killed_postgres_behind_pgbouncer_loses_nothing(links: &Links) {
    let (pair, _bouncer) = pooled(links.only()).await;
    let load = Load::on(&pair).await;
    pair.stop().await;
    pair.promote().await;
    pair.switch();
    load.recovers("kill behind PgBouncer", Instant::now()).await;
    load.shows_nothing_old().await;
}

pub async fn deposed_postgres_behind_pgbouncer_shows_nothing_old(links: &Links) {
    let (pair, _bouncer) = pooled(links.only()).await;
    let load = Load::on(&pair).await;
    pair.depose().await;
    sleep(UNCHECKED).await;
    pair.catch_up().await;
    pair.promote().await;
    pair.switch();
    load.recovers("switchover behind PgBouncer", Instant::now()).await;
    load.shows_nothing_old().await;
}

/// Two pools of an application's.
async fn deposed_before_a_pool(mode: pgbouncer::Mode, link: &Link) {
    let (pair, _bouncer) = pooled_in(mode, link).await;
    let options: PgConnectOptions = pair.url.parse().unwrap();
    let node = || {
        let pool = PgPoolOptions::new().max_connections(8);
        let pool = pool.connect_lazy_with(options.clone().extra_float_digits(None));
        Arc::new(PostgresPersistence::builder().on_pool(pool).unwrap())
    };
    let load = Load::over([node(), node()]).await;
    pair.depose().await;
    sleep(UNCHECKED).await;
    pair.catch_up().await;
    pair.promote().await;
    pair.switch();
    load.recovers(&format!("switchover behind PgBouncer, {mode:?}, an application's pools"), Instant::now())
        .await;
    load.shows_nothing_old().await;
}

pub async fn deposed_postgres_behind_pgbouncer_is_left_by_an_applications_pool(links: &Links) {
    deposed_before_a_pool(pgbouncer::Mode::Transaction, links.only()).await;
}

pub async fn deposed_postgres_behind_pgbouncer_in_session_mode_is_left_by_a_pool(links: &Links) {
    deposed_before_a_pool(pgbouncer::Mode::Session, links.only()).await;
}

pub async fn postgres_behind_pgbouncer_that_is_cut_off_is_left_for_good(links: &Links) {
    let (pair, _bouncer) = pooled(links.only()).await;
    let load = Load::on(&pair).await;
    pair.ways[0].set(Mode::Hold);
    sleep(UNCHECKED).await;
    pair.promote().await;
    pair.switch();
    load.recovers("split behind PgBouncer", Instant::now()).await;
    // As long as a call waits for PgBouncer, which may have given it a connection to the silent server.
    load.settles(Duration::from_secs(6)).await;
    load.goes_on_for(Duration::from_secs(1)).await;
    load.shows_nothing_old().await;
}
