//! The cost of a failover of the database: some requests for a moment, and never an acknowledged write or a
//! load of something old. A primary and a replica are behind one address, as a manager of failovers keeps
//! it, and two nodes write and read over it all the time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use conformance_tests::proxy::Mode;
use db_backends::{Finding, FindingSeverity};
use session_core::{
    DynDatabase, KeyForm, KeyPrefix, Outcome, PersistenceError, Record, RecordWrite, SessionKey, StoredKey,
    Timestamp,
};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::failover::until;
use crate::pair::{Kind, Pair, UNCHECKED};
use crate::{Link, Links};

const HOUR: Duration = Duration::from_secs(3_600);

/// The number of sessions that are worked on at the same time: more than a node has connections.
const SESSIONS: u64 = 16;

/// The promise: the time until requests succeed again, once the address leads to the new primary.
const RECOVERY: Duration = Duration::from_secs(2);

/// The tolerance for a machine that does not run the process in time.
const SLACK: Duration = Duration::from_secs(2);

pub async fn pair(kind: Kind, link: &Link) -> Pair {
    Pair::new(kind, &link.direct).await
}

async fn node(url: &str) -> Arc<dyn DynDatabase> {
    db_backends::connect(url).await.unwrap()
}

pub fn key() -> StoredKey {
    StoredKey::derive(&SessionKey::generate().unwrap(), KeyForm::Hashed, &KeyPrefix::NONE).unwrap()
}

pub fn now() -> Timestamp {
    SystemTime::now().into()
}

pub fn record(n: u64) -> Record {
    Record::new(n.to_string().into_bytes().into(), now(), now() + HOUR)
}

/// The findings of the load.
#[derive(Default)]
struct Findings {
    is_over: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
    failed_at: Mutex<Option<Instant>>,
    /// The number of requests that had failed when the others succeeded again.
    failed_until_recovery: AtomicU64,
    /// Failed writes that may have happened.
    unknown: AtomicU64,
    /// Loads that showed something older than what had been acknowledged before.
    old: AtomicU64,
    /// The number of acknowledged writes that the oldest of these lacked, at most.
    lost: AtomicU64,
    /// The time at which the first of the writes that are lost was acknowledged.
    lost_since: Mutex<Option<Instant>>,
}

impl Findings {
    fn note_failure(&self) {
        self.failed.fetch_add(1, Ordering::SeqCst);
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Notes a load that lacks these writes, the first of which was acknowledged at this instant.
    fn note_old(&self, lacks: u64, since: Instant) {
        self.old.fetch_add(1, Ordering::SeqCst);
        self.lost.fetch_max(lacks, Ordering::SeqCst);
        let mut lost_since = self.lost_since.lock().unwrap_or_else(PoisonError::into_inner);
        *lost_since = Some(lost_since.map_or(since, |before| before.min(since)));
    }

    /// Returns the time of the last failure since `begun`, or `begun`.
    fn quiet_since(&self, begun: Instant) -> Instant {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.map_or(begun, |at| at.max(begun))
    }
}

/// Two nodes, and the sessions that they write and read.
pub struct Load {
    findings: Arc<Findings>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    pub async fn on(pair: &Pair) -> Self {
        Self::by([&pair.url, &pair.url]).await
    }

    /// Begins, with a node for each URL.
    pub async fn by(urls: [&str; 2]) -> Self {
        Self::over([node(urls[0]).await, node(urls[1]).await]).await
    }

    /// Begins, over these nodes.
    pub async fn over(nodes: [Arc<dyn DynDatabase>; 2]) -> Self {
        nodes[0].migrate_dyn().await.unwrap();
        let findings = Arc::new(Findings::default());
        let mut tasks = Vec::new();
        for session in 0..SESSIONS {
            let (writer, reader) = if session % 2 == 0 { (0, 1) } else { (1, 0) };
            let nodes = [Arc::clone(&nodes[writer]), Arc::clone(&nodes[reader])];
            let key = key();
            nodes[0].insert_dyn(&key, &record(0)).await.unwrap();
            tasks.push(tokio::spawn(work(nodes, key, Arc::clone(&findings))));
        }
        let load = Self { findings, tasks };
        load.goes_on_for(Duration::from_secs(1)).await;
        load
    }

    pub async fn goes_on_for(&self, time: Duration) {
        let before = self.findings.done.load(Ordering::SeqCst);
        sleep(time).await;
        assert!(self.findings.done.load(Ordering::SeqCst) > before, "no request succeeds");
    }

    /// Waits until requests succeed and none fails, and checks that this takes no longer than is promised.
    pub async fn recovers(&self, name: &str, reachable_at: Instant) {
        const QUIET: Duration = Duration::from_millis(500);
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let before = count(&self.findings.done);
        let (mut quiet_since, mut done, mut served_at) = (reachable_at, before, None);
        // Long enough without a failure, and each session was worked on meanwhile.
        while quiet_since.elapsed() < QUIET || count(&self.findings.done) < done + 2 * SESSIONS {
            sleep(Duration::from_millis(20)).await;
            if served_at.is_none() && count(&self.findings.done) >= before + SESSIONS {
                served_at = Some(Instant::now());
            }
            let last = self.findings.quiet_since(reachable_at);
            if last > quiet_since {
                (quiet_since, done) = (last, count(&self.findings.done));
            }
            assert!(reachable_at.elapsed() < Duration::from_secs(30), "requests still fail");
        }
        let took = served_at.map_or(quiet_since, |at| at.max(quiet_since)).duration_since(reachable_at);
        let (failed, unknown) = (count(&self.findings.failed), count(&self.findings.unknown));
        self.findings.failed_until_recovery.store(failed, Ordering::SeqCst);
        eprintln!(
            "{name}: recovered after {took:?}; {failed} requests failed, {unknown} of them with unknown outcome"
        );
        assert!(took < RECOVERY + SLACK, "it took {took:?}");
    }

    /// Lets requests fail for a time that still wait for a server which says nothing.
    pub async fn settles(&self, time: Duration) {
        sleep(time).await;
        let failed = self.findings.failed.load(Ordering::SeqCst);
        let before = self.findings.failed_until_recovery.swap(failed, Ordering::SeqCst);
        eprintln!("{} more failed within {time:?}", failed - before);
    }

    /// Ends the requests, and returns what was found.
    async fn end(self) -> Arc<Findings> {
        self.findings.is_over.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.findings
    }

    /// Ends the requests. Panics if one was shown something old, or has failed since they succeeded again.
    pub async fn shows_nothing_old(self) {
        let findings = self.end().await;
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let later = count(&findings.failed) - count(&findings.failed_until_recovery);
        assert_eq!(later, 0, "requests failed after the recovery");
        assert_eq!(findings.old.load(Ordering::SeqCst), 0, "loads were shown what had been overwritten");
    }
}

/// Writes ever greater numbers to a session on one node, and reads them on the other.
async fn work(nodes: [Arc<dyn DynDatabase>; 2], key: StoredKey, findings: Arc<Findings>) {
    let (mut acknowledged, mut attempted) = (0, 0);
    // The time of each acknowledgement, by number.
    let mut acknowledged_at = BTreeMap::new();
    while !findings.is_over.load(Ordering::SeqCst) {
        attempted += 1;
        match nodes[0].update_dyn(&key, RecordWrite::new(&record(attempted)), now()).await {
            Ok(_) => {
                acknowledged = attempted;
                acknowledged_at.insert(attempted, Instant::now());
                findings.done.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                findings.note_failure();
                let is_unknown = error.outcome() == Outcome::Unknown;
                findings.unknown.fetch_add(is_unknown.into(), Ordering::SeqCst);
                assert!(is_unknown || error.is_retryable(), "a failover is no reason to give up: {error}");
                sleep(Duration::from_millis(20)).await;
            }
        }
        match nodes[1].load_dyn(&key, now()).await {
            Ok(found) => {
                let found = found.map(|record| String::from_utf8(record.payload().to_vec()).unwrap());
                let n: u64 = found.map_or(0, |text| text.parse().unwrap());
                assert!(n <= attempted, "{n} was never written");
                if n < acknowledged {
                    let (_, first) = acknowledged_at.range(n + 1..).next().unwrap();
                    findings.note_old(acknowledged - n, *first);
                    // A loss is counted once; only a further one counts again.
                    acknowledged = n;
                }
                findings.done.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                findings.note_failure();
                assert!(error.is_retryable(), "{error}");
                sleep(Duration::from_millis(20)).await;
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// A switchover whose former primary stays up, with its connections open.
async fn deposed(kind: Kind, link: &Link) {
    let pair = pair(kind, link).await;
    let load = Load::on(&pair).await;
    pair.depose().await;
    sleep(UNCHECKED).await;
    pair.catch_up().await;
    pair.promote().await;
    pair.switch();
    load.recovers("switchover", Instant::now()).await;
    load.goes_on_for(Duration::from_secs(2)).await;
    load.shows_nothing_old().await;
}

pub async fn deposed_postgres_is_left_at_once_and_shows_nothing_old(links: &Links) {
    deposed(Kind::Postgres, links.only()).await;
}

pub async fn deposed_mariadb_is_left_at_once_and_shows_nothing_old(links: &Links) {
    deposed(Kind::MariaDb, links.only()).await;
}

pub async fn deposed_mysql_is_left_at_once_and_shows_nothing_old(links: &Links) {
    deposed(Kind::MySql, links.only()).await;
}

async fn killed(pair: &Pair) -> Load {
    let load = Load::on(pair).await;
    pair.stop().await;
    pair.promote().await;
    pair.switch();
    load.recovers("kill", Instant::now()).await;
    load.goes_on_for(Duration::from_secs(1)).await;
    load
}

pub async fn killed_postgres_with_a_synchronous_standby_loses_nothing(links: &Links) {
    let pair = pair(Kind::Postgres, links.only()).await;
    pair.be_synchronous().await;
    killed(&pair).await.shows_nothing_old().await;
}

pub async fn stopped_mysql_with_a_synchronous_replica_loses_nothing(links: &Links) {
    let pair = pair(Kind::MySql, links.only()).await;
    killed(&pair).await.shows_nothing_old().await;
}

pub async fn stopped_mariadb_with_a_synchronous_replica_loses_nothing(links: &Links) {
    let pair = pair(Kind::MariaDb, links.only()).await;
    killed(&pair).await.shows_nothing_old().await;
}

/// The writes that were acknowledged while the replica was behind are lost, and nothing else.
async fn killed_without_waiting_for_the_replica(kind: Kind, link: &Link) {
    /// The time by which a replica lags behind that receives everything.
    const LAG: Duration = Duration::from_secs(1);
    let pair = pair(kind, link).await;
    pair.be_asynchronous().await;
    let load = Load::on(&pair).await;
    let behind_since = Instant::now();
    pair.fall_behind().await;
    load.goes_on_for(Duration::from_millis(300)).await;
    pair.stop().await;
    pair.promote().await;
    pair.switch();
    load.recovers("kill before an asynchronous replica", Instant::now()).await;
    load.goes_on_for(Duration::from_secs(1)).await;
    let findings = load.end().await;
    let (old, lost) = (findings.old.load(Ordering::SeqCst), findings.lost.load(Ordering::SeqCst));
    let lost_since = *findings.lost_since.lock().unwrap_or_else(PoisonError::into_inner);
    let lost_since = lost_since.expect("nothing was lost, which proves nothing");
    let before = behind_since.saturating_duration_since(lost_since);
    eprintln!(
        "{old} sessions went back by {lost} writes at most, the first {before:?} before the replica fell behind"
    );
    assert!(old <= SESSIONS, "{old} loads were shown something old");
    assert!(before < LAG, "a write was lost that the replica had had time for");
}

pub async fn killed_postgres_with_an_asynchronous_standby_loses_the_last_moment(links: &Links) {
    killed_without_waiting_for_the_replica(Kind::Postgres, links.only()).await;
}

pub async fn stopped_mariadb_with_an_asynchronous_replica_loses_the_last_moment(links: &Links) {
    killed_without_waiting_for_the_replica(Kind::MariaDb, links.only()).await;
}

pub async fn stopped_mysql_with_an_asynchronous_replica_loses_the_last_moment(links: &Links) {
    killed_without_waiting_for_the_replica(Kind::MySql, links.only()).await;
}

/// The former primary goes on, and its answers arrive late.
async fn cut_off(pair: &Pair) {
    let load = Load::on(pair).await;
    pair.ways[0].set(Mode::Hold);
    sleep(UNCHECKED).await;
    pair.promote().await;
    pair.switch();
    load.recovers("split", Instant::now()).await;
    sleep(Duration::from_secs(5)).await;
    pair.ways[0].set(Mode::Pass);
    load.goes_on_for(Duration::from_secs(2)).await;
    load.shows_nothing_old().await;
}

pub async fn postgres_that_is_cut_off_for_5_s_is_left_for_good(links: &Links) {
    let pair = pair(Kind::Postgres, links.only()).await;
    pair.be_synchronous().await;
    cut_off(&pair).await;
}

pub async fn mysql_that_is_cut_off_for_5_s_is_left_for_good(links: &Links) {
    cut_off(&pair(Kind::MySql, links.only()).await).await;
}

pub async fn mariadb_that_is_cut_off_for_5_s_is_left_for_good(links: &Links) {
    cut_off(&pair(Kind::MariaDb, links.only()).await).await;
}

/// Without a manager: the URL names both, the replica first.
pub async fn postgres_url_with_both_hosts_follows_the_primary(links: &Links) {
    let mut pair = pair(Kind::Postgres, links.only()).await;
    pair.be_synchronous().await;
    let both = format!("{},{}", pair.ways[1].address(), pair.ways[0].address());
    pair.url =
        pair.url.replace(&pair.address.address().to_string(), &both) + "?target_session_attrs=read-write";
    let load = Load::on(&pair).await;
    pair.stop().await;
    pair.promote().await;
    load.recovers("two hosts", Instant::now()).await;
    load.shows_nothing_old().await;
}

/// The standby is gone, so the commit has happened, waits to be shown, and keeps its row locked. None of the server's
/// timeouts ends that. Shown when the standby is back, it would come after every fence.
pub async fn commit_that_waits_for_a_lost_standby_is_shown_within_its_bound(links: &Links) {
    let pair = pair(Kind::Postgres, links.only()).await;
    pair.be_synchronous().await;
    let node = node(&pair.url).await;
    node.migrate_dyn().await.unwrap();
    let key = key();
    node.insert_dyn(&key, &record(0)).await.unwrap();
    pair.control("stop -m immediate -w", "second").await;
    let (changed, at) = (record(1), now());
    let write = node.update_dyn(&key, RecordWrite::new(&changed), at);
    let waited = tokio::time::timeout(Duration::from_secs(1), write).await;
    assert!(waited.is_err(), "the commit did not wait for the standby");
    let begun = Instant::now();
    let bound = node.properties_dyn().statement_bound;
    until("the commit is shown", || async {
        assert!(begun.elapsed() < bound, "it may be shown at any time");
        let found = node.load_dyn(&key, now()).await.unwrap().unwrap();
        found.payload() == changed.payload()
    })
    .await;
    eprintln!("a commit without a standby was shown after {:?}", begun.elapsed());
}

/// With it, the server refuses every write under READ COMMITTED.
async fn statement_based_log_is_refused(pair: &Pair) {
    pair.ask(0, "SET GLOBAL binlog_format = 'STATEMENT'").await;
    let refused = node(&pair.url).await.migrate_dyn().await.expect_err("no session could be stored");
    assert!(matches!(refused, PersistenceError::Config(_)), "{refused:?}");
    assert!(refused.to_string().contains("binlog_format = ROW"), "{refused}");
    let examined = db_backends::connect_to_inspect(&pair.url).await.unwrap().inspect().await.unwrap();
    let is_named = |finding: &Finding| {
        finding.severity == FindingSeverity::Problem && finding.text.contains("binlog_format")
    };
    assert!(examined.findings.iter().any(is_named), "{:?}", examined.findings);
    pair.ask(0, "SET GLOBAL binlog_format = 'ROW'").await;
    node(&pair.url).await.migrate_dyn().await.unwrap();
}

pub async fn statement_based_log_of_mysql_is_refused_by_name(links: &Links) {
    statement_based_log_is_refused(&pair(Kind::MySql, links.only()).await).await;
}

pub async fn statement_based_log_of_mariadb_is_refused_by_name(links: &Links) {
    statement_based_log_is_refused(&pair(Kind::MariaDb, links.only()).await).await;
}
