//! `sessionctl`, run as a program.
//!
//! Every scenario runs on SQLite without a cache, and on Redis and Postgres, whose URLs are in
//! `CONFORMANCE_REDIS_URL` and `CONFORMANCE_POSTGRES_URL`; `cargo xtask services up` starts both servers.
//! Without them, those scenarios are reported as ignored, or as failed if `CONFORMANCE_REQUIRE` is `all` or
//! lists one of the two.
#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod bad_input;
mod check;
mod clear_expired;
mod doctor;
mod look;
mod migrate;
mod reseal;
mod revoke;
mod world;

use std::pin::Pin;

use libtest_mimic::{Arguments, Failed, Trial};

use world::{Servers, World};

type Scenario = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! scenarios {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), |world| Box::pin($module::$name(world)))),*),*]
    };
}

const SCENARIOS: &[(&str, Scenario)] = scenarios! {
    migrate:
        table_is_made_once_and_not_by_a_dry_run,
        table_for_rotations_is_made_on_demand,
        statements_are_printed_and_not_run;
    clear_expired:
        expired_sessions_are_deleted_in_batches_and_others_stay,
        dry_run_only_counts,
        interrupted_run_stops_after_its_batch_and_reports_how_far_it_came,
        rate_limits_the_speed_of_deletion,
        failed_run_reports_how_far_it_came;
    look:
        stats_count_sessions_subjects_and_bytes,
        sessions_of_a_subject_are_listed_latest_first,
        payload_is_shown_only_with_reveal,
        missing_session_is_reported,
        sealed_payload_is_shown_only_with_its_key,
        text_output_is_aligned_and_without_colours,
        interrupted_read_only_command_ends_at_once;
    revoke:
        session_is_ended_at_once_for_every_node,
        exactly_the_sessions_of_a_subject_are_ended,
        all_sessions_are_ended_only_with_yes,
        revoking_without_a_cache_needs_no_cache_option,
        key_without_a_session_is_reported,
        interrupted_run_leaves_the_other_sessions_unchanged,
        ends_wait_for_other_nodes_side_by_side;
    reseal:
        every_session_is_sealed_with_the_first_key_and_stays_logged_in,
        unreadable_session_is_left_alone_and_reported,
        reseal_without_keys_is_refused,
        interrupted_run_reports_how_far_it_came_and_can_be_repeated,
        plain_keys_are_hashed_and_users_stay_logged_in;
    check:
        agreeing_cache_is_reported_and_not_changed,
        outdated_session_in_the_cache_is_reported,
        ended_session_in_the_cache_is_reported_by_its_key;
    doctor:
        healthy_servers_are_reported_as_ok,
        near_cache_is_examined_with_its_channel,
        memory_that_no_database_tells_is_a_warning,
        cache_that_refuses_every_call_is_a_problem,
        worst_finding_decides_the_exit_code,
        unreachable_server_is_a_problem_without_its_password;
    bad_input:
        database_without_the_table_is_left_alone,
        foreign_table_is_left_alone,
        newer_schema_is_left_alone,
        missing_file_is_not_made,
        wrong_url_is_refused_without_its_password,
        unreachable_cache_stops_commands_that_must_fence_it,
        closed_output_causes_no_panic_and_undoes_nothing,
        contradicting_revoke_arguments_are_refused,
        clock_that_is_far_off_stops_commands_that_write;
};

fn main() {
    let mut trials = Vec::new();
    for (name, scenario) in SCENARIOS {
        trials.push(Trial::test(format!("sqlite::{name}"), move || run(None, *scenario)));
    }
    let servers = Servers::of_environment();
    let is_ignored = servers.is_err() && !is_required();
    for (name, scenario) in SCENARIOS {
        let servers = servers.clone();
        let trial = Trial::test(format!("redis+postgres::{name}"), move || run(Some(servers?), *scenario));
        trials.push(trial.with_ignored_flag(is_ignored));
    }
    if let (Err(reason), true) = (&servers, is_ignored) {
        eprintln!("redis+postgres: NOT TESTED, because {reason}");
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn is_required() -> bool {
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    required.split(',').any(|name| ["all", "redis", "postgres"].contains(&name.trim()))
}

fn run(servers: Option<Servers>, scenario: Scenario) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new(servers);
        let outcome = world.catch(scenario(&world)).await;
        world.clean_up().await;
        outcome
    })
}
