//! The processes of a soak: they are started, killed, replaced and ended.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{MAX_CACHE_AGE, RECOVERY_TIMEOUT, Soak, lock};
use crate::Failure;
use crate::history::{Orders, now};
use crate::ledger::Ledger;
use crate::worker;

/// A process of the soak.
pub(super) struct Worker {
    pub(super) process: u32,
    /// It runs the program of the older revision.
    pub(super) is_older: bool,
    pub(super) child: Arc<Mutex<Child>>,
    /// The process ends when this is closed.
    _orders: ChildStdin,
}

impl Soak {
    pub(super) fn orders(&self, node: usize, process: u32) -> Result<Orders, Failure> {
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
    pub(super) async fn start_worker(&mut self, node: usize, is_older: bool) -> Result<(), Failure> {
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

    pub(super) fn mark_to_kill(&self, node: Option<usize>) {
        lock(&self.ledger).to_kill =
            node.and_then(|node| self.workers.get(node)).map(|worker| worker.process);
    }

    /// Starts another process in place of one that was killed.
    pub(super) async fn replace(&mut self, node: Option<usize>) -> Result<(), Failure> {
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

    /// Ends the processes.
    pub(super) fn stop(&mut self) {
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
}
