//! Postgres, MySQL and MariaDB: what bad input gets, and what bounds a statement. The contract as a whole is in
//! conformance-tests.
//!
//! The servers are those that `CONFORMANCE_POSTGRES_URL`, `CONFORMANCE_MYSQL_URL` and `CONFORMANCE_MARIADB_URL` name;
//! `cargo xtask services up` starts some. Without one, its tests are reported as ignored, or as failed if
//! `CONFORMANCE_REQUIRE` is `all` or lists it.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

mod abandoned;
mod by_url;
mod contents;
mod proxy;
mod refused;
mod schema;
mod server;
mod unreachable;

use libtest_mimic::{Arguments, Failed, Trial};

use server::{Kind, Server};

type Test = fn(Server) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

macro_rules! tests {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        &[$($((stringify!($name), |server| Box::pin($module::$name(server)))),*),*]
    };
}

const TESTS: &[(&str, Test)] = tests! {
    contents:
        records_come_back_as_they_were_written,
        large_payloads_come_back_whole_and_larger_ones_are_refused,
        no_statement_reads_the_whole_table,
        writes_of_one_session_at_the_same_time_all_have_an_outcome,
        several_nodes_may_delete_what_expired;
    refused:
        bad_urls_and_names_are_config_errors,
        a_read_only_database_refuses_writes,
        a_locked_row_is_busy_and_nothing_is_written,
        a_row_that_cannot_be_read_is_corrupt_and_stays,
        errors_show_neither_keys_nor_payloads;
    unreachable:
        who_is_not_let_in_is_told_so_without_the_password,
        nobody_waits_for_a_server_that_is_down_or_silent,
        nobody_waits_for_a_connection_for_ever,
        a_connection_that_breaks_leaves_a_write_unknown_and_is_replaced,
        idle_connections_that_broke_cost_one_call_at_most;
    abandoned:
        an_abandoned_write_is_ended_by_the_server,
        an_abandoned_write_over_the_applications_pool_is_not_committed,
        an_abandoned_write_that_ends_within_the_grace_keeps_its_connection,
        loads_that_are_dropped_open_no_more_connections,
        closing_waits_for_statements_whose_callers_have_gone,
        a_connection_is_not_used_again_after_its_user_has_gone;
    by_url:
        a_url_gives_a_database_with_subjects_that_can_be_scanned,
        the_other_name_of_a_scheme_does_as_well,
        a_url_with_a_wrong_password_is_refused_without_showing_it,
        an_operator_is_told_version_clock_and_what_is_missing;
    schema:
        migrating_again_changes_nothing,
        the_schema_as_sql_is_what_migrate_makes,
        a_table_that_is_not_ours_is_refused_and_left_alone,
        a_schema_that_is_newer_is_refused,
        a_migration_that_was_cut_off_is_finished,
        several_nodes_may_migrate_at_once,
        missing_privileges_are_named,
        the_application_keeps_its_own_migrations;
};

fn main() {
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let mut trials = Vec::new();
    for kind in [Kind::Postgres, Kind::MySql, Kind::MariaDb] {
        let url = std::env::var(kind.url_var()).ok().filter(|url| !url.is_empty());
        let is_required = required.split(',').any(|name| name == "all" || name == kind.name());
        for (name, test) in TESTS {
            let (name, test, url) = (format!("{}::{name}", kind.name()), *test, url.clone());
            let is_missing = url.is_none();
            let trial = Trial::test(name, move || match url {
                Some(url) => {
                    let runtime =
                        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                    runtime.unwrap().block_on(test(Server::new(kind, url)));
                    Ok(())
                }
                None => Err(Failed::from(format!("{} is not set", kind.url_var()))),
            });
            trials.push(trial.with_ignored_flag(is_missing && !is_required));
        }
        if url.is_none() && !is_required {
            eprintln!("{}: NOT TESTED, because {} is not set", kind.name(), kind.url_var());
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
