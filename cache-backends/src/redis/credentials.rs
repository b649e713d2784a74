//! Passwords that change: a provider that is asked for each new connection, or a file that is read again.

use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use session_core::BoxError;
use tokio::task::spawn_blocking;

/// The user and the password of a login. `Debug` shows no password.
#[derive(Clone)]
pub struct RedisCredentials {
    pub(super) username: Option<String>,
    pub(super) password: String,
    pub(super) valid_for: Option<Duration>,
}

impl RedisCredentials {
    /// Creates credentials of the default user, which do not expire.
    #[must_use]
    pub fn new(password: impl Into<String>) -> Self {
        Self { username: None, password: password.into(), valid_for: None }
    }

    /// Sets the user. Defaults to the URL's user, or else the server's default one.
    #[must_use]
    pub fn with_username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// Sets the time after which a server ends connections that were made with these credentials. After four fifths
    /// of it, the next call makes a new connection, with new credentials. Defaults to none: a connection is used as long
    /// as it works.
    #[must_use]
    pub const fn with_valid_for(mut self, valid_for: Duration) -> Self {
        self.valid_for = Some(valid_for);
        self
    }
}

impl fmt::Debug for RedisCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCredentials")
            .field("username", &self.username)
            .field("valid_for", &self.valid_for)
            .finish_non_exhaustive()
    }
}

/// A function that returns the credentials for a new connection.
pub(super) type Provider =
    Arc<dyn Fn() -> BoxFuture<'static, Result<RedisCredentials, Arc<dyn Error + Send + Sync>>> + Send + Sync>;

pub(super) fn provider<F, Fut, E>(ask: F) -> Provider
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<RedisCredentials, E>> + Send + 'static,
    E: Into<BoxError>,
{
    let ask = Arc::new(ask);
    Arc::new(move || {
        let ask = Arc::clone(&ask);
        let asked = async move { ask().await.map_err(|error| Arc::from(error.into())) };
        // A panic would be that of the attempt to connect, which all calls share.
        let panicked = || Err(Arc::from(BoxError::from("the provider of credentials has panicked")));
        AssertUnwindSafe(asked)
            .catch_unwind()
            .map(move |answer| answer.unwrap_or_else(|_| panicked()))
            .boxed()
    })
}

/// Returns a provider that reads the password from the file at `path`, without the line break at its end.
pub(super) fn file(path: PathBuf) -> Provider {
    provider(move || {
        let path = path.clone();
        async move {
            let shown = path.display().to_string();
            let read = spawn_blocking(move || std::fs::read_to_string(path)).await;
            match read {
                Ok(Ok(text)) => Ok(RedisCredentials::new(text.trim_end_matches(['\r', '\n']))),
                Ok(Err(error)) => Err(format!("the password file {shown} cannot be read: {error}")),
                Err(_) => Err(format!("the password file {shown} could not be read")),
            }
        }
    })
}
