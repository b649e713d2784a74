//! Sessions in web frameworks, through this crate's layer and its adapters for other middlewares.
//!
//! Every scenario runs over moka and SQLite in one process, and with two nodes over Redis and Postgres. Some run with two nodes
//! that have sessions in memory, and are told of changes by Redis or by Postgres. The servers'
//! URLs are in `CONFORMANCE_REDIS_URL` and `CONFORMANCE_POSTGRES_URL`; `cargo xtask services up` starts both
//! servers. Without them, those scenarios are reported as ignored, or as failed if `CONFORMANCE_REQUIRE` is
//! `all` or lists one of the two.
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

mod actix;
mod actix_workers;
mod axum_layer;
mod axum_login;
mod tower_sessions;
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
    axum_layer:
        client_comes_back_with_its_cookie,
        overlapping_requests_of_two_nodes_lose_nothing,
        logout_on_one_node_is_final_on_the_other,
        login_changes_the_key,
        log_out_everywhere_ends_the_sessions_of_all_browsers,
        handler_can_use_all_of_a_store_with_erased_backends;
    tower_sessions:
        client_comes_back_with_its_cookie,
        visitor_who_stores_nothing_gets_no_session,
        save_on_one_node_is_seen_on_the_other_at_once,
        cached_session_costs_no_database_read,
        last_of_two_saves_wins,
        logout_is_final_and_a_late_save_is_an_error,
        cycled_id_keeps_the_data_and_ends_the_old_id,
        expiry_of_the_last_save_counts,
        existing_id_is_replaced_when_a_session_is_created,
        unchanged_values_stay_byte_for_byte,
        unreadable_payload_is_an_error_and_row_and_cookie_stay,
        reserved_key_is_an_encoding_error;
    axum_login:
        visitor_is_sent_to_the_login_page,
        wrong_password_leaves_a_message_and_no_login,
        login_changes_the_id_and_ends_the_old_one,
        logout_on_one_node_is_final_on_the_other,
        two_users_have_sessions_of_their_own,
        changed_password_ends_the_session,
        dead_database_logs_no_one_in_or_out,
        unreadable_session_is_an_error_and_its_cookie_stays;
    actix:
        client_comes_back_with_its_cookie,
        visitor_who_stores_nothing_gets_no_session,
        save_on_one_node_is_seen_on_the_other_at_once,
        cached_session_costs_no_database_read,
        last_of_two_updates_wins,
        logout_is_final_and_a_late_update_is_an_error,
        renewed_session_keeps_the_data_and_ends_the_old_key,
        session_ends_when_its_ttl_is_over,
        reading_prolongs_a_session_under_on_every_request,
        malformed_cookie_opens_no_session,
        unchanged_values_stay_byte_for_byte,
        unreadable_payload_is_an_error_and_row_and_cookie_stay;
    actix_workers:
        connections_outlive_the_worker_that_opened_them,
        worker_that_blocks_its_thread_holds_up_no_other;
};

/// Those of nodes that have sessions in memory.
const IN_MEMORY: &[(&str, Scenario)] = scenarios! {
    axum_layer:
        logout_is_final_on_a_node_that_has_the_session_in_memory;
    tower_sessions:
        logout_is_final_on_a_node_that_has_the_session_in_memory;
    actix:
        logout_is_final_on_a_node_that_has_the_session_in_memory;
};

fn main() {
    let mut trials = Vec::new();
    for (name, scenario) in SCENARIOS {
        trials.push(Trial::test(format!("moka+sqlite::{name}"), move || run(None, *scenario)));
    }
    let servers = Servers::of_environment();
    let is_ignored = servers.is_err() && !is_required();
    for (cache, scenarios) in [("redis", SCENARIOS), ("near+redis", IN_MEMORY), ("notified+moka", IN_MEMORY)]
    {
        for (name, scenario) in scenarios {
            let (name, servers) = (format!("{cache}+postgres::{name}"), servers.clone());
            let trial = Trial::test(name, move || run(Some((servers?, cache)), *scenario));
            trials.push(trial.with_ignored_flag(is_ignored));
        }
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

/// Runs a scenario on a runtime of one thread, as actix does.
fn run(servers: Option<(Servers, &str)>, scenario: Scenario) -> Result<(), Failed> {
    actix_web::rt::System::new().block_on(async {
        let world = World::new(servers).await;
        let outcome = world.catch(scenario(&world)).await;
        world.clean_up().await;
        outcome
    })
}
