//! A process of a phase. It carries out its parent's commands, and reports every operation.

use std::collections::VecDeque;
use std::io::BufRead as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::{Either, select};
use session_cached_db::{CachedDb, Error, NoCache, Reaper, Schema};
use session_core::{DynCache, DynDatabase, Subject};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::watched::Watched;
use crate::Failure;
use crate::history::{
    Action, Answer, Command, Figures, Line, Nanos, PhaseOrders, Reply, Revocation, SECOND, SessionId, Work,
    now, session_key,
};
use crate::worker::{Counting, OPS, Store, attempt, empty, ended, send_line, store_over, stored_key};

/// The time between two reports of a process's figures.
const SAMPLE: Duration = Duration::from_millis(20);

/// The size of a store's pool; see the parameters of the URLs.
const CONNECTIONS: u32 = 8;

/// The number of attempts to open all of them.
const ROUNDS: u32 = 20;

/// The number of sessions of a subject that is revoked.
pub(crate) const SUBJECT_SESSIONS: u32 = 50;

/// The first slot of the sessions of subjects.
pub(crate) const SUBJECT_SLOT: u32 = 1 << 20;

/// The time for which the sessions of a revocation are counted after it began.
pub(crate) const REVOCATION_BOUND: Duration = Duration::from_secs(5);

/// The number of sessions that are created at a time, or loaded until the cache answers for them.
const AT_ONCE: usize = 8;

/// The number of loads until the cache serves a session: one fills it, the next is served, and one of another
/// process may come in between.
const ENOUGH_LOADS: u32 = 4;

/// The time for which a stalled load is kept, and the number of them in a process at a time. Each may keep a
/// connection.
const STALL: Duration = Duration::from_secs(6);
const MAX_STALLED: usize = 2;

/// The rest of an operation for which its caller does not wait.
type Rest = Pin<Box<dyn Future<Output = ()> + Send>>;

type Uncached = CachedDb<NoCache, Arc<dyn DynDatabase>>;

pub(crate) fn main() -> Result<(), Failure> {
    let mut first = String::new();
    std::io::stdin().lock().read_line(&mut first)?;
    let orders: PhaseOrders = serde_json::from_str(&first)?;
    let (send, commands) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(command) = serde_json::from_str::<Command>(&line) else { break };
            if send.send(command).is_err() {
                break;
            }
        }
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(obey(orders, commands))
}

struct PhaseWorker {
    orders: PhaseOrders,
    store: Store,
    /// A store of the database alone.
    uncached: Uncached,
    cache: Arc<Watched<Arc<dyn DynCache>>>,
    is_resting: AtomicBool,
    /// The numbers that are written, which rise in every field.
    count: AtomicU64,
}

async fn obey(orders: PhaseOrders, mut commands: mpsc::UnboundedReceiver<Command>) -> Result<(), Failure> {
    let cache = Arc::new(Watched::new(cache_backends::connect(&orders.cache)?));
    let store = store_over(
        Arc::clone(&cache) as Arc<dyn DynCache>,
        &orders.database,
        Duration::from_nanos(orders.max_cache_age),
        Duration::from_nanos(orders.cache_timeout),
    )
    .await?;
    let db = db_backends::connect(&orders.database).await?;
    let uncached =
        CachedDb::builder(NoCache, db).schema(Schema::Trust).reaper(None::<Reaper>).build().await?;
    let (is_resting, count) = (AtomicBool::new(true), AtomicU64::new(0));
    let worker = Arc::new(PhaseWorker { orders, store, uncached, cache, is_resting, count });
    worker.open_connections().await?;
    send_line(&Line::Ready);
    tokio::spawn(sample(Arc::clone(&worker)));
    let mut tasks = JoinSet::new();
    while let Some(command) = commands.recv().await {
        let reply = match command {
            Command::Create { sessions } => {
                let mut creations = JoinSet::new();
                for part in sessions.chunks(sessions.len().div_ceil(AT_ONCE).max(1)) {
                    let (worker, part) = (Arc::clone(&worker), part.to_vec());
                    creations.spawn(async move {
                        for session in part {
                            worker.operate(session, Action::Create, None).await;
                        }
                    });
                }
                creations.join_all().await;
                Reply::Created
            }
            Command::Operate(work) => {
                worker.is_resting.store(false, Ordering::SeqCst);
                let work = Arc::new(work);
                for number in 0..work.tasks {
                    let random =
                        Rng::with_seed(worker.orders.seed ^ u64::from(worker.orders.first_writer + number));
                    let (worker, work) = (Arc::clone(&worker), Arc::clone(&work));
                    tasks.spawn(Task { worker, work, number, random, stalled: VecDeque::new() }.run());
                }
                if work.revokes {
                    tasks.spawn(revoke(Arc::clone(&worker)));
                }
                Reply::Operating
            }
            Command::Rest { within } => {
                worker.is_resting.store(true, Ordering::SeqCst);
                let all_end = async { while tasks.join_next().await.is_some() {} };
                let _ = tokio::time::timeout(Duration::from_nanos(within), all_end).await;
                let stuck = u32::try_from(tasks.len())?;
                tasks.abort_all();
                Reply::Resting { stuck }
            }
            Command::Serve { sessions, within } => worker.serve(sessions, within).await,
            Command::Homes { homes } => {
                for (session, home) in homes {
                    worker.cache.watch(stored_key(&worker.store, &worker.key(session)), home);
                }
                Reply::Noted
            }
        };
        send_line(&Line::Done(reply));
    }
    Ok(())
}

async fn sample(worker: Arc<PhaseWorker>) {
    loop {
        let figures = Figures { values: worker.cache.values(), ..worker.store.stats().into() };
        send_line(&Line::Stats { at: now(), figures });
        tokio::time::sleep(SAMPLE).await;
    }
}

impl PhaseWorker {
    fn key(&self, session: SessionId) -> String {
        session_key(self.orders.run, session)
    }

    /// Opens all connections to the database that the store may have. A login takes long in unoptimized code,
    /// and many at a time on a busy machine take longer than a statement may wait for one.
    async fn open_connections(self: &Arc<Self>) -> Result<(), Failure> {
        let mut open = 0;
        for round in 0..ROUNDS {
            let mut loads = JoinSet::new();
            for n in 0..CONNECTIONS {
                let worker = Arc::clone(self);
                let generation = u64::from(worker.orders.process) << 32 | u64::from(round * CONNECTIONS + n);
                let unused = SessionId { slot: u32::MAX, generation };
                loads.spawn(async move {
                    worker.store.load(&stored_key(&worker.store, &worker.key(unused))).await.is_ok()
                });
            }
            open = loads.join_all().await.into_iter().filter(|is_open| *is_open).count();
            if open == CONNECTIONS as usize && round > 0 {
                return Ok(());
            }
        }
        Err(format!("{open} of {CONNECTIONS} connections to the database could be opened").into())
    }

    /// Does and reports an operation. If it has a time limit, its caller stops waiting after that, and the
    /// rest of it is returned.
    async fn operate(
        self: &Arc<Self>,
        session: SessionId,
        action: Action,
        time_limit: Option<Duration>,
    ) -> Option<Rest> {
        let op = OPS.fetch_add(1, Ordering::Relaxed);
        send_line(&Line::Begin { op, session, action, at: now() });
        let worker = Arc::clone(self);
        let key = self.key(session);
        let mut attempt = Box::pin(async move { attempt(&worker.store, &key, action, Counting::Off).await });
        let Some(time_limit) = time_limit else {
            send_line(&ended(op, action, attempt.await));
            return None;
        };
        let outcome = match select(&mut attempt, pin!(tokio::time::sleep(time_limit))).await {
            Either::Left((outcome, _)) => Some(outcome),
            Either::Right(_) => None,
        };
        if let Some(outcome) = outcome {
            send_line(&ended(op, action, outcome));
            return None;
        }
        let answer = Answer::Unknown;
        send_line(&Line::End { op, answer, degraded: false, at: now(), error: None, departed: true });
        Some(Box::pin(async move {
            let _ = attempt.await;
        }))
    }

    /// Loads each session until the cache has answered for it.
    async fn serve(self: &Arc<Self>, sessions: Vec<SessionId>, within: Nanos) -> Reply {
        let start = now();
        let mut loads = JoinSet::new();
        for part in sessions.chunks(sessions.len().div_ceil(AT_ONCE).max(1)) {
            let (worker, part) = (Arc::clone(self), part.to_vec());
            loads.spawn(async move {
                let mut unserved = Vec::new();
                for session in part {
                    let key = stored_key(&worker.store, &worker.key(session));
                    worker.cache.watch(key, 0);
                    let before = worker.cache.times(&key);
                    let mut loads = 0;
                    while worker.cache.times(&key) == before {
                        if loads >= ENOUGH_LOADS && now() - start > within {
                            unserved.push(session);
                            break;
                        }
                        worker.operate(session, Action::Load, None).await;
                        loads += 1;
                    }
                }
                unserved
            });
        }
        let unserved = loads.join_all().await.concat();
        Reply::Served { unserved, after: now() - start }
    }
}

struct Task {
    worker: Arc<PhaseWorker>,
    work: Arc<Work>,
    number: u32,
    random: Rng,
    /// Loads that are not polled any more, with the times at which they are dropped.
    stalled: VecDeque<(Nanos, Rest)>,
}

impl Task {
    async fn run(mut self) {
        loop {
            self.pause().await;
            if self.worker.is_resting.load(Ordering::SeqCst) {
                return;
            }
            let Some(session) = self.random.choice(self.work.sessions.iter().copied()) else { return };
            let action = self.choose_action();
            self.stalled.retain(|(until, _)| *until > now());
            let mix = &self.work.mix;
            let may_stall =
                action == Action::Load && (self.number as usize) < MAX_STALLED && self.stalled.is_empty();
            let stalls = may_stall && self.random.u16(..1_000) < mix.stalling;
            let departs = stalls || self.random.u16(..1_000) < mix.departing;
            let time_limit = departs.then(|| Duration::from_micros(self.random.u64(200..12_000)));
            let left = self.worker.operate(session, action, time_limit).await;
            if let Some(left) = left
                && stalls
            {
                let until = now() + u64::try_from(STALL.as_nanos()).unwrap_or(SECOND);
                self.stalled.push_back((until, left));
            }
        }
    }

    async fn pause(&mut self) {
        let Work { pause, beat, .. } = *self.work;
        let wait = match beat {
            0 => self.random.u64(0..=2 * pause),
            beat => beat - now() % beat,
        };
        tokio::time::sleep(Duration::from_nanos(wait)).await;
    }

    fn choose_action(&mut self) -> Action {
        let mix = self.work.mix;
        let mut chosen = self.random.u16(..1_000);
        let mut is = |share: u16| match chosen.checked_sub(share) {
            Some(rest) => {
                chosen = rest;
                false
            }
            None => true,
        };
        if is(mix.saves) {
            let count = self.worker.count.fetch_add(1, Ordering::SeqCst) + 1;
            Action::Save(self.worker.orders.first_writer + self.number, count)
        } else if is(mix.touches) {
            Action::Touch
        } else if is(mix.deletes) {
            Action::Delete
        } else if is(mix.rotations) {
            Action::Rotate
        } else {
            Action::Load
        }
    }
}

/// The sessions of a subject that a process revokes.
pub(crate) fn subject_sessions(number: u64) -> impl Iterator<Item = SessionId> {
    (0..SUBJECT_SESSIONS).map(move |n| SessionId { slot: SUBJECT_SLOT + n, generation: number })
}

/// Revokes one subject after the other, and usually leaves a few milliseconds after the beginning.
async fn revoke(worker: Arc<PhaseWorker>) {
    let mut random = Rng::with_seed(worker.orders.seed ^ !u64::from(worker.orders.process));
    let first = u64::from(worker.orders.process) << 32;
    for number in first.. {
        if worker.is_resting.load(Ordering::SeqCst) {
            return;
        }
        match revoke_one(&worker, number, &mut random).await {
            Ok(revocation) => send_line(&Line::Revoked(revocation)),
            Err(error) => {
                let (departed, sessions, left, after) = (false, SUBJECT_SESSIONS, 0, 0);
                let error = Some(error.to_string());
                send_line(&Line::Revoked(Revocation { number, departed, sessions, left, after, error }));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn revoke_one(worker: &Arc<PhaseWorker>, number: u64, random: &mut Rng) -> Result<Revocation, Failure> {
    let subject = format!("subject-{}-{number}", worker.orders.run);
    let keys: Vec<_> =
        subject_sessions(number).map(|session| stored_key(&worker.store, &worker.key(session))).collect();
    let mut creations = JoinSet::new();
    for key in &keys {
        let (key, store, owner) = (*key, worker.store.clone(), Subject::parse(&subject)?);
        creations
            .spawn(async move { store.create(&key, empty().with_subject(Some(owner))).await.map(|_| ()) });
    }
    while let Some(created) = creations.join_next().await {
        created??;
    }
    let time_limit = Duration::from_micros(random.u64(1_000..30_000));
    let begin = now();
    let outcome = tokio::time::timeout(time_limit, worker.store.revoke_subject(&subject)).await;
    let departed = outcome.is_err();
    let error = outcome.ok().and_then(Result::err).map(|error: Error| error.to_string());
    // The sessions that are left in the database, and then in the store, which must not show what the
    // database lacks.
    let mut left = SUBJECT_SESSIONS;
    let bound = u64::try_from(REVOCATION_BOUND.as_nanos())?;
    while left > 0 && now() - begin < bound {
        left = u32::try_from(worker.uncached.list_by_subject(&subject).await?.len())?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = now() - begin;
    let mut shown = 0;
    for key in &keys {
        shown += u32::from(worker.store.load(key).await?.is_some());
    }
    Ok(Revocation { number, departed, sessions: SUBJECT_SESSIONS, left: left.max(shown), after, error })
}
