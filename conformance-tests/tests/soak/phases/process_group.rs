//! The processes of a phase, and the servers that they use.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command as Program, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use session_core::Persistence as _;

use super::Settings;
use crate::Failure;
use crate::faults::Path;
use crate::history::{Command, PhaseOrders, Reply};
use crate::ledger::Ledger;
use crate::run::{database_url, path};
use crate::worker;

/// The maximum time that a process may take to start, or to carry out a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(45);

/// The cache and the database of a phase, each with a proxy for each process where one can be.
pub(crate) struct Servers {
    pub(crate) cache: Arc<Path>,
    pub(crate) database: Arc<Path>,
    directory: tempfile::TempDir,
}

impl Servers {
    /// Starts the servers of a pair, or of the database alone.
    pub(crate) async fn start(settings: &Settings, has_cache: bool) -> Result<Self, Failure> {
        let cache = if has_cache { settings.cache.as_str() } else { "moka" };
        let (cache, database) =
            tokio::join!(path(cache, settings.processes), path(&settings.database, settings.processes));
        Self::over(cache?, database?).await
    }

    /// Makes the tables on servers that run already.
    pub(crate) async fn over(cache: Path, database: Path) -> Result<Self, Failure> {
        let (cache, database) = (Arc::new(cache), Arc::new(database));
        let servers = Self { cache, database, directory: tempfile::tempdir()? };
        db_backends::connect(&servers.database_url(None)).await?.migrate().await?;
        Ok(servers)
    }

    /// Returns the URL by which a process reaches the cache.
    pub(crate) fn cache_url(&self, node: usize) -> String {
        let Some(container) = &self.cache.container else { return "moka://".into() };
        match self.cache.proxies.get(node) {
            Some(proxy) => container.url(&[proxy.address().port()]),
            None => container.url(&container.ports),
        }
    }

    /// Returns the URL by which a process reaches the database. The parent, which is no node, reaches it
    /// without a proxy.
    pub(crate) fn database_url(&self, node: Option<usize>) -> String {
        let Some(container) = &self.database.container else {
            let file = self.directory.path().join("sessions.db");
            return format!("sqlite://{}?busy_timeout_ms=2000&acquire_timeout_ms=2000", file.display());
        };
        database_url(container, node.and_then(|node| self.database.proxies.get(node)))
    }
}

#[derive(Debug)]
pub(crate) struct ProcessGroup {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    process: u32,
    child: Child,
    input: ChildStdin,
}

pub(crate) fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessGroup {
    /// Starts a process for each of the orders, and waits until all work.
    pub(crate) async fn start(settings: &Settings, orders: Vec<PhaseOrders>) -> Result<Self, Failure> {
        let ledger = Ledger { samples: Some(Default::default()), ..Ledger::default() };
        let mut group = Self { ledger: Arc::new(Mutex::new(ledger)), members: Vec::new() };
        for orders in orders {
            let process = orders.process;
            let mut child = Program::new(&settings.program)
                .env(worker::ROLE, "phase")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|error| format!("process {process} could not be started: {error}"))?;
            let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                return Err("a process has no pipes".into());
            };
            // A process that has ended already is noticed below.
            let _ = writeln!(input, "{}", serde_json::to_string(&orders)?);
            group.members.push(Member { process, child, input });
            let ledger = Arc::clone(&group.ledger);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    // The last line of a process that was killed may be half of one.
                    if let Ok(line) = serde_json::from_str(&line) {
                        lock(&ledger).take(process, line);
                    }
                }
                lock(&ledger).mark_ended(process);
            });
        }
        let is_ready = |ledger: &mut Ledger, process| {
            ledger.processes.get(&process).is_some_and(|state| state.is_ready).then_some(())
        };
        group.wait_for_each(group.members.len(), "become ready", COMMAND_TIMEOUT, is_ready).await?;
        Ok(group)
    }

    /// Makes the first processes carry out a command, and returns their replies.
    pub(crate) async fn command(&mut self, first: usize, command: &Command) -> Result<Vec<Reply>, Failure> {
        let text = serde_json::to_string(command)?;
        for member in self.members.iter_mut().take(first) {
            writeln!(member.input, "{text}")
                .map_err(|error| format!("process {} takes no commands: {error}", member.process))?;
        }
        let reply = |ledger: &mut Ledger, process| {
            ledger.replies.get_mut(&process).and_then(|replies| replies.pop_front())
        };
        self.wait_for_each(first, "carry out a command", COMMAND_TIMEOUT, reply).await
    }

    pub(crate) async fn command_all(&mut self, command: &Command) -> Result<Vec<Reply>, Failure> {
        self.command(self.members.len(), command).await
    }

    async fn wait_for_each<T>(
        &self,
        first: usize,
        what: &str,
        time_limit: Duration,
        mut look: impl FnMut(&mut Ledger, u32) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        let start = Instant::now();
        let mut found = Vec::new();
        for member in self.members.iter().take(first) {
            loop {
                {
                    let mut ledger = lock(&self.ledger);
                    if let Some(it) = look(&mut ledger, member.process) {
                        found.push(it);
                        break;
                    }
                    let has_ended =
                        ledger.processes.get(&member.process).is_some_and(|state| state.has_ended);
                    if has_ended || start.elapsed() > time_limit {
                        let fate = if has_ended { "ended by itself" } else { "does nothing" };
                        let process = member.process;
                        return Err(format!("process {process} did not {what}: it {fate}").into());
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(found)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}
