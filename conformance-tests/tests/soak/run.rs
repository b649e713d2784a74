//! A soak: it starts the servers and the processes, breaks one thing after the other, and judges.

mod beside;
mod breaking;

pub(crate) use self::beside::{ByRevision, Older};

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use conformance_tests::proxy::Proxy;
use fastrand::Rng;
use session_cached_db::{CachedDb, NoCache, Schema};

use super::checker::{Surroundings, Violation};
use super::engine::Container;
use super::faults::{Breakable, NearFaults, Path, Plan};
use super::history::{Action, Lie, MILLI, Nanos, Op, Orders, SECOND, SessionId, now};
use super::ledger::{self, Ledger};
use super::report::Report;
use super::worker::{self, Counting, PAUSE, WRITE_BOUND};
use crate::Failure;
use crate::table::{self, Ports};

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) cache: String,
    pub(crate) database: String,
    pub(crate) lasts: Duration,
    pub(crate) seed: u64,
    pub(crate) processes: u32,
    pub(crate) tasks: u32,
    pub(crate) slots: u32,
    /// The cache lies, to show that this is noticed.
    pub(crate) lie: Option<Lie>,
    /// Nothing but the channels of near caches is broken.
    pub(crate) breaks_channels_only: bool,
    /// The time for which a session is used.
    pub(crate) generation: Nanos,
    /// The proxies break nothing, to show that this is noticed.
    pub(crate) idle_proxies: bool,
    /// Operations never begin, to show that this is noticed.
    pub(crate) pause: Nanos,
    /// The program to start as a process.
    pub(crate) program: PathBuf,
    /// The programs of an older revision, which share the servers with the present one.
    pub(crate) beside: Option<Older>,
}

impl Settings {
    pub(crate) fn new(pair: &str, lasts: Duration, seed: u64) -> Result<Self, Failure> {
        let (cache, database) =
            pair.rsplit_once('+').ok_or_else(|| format!("a pair looks like redis+postgres, not {pair:?}"))?;
        let shared = cache.strip_prefix(table::NEAR);
        let reports_changes = |name: &str| name.starts_with("redis") || name.starts_with("valkey");
        let is_shared =
            table::CACHES.contains(&shared.unwrap_or(cache)) && shared.is_none_or(reports_changes);
        let is_known = is_shared || table::NEAR_PAIRS.contains(&(cache, database));
        if !is_known || !table::DATABASES.contains(&database) {
            let (caches, databases) = (table::CACHES.join(", "), table::DATABASES.join(", "));
            return Err(format!(
                "{pair:?} is no pair; caches: {caches}, near+ before those of Redis and Valkey, and {} with postgres; \
                 databases: {databases}",
                table::NOTIFIED
            )
            .into());
        }
        Ok(Self {
            cache: cache.into(),
            database: database.into(),
            lasts,
            seed,
            processes: 4,
            tasks: 6,
            slots: 8,
            lie: None,
            breaks_channels_only: false,
            generation: GENERATION,
            idle_proxies: false,
            pause: PAUSE,
            program: std::env::current_exe()?,
            beside: Older::from_env()?,
        })
    }

    pub(crate) fn is_near(&self) -> bool {
        self.cache.starts_with(table::NEAR) || self.cache == table::NOTIFIED
    }
}

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
const GENERATION: Nanos = 5 * SECOND;

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

struct Worker {
    process: u32,
    /// It runs the program of the older revision.
    is_older: bool,
    child: Arc<Mutex<Child>>,
    /// The process ends when this is closed.
    _orders: ChildStdin,
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

    fn orders(&self, node: usize, process: u32) -> Result<Orders, Failure> {
        let settings = &self.settings;
        Ok(Orders {
            cache: self.cache_url(node),
            database: self.database_url(Some(node)),
            lie: settings.lie,
            stale_cache: false,
            run: u32::try_from(settings.seed & 0xffff_ffff)?,
            seed: settings.seed,
            process: u32::try_from(node)?,
            processes: settings.processes,
            first_writer: process * settings.tasks,
            tasks: settings.tasks,
            slots: settings.slots,
            start: self.start,
            generation: settings.generation,
            creates_from: if process < settings.processes { self.start } else { now() },
            max_cache_age: MAX_CACHE_AGE,
            pause: settings.pause,
            is_read_mostly: settings.is_near(),
        })
    }

    /// Starts a process on a node, and waits until it works.
    async fn start_worker(&mut self, node: usize, is_older: bool) -> Result<(), Failure> {
        let process = self.next_process;
        self.next_process += 1;
        self.introduce(node, process, is_older);
        let orders = self.orders(node, process)?;
        let mut child = Command::new(self.settings.program(is_older))
            .env(worker::ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("process {process} could not be started: {error}"))?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a process has no pipes".into());
        };
        // A process that has ended already is noticed below.
        let _ = writeln!(input, "{}", serde_json::to_string(&orders)?);
        let child = Arc::new(Mutex::new(child));
        let (ledger, victim) = (Arc::clone(&self.ledger), Arc::clone(&child));
        std::thread::spawn(move || {
            let mut unread = None;
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // The last line of a process that was killed may be half of one.
                if let Some(line) = unread.take() {
                    lock(&ledger).unread = Some((process, line));
                }
                let Ok(report) = serde_json::from_str(&line) else {
                    unread = Some(line);
                    continue;
                };
                if lock(&ledger).take(process, report) {
                    let _ = lock(&victim).kill();
                }
            }
            lock(&ledger).mark_ended(process);
        });
        self.workers.push(Worker { process, is_older, child, _orders: input });
        let is_ready = |ledger: &Ledger| ledger.processes.get(&process).is_some_and(|state| state.is_ready);
        let has_ended = |ledger: &Ledger| ledger.processes.get(&process).is_some_and(|state| state.has_ended);
        let start = Instant::now();
        loop {
            {
                let ledger = lock(&self.ledger);
                if is_ready(&ledger) {
                    return Ok(());
                }
                if has_ended(&ledger) || start.elapsed() > RECOVERY_TIMEOUT {
                    return Err(
                        format!("process {process} could not be started: it does not become ready").into()
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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

    fn mark_to_kill(&self, node: Option<usize>) {
        lock(&self.ledger).to_kill =
            node.and_then(|node| self.workers.get(node)).map(|worker| worker.process);
    }

    /// Starts another process in place of one that was killed.
    async fn replace(&mut self, node: Option<usize>) -> Result<(), Failure> {
        let Some(node) = node else { return Ok(()) };
        // A process without a write in which to be killed lives on.
        let is_alive = lock(&self.ledger).to_kill.take().is_some();
        if is_alive {
            return Ok(());
        }
        let start = Instant::now();
        let process = self.workers[node].process;
        while !lock(&self.ledger).processes.get(&process).is_some_and(|state| state.has_ended) {
            if start.elapsed() > RECOVERY_TIMEOUT {
                return Err(format!("process {process} was killed, but still runs").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.report.killed += 1;
        // Beside an older revision, its place goes to the other one.
        let is_older = self.settings.beside.is_some() && !self.workers[node].is_older;
        self.start_worker(node, is_older).await?;
        let worker = self.workers.pop().ok_or("it was just started")?;
        let killed = std::mem::replace(&mut self.workers[node], worker);
        let _ = lock(&killed.child).wait();
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

    /// Ends the processes.
    fn stop(&mut self) {
        for Worker { child, process, .. } in self.workers.drain(..) {
            {
                let mut child = lock(&child);
                let _ = child.kill();
                let _ = child.wait();
            }
            let start = Instant::now();
            let has_ended =
                || lock(&self.ledger).processes.get(&process).is_some_and(|state| state.has_ended);
            while !has_ended() && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
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
