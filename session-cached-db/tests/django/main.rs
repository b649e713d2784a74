//! This crate and a real Django site on one session table.
//!
//! The first run installs Django from the Python package index into a virtual environment under `target/`,
//! with `python3` or the program in `DJANGO_TEST_PYTHON`. The tests always run on SQLite. On Postgres, MySQL
//! and MariaDB they run if `CONFORMANCE_POSTGRES_URL`, `CONFORMANCE_MYSQL_URL` and `CONFORMANCE_MARIADB_URL`
//! are set (`cargo xtask services up` starts the servers), in a database that is made for the run and dropped
//! at its end.
//!
//! Tests that cannot run are reported as ignored, or as failed: without Django if `CONFORMANCE_REQUIRE` is
//! `all` or lists `django`, without a server if it is `all` or lists that server.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::large_futures,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod auth;
mod bad_input;
mod changes;
mod database;
mod ends;
mod expiry;
mod keys;
#[path = "../it/common/log.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod log;
mod site;
mod staleness;
mod table;
mod venv;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::database::Kind;
use crate::site::{LazySite, Site};
use crate::venv::Venv;

type Test = for<'a> fn(&'a Site) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! tests {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        &[$($((stringify!($name), |site| Box::pin($module::$name(site)))),*),*]
    };
}

const TESTS: &[(&str, Test)] = tests! {
    changes:
        session_written_here_is_read_by_django,
        session_written_by_django_is_read_here,
        changes_of_each_side_are_read_by_the_other,
        untouched_values_come_back_byte_for_byte,
        session_saved_unchanged_comes_back_byte_for_byte,
        changes_of_both_sides_are_merged_here,
        one_of_two_writes_that_expect_the_same_version_succeeds,
        keys_that_differ_in_case_are_different;
    ends:
        key_rotated_here_is_rotated_in_django,
        key_rotated_in_django_is_rotated_here,
        logout_here_is_a_logout_in_django,
        logout_in_django_is_a_logout_here,
        session_ended_by_django_is_not_written_again,
        session_ended_here_is_not_written_again,
        key_renewed_here_is_followed_here_within_a_grace;
    expiry:
        expiry_set_here_counts_in_django,
        expiry_set_in_django_counts_here,
        session_expired_in_django_is_over_here,
        session_expired_here_is_over_in_django,
        each_side_removes_expired_sessions,
        touch_prolongs_a_session_and_changes_nothing_else,
        expiries_are_compared_to_the_microsecond;
    keys:
        each_side_accepts_the_others_fallback_keys;
    auth:
        user_logged_in_by_django_is_logged_in_here,
        user_logged_in_here_is_logged_in_by_django,
        changed_password_ends_the_login,
        login_of_another_user_keeps_nothing_of_the_session_before,
        login_by_a_fallback_key_is_renewed;
    bad_input:
        unreadable_payloads_are_reported_and_left_alone,
        malformed_cookies_cause_no_io;
    staleness:
        without_a_cache_djangos_writes_are_seen_at_once,
        with_a_cache_djangos_writes_are_seen_after_max_cache_age,
        stale_session_is_merged_or_refused_but_never_brought_back,
        djangos_cached_db_shows_a_session_ended_here;
    table:
        schema_as_sql_is_djangos,
        missing_or_foreign_table_is_refused,
        session_that_django_could_not_read_is_refused,
        absolute_timeout_is_refused,
        no_statement_reads_the_whole_table;
};

fn main() {
    let arguments = Arguments::from_args();
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required = |name| required.split(',').any(|other| other.trim() == "all" || other.trim() == name);
    let is_wanted = |name: &str| {
        let is_chosen = arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
        is_chosen && !arguments.skip.iter().any(|skip| name.contains(skip.as_str())) && !arguments.list
    };

    let mut venv = None;
    let (mut trials, mut sites) = (Vec::new(), Vec::new());
    for kind in Kind::ALL {
        let named = |(name, test): &(&str, Test)| (format!("django::{}::{name}", kind.name()), *test);
        let tests: Vec<_> = TESTS.iter().map(named).collect();
        // Look for Python only if a test needs it.
        let site = if !tests.iter().any(|(name, _)| is_wanted(name)) {
            Err(("not wanted".to_owned(), false))
        } else {
            let venv = venv.get_or_insert_with(|| Venv::make().map(Arc::new));
            match (venv, kind.server()) {
                (Err(error), _) => Err((format!("no Django: {error}"), is_required("django"))),
                (_, Err(error)) => Err((error, is_required(kind.name()))),
                (Ok(venv), Ok(server)) => Ok(Arc::new(LazySite::new(kind, server, Arc::clone(venv)))),
            }
        };
        if let Err((reason, _)) = &site
            && reason != "not wanted"
        {
            eprintln!("\n{}: {reason}\n", kind.name());
        }
        sites.extend(site.iter().map(Arc::clone));
        for (name, test) in tests {
            trials.push(match &site {
                Ok(site) => {
                    let site = Arc::clone(site);
                    Trial::test(name, move || run(&site, test))
                }
                Err((reason, true)) => {
                    let reason = format!("{reason}; CONFORMANCE_REQUIRE demands it");
                    Trial::test(name, move || Err(Failed::from(reason)))
                }
                Err((reason, false)) => {
                    Trial::test(name, || Ok(())).with_ignored_flag(true).with_kind(reason)
                }
            });
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    sites.iter().for_each(|site| site.remove());
    conclusion.exit();
}

/// Runs a test in one thread, so that its log is written in this one.
fn run(site: &LazySite, test: Test) -> Result<(), Failed> {
    let site = site.get()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let in_time = tokio::time::timeout(std::time::Duration::from_secs(120), test(site)).await;
        in_time.map_err(|_| Failed::from("the test did not end within two minutes"))
    })
}
