//! Queues of jobs that run one after another, in the order of their arrival: the writes of one session, and the logins of one
//! subject, within this process.
//!
//! A key that has a job has a *queue*, and a task that carries its jobs out. A queue is bounded, and each job has a deadline
//! from which it may no longer begin. A caller that waits gets this answer at the deadline, and not when its turn would come.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{Either, select};
use session_core::{BoxFuture, Runtime, Timestamp};
use tokio::sync::oneshot;
use tracing::Span;

use crate::Error;

/// The queues of one kind of job in this process.
#[derive(Debug)]
pub(crate) struct Queues<K, J> {
    /// The number of jobs that can wait for one key.
    capacity: usize,
    by_key: Mutex<HashMap<K, VecDeque<Queued<J>>>>,
    /// Digests of the turns that the tasks of the queues are carrying out.
    #[cfg(feature = "__simulation")]
    turns: Mutex<HashMap<K, u64>>,
}

/// A job that can wait in a queue.
pub(crate) trait Queueable: Sized {
    /// Answers the caller that nothing was written, and why.
    fn refuse(self, error: Error);

    /// Returns `true` if the job may begin after its deadline.
    fn may_be_late(&self) -> bool {
        false
    }

    /// Returns the number of jobs that may wait before this one, in a queue of this capacity.
    fn room(&self, capacity: usize) -> usize {
        capacity
    }

    /// Returns the relation of this job to `first`, whose turn has come.
    fn behind(&self, _first: &Self) -> Behind {
        Behind::Ends
    }

    #[cfg(feature = "__simulation")]
    fn digest(&self) -> u64;
}

/// The relation of a job to one that it waits behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// It becomes part of that job's turn.
    Joins,
    /// A later job may pass it and join.
    Waits,
    /// No later job may pass it.
    Ends,
}

#[derive(Debug)]
pub(crate) struct Queued<J> {
    /// The instant from which the job may no longer begin.
    pub(crate) deadline: Timestamp,
    pub(crate) job: J,
    pub(crate) span: Span,
    /// The task that has queued the job.
    #[cfg(feature = "__simulation")]
    task: u64,
}

/// The next work of a queue, in the span of its first job.
pub(crate) struct Turn<J> {
    pub(crate) span: Span,
    pub(crate) job: J,
    /// Jobs that waited behind the first, and become part of its turn.
    pub(crate) joining: Vec<J>,
}

/// The wait of a job for its turn. Refuses it at its deadline, and then ends.
pub(crate) type Wait = BoxFuture<()>;

/// Returns the answer to a job that was queued.
pub(crate) async fn answer_of<T>(
    mut answer: oneshot::Receiver<Result<T, Error>>,
    queued: Result<Option<Wait>, Error>,
) -> Result<T, Error> {
    if let Some(wait) = queued?
        && let Either::Left((answer, _)) = select(Pin::new(&mut answer), wait).await
    {
        return answer.unwrap_or(Err(Error::Interrupted));
    }
    answer.await.unwrap_or(Err(Error::Interrupted))
}

impl<J: Queueable> Queued<J> {
    pub(crate) fn new(job: J, deadline: Timestamp, span: Span) -> Self {
        Self {
            deadline,
            job,
            span,
            #[cfg(feature = "__simulation")]
            task: crate::simulation::current_task(),
        }
    }

    fn is_late(&self, now: Timestamp) -> bool {
        now >= self.deadline && !self.job.may_be_late()
    }
}

impl<K: Clone + Eq + Hash, J: Queueable> Queues<K, J> {
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            by_key: Mutex::default(),
            #[cfg(feature = "__simulation")]
            turns: Mutex::default(),
        })
    }

    /// Adds a job. Returns the queue if the job is the first, so that the caller has to start the queue's task.
    pub(crate) fn push(
        self: &Arc<Self>,
        key: &K,
        queued: Queued<J>,
    ) -> Result<Option<RunningQueue<K, J>>, Error> {
        match self.lock().entry(key.clone()) {
            Slot::Vacant(slot) => {
                slot.insert(VecDeque::from([queued]));
                Ok(Some(RunningQueue { queues: Arc::clone(self), key: key.clone(), is_over: false }))
            }
            Slot::Occupied(queue) if queue.get().len() >= queued.job.room(self.capacity) => Err(Error::Busy),
            Slot::Occupied(mut queue) => {
                queue.get_mut().push_back(queued);
                Ok(None)
            }
        }
    }

    /// Waits until `deadline`, and refuses the jobs of the queue that have waited for too long by then.
    pub(crate) async fn refuse_at(self: Arc<Self>, key: K, deadline: Timestamp, runtime: Arc<dyn Runtime>) {
        loop {
            let now = runtime.now();
            if now >= deadline {
                let late = self.lock().get_mut(&key).map(|queue| take_late(queue, now));
                return refuse(late.into_iter().flatten(), &Error::Busy);
            }
            runtime.sleep(deadline.since(now)).await;
        }
    }

    /// Returns the next turn, or `None` if the queue has ended. Refuses jobs that have waited for too long.
    fn next(&self, key: &K, now: Timestamp) -> Option<Turn<J>> {
        let (late, turn) = {
            let mut queues = self.lock();
            let queue = queues.get_mut(key)?;
            let late = take_late(queue, now);
            let turn = queue.pop_front().map(|Queued { job, span, .. }| {
                let joining = take_joining(queue, &job);
                Turn { span, job, joining }
            });
            if turn.is_none() {
                queues.remove(key);
            }
            (late, turn)
        };
        refuse(late, &Error::Busy);
        turn
    }

    /// Ends the queue, and refuses the jobs in it.
    fn close(&self, key: &K) {
        let queue = self.lock().remove(key);
        refuse(queue.into_iter().flatten().map(|queued| queued.job), &Error::Closed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, VecDeque<Queued<J>>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(feature = "__simulation")]
impl<J: Queueable> Queues<session_core::StoredKey, J> {
    /// Returns the number of keys that have a queue.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns a digest of the waiting jobs, the tasks that have queued them, and the turns under way.
    pub(crate) fn digest(&self) -> impl Hash + use<J> {
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

    /// Notes the digest of the turn that begins now, and of what is known of the session at its beginning.
    pub(crate) fn note_turn(&self, key: &session_core::StoredKey, digest: u64) {
        crate::simulation::note_turn();
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).insert(*key, digest);
    }
}

/// Removes the jobs that have waited for too long.
fn take_late<J: Queueable>(queue: &mut VecDeque<Queued<J>>, now: Timestamp) -> Vec<J> {
    let mut late = Vec::new();
    let mut position = 0;
    while let Some(queued) = queue.get(position) {
        if queued.is_late(now) {
            late.extend(queue.remove(position).map(|queued| queued.job));
        } else {
            position += 1;
        }
    }
    late
}

/// Removes the jobs that become part of the turn of `first`.
fn take_joining<J: Queueable>(queue: &mut VecDeque<Queued<J>>, first: &J) -> Vec<J> {
    let mut joining = Vec::new();
    let mut passed = 0;
    while let Some(behind) = queue.get(passed).map(|queued| queued.job.behind(first)) {
        match behind {
            Behind::Joins => joining.extend(queue.remove(passed).map(|queued| queued.job)),
            Behind::Waits => passed += 1,
            Behind::Ends => break,
        }
    }
    joining
}

fn refuse<J: Queueable>(jobs: impl IntoIterator<Item = J>, error: &Error) {
    for job in jobs {
        job.refuse(error.clone());
    }
}

/// A queue that has a task. If the task is dropped, because the runtime ends, no job is left waiting.
pub(crate) struct RunningQueue<K: Clone + Eq + Hash, J: Queueable> {
    queues: Arc<Queues<K, J>>,
    key: K,
    is_over: bool,
}

impl<K: Clone + Eq + Hash, J: Queueable> RunningQueue<K, J> {
    pub(crate) const fn key(&self) -> &K {
        &self.key
    }

    /// Returns the next turn, or `None` if the queue has ended. Refuses jobs that have waited for too long.
    pub(crate) fn next(&mut self, now: Timestamp) -> Option<Turn<J>> {
        let turn = self.queues.next(&self.key, now);
        self.is_over = turn.is_none();
        turn
    }
}

impl<K: Clone + Eq + Hash, J: Queueable> Drop for RunningQueue<K, J> {
    fn drop(&mut self) {
        if !self.is_over {
            self.queues.close(&self.key);
        }
    }
}
