//! A Django site with its database, and stores of this crate on the same table.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use session_cached_db::django::{DjangoCodec, SecretKeys};
use session_cached_db::session_core::{Cache, DynPersistence};
use session_cached_db::{Builder, CachedDb, NoCache};

use crate::database::{Address, Database, Kind};
use crate::venv::Venv;

/// The default `SECRET_KEY` of the site.
pub const SECRET_KEY: &str = "django-insecure-of-the-interop-tests";

pub type Db = Arc<dyn DynPersistence>;
pub type Store = CachedDb<NoCache, Db>;

/// A site that is made when the first test asks for it.
pub struct LazySite {
    kind: Kind,
    server: Option<Address>,
    venv: Arc<Venv>,
    site: OnceLock<Result<Site, String>>,
}

impl LazySite {
    pub const fn new(kind: Kind, server: Option<Address>, venv: Arc<Venv>) -> Self {
        Self { kind, server, venv, site: OnceLock::new() }
    }

    pub fn get(&self) -> Result<&Site, String> {
        let site = self.site.get_or_init(|| Site::start(self.kind, self.server.clone(), &self.venv));
        site.as_ref().map_err(Clone::clone)
    }

    pub fn remove(&self) {
        if let Some(Ok(site)) = self.site.get() {
            site.django.lock().unwrap().end();
            site.database.remove();
        }
    }
}

pub struct Site {
    pub database: Database,
    django: Mutex<Django>,
}

impl Site {
    fn start(kind: Kind, server: Option<Address>, venv: &Venv) -> Result<Self, String> {
        let database = Database::make(kind, server)?;
        match Django::start(venv, &database.settings()) {
            Ok(django) => Ok(Self { database, django: Mutex::new(django) }),
            Err(error) => {
                database.remove();
                Err(error)
            }
        }
    }

    /// Makes Django run an operation of the driver.
    pub fn django(&self, operation: &str, mut request: Value) -> Value {
        request["op"] = operation.into();
        let answer = self.django.lock().unwrap_or_else(std::sync::PoisonError::into_inner).ask(&request);
        if let Some(exception) = answer["exception"].as_str() {
            panic!("{operation}: {exception}");
        }
        answer
    }

    /// Returns a store without a cache, which sees every write of Django.
    pub async fn store(&self) -> Store {
        self.store_with(&[SECRET_KEY]).await
    }

    /// Returns a store without a cache, with these secret keys, of which the first is the current one.
    pub async fn store_with(&self, keys: &[&str]) -> Store {
        self.builder(NoCache, keys).await.build().await.unwrap()
    }

    pub async fn builder<C: Cache>(&self, cache: C, keys: &[&str]) -> Builder<C, Db> {
        let codec = DjangoCodec::new(&secret_keys(keys));
        CachedDb::builder(cache, self.database.connect().await).codec(codec).reaper(None)
    }

    /// Makes Django create a session, and returns its key.
    pub fn create(&self, data: &str) -> String {
        text(&self.django("create", json!({"data": data}))["key"])
    }

    /// Returns the session that Django finds under `key`, as JSON with sorted keys, or `None` if it finds
    /// none.
    pub fn load(&self, key: &str) -> Option<String> {
        self.django("load", json!({"key": key}))["data"].as_str().map(str::to_owned)
    }

    /// Returns the row under `key`: the payload, and the expiry in microseconds.
    pub fn row(&self, key: &str) -> Option<(String, i64)> {
        let row = self.django("row", json!({"key": key}));
        Some((row["row"].as_str()?.to_owned(), row["expire_date"].as_i64()?))
    }

    /// Returns the JSON text that is signed under `key`.
    pub fn json(&self, key: &str) -> String {
        text(&self.django("json", json!({"key": key}))["json"])
    }
}

pub fn secret_keys(keys: &[&str]) -> SecretKeys {
    SecretKeys::new(keys[0]).unwrap().with_fallbacks(&keys[1..]).unwrap()
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

/// Returns the key of a saved session.
pub fn key_of(session: &session_cached_db::Session) -> String {
    session.key().unwrap().expose().to_owned()
}

pub fn now_micros() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// The process of the driver.
struct Django {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Django {
    fn start(venv: &Venv, database: &Value) -> Result<Self, String> {
        let mut child = venv
            .python()
            .arg("-u")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/django/driver.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("Python cannot be run: {error}"))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut django = Self { child, requests, answers };
        let version = django.ask(database);
        eprintln!("Django {} on {}", version["version"], database["ENGINE"]);
        Ok(django)
    }

    fn ask(&mut self, request: &Value) -> Value {
        let requests = self.requests.as_mut().expect("it runs");
        writeln!(requests, "{request}").expect("Django takes requests");
        requests.flush().expect("Django takes requests");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("Django answers");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("Django says {answer:?}: {error}"))
    }

    /// Closes the requests, which ends the process, and waits for it.
    fn end(&mut self) {
        self.requests = None;
        let _ = self.child.wait();
    }
}
