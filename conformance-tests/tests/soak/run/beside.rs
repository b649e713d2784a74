//! An older revision beside the present one: the same servers, the same sessions, processes of both programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{RECOVERY_TIMEOUT, Settings, Soak, lock};
use crate::Failure;
use crate::ledger::Ledger;

/// The programs of an older revision.
#[derive(Clone, Debug)]
pub(crate) struct Older {
    /// The program of its soak.
    program: PathBuf,
    sessionctl: PathBuf,
}

impl Older {
    /// Reads `SOAK_BESIDE` and `SOAK_BESIDE_SESSIONCTL`.
    pub(super) fn from_env() -> Result<Option<Self>, Failure> {
        let program = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        match (program("SOAK_BESIDE"), program("SOAK_BESIDE_SESSIONCTL")) {
            (None, None) => Ok(None),
            (Some(program), Some(sessionctl)) => Ok(Some(Self { program, sessionctl })),
            _ => Err("SOAK_BESIDE and SOAK_BESIDE_SESSIONCTL belong together".into()),
        }
    }

    /// Makes the tables as the older revision makes them.
    pub(super) fn migrate(&self, database: &str) -> Result<(), Failure> {
        self.sessionctl(database, &["migrate"])
    }

    fn sessionctl(&self, database: &str, arguments: &[&str]) -> Result<(), Failure> {
        let ran = Command::new(&self.sessionctl)
            .env("SESSIONCTL_DATABASE_URL", database)
            .args(arguments)
            .output()
            .map_err(|error| format!("the older sessionctl could not be started: {error}"))?;
        if ran.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        Err(format!("the older sessionctl failed at {arguments:?}: {}: {said}", ran.status).into())
    }
}

impl Settings {
    /// Returns `true` if the process of a node has a near cache. Beside an older revision, every second node has one, whichever
    /// program it runs.
    pub(super) fn is_near_on(&self, node: usize) -> bool {
        self.is_near() && (self.beside.is_none() || node.is_multiple_of(2))
    }

    pub(super) fn program(&self, is_older: bool) -> &PathBuf {
        match &self.beside {
            Some(older) if is_older => &older.program,
            _ => &self.program,
        }
    }
}

impl Soak {
    /// Tells the judge which kind of process this is.
    pub(super) fn introduce(&self, node: usize, process: u32, is_older: bool) {
        let surroundings = &mut lock(&self.ledger).surroundings;
        if self.settings.is_near() && !self.settings.is_near_on(node) {
            surroundings.plain.insert(process);
        }
        if is_older {
            surroundings.older.insert(process);
        }
    }

    /// Deploys the present revision, as a rolling deployment begins: it migrates while every node is older, and takes the
    /// places of half of them. From then on, a process that is killed makes room for one of the other revision.
    pub(super) async fn deploy(&mut self) -> Result<(), Failure> {
        self.migrate().await?;
        for node in 0..self.workers.len() / 2 {
            self.mark_to_kill(Some(node));
            let begun = Instant::now();
            // It ends with its next write.
            while lock(&self.ledger).to_kill.is_some() && begun.elapsed() < RECOVERY_TIMEOUT {
                self.watch(Duration::from_millis(100), "the present revision is deployed").await?;
            }
            self.replace(Some(node)).await?;
        }
        Ok(())
    }
}

/// The loads and writes that were answered, by revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByRevision {
    pub(crate) older: (u64, u64),
    pub(crate) present: (u64, u64),
    /// The number of processes of each that were started.
    pub(crate) started: (usize, usize),
}

pub(super) fn by_revision(ledger: &Ledger) -> ByRevision {
    let mut counted = ByRevision::default();
    let processes: BTreeMap<_, _> = ledger.processes.iter().collect();
    for (process, state) in processes {
        let is_older = ledger.surroundings.older.contains(process);
        let (operations, started) = if is_older {
            (&mut counted.older, &mut counted.started.0)
        } else {
            (&mut counted.present, &mut counted.started.1)
        };
        operations.0 += state.loads;
        operations.1 += state.writes;
        *started += 1;
    }
    counted
}
