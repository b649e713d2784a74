//! The browser keeps the cookies that the layer sets, sends them, and drops them. It refuses those that the layer refuses to set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Path;
use axum::http::header;
use axum::response::{Html, Redirect};
use axum::routing::{any, get, post};
use session_cached_db::tower::{SameSite, SessionCookie, SessionHandle, SessionLayer};
use session_cached_db::{CachedDb, Error, MokaCache, SqlitePersistence};
use tokio::net::TcpListener;

use crate::browser::{Browser, Browsers, Setup};

type Store = CachedDb<MokaCache, SqlitePersistence>;

async fn store() -> Store {
    let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    // Longer than browsers keep a cookie.
    let idle_timeout = Duration::from_secs(1_000 * 24 * 60 * 60);
    let store = CachedDb::builder(MokaCache::builder().build(), db).sole_process().idle_timeout(idle_timeout);
    store.build().await.unwrap()
}

/// Serves a site, and returns its port. Browsers reach it as `127.0.0.1` and as `localhost`, which are two sites.
pub async fn serve(site: Router) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, site).await });
    port
}

async fn visit(session: SessionHandle) -> Result<String, Error> {
    let visits = session.lock().await?.modify("visits", |visits: &mut u32| {
        *visits += 1;
        *visits
    })?;
    Ok(format!("visit {visits}"))
}

async fn log_out(session: SessionHandle) -> Result<&'static str, Error> {
    session.lock().await?.flush().await?;
    Ok("logged out")
}

/// Returns the pages of one cookie.
fn pages(store: &Store, cookie: SessionCookie) -> Router {
    Router::new()
        .route("/visit", any(visit))
        .route("/logout", any(log_out))
        .layer(SessionLayer::new(store.clone()).with_cookie(cookie).unwrap())
}

async fn names(browser: &Browser) -> Vec<String> {
    let cookies = browser.client.get_all_cookies().await.unwrap();
    cookies.iter().map(|cookie| cookie.name().to_owned()).collect()
}

pub async fn cookies_of_the_layer_are_kept_sent_and_dropped(browsers: &Browsers<'_>) {
    let cookies = [
        SessionCookie::default(),
        SessionCookie::default().plain_http(true),
        SessionCookie::new("__Host-Http-session"),
        SessionCookie::new("__host-HTTP-session2"),
        SessionCookie::new("__Http-session").path("/4"),
        SessionCookie::new("__Secure-session").path("/5/").same_site(SameSite::Strict),
        SessionCookie::new("id").same_site(SameSite::None).http_only(false),
        SessionCookie::new("__Host-embedded").same_site(SameSite::None).partitioned(true),
        SessionCookie::new("bound").domain("127.0.0.1"),
        SessionCookie::new("n".repeat(4096 - 64)),
    ];
    let store = store().await;
    let mut site = Router::new();
    for (number, cookie) in cookies.iter().enumerate() {
        site = site.nest(&format!("/{number}"), pages(&store, cookie.clone()));
    }
    let at = format!("http://127.0.0.1:{}", serve(site).await);
    let browser = browsers.open(Setup::default(), "about:blank").await;
    for (number, cookie) in cookies.iter().enumerate() {
        for visit in ["visit 1", "visit 2"] {
            browser.go(&format!("{at}/{number}/visit")).await;
            browser.see(visit).await;
        }
        let kept = browser.client.get_all_cookies().await.unwrap();
        let kept = kept.iter().find(|kept| kept.name() == cookie.name()).expect("the cookie");
        let expires = kept.expires().and_then(|expires| expires.datetime()).unwrap().unix_timestamp();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let left = expires - i64::try_from(now).unwrap();
        let days_400 = 400 * 24 * 60 * 60;
        assert!((days_400 - 3_600..=days_400 + 1).contains(&left), "{left}");
        browser.go(&format!("{at}/{number}/logout")).await;
        browser.see("logged out").await;
        assert_eq!(names(&browser).await, [""; 0], "{}", cookie.name());
        browser.go(&format!("{at}/{number}/visit")).await;
        browser.see("visit 1").await;
        browser.go(&format!("{at}/{number}/logout")).await;
    }
}

pub async fn browser_refuses_the_cookies_that_the_layer_refuses(browsers: &Browsers<'_>) {
    let long = "n".repeat(4097 - 64);
    let value = "v".repeat(64);
    let lines = [
        ("a=1; Secure; HttpOnly; Path=/".to_owned(), true),
        ("__Host-Http-a=1; Secure; HttpOnly; Path=/".to_owned(), true),
        ("__Host-Http-a=1; Secure; Path=/".to_owned(), false),
        ("__host-http-a=1; Secure; Path=/".to_owned(), false),
        ("__Host-Http-a=1; Secure; HttpOnly; Path=/0".to_owned(), false),
        ("__Http-a=1; Secure; HttpOnly".to_owned(), true),
        ("__Http-a=1; Secure".to_owned(), false),
        ("__HTTP-a=1; HttpOnly".to_owned(), false),
        ("__Host-a=1; Secure; Path=/; Domain=localhost".to_owned(), false),
        ("__HOST-a=1; Path=/".to_owned(), false),
        ("__secure-a=1".to_owned(), false),
        ("a=1; SameSite=None".to_owned(), false),
        ("a=1; Partitioned".to_owned(), false),
        ("p=1; Partitioned; Secure; SameSite=None".to_owned(), true),
        ("a=1; Domain=localhost:443".to_owned(), false),
        (format!("{long}={value}"), false),
        (format!("{}={value}", &long[1..]), true),
    ];
    let served = lines.clone();
    let set =
        async move |Path(number): Path<usize>| ([(header::SET_COOKIE, served[number].0.clone())], "set");
    let at = format!("http://localhost:{}", serve(Router::new().route("/{number}", get(set))).await);
    let browser = browsers.open(Setup::default(), "about:blank").await;
    for (number, (line, is_kept)) in lines.iter().enumerate() {
        let name = line.split('=').next().unwrap();
        browser.client.delete_all_cookies().await.unwrap();
        browser.go(&format!("{at}/{number}")).await;
        browser.see("set").await;
        assert_eq!(names(&browser).await.iter().any(|kept| kept == name), *is_kept, "{line:.60}");
    }
}

pub async fn partitioned_cookie_is_kept_in_a_frame_of_another_site(browsers: &Browsers<'_>) {
    let cookie = SessionCookie::default().same_site(SameSite::None).partitioned(true);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let frame = Html(format!("<iframe src=\"http://localhost:{port}/visit\"></iframe>"));
    let site = pages(&store().await, cookie).route("/embed", get(async move || frame));
    tokio::spawn(async move { axum::serve(listener, site).await });
    let browser = browsers.open(Setup::default(), "about:blank").await;
    for visit in ["visit 1", "visit 2"] {
        browser.go(&format!("http://127.0.0.1:{port}/embed")).await;
        browser.find("iframe").await.enter_frame().await.unwrap();
        browser.see(visit).await;
    }
    // At the top, the same site has other cookies.
    browser.go(&format!("http://localhost:{port}/visit")).await;
    browser.see("visit 1").await;
}

enum Login {}

pub async fn login_by_a_form_of_another_site_finds_its_session(browsers: &Browsers<'_>) {
    let store = store().await;
    let cookie = SessionCookie::new("__Host-Http-login").same_site(SameSite::None);
    let login = SessionLayer::new(store.clone()).marker::<Login>().with_cookie(cookie).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let begin = async |session: SessionHandle, login: SessionHandle<Login>| -> Result<&str, Error> {
        session.lock().await?.insert("cart", 1)?;
        login.lock().await?.insert("state", "s1")?;
        Ok("begun")
    };
    // As Apple and SAML do it: a form that is posted here.
    let provider = Html(format!(
        "<form method=post action=\"http://localhost:{port}/callback\"><button>Go</button></form>"
    ));
    let callback = async |session: SessionHandle, login: SessionHandle<Login>| -> Result<Redirect, Error> {
        let mut login = login.lock().await?;
        let mut session = session.lock().await?;
        assert_eq!(session.get::<u32>("cart")?, None, "a Lax cookie does not come with such a form");
        if login.get::<String>("state")?.as_deref() == Some("s1") {
            login.flush().await?;
            session.set_subject("ada")?;
            session.cycle_key().await?;
        }
        Ok(Redirect::to("/who"))
    };
    let who = async |session: SessionHandle| -> Result<String, Error> {
        Ok(format!("Hello, {}!", session.lock().await?.subject().unwrap_or("stranger")))
    };
    let site = Router::new()
        .route("/begin", get(begin))
        .route("/callback", post(callback))
        .layer(login)
        .route("/who", get(who))
        .layer(SessionLayer::new(store))
        .route("/provider", get(async move || provider));
    tokio::spawn(async move { axum::serve(listener, site).await });
    let browser = browsers.open(Setup::default(), "about:blank").await;
    browser.go(&format!("http://localhost:{port}/begin")).await;
    browser.see("begun").await;
    browser.go(&format!("http://127.0.0.1:{port}/provider")).await;
    browser.press_button("Go").await;
    browser.see("Hello, ada!").await;
    // The browser comes back with it by itself, too.
    browser.go(&format!("http://localhost:{port}/who")).await;
    browser.see("Hello, ada!").await;
}
