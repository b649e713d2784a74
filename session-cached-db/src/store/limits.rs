//! The limit on the sessions of a subject.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::{
    BoxFuture, Cache, Persistence, Row, SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp,
};

use super::inner::Inner;
use super::queue::Reply;
use super::writes::Saved;
use crate::Error;
use crate::runtime::Admission;
use crate::telemetry::Revocation;

/// A limit on a subject's sessions. Its enforcement is kept as a function, because most of a store does not know whether its
/// database can list a subject's sessions.
pub(crate) struct SubjectLimit<C, P> {
    pub(crate) limit: usize,
    enforce: Enforce<C, P>,
    /// Locks by which the sessions of a subject are counted for one login at a time in this process.
    turns: Mutex<HashMap<Subject, Arc<Turn>>>,
    /// Sessions that have logged in here a moment ago, after the limit was enforced.
    counted: Mutex<HashMap<StoredKey, Timestamp>>,
}

type Turn = tokio::sync::Mutex<()>;

type Enforce<C, P> = fn(Arc<Inner<C, P>>, Subject, StoredKey, usize) -> BoxFuture<Result<(), Error>>;

impl<C: Cache, P: SubjectIndex> SubjectLimit<C, P> {
    pub(crate) fn new(limit: usize) -> Self {
        let enforce: Enforce<C, P> =
            |store, subject, newest, limit| Box::pin(enforce(store, subject, newest, limit));
        Self { limit, enforce, turns: Mutex::default(), counted: Mutex::default() }
    }
}

impl<C, P> SubjectLimit<C, P> {
    fn turn(&self, subject: &Subject) -> Arc<Turn> {
        Arc::clone(lock(&self.turns).entry(subject.clone()).or_default())
    }

    /// Forgets the lock of a subject that no login waits for.
    fn end_turn(&self, subject: &Subject, turn: Arc<Turn>) {
        let mut turns = lock(&self.turns);
        drop(turn);
        if turns.get(subject).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(subject);
        }
    }

    fn note_counted(&self, key: &StoredKey, now: Timestamp, slack: Duration) {
        let mut counted = lock(&self.counted);
        counted.retain(|_, at| *at + slack.saturating_mul(2) > now);
        counted.insert(*key, now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C, P> fmt::Debug for SubjectLimit<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubjectLimit").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends the surplus sessions of `subject`, which has just got the session `newest`.
    pub(crate) async fn limit_sessions(self: &Arc<Self>, subject: &Subject, newest: &StoredKey) {
        let Some(limit) = &self.subject_limit else { return };
        let turn = limit.turn(subject);
        let mine = turn.lock().await;
        let enforced = (limit.enforce)(Arc::clone(self), subject.clone(), *newest, limit.limit).await;
        limit.note_counted(newest, self.runtime.now(), self.settings.clock_slack);
        drop(mine);
        limit.end_turn(subject, turn);
        if let Err(error) = enforced {
            tracing::warn!(target: "session_cached_db", event = "subject_limit_failed", %error,
                "sessions of a subject could not be limited; trying again with its next one");
        }
    }

    /// Answers a save that has given its session to `subject`, after the subject's limit is enforced. A task does it: the
    /// sessions that are ended have queues of their own, which may wait for this one's.
    pub(crate) fn limit_then_answer(self: &Arc<Self>, subject: &Subject, saved: Saved, reply: Reply<Saved>) {
        if self.subject_limit.is_none() {
            // A caller that has left needs no answer.
            return drop(reply.send(Ok(saved)));
        }
        let (store, subject) = (Arc::clone(self), subject.clone());
        let task = async move {
            store.limit_sessions(&subject, &saved.key).await;
            let _ = reply.send(Ok(saved));
        };
        // Part of a save that is under way, so it is not refused.
        let _ = self.tasks.start(Admission::Continuation, Box::pin(task));
    }
}

/// Ends the sessions that were not used for the longest time, but never the `newest`, whose client has just logged in: by
/// another node's clock, others may look newer. A login on another node at the same time is left to end this one, if it looks
/// newer: otherwise the two would end each other.
async fn enforce<C: Cache, P: SubjectIndex>(
    store: Arc<Inner<C, P>>,
    subject: Subject,
    newest: StoredKey,
    limit: usize,
) -> Result<(), Error> {
    let sessions = store.list_by_subject(&subject, store.runtime.now()).await?;
    let excess = sessions.len().saturating_sub(limit);
    if excess == 0 {
        return Ok(());
    }
    // A session whose times cannot be read goes first: no client can use it.
    let last_use = |row: &Row<SessionTimes>| row.contents.as_ref().ok().map(|times| times.last_seen_at);
    let is_newest = |row: &&Row<SessionTimes>| row.key == newest;
    let mine = sessions.iter().find(is_newest).and_then(|row| row.contents.as_ref().ok().copied());
    // Another login of this subject has ended it.
    let Some(mine) = mine else { return Ok(()) };
    let is_rival = |row: &&Row<SessionTimes>| {
        let Ok(theirs) = &row.contents else { return false };
        let is_newer = (theirs.last_seen_at, row.key.as_bytes()) > (mine.last_seen_at, newest.as_bytes());
        let is_fresh = theirs.created_at + store.settings.clock_slack > mine.last_seen_at;
        let counted = store.subject_limit.as_ref().map(|limit| lock(&limit.counted));
        is_newer && is_fresh && counted.is_none_or(|counted| !counted.contains_key(&row.key))
    };
    let others = sessions.iter().filter(|row| !is_newest(row) && !is_rival(row));
    let mut oldest_first: Vec<_> = others.map(|row| (last_use(row), row.key)).collect();
    oldest_first.sort_by(|(used_at, key), (other_used_at, other)| {
        used_at.cmp(other_used_at).then_with(|| key.as_bytes().cmp(other.as_bytes()))
    });
    let surplus = oldest_first.into_iter().take(excess).map(|(_, key)| key);
    store.end_all(surplus, Revocation::TooMany).await.map(drop)
}
