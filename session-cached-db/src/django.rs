//! What Django's `django.contrib.auth` keeps in a session: who is logged in.
//!
//! The codec of Django's payloads and its secret keys are here again, from `session_core::django`. With a database's
//! feature, so is its `DjangoPersistence`, from `db_backends::django`.

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
/// Where a site with `CSRF_USE_SESSIONS` keeps its token against forged requests.
const CSRF: &str = "_csrftoken";

/// Django's own authentication backend: what `_auth_user_backend` is at a site that has no other.
pub const MODEL_BACKEND: &str = "django.contrib.auth.backends.ModelBackend";

/// Who is logged in to a session, as Django has it.
///
/// `Debug` shows neither user nor hash.
///
/// ```
/// use session_cached_db::Session;
/// use session_cached_db::django::{DjangoLogin, SecretKeys};
///
/// /// The id of the user who is logged in. `password_of` looks into the column `password` of `auth_user`.
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
    /// Who `session` says is logged in; `None` if it says nobody, or not in Django's way. Believe it after
    /// [`verify`](Self::verify) only.
    #[must_use]
    pub fn of(session: &Session) -> Option<Self> {
        let text = |key| session.get::<String>(key).ok().flatten();
        // An older Django kept no hash.
        let hash = text(HASH).unwrap_or_default();
        Some(Self { user_id: text(USER_ID)?, backend: text(BACKEND)?, hash })
    }

    /// A login of the user whose primary key is `user_id` and whose `password` column is `password`, who was
    /// authenticated by `backend`: one of the site's `AUTHENTICATION_BACKENDS`, often [`MODEL_BACKEND`].
    #[must_use]
    pub fn new(
        keys: &SecretKeys,
        user_id: impl Into<String>,
        backend: impl Into<String>,
        password: &str,
    ) -> Self {
        Self { user_id: user_id.into(), backend: backend.into(), hash: keys.auth_hash(password) }
    }

    /// The user's primary key, as text.
    #[must_use]
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    /// The authentication backend by which the user was logged in.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Whether the user's password, which is `password` as it stands in its column, is still that of the login; and by
    /// which key that was found out. `None`: it was changed, and the session is over for this user; end it with
    /// [`Session::flush`], as Django does.
    ///
    /// After [`VerifiedBy::Fallback`], [`renew`](Self::renew) the login, as Django does, or the session is over when the
    /// site takes that fallback away.
    #[must_use]
    pub fn verify(&self, keys: &SecretKeys, password: &str) -> Option<VerifiedBy> {
        keys.verify_auth_hash(password, &self.hash)
    }

    /// Logs the user in to `session`, as Django's `login()` does: under a new key, without the token against forged requests
    /// that was there before, and with nothing left of what the session held if that was of another user, or of this one
    /// before the password was changed. It does not set the user's `last_login`.
    ///
    /// # Errors
    ///
    /// As [`Session::cycle_key`]. When what was there could be ended, but the new session not stored, nobody is logged in.
    pub async fn log_in(&self, session: &mut Session) -> Result<Coherence, Error> {
        let mut coherence = Coherence::Coherent;
        if session.contains(USER_ID) && Self::of(session).is_none_or(|before| before.is_another(self)) {
            coherence = session.flush().await?;
        }
        session.remove(CSRF);
        session.update([(USER_ID, &self.user_id), (BACKEND, &self.backend), (HASH, &self.hash)])?;
        Ok(coherence.and(session.cycle_key().await?))
    }

    fn is_another(&self, login: &Self) -> bool {
        self.user_id != login.user_id || self.hash != login.hash
    }

    /// Gives `session`, whose login this is, a hash by the current key, and a new key. `password` is the user's, as it
    /// stands in its column.
    ///
    /// # Errors
    ///
    /// As [`Session::cycle_key`].
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
