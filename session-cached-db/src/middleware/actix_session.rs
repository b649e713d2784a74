//! A store for the middleware of [actix-session].
//!
//! With the feature `actix-session`, a [`CachedDb`] is a [`SessionStore`] of actix-session. That middleware
//! knows no versions, which costs some guarantees:
//!
//! | | with this crate's [`Session`] | with actix-session |
//! |---|---|---|
//! | two requests change different keys of a session at the same time | both win | the later save wins, with all its values |
//! | the key changes at a login | one statement | `renew` deletes the old session and then adds a new one: a failure in between loses the session, and a logout in another request does not stop it |
//! | "log out everywhere", a list of one's sessions | [`log_in`](crate::Session::log_in) | sessions have no subject |
//! | a response of 500 or more | does not save, with the layer of [`tower`](crate::tower) | saves, unless the handler returned an error |
//! | a request that does not use its session | costs nothing | loads it |
//!
//! The other guarantees hold: a cache never shows data that a save or a logout has replaced; many readers of
//! one session cost one read of the database; a cache that is slow or down fails no request; and an ended
//! session does not come back. Updating a session that was deleted or has expired is an error, which the
//! middleware answers with 500. (Its own Redis store makes a new session of it.)
//!
//! # Behavior
//!
//! - A session lives for the `ttl` of its last update; the store's
//!   [`absolute_timeout`](crate::Builder::absolute_timeout) ends it earlier.
//! - Under `TtlExtensionPolicy::OnEveryRequest`, reading prolongs the session, but the database is written to
//!   only once per [`touch_interval`](crate::Builder::touch_interval).
//! - Build the store where the server is started, as below, and not in a worker: its connections and tasks
//!   belong to the runtime on which it was built. Then they outlive every worker, and a worker that blocks
//!   its thread holds up no other.
//! - Cookies are not adopted: a key that this store did not make opens no session, and costs no I/O if it is
//!   malformed.
//! - A session that is there and cannot be read, as in a rolling deployment, is an error of the load: the middleware answers 500
//!   before a handler runs. Row and cookie stay, because another node may be able to read the session. To end it,
//!   call [`CachedDb::revoke`], or [`CachedDb::end`] with the client's key.
//! - A change of the subject with this crate's [`Session`](crate::Session) gives the session another key, which the
//!   middleware does not learn: its client is logged out. Use one of the two for a session, not both.
//! - Under [`ConflictPolicy::Reject`](crate::ConflictPolicy::Reject), an update fails if it changes a key
//!   that another update has changed while it was running.
//!
//! # A complete program
//!
//! ```no_run
//! # #[cfg(all(feature = "moka", feature = "sqlite"))]
//! # mod program {
//! use std::error::Error;
//!
//! use actix_session::{Session, SessionMiddleware};
//! use actix_web::{App, HttpServer, cookie::Key, error::ErrorInternalServerError, web};
//! use session_cached_db::{CachedDb, MokaCache, SqlitePersistence};
//!
//! #[actix_web::main]
//! # pub
//! async fn main() -> Result<(), Box<dyn Error>> {
//!     let cache = MokaCache::builder().max_bytes(64 << 20).build();
//!     let db = SqlitePersistence::connect("sqlite://sessions.db").await?;
//!     let store = CachedDb::builder(cache, db).sole_process().build().await?;
//!
//!     let key = Key::generate(); // store a key of your own, or all cookies end with this process
//!     let sessions = store.clone();
//!     let app = move || {
//!         let sessions = SessionMiddleware::new(sessions.clone(), key.clone());
//!         App::new().wrap(sessions).route("/", web::get().to(visit))
//!     };
//!     HttpServer::new(app).bind("127.0.0.1:3000")?.run().await?;
//!     store.close().await;
//!     Ok(())
//! }
//!
//! async fn visit(session: Session) -> actix_web::Result<String> {
//!     let visits = session.get::<u32>("visits").map_err(ErrorInternalServerError)?.unwrap_or(0) + 1;
//!     session.insert("visits", visits).map_err(ErrorInternalServerError)?;
//!     Ok(format!("visit number {visits}"))
//! }
//! # }
//! ```
//!
//! [actix-session]: https://docs.rs/actix-session

use std::collections::HashMap;

use actix_session::storage::{LoadError, SaveError, SessionKey as ActixKey, SessionStore, UpdateError};
use serde_json::value::RawValue;
use session_core::{Cache, Expiry, Persistence, SessionKey};

use super::adapter;
use crate::{CachedDb, Error, Session};

/// The session's values, each as JSON text.
type State = HashMap<String, String>;

impl<C: Cache, P: Persistence> SessionStore for CachedDb<C, P> {
    async fn load(&self, key: &ActixKey) -> Result<Option<State>, LoadError> {
        let session = self.find(key).await.map_err(|error| LoadError::Other(error.into()))?;
        let state =
            |session: Session| session.iter().map(|(key, json)| (key.to_owned(), json.to_owned())).collect();
        Ok(session.map(state))
    }

    async fn save(&self, state: State, ttl: &time::Duration) -> Result<ActixKey, SaveError> {
        self.add(state, *ttl).await.map_err(|error| match is_state_error(&error) {
            true => SaveError::Serialization(error.into()),
            false => SaveError::Other(error.into()),
        })
    }

    /// Replaces the values of a session. Fails if it was deleted or has expired.
    async fn update(
        &self,
        key: ActixKey,
        state: State,
        ttl: &time::Duration,
    ) -> Result<ActixKey, UpdateError> {
        match self.replace(&key, state, *ttl).await {
            Ok(()) => Ok(key),
            Err(error) if is_state_error(&error) => Err(UpdateError::Serialization(error.into())),
            Err(error) => Err(UpdateError::Other(error.into())),
        }
    }

    /// Records that a session is in use. Does nothing if it was ended in the meantime.
    async fn update_ttl(&self, key: &ActixKey, ttl: &time::Duration) -> Result<(), anyhow::Error> {
        let Some(mut session) = self.find(key).await? else { return Ok(()) };
        let expiry = expiry_of(*ttl);
        let written = if session.expiry() == Some(expiry) {
            session.touch().await
        } else {
            session.set_expiry(expiry);
            session.save().await
        };
        match written {
            Ok(_) | Err(Error::SessionGone) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a session everywhere, for good.
    async fn delete(&self, key: &ActixKey) -> Result<(), anyhow::Error> {
        let key = SessionKey::parse(key.as_ref()).and_then(|key| self.stored_key(&key));
        if let Ok(key) = key {
            self.revoke(&key).await?;
        }
        Ok(())
    }
}

impl<C: Cache, P: Persistence> CachedDb<C, P> {
    async fn find(&self, key: &ActixKey) -> Result<Option<Session>, Error> {
        adapter::existing(self.open(key.as_ref())).await
    }

    async fn add(&self, state: State, ttl: time::Duration) -> Result<ActixKey, Error> {
        let mut session = self.new_session();
        fill(&mut session, state, ttl)?;
        session.create().await?;
        let key = session.key().ok_or(Error::SessionGone)?.expose().to_owned();
        // Does not fail: a key is far shorter than actix-session allows.
        key.try_into().map_err(|_| Error::AlreadyExists)
    }

    async fn replace(&self, key: &ActixKey, state: State, ttl: time::Duration) -> Result<(), Error> {
        let mut session = self.find(key).await?.ok_or(Error::SessionGone)?;
        fill(&mut session, state, ttl)?;
        session.save().await.map(drop)
    }
}

fn fill(session: &mut Session, state: State, ttl: time::Duration) -> Result<(), Error> {
    let json = |(key, json): (String, String)| match RawValue::from_string(json) {
        Ok(json) => Ok((key, json)),
        Err(error) => Err(Error::Serialize { key, source: error.into() }),
    };
    let values = state.into_iter().map(json).collect::<Result<HashMap<_, _>, _>>()?;
    adapter::replace(session, &values, |stored, value| stored == value.get())?;
    let expiry = expiry_of(ttl);
    if session.expiry() != Some(expiry) {
        session.set_expiry(expiry);
    }
    Ok(())
}

fn expiry_of(ttl: time::Duration) -> Expiry {
    Expiry::After(ttl.try_into().unwrap_or_default())
}

/// Returns `true` if the application's values are to blame: they cannot be stored.
fn is_state_error(error: &Error) -> bool {
    matches!(
        error,
        Error::Serialize { .. } | Error::TooDeep { .. } | Error::Unencodable(_) | Error::ReservedKey { .. }
    )
}
