//! A soak: it starts the servers and the processes, breaks one thing after the other, and judges.

mod beside;
mod breaking;
mod settings;
mod workers;

pub(crate) use self::beside::{ByRevision, Older};
pub(crate) use self::settings::Settings;

use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use conformance_tests::proxy::Proxy;
use fastrand::Rng;
use session_cached_db::{CachedDb, NoCache, Schema};

use self::workers::Worker;
use super::checker::{Surroundings, Violation};
use super::engine::Container;
use super::faults::{Breakable, NearFaults, Path, Plan};
use super::history::{Action, Lie, MILLI, Nanos, Op, Orders, SECOND, SessionId, now};
use super::ledger::{self, Ledger};
use super::report::Report;
use super::worker::{self, Counting, WRITE_BOUND};
use crate::Failure;
use crate::table::{self, Ports};

/// Returns the URL of a near cache in front of the cache of `url`.
pub(crate) fn near_url(url: &str, bound: Nanos) -> String {
    format!("{}{url}{}", table::NEAR, with_bound(bound))
}

fn with_bound(bound: Nanos) -> String {
    format!("?freshness_bound_ms={}", bound / MILLI)
}

/// The freshness bound of near caches.
pub(crate) const BOUND: Nanos = 100 * MILLI;

/// The maximum time for a process to start, and for everything to recover.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(45);
const MAX_CACHE_AGE: Nanos = 3 * SECOND;

/// The freshness bound that near caches keep when they say that it is shorter.
const OVERDUE: Nanos = 2 * SECOND;

/// The violation that a soak found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) session: SessionId,
    pub(crate) violation: Violation,
}

struct Soak {
    settings: Settings,
    ledger: Arc<Mutex<Ledger>>,
    cache: Arc<Path>,
    database: Arc<Path>,
    /// Dropped last, with the database of an in-process pair in it.
    directory: tempfile::TempDir,
    start: Nanos,
    workers: Vec<Worker>,
    next_process: u32,
    random: Rng,
    report: Report,
    found: Option<Found>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a soak. Progress goes to the standard error.
pub(crate) async fn run(settings: Settings) -> Result<Report, Failure> {
    let mut soak = Soak::prepare(settings).await?;
    let outcome = soak.go().await;
    soak.stop();
    if outcome.is_err() {
        soak.count();
        eprintln!("{}", soak.report.figures());
    }
    outcome?;
    if soak.found.is_none() {
        soak.read_at_the_end().await?;
    }
    soak.finish()
}

/// Starts a server, if the backend has one, with a proxy for each process.
pub(crate) async fn path(name: &str, processes: u32) -> Result<Path, Failure> {
    let Some(server) = table::server(name) else { return Ok(Path::default()) };
    let container = tokio::task::spawn_blocking(move || Container::start(server)).await??;
    let mut proxies = Vec::new();
    if let (Ports::Mapped(_), [port]) = (server.ports, &container.ports[..]) {
        for _ in 0..processes {
            proxies.push(Proxy::before(([127, 0, 0, 1], *port).into()).await?);
        }
    }
    Ok(Path { container: Some(container), proxies })
}

/// Returns the URL by which a process reaches a database server, directly or through a proxy.
pub(crate) fn database_url(container: &Container, proxy: Option<&Proxy>) -> String {
    let url = match proxy {
        Some(proxy) => container.url(&[proxy.address().port()]),
        None => container.url(&container.ports),
    };
    let bound = worker::STATEMENT_BOUND.as_millis();
    format!(
        "{url}?statement_timeout_ms={bound}&lock_timeout_ms=2000&acquire_timeout_ms=1500&max_connections=8"
    )
}

impl Soak {
    async fn prepare(settings: Settings) -> Result<Self, Failure> {
        let (cache, database) = tokio::join!(
            path(&settings.cache, settings.processes),
            path(&settings.database, settings.processes)
        );
        let surroundings = Surroundings {
            max_cache_age: MAX_CACHE_AGE,
            write_bound: WRITE_BOUND,
            counts_saves: true,
            is_private: settings.cache == "moka",
            near: settings.is_near().then_some(BOUND),
            ..Surroundings::default()
        };
        let soak = Self {
            ledger: Arc::new(Mutex::new(Ledger { surroundings, ..Ledger::default() })),
            cache: Arc::new(cache?),
            database: Arc::new(database?),
            directory: tempfile::tempdir()?,
            start: now(),
            workers: Vec::new(),
            next_process: 0,
            random: Rng::with_seed(settings.seed),
            report: Report::new(&settings),
            found: None,
            settings,
        };
        match &soak.settings.beside {
            // The present revision migrates when the older one is at work.
            Some(older) => older.migrate(&soak.database_url(None))?,
            None => soak.migrate().await?,
        }
        Ok(soak)
    }

    async fn migrate(&self) -> Result<(), Failure> {
        let db = db_backends::connect(&self.database_url(None)).await?;
        session_core::Persistence::migrate(&db).await?;
        Ok(())
    }

    fn cache_url(&self, node: usize) -> String {
        let bound = if self.settings.lie == Some(Lie::Overdue) { OVERDUE } else { BOUND };
        let Some(container) = &self.cache.container else {
            let is_near = self.settings.is_near();
            return if is_near {
                format!("{}://{}", table::NOTIFIED, with_bound(bound))
            } else {
                "moka://".into()
            };
        };
        let url = match self.cache.proxies.get(node) {
            Some(proxy) => container.url(&[proxy.address().port()]),
            None => container.url(&container.ports),
        };
        if self.settings.is_near_on(node) { near_url(&url, bound) } else { url }
    }

    fn database_url(&self, node: Option<usize>) -> String {
        let Some(container) = &self.database.container else {
            let file = self.directory.path().join("sessions.db");
            return format!("sqlite://{}?busy_timeout_ms=2000&acquire_timeout_ms=2000", file.display());
        };
        let proxy = node.and_then(|node| self.database.proxies.get(node));
        database_url(container, proxy)
    }

    async fn go(&mut self) -> Result<(), Failure> {
        let is_mixed = self.settings.beside.is_some();
        for node in 0..self.settings.processes as usize {
            self.start_worker(node, is_mixed).await?;
        }
        // The processes are in the order of their nodes from here on.
        let end = Instant::now() + self.settings.lasts;
        let breakable = Breakable {
            cache: self.cache.container.is_some(),
            database: self.database.container.is_some(),
            is_simple_cache: !self.cache.proxies.is_empty(),
            near: match self.settings {
                Settings { breaks_channels_only: true, .. } => NearFaults::Only,
                _ if self.settings.is_near() => NearFaults::Too,
                _ => NearFaults::No,
            },
        };
        let mut plan = Plan::new(self.settings.seed, breakable, self.settings.processes as usize);
        let mut step = 0_u32;
        self.watch(Duration::from_secs(2), "nothing broken yet").await?;
        if is_mixed {
            self.deploy().await?;
        }
        while Instant::now() < end && self.found.is_none() {
            step += 1;
            let victim = step.is_multiple_of(2).then(|| self.random.usize(0..self.workers.len()));
            match plan.next() {
                Some(fault) => self.break_and_mend(fault, victim).await?,
                None => {
                    self.mark_to_kill(victim);
                    self.watch(Duration::from_secs(2), "processes are killed").await?;
                    self.replace(victim).await?;
                }
            }
            self.watch(Duration::from_millis(700), "all well").await?;
        }
        Ok(())
    }

    /// Lets time pass. Meanwhile it judges, shows progress, and notices processes that ended by themselves.
    async fn watch(&mut self, time: Duration, what: &str) -> Result<(), Failure> {
        let until = Instant::now() + time;
        loop {
            let sessions = lock(&self.ledger).take_finished(false);
            self.judge(&sessions)?;
            if self.found.is_some() {
                return Ok(());
            }
            {
                let ledger = lock(&self.ledger);
                if let Some((process, line)) = &ledger.unread {
                    return Err(
                        format!("process {process} reports what this program cannot read: {line}").into()
                    );
                }
                let ended = self.workers.iter().find(|worker| {
                    ledger.to_kill.is_none()
                        && ledger.processes.get(&worker.process).is_some_and(|state| state.has_ended)
                });
                if let Some(worker) = ended
                    && let Ok(Some(status)) = lock(&worker.child).try_wait()
                    && std::os::unix::process::ExitStatusExt::signal(&status) != Some(9)
                {
                    return Err(format!("process {} ended by itself: {status}", worker.process).into());
                }
                self.report.show_progress(
                    &ledger.counts,
                    self.cache.injected() + self.database.injected(),
                    what,
                );
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(Duration::from_millis(100))).await;
        }
    }

    fn judge(&mut self, sessions: &[(SessionId, Vec<Op>)]) -> Result<(), Failure> {
        if sessions.is_empty() {
            return Ok(());
        }
        let surroundings = {
            let mut ledger = lock(&self.ledger);
            ledger.counts.sessions_judged += sessions.len() as u64;
            ledger.surroundings.clone()
        };
        let judged = ledger::judge(sessions, &surroundings);
        lock(&self.ledger).counts.sessions_explained += *judged.as_ref().unwrap_or(&0);
        if let Err((session, violation, whole)) = judged {
            let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
                .join(format!("soak-{}-{}-{}.txt", self.settings.seed, session.slot, session.generation));
            let mut file = std::fs::File::create(&path)?;
            writeln!(file, "{surroundings:?}\n{violation}\nall of it:")?;
            for op in &whole {
                writeln!(file, "{op}")?;
            }
            eprintln!("the whole history of the session is in {}", path.display());
            self.found = Some(Found { session, violation });
        }
        Ok(())
    }

    /// Reads what is left of the sessions when all is well and no process writes any more: through the cache,
    /// from the database alone, and through the cache again. The reads are judged like all others.
    async fn read_at_the_end(&mut self) -> Result<(), Failure> {
        let process = self.next_process;
        self.introduce(0, process, false);
        let orders = Orders { lie: None, ..self.orders(0, process)? };
        let cached = worker::store(&orders).await?;
        let db = db_backends::connect(&orders.database).await?;
        let uncached = CachedDb::builder(NoCache, db).schema(Schema::Trust).reaper(None).build().await?;
        let sessions: Vec<_> = lock(&self.ledger).sessions.keys().copied().collect();
        for session in sessions {
            let key = orders.session_key(session);
            for by_cache in [true, false, true] {
                let begin = now();
                let loaded = if by_cache {
                    worker::attempt(&cached, &key, Action::Load, Counting::Off).await
                } else {
                    worker::attempt(&uncached, &key, Action::Load, Counting::Off).await
                };
                let (answer, _) = loaded.map_err(|error| format!("at the end, all is well, but {error}"))?;
                let mut op = Op::begun(process, Action::Load, begin);
                op.answered(now(), answer, false);
                lock(&self.ledger).sessions.entry(session).or_default().push(op);
                self.report.looked += 1;
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        self.report.injected = (self.cache.injected(), self.database.injected());
        let ledger = lock(&self.ledger);
        self.report.counts = ledger.counts.clone();
        self.report.near_hits = ledger.processes.values().map(|process| process.near_hits).sum();
        if self.settings.beside.is_some() {
            self.report.by_revision = Some(beside::by_revision(&ledger));
        }
    }

    /// Judges what is left, and whether the soak proves anything.
    fn finish(mut self) -> Result<Report, Failure> {
        if self.found.is_none() {
            let sessions = lock(&self.ledger).take_finished(true);
            self.judge(&sessions)?;
        }
        self.count();
        let mut report = self.report;
        report.found = self.found;
        if report.found.is_none() {
            report.check_that_it_was_one()?;
        }
        Ok(report)
    }
}
