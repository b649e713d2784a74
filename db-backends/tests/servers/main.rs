//! Postgres, MySQL and MariaDB: which errors bad input gets, and what bounds a statement. conformance-tests
//! holds them to the whole contract.
//!
//! The servers are those that `CONFORMANCE_POSTGRES_URL`, `CONFORMANCE_MYSQL_URL` and
//! `CONFORMANCE_MARIADB_URL` name; `cargo xtask services up` starts some. The tests of a server without a URL
//! are reported as ignored, or as failed if `CONFORMANCE_REQUIRE` is `all` or lists the server.
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
mod logins;
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
        record_is_read_as_it_was_written,
        payload_up_to_the_limit_is_kept_and_a_larger_one_is_refused,
        no_statement_reads_the_whole_table,
        concurrent_writes_of_one_session_all_have_an_outcome,
        several_nodes_can_delete_expired_sessions_at_once;
    refused:
        bad_url_or_table_name_is_a_config_error,
        server_that_takes_no_writes_is_not_even_read,
        connection_that_takes_no_writes_any_more_is_replaced,
        write_to_a_locked_row_is_busy_and_changes_nothing,
        unreadable_row_is_a_corrupt_row_error_and_stays,
        errors_show_neither_keys_nor_payloads;
    unreachable:
        refused_login_is_unavailable_without_showing_the_password,
        connecting_to_a_dead_or_silent_server_fails_in_time,
        waiting_for_a_connection_ends_with_busy,
        broken_connection_leaves_a_write_unknown_and_is_replaced,
        broken_idle_connections_cost_at_most_one_call,
        idle_connections_that_a_firewall_forgot_cost_no_call;
    abandoned:
        abandoned_write_is_ended_by_the_server,
        abandoned_write_over_an_applications_pool_is_not_committed,
        abandoned_write_that_ends_within_the_grace_keeps_its_connection,
        dropped_loads_open_no_more_connections_than_the_maximum,
        close_waits_for_statements_whose_callers_have_gone,
        connection_of_a_gone_caller_gives_no_answer_to_the_next;
    by_url:
        database_by_url_has_subjects_and_can_be_scanned,
        other_name_of_a_scheme_works_as_well,
        wrong_password_in_a_url_is_refused_without_showing_it,
        inspection_shows_version_clock_and_missing_indexes;
    logins:
        dead_or_silent_first_host_of_several_is_passed_over,
        literal_ipv6_address_is_connected_to,
        password_with_reserved_characters_is_percent_encoded,
        provider_is_asked_for_the_password_of_each_new_connection,
        password_file_is_read_again_for_a_new_connection,
        failing_provider_makes_the_database_unavailable;
    schema:
        second_migration_changes_nothing,
        schema_sql_makes_the_same_tables_as_migrate,
        foreign_table_is_refused_and_left_alone,
        newer_schema_is_refused,
        migration_that_was_cut_off_is_finished_by_the_next,
        several_nodes_can_migrate_at_once,
        missing_privilege_is_named,
        migration_leaves_the_applications_migrations_alone;
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
