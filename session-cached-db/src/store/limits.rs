//! The limit on the sessions of a subject: its number, and the order in which logins enforce it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use session_core::{BoxFuture, StoredKey, Subject, Timestamp};

use crate::Error;

/// A limit on a subject's sessions in a store of the type `S`. Its enforcement is kept as a function, because most of a store
/// does not know whether its database can list a subject's sessions.
pub(super) struct SubjectLimit<S> {
    limit: usize,
    enforce: Enforce<S>,
    /// Locks by which the sessions of a subject are counted for one login at a time in this process.
    turns: Mutex<HashMap<Subject, Arc<Turn>>>,
    /// Sessions that have logged in here a moment ago, after the limit was enforced.
    counted: Mutex<HashMap<StoredKey, Timestamp>>,
    /// Subjects of which a task ends many sessions.
    clearing: Mutex<HashSet<Subject>>,
}

type Turn = tokio::sync::Mutex<()>;

/// Ends the surplus sessions of a subject, but never the session under the key, which is its newest.
type Enforce<S> = fn(Arc<S>, Subject, StoredKey, usize) -> BoxFuture<Result<(), Error>>;

impl<S> SubjectLimit<S> {
    pub(super) fn new(limit: usize, enforce: Enforce<S>) -> Self {
        Self {
            limit,
            enforce,
            turns: Mutex::default(),
            counted: Mutex::default(),
            clearing: Mutex::default(),
        }
    }

    /// Enforces the limit in `store` for `subject`, which has just got the session `newest`, after the logins before it.
    pub(super) async fn enforce(
        &self,
        store: Arc<S>,
        subject: &Subject,
        newest: &StoredKey,
        now: impl Fn() -> Timestamp + Send,
        slack: Duration,
    ) -> Result<(), Error> {
        let turn = Arc::clone(lock(&self.turns).entry(subject.clone()).or_default());
        let mine = turn.lock().await;
        let enforced = (self.enforce)(store, subject.clone(), *newest, self.limit).await;
        self.note_login(newest, now(), slack);
        drop(mine);
        self.end_turn(subject, turn);
        enforced
    }

    /// Forgets the lock of a subject that no login waits for.
    fn end_turn(&self, subject: &Subject, turn: Arc<Turn>) {
        let mut turns = lock(&self.turns);
        drop(turn);
        if turns.get(subject).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(subject);
        }
    }

    /// Notes that the session under `key` has logged in at `now`, and forgets logins from twice the clock slack ago.
    fn note_login(&self, key: &StoredKey, now: Timestamp, slack: Duration) {
        let mut counted = lock(&self.counted);
        counted.retain(|_, at| *at + slack.saturating_mul(2) > now);
        counted.insert(*key, now);
    }

    /// Notes that a task ends many sessions of `subject`. Returns `false` if one is at it.
    pub(super) fn begin_clearing(&self, subject: &Subject) -> bool {
        lock(&self.clearing).insert(subject.clone())
    }

    /// Notes that the task that ends many sessions of `subject` has ended.
    pub(super) fn end_clearing(&self, subject: &Subject) {
        lock(&self.clearing).remove(subject);
    }

    /// Returns `true` if the session under `key` has logged in here a moment ago.
    pub(super) fn has_logged_in(&self, key: &StoredKey) -> bool {
        lock(&self.counted).contains_key(key)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S> fmt::Debug for SubjectLimit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubjectLimit").field("limit", &self.limit).finish_non_exhaustive()
    }
}
