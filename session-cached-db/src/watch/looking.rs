use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{Either, Shared, WeakShared, select};
use session_core::{BoxFuture, Record, Runtime, SessionKey, StoredKey};

use super::SessionEnd;
use super::hints::Hints;
use crate::Error;

/// The minimum time between two looks at a session, however often it is written.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// The maximum of that time. It doubles while looks that follow hints find nothing new, as when the session's cache entry comes
/// and goes.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The time before a failed look is repeated. It doubles after each failure, up to the interval.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The looks at a session, shared by all its watches in this process. The watches drive the future, and it is dropped with the last
/// of them.
pub(super) type Looking = Shared<BoxFuture<Finding>>;
pub(super) type WeakLooking = WeakShared<BoxFuture<Finding>>;

/// The result of looking at a session again and again.
#[derive(Clone, Debug)]
pub(super) enum Finding {
    Ended(SessionEnd),
    /// The new keys.
    Moved(StoredKey, SessionKey),
}

/// The state in which a look has found a session.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// The session is there. `record` is `None` if its row cannot be read. `has_no_report` is set if a channel did not answer, so
    /// that the next change may not be reported.
    There {
        record: Option<Arc<Record>>,
        has_no_report: bool,
    },
    /// The session has other keys, after a renewal.
    Moved(StoredKey, SessionKey),
    Ended(SessionEnd),
}

/// A store, as far as watches need it.
pub(crate) trait Look: Send + Sync + fmt::Debug {
    /// Loads the session under `key` in a task of its own, so that a watch that is not polled holds no connection. Follows the
    /// session to another key only from its own `session_key`.
    fn look(
        self: Arc<Self>,
        key: StoredKey,
        session_key: Option<SessionKey>,
    ) -> BoxFuture<Result<Seen, Error>>;
    /// Logs and counts a look that failed.
    fn note_failed_look(&self, key: &StoredKey, error: &Error);
    /// Resolves when the store is closed or gone.
    fn closed(&self) -> BoxFuture<()>;
}

/// Looks at the session under `key` until it has ended or moved. Holds only a weak reference to the store between looks.
pub(super) async fn run(
    key: StoredKey,
    hints: Arc<Hints>,
    store: Weak<dyn Look>,
    runtime: Arc<dyn Runtime>,
) -> Finding {
    let Some(closed) = store.upgrade().map(|store| store.closed()) else {
        return Finding::Ended(SessionEnd::Closed);
    };
    match select(closed, pin!(look_again_and_again(key, &hints, &store, &*runtime))).await {
        Either::Left(_) => Finding::Ended(SessionEnd::Closed),
        Either::Right((found, _)) => found,
    }
}

async fn look_again_and_again(
    key: StoredKey,
    hints: &Hints,
    store: &Weak<dyn Look>,
    runtime: &dyn Runtime,
) -> Finding {
    let (mut retry, mut pause) = (FIRST_RETRY, SHORTEST_PAUSE);
    let (mut last, mut is_hinted, mut was_old) = (None, false, false);
    loop {
        // Before the look: it may miss a change whose hint comes from here on.
        hints.clear();
        let Some(look) = store.upgrade().map(|store| store.look(key, hints.session_key())) else {
            return Finding::Ended(SessionEnd::Closed);
        };
        let longest = match look.await {
            Ok(Seen::Ended(end)) => return Finding::Ended(end),
            Ok(Seen::Moved(key, session_key)) => return Finding::Moved(key, session_key),
            Ok(Seen::There { record, has_no_report }) => {
                let version = Some(record.as_ref().map(|record| record.version()));
                let is_old = is_hinted && version == last;
                // From the second such look on: another watch that joins is a hint, too.
                let is_old_again = is_old && was_old;
                pause =
                    if is_old_again { pause.saturating_mul(2).min(LONGEST_PAUSE) } else { SHORTEST_PAUSE };
                (last, was_old) = (version, is_old);
                retry = if has_no_report { retry.saturating_mul(2) } else { FIRST_RETRY };
                let until = record.map(|record| record.expires_at());
                hints.set_until(until);
                let left = until.map_or(Duration::MAX, |until| until.since(runtime.now()));
                if has_no_report { left.min(retry / 2) } else { left }
            }
            Err(Error::Closed) => return Finding::Ended(SessionEnd::Closed),
            Err(error) => {
                if let Some(store) = store.upgrade() {
                    store.note_failed_look(&key, &error);
                }
                retry = retry.saturating_mul(2);
                retry / 2
            }
        };
        let interval = jittered(hints.interval(), runtime);
        let timer = runtime.sleep(longest.min(interval).max(pause));
        let hinted = async {
            runtime.sleep(pause).await;
            hints.due(runtime).await;
        };
        is_hinted = matches!(select(timer, pin!(hinted)).await, Either::Right(_));
    }
}

/// Returns `interval`, shortened by up to a quarter, so that sessions whose watches began together are not all looked at together.
fn jittered(interval: Duration, runtime: &dyn Runtime) -> Duration {
    let quarter = u64::try_from((interval / 4).as_millis()).unwrap_or(u64::MAX);
    interval - Duration::from_millis(runtime.random_u64().get() % quarter.saturating_add(1).max(1))
}
