//! The sessions of the measurements.

use session_cached_db::session_core::{Cache, Persistence, SessionData, StoredKey};
use session_cached_db::{CachedDb, MokaCache, Session};

pub(crate) const SESSIONS: usize = 10_000;

/// Returns the values of a session: ten keys, about 1 KB.
pub(crate) fn values(number: usize) -> impl Iterator<Item = (String, String)> {
    (0..10).map(move |field| (format!("field-{field}"), format!("{number:08}{}", "x".repeat(80))))
}

/// Returns [`values`] as session data.
pub(crate) fn data(number: usize) -> SessionData {
    let mut data = SessionData::new();
    for (key, value) in values(number) {
        data.insert(&key, format!("{value:?}")).unwrap();
    }
    data
}

/// A stored session.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) key: StoredKey,
    pub(crate) cookie: String,
}

/// Saves `count` new sessions.
pub(crate) async fn create<C: Cache, P: Persistence>(store: &CachedDb<C, P>, count: usize) -> Vec<Stored> {
    let mut sessions = Vec::with_capacity(count);
    for start in (0..count).step_by(figure_width(count)) {
        let end = count.min(start + figure_width(count));
        // Save several at a time, because each save waits for a server.
        let creating = (start..end).map(|number| {
            let mut session = store.new_session();
            tokio::spawn(async move {
                session.update(values(number)).unwrap();
                let _ = session.save().await.unwrap();
                stored(&session)
            })
        });
        let creating: Vec<_> = creating.collect();
        for session in creating {
            sessions.push(session.await.unwrap());
        }
    }
    // Shuffle, so that neither cache lines nor pages of a B-tree favour the order.
    fastrand::Rng::with_seed(7).shuffle(&mut sessions);
    sessions
}

fn figure_width(count: usize) -> usize {
    count.min(crate::figure::IN_FLIGHT)
}

fn stored(session: &Session) -> Stored {
    Stored { key: *session.stored_key().unwrap(), cookie: session.key().unwrap().expose().to_owned() }
}

/// Returns an empty cache with room for all sessions.
pub(crate) fn moka() -> MokaCache {
    MokaCache::builder().max_bytes(256 << 20).build()
}
