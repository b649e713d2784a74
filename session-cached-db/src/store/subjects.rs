//! The sessions of one subject: listing, ending and limiting them.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use session_core::{Cache, Persistence, Row, SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp};
use tokio::sync::oneshot;
use tracing::Span;

use super::inner::Inner;
use super::job::{Delete, Job, Written};
use super::limits::Login;
use super::queue::{RunningQueue, Turn, Wait, answer_of};
use crate::runtime::Admission;
use crate::telemetry::{Ending, Revocation};
use crate::{Coherence, Error};

/// The number of times that a subject's sessions are listed while new ones keep coming.
const MAX_REVOCATIONS: u32 = 256;

/// The number of a subject's sessions that are listed at a time.
const PAGE: u32 = 1_000;

/// The number of sessions that are ended at the same time.
const SIDE_BY_SIDE: usize = 16;

impl<C: Cache, P: SubjectIndex> Inner<C, P> {
    /// Returns a page of those sessions of `subject` that have this store's key prefix.
    async fn page_of_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
    ) -> Result<Page, Error> {
        let mut rows = self.db.list_by_subject(subject, now, after, PAGE).await?;
        let is_full = u32::try_from(rows.len()).is_ok_and(|len| len >= PAGE);
        let next = rows.last().filter(|_| is_full).map(|row| row.key);
        rows.retain(|row| self.settings.owns(&row.key));
        Ok(Page { rows, next })
    }

    /// Returns all sessions of `subject`.
    pub(crate) async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
    ) -> Result<Vec<Row<SessionTimes>>, Error> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let Page { rows, next } = self.page_of_subject(subject, now, after.as_ref()).await?;
            all.extend(rows);
            after = next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Ends all sessions of `subject`, and returns how many were ended. Goes on if the returned future is dropped.
    pub(crate) fn revoke_subject(
        self: &Arc<Self>,
        subject: Subject,
    ) -> impl Future<Output = Result<Written<u64>, Error>> + Send + use<C, P> {
        let store = Arc::clone(self);
        self.tasks.run(async move { store.revoke_now(&subject).await })
    }

    async fn revoke_now(self: &Arc<Self>, subject: &Subject) -> Result<Written<u64>, Error> {
        let mut revoked = Written { value: 0, coherence: Coherence::Coherent };
        for _ in 0..MAX_REVOCATIONS {
            // Another node's clock may be behind: a session that has just expired here can live on there.
            let as_of = self.runtime.now() - self.settings.clock_slack;
            let sessions = self.list_by_subject(subject, as_of).await?;
            if sessions.is_empty() {
                return Ok(revoked);
            }
            let keys = sessions.into_iter().map(|row| row.key);
            let ended = self.end_all(keys, Revocation::Subject).await?;
            revoked.value += ended.value;
            revoked.coherence = revoked.coherence.and(ended.coherence);
            mutant!(RevokeListsOnce => return Ok(revoked));
        }
        Err(Error::Conflict)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends the sessions under `keys`, several at a time. After an error the others are ended all the same.
    pub(crate) async fn end_all(
        self: &Arc<Self>,
        keys: impl Iterator<Item = StoredKey> + Send,
        cause: Revocation,
    ) -> Result<Written<u64>, Error> {
        let mut ended = Ok(Written { value: 0, coherence: Coherence::Coherent });
        let delete = |key| {
            let delete = Delete { seen: None, ending: Ending::Revoked(cause) };
            self.write(&key, Admission::Continuation, |reply| Job::Delete(delete, reply))
        };
        let deletions = keys.map(delete);
        let mut deletions = stream::iter(deletions).buffer_unordered(SIDE_BY_SIDE);
        while let Some(deleted) = deletions.next().await {
            match (&mut ended, deleted) {
                (Ok(sum), Ok(deleted)) => {
                    sum.value += u64::from(deleted.value);
                    sum.coherence = sum.coherence.and(deleted.coherence);
                }
                (Ok(_), Err(error)) => ended = Err(error),
                (Err(_), _) => {}
            }
        }
        ended
    }
}

struct Page {
    rows: Vec<Row<SessionTimes>>,
    /// The key after which the next page begins. `None` after the last page.
    next: Option<StoredKey>,
}

/// The limit on a subject's sessions.
impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends the surplus sessions of `subject`, which has just got the session `newest`.
    async fn limit_sessions(self: &Arc<Self>, subject: &Subject, newest: &StoredKey) {
        let Some(limit) = &self.subject_limit else { return };
        let (now, slack) = (|| self.runtime.now(), self.settings.clock_slack);
        if let Err(error) = limit.enforce(Arc::clone(self), subject, newest, now, slack).await {
            tracing::warn!(target: "session_cached_db", event = "subject_limit_failed", %error,
                "sessions of a subject could not be limited; trying again with its next one");
        }
    }

    /// Queues a login for the turn of its subject.
    pub(super) fn enqueue_login(
        self: &Arc<Self>,
        admission: Admission,
        subject: &Subject,
        login: Login,
    ) -> Result<Option<Wait>, Error> {
        let start = |queue| carry_out(Arc::clone(self), queue).boxed();
        self.push(&self.logins, subject, login, Span::none(), admission, start)
    }
}

/// Carries out the logins of a subject, one after another. The turn of a subject comes before that of a session: the sessions
/// that a login ends have turns of their own, and none of them waits for a login.
async fn carry_out<C: Cache, P: Persistence>(
    store: Arc<Inner<C, P>>,
    mut queue: RunningQueue<Subject, Login>,
) {
    let subject = queue.key().clone();
    while let Some(Turn { job: Login { key, mut write }, .. }) = queue.next(store.runtime.now()) {
        let (reply, written) = oneshot::channel();
        let caller = write.redirect(reply);
        // Part of a login that is under way, so it is not refused.
        let saved = answer_of(written, store.enqueue_write(&key, Admission::Continuation, write)).await;
        if let Ok(saved) = &saved {
            store.limit_sessions(&subject, &saved.key).await;
        }
        if let Some(caller) = caller {
            // A caller that has dropped its future needs no answer.
            drop(caller.send(saved));
        }
    }
}

impl<C: Cache, P: SubjectIndex> Inner<C, P> {
    /// Ends the sessions that were not used for the longest time, but never the `newest`, whose client has just logged in: by
    /// another node's clock, others may look newer. Spares a session that looks newer and comes from a login on another node
    /// at the same time: that node ends this one instead. Otherwise the two would end each other.
    pub(super) async fn end_surplus(
        self: Arc<Self>,
        subject: Subject,
        newest: StoredKey,
        limit: usize,
    ) -> Result<(), Error> {
        let sessions = self.list_by_subject(&subject, self.runtime.now()).await?;
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
        let has_logged_in =
            |key: &StoredKey| self.subject_limit.as_ref().is_some_and(|limit| limit.has_logged_in(key));
        let is_rival = |row: &&Row<SessionTimes>| {
            let Ok(theirs) = &row.contents else { return false };
            let is_newer = (theirs.last_seen_at, row.key.as_bytes()) > (mine.last_seen_at, newest.as_bytes());
            let is_fresh = theirs.created_at + self.settings.clock_slack > mine.last_seen_at;
            is_newer && is_fresh && !has_logged_in(&row.key)
        };
        let others = sessions.iter().filter(|row| !is_newest(row) && !is_rival(row));
        let mut oldest_first: Vec<_> = others.map(|row| (last_use(row), row.key)).collect();
        oldest_first.sort_by(|(used_at, key), (other_used_at, other)| {
            used_at.cmp(other_used_at).then_with(|| key.as_bytes().cmp(other.as_bytes()))
        });
        let surplus = oldest_first.into_iter().take(excess).map(|(_, key)| key);
        self.end_all(surplus, Revocation::TooMany).await.map(drop)
    }
}
