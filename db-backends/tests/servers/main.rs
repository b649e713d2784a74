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
mod notices;
mod pgbouncer;
mod pooler;
mod proxy;
mod refused;
mod schema;
mod server;
mod unreachable;
mod warnings;

use libtest_mimic::{Arguments, Failed, Trial};

use server::{Kind, Server};

type Test = fn(Server) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

macro_rules! tests {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), |server| Box::pin($module::$name(server)))),*),*]
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
        message_that_quotes_no_value_is_shown,
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
        wrong_settings_are_found_and_the_worst_are_refused,
        wrong_password_in_a_url_is_refused_without_showing_it,
        inspection_shows_version_clock_and_missing_indexes;
    notices:
        database_that_cannot_report_says_so;
    logins:
        dead_or_silent_first_host_of_several_is_passed_over,
        literal_ipv6_address_is_connected_to,
        password_with_reserved_characters_is_percent_encoded,
        encryption_needs_no_authority_and_verification_does,
        provider_is_asked_for_the_password_of_each_new_connection,
        password_file_is_read_again_for_a_new_connection,
        failing_provider_makes_the_database_unavailable,
        provider_that_panics_or_hangs_is_asked_again;
    schema:
        second_migration_changes_nothing,
        schema_sql_makes_the_same_tables_as_migrate,
        foreign_table_is_refused_and_left_alone,
        newer_schema_is_refused,
        migration_that_was_cut_off_is_finished_by_the_next,
        several_nodes_can_migrate_at_once,
        missing_privilege_is_named,
        django_table_with_another_mandatory_column_is_refused,
        role_that_may_not_remove_notes_reaps_all_the_same,
        locked_table_of_notes_keeps_no_session_from_being_reaped,
        table_of_notes_is_the_same_by_its_statements_and_by_migration,
        migration_leaves_the_applications_migrations_alone;
};

/// The tests of Postgres alone.
const POSTGRES_TESTS: &[(&str, Test)] = tests! {
    notices:
        every_write_is_reported_before_a_later_ping_ends,
        every_write_over_an_applications_pool_is_reported,
        write_that_changes_nothing_is_not_reported,
        key_that_may_be_a_sessions_own_is_not_told,
        each_of_many_reaped_sessions_is_reported,
        handle_does_not_hear_itself_and_listens_once,
        confirmed_writes_are_reported_before_a_ping_ends,
        report_that_names_no_session_is_ignored,
        database_without_an_encoding_is_refused_with_the_remedy,
        channel_that_was_cut_fails_every_call;
};

/// The tests of Postgres behind PgBouncer.
const POOLER_TESTS: &[(&str, Test)] = tests! {
    pooler:
        every_call_works_behind_a_pooler_in_either_mode,
        tables_are_made_and_inspected_behind_a_pooler,
        late_write_behind_a_pooler_ends_within_its_bound,
        write_that_waits_for_a_slot_is_not_applied,
        stores_with_more_connections_than_slots_write_nothing_late,
        settings_that_a_pooler_drops_are_refused_with_the_remedy,
        pooler_is_noticed_when_the_role_has_the_right_settings,
        former_primary_behind_a_pooler_is_not_read,
        row_of_another_shape_is_an_error_and_no_panic;
    notices:
        pooler_that_passes_no_reports_is_refused_with_the_remedy,
        pooler_in_session_mode_passes_reports;
};

fn main() {
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let mut trials = Vec::new();
    for kind in [Kind::Postgres, Kind::MySql, Kind::MariaDb] {
        let is_required = required.split(',').any(|name| name == "all" || name == kind.name());
        let url = std::env::var(kind.url_var()).ok().filter(|url| !url.is_empty());
        let url = url.ok_or_else(|| format!("{} is not set", kind.url_var()));
        add(&mut trials, kind.name(), TESTS, kind, &url, is_required);
        if kind == Kind::Postgres {
            add(&mut trials, kind.name(), POSTGRES_TESTS, kind, &url, is_required);
            let missing = || pgbouncer::MISSING.to_owned();
            let url = url.and_then(|url| pgbouncer::version().map(|_| url).ok_or_else(missing));
            add(&mut trials, pgbouncer::NAME, POOLER_TESTS, kind, &url, is_required);
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Adds the tests of a server. Without a URL they are ignored, or fail if they are required.
fn add(
    trials: &mut Vec<Trial>,
    group: &'static str,
    tests: &'static [(&'static str, Test)],
    kind: Kind,
    url: &Result<String, String>,
    is_required: bool,
) {
    for (name, test) in tests {
        let url = url.clone();
        let is_missing = url.is_err();
        let trial = Trial::test(format!("{group}::{name}"), move || {
            let server = Server::new(kind, url.map_err(Failed::from)?);
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(test(server));
            Ok(())
        });
        trials.push(trial.with_ignored_flag(is_missing && !is_required));
    }
    if let Err(reason) = url
        && !is_required
    {
        eprintln!("{group}: NOT TESTED, because {reason}");
    }
}
