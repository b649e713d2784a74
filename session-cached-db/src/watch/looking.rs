use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{Either, Shared, WeakShared, select};
use session_core::{BoxFuture, Runtime, StoredKey, Timestamp};

use super::SessionEnd;
use super::hints::Hints;
use crate::Error;

/// The shortest time between two looks at a session, however often it is written.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// The time after which a look is repeated that found out nothing. It doubles each time, up to the interval.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The looks at a session, for all watches of it in this process. The future belongs to those that wait for it, and ends with
/// the last of them.
pub(super) type Looking = Shared<BoxFuture<Finding>>;
pub(super) type WeakLooking = WeakShared<BoxFuture<Finding>>;

/// The end of looking at a session again and again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Finding {
    Ended(SessionEnd),
    Moved(StoredKey),
}

/// The state in which a look has found a session.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    /// The session is there, until then unless it is used. `None` if its row cannot be read.
    There {
        until: Option<Timestamp>,
        is_told: bool,
    },
    /// It is under another key, after a renewal.
    Moved(StoredKey),
    Ended(SessionEnd),
}

/// A store, as far as watches need it.
pub(crate) trait Look: Send + Sync + fmt::Debug {
    /// Looks at the session under `key`, in a task of its own: a watch whose holder is busy elsewhere must keep no connection.
    fn look(self: Arc<Self>, key: StoredKey) -> BoxFuture<Result<Seen, Error>>;
    /// Notes that a look has found out nothing.
    fn note_failed_look(&self, key: &StoredKey, error: &Error);
    /// Resolves when the store is closed or gone.
    fn closed(&self) -> BoxFuture<()>;
}

/// Looks at the session under `key` until there is something to tell. Holds only a weak reference to the store in between.
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
    let mut retry = FIRST_RETRY;
    loop {
        // Before the look, which may miss what is hinted from here on.
        hints.clear();
        let Some(look) = store.upgrade().map(|store| store.look(key)) else {
            return Finding::Ended(SessionEnd::Closed);
        };
        let longest = match look.await {
            Ok(Seen::Ended(end)) => return Finding::Ended(end),
            Ok(Seen::Moved(key)) => return Finding::Moved(key),
            Ok(Seen::There { until, is_told }) => {
                let left = until.map_or(Duration::MAX, |until| until.since(runtime.now()));
                retry = if is_told { FIRST_RETRY } else { retry.saturating_mul(2) };
                if is_told { left } else { left.min(retry / 2) }
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
        let timer = runtime.sleep(longest.min(interval).max(SHORTEST_PAUSE));
        let hinted = async {
            runtime.sleep(SHORTEST_PAUSE).await;
            hints.due(runtime).await;
        };
        select(timer, pin!(hinted)).await;
    }
}

/// Returns `interval`, or up to a quarter less, so that sessions which began to be watched at once are not looked at at once.
fn jittered(interval: Duration, runtime: &dyn Runtime) -> Duration {
    let sixteenths = 16 - runtime.random_u64().get() % 5;
    (interval / 16).saturating_mul(u32::try_from(sixteenths).unwrap_or(16))
}
