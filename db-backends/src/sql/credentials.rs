//! Passwords that change: a provider that is asked for each new connection, or a file that is read again.

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use session_core::BoxError;
use tokio::task::spawn_blocking;

/// The password for a new connection, and the user if it is not the URL's. `Debug` shows no password.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) username: Option<String>,
    pub(crate) password: String,
}

impl Credentials {
    /// Creates credentials of the URL's user.
    pub fn new(password: impl Into<String>) -> Self {
        Self { username: None, password: password.into() }
    }

    /// Sets the user. Defaults to the URL's.
    #[must_use]
    pub fn with_username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

type Asked = Pin<Box<dyn Future<Output = Result<Credentials, BoxError>> + Send>>;

/// A function that returns the credentials for a new connection.
#[derive(Clone)]
pub(crate) struct Provider(Arc<dyn Fn() -> Asked + Send + Sync>);

impl Provider {
    pub(crate) fn new<F, Fut, E>(ask: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let ask = Arc::new(ask);
        Self(Arc::new(move || {
            let ask = Arc::clone(&ask);
            let mut asked = Box::pin(async move { ask().await.map_err(Into::into) });
            // A panic of the application's is an error of this connection, and not of the call that opens it.
            Box::pin(poll_fn(move |context| {
                let polled = catch_unwind(AssertUnwindSafe(|| asked.as_mut().poll(context)));
                polled.unwrap_or_else(|_| Poll::Ready(Err("the provider has panicked".into())))
            }))
        }))
    }

    /// Returns a provider that reads the password from a file, without the line break at its end.
    pub(crate) fn file(path: PathBuf) -> Self {
        Self::new(move || {
            let path = path.clone();
            async move {
                let shown = path.display().to_string();
                let read = spawn_blocking(move || std::fs::read_to_string(path)).await;
                match read {
                    Ok(Ok(text)) => Ok(Credentials::new(text.trim_end_matches(['\r', '\n']))),
                    Ok(Err(error)) => Err(format!("the password file {shown} cannot be read: {error}")),
                    Err(_) => Err(format!("the password file {shown} could not be read")),
                }
            }
        })
    }

    pub(crate) async fn ask(&self) -> Result<Credentials, BoxError> {
        (self.0)().await
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn password_file_is_read_again_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let provider = Provider::file(path.clone());
        let missing = provider.ask().await.unwrap_err().to_string();
        assert!(missing.contains("cannot be read"), "{missing}");
        for (content, password) in [("first\n", "first"), ("second ", "second "), ("", "")] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(provider.ask().await.unwrap().password, password);
        }
    }

    #[test]
    fn debug_output_shows_no_password() {
        let credentials = Credentials::new("s3cr3t").with_username("app");
        let shown = format!(
            "{credentials:?} {:?}",
            Provider::new(|| async { Ok::<_, BoxError>(Credentials::new("s3cr3t")) })
        );
        assert!(shown.contains("app") && !shown.contains("s3cr3t"), "{shown}");
    }
}
