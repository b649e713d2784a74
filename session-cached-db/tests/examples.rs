//! The programs in `examples`, which the READMEs name, run and do what they say. (The test `webapp` drives the example of that
//! name, with a browser.)
//!
//! `cargo test` builds the examples. With `--test examples` it does not: then `cargo build --examples` has to come first.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use session_cached_db::db_backends::sqlx::{AssertSqlSafe, SqlitePool, raw_sql};
use session_cached_db::django::{DjangoCodec, DjangoSqlite, SecretKeys};
use session_cached_db::session_core::Persistence as _;
use session_cached_db::{CachedDb, NoCache, SqlitePersistence};

/// The patience with a program that does not answer.
const PATIENCE: Duration = Duration::from_secs(20);

fn program(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let program = here.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(
        program.exists(),
        "{} is not there; run cargo build --examples with the same features",
        program.display()
    );
    program
}

/// Runs a program to its end, and returns what it printed.
fn run(name: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program(name)).args(arguments).current_dir(directory).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A program that serves, until this is dropped.
struct Server {
    program: Child,
    address: String,
    cookie: Option<String>,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(program(name));
        command.arg("127.0.0.1:0").current_dir(directory.path()).stdout(Stdio::piped());
        let mut program = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("the program says where it listens");
        Self { address: address.to_owned(), program, cookie: None, _directory: directory }
    }

    /// Sends a request as a browser does, which keeps the cookie, and returns the answer.
    fn send(&mut self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let cookie = self.cookie.iter().map(|cookie| format!("Cookie: {cookie}\r\n")).collect::<String>();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{cookie}\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        for line in answer.lines().take_while(|line| !line.is_empty()) {
            if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("set-cookie")
            {
                self.cookie = value.split(';').next().map(str::to_owned);
            }
        }
        answer
    }

    #[track_caller]
    fn expect(&mut self, path: &str, body: &str) {
        let answer = self.send("GET", path, "");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(body), "{path}: {answer}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn quickstart_finds_the_session_of_an_earlier_run() {
    let directory = tempfile::tempdir().unwrap();
    let first = run("quickstart", &[], directory.path());
    assert!(first.contains("A visitor without a session") && first.contains("Visit number 1"), "{first}");
    let second = run("quickstart", &[], directory.path());
    assert!(second.contains("whose session is from an earlier run"), "{second}");
    assert!(second.contains("Visit number 2"), "{second}");
}

#[test]
fn hits_counts_hits_misses_and_saves() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(run("hits", &["10"], directory.path()), "10 hits, 0 misses, 0 writes\n");
    assert!(run("hits", &["10", "misses"], directory.path()).contains("10 misses"));
    assert!(run("hits", &["10", "saves"], directory.path()).contains("10 hits, 0 misses, 10 writes"));
}

#[tokio::test]
async fn django_counts_visits_in_a_session_of_the_site() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", directory.path().join("site.db").display());
    let keys = SecretKeys::new("the secret key of the site").unwrap();
    let db = SqlitePersistence::connect(&url).await.unwrap();
    let table = DjangoSqlite::over(db);
    let pool = SqlitePool::connect(&url).await.unwrap();
    raw_sql(AssertSqlSafe(table.schema_sql())).execute(&pool).await.unwrap();
    let store = CachedDb::builder(NoCache, table).codec(DjangoCodec::new(&keys)).build().await.unwrap();
    let mut session = store.new_session();
    session.insert("from_the_site", true).unwrap();
    session.save().await.unwrap();
    let cookie = session.key().unwrap().expose().to_owned();

    for visit in 1..3 {
        let mut command = Command::new(program("django"));
        command.env("DJANGO_SECRET_KEY", "the secret key of the site").args([&url, &cookie]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(
            text.contains("No user is logged in.") && text.contains(&format!("Visit number {visit};")),
            "{text}"
        );
    }
    store.close().await;
}

#[test]
fn tower_sessions_counts_the_visits_of_a_browser() {
    let mut server = Server::start("tower-sessions");
    server.expect("/", "visit number 1");
    server.expect("/", "visit number 2");
}

#[test]
fn actix_session_counts_the_visits_of_a_browser() {
    let mut server = Server::start("actix-session");
    server.expect("/", "visit number 1");
    server.expect("/", "visit number 2");
}

#[test]
fn hyper_counts_the_visits_of_a_browser() {
    let mut server = Server::start("hyper");
    server.expect("/", "visit number 1");
    server.expect("/", "visit number 2");
    server.cookie = Some("session=of-another-node-or-time".to_owned());
    server.expect("/", "visit number 1");
}

#[test]
fn tonic_serves_a_service_that_counts_the_calls_of_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let counted = run("tonic", &[], directory.path());
    assert_eq!(counted, "visit number 1\nvisit number 2\nvisit number 3\n");
}

#[test]
fn axum_login_logs_in_and_out() {
    let mut server = Server::start("axum-login");
    assert!(server.send("GET", "/", "").to_lowercase().contains("location: /login?next=%2f"));
    server.send("POST", "/login", "name=ferris&password=wrong");
    assert!(server.send("GET", "/", "").starts_with("HTTP/1.1 307"));
    server.send("POST", "/login", "name=ferris&password=hunter42");
    server.expect("/", "hello ferris");
    let cookie = server.cookie.clone();
    server.send("GET", "/logout", "");
    server.cookie = cookie;
    assert!(server.send("GET", "/", "").starts_with("HTTP/1.1 307"), "the session has ended");
}

#[test]
fn every_example_is_run_by_a_test_and_the_readme_names_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(root.join("examples")).unwrap();
    let names = names.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    let names: Vec<_> = names.collect();
    let here = include_str!("examples.rs");
    for name in &names {
        // The test of that name drives the example `webapp`.
        let is_run = name == "webapp" || here.contains(&format!("(\"{name}\""));
        assert!(is_run, "no test runs the example {name}");
    }
    let readme = std::fs::read_to_string(root.join("../README.md")).unwrap();
    let rows = readme.split("| you have | use | example |").nth(1).unwrap().lines().skip(2);
    let rows = rows.take_while(|row| row.starts_with('|'));
    let named: Vec<_> =
        rows.flat_map(|row| row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 4, "{named:?}");
    for name in named {
        assert!(names.iter().any(|other| other == name), "the README names an example {name}");
    }
}
