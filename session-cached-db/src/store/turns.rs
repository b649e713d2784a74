//! The turns of writes: writes of one session within this process run one after another, in the order of their arrival.
//!
//! The record that the task of a queue has committed last is at hand for the next write, with its version and its place in the
//! cache: so writers of one process never conflict, lose no exchange to one another, and do not read the session again. Saves
//! that wait together become one statement.

use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use session_core::{BoxFuture, Cache, Persistence, StoredKey};
use tokio::sync::oneshot;
use tracing::{Instrument as _, Span};

use super::inner::Inner;
use super::job::{Job, Latest, Reply, Touched};
use super::limits::Login;
use super::queue::{Queueable, Queued, Queues, RunningQueue, Turn, Wait, answer_of};
use crate::Error;
use crate::coherence::{Repair, RepairTurns};
use crate::runtime::Admission;

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Queues a write of the session under `key`, and returns its result. The write is carried out even if the returned future
    /// is dropped.
    pub(crate) fn write<T: Send + 'static, J: FnOnce(Reply<T>) -> Job>(
        self: &Arc<Self>,
        key: &StoredKey,
        admission: Admission,
        job: J,
    ) -> impl Future<Output = Result<T, Error>> + Send + use<T, J, C, P> {
        let (reply, answer) = oneshot::channel();
        answer_of(answer, self.enqueue(key, admission, job(reply)))
    }

    /// Queues a write. A login waits for the turn of its subject before, if the sessions of a subject are limited.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        key: &StoredKey,
        admission: Admission,
        job: Job,
    ) -> Result<Option<Wait>, Error> {
        let job = match job {
            Job::Touch(touch, reply) if self.touches.are_since(key, touch.idle_since) => {
                // A caller that has dropped its future needs no answer.
                drop(reply.send(Ok(Touched::SKIPPED)));
                return Ok(None);
            }
            job => job,
        };
        if admission == Admission::New {
            self.tasks.check_open()?;
        }
        if self.subject_limit.is_some()
            && let Some(subject) = job.new_subject().cloned()
        {
            return self.enqueue_login(admission, &subject, Login { key: *key, write: job });
        }
        self.enqueue_write(key, admission, job)
    }

    /// Queues a write for the turn of its session.
    pub(super) fn enqueue_write(
        self: &Arc<Self>,
        key: &StoredKey,
        admission: Admission,
        job: Job,
    ) -> Result<Option<Wait>, Error> {
        mutant!(QueueSkipped => return self.start_unqueued(key, admission, job));
        let span = self.span(key, &job);
        let start = |queue| carry_out(Arc::clone(self), queue).boxed();
        self.push(&self.queues, key, job, span, admission, start)
    }

    /// Adds a job to a queue, and starts the queue's task if there is none. Returns the wait for its turn if there is one.
    pub(super) fn push<K, J>(
        &self,
        queues: &Arc<Queues<K, J>>,
        key: &K,
        job: J,
        span: Span,
        admission: Admission,
        start: impl FnOnce(RunningQueue<K, J>) -> BoxFuture<()>,
    ) -> Result<Option<Wait>, Error>
    where
        K: Clone + Eq + Hash + Send + 'static,
        J: Queueable + Send + 'static,
    {
        let deadline = self.runtime.now() + self.settings.write_timeout;
        match queues.push(key, Queued::new(job, deadline, span))? {
            Some(queue) => self.tasks.start(admission, start(queue)).map(|()| None),
            None => {
                let wait = Arc::clone(queues).refuse_at(key.clone(), deadline, Arc::clone(&self.runtime));
                Ok(Some(wait.boxed()))
            }
        }
    }

    fn span(&self, key: &StoredKey, job: &Job) -> Span {
        let Some(operation) = job.name() else { return Span::none() };
        tracing::debug_span!(target: "session_cached_db", "session_write", operation, session = %self.telemetry.log_id(key))
    }

    /// Logs that a write of `key` has panicked, in a codec, a hook or a modification of the application.
    pub(super) fn note_panic(&self, key: &StoredKey) {
        if let Some(suppressed) = self.telemetry.log_limits.admit("write_panicked", self.runtime.now()) {
            tracing::error!(target: "session_cached_db", event = "write_panicked", session = %self.telemetry.log_id(key), suppressed,
                "a write panicked, in a codec, a hook or a modification of the application's; whether it happened is unknown");
        }
    }
}

/// Carries out the jobs of a queue until it is empty.
async fn carry_out<C: Cache, P: Persistence>(
    store: Arc<Inner<C, P>>,
    mut queue: RunningQueue<StoredKey, Job>,
) {
    let mut latest = Latest::default();
    let key = *queue.key();
    while let Some(Turn { span, job, joining }) = queue.next(store.runtime.now()) {
        #[cfg(feature = "__simulation")]
        store.queues.note_turn(&key, latest.digest_turn(&job, &joining));
        let turn = async {
            match job {
                Job::Save(save, reply) if save.rename.is_none() => {
                    let mut saves = vec![(save, reply)];
                    saves.extend(joining.into_iter().filter_map(Job::into_save));
                    store.save_all(&key, saves, &mut latest).await;
                }
                job => Box::pin(store.carry_out(&key, job, &mut latest)).await,
            }
        };
        // A panic of a codec or a hook ends only the writes that it happened in. Those behind them go on.
        if AssertUnwindSafe(turn).catch_unwind().instrument(span).await.is_err() {
            store.note_panic(&key);
            latest.forget();
        }
    }
}

impl<C: Cache, P: Persistence> RepairTurns for Inner<C, P> {
    fn queue_repair(self: Arc<Self>, repair: Repair) {
        let key = *repair.key();
        // Refused only while the store is being closed, and closing makes a last pass over the repairs
        // itself.
        drop(self.enqueue(&key, Admission::New, Job::Repair(repair)));
    }
}
