//! Requests that overlap a change of the key, in a real browser: whichever is handled first, and whichever answer comes last,
//! the browser ends up with the session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{Html, Response};
use axum::routing::any;
use serde_json::{Value, json};
use session_cached_db::tower::{SessionHandle, SessionLayer};
use session_cached_db::{CachedDb, Error, MokaCache, SqlitePersistence};
use tokio::sync::Semaphore;

use crate::browser::{Browser, Browsers, Setup};
use crate::cookies::serve;

const PATIENCE: Duration = Duration::from_secs(60);

/// The points at which the requests to a path wait for the test.
struct Gate {
    arrived: Semaphore,
    admitted: Semaphore,
    answered: Semaphore,
    released: Semaphore,
}

#[derive(Clone, Default)]
struct Gates(Arc<Mutex<HashMap<String, Arc<Gate>>>>);

impl Gates {
    fn close(&self, path: &str) -> Arc<Gate> {
        let [arrived, admitted, answered, released] = [0; 4].map(Semaphore::new);
        let gate = Arc::new(Gate { arrived, admitted, answered, released });
        self.0.lock().unwrap().insert(path.to_owned(), Arc::clone(&gate));
        gate
    }

    /// Lets the request through, and then its answer, which has its cookie by then, when the test says so.
    async fn pass(self, request: Request, next: Next) -> Response {
        let gate = self.0.lock().unwrap().remove(request.uri().path());
        let Some(gate) = gate else { return next.run(request).await };
        gate.arrived.add_permits(1);
        wait_for(&gate.admitted).await;
        let response = next.run(request).await;
        gate.answered.add_permits(1);
        wait_for(&gate.released).await;
        response
    }
}

async fn wait_for(semaphore: &Semaphore) {
    tokio::time::timeout(PATIENCE, semaphore.acquire()).await.expect("it happens").unwrap().forget();
}

async fn visit(session: SessionHandle) -> Result<String, Error> {
    let visits = session.lock().await?.modify("visits", |visits: &mut u32| {
        *visits += 1;
        *visits
    })?;
    Ok(format!("visit {visits}"))
}

async fn read(session: SessionHandle) -> Result<String, Error> {
    let session = session.lock().await?;
    let visits: u32 = session.get("visits")?.unwrap_or(0);
    Ok(format!("{} with {visits} visits", session.subject().unwrap_or("stranger")))
}

async fn renew(session: SessionHandle) -> Result<&'static str, Error> {
    session.lock().await?.renew_key().await?;
    Ok("renewed")
}

async fn log_in(session: SessionHandle) -> Result<&'static str, Error> {
    session.lock().await?.log_in("ada").await?;
    Ok("logged in")
}

async fn log_out(session: SessionHandle) -> Result<&'static str, Error> {
    session.lock().await?.log_out().await?;
    Ok("logged out")
}

struct Site {
    browser: Browser,
    gates: Gates,
    at: String,
}

impl Site {
    /// Opens a browser that has a session with one visit.
    async fn visited(browsers: &Browsers<'_>) -> Self {
        let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
        let store = CachedDb::builder(MokaCache::builder().build(), db).sole_process();
        // A key is sent anew once per touch interval: not within this test.
        let store = store.rotation_grace(PATIENCE).touch_interval(Duration::from_secs(3 * 24 * 60 * 60));
        let store = store.build().await.unwrap();
        let gates = Gates::default();
        let gate = gates.clone();
        let pages = Router::new()
            .route("/visit", any(visit))
            .route("/read", any(read))
            .route("/renew", any(renew))
            .route("/renew-too", any(renew))
            .route("/login", any(log_in))
            .route("/logout", any(log_out))
            .layer(SessionLayer::new(store))
            .layer(middleware::from_fn(move |request, next| gate.clone().pass(request, next)))
            .route("/page", any(async || Html("<p>a page</p>")));
        let at = format!("http://127.0.0.1:{}", serve(pages).await);
        let browser = browsers.open(Setup::default(), &format!("{at}/visit")).await;
        browser.see("visit 1").await;
        browser.go(&format!("{at}/page")).await;
        Self { browser, gates, at }
    }

    async fn cookie(&self) -> Option<String> {
        let cookie = self.browser.client.get_named_cookie("__Host-session").await.ok();
        cookie.map(|cookie| cookie.value().to_owned())
    }

    /// Sends requests with the cookie that the browser has now. They are handled in the order of `handled`, and answered in that
    /// of `answered`. Returns the answers in the order of `handled`.
    async fn send(&self, handled: [&str; 2], answered: [&str; 2]) -> [String; 2] {
        let gates = handled.map(|path| self.gates.close(path));
        let of = |path: &str| &gates[usize::from(path == handled[1])];
        let script = "window.answers = {};
            for (const path of arguments[0])
                fetch(path, { method: 'POST', cache: 'no-store' }).then(async answer =>
                    window.answers[path] = answer.status + ' ' + await answer.text());";
        self.browser.client.execute(script, vec![json!(handled)]).await.unwrap();
        for gate in &gates {
            wait_for(&gate.arrived).await;
        }
        for gate in &gates {
            gate.admitted.add_permits(1);
            wait_for(&gate.answered).await;
        }
        for path in answered {
            of(path).released.add_permits(1);
            self.answer(path).await;
        }
        [self.answer(handled[0]).await, self.answer(handled[1]).await]
    }

    /// Waits for the answer to a request that a script has sent.
    async fn answer(&self, path: &str) -> String {
        let begun = Instant::now();
        loop {
            let script = "return window.answers[arguments[0]] || null";
            match self.browser.client.execute(script, vec![json!(path)]).await.unwrap() {
                Value::String(answer) => return answer,
                _ => assert!(begun.elapsed() < PATIENCE, "no answer to {path}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn sees(&self, text: &str) {
        self.browser.go(&format!("{}/read", self.at)).await;
        self.browser.see(text).await;
        self.browser.go(&format!("{}/page", self.at)).await;
    }
}

/// Returns each order in which two requests can be handled, with each order in which they can be answered.
fn orders<'a>(one: &'a str, other: &'a str) -> [([&'a str; 2], [&'a str; 2]); 4] {
    let (first, second) = ([one, other], [other, one]);
    [(first, first), (first, second), (second, first), (second, second)]
}

pub async fn session_is_kept_whichever_answer_to_a_renewal_comes_last(browsers: &Browsers<'_>) {
    let site = Site::visited(browsers).await;
    let mut visits = 1;
    for (handled, answered) in orders("/renew", "/visit") {
        let answers = site.send(handled, answered).await;
        visits += 1;
        assert!(answers.contains(&format!("200 visit {visits}")), "{answers:?}");
        assert!(answers.contains(&"200 renewed".to_owned()), "{answers:?}");
        site.sees(&format!("stranger with {visits} visits")).await;
    }
    for (handled, answered) in orders("/renew", "/read") {
        let answers = site.send(handled, answered).await;
        assert!(answers.contains(&format!("200 stranger with {visits} visits")), "{answers:?}");
        site.sees(&format!("stranger with {visits} visits")).await;
    }
}

pub async fn session_is_kept_when_two_requests_renew_its_key(browsers: &Browsers<'_>) {
    let site = Site::visited(browsers).await;
    for (handled, answered) in orders("/renew", "/renew-too") {
        assert_eq!(site.send(handled, answered).await, ["200 renewed"; 2]);
        site.sees("stranger with 1 visits").await;
    }
}

pub async fn client_that_lost_the_answer_to_a_renewal_gets_its_key(browsers: &Browsers<'_>) {
    let site = Site::visited(browsers).await;
    let before = site.cookie().await;
    let gate = site.gates.close("/renew");
    let script = "window.leaving = new AbortController();
        fetch('/renew', { method: 'POST', signal: window.leaving.signal }).catch(() => {});";
    site.browser.evaluate(script).await;
    wait_for(&gate.arrived).await;
    gate.admitted.add_permits(1);
    wait_for(&gate.answered).await;
    site.browser.evaluate("window.leaving.abort()").await;
    assert_eq!(site.cookie().await, before, "the answer is lost");
    site.sees("stranger with 1 visits").await;
    let after = site.cookie().await;
    assert!(after.is_some() && after != before, "it has the new key");
    site.sees("stranger with 1 visits").await;
    assert_eq!(site.cookie().await, after);
}

pub async fn login_is_kept_whichever_answer_comes_last(browsers: &Browsers<'_>) {
    for other in ["/visit", "/read"] {
        for (handled, answered) in orders("/login", other) {
            let site = Site::visited(browsers).await;
            let answers = site.send(handled, answered).await;
            assert!(answers.contains(&"200 logged in".to_owned()), "{answers:?}");
            site.sees("ada with").await;
            // The data from before the login is there.
            if handled == ["/visit", "/login"] {
                site.sees("ada with 2 visits").await;
            }
        }
    }
}

pub async fn logout_is_final_whichever_answer_comes_last(browsers: &Browsers<'_>) {
    for other in ["/renew", "/read"] {
        for (handled, answered) in orders("/logout", other) {
            let site = Site::visited(browsers).await;
            site.send(handled, answered).await;
            site.sees("stranger with 0 visits").await;
        }
    }
}
