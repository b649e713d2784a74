//! How many sessions a subject can have.

use std::fmt;
use std::sync::Arc;

use session_core::{BoxFuture, Cache, Persistence, Row, SessionTimes, StoredKey, Subject, SubjectIndex};

use crate::Error;
use crate::events::Revocation;
use crate::inner::Inner;
use crate::operations::Saved;
use crate::queue::Reply;
use crate::tasks::Admission;

/// A limit on a subject's sessions. What is done about it is kept as a function, because most of a store does not know
/// whether its database can list a subject's sessions.
pub(crate) struct SubjectLimit<C, P> {
    pub(crate) limit: usize,
    enforce: Enforce<C, P>,
}

type Enforce<C, P> = fn(Arc<Inner<C, P>>, Subject, StoredKey, usize) -> BoxFuture<Result<(), Error>>;

impl<C: Cache, P: SubjectIndex> SubjectLimit<C, P> {
    pub(crate) fn new(limit: usize) -> Self {
        let enforce: Enforce<C, P> =
            |store, subject, newest, limit| Box::pin(enforce(store, subject, newest, limit));
        Self { limit, enforce }
    }
}

impl<C, P> fmt::Debug for SubjectLimit<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubjectLimit").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends sessions of `subject`, which has just got the session `newest`, as far as there are too many.
    pub(crate) async fn limit_sessions(self: &Arc<Self>, subject: &Subject, newest: &StoredKey) {
        let Some(SubjectLimit { limit, enforce }) = &self.subject_limit else { return };
        if let Err(error) = enforce(Arc::clone(self), subject.clone(), *newest, *limit).await {
            tracing::warn!(target: "session_cached_db", event = "subject_limit_failed", %error,
                "sessions of a subject could not be limited; trying again with its next one");
        }
    }

    /// Answers a save that has given its session to `subject`, after the subject's limit was seen to. By a task: the
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

/// Ends those that were not used for the longest time, but never the `newest`, whose client has just logged in: another
/// node's clock may have made others look newer. Of two logins at the same time, the one that looks newer ends the other.
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
    // A session whose times cannot be read goes first: nothing can be done with it.
    let last_use = |row: &Row<SessionTimes>| row.contents.as_ref().ok().map(|times| times.last_seen_at);
    let is_newest = |row: &&Row<SessionTimes>| row.key == newest;
    let mine = sessions.iter().find(is_newest).and_then(|row| row.contents.as_ref().ok().copied());
    let is_rival = |row: &&Row<SessionTimes>| match (&row.contents, &mine) {
        (Ok(theirs), Some(mine)) => {
            let is_newer = (theirs.last_seen_at, row.key.as_bytes()) > (mine.last_seen_at, newest.as_bytes());
            is_newer && theirs.created_at + store.config.clock_slack > mine.last_seen_at
        }
        _ => false,
    };
    let others = sessions.iter().filter(|row| !is_newest(row) && !is_rival(row));
    let mut oldest_first: Vec<_> = others.map(|row| (last_use(row), row.key)).collect();
    oldest_first.sort_by(|(used_at, key), (other_used_at, other)| {
        used_at.cmp(other_used_at).then_with(|| key.as_bytes().cmp(other.as_bytes()))
    });
    let surplus = oldest_first.into_iter().take(excess).map(|(_, key)| key);
    store.end_all(surplus, Revocation::TooMany).await.map(drop)
}
