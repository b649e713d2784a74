//! The traffic to real servers, and the fate of sessions when servers and networks fail. Each test has
//! servers of its own, in containers, because it breaks them.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::must_use_candidate,
    missing_debug_implementations,
    reason = "tests"
)]

mod addresses;
mod certificates;
mod database_failover;
mod dead_servers;
mod failover;
mod galera;
mod left_behind;
mod mixed;
mod names;
mod near;
mod node;
mod notified;
mod outages;
mod pair;
#[path = "../../../db-backends/tests/servers/pgbouncer.rs"]
#[allow(dead_code, reason = "the tests of servers use the rest")]
mod pgbouncer;
#[path = "../matrix/plan.rs"]
#[allow(dead_code, reason = "the matrix uses the rest")]
mod plan;
mod round_trips;
#[path = "../matrix/servers.rs"]
#[allow(dead_code, reason = "the matrix uses the rest")]
mod servers;
#[path = "../../servers/table.rs"]
#[allow(dead_code, reason = "xtask uses the rest")]
mod table;
mod trouble;
#[path = "../../../db-backends/tests/servers/warnings.rs"]
mod warnings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;

use conformance_tests::libtest_mimic::{self, Arguments, Failed, Trial};
use conformance_tests::proxy::Proxy;
use futures_util::FutureExt as _;

use plan::{Fate, Required};
use servers::Brought;
use table::{BESIDE_THE_MATRIX, SERVERS};
use warnings::Warnings;

/// The time that databases may take to start.
const THREADS: usize = 4;

type Run = for<'a> fn(&'a Links) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

struct Test {
    name: &'static str,
    servers: &'static [&'static str],
    run: Run,
}

macro_rules! tests {
    ($($module:ident: $($name:ident [$($server:literal),*]),* $(,)?;)*) => {
        &[$($(Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            servers: &[$($server),*],
            run: |links| Box::pin($module::$name(links)),
        }),*),*]
    };
}

const TESTS: &[Test] = tests! {
    addresses:
        redis_is_reached_by_ipv6_with_a_password_of_any_characters ["redis"],
        valkey_is_reached_by_ipv6_with_a_password_of_any_characters ["valkey"],
        memcached_servers_are_reached_by_ipv6 ["memcached-two"];
    certificates:
        postgres_is_verified_and_shown_a_certificate ["postgres-certificates"],
        mysql_is_verified_and_shown_a_certificate ["mysql-certificates"],
        mariadb_is_verified_and_shown_a_certificate ["mariadb-certificates"],
        redis_is_verified_and_shown_a_certificate ["redis-tls"],
        valkey_is_verified_and_shown_a_certificate ["valkey-tls"];
    database_failover:
        deposed_postgres_is_left_at_once_and_shows_nothing_old ["postgres-pair"],
        deposed_mariadb_is_left_at_once_and_shows_nothing_old ["mariadb-pair"],
        deposed_mysql_is_left_at_once_and_shows_nothing_old ["mysql-pair"],
        killed_postgres_with_a_synchronous_standby_loses_nothing ["postgres-pair"],
        killed_postgres_with_an_asynchronous_standby_loses_the_last_moment ["postgres-pair"],
        stopped_mariadb_with_a_synchronous_replica_loses_nothing ["mariadb-pair"],
        stopped_mysql_with_a_synchronous_replica_loses_nothing ["mysql-pair"],
        stopped_mariadb_with_an_asynchronous_replica_loses_the_last_moment ["mariadb-pair"],
        stopped_mysql_with_an_asynchronous_replica_loses_the_last_moment ["mysql-pair"],
        postgres_that_is_cut_off_for_5_s_is_left_for_good ["postgres-pair"],
        mariadb_that_is_cut_off_for_5_s_is_left_for_good ["mariadb-pair"],
        mysql_that_is_cut_off_for_5_s_is_left_for_good ["mysql-pair"],
        postgres_url_with_both_hosts_follows_the_primary ["postgres-pair"],
        commit_that_waits_for_a_lost_standby_is_shown_within_its_bound ["postgres-pair"],
        statement_based_log_of_mysql_is_refused_by_name ["mysql-pair"],
        statement_based_log_of_mariadb_is_refused_by_name ["mariadb-pair"];
    dead_servers:
        memcached_server_of_three_that_is_down_fails_its_own_keys_only ["memcached", "memcached-two"],
        cluster_master_that_hangs_fails_its_own_keys_only ["redis-cluster"],
        cluster_master_that_dies_fails_its_own_keys_only ["redis-cluster"],
        slot_that_moves_to_another_master_is_followed ["redis-cluster"];
    failover:
        dying_master_is_replaced_and_no_request_fails ["redis-sentinel"],
        living_master_that_is_replaced_is_left_and_found_again ["redis-sentinel"],
        hanging_master_is_replaced_and_no_request_fails ["redis-sentinel"];
    names:
        cluster_whose_nodes_all_move_is_found_by_its_name ["redis-cluster", "own-hosts"],
        name_of_a_database_that_gets_another_address_is_followed ["postgres-pair", "own-hosts"],
        every_address_of_a_name_is_tried_for_the_primary ["postgres-pair", "mariadb-pair", "own-hosts"];
    galera:
        galera_node_sees_what_another_has_committed ["galera"],
        galera_conflicts_at_commit_are_repeated_and_fail_no_write ["galera"],
        galera_node_that_is_not_ready_is_unavailable_and_says_why ["galera"];
    left_behind:
        kill_is_not_sent_to_the_mysql_that_took_over ["mysql-pair"],
        kill_is_not_sent_to_the_mariadb_that_took_over ["mariadb-pair"],
        termination_is_not_sent_to_the_postgres_that_took_over ["postgres", "postgres-tls"];
    outages:
        postgres_that_is_killed_and_starts_again_loses_nothing ["postgres"],
        mysql_that_is_killed_and_starts_again_loses_nothing ["mysql"],
        mariadb_that_is_killed_and_starts_again_loses_nothing ["mariadb"],
        galera_node_that_leaves_is_left_for_another ["galera"],
        galera_node_that_dies_is_left_for_another ["galera"],
        killed_postgres_behind_pgbouncer_loses_nothing ["postgres-pair", "pgbouncer"],
        deposed_postgres_behind_pgbouncer_shows_nothing_old ["postgres-pair", "pgbouncer"],
        deposed_postgres_behind_pgbouncer_is_left_by_an_applications_pool ["postgres-pair", "pgbouncer"],
        deposed_postgres_behind_pgbouncer_in_session_mode_is_left_by_a_pool ["postgres-pair", "pgbouncer"],
        postgres_behind_pgbouncer_that_is_cut_off_is_left_for_good ["postgres-pair", "pgbouncer"];
    mixed:
        sessions_are_shared_by_both_revisions_on_postgres ["redis", "postgres"],
        sessions_are_shared_by_both_revisions_on_mysql ["redis", "mysql"],
        sessions_are_shared_by_both_revisions_on_mariadb ["redis", "mariadb"],
        rotations_are_followed_across_revisions_on_postgres ["redis", "postgres"],
        rotations_are_followed_across_revisions_on_mysql ["redis", "mysql"],
        expired_sessions_are_reaped_across_revisions_on_postgres ["redis", "postgres"],
        expired_sessions_are_reaped_across_revisions_on_mysql ["redis", "mysql"],
        near_cache_of_one_revision_hears_of_the_other ["redis", "postgres"];
    near:
        memory_over_redis_answers_without_a_round_trip ["redis"],
        memory_over_valkey_answers_without_a_round_trip ["valkey"],
        writes_are_seen_at_once_here_and_within_the_bound_elsewhere_on_redis ["redis"],
        writes_are_seen_at_once_here_and_within_the_bound_elsewhere_on_valkey ["valkey"],
        logout_is_final_on_redis_whatever_the_channel_does ["redis"],
        logout_is_final_on_valkey_whatever_the_channel_does ["valkey"],
        second_revocation_of_a_subject_waits_for_all_nodes ["redis"],
        end_of_a_watched_session_is_told_on_the_other_node_of_redis ["redis"],
        end_of_a_watched_session_is_told_on_the_other_node_of_valkey ["valkey"],
        memory_is_forgotten_with_its_channel ["redis"],
        flushed_server_leaves_nothing_in_memory ["redis"],
        server_that_is_replaced_is_told_apart ["redis", "valkey"],
        forbidden_tracking_costs_memory_and_no_session ["redis-acl"],
        server_that_speaks_resp2_only_costs_memory_and_no_session ["redis"],
        closed_store_has_no_channel ["redis"],
        sweep_waits_for_other_nodes_side_by_side ["redis"],
        near_cache_that_cannot_be_told_is_refused_at_build ["redis"],
        old_key_shows_no_past_once_a_client_has_the_new_one ["redis"],
        memory_over_tls_answers_without_a_round_trip ["redis-tls"],
        server_that_is_made_a_replica_is_a_lost_channel ["redis"],
        failover_by_sentinels_is_another_channel ["redis-sentinel"],
        memory_over_a_cluster_answers_without_a_round_trip ["redis-cluster"],
        writes_are_seen_in_time_by_nodes_with_near_caches_on_a_cluster ["redis-cluster"],
        slot_that_moves_is_a_lost_channel ["redis-cluster"],
        dead_master_of_a_cluster_costs_memory_and_no_session ["redis-cluster"];
    notified:
        memory_told_by_postgres_answers_without_a_read ["postgres"],
        writes_are_seen_at_once_here_and_within_the_bound_elsewhere ["postgres"],
        logout_is_final_whatever_the_listening_connection_does ["postgres"],
        end_of_a_watched_session_is_told_by_postgres ["postgres"],
        memory_is_forgotten_with_its_listening_connection ["postgres"],
        first_commit_after_a_failover_is_shown_within_the_bound ["postgres-pair"],
        memory_that_no_database_tells_is_refused_at_build ["postgres"],
        memory_that_two_builds_want_at_once_is_one_stores ["postgres"],
        pooler_that_swallows_listen_costs_memory_and_no_session ["postgres", "pgbouncer"],
        notifications_of_strangers_are_counted_and_forget_nothing ["postgres"],
        closed_store_listens_no_more_and_its_handle_is_free ["postgres"],
        commit_that_waits_for_others_to_notify_ends_within_its_bound ["postgres-pair"],
        pool_that_leads_to_another_server_ends_the_channel ["postgres-pair"];
    round_trips:
        redis ["redis"],
        valkey ["valkey"],
        memcached ["memcached"],
        postgres ["postgres"],
        mysql ["mysql"],
        mariadb ["mariadb"],
        round_trips_of_a_store_on_redis_and_postgres ["redis", "postgres"],
        round_trips_of_a_store_on_memcached_and_mysql ["memcached", "mysql"];
    trouble:
        redis_that_is_down_at_the_start_is_used_when_it_is_up ["redis"],
        memcached_that_is_down_at_the_start_is_used_when_it_is_up ["memcached"],
        redis_that_goes_down_fails_no_request ["redis"],
        memcached_that_goes_down_fails_no_request ["memcached"],
        silent_redis_delays_a_request_by_its_deadline_only ["redis"],
        silent_memcached_delays_a_request_by_its_deadline_only ["memcached"],
        torn_reply_of_redis_is_no_session ["redis"],
        torn_reply_of_memcached_is_no_session ["memcached"],
        full_redis_still_serves_hits ["redis"],
        replica_of_redis_is_not_read ["redis"],
        redis_that_became_a_replica_is_left_for_the_new_master ["redis", "valkey"],
        wrong_password_costs_the_cache_and_no_session ["redis-acl"],
        expired_password_costs_the_cache_until_the_new_one_is_there ["redis-acl"],
        forbidden_commands_of_redis_cost_the_cache_and_no_session ["redis-acl"],
        renamed_commands_of_redis_cost_the_cache_and_no_session ["redis-tls"],
        wrong_database_of_redis_costs_the_cache_and_no_session ["redis"],
        flushed_scripts_are_sent_again ["redis"],
        foreign_values_in_redis_are_no_sessions ["redis"],
        foreign_values_in_memcached_are_no_sessions ["memcached"];
};

fn main() {
    if std::env::var_os(node::ROLE).is_some() {
        return node::serve();
    }
    names::enter();
    let mut arguments = Arguments::from_args();
    if std::env::var_os(mixed::OLDER).is_none() && !arguments.list {
        eprintln!(
            "beside an older revision: NOT TESTED, because {} is not set; `cargo xtask soak --beside REVISION` sets it",
            mixed::OLDER
        );
    }
    arguments.test_threads.get_or_insert(THREADS);
    let others = ["moka", "sqlite", names::OWN_HOSTS, pgbouncer::NAME];
    let known: Vec<_> = all_servers().map(|server| server.name).chain(others).collect();
    let required = Required::parse(&std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default(), &known)
        .unwrap_or_else(|error| panic!("CONFORMANCE_REQUIRE: {error}"));
    let missing = if arguments.list { BTreeMap::new() } else { missing() };
    let trials = TESTS.iter().map(|test| {
        let trial = Trial::test(test.name, move || run(test));
        match plan::fate(test.servers, &missing, &required) {
            Fate::Run => trial,
            Fate::Ignore(reason) => trial.with_kind(reason).with_ignored_flag(true),
            Fate::Fail(reason) => Trial::test(test.name, move || Err(Failed::from(reason))),
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn all_servers() -> impl Iterator<Item = &'static table::Server> {
    SERVERS.iter().chain(BESIDE_THE_MATRIX)
}

/// Returns all servers, with the reason, if one of them cannot be started in a container, and what else is missing.
fn missing() -> BTreeMap<&'static str, String> {
    let tried = runtime(Warnings::default()).block_on(async {
        let mut brought = Brought::own(["memcached"]).await;
        let reason = std::mem::take(&mut brought.missing).into_values().next();
        brought.remove().await;
        reason
    });
    let mut missing = BTreeMap::new();
    if let Some(reason) = tried {
        eprintln!("NOT TESTED: {reason}");
        missing.extend(all_servers().map(|server| (server.name, reason.clone())));
    }
    if !names::has_own_hosts() {
        missing.insert(names::OWN_HOSTS, "`unshare --map-root-user --mount` does not work here".to_owned());
    }
    if pgbouncer::version().is_none() {
        missing.insert(pgbouncer::NAME, pgbouncer::MISSING.to_owned());
    }
    missing
}

/// Runs a test, and removes its servers however it ends.
fn run(test: &Test) -> Result<(), Failed> {
    let log = Warnings::default();
    let _listening = tracing::subscriber::set_default(log.clone());
    runtime(log.clone()).block_on(async {
        let brought = Brought::own(test.servers.iter().copied()).await;
        let links = Links::to(brought, log).await;
        let outcome = match links.brought.missing.values().next() {
            Some(reason) => Err(Failed::from(reason)),
            None => AssertUnwindSafe((test.run)(&links)).catch_unwind().await.map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Failed::from(text.unwrap_or_default())
            }),
        };
        if outcome.is_err() {
            links.brought.print_logs().await;
        }
        links.brought.remove().await;
        outcome
    })
}

/// Makes a runtime whose threads log to `log`.
fn runtime(log: Warnings) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        // For as long as the thread lives.
        .on_thread_start(move || std::mem::forget(tracing::subscriber::set_default(log.clone())))
        .build()
        .unwrap()
}

/// The servers of a test, and the connections to them.
pub struct Links {
    links: BTreeMap<&'static str, Link>,
    brought: Brought,
    log: Warnings,
}

/// A server, and the proxy before it.
pub struct Link {
    /// The URL of the server.
    pub direct: String,
    /// The URL with the proxy before the server, or before the first of several.
    pub url: String,
    pub proxy: Proxy,
}

impl Links {
    async fn to(brought: Brought, log: Warnings) -> Self {
        let mut links = BTreeMap::new();
        for (name, direct) in &brought.urls {
            let address = address(direct);
            let proxy = Proxy::before(address).await.unwrap();
            let url = direct.replace(&address.to_string(), &proxy.address().to_string());
            links.insert(*name, Link { direct: direct.clone(), url, proxy });
        }
        Self { links, brought, log }
    }

    pub fn get(&self, name: &str) -> &Link {
        &self.links[name]
    }

    /// Returns the only one.
    pub fn only(&self) -> &Link {
        assert_eq!(self.links.len(), 1);
        self.links.values().next().unwrap()
    }

    /// Returns the lines of the log with this event that came since the last call, which forgets all others.
    pub fn take_logged(&self, event: &str) -> Vec<String> {
        let field = format!("event=\"{event}\"");
        self.log.take().into_iter().filter(|line| line.contains(&field)).collect()
    }

    /// Kills a server.
    pub async fn kill(&self, name: &str) {
        self.brought.kill(name).await.unwrap();
    }

    /// Starts a server that was killed, and returns when it is ready. Its proxy leads to it again.
    pub async fn start_again(&self, name: &str) {
        let port = self.brought.start_again(name).await.unwrap();
        self.get(name).proxy.lead_to(([127, 0, 0, 1], port).into());
    }

    /// Runs a shell's command where a server runs.
    pub async fn run(&self, name: &str, command: &str) {
        self.brought.run(name, command).await.unwrap();
    }
}

/// Returns the address in a URL: the first, if there are several.
fn address(url: &str) -> SocketAddr {
    let rest = url.split_once("://").unwrap().1;
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split(['/', ',']).next().unwrap().parse().unwrap()
}
