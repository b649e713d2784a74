//! `sessionctl`, run as a program.
//!
//! Every scenario runs on SQLite without a cache, and on Redis and Postgres, which are those that `CONFORMANCE_REDIS_URL`
//! and `CONFORMANCE_POSTGRES_URL` name; `cargo xtask services up` starts some. Without them, those scenarios are reported as
//! ignored, or as failed if `CONFORMANCE_REQUIRE` is `all` or lists one of the two.
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
        the_table_is_made_once_and_not_by_a_dry_run,
        the_statements_are_printed_and_not_run;
    clear_expired:
        what_has_expired_is_deleted_in_batches_and_the_rest_stays,
        a_dry_run_only_counts,
        an_interrupted_run_stops_after_its_batch_and_says_how_far_it_came,
        a_rate_is_kept,
        a_run_that_fails_in_the_middle_says_how_far_it_came;
    look:
        stats_count_sessions_subjects_and_bytes,
        a_subject_has_its_sessions_listed_the_latest_first,
        a_payload_is_shown_only_when_it_is_to_be_revealed,
        a_session_that_is_not_there_is_found_to_be_so,
        a_sealed_payload_needs_its_key,
        output_for_people_is_aligned_and_without_colours,
        an_interrupted_look_ends_at_once;
    revoke:
        one_session_is_ended_at_once_for_every_node,
        all_sessions_of_a_subject_are_ended_and_no_others,
        all_sessions_are_ended_only_after_a_yes,
        without_a_cache_it_has_to_be_said,
        a_key_without_a_session_is_told,
        an_interrupted_run_leaves_the_other_sessions_as_they_were;
    reseal:
        every_session_is_sealed_with_the_first_key_and_nobody_is_logged_out,
        what_cannot_be_read_is_left_alone_and_told,
        without_keys_nothing_is_done,
        an_interrupted_run_says_how_far_it_came_and_can_be_run_again,
        plain_keys_are_hashed_and_nobody_is_logged_out;
    check:
        a_cache_that_agrees_is_found_to_and_is_not_disturbed,
        a_cache_that_has_an_outdated_session_is_found_out,
        a_cache_that_has_an_ended_session_is_found_out_by_its_key;
    doctor:
        what_is_well_is_said_to_be,
        trouble_decides_the_exit_code_by_its_severity,
        a_server_that_is_down_is_a_problem_and_shows_no_password;
    bad_input:
        a_database_without_the_table_is_left_alone,
        a_table_that_is_not_ours_is_left_alone,
        a_schema_that_is_newer_is_left_alone,
        a_file_that_is_not_there_is_not_made,
        urls_that_are_wrong_are_refused_without_their_passwords,
        a_cache_that_is_down_stops_what_would_have_to_tell_it,
        a_reader_that_has_gone_is_no_panic_and_undoes_nothing,
        two_things_to_revoke_at_once_are_refused,
        a_clock_that_is_far_off_stops_what_writes;
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
