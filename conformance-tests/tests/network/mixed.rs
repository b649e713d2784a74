//! Two revisions beside each other, on the same servers and in the same table: an older one, which `MIXED_OLDER` names, and the
//! present one. Each node is a process of its own. Without an older one, both are of the present revision, which tests the
//! tests only.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use db_backends::sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, Row as _, query};

use crate::Links;
use crate::near::BOUND;
use crate::node::{ANSWER, ROLE};

/// The variable that names the program of the older revision.
pub const OLDER: &str = "MIXED_OLDER";

/// The life of sessions that end within a test, and a time after which they are over for every node, beyond the clock slack.
const SHORT: u64 = 5;
const OVER: Duration = Duration::from_millis(6_500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Revision {
    Older,
    Present,
}

use Revision::{Older, Present};

/// A node in a process of its own.
struct Node {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Node {
    fn start(revision: Revision, cache: &str, database: &str, grace: u64) -> Self {
        let older = std::env::var_os(OLDER).map(PathBuf::from).filter(|_| revision == Older);
        let mut command = match older {
            Some(program) => {
                // A test target of its own there, whose harness must not swallow the answers.
                let mut command = Command::new(program);
                command.args(["node", "--exact", "--nocapture"]);
                command
            }
            None => Command::new(std::env::current_exe().unwrap()),
        };
        let piped = command.env(ROLE, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut node = Self { child, orders, answers };
        assert_eq!(node.ask(&format!("{cache} {database} {grace}")), "built", "{revision:?}");
        node
    }

    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "a node has ended at {order:?}");
            if let Some(answer) = line.strip_prefix(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Returns the key, the value and the subject of a session.
    fn read(&mut self, key: &str) -> (String, String, String) {
        let answer = self.ask(&format!("read {key}"));
        let words: Vec<_> = answer.split(' ').map(str::to_owned).collect();
        let [key, value, subject] =
            words.try_into().unwrap_or_else(|_| panic!("a read was answered {answer:?}"));
        (key, value, subject)
    }

    fn assert_reads(&mut self, key: &str, value: u64) {
        let (found, n, _) = self.read(key);
        assert_eq!((&*found, n), (key, value.to_string()));
    }

    fn assert_gone(&mut self, key: &str) {
        assert_eq!(self.read(key).0, "none", "an ended session was opened");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The servers of a test, and a table of its own.
struct Place {
    cache: String,
    database: String,
    table: String,
}

impl Place {
    fn new(links: &Links, database: &str) -> Self {
        let table = format!("mixed{:016x}", fastrand::u64(..));
        let database = links.get(database).direct.clone();
        Self { cache: links.get("redis").direct.clone(), database, table }
    }

    fn near(&self) -> String {
        format!("near+{}?freshness_bound_ms={}", self.cache, BOUND.as_millis())
    }

    /// Starts a node of each revision, in this order, on a table that the first one makes.
    fn start(&self, order: [Revision; 2], grace: u64) -> [Node; 2] {
        self.start_over(order.map(|revision| (revision, &*self.cache)), grace)
    }

    fn start_over(&self, order: [(Revision, &str); 2], grace: u64) -> [Node; 2] {
        let database = format!("{}?table={}", self.database, self.table);
        order.map(|(revision, cache)| Node::start(revision, cache, &database, grace))
    }

    async fn count(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.replace("{t}", &self.table));
        if self.database.starts_with("postgres") {
            let mut connection = PgConnection::connect(&self.database).await.unwrap();
            return query(sql).fetch_one(&mut connection).await.unwrap().get(0);
        }
        let mut connection = MySqlConnection::connect(&self.database).await.unwrap();
        query(sql).fetch_one(&mut connection).await.unwrap().get(0)
    }
}

/// Both orders in which nodes of the revisions start, and in which they act.
const ORDERS: [[Revision; 2]; 2] = [[Older, Present], [Present, Older]];

fn share_sessions(links: &Links, database: &str) {
    for order in ORDERS {
        let place = Place::new(links, database);
        let [mut one, mut other] = place.start(order, 0);
        let key = one.ask("create 1 60");
        other.assert_reads(&key, 1);
        // No modification is lost, however the two race.
        std::thread::scope(|scope| {
            for node in [&mut one, &mut other] {
                let add = format!("add {key}");
                scope.spawn(move || (0..50).for_each(|_| assert_eq!(node.ask(&add), "added")));
            }
        });
        one.assert_reads(&key, 101);
        other.assert_reads(&key, 101);
        for n in 0..20 {
            let (writer, reader) = if n % 2 == 0 { (&mut one, &mut other) } else { (&mut other, &mut one) };
            assert_eq!(writer.ask(&format!("write {key} {n}")), "Coherent");
            reader.assert_reads(&key, n);
            assert_eq!(reader.ask(&format!("touch {key}")), "touched");
        }
        // A login gives it another key, and a logout ends it, on both.
        let logged_in = one.ask(&format!("login {key} ada"));
        let again = other.ask("create 7 60");
        let again = other.ask(&format!("login {again} ada"));
        one.assert_gone(&key);
        other.assert_gone(&key);
        assert_eq!(other.read(&logged_in).2, "ada");
        assert_eq!((one.ask("list ada"), other.ask("list ada")), ("2".to_owned(), "2".to_owned()));
        assert_eq!(one.ask(&format!("logout {again}")), "ended");
        other.assert_gone(&again);
        assert_eq!(other.ask("revoke ada"), "1");
        one.assert_gone(&logged_in);
        assert_eq!(one.ask("revoke ada"), "0");
        // A node of either revision starts again on the table that is there.
        drop((one, other));
        let [mut one, mut other] = place.start(order, 0);
        one.assert_gone(&logged_in);
        let key = one.ask("create 3 60");
        other.assert_reads(&key, 3);
    }
}

pub async fn sessions_are_shared_by_both_revisions_on_postgres(links: &Links) {
    share_sessions(links, "postgres");
}

pub async fn sessions_are_shared_by_both_revisions_on_mysql(links: &Links) {
    share_sessions(links, "mysql");
}

pub async fn sessions_are_shared_by_both_revisions_on_mariadb(links: &Links) {
    share_sessions(links, "mariadb");
}

async fn follow_rotations(links: &Links, database: &str) {
    for order in ORDERS {
        let place = Place::new(links, database);
        let [mut one, mut other] = place.start(order, SHORT);
        for _ in 0..2 {
            let old = one.ask("create 1 60");
            other.assert_reads(&old, 1);
            let new = one.ask(&format!("renew {old}"));
            assert_ne!(new, old);
            assert_eq!(other.read(&old).0, new, "the client gets the new key");
            assert_eq!(other.ask(&format!("add {old}")), "added");
            one.assert_reads(&new, 2);
            // A change of rights is followed by no request that comes with the old key.
            let cycled = other.ask(&format!("cycle {new}"));
            one.assert_gone(&new);
            one.assert_reads(&cycled, 2);
            let renewed = one.ask(&format!("renew {cycled}"));
            assert_eq!(other.ask(&format!("logout {cycled}")), "ended");
            one.assert_gone(&renewed);
            other.assert_gone(&renewed);
            std::mem::swap(&mut one, &mut other);
        }
        assert!(place.count("SELECT count(*) FROM {t}_rotations").await > 0);
        tokio::time::sleep(OVER).await;
        let old = one.ask("create 1 60");
        one.ask("reap");
        other.ask("reap");
        assert_eq!(place.count("SELECT count(*) FROM {t}_rotations").await, 0, "expired notes are left");
        other.assert_reads(&old, 1);
    }
}

pub async fn rotations_are_followed_across_revisions_on_postgres(links: &Links) {
    follow_rotations(links, "postgres").await;
}

pub async fn rotations_are_followed_across_revisions_on_mysql(links: &Links) {
    follow_rotations(links, "mysql").await;
}

async fn reap_expired(links: &Links, database: &str) {
    for order in ORDERS {
        let place = Place::new(links, database);
        let [mut one, mut other] = place.start(order, 0);
        let ended = [one.ask(&format!("create 1 {SHORT}")), other.ask(&format!("create 1 {SHORT}"))];
        // The expiry is set by the other revision, to an earlier and to a later time.
        let shortened = [one.ask("create 1 60"), other.ask("create 1 60")];
        let lengthened = [one.ask(&format!("create 1 {SHORT}")), other.ask(&format!("create 1 {SHORT}"))];
        let untouched = [one.ask("create 1 60"), other.ask("create 1 60")];
        for (node, n) in [(&mut other, 0), (&mut one, 1)] {
            assert_eq!(node.ask(&format!("expire {} 60", lengthened[n])), "set");
            assert_eq!(node.ask(&format!("expire {} {SHORT}", shortened[n])), "set");
        }
        tokio::time::sleep(OVER).await;
        let reaped: u64 =
            [&mut one, &mut other].into_iter().map(|node| node.ask("reap").parse::<u64>().unwrap()).sum();
        assert_eq!(reaped, 4);
        assert_eq!(place.count("SELECT count(*) FROM {t}").await, 4);
        for node in [&mut one, &mut other] {
            ended.iter().chain(&shortened).for_each(|key| node.assert_gone(key));
            lengthened.iter().chain(&untouched).for_each(|key| node.assert_reads(key, 1));
        }
    }
}

pub async fn expired_sessions_are_reaped_across_revisions_on_postgres(links: &Links) {
    reap_expired(links, "postgres").await;
}

pub async fn expired_sessions_are_reaped_across_revisions_on_mysql(links: &Links) {
    reap_expired(links, "mysql").await;
}

/// Reads a session until the memory of the process answers.
async fn warm(node: &mut Node, key: &str, value: u64) {
    let (begun, before) = (Instant::now(), node.ask("memory"));
    while node.ask("memory") == before {
        node.assert_reads(key, value);
        assert!(begun.elapsed() < Duration::from_secs(30), "memory does not answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Memory in front of the shared cache on one side, and on both.
pub async fn near_cache_of_one_revision_hears_of_the_other(links: &Links) {
    let place = Place::new(links, "postgres");
    let (near, plain) = (place.near(), place.cache.clone());
    for revisions in ORDERS {
        let [mut here, mut there] = place.start_over([(revisions[0], &near), (revisions[1], &plain)], 0);
        let key = there.ask("create 0 60");
        for n in 1..=10 {
            warm(&mut here, &key, n - 1).await;
            there.ask(&format!("write {key} {n}"));
            tokio::time::sleep(BOUND).await;
            here.assert_reads(&key, n);
        }
        // What ends it has no memory of its own, and does not wait for the nodes that have one.
        assert_eq!(there.ask(&format!("logout {key}")), "ended");
        tokio::time::sleep(BOUND).await;
        here.assert_gone(&key);
        let key = here.ask("create 0 60");
        there.assert_reads(&key, 0);
        here.ask(&format!("logout {key}"));
        there.assert_gone(&key);
        drop(there);

        let [mut there, _] = place.start_over([(revisions[1], &near), (revisions[0], &plain)], 0);
        for _ in 0..3 {
            let key = there.ask("create 0 60");
            warm(&mut here, &key, 0).await;
            assert_eq!(there.ask(&format!("logout {key}")), "ended");
            here.assert_gone(&key);
        }
    }
}
