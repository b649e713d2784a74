//! The sessions of one subject: listing and ending them.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use session_core::{Cache, Persistence, Row, SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp};

use super::inner::Inner;
use super::writes::Written;
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
        let deletions =
            keys.map(|key| self.delete(key, None, Ending::Revoked(cause), Admission::Continuation));
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
