//! Breaks one thing, mends it, and waits until everything has recovered.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conformance_tests::proxy::Mode;

use super::{RECOVERY_TIMEOUT, Soak, lock};
use crate::Failure;
use crate::faults::{Fault, Kind, Path, Target};
use crate::history::{Nanos, SECOND, now};
use crate::report::Recovery;

impl Soak {
    /// Breaks something, mends it, and waits until all is well.
    pub(super) async fn break_and_mend(
        &mut self,
        fault: Fault,
        victim: Option<usize>,
    ) -> Result<(), Failure> {
        let what = fault.to_string();
        let since = now();
        let paths: Vec<_> = match fault.target {
            Target::Cache => vec![Arc::clone(&self.cache)],
            Target::Database => vec![Arc::clone(&self.database)],
            Target::Both => vec![Arc::clone(&self.cache), Arc::clone(&self.database)],
            Target::Process => Vec::new(),
        };
        // Until it is ended, the fault lasts for ever.
        let hits_cache = fault.hits_cache();
        {
            let mut ledger = lock(&self.ledger);
            let surroundings = &mut ledger.surroundings;
            if hits_cache {
                surroundings.unreachable.push((since.saturating_sub(SECOND), Nanos::MAX));
            }
            if fault.empties_cache() {
                surroundings.losses.push((since.saturating_sub(SECOND / 2), Nanos::MAX));
            }
        }
        let injected_before = self.injected();
        if let Kind::Network(mode, node) = fault.kind {
            if !self.settings.idle_proxies {
                paths.iter().for_each(|path| path.set(mode, node));
            }
        } else if let Kind::Stop(node) = fault.kind {
            self.signal(node, "STOP")?;
        } else {
            self.on_servers(&paths, move |path| path.break_server(fault.kind)).await?;
        }
        self.watch(fault.lasts / 3, &what).await?;
        self.mark_to_kill(victim);
        self.watch(fault.lasts * 2 / 3, &what).await?;
        paths.iter().for_each(|path| path.set(Mode::Pass, None));
        if let Kind::Stop(node) = fault.kind {
            self.signal(node, "CONT")?;
        }
        if fault.is_engine_fault() {
            self.on_servers(&paths, move |path| path.mend_server(fault.kind)).await?;
        }
        let mended = now();
        {
            let mut ledger = lock(&self.ledger);
            let surroundings = &mut ledger.surroundings;
            if hits_cache && let Some(last) = surroundings.unreachable.last_mut() {
                // Circuit breakers notice it a little later.
                last.1 = mended + 6 * SECOND;
            }
            if fault.empties_cache()
                && let Some(last) = surroundings.losses.last_mut()
            {
                last.1 = mended;
            }
        }
        self.report.faults.push((fault, self.injected() - injected_before));
        self.replace(victim).await?;
        self.recover(fault, mended).await
    }

    fn signal(&self, node: usize, signal: &str) -> Result<(), Failure> {
        let worker = self.workers.get(node).ok_or("there is no such process")?;
        let id = lock(&worker.child).id().to_string();
        let status = Command::new("kill").args(["-s", signal, &id]).status()?;
        if status.success() { Ok(()) } else { Err(format!("SIG{signal} could not be sent: {status}").into()) }
    }

    pub(super) fn injected(&self) -> u64 {
        self.cache.injected() + self.database.injected()
    }

    async fn on_servers(
        &mut self,
        paths: &[Arc<Path>],
        work: impl Fn(&Path) -> Result<(), Failure> + Clone + Send + 'static,
    ) -> Result<(), Failure> {
        let tasks: Vec<_> = paths
            .iter()
            .map(|path| {
                let (path, work) = (Arc::clone(path), work.clone());
                tokio::task::spawn_blocking(move || work(&path))
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    }

    /// Waits until every process is served by the cache and writes to the database again.
    async fn recover(&mut self, fault: Fault, mended: Nanos) -> Result<(), Failure> {
        let start = Instant::now();
        let (mut hit, mut wrote) = (None, None);
        while hit.is_none() || wrote.is_none() {
            self.watch(Duration::from_millis(20), "recovering").await?;
            if self.found.is_some() {
                return Ok(());
            }
            let ledger = lock(&self.ledger);
            let states = || self.workers.iter().filter_map(|worker| ledger.processes.get(&worker.process));
            let passed = Duration::from_nanos(now() - mended);
            if hit.is_none() && states().all(|state| state.hit_since > mended) {
                hit = Some(passed);
            }
            if wrote.is_none() && states().all(|state| state.wrote_since > mended) {
                wrote = Some(passed);
            }
            if start.elapsed() > RECOVERY_TIMEOUT {
                let what = if hit.is_none() { "hits by the cache" } else { "writes" };
                return Err(format!("after {fault}, there are no {what} within {RECOVERY_TIMEOUT:?}").into());
            }
        }
        self.report.recoveries.push(Recovery {
            fault,
            hits: hit.unwrap_or_default(),
            writes: wrote.unwrap_or_default(),
        });
        Ok(())
    }
}
