//! A store for the middleware of [tower-sessions].
//!
//! With the feature `tower-sessions`, a [`CachedDb`] is a [`SessionStore`] of tower-sessions. For a new
//! program, [`tower`](crate::tower) is the better choice, because tower-sessions knows no versions:
//!
//! | | with this crate's own layer | with tower-sessions |
//! |---|---|---|
//! | two requests change different keys of a session at the same time | both win | the later save wins, with all its values |
//! | the key changes at a login | one statement | the old session is deleted when `cycle_id` is called, and the new one is written when it is saved: a failure in between loses the session, and a logout in between does not stop it |
//! | "log out everywhere", a list of one's sessions | [`log_in`](crate::Session::log_in) | sessions have no subject |
//! | unchanged values that another program wrote, in its own formatting | stay byte for byte | stay byte for byte |
//!
//! The other guarantees hold: a cache never shows data that a save or a logout has replaced; many readers of
//! one session cost one read of the database; a cache that is slow or down fails no request; and an ended
//! session does not come back. Saving a session that was deleted or has expired is an error, which the
//! middleware answers with 500.
//!
//! # Behavior
//!
//! - A session ends at the `expiry_date` of its last save; the store's
//!   [`absolute_timeout`](crate::Builder::absolute_timeout) ends it earlier.
//! - Reading does not count as use: a sliding expiry counts from the last save. To prolong sessions at every
//!   request, set the middleware to
//!   [always
//!   save](https://docs.rs/tower-sessions/latest/tower_sessions/service/struct.SessionManagerLayer.html#method.with_always_save).
//! - A payload that cannot be read opens no session and is logged as an event. Its row is left alone.
//! - A change of the subject with this crate's [`Session`](crate::Session) gives the session another key, which the
//!   middleware does not learn: its client is logged out. Use one of the two for a session, not both.
//! - Under [`ConflictPolicy::Reject`](crate::ConflictPolicy::Reject), a save fails if it changes a key that
//!   another save has changed while it was running.
//! - Ids have 128 random bits. The database holds a hash of the id, as of every key.
//!
//! # A complete program
//!
//! ```no_run
//! # #[cfg(all(feature = "moka", feature = "sqlite"))]
//! # mod program {
//! use std::error::Error;
//!
//! use axum::{Router, http::StatusCode, routing::get};
//! use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
//! use tower_sessions::{Session, SessionManagerLayer};
//!
//! #[tokio::main]
//! # pub
//! async fn main() -> Result<(), Box<dyn Error>> {
//!     let cache = MokaCache::builder().max_bytes(64 << 20).build();
//!     let db = SqlitePersistence::connect("sqlite://sessions.db").await?;
//!     let store = CachedDb::builder(cache, db).sole_process().build().await?;
//!
//!     let sessions = SessionManagerLayer::new(store.clone()).with_name("__Host-session");
//!     let app = Router::new().route("/", get(visit)).layer(sessions);
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     axum::serve(listener, app).await?;
//!     store.close().await;
//!     Ok(())
//! }
//!
//! async fn visit(session: Session) -> Result<String, StatusCode> {
//!     let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
//!     let visits: u32 = session.get("visits").await.map_err(failed)?.unwrap_or(0) + 1;
//!     session.insert("visits", visits).await.map_err(failed)?;
//!     Ok(format!("visit number {visits}"))
//! }
//! # }
//! ```
//!
//! [tower-sessions]: https://docs.rs/tower-sessions

use async_trait::async_trait;
use session_core::{Cache, Expiry, Persistence, SessionData, SessionKey, StoredKey, Timestamp};
use time::OffsetDateTime;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store::{Error as StoreError, Result};
use tower_sessions_core::{ExpiredDeletion, SessionStore};

use super::adapter;
use crate::session::{MAX_KEYS, invalid_value};
use crate::store::KeyOrigin;
use crate::store::expiry::EXPIRY_KEY;
use crate::{CachedDb, Error};

#[async_trait]
impl<C: Cache, P: Persistence> SessionStore for CachedDb<C, P> {
    /// Adds a session. If its id is taken already, it gets another one.
    async fn create(&self, record: &mut Record) -> Result<()> {
        for _ in 0..MAX_KEYS {
            let (_, key) = self.keys(&record.id)?;
            let fresh = self.inner.new_record(&key, &data_of(record)?, None)?;
            match self.inner.create(key, fresh, KeyOrigin::Random).await {
                Err(Error::AlreadyExists) => record.id = Id::default(),
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
        Err(Error::AlreadyExists.into())
    }

    /// Replaces the values of a session. Fails if it was deleted or has expired.
    async fn save(&self, record: &Record) -> Result<()> {
        let (key, _) = self.keys(&record.id)?;
        let Some(mut session) = adapter::readable(self.open_key(key)).await? else {
            return Err(Error::SessionGone.into());
        };
        let is_same = |json: &str, value: &serde_json::Value| {
            serde_json::from_str::<serde_json::Value>(json).is_ok_and(|stored| stored == *value)
        };
        adapter::replace(&mut session, &record.data, is_same)?;
        session.set_expiry(expiry_of(record));
        session.save().await?;
        Ok(())
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let (key, _) = self.keys(id)?;
        let Some(session) = adapter::readable(self.open_key(key)).await? else { return Ok(None) };
        let value = |(key, json): (&str, &str)| Ok((key.to_owned(), serde_json::from_str(json)?));
        let data = session.iter().map(value).collect::<serde_json::Result<_>>();
        Ok(Some(Record {
            id: *id,
            data: data.map_err(|error| StoreError::Decode(error.to_string()))?,
            expiry_date: date(session.expires_at()),
        }))
    }

    /// Ends a session everywhere, for good.
    async fn delete(&self, id: &Id) -> Result<()> {
        let (_, key) = self.keys(id)?;
        self.revoke(&key).await?;
        Ok(())
    }
}

/// Deletes expired sessions. Programs need not call this: the store's own [reaper](crate::Builder::reaper)
/// does it.
#[async_trait]
impl<C: Cache, P: Persistence> ExpiredDeletion for CachedDb<C, P> {
    async fn delete_expired(&self) -> Result<()> {
        self.clear_expired().await?;
        Ok(())
    }
}

impl<C: Cache, P: Persistence> CachedDb<C, P> {
    /// Returns the keys of the session with this id. The id is a session key of 22 characters.
    fn keys(&self, id: &Id) -> Result<(SessionKey, StoredKey)> {
        let key = SessionKey::parse(&id.to_string());
        key.and_then(|key| self.stored_key(&key).map(|stored_key| (key, stored_key)))
            .map_err(|error| StoreError::Backend(error.to_string()))
    }
}

fn data_of(record: &Record) -> std::result::Result<SessionData, Error> {
    let mut data = SessionData::new();
    for (key, value) in &record.data {
        if key == EXPIRY_KEY {
            return Err(Error::ReservedKey { key: key.clone() });
        }
        data.insert(key, value.to_string()).map_err(|error| invalid_value(key, error))?;
    }
    let expiry = expiry_of(record).to_json();
    data.insert(EXPIRY_KEY, expiry).map_err(|error| invalid_value(EXPIRY_KEY, error))?;
    Ok(data)
}

fn expiry_of(record: &Record) -> Expiry {
    let micros = record.expiry_date.unix_timestamp_nanos() / 1_000;
    Expiry::At(Timestamp::from_micros(micros.try_into().unwrap_or(i64::MAX)))
}

/// Converts a timestamp. One beyond the year 9999 becomes the last instant of that year, because
/// `OffsetDateTime` has no later one.
fn date(timestamp: Timestamp) -> OffsetDateTime {
    let nanos = i128::from(timestamp.as_micros()) * 1_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(time::PrimitiveDateTime::MAX.assume_utc())
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Serialize { .. }
            | Error::TooDeep { .. }
            | Error::Unencodable(_)
            | Error::ReservedKey { .. } => Self::Encode(text),
            Error::Deserialize { .. } | Error::Unreadable(_) => Self::Decode(text),
            _ => Self::Backend(text),
        }
    }
}
