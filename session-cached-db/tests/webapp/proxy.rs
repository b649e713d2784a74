//! Behind a shared cache: nginx with `proxy_cache`, told to cache whatever it may, cookies included.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header;
use axum::routing::get;
use session_cached_db::tower::{SessionHandle, SessionLayer};
use session_cached_db::{CachedDb, Error, MokaCache, SqlitePersistence};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

/// Maximum time to wait for nginx to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the path of nginx.
///
/// # Errors
///
/// The name of the program that is missing.
pub fn find() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join("nginx"))
        .find(|path| path.is_file())
        .ok_or_else(|| "there is no nginx".to_owned())
}

/// nginx in front of an application, on a socket of its own. It ends when this is dropped.
struct Proxy {
    process: Child,
    directory: TempDir,
}

struct Answer {
    head: String,
    body: String,
}

impl Proxy {
    async fn start(nginx: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let site = site().await;
        tokio::spawn(async move { axum::serve(listener, site).await });

        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {at}/{name};"))
            .join("\n");
        let configuration = format!(
            "daemon off;
            master_process off;
            pid {at}/pid;
            error_log stderr warn;
            events {{}}
            http {{
                access_log off;
                {temporary}
                proxy_cache_path {at}/cache keys_zone=pages:1m;
                server {{
                    listen unix:{at}/socket;
                    location / {{
                        proxy_pass http://127.0.0.1:{port};
                        proxy_cache pages;
                        proxy_cache_valid any 10m;
                        proxy_ignore_headers Set-Cookie;
                        add_header X-Cache $upstream_cache_status always;
                    }}
                }}
            }}"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let mut command = Command::new(nginx);
        command.arg("-p").arg(directory.path()).arg("-e").arg("stderr").arg("-c").arg(&file);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut proxy = Self { process, directory };
        proxy.wait_until_ready().await;
        proxy
    }

    async fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        while UnixStream::connect(self.socket()).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "nginx does not answer");
            assert!(self.process.try_wait().unwrap().is_none(), "nginx does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Asks for a page, with these header lines.
    async fn get(&self, path: &str, lines: &[&str]) -> Answer {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        // HTTP/1.0, so that the answer ends with the connection and is not in chunks.
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\nHost: shop\r\n{lines}\r\n").as_bytes())
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Answer { head: head.to_owned(), body: body.to_owned() }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// Returns the header line with which the client presents its key.
    fn cookie(&self) -> String {
        let value = self.header("set-cookie").unwrap_or_else(|| panic!("no cookie in {}", self.head));
        format!("Cookie: {}", value.split(';').next().unwrap())
    }

    fn comes_from_the_cache(&self) -> bool {
        self.header("x-cache") == Some("HIT")
    }
}

async fn site() -> Router {
    let db = SqlitePersistence::connect("sqlite::memory:").await.unwrap();
    let store = CachedDb::builder(MokaCache::builder().build(), db).sole_process().build().await.unwrap();
    let public = || [(header::CACHE_CONTROL, "public, max-age=600")];
    let public_visit = async move |session: SessionHandle| Ok::<_, Error>((public(), visit(session).await?));
    let public_read = async move |session: SessionHandle| Ok::<_, Error>((public(), read(session).await?));
    let failing = async |session: SessionHandle| -> Result<(), Error> {
        let _guard = session.lock().await?;
        Err(Error::Conflict)
    };
    Router::new()
        .route("/visit", get(visit))
        .route("/read", get(read))
        .route("/static", get(async || "the same for all"))
        .route("/public/visit", get(public_visit))
        .route("/public/read", get(public_read))
        .route("/failing", get(failing))
        .layer(SessionLayer::new(store))
}

async fn visit(session: SessionHandle) -> Result<String, Error> {
    session.lock().await?.modify("visits", |visits: &mut u32| {
        *visits += 1;
        visits.to_string()
    })
}

async fn read(session: SessionHandle) -> Result<String, Error> {
    Ok(session.lock().await?.get::<u32>("visits")?.unwrap_or(0).to_string())
}

pub async fn page_without_a_session_is_cached(nginx: &Path) {
    let proxy = Proxy::start(nginx).await;
    let first = proxy.get("/static", &[]).await;
    assert!(!first.comes_from_the_cache());
    let second = proxy.get("/static", &["Cookie: __Host-session=abcdefghijklmnopqrstuvwxyz012345"]).await;
    assert!(second.comes_from_the_cache(), "the layer must leave such a page alone: {}", second.head);
    assert_eq!(second.body, "the same for all");
}

pub async fn first_visitors_get_keys_of_their_own(nginx: &Path) {
    let proxy = Proxy::start(nginx).await;
    let first = proxy.get("/visit", &[]).await;
    let second = proxy.get("/visit", &[]).await;
    assert!(!second.comes_from_the_cache());
    assert_ne!(first.cookie(), second.cookie());
}

pub async fn page_that_read_the_session_is_given_to_no_other_client(nginx: &Path) {
    let proxy = Proxy::start(nginx).await;
    assert_eq!(proxy.get("/read", &[]).await.body, "0");
    let cookie = proxy.get("/visit", &[]).await.cookie();
    for expected in ["1", "1"] {
        let answer = proxy.get("/read", &[&cookie]).await;
        assert_eq!(answer.body, expected);
        assert!(!answer.comes_from_the_cache());
    }
    assert_eq!(proxy.get("/read", &[]).await.body, "0");
}

pub async fn cache_control_of_the_handler_is_respected(nginx: &Path) {
    let proxy = Proxy::start(nginx).await;
    let cookie = proxy.get("/visit", &[]).await.cookie();
    for lines in [&[][..], &[cookie.as_str()]] {
        let first = proxy.get("/public/read", lines).await;
        assert_eq!(first.header("cache-control"), Some("public, max-age=600"));
        assert!(!first.comes_from_the_cache(), "Vary keeps the clients apart");
        let second = proxy.get("/public/read", lines).await;
        assert!(second.comes_from_the_cache(), "{}", second.head);
        assert_eq!(second.body, first.body);
    }
}

pub async fn key_is_shared_with_no_one_although_the_handler_says_public(nginx: &Path) {
    let proxy = Proxy::start(nginx).await;
    let first = proxy.get("/public/visit", &[]).await;
    let second = proxy.get("/public/visit", &[]).await;
    assert!(!second.comes_from_the_cache());
    assert_ne!(first.cookie(), second.cookie());
    assert_eq!(second.header("cache-control"), Some("private, max-age=600"));
}

pub async fn error_of_the_session_is_not_cached(nginx: &Path) {
    let proxy = Proxy::start(nginx).await;
    for _ in 0..2 {
        let answer = proxy.get("/failing", &[]).await;
        assert!(answer.head.starts_with("HTTP/1.1 409") && !answer.comes_from_the_cache(), "{}", answer.head);
    }
}
