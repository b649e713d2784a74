//! The example application, through direct requests and in a real browser.
//!
//! The browser is Chromium, driven by `chromedriver`; the shared cache is nginx. `cargo xtask test --provision` installs them on
//! Debian. Without them, the tests that need them are reported as ignored, or as failed if `CONFORMANCE_REQUIRE` is
//! `all`.
#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::large_futures,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod browser;
mod cookies;
mod direct;
mod grace;
mod looks;
mod proxy;
mod server;
#[allow(dead_code, reason = "the example uses the rest")]
#[path = "../../examples/webapp/site/mod.rs"]
mod site;
mod visits;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use libtest_mimic::{Arguments, Failed, Trial};

use browser::{Browsers, Driver};

/// Number of tests that run at once. It is small, because each browser is several processes.
const THREADS: usize = 2;

type Direct = fn() -> Pin<Box<dyn Future<Output = ()>>>;
type BehindAProxy = for<'a> fn(&'a Path) -> Pin<Box<dyn Future<Output = ()> + 'a>>;
type InBrowser = for<'a> fn(&'a Browsers) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! direct {
    ($($name:ident),* $(,)?) => {
        &[$((concat!("direct::", stringify!($name)), || Box::pin(direct::$name()))),*]
    };
}

macro_rules! in_browser {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), |browsers| Box::pin($module::$name(browsers)))),*),*]
    };
}

macro_rules! behind_a_proxy {
    ($($name:ident),* $(,)?) => {
        &[$((concat!("proxy::", stringify!($name)), |nginx| Box::pin(proxy::$name(nginx)))),*]
    };
}

const DIRECT: &[(&str, Direct)] = direct![
    request_from_another_site_is_refused,
    visitor_who_only_looks_gets_no_session,
    counters_and_the_style_cost_no_session,
    wrong_password_and_an_unknown_name_look_the_same,
    login_changes_the_key_and_keeps_the_cart,
    second_user_gets_nothing_of_the_first,
    user_name_can_be_taken_once,
    remember_me_decides_how_long_the_cookie_lives,
    user_cannot_end_sessions_of_others,
    cart_has_a_largest_size,
    user_input_is_shown_as_text,
    logout_during_a_request_is_explained,
];

const IN_BROWSER: &[(&str, InBrowser)] = in_browser! {
    visits:
        full_visit_works_with_scripts,
        full_visit_works_without_scripts,
        two_tabs_that_add_concurrently_lose_nothing,
        log_out_everywhere_ends_the_other_browsers_session,
        one_other_session_can_be_ended,
        counters_update_without_a_click;
    cookies:
        cookies_of_the_layer_are_kept_sent_and_dropped,
        browser_refuses_the_cookies_that_the_layer_refuses,
        partitioned_cookie_is_kept_in_a_frame_of_another_site,
        login_by_a_form_of_another_site_finds_its_session;
    grace:
        session_is_kept_whichever_answer_to_a_renewal_comes_last,
        session_is_kept_when_two_requests_renew_its_key,
        client_that_lost_the_answer_to_a_renewal_gets_its_key,
        login_is_kept_whichever_answer_comes_last,
        logout_is_final_whichever_answer_comes_last;
    looks:
        page_does_not_scroll_sideways_on_a_phone,
        page_does_not_scroll_sideways_on_a_desktop,
        every_field_and_button_has_a_name,
        text_can_be_read_in_light_and_in_dark;
};

/// The variables with the URLs of servers.
const REDIS: &str = "CONFORMANCE_REDIS_URL";
const POSTGRES: &str = "CONFORMANCE_POSTGRES_URL";

/// Tests in a browser that need the server of this variable as well.
const OVER_SERVERS: [(&str, &[(&str, InBrowser)]); 2] = [
    (
        REDIS,
        in_browser! {
            visits: log_out_everywhere_is_known_to_a_node_with_a_near_cache;
        },
    ),
    (
        POSTGRES,
        in_browser! {
            visits: log_out_everywhere_is_known_to_a_node_that_postgres_tells;
        },
    ),
];

const BEHIND_A_PROXY: &[(&str, BehindAProxy)] = behind_a_proxy![
    page_without_a_session_is_cached,
    first_visitors_get_keys_of_their_own,
    page_that_read_the_session_is_given_to_no_other_client,
    cache_control_of_the_handler_is_respected,
    key_is_shared_with_no_one_although_the_handler_says_public,
    error_of_the_session_is_not_cached,
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let mut trials: Vec<_> = DIRECT
        .iter()
        .map(|(name, test)| {
            Trial::test(*name, move || {
                runtime().block_on(test());
                Ok(())
            })
        })
        .collect();

    let driver = if arguments.list { Err("listing".to_owned()) } else { Driver::start() }.map(Arc::new);
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|name| name.trim() == "all");
    let mut in_browsers: Vec<_> = IN_BROWSER.iter().map(|test| (test, true)).collect();
    for (variable, tests) in OVER_SERVERS {
        let has_server = std::env::var(variable).is_ok_and(|url| !url.is_empty());
        in_browsers.extend(tests.iter().map(|test| (test, has_server)));
        if !has_server && !is_required && !arguments.list {
            eprintln!("in a browser, over a server: NOT TESTED, because {variable} is not set");
        }
    }
    for ((name, test), has_server) in in_browsers {
        let driver = driver.clone();
        let is_ignored = (driver.is_err() || !has_server) && !is_required;
        let trial = Trial::test(*name, move || in_browser(&*driver?, *test));
        trials.push(trial.with_ignored_flag(is_ignored));
    }
    if let (Err(reason), false, false) = (&driver, is_required, arguments.list) {
        eprintln!("in a browser: NOT TESTED, because {reason}");
    }
    let nginx = if arguments.list { Err("listing".to_owned()) } else { proxy::find() };
    for (name, test) in BEHIND_A_PROXY {
        let nginx = nginx.clone();
        let is_ignored = nginx.is_err() && !is_required;
        let run = move || {
            runtime().block_on(test(&nginx?));
            Ok(())
        };
        trials.push(Trial::test(*name, run).with_ignored_flag(is_ignored));
    }
    if let (Err(reason), false, false) = (&nginx, is_required, arguments.list) {
        eprintln!("behind a shared cache: NOT TESTED, because {reason}");
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(driver);
    conclusion.exit();
}

/// Runs a test in a browser, and closes its browsers even after a failure.
fn in_browser(driver: &Driver, test: InBrowser) -> Result<(), Failed> {
    runtime().block_on(async {
        let browsers = Browsers::new(driver);
        let outcome = AssertUnwindSafe(test(&browsers)).catch_unwind().await;
        browsers.close().await;
        outcome.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Failed::from(text.unwrap_or_default())
        })
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
