//! Visits as people make them.

use std::time::{Duration, Instant};

use session_cached_db::Expiry;

use crate::browser::{Browser, Browsers, Setup};
use crate::server::Server;
use crate::{POSTGRES, REDIS};

pub async fn full_visit_works_with_scripts(browsers: &Browsers<'_>) {
    visit(browsers, Setup::default()).await;
}

pub async fn full_visit_works_without_scripts(browsers: &Browsers<'_>) {
    let setup = Setup { has_scripts: false, ..Setup::default() };
    // Check that scripts are really off.
    let page =
        "data:text/html,<p id=now>off</p><script>document.getElementById('now').textContent='on'</script>";
    let browser = browsers.open(setup, page).await;
    assert_eq!(browser.find("#now").await.text().await.unwrap(), "off");
    visit(browsers, setup).await;
}

/// Does everything that a visitor can do, once.
async fn visit(browsers: &Browsers<'_>, setup: Setup) {
    let server = Server::new().await;
    let site = server.listen().await;
    let browser = browsers.open(setup, &site).await;
    browser.see("You have no session").await;
    assert!(browser.client.get_all_cookies().await.unwrap().is_empty());

    browser.press_button("Add the Mug to the cart").await;
    browser.see("Total of 1").await;
    browser.see("This is visit number 1 of this session.").await;
    let anonymous = cookie(&browser).await;

    browser.sign_up(&site, "ada").await;
    browser.see("Total of 1").await;
    let logged_in = cookie(&browser).await;
    assert_ne!(anonymous, logged_in, "the key must change with the login");
    browser.press_button("Add the Desk lamp to the cart").await;
    browser.see("Total of 2").await;
    browser.press_button("Remove the Mug").await;
    browser.see("Total of 1").await;

    browser.press_button("Log out").await;
    browser.see("You have no session").await;
    assert!(browser.client.get_all_cookies().await.unwrap().is_empty());
    assert!(!is_stored(&server, &logged_in).await);

    browser.go(&format!("{site}/login")).await;
    browser.write("#name", "ada").await;
    browser.write("#password", "wrong horse").await;
    browser.press("form.stack button").await;
    browser.see("There is no such name with this password.").await;

    browser.log_in(&site, "ada", true).await;
    let remembered = server.store.open(&cookie(&browser).await).await.unwrap();
    assert!(matches!(remembered.expiry(), Some(Expiry::After(_))), "{:?}", remembered.expiry());

    browser.go(&format!("{site}/sessions")).await;
    browser.see("this one").await;
    browser.see("Chrome on Linux").await;
    assert_eq!(browser.count("#sessions li").await, 1);
    browser.press_button("Log out here").await;
    browser.see("You have no session").await;
    assert_eq!(server.store.list_by_subject("ada").await.unwrap().len(), 0);
}

/// Returns the key of the browser's session.
async fn cookie(browser: &Browser) -> String {
    browser.client.get_named_cookie("session").await.unwrap().value().to_owned()
}

async fn is_stored(server: &Server, key: &str) -> bool {
    server.store.open(key).await.unwrap().key().is_some()
}

pub async fn two_tabs_that_add_concurrently_lose_nothing(browsers: &Browsers<'_>) {
    let server = Server::new().await;
    let site = server.listen().await;
    let browser = browsers.open(Setup { is_patient: false, ..Setup::default() }, &site).await;
    browser.sign_up(&site, "ada").await;

    let first = browser.client.window().await.unwrap();
    let second = browser.client.new_window(true).await.unwrap().handle;
    browser.client.switch_to_window(second.clone()).await.unwrap();
    browser.go(&site).await;
    browser.see("There is nothing in it.").await;

    let merges = server.store.stats().merges;
    server.let_meet(2);
    // The requests of the two tabs wait for each other, when both have read the session.
    browser.press_button("Add the Mug to the cart").await;
    browser.client.switch_to_window(first).await.unwrap();
    browser.press_button("Add the Mug to the cart").await;
    browser.see("Total of 2").await;
    browser.client.switch_to_window(second).await.unwrap();
    browser.see("Total of").await;
    browser.go(&site).await;
    browser.see("Total of 2").await;
    assert!(server.store.stats().merges > merges, "the requests should have overlapped");
}

pub async fn log_out_everywhere_ends_the_other_browsers_session(browsers: &Browsers<'_>) {
    let server = Server::new().await;
    let site = server.listen().await;
    let laptop = browsers.open(Setup::default(), &site).await;
    let phone = browsers.open(Setup { width: 360, ..Setup::default() }, &site).await;
    laptop.sign_up(&site, "ada").await;
    phone.log_in(&site, "ada", true).await;

    laptop.go(&format!("{site}/sessions")).await;
    laptop.find("#everywhere").await;
    assert_eq!(laptop.count("#sessions li").await, 2);
    laptop.press("#everywhere").await;
    laptop.see("You have no session").await;
    phone.go(&site).await;
    phone.see("You have no session").await;
    // The old cookie opens nothing any more. It is left alone: only the request that ends a session removes its cookie.
    assert_eq!(phone.client.get_all_cookies().await.unwrap().len(), 1);
}

pub async fn log_out_everywhere_is_known_to_a_node_with_a_near_cache(browsers: &Browsers<'_>) {
    let redis = std::env::var(REDIS).expect("the test is ignored without it");
    log_out_everywhere_on_another_node(browsers, Server::two_with_near_caches(&redis).await).await;
}

pub async fn log_out_everywhere_is_known_to_a_node_that_postgres_tells(browsers: &Browsers<'_>) {
    let postgres = std::env::var(POSTGRES).expect("the test is ignored without it");
    log_out_everywhere_on_another_node(browsers, Server::two_told_by_postgres(&postgres).await).await;
}

/// Two nodes of the site, on two addresses. Each answers from memory.
async fn log_out_everywhere_on_another_node(browsers: &Browsers<'_>, [here, there]: [Server; 2]) {
    let (one, other) = (here.listen().await, there.listen().await);
    let laptop = browsers.open(Setup::default(), &one).await;
    let phone = browsers.open(Setup { width: 360, ..Setup::default() }, &other).await;
    laptop.sign_up(&one, "ada").await;
    phone.log_in(&other, "ada", true).await;

    // The phone's session comes into the memory of its node.
    let begun = Instant::now();
    let before = there.store.stats().near_hits;
    while there.store.stats().near_hits == before {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "memory does not answer: {:?}",
            there.store.stats()
        );
        phone.go(&format!("{other}/sessions")).await;
        phone.see("this one").await;
    }
    laptop.go(&format!("{one}/sessions")).await;
    laptop.press("#everywhere").await;
    laptop.see("You have no session").await;
    // The next page, without a pause.
    phone.go(&other).await;
    phone.see("You have no session").await;
}

pub async fn one_other_session_can_be_ended(browsers: &Browsers<'_>) {
    let server = Server::new().await;
    let site = server.listen().await;
    let laptop = browsers.open(Setup::default(), &site).await;
    let phone = browsers.open(Setup::default(), &site).await;
    laptop.sign_up(&site, "ada").await;
    phone.log_in(&site, "ada", false).await;

    laptop.go(&format!("{site}/sessions")).await;
    laptop.press("form[action=\"/sessions/end\"] button").await;
    laptop.see("this one").await;
    phone.go(&site).await;
    phone.see("You have no session").await;
    laptop.go(&site).await;
    laptop.see("Hello, ada!").await;
}

pub async fn counters_update_without_a_click(browsers: &Browsers<'_>) {
    let server = Server::new().await;
    let site = server.listen().await;
    let browser = browsers.open(Setup { has_scripts: false, ..Setup::default() }, &site).await;
    browser.find("iframe").await.enter_frame().await.unwrap();
    browser.see("Hits").await;
    let mut session = server.store.new_session();
    session.insert("visits", 1).unwrap();
    session.save().await.unwrap();
    for _ in 0..4321 {
        server.store.open(session.key().unwrap().expose()).await.unwrap();
    }
    // The page updates without a click.
    browser.see("4321").await;
}
