//! Every cache and every database on real servers, and every pair of them.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

#[path = "matrix/caches.rs"]
mod caches;
#[path = "matrix/databases.rs"]
mod databases;
#[path = "matrix/plan.rs"]
mod plan;
#[path = "matrix/servers.rs"]
mod servers;
#[path = "../servers/table.rs"]
#[allow(dead_code, reason = "xtask uses the rest")]
mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cache_backends::moka::MokaCache;
use cache_backends::near::notified;
use caches::{Erased, Memcached, Near, Redis};
use conformance_tests::libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use conformance_tests::{Suite, libtest_mimic};
use databases::{InPair, Made};
use plan::{Fate, Required, Selection};
use servers::Brought;
use table::{
    CACHES, DATABASES, NEAR, NEAR_PAIRS, NOTIFIED, SERVERS, VARIANT_DATABASES, VARIANT_PAIRS, server,
};

/// The number of test threads. Many cases wait most of the time.
const THREADS: usize = 8;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    // Backends in the process are always available.
    let known: Vec<_> = SERVERS.iter().map(|server| server.name).chain(["moka", "sqlite"]).collect();
    let required = Required::parse(&std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default(), &known)
        .unwrap_or_else(|error| panic!("CONFORMANCE_REQUIRE: {error}"));
    run(&arguments, &required).exit();
}

/// Runs the matrix. Everything that it starts is gone when it returns.
fn run(arguments: &Arguments, required: &Required) -> Conclusion {
    let directory = tempfile::tempdir().expect("a directory for databases");
    let (made, nowhere) = (Made::default(), BTreeMap::new());
    let groups: Vec<_> = groups()
        .into_iter()
        .map(|group| (group.servers(), group.suite(&nowhere, directory.path(), &made).into_trials()))
        .collect();
    if arguments.list {
        return libtest_mimic::run(arguments, groups.into_iter().flat_map(|(_, trials)| trials).collect());
    }
    let wanted = |trial: &Trial| !arguments.is_filtered_out(trial);
    let needed = plan::needed(groups.iter().map(|(servers, trials)| (&servers[..], &trials[..])), wanted);

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let brought = runtime.block_on(Brought::bring(needed));
    for (server, reason) in &brought.missing {
        eprintln!("NOT TESTED: {server}: {reason}");
    }
    let mut trials = Vec::new();
    for group in self::groups() {
        let suite = group.suite(&brought.urls, directory.path(), &made);
        match plan::fate(&group.servers(), &brought.missing, required) {
            Fate::Run => trials.extend(suite.into_trials()),
            Fate::Ignore(reason) => trials.extend(suite.into_ignored_trials(&reason)),
            Fate::Fail(reason) => trials.extend(suite.into_trials().into_iter().map(|trial| {
                let reason = reason.clone();
                Trial::test(trial.name(), move || Err(Failed::from(reason)))
            })),
        }
    }
    let conclusion = libtest_mimic::run(arguments, trials);
    runtime.block_on(async {
        if conclusion.has_failed() {
            brought.print_logs().await;
        }
        made.drop_on(&brought.shared).await;
        brought.remove().await;
    });
    conclusion
}

/// Tests that need the same servers.
#[derive(Clone, Copy)]
enum Group {
    Cache(&'static str),
    ErasedCache(&'static str),
    Database(&'static str),
    Pair(&'static str, &'static str),
}

/// Returns the tests of the backends that `CONFORMANCE_CACHES` and `CONFORMANCE_DATABASES` name, or all.
fn groups() -> Vec<Group> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let selection = Selection::parse(&variable("CONFORMANCE_CACHES"), &variable("CONFORMANCE_DATABASES"));
    let has_server = |name: &&'static str| server(name).is_some();
    let mut groups = Vec::new();
    for cache in CACHES.iter().copied().filter(has_server).filter(|cache| selection.has_cache(cache)) {
        groups.extend([Group::Cache(cache), Group::ErasedCache(cache)]);
    }
    let mut near: Vec<_> = NEAR_PAIRS.iter().map(|(cache, _)| *cache).collect();
    near.dedup();
    // As for other variants, the contract of the cache itself is tested on servers of the matrix.
    near.retain(|cache| server(cache).is_some_and(|server| CACHES.contains(&server.name)));
    groups.extend(near.into_iter().filter(|cache| selection.has_cache(cache)).map(Group::Cache));
    let databases = DATABASES.iter().chain(VARIANT_DATABASES).copied().filter(has_server);
    groups.extend(databases.filter(|database| selection.has_database(database)).map(Group::Database));
    let crossed = CACHES.iter().flat_map(|cache| DATABASES.iter().map(move |database| (*cache, *database)));
    let pairs = crossed.chain(VARIANT_PAIRS.iter().chain(NEAR_PAIRS).copied());
    let pairs = pairs.filter(|(cache, database)| selection.has_pair(cache, database));
    groups.extend(pairs.map(|(cache, database)| Group::Pair(cache, database)));
    groups
}

/// The URLs of the servers.
type Urls = BTreeMap<&'static str, String>;

impl Group {
    fn servers(self) -> Vec<&'static str> {
        let names = match self {
            Self::Cache(name) | Self::ErasedCache(name) | Self::Database(name) => vec![name],
            Self::Pair(cache, database) => vec![cache, database],
        };
        names.into_iter().filter_map(server).map(|server| server.name).collect()
    }

    /// Returns its tests. Where `urls` lacks a server, they can be named but not run.
    fn suite(self, urls: &Urls, directory: &Path, made: &Made) -> Suite {
        let url =
            |name: &str| server(name).and_then(|server| urls.get(server.name)).cloned().unwrap_or_default();
        match self {
            Self::Cache(name) if name.starts_with(NEAR) => Suite::new(name).cache(Near(Redis(url(name)))),
            Self::Cache(name) if kind(name) == "memcached" => Suite::new(name).cache(Memcached(url(name))),
            Self::Cache(name) if is_redis(name) => {
                Suite::new(name).cache(Redis(url(name))).notices(Redis(url(name)))
            }
            Self::Cache(name) => panic!("no fixture of the cache {name}: add it here"),
            Self::ErasedCache(name) => Suite::new(format!("erased-{name}")).cache(Erased(url(name))),
            Self::Database(name) => databases::alone(Suite::new(name), name, &url(name), made),
            Self::Pair(cache, database) => {
                let suite = Suite::new(format!("{cache}+{database}"));
                let pair = InPair {
                    name: database,
                    url: match database {
                        "sqlite" => format!("sqlite://{}", directory.join(format!("{cache}.db")).display()),
                        _ => url(database),
                    },
                    made,
                };
                match kind(cache) {
                    _ if cache.starts_with(NEAR) => {
                        let url = url(cache);
                        pair.with(suite, move || std::future::ready(caches::node(&url)))
                    }
                    _ if cache == NOTIFIED => {
                        // Long enough that memory answers on a busy machine, too, for the cases that count hits.
                        let bound = Duration::from_secs(1);
                        let memory = move || {
                            let memory = MokaCache::builder().build();
                            std::future::ready(notified(memory).with_freshness_bound(bound))
                        };
                        pair.with(suite, memory)
                    }
                    "moka" => {
                        let moka = MokaCache::builder().build();
                        pair.with(suite, move || std::future::ready(moka.clone()))
                    }
                    "memcached" => pair.with(suite, Memcached(url(cache))),
                    _ if is_redis(cache) => pair.with(suite, Redis(url(cache))),
                    _ => panic!("no fixture of the cache {cache}: add it here"),
                }
            }
        }
    }
}

/// Returns the backend of a name, which may be that of a variant.
fn kind(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

fn is_redis(cache: &str) -> bool {
    matches!(kind(cache), "redis" | "valkey")
}
