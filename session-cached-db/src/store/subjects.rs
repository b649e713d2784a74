//! The sessions of one subject: listing, ending and limiting them.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use session_core::{Cache, Persistence, Row, SessionTimes, StoredKey, Subject, SubjectIndex, Timestamp};
use tokio::sync::oneshot;
use tracing::Span;

use super::inner::Inner;
use super::job::{Delete, Job, Written};
use super::limits::Login;
use super::queue::{RunningQueue, Turn, Wait, answer_of};
use super::together::Seat;
use crate::runtime::{Admission, run_until};
use crate::telemetry::{Ending, Revocation};
use crate::{Coherence, Error};

/// The number of times that a subject's sessions are listed while new ones keep coming.
const MAX_REVOCATIONS: u32 = 256;

/// The number of a subject's sessions that are listed at a time.
const PAGE: u32 = 1_000;

/// The number of sessions that are ended at the same time, by one statement.
const ENDED_AT_ONCE: usize = 100;

/// The number of sessions that are ended at the same time, each by a statement of its own.
const ENDED_ALONE: usize = 16;

/// The number of final writes that are made at the same time with a near cache: mostly they wait until no node shows what
/// they replace.
pub(super) const SIDE_BY_SIDE_NEAR: usize = 256;

/// The number of surplus sessions whose end a login waits for. More of them are ended in the background.
///
/// A login reads so many sessions beyond the limit, and their rows lie all over the table.
const SURPLUS_AT_LOGIN: usize = 8;

/// The time until the background begins to end surplus sessions, so that the login that found them is answered first.
const CLEARING_DELAY: Duration = Duration::from_millis(100);

impl<C: Cache, P: SubjectIndex> Inner<C, P> {
    /// Returns a page of those sessions of `subject` that have this store's key prefix.
    async fn page_of_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Page, Error> {
        let mut rows = self.db.list_by_subject(subject, now, after, limit).await?;
        let is_full = u32::try_from(rows.len()).is_ok_and(|len| len >= limit);
        let next = rows.last().filter(|_| is_full).map(|row| row.key);
        rows.retain(|row| self.settings.owns(&row.key));
        Ok(Page { rows, next })
    }

    /// Returns at least `enough` sessions of `subject`, or all of them if they are fewer.
    pub(crate) async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        enough: usize,
    ) -> Result<Vec<Row<SessionTimes>>, Error> {
        let limit = u32::try_from(enough).unwrap_or(PAGE).clamp(1, PAGE);
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let Page { rows, next } = self.page_of_subject(subject, now, after.as_ref(), limit).await?;
            all.extend(rows);
            after = next;
            if after.is_none() || all.len() >= enough {
                return Ok(all);
            }
        }
    }

    /// Returns a page of sessions of `subject` that is empty only if none comes after `after`, and the key after which the
    /// next page begins.
    pub(crate) async fn list_page_of_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        mut after: Option<StoredKey>,
        limit: u32,
    ) -> Result<(Vec<Row<SessionTimes>>, Option<StoredKey>), Error> {
        loop {
            let Page { rows, next } =
                self.page_of_subject(subject, now, after.as_ref(), limit.max(1)).await?;
            after = next;
            if !rows.is_empty() || after.is_none() {
                return Ok((rows, after));
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
            let (mut after, mut is_over, mut failed) = (None, true, Ok(()));
            loop {
                let Page { rows, next } = self.page_of_subject(subject, as_of, after.as_ref(), PAGE).await?;
                is_over &= rows.is_empty();
                let keys: Vec<_> = rows.into_iter().map(|row| row.key).collect();
                match self.end_all(&keys, Revocation::Subject).await {
                    Ok(ended) => {
                        revoked.value += ended.value;
                        revoked.coherence = revoked.coherence.and(ended.coherence);
                    }
                    Err(error) => failed = failed.and(Err(error)),
                }
                after = next;
                if after.is_none() {
                    break;
                }
            }
            failed?;
            if is_over {
                // Another node may have ended them a moment ago, and a third may not have heard of it.
                if revoked.value == 0 {
                    self.cache.wait_for_all_nodes().await;
                }
                return Ok(revoked);
            }
            mutant!(RevokeListsOnce => return Ok(revoked));
        }
        Err(Error::Conflict)
    }
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Ends the sessions under `keys`, several by one statement if the database can. After an error the others are ended all the same.
    pub(crate) async fn end_all(
        self: &Arc<Self>,
        keys: &[StoredKey],
        cause: Revocation,
    ) -> Result<Written<u64>, Error> {
        let mut ended = Ok(Written { value: 0, coherence: Coherence::Coherent });
        let at_once = match (self.cache.is_near(), self.db.deletes_together()) {
            (true, _) => SIDE_BY_SIDE_NEAR,
            (false, true) => ENDED_AT_ONCE,
            (false, false) => ENDED_ALONE,
        };
        for some in keys.chunks(at_once) {
            for deleted in join_all(self.begin_to_end(some, cause)).await {
                match (&mut ended, deleted) {
                    (Ok(sum), Ok(deleted)) => {
                        sum.value += u64::from(deleted.value);
                        sum.coherence = sum.coherence.and(deleted.coherence);
                    }
                    (Ok(_), Err(error)) => ended = Err(error),
                    (Err(_), _) => {}
                }
            }
        }
        ended
    }

    /// Queues the ends of sessions, which wait for each other.
    fn begin_to_end(
        self: &Arc<Self>,
        keys: &[StoredKey],
        cause: Revocation,
    ) -> Vec<impl Future<Output = Result<Written<bool>, Error>> + Send + use<C, P>> {
        let is_together = keys.len() > 1 && self.db.deletes_together();
        let mut seats = Seat::in_row(keys.len()).filter(|_| is_together);
        let begin = |key| {
            let delete = Delete { seen: None, ending: Ending::Revoked(cause), seat: seats.next() };
            self.write(key, Admission::Continuation, |reply| Job::Delete(delete, reply))
        };
        // All before those of another call, or all behind: otherwise each could wait for a turn that the other has.
        let _ordered = self.ending_together.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(begin).collect()
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
            self.note_failed_limit(&error);
        }
    }

    fn note_failed_limit(&self, error: &Error) {
        let limits = &self.telemetry.log_limits;
        if let Some(suppressed) = limits.admit("subject_limit_failed", self.runtime.now()) {
            tracing::warn!(target: "session_cached_db", event = "subject_limit_failed", %error, suppressed,
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
    ///
    /// Reads no more sessions than are needed to see that there are many too many. A task ends these.
    pub(super) async fn end_surplus(
        self: Arc<Self>,
        subject: Subject,
        newest: StoredKey,
        limit: usize,
    ) -> Result<(), Error> {
        let many = limit.saturating_add(SURPLUS_AT_LOGIN + 1);
        let sessions = self.list_by_subject(&subject, self.runtime.now(), many).await?;
        if sessions.len() >= many {
            self.start_clearing(subject, limit);
            return Ok(());
        }
        let is_newest = |row: &&Row<SessionTimes>| row.key == newest;
        let mine = sessions.iter().find(is_newest).and_then(|row| row.contents.as_ref().ok().copied());
        // Another login of this subject has ended it.
        let Some(mine) = mine else { return Ok(()) };
        let has_logged_in =
            |key: &StoredKey| self.subject_limit.as_ref().is_some_and(|limit| limit.has_logged_in(key));
        let is_rival = |row: &Row<SessionTimes>| {
            let Ok(theirs) = &row.contents else { return false };
            let is_newer = (theirs.last_seen_at, row.key.as_bytes()) > (mine.last_seen_at, newest.as_bytes());
            let is_fresh = theirs.created_at + self.settings.clock_slack > mine.last_seen_at;
            is_newer && is_fresh && !has_logged_in(&row.key)
        };
        let mut selection = Selection::default();
        for row in &sessions {
            selection.add(row, row.key == newest || is_rival(row));
        }
        let surplus = selection.take_surplus(limit);
        self.end_all(&surplus, Revocation::TooMany).await.map(drop)
    }

    /// Starts a task that ends the surplus sessions of `subject`, unless one is at it.
    fn start_clearing(self: &Arc<Self>, subject: Subject, limit: usize) {
        let is_first = self.subject_limit.as_ref().is_some_and(|limit| limit.begin_clearing(&subject));
        if !is_first {
            return;
        }
        let clearing = Clearing { store: Arc::clone(self), subject };
        let delay = run_until(self.tasks.closed(), self.runtime.sleep(CLEARING_DELAY));
        let task = async move {
            delay.await;
            if let Err(error) = clearing.store.clear_surplus(&clearing.subject, limit).await {
                clearing.store.note_failed_limit(&error);
            }
        };
        // Part of a save that is under way, so it is not refused.
        let _ = self.tasks.start(Admission::Continuation, Box::pin(task));
    }

    /// Ends the surplus sessions of `subject`, however many there are, in pages. Spares those that were used a moment ago:
    /// logins look after each other.
    async fn clear_surplus(self: &Arc<Self>, subject: &Subject, limit: usize) -> Result<(), Error> {
        let began = self.runtime.now() - self.settings.clock_slack;
        for _ in 0..MAX_REVOCATIONS {
            let (mut selection, mut after, mut ended) = (Selection::default(), None, 0);
            loop {
                let as_of = self.runtime.now();
                let Page { rows, next } = self.page_of_subject(subject, as_of, after.as_ref(), PAGE).await?;
                for row in &rows {
                    let is_fresh = row.contents.as_ref().is_ok_and(|times| times.last_seen_at >= began);
                    selection.add(row, is_fresh);
                }
                let surplus = selection.take_surplus(limit);
                ended += self.end_all(&surplus, Revocation::TooMany).await?.value;
                after = next;
                if after.is_none() {
                    break;
                }
            }
            // Others may have been added behind the pages.
            if ended == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Notes, when it is dropped, that the task has ended that clears the surplus of a subject.
struct Clearing<C: Cache, P: Persistence> {
    store: Arc<Inner<C, P>>,
    subject: Subject,
}

impl<C: Cache, P: Persistence> Drop for Clearing<C, P> {
    fn drop(&mut self) {
        if let Some(limit) = &self.store.subject_limit {
            limit.end_clearing(&self.subject);
        }
    }
}

/// The selection of those sessions of a subject that may stay, page by page. It keeps as many as may stay: whatever comes
/// on later pages, the others were not used for longer.
#[derive(Debug, Default)]
struct Selection {
    spared: usize,
    kept: Vec<(Option<Timestamp>, StoredKey)>,
}

impl Selection {
    fn add(&mut self, row: &Row<SessionTimes>, is_spared: bool) {
        if is_spared {
            self.spared += 1;
        } else {
            // A session whose times cannot be read goes first: no client can use it.
            self.kept.push((row.contents.as_ref().ok().map(|times| times.last_seen_at), row.key));
        }
    }

    /// Returns the sessions that are too many for `limit`, those first that were not used for the longest time.
    fn take_surplus(&mut self, limit: usize) -> Vec<StoredKey> {
        self.kept.sort_by(|(used_at, key), (other_used_at, other)| {
            used_at.cmp(other_used_at).then_with(|| key.as_bytes().cmp(other.as_bytes()))
        });
        let excess = self.kept.len().saturating_sub(limit.saturating_sub(self.spared));
        self.kept.drain(..excess).map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(name: &str, used_at: Option<i64>) -> Row<SessionTimes> {
        let at = Timestamp::from_secs;
        let times = |used_at| SessionTimes {
            created_at: at(0),
            expires_at: at(used_at) + Duration::from_secs(9),
            last_seen_at: at(used_at),
        };
        let unreadable = || session_core::PersistenceError::CorruptRow("damaged".into());
        Row::new(StoredKey::parse(name).unwrap(), used_at.map(times).ok_or_else(unreadable))
    }

    fn surplus(selection: &mut Selection, limit: usize) -> Vec<String> {
        selection.take_surplus(limit).iter().map(|key| key.as_str().to_owned()).collect()
    }

    #[test]
    fn selection_in_pages_keeps_those_that_were_used_last() {
        let mut selection = Selection::default();
        for (name, used_at) in [("a", Some(5)), ("b", Some(1)), ("c", None), ("d", Some(9))] {
            selection.add(&row(name, used_at), false);
        }
        assert_eq!(surplus(&mut selection, 2), ["c", "b"]);
        for (name, used_at) in [("e", Some(7)), ("f", Some(2))] {
            selection.add(&row(name, used_at), false);
        }
        assert_eq!(surplus(&mut selection, 2), ["f", "a"]);
        assert_eq!(surplus(&mut selection, 2), [""; 0]);
    }

    #[test]
    fn spared_sessions_count_and_are_not_returned() {
        let mut selection = Selection::default();
        for (name, is_spared) in [("a", true), ("b", false), ("c", false)] {
            selection.add(&row(name, Some(1)), is_spared);
        }
        assert_eq!(surplus(&mut selection, 2), ["b"]);
        selection.add(&row("d", Some(0)), true);
        selection.add(&row("e", Some(0)), true);
        assert_eq!(surplus(&mut selection, 2), ["c"]);
    }
}
