//! The limit on the sessions of a subject: its number, and the logins that wait until it is enforced.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::{BoxFuture, StoredKey, Subject, Timestamp};

use super::job::Job;
use super::queue::Queueable;
use crate::Error;

/// A limit on a subject's sessions in a store of the type `S`. Its enforcement is kept as a function, because most of a store
/// does not know whether its database can list a subject's sessions.
pub(super) struct SubjectLimit<S> {
    limit: usize,
    enforce: Enforce<S>,
    /// Sessions that have logged in here a moment ago, after the limit was enforced.
    counted: Mutex<HashMap<StoredKey, Timestamp>>,
    /// Subjects of which a task ends many sessions.
    clearing: Mutex<HashSet<Subject>>,
}

/// Ends the surplus sessions of a subject, but never the session under the key, which is its newest.
type Enforce<S> = fn(Arc<S>, Subject, StoredKey, usize) -> BoxFuture<Result<(), Error>>;

impl<S> SubjectLimit<S> {
    pub(super) fn new(limit: usize, enforce: Enforce<S>) -> Self {
        Self { limit, enforce, counted: Mutex::default(), clearing: Mutex::default() }
    }

    /// Enforces the limit in `store` for `subject`, which has just got the session `newest`. Called for one login of a subject
    /// at a time.
    pub(super) async fn enforce(
        &self,
        store: Arc<S>,
        subject: &Subject,
        newest: &StoredKey,
        now: impl Fn() -> Timestamp + Send,
        slack: Duration,
    ) -> Result<(), Error> {
        let enforced = (self.enforce)(store, subject.clone(), *newest, self.limit).await;
        self.note_login(newest, now(), slack);
        enforced
    }

    /// Notes that the session under `key` has logged in at `now`, and forgets logins from twice the clock slack ago.
    fn note_login(&self, key: &StoredKey, now: Timestamp, slack: Duration) {
        let mut counted = self.counted();
        counted.retain(|_, at| *at + slack.saturating_mul(2) > now);
        counted.insert(*key, now);
    }

    /// Notes that a task ends many sessions of `subject`. Returns `false` if another task already does.
    pub(super) fn begin_clearing(&self, subject: &Subject) -> bool {
        self.clearing.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.clone())
    }

    /// Notes that the task that ends many sessions of `subject` has ended.
    pub(super) fn end_clearing(&self, subject: &Subject) {
        self.clearing.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
    }

    /// Returns `true` if the session under `key` has logged in here a moment ago.
    pub(super) fn has_logged_in(&self, key: &StoredKey) -> bool {
        self.counted().contains_key(key)
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<StoredKey, Timestamp>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> fmt::Debug for SubjectLimit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubjectLimit").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// A write that gives its session to a subject whose sessions are limited. It waits for the turn of the subject, then for that
/// of the session.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) key: StoredKey,
    pub(super) write: Job,
}

impl Queueable for Login {
    fn refuse(self, error: Error) {
        self.write.refuse(error);
    }

    #[cfg(feature = "__simulation")]
    fn digest(&self) -> u64 {
        self.write.digest()
    }
}
