//! Logins of Django's `django.contrib.auth`, which it keeps in the session.
//!
//! This module also re-exports the codec of Django's payloads and Django's secret keys from
//! `session_core::django`, and with a database's feature its `DjangoPersistence` from `db_backends::django`.

pub use session_core::django::{DjangoCodec, InvalidSecretKeys, SecretKeys, UnreadablePayload, VerifiedBy};

#[cfg(feature = "mysql")]
pub use db_backends::django::DjangoMySql;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub use db_backends::django::DjangoPersistence;
#[cfg(feature = "postgres")]
pub use db_backends::django::DjangoPostgres;
#[cfg(feature = "sqlite")]
pub use db_backends::django::DjangoSqlite;

use std::fmt;

use crate::{Coherence, Error, Session};

const USER_ID: &str = "_auth_user_id";
const BACKEND: &str = "_auth_user_backend";
const HASH: &str = "_auth_user_hash";
/// The key under which a site with `CSRF_USE_SESSIONS` keeps its token against forged requests.
const CSRF: &str = "_csrftoken";

/// Django's own authentication backend: the value of `_auth_user_backend` at a site that has no other.
pub const MODEL_BACKEND: &str = "django.contrib.auth.backends.ModelBackend";

/// The login that Django keeps in a session.
///
/// `Debug` shows neither the user nor the hash.
///
/// ```
/// use session_cached_db::Session;
/// use session_cached_db::django::{DjangoLogin, SecretKeys};
///
/// /// Returns the id of the user who is logged in. `password_of` reads the column `password` of `auth_user`.
/// fn user_id(
///     session: &Session,
///     keys: &SecretKeys,
///     password_of: impl Fn(&str) -> Option<String>,
/// ) -> Option<String> {
///     let login = DjangoLogin::of(session)?;
///     let password = password_of(login.user_id())?;
///     login.verify(keys, &password).map(|_| login.user_id().to_owned())
/// }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct DjangoLogin {
    user_id: String,
    backend: String,
    hash: String,
}

impl DjangoLogin {
    /// Returns the login that `session` holds, or `None` if it holds none, or not in Django's form. Trust it
    /// only after [`verify`](Self::verify).
    #[must_use]
    pub fn of(session: &Session) -> Option<Self> {
        let text = |key| session.get::<String>(key).ok().flatten();
        // Old versions of Django kept no hash.
        let hash = text(HASH).unwrap_or_default();
        Some(Self { user_id: text(USER_ID)?, backend: text(BACKEND)?, hash })
    }

    /// Returns the login of a user. `user_id` is the user's primary key, `password` the content of the user's
    /// `password` column, and `backend` the one of the site's `AUTHENTICATION_BACKENDS` that authenticated
    /// the user, often [`MODEL_BACKEND`].
    #[must_use]
    pub fn new(
        keys: &SecretKeys,
        user_id: impl Into<String>,
        backend: impl Into<String>,
        password: &str,
    ) -> Self {
        Self { user_id: user_id.into(), backend: backend.into(), hash: keys.auth_hash(password) }
    }

    /// Returns the user's primary key, as text.
    #[must_use]
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    /// Returns the authentication backend that authenticated the user.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Checks that the user's password is still the one of the login, and returns the secret key that showed
    /// it. `password` is the content of the user's `password` column. `None` means that the password was
    /// changed: the login is no longer valid, so end the session with [`Session::flush`], as Django does.
    ///
    /// After [`VerifiedBy::Fallback`], [`renew`](Self::renew) the login, as Django does. Otherwise it ends
    /// when the site removes that fallback key.
    #[must_use]
    pub fn verify(&self, keys: &SecretKeys, password: &str) -> Option<VerifiedBy> {
        keys.verify_auth_hash(password, &self.hash)
    }

    /// Logs the user in to `session`, as Django's `login()` does: the session gets a new key and loses its
    /// token against forged requests. If it belonged to another user, or to this one before the password was
    /// changed, it is ended first and none of its values are kept. If the session has ended in the meantime, a new one is
    /// stored, as by [`Session::log_in`]. Does not set the user's `last_login`.
    ///
    /// # Errors
    ///
    /// The errors of [`Session::log_in`]. When the old session was ended and the new one could not be
    /// stored, no user is logged in.
    pub async fn log_in(&self, session: &mut Session) -> Result<Coherence, Error> {
        let mut coherence = Coherence::Coherent;
        if session.contains(USER_ID) && Self::of(session).is_none_or(|before| before.is_another(self)) {
            coherence = session.flush().await?;
        }
        session.remove(CSRF);
        session.update([(USER_ID, &self.user_id), (BACKEND, &self.backend), (HASH, &self.hash)])?;
        Ok(coherence.and(session.cycle_key_or_begin_anew().await?))
    }

    fn is_another(&self, login: &Self) -> bool {
        self.user_id != login.user_id || self.hash != login.hash
    }

    /// Writes the login into `session` again, with a hash by the current secret key, under a new session key.
    /// `session` must be the one that holds this login; `password` is the content of the user's `password`
    /// column.
    ///
    /// # Errors
    ///
    /// The errors of [`Session::cycle_key`].
    pub async fn renew(
        self,
        session: &mut Session,
        keys: &SecretKeys,
        password: &str,
    ) -> Result<(Self, Coherence), Error> {
        let renewed = Self { hash: keys.auth_hash(password), ..self };
        session.insert(HASH, &renewed.hash)?;
        let coherence = session.cycle_key().await?;
        Ok((renewed, coherence))
    }
}

impl fmt::Debug for DjangoLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DjangoLogin").field("backend", &self.backend).finish_non_exhaustive()
    }
}
