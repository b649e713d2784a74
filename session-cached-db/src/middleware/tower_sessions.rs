//! A store for the middleware of [tower-sessions].
//!
//! With the feature `tower-sessions`, a [`CachedDb`] is a [`SessionStore`] of tower-sessions 0.15, and with the
//! feature `tower-sessions-0_14`, one of tower-sessions 0.14, which [axum-login] 0.18 stands on. Both can be
//! on. For a new program, [`tower`](crate::tower) is the better choice, because tower-sessions knows no
//! versions of a session:
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
//! - A session that is there and cannot be read, as in a rolling deployment, is an error (`Decode`) of each method that reads it or
//!   changes it, and so is a row that is damaged. Row and cookie stay, because another node may be able to read the session. Answer it
//!   with 500 or 503. With "always save", the middleware itself answers 500 to every request with that cookie, and axum-login does so
//!   in any case. The `flush` of tower-sessions ends such a session, because it reads nothing; axum-login has no way to call it then, so an
//!   operator ends the session by `sessionctl revoke`.
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
//! [axum-login]: https://docs.rs/axum-login
//! [tower-sessions]: https://docs.rs/tower-sessions
//! [`SessionStore`]: https://docs.rs/tower-sessions-core/latest/tower_sessions_core/session_store/trait.SessionStore.html

use std::collections::HashMap;

use session_core::{Cache, Expiry, InvalidKey, Persistence, SessionData, SessionKey, StoredKey, Timestamp};
use time::OffsetDateTime;

use super::adapter;
use crate::runtime::Admission;
use crate::session::invalid_value;
use crate::store::expiry::EXPIRY_KEY;
use crate::store::job::{Create, Job, KeyOrigin};
use crate::{CachedDb, Error};

/// Implements the store for one version of tower-sessions. The traits of the versions have the same methods,
/// but to the compiler they are different traits.
macro_rules! session_store {
    ($version:ident, $core:ident) => {
        mod $version {
            use async_trait::async_trait;
            use session_core::{Cache, Persistence};
            use $core::session::{Id, Record};
            use $core::session_store::{Error as StoreError, Result};
            use $core::{ExpiredDeletion, SessionStore};

            use super::Sessions;
            use crate::session::MAX_TRIES;
            use crate::{CachedDb, Error};

            #[async_trait]
            impl<C: Cache, P: Persistence> SessionStore for CachedDb<C, P> {
                /// Adds a session. If its id is taken already, it gets another one.
                async fn create(&self, record: &mut Record) -> Result<()> {
                    for _ in 0..MAX_TRIES {
                        let (_, key) = keys(self, &record.id)?;
                        match Sessions(self).add(key, &record.data, record.expiry_date).await {
                            Err(Error::AlreadyExists) => record.id = Id::default(),
                            added => return Ok(added?),
                        }
                    }
                    Err(Error::AlreadyExists.into())
                }

                /// Replaces the values of a session. Fails if it was deleted or has expired.
                async fn save(&self, record: &Record) -> Result<()> {
                    let (key, _) = keys(self, &record.id)?;
                    Ok(Sessions(self).replace(key, &record.data, record.expiry_date).await?)
                }

                async fn load(&self, id: &Id) -> Result<Option<Record>> {
                    let (key, _) = keys(self, id)?;
                    let found = Sessions(self).find(key).await?;
                    Ok(found.map(|(data, expiry_date)| Record { id: *id, data, expiry_date }))
                }

                /// Ends a session everywhere, for good.
                async fn delete(&self, id: &Id) -> Result<()> {
                    let (_, key) = keys(self, id)?;
                    self.revoke(&key).await?;
                    Ok(())
                }
            }

            /// Deletes expired sessions. Programs need not call this: the store's own
            /// [reaper](crate::Builder::reaper) does it.
            #[async_trait]
            impl<C: Cache, P: Persistence> ExpiredDeletion for CachedDb<C, P> {
                async fn delete_expired(&self) -> Result<()> {
                    self.clear_expired().await?;
                    Ok(())
                }
            }

            fn keys<C: Cache, P: Persistence>(
                store: &CachedDb<C, P>,
                id: &Id,
            ) -> Result<(session_core::SessionKey, session_core::StoredKey)> {
                Sessions(store).keys(&id.to_string()).map_err(|error| StoreError::Backend(error.to_string()))
            }

            impl From<Error> for StoreError {
                fn from(error: Error) -> Self {
                    let text = error.to_string();
                    match error {
                        Error::Serialize { .. }
                        | Error::TooDeep { .. }
                        | Error::Unencodable(_)
                        | Error::ReservedKey { .. } => Self::Encode(text),
                        Error::Deserialize { .. } => Self::Decode(text),
                        error if error.is_row_error() => Self::Decode(text),
                        _ => Self::Backend(text),
                    }
                }
            }
        }
    };
}

#[cfg(feature = "tower-sessions-0_14")]
session_store!(v0_14, tower_sessions_core_0_14);
#[cfg(feature = "tower-sessions")]
session_store!(v0_15, tower_sessions_core);

/// The values of a session, by their keys.
type Values = HashMap<String, serde_json::Value>;

/// The sessions of a store, as every version of tower-sessions sees them.
struct Sessions<'a, C, P>(&'a CachedDb<C, P>);

impl<C: Cache, P: Persistence> Sessions<'_, C, P> {
    /// Returns the keys of the session with this id. The id is a session key of 22 characters.
    fn keys(&self, id: &str) -> Result<(SessionKey, StoredKey), InvalidKey> {
        let key = SessionKey::parse(id)?;
        let stored_key = self.0.stored_key(&key)?;
        Ok((key, stored_key))
    }

    async fn add(&self, key: StoredKey, values: &Values, expires_at: OffsetDateTime) -> Result<(), Error> {
        let store = &self.0.inner;
        let record = store.new_record(&key, &data_of(values, expires_at)?, None)?;
        let create = Create { record, origin: KeyOrigin::Random };
        store.write(&key, Admission::New, |reply| Job::Create(create, reply)).await.map(drop)
    }

    async fn replace(
        &self,
        key: SessionKey,
        values: &Values,
        expires_at: OffsetDateTime,
    ) -> Result<(), Error> {
        let session = adapter::existing(self.0.open_key(key)).await?;
        let mut session = session.ok_or(Error::SessionGone)?;
        let is_same = |json: &str, value: &serde_json::Value| {
            serde_json::from_str::<serde_json::Value>(json).is_ok_and(|stored| stored == *value)
        };
        adapter::replace(&mut session, values, is_same)?;
        session.set_expiry(expiry_of(expires_at));
        session.save().await.map(drop)
    }

    async fn find(&self, key: SessionKey) -> Result<Option<(Values, OffsetDateTime)>, Error> {
        let Some(session) = adapter::existing(self.0.open_key(key)).await? else { return Ok(None) };
        let value = |(key, _): (&str, &str)| Ok((key.to_owned(), session.get(key)?.unwrap_or_default()));
        let values = session.iter().map(value).collect::<Result<_, Error>>()?;
        Ok(Some((values, date(session.expires_at()))))
    }
}

fn data_of(values: &Values, expires_at: OffsetDateTime) -> Result<SessionData, Error> {
    let mut data = SessionData::new();
    for (key, value) in values {
        if key == EXPIRY_KEY {
            return Err(Error::ReservedKey { key: key.clone() });
        }
        data.insert(key, value.to_string()).map_err(|error| invalid_value(key, error))?;
    }
    let expiry = expiry_of(expires_at).to_json();
    data.insert(EXPIRY_KEY, expiry).map_err(|error| invalid_value(EXPIRY_KEY, error))?;
    Ok(data)
}

fn expiry_of(expires_at: OffsetDateTime) -> Expiry {
    let micros = expires_at.unix_timestamp_nanos() / 1_000;
    Expiry::At(Timestamp::from_micros(micros.try_into().unwrap_or(i64::MAX)))
}

/// Converts a timestamp. One beyond the year 9999 becomes the last instant of that year, because
/// `OffsetDateTime` has no later one.
fn date(timestamp: Timestamp) -> OffsetDateTime {
    let nanos = i128::from(timestamp.as_micros()) * 1_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(time::PrimitiveDateTime::MAX.assume_utc())
}
