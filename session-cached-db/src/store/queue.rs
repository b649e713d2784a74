//! The write queues: writes of one session within this process run one after another, in the order of their arrival.
//!
//! A key that is being written has a *queue*, and a task that carries out its writes. The record that the task has committed
//! last is at hand for the next write, with its version and its place in the cache: so writers of one process never conflict,
//! lose no exchange to one another, and do not read the session again. Saves that wait together become one statement.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use session_core::{Cache, ExpiryWrite, Persistence, Record, Stamp, StoredKey, Timestamp, Version};
use tokio::sync::oneshot;
use tracing::{Instrument as _, Span};

use super::inner::Inner;
use super::save::Save;
use super::writes::{Saved, Written};
use crate::coherence::Repair;
use crate::runtime::Admission;
use crate::telemetry::Ending;
use crate::{Coherence, Error};

/// The number of touches that are remembered, so that requests which opened the session before a touch do not repeat it.
const MAX_TOUCHES: usize = 16_384;

/// The write queues of this process.
#[derive(Debug)]
pub(crate) struct Queues {
    /// The number of writes that can wait for one key.
    capacity: usize,
    by_key: Mutex<HashMap<StoredKey, VecDeque<Queued>>>,
    /// The instants at which this process last touched sessions.
    touches: Mutex<HashMap<StoredKey, Timestamp>>,
    /// Digests of the turns that the tasks of the queues are carrying out.
    #[cfg(feature = "__simulation")]
    turns: Mutex<HashMap<StoredKey, u64>>,
}

#[derive(Debug)]
struct Queued {
    /// The instant from which the job may no longer begin.
    deadline: Timestamp,
    job: Job,
    span: Span,
    /// The task that has queued the job.
    #[cfg(feature = "__simulation")]
    task: u64,
}

/// The way back to the caller that waits for the result of a write.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A write of one key.
#[derive(Debug)]
pub(crate) enum Job {
    Save(Save, Reply<Saved>),
    Update(Update, Reply<Saved>),
    Touch(Touch, Reply<Coherence>),
    Delete(Option<Stamp>, Ending, Reply<Written<bool>>),
    /// Settles the key's entry after a write that could not be fenced.
    Repair(Repair),
}

/// A write of a whole record.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) record: Record,
    pub(crate) expected: Option<Version>,
    pub(crate) expiry: ExpiryWrite,
    /// The session's new key, if it gets one.
    pub(crate) rename: Option<StoredKey>,
}

#[derive(Debug)]
pub(crate) struct Touch {
    pub(crate) seen: Option<Stamp>,
    pub(crate) expires_at: Timestamp,
    /// The touch is skipped if the session was used since then.
    pub(crate) idle_since: Timestamp,
}

/// The next work of a queue, in the span of its first job.
struct Turn {
    span: Span,
    work: Work,
}

enum Work {
    /// Saves that become one statement.
    Saves(Vec<Waiting>),
    Other(Job),
}

/// A save, and the way back to its caller.
pub(crate) type Waiting = (Save, Reply<Saved>);

/// The session as the task of a queue has written it last.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    /// The record as it was last committed.
    pub(crate) record: Option<Arc<Record>>,
    /// The stamp that the record has in the cache.
    pub(crate) stamp: Option<Stamp>,
}

impl Latest {
    /// Forgets the session: another process may have written it, or the outcome is unknown.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Job {
    /// Answers the caller that nothing was written, and why.
    fn refuse(self, error: Error) {
        // A caller that has dropped its future needs no answer.
        match self {
            Self::Save(_, reply) | Self::Update(_, reply) => drop(reply.send(Err(error))),
            Self::Touch(_, reply) => drop(reply.send(Err(error))),
            Self::Delete(_, _, reply) => drop(reply.send(Err(error))),
            Self::Repair(_) => {}
        }
    }

    #[cfg(feature = "__simulation")]
    fn digest(&self) -> u64 {
        use crate::simulation::{digest_of, digest_record};
        match self {
            Self::Save(save, _) => save.digest(),
            Self::Update(update, _) => {
                let Update { record, expected, expiry, rename } = update;
                let rename = rename.map(|key| key.as_str().to_owned());
                let expected = expected.map(Version::as_u64);
                digest_of((1, digest_record(record), expected, *expiry as u8, rename))
            }
            Self::Touch(touch, _) => {
                digest_of((2, touch.seen, touch.expires_at.as_micros(), touch.idle_since.as_micros()))
            }
            Self::Delete(seen, ..) => digest_of((3, seen)),
            Self::Repair(repair) => digest_of((4, repair.digest())),
        }
    }

    const fn beside_saves(&self) -> Beside {
        match self {
            Self::Save(save, _) if save.rename.is_none() => Beside::Joins,
            Self::Touch(..) => Beside::Waits,
            _ => Beside::Ends,
        }
    }
}

/// The relation of a job to the saves that it waits behind.
enum Beside {
    /// It becomes part of their statement.
    Joins,
    /// A later save may pass it.
    Waits,
    /// No later save may pass it.
    Ends,
}

impl Queues {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            by_key: Mutex::default(),
            touches: Mutex::default(),
            #[cfg(feature = "__simulation")]
            turns: Mutex::default(),
        }
    }

    /// Returns the number of jobs that may wait before this one. Deletes get more room, so that a session that is written to
    /// all the time can still be ended.
    const fn capacity_for(&self, job: &Job) -> usize {
        match job {
            Job::Delete(..) | Job::Repair(_) => self.capacity.saturating_mul(2),
            _ => self.capacity,
        }
    }

    /// Adds a job. Returns `true` if it is the first, so that the caller has to start the queue's task.
    fn push(&self, key: &StoredKey, queued: Queued) -> Result<bool, Error> {
        match self.lock().entry(*key) {
            Slot::Vacant(slot) => {
                slot.insert(VecDeque::from([queued]));
                Ok(true)
            }
            Slot::Occupied(queue) if queue.get().len() >= self.capacity_for(&queued.job) => Err(Error::Busy),
            Slot::Occupied(mut queue) => {
                queue.get_mut().push_back(queued);
                Ok(false)
            }
        }
    }

    /// Returns the next turn, or `None` if the queue has ended. Refuses jobs that have waited for too long.
    fn next(&self, key: &StoredKey, now: Timestamp) -> Option<Turn> {
        let mut late = Vec::new();
        let turn = {
            let mut queues = self.lock();
            let queue = queues.get_mut(key)?;
            let is_late = |queued: &Queued| now > queued.deadline && !matches!(queued.job, Job::Repair(_));
            while let Some(queued) = queue.pop_front_if(|queued| is_late(queued)) {
                late.push(queued.job);
            }
            match queue.pop_front() {
                Some(Queued { job: Job::Save(save, reply), span, .. }) if save.rename.is_none() => {
                    let mut saves = vec![(save, reply)];
                    // Touches in between can wait: the save is a use of the session, too.
                    let mut passed = 0;
                    while let Some(next) = queue.get(passed).map(|queued| queued.job.beside_saves()) {
                        match next {
                            Beside::Joins => match queue.remove(passed) {
                                Some(queued) if is_late(&queued) => late.push(queued.job),
                                Some(Queued { job: Job::Save(save, reply), .. }) => saves.push((save, reply)),
                                _ => break,
                            },
                            Beside::Waits => passed += 1,
                            Beside::Ends => break,
                        }
                    }
                    Some(Turn { span, work: Work::Saves(saves) })
                }
                Some(Queued { job, span, .. }) => Some(Turn { span, work: Work::Other(job) }),
                None => {
                    queues.remove(key);
                    None
                }
            }
        };
        for job in late {
            job.refuse(Error::Busy);
        }
        turn
    }

    /// Ends the queue, and refuses the jobs in it.
    fn close(&self, key: &StoredKey) {
        let queue = self.lock().remove(key);
        for Queued { job, .. } in queue.into_iter().flatten() {
            job.refuse(Error::Closed);
        }
    }

    /// Returns `true` if this process has touched the session after `idle_since`.
    pub(crate) fn was_touched_since(&self, key: &StoredKey, idle_since: Timestamp) -> bool {
        self.touches().get(key).is_some_and(|touched_at| *touched_at > idle_since)
    }

    /// Notes that the session was touched at `now`. Touches older than `interval` are forgotten when room is needed.
    pub(crate) fn note_touch(&self, key: &StoredKey, now: Timestamp, interval: Duration) {
        let mut touches = self.touches();
        if touches.len() >= MAX_TOUCHES {
            touches.retain(|_, touched_at| *touched_at + interval > now);
            if touches.len() >= MAX_TOUCHES {
                touches.clear();
            }
        }
        touches.insert(*key, now);
    }

    pub(crate) fn forget_touch(&self, key: &StoredKey) {
        self.touches().remove(key);
    }

    /// Returns the number of keys that are being written.
    #[cfg(feature = "__simulation")]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns a digest of the waiting jobs, the tasks that have queued them, and the turns under way.
    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self) -> impl std::hash::Hash + use<> {
        let queues = self.lock();
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let digests = queues.iter().map(|(key, queue)| {
            let waiting: Vec<_> = queue
                .iter()
                .map(|queued| (queued.task, queued.deadline.as_micros(), queued.job.digest()))
                .collect();
            (key.as_str().to_owned(), waiting, turns.get(key).copied())
        });
        digests.collect::<std::collections::BTreeSet<_>>()
    }

    /// Notes the turn that begins now, and what is known of the session at its beginning.
    #[cfg(feature = "__simulation")]
    fn note_turn(&self, key: &StoredKey, work: &Work, latest: &Latest) {
        use crate::simulation::{digest_of, digest_record, note_turn};
        note_turn();
        let work = match work {
            Work::Saves(saves) => saves.iter().map(|(save, _)| save.digest()).collect(),
            Work::Other(job) => vec![job.digest()],
        };
        let record = latest.record.as_ref().map(|record| digest_record(record));
        let digest = digest_of((work, record, latest.stamp));
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).insert(*key, digest);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StoredKey, VecDeque<Queued>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touches(&self) -> MutexGuard<'_, HashMap<StoredKey, Timestamp>> {
        self.touches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Queues a write of `key`, and returns its result. The write is carried out even if the returned future is dropped.
    pub(crate) fn enqueue<T: Send + 'static, J: FnOnce(Reply<T>) -> Job>(
        self: &Arc<Self>,
        key: &StoredKey,
        admission: Admission,
        span: Span,
        job: J,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, J, C, P> {
        let (reply, answer) = oneshot::channel();
        let queued = self.start_job(key, admission, span, job(reply));
        async move {
            queued?;
            answer.await.unwrap_or(Err(Error::Interrupted))
        }
    }

    pub(crate) fn start_job(
        self: &Arc<Self>,
        key: &StoredKey,
        admission: Admission,
        span: Span,
        job: Job,
    ) -> Result<(), Error> {
        if admission == Admission::New {
            self.tasks.check_open()?;
        }
        mutant!(QueueSkipped => return self.start_unqueued(key, admission, job));
        let deadline = self.runtime.now() + self.settings.write_timeout;
        let queued = Queued {
            deadline,
            job,
            span,
            #[cfg(feature = "__simulation")]
            task: crate::simulation::current_task(),
        };
        if self.queues.push(key, queued)?
            && let Err(error) = self.start_queue(key, admission)
        {
            self.queues.close(key);
            return Err(error);
        }
        Ok(())
    }

    fn start_queue(self: &Arc<Self>, key: &StoredKey, admission: Admission) -> Result<(), Error> {
        let running = Running { store: Arc::clone(self), key: *key, is_over: false };
        self.tasks.start(admission, carry_out(running).boxed())
    }
}

/// Carries out the jobs of a queue until it is empty.
async fn carry_out<C: Cache, P: Persistence>(mut running: Running<C, P>) {
    let mut latest = Latest::default();
    let (store, key) = (Arc::clone(&running.store), running.key);
    while let Some(Turn { span, work }) = store.queues.next(&key, store.runtime.now()) {
        #[cfg(feature = "__simulation")]
        store.queues.note_turn(&key, &work, &latest);
        let turn = async {
            match work {
                Work::Saves(saves) => store.save_all(&key, saves, &mut latest).await,
                Work::Other(job) => Box::pin(store.carry_out(&key, job, &mut latest)).await,
            }
        };
        // A panic of a codec or a hook ends only the writes that it happened in. Those behind them go on.
        if AssertUnwindSafe(turn).catch_unwind().instrument(span).await.is_err() {
            store.note_panic(&key);
            latest.forget();
        }
    }
    running.is_over = true;
}

/// The guard of a queue's task: if the task is dropped, because the runtime ends, no write is left waiting.
struct Running<C: Cache, P: Persistence> {
    store: Arc<Inner<C, P>>,
    key: StoredKey,
    is_over: bool,
}

impl<C: Cache, P: Persistence> Drop for Running<C, P> {
    fn drop(&mut self) {
        if !self.is_over {
            self.store.queues.close(&self.key);
        }
    }
}
