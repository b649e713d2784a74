//! Deletes of several sessions that become one statement.
//!
//! Each session has its own turn and its own fence, as for any other write. The statement is sent when each of them is fenced or
//! has ended before, by the task that is ready last. A session whose turn does not come soon is left to a statement after it.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{Persistence, StoredKey, Timestamp};
use tokio::sync::oneshot;

use super::database::Database;
use crate::Error;

/// The time for which a session that is fenced waits for the others: all the while, its readers go to the database.
const PATIENCE: Duration = Duration::from_millis(100);

/// The place of one session in a statement for several. A place that is dropped is not waited for.
#[derive(Debug)]
pub(crate) struct Seat {
    statement: Arc<Mutex<Gathering>>,
    is_taken: bool,
}

/// The sessions of a statement that is not sent yet.
#[derive(Debug)]
struct Gathering {
    /// The number of places that are neither taken nor dropped.
    open: usize,
    ready: Vec<Member>,
}

/// A session that is fenced, and whose task waits.
#[derive(Debug)]
struct Member {
    key: StoredKey,
    send_by: Option<Timestamp>,
    task: oneshot::Sender<Word>,
}

/// The end of the wait of a member's task.
#[derive(Debug)]
enum Word {
    /// The statement was sent: whether there was a session.
    Answer(Result<bool, Error>),
    /// The last place was dropped. The task sends the statement, for these sessions besides its own.
    Send(Vec<Member>),
}

impl Seat {
    /// Returns the places in one statement for `count` sessions.
    pub(super) fn in_row(count: usize) -> impl Iterator<Item = Self> {
        let statement = Arc::new(Mutex::new(Gathering { open: count, ready: Vec::new() }));
        (0..count).map(move |_| Self { statement: Arc::clone(&statement), is_taken: false })
    }

    /// Removes the session under `key`, which is fenced, together with the others, and returns `true` if there was one.
    ///
    /// Fails as busy, with nothing written, if the statement would be sent later than `send_by`: then the session can still be
    /// removed alone, under a new fence.
    pub(super) async fn delete<P: Persistence>(
        mut self,
        key: StoredKey,
        send_by: Option<Timestamp>,
        db: &Database<P>,
    ) -> Result<bool, Error> {
        let others = match self.take(key, send_by) {
            Ok(others) => others,
            Err(word) => match self.word_of(word, key, db).await {
                Ok(Word::Answer(answer)) => return answer,
                Ok(Word::Send(others)) => others,
                // The task that has sent the statement has ended, and so did its answer.
                Err(_) => return Err(Error::Interrupted),
            },
        };
        send(key, send_by, others, db).await
    }

    /// Waits for `word`, but not for long for sessions whose turn does not come.
    async fn word_of<P: Persistence>(
        &self,
        word: oneshot::Receiver<Word>,
        key: StoredKey,
        db: &Database<P>,
    ) -> Result<Word, oneshot::error::RecvError> {
        match select(word, pin!(db.sleep(PATIENCE))).await {
            Either::Left((word, _)) => word,
            Either::Right(((), word)) => match self.take_ready(key) {
                Some(others) => Ok(Word::Send(others)),
                // The statement is on its way.
                None => word.await,
            },
        }
    }

    /// Takes the sessions that are ready besides the one under `key`. Returns `None` if that one was taken before.
    fn take_ready(&self, key: StoredKey) -> Option<Vec<Member>> {
        let ready = &mut self.lock().ready;
        let place = ready.iter().position(|member| member.key == key)?;
        ready.swap_remove(place);
        Some(std::mem::take(ready))
    }

    /// Takes the place. Returns the other sessions if no place is open any more, or else the end of the wait.
    fn take(
        &mut self,
        key: StoredKey,
        send_by: Option<Timestamp>,
    ) -> Result<Vec<Member>, oneshot::Receiver<Word>> {
        self.is_taken = true;
        let mut statement = self.lock();
        statement.open = statement.open.saturating_sub(1);
        if statement.open == 0 {
            return Ok(std::mem::take(&mut statement.ready));
        }
        let (task, word) = oneshot::channel();
        statement.ready.push(Member { key, send_by, task });
        Err(word)
    }

    fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.statement.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        let mut statement = self.lock();
        statement.open = statement.open.saturating_sub(1);
        if statement.open > 0 {
            return;
        }
        let mut others = std::mem::take(&mut statement.ready);
        drop(statement);
        if let Some(last) = others.pop() {
            // A task that has ended leaves the others without an answer.
            drop(last.task.send(Word::Send(others)));
        }
    }
}

/// Sends the statement for the session under `key` and the `others`, and answers these. Returns `true` if there was a session
/// under `key`.
async fn send<P: Persistence>(
    key: StoredKey,
    send_by: Option<Timestamp>,
    others: Vec<Member>,
    db: &Database<P>,
) -> Result<bool, Error> {
    let now = db.present();
    let is_late = |send_by: Option<Timestamp>| send_by.is_some_and(|send_by| now > send_by);
    let all = others.iter().map(|other| (other.key, other.send_by)).chain([(key, send_by)]);
    let mut keys: Vec<_> = all.filter(|(_, send_by)| !is_late(*send_by)).map(|(key, _)| key).collect();
    // Statements of several nodes lock the rows in one order, as far as the database follows it.
    keys.sort_unstable_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
    let removed = db.delete_all(&keys).await.map(|removed| removed.into_iter().collect::<HashSet<_>>());
    let answer = |key: &StoredKey, send_by| match &removed {
        _ if is_late(send_by) => Err(Error::Busy),
        Ok(removed) => Ok(removed.contains(key)),
        Err(error) => Err(error.clone()),
    };
    for Member { key, send_by, task } in others {
        // A task that has ended needs no answer.
        drop(task.send(Word::Answer(answer(&key, send_by))));
    }
    answer(&key, send_by)
}
