//! The faults of a soak, their order, and how each is made.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use super::engine::Container;
use crate::Failure;
use conformance_tests::proxy::{Mode, Proxy};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Cache,
    Database,
    Both,
    /// One of the processes.
    Process,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A fault of the proxies: of all processes, or of one.
    Network(Mode, Option<usize>),
    /// A fault that the container engine makes.
    Pause,
    Kill,
    Restart,
    Disconnect,
    /// A process is stopped (`SIGSTOP`), and goes on afterwards.
    Stop(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) target: Target,
    pub(crate) kind: Kind,
    pub(crate) lasts: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: ", self.target)?;
        match self.kind {
            Kind::Network(mode, None) => write!(f, "{mode:?} for all processes")?,
            Kind::Network(mode, Some(node)) => write!(f, "{mode:?} for process {node}")?,
            Kind::Stop(node) => write!(f, "SIGSTOP of process {node}")?,
            kind => write!(f, "{kind:?}")?,
        }
        write!(f, ", {:.1} s", self.lasts.as_secs_f64())
    }
}

impl Fault {
    /// Returns `true` if the cache may have lost its entries.
    pub(crate) fn empties_cache(&self) -> bool {
        self.hits_cache() && matches!(self.kind, Kind::Kill | Kind::Restart)
    }

    /// Returns `true` if calls of the cache may fail. Reports of its changes that are held fail none.
    pub(crate) fn hits_cache(&self) -> bool {
        matches!(self.target, Target::Cache | Target::Both) && !self.breaks_no_call()
    }

    /// Returns `true` if the fault breaks no call: it only keeps processes from what they should hear.
    pub(crate) fn breaks_no_call(&self) -> bool {
        matches!(self.kind, Kind::Network(Mode::HoldReports, _) | Kind::Stop(_))
    }

    pub(crate) fn is_engine_fault(&self) -> bool {
        !matches!(self.kind, Kind::Network(..) | Kind::Stop(_))
    }
}

/// The targets of faults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Breakable {
    pub(crate) cache: bool,
    pub(crate) database: bool,
    /// A cache, but no cluster: its nodes announce their addresses to clients, which bypass the proxies, and
    /// its container does not start a second time.
    pub(crate) is_simple_cache: bool,
    pub(crate) near: NearFaults,
}

/// The faults of near caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NearFaults {
    /// The caches are no near ones.
    No,
    /// As well as all others.
    Too,
    /// Nothing else is broken.
    Only,
}

/// All faults in a random order, repeatedly: of the cache, then of the database, then of both.
pub(crate) struct Plan {
    random: Rng,
    breakable: Breakable,
    processes: usize,
    kinds: Vec<Kind>,
    step: usize,
}

const TARGETS: [Target; 3] = [Target::Cache, Target::Database, Target::Both];

impl Plan {
    pub(crate) fn new(seed: u64, breakable: Breakable, processes: usize) -> Self {
        Self { random: Rng::with_seed(seed), breakable, processes, kinds: Vec::new(), step: 0 }
    }

    /// Returns `None` if nothing can be broken.
    pub(crate) fn next(&mut self) -> Option<Fault> {
        let Breakable { cache, database, is_simple_cache, .. } = self.breakable;
        let is_possible = |target| match target {
            Target::Cache => cache,
            Target::Database => database,
            Target::Both => cache && database,
            Target::Process => false,
        };
        let target = (0..TARGETS.len())
            .map(|n| TARGETS[(self.step + n) % TARGETS.len()])
            .find(|target| is_possible(*target))?;
        self.step += 1;
        loop {
            if self.kinds.is_empty() {
                self.kinds = self.all_kinds();
                self.random.shuffle(&mut self.kinds);
            }
            let kind = self.kinds.pop()?;
            let is_held = matches!(kind, Kind::Network(Mode::HoldReports, _));
            let is_simple = is_simple_cache || target == Target::Database && !is_held;
            if is_simple || matches!(kind, Kind::Pause | Kind::Disconnect | Kind::Stop(_)) {
                let lasts = Duration::from_millis(self.random.u64(800..=2_500));
                let target = match kind {
                    Kind::Stop(_) => Target::Process,
                    // Memory without a shared cache is told by the database.
                    _ if is_held && cache => Target::Cache,
                    _ if is_held => Target::Database,
                    _ => target,
                };
                return Some(Fault { target, kind, lasts });
            }
        }
    }

    fn all_kinds(&mut self) -> Vec<Kind> {
        let late = Duration::from_millis(self.random.u64(20..=700));
        let modes = [
            Mode::Delay(late),
            Mode::Cut(self.random.usize(0..64)),
            Mode::BlackHole,
            Mode::Deaf,
            Mode::Reset,
        ];
        let mut kinds = vec![Kind::Pause, Kind::Kill, Kind::Restart, Kind::Disconnect];
        for mode in modes {
            let node = self.random.bool().then(|| self.random.usize(0..self.processes));
            kinds.push(Kind::Network(mode, node));
        }
        match self.breakable.near {
            NearFaults::No => kinds,
            NearFaults::Too => {
                kinds.extend([Kind::Network(Mode::Hold, Some(self.random.usize(0..self.processes)))]);
                kinds.extend(self.near_kinds());
                kinds
            }
            NearFaults::Only => self.near_kinds(),
        }
    }

    fn near_kinds(&mut self) -> Vec<Kind> {
        let mut node = || self.random.usize(0..self.processes);
        let held = [None, Some(node()), Some(node())].map(|node| Kind::Network(Mode::HoldReports, node));
        let stopped = [node(), node()].map(Kind::Stop);
        held.into_iter().chain(stopped).collect()
    }
}

/// A server, and the proxies in front of it, one for each process.
#[derive(Debug, Default)]
pub(crate) struct Path {
    pub(crate) container: Option<Container>,
    pub(crate) proxies: Vec<Proxy>,
}

impl Path {
    pub(crate) fn injected(&self) -> u64 {
        self.proxies.iter().map(Proxy::injected).sum()
    }

    pub(crate) fn set(&self, mode: Mode, node: Option<usize>) {
        let chosen = self.proxies.iter().enumerate().filter(|(n, _)| node.is_none_or(|node| node == *n));
        chosen.for_each(|(_, proxy)| proxy.set(mode));
    }

    /// Makes a fault of the engine. Returns when it is done.
    pub(crate) fn break_server(&self, kind: Kind) -> Result<(), Failure> {
        let Some(container) = &self.container else { return Err("there is no server to break".into()) };
        match kind {
            Kind::Pause => container.docker(&["pause"]),
            Kind::Kill => container.docker(&["kill"]),
            Kind::Restart => container.docker(&["restart", "--time", "1"]),
            Kind::Disconnect => container.docker(&["network", "disconnect", "bridge"]),
            Kind::Network(..) | Kind::Stop(_) => Ok(()),
        }
    }

    /// Ends a fault of the engine. Returns when the server is ready again.
    pub(crate) fn mend_server(&self, kind: Kind) -> Result<(), Failure> {
        let Some(container) = &self.container else { return Ok(()) };
        match kind {
            Kind::Pause => container.docker(&["unpause"])?,
            Kind::Kill => container.docker(&["start"])?,
            Kind::Disconnect => container.docker(&["network", "connect", "bridge"])?,
            Kind::Restart | Kind::Network(..) | Kind::Stop(_) => {}
        }
        container.wait()
    }
}
