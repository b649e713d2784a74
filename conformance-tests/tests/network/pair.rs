//! A primary and a replica behind one address, as a manager of failovers keeps it. The network tests and the soak
//! have it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use conformance_tests::proxy::Proxy;
use db_backends::sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, Row as _, raw_sql};
use tokio::time::sleep;

/// The maximum time to wait for what the servers do by themselves.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

/// The time for which a store does not check a connection again. A former primary has to be read-only for as long
/// before another one takes writes.
pub(crate) const UNCHECKED: Duration = Duration::from_millis(1_200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    MySql,
    MariaDb,
}

/// A primary, a replica, a proxy before each, and the address that leads to one of them.
pub(crate) struct Pair {
    kind: Kind,
    servers: [SocketAddr; 2],
    pub(crate) ways: [Proxy; 2],
    pub(crate) address: Proxy,
    /// The URL with that address.
    #[allow(dead_code, reason = "the soak puts it together with settings")]
    pub(crate) url: String,
    /// The URL of an administrator, with `{address}` in it.
    admin: String,
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < EVENT_TIMEOUT, "timed out waiting until {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

impl Pair {
    /// Waits until the replica follows the primary. `direct` is a URL with both servers, the primary first.
    pub(crate) async fn new(kind: Kind, direct: &str) -> Self {
        let (scheme, rest) = direct.split_once("://").unwrap();
        let (login, rest) = rest.split_once('@').unwrap();
        let (hosts, database) = rest.split_once('/').unwrap();
        let servers: Vec<SocketAddr> = hosts.split(',').map(|host| host.parse().unwrap()).collect();
        let servers: [SocketAddr; 2] = servers.try_into().unwrap();
        let ways = [Proxy::before(servers[0]).await.unwrap(), Proxy::before(servers[1]).await.unwrap()];
        let address = Proxy::before(ways[0].address()).await.unwrap();
        let url = format!("{scheme}://{login}@{}/{database}", address.address());
        let admin = match kind {
            Kind::Postgres => format!("{scheme}://{login}@{{address}}/{database}"),
            _ => format!("{scheme}://root:conformance@{{address}}/{database}"),
        };
        let pair = Self { kind, servers, ways, address, url, admin };
        let followers = match kind {
            Kind::Postgres => "SELECT count(*)::text FROM pg_stat_replication",
            Kind::MySql => {
                "SELECT variable_value FROM performance_schema.global_status
                 WHERE variable_name = 'Rpl_semi_sync_source_clients'"
            }
            Kind::MariaDb => {
                "SELECT variable_value FROM information_schema.global_status
                 WHERE variable_name = 'RPL_SEMI_SYNC_MASTER_CLIENTS'"
            }
        };
        until("the replica follows", async || pair.try_ask(0, followers).await.as_deref() == Some("1")).await;
        pair
    }

    pub(crate) fn admin_url(&self, server: usize) -> String {
        self.admin.replace("{address}", &self.servers[server].to_string())
    }

    /// Runs statements as an administrator, and returns the first value of the last row.
    pub(crate) async fn try_ask(&self, server: usize, sql: &str) -> Option<String> {
        let (url, sql) = (self.admin_url(server), raw_sql(AssertSqlSafe(sql.to_owned())));
        match self.kind {
            Kind::Postgres => {
                let mut connection = PgConnection::connect(&url).await.ok()?;
                let rows = sql.fetch_all(&mut connection).await.ok()?;
                rows.last().map_or(Some(String::new()), |row| row.try_get(0).ok())
            }
            _ => {
                let mut connection = MySqlConnection::connect(&url).await.ok()?;
                let rows = sql.fetch_all(&mut connection).await.ok()?;
                rows.last().map_or(Some(String::new()), |row| row.try_get_unchecked(0).ok())
            }
        }
    }

    pub(crate) async fn ask(&self, server: usize, sql: &str) -> String {
        self.try_ask(server, sql).await.unwrap_or_else(|| panic!("{sql} failed"))
    }

    async fn run_each(&self, server: usize, statements: &[&str]) {
        for statement in statements {
            self.ask(server, statement).await;
        }
    }

    /// Makes commits of the primary wait for the standby. The others are set up so.
    pub(crate) async fn be_synchronous(&self) {
        self.run_each(
            0,
            &["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()::text"],
        )
        .await;
        until("the standby is synchronous", async || {
            let state = "SELECT sync_state FROM pg_stat_replication";
            self.try_ask(0, state).await.as_deref() == Some("sync")
        })
        .await;
    }

    /// Makes commits of the primary wait for nothing. Postgres is set up so.
    pub(crate) async fn be_asynchronous(&self) {
        let statements: &[&str] = match self.kind {
            Kind::Postgres => &[],
            Kind::MySql => &["SET GLOBAL rpl_semi_sync_source_enabled = OFF"],
            Kind::MariaDb => &["SET GLOBAL rpl_semi_sync_master_enabled = OFF"],
        };
        self.run_each(0, statements).await;
    }

    /// Makes the replica receive nothing more.
    pub(crate) async fn fall_behind(&self) {
        let statements: &[&str] = match self.kind {
            Kind::Postgres => &["ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()::text"],
            Kind::MySql => &["STOP REPLICA IO_THREAD"],
            Kind::MariaDb => &["STOP SLAVE IO_THREAD"],
        };
        self.run_each(1, statements).await;
        if self.kind == Kind::Postgres {
            let receivers = "SELECT count(*)::text FROM pg_stat_wal_receiver";
            until("the standby receives nothing", async || self.ask(1, receivers).await == "0").await;
        }
    }

    /// Makes the primary read-only. Its connections stay open.
    pub(crate) async fn depose(&self) {
        let statements: &[&str] = match self.kind {
            Kind::Postgres => {
                &["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()::text"]
            }
            _ => &["SET GLOBAL read_only = ON"],
        };
        self.run_each(0, statements).await;
    }

    /// Waits until the replica has all that the primary has.
    pub(crate) async fn catch_up(&self) {
        until("the replica has caught up", async || {
            let positions = match self.kind {
                Kind::Postgres => [
                    self.ask(0, "SELECT pg_current_wal_lsn()::text").await,
                    self.ask(1, "SELECT pg_last_wal_replay_lsn()::text").await,
                ],
                Kind::MySql => {
                    [self.ask(0, "SELECT @@gtid_executed").await, self.ask(1, "SELECT @@gtid_executed").await]
                }
                Kind::MariaDb => [
                    self.ask(0, "SELECT @@gtid_binlog_pos").await,
                    self.ask(1, "SELECT @@gtid_slave_pos").await,
                ],
            };
            positions[0] == positions[1]
        })
        .await;
    }

    /// Waits until the replica has applied what it has received. Postgres does so by itself.
    async fn apply_all(&self) {
        match self.kind {
            Kind::Postgres => {}
            Kind::MySql => {
                self.ask(1, "STOP REPLICA IO_THREAD").await;
                let applied = "SELECT CAST(GTID_SUBSET(received_transaction_set, @@gtid_executed) AS CHAR)
                               FROM performance_schema.replication_connection_status";
                until("the replica has applied everything", async || self.ask(1, applied).await == "1").await;
            }
            Kind::MariaDb => {
                self.ask(1, "STOP SLAVE IO_THREAD").await;
                until("the replica has applied everything", async || {
                    let mut connection = MySqlConnection::connect(&self.admin_url(1)).await.unwrap();
                    let status = raw_sql("SHOW SLAVE STATUS").fetch_one(&mut connection).await.unwrap();
                    let received: String = status.try_get_unchecked("Gtid_IO_Pos").unwrap();
                    received == self.ask(1, "SELECT @@gtid_slave_pos").await
                })
                .await;
            }
        }
    }

    pub(crate) async fn promote(&self) {
        self.apply_all().await;
        let statements: &[&str] = match self.kind {
            Kind::Postgres => &["SELECT pg_promote()::text"],
            Kind::MySql => &[
                "STOP REPLICA",
                "RESET REPLICA ALL",
                "SET GLOBAL super_read_only = OFF",
                "SET GLOBAL read_only = OFF",
            ],
            Kind::MariaDb => &["STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL read_only = OFF"],
        };
        self.run_each(1, statements).await;
    }

    /// Stops the primary: Postgres without any ceremony, the others as they are told.
    #[allow(dead_code, reason = "the soak kills its process")]
    pub(crate) async fn stop(&self) {
        match self.kind {
            Kind::Postgres => self.control("stop -m immediate -W", "first").await,
            _ => {
                let _ = self.try_ask(0, "SHUTDOWN").await;
            }
        }
    }

    /// Runs `pg_ctl` for one of the servers.
    pub(crate) async fn control(&self, order: &str, data: &str) {
        let command =
            format!("for bin in /usr/lib/postgresql/*/bin; do $bin/pg_ctl {order} -D /tmp/{data}; done");
        // It may be the server that is asked.
        let _ = self.try_ask(0, &format!("COPY (SELECT 1) TO PROGRAM '{command}'")).await;
    }

    /// Makes the address lead to the replica.
    pub(crate) fn switch(&self) {
        self.address.lead_to(self.ways[1].address());
    }
}
