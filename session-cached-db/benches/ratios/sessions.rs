//! The sessions that are measured.

use session_cached_db::session_core::{Cache, Persistence, SessionData, StoredKey};
use session_cached_db::{CachedDb, MokaCache, Session};

pub(crate) const SESSIONS: usize = 10_000;

/// Ten keys, about 1 KB.
pub(crate) fn values(number: usize) -> impl Iterator<Item = (String, String)> {
    (0..10).map(move |field| (format!("field-{field}"), format!("{number:08}{}", "x".repeat(80))))
}

/// The same as data.
pub(crate) fn data(number: usize) -> SessionData {
    let mut data = SessionData::new();
    for (key, value) in values(number) {
        data.insert(&key, format!("{value:?}")).unwrap();
    }
    data
}

/// A session that is stored.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) key: StoredKey,
    pub(crate) cookie: String,
}

/// Saves so many new sessions.
pub(crate) async fn create<C: Cache, P: Persistence>(store: &CachedDb<C, P>, count: usize) -> Vec<Stored> {
    let mut sessions = Vec::with_capacity(count);
    for start in (0..count).step_by(figure_width(count)) {
        let end = count.min(start + figure_width(count));
        // Several at a time, because servers are far away.
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
    // In an order that no cache line and no B-tree page foresees.
    fastrand::Rng::with_seed(7).shuffle(&mut sessions);
    sessions
}

fn figure_width(count: usize) -> usize {
    count.min(crate::figure::IN_FLIGHT)
}

fn stored(session: &Session) -> Stored {
    Stored { key: *session.stored_key().unwrap(), cookie: session.key().unwrap().expose().to_owned() }
}

/// One with nothing in it, and with room for all.
pub(crate) fn moka() -> MokaCache {
    MokaCache::builder().max_bytes(256 << 20).build()
}
