//! How many sessions a subject can have.

use std::fmt;
use std::sync::Arc;

use session_core::{BoxFuture, Cache, Persistence, Subject, SubjectIndex};

use crate::Error;
use crate::events::{Ending, Revocation};
use crate::inner::Inner;

/// A limit on a subject's sessions. What is done about it is kept as a function, because most of a store does not know
/// whether its database can list a subject's sessions.
pub(crate) struct SubjectLimit<C, P> {
    pub(crate) limit: usize,
    enforce: Enforce<C, P>,
}

type Enforce<C, P> = fn(Arc<Inner<C, P>>, Subject, usize) -> BoxFuture<Result<(), Error>>;

impl<C: Cache, P: SubjectIndex> SubjectLimit<C, P> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, enforce: |store, subject, limit| Box::pin(enforce(store, subject, limit)) }
    }
}

impl<C, P> fmt::Debug for SubjectLimit<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubjectLimit").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends sessions of `subject`, which has just got another one, as far as there are too many.
    pub(crate) async fn limit_sessions(self: &Arc<Self>, subject: &Subject) {
        let Some(SubjectLimit { limit, enforce }) = &self.subject_limit else { return };
        if let Err(error) = enforce(Arc::clone(self), subject.clone(), *limit).await {
            tracing::warn!(target: "session_cached_db", event = "subject_limit_failed", %error,
                "sessions of a subject could not be limited; trying again with its next one");
        }
    }
}

/// All nodes choose alike: two that see the same sessions end the same ones.
async fn enforce<C: Cache, P: SubjectIndex>(
    store: Arc<Inner<C, P>>,
    subject: Subject,
    limit: usize,
) -> Result<(), Error> {
    let mut sessions = store.list_by_subject(&subject).await?;
    let excess = sessions.len().saturating_sub(limit);
    sessions.sort_by(|(key, record), (other_key, other)| {
        let by_use = record.last_seen_at().cmp(&other.last_seen_at());
        by_use.then_with(|| key.as_bytes().cmp(other_key.as_bytes()))
    });
    for (key, _) in sessions.into_iter().take(excess) {
        store.delete(key, None, Ending::Revoked(Revocation::TooMany)).await?;
    }
    Ok(())
}
