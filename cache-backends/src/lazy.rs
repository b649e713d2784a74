//! A client or connection that is made by the first call, and made again by a later one.

use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

/// A function that makes the value.
pub(crate) type Make<T, E> = Box<dyn Fn() -> BoxFuture<'static, Result<T, E>> + Send + Sync>;

/// An attempt to make the value, shared by all callers. It belongs to none of them: it continues when they
/// are gone.
pub(crate) type Attempt<T, E> = Shared<BoxFuture<'static, Result<T, E>>>;

/// A value that the first call makes.
pub(crate) struct Lazy<T, E> {
    make: Make<T, E>,
    current: Mutex<Option<Attempt<T, E>>>,
}

impl<T, E> Lazy<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(make: Make<T, E>) -> Self {
        Self { make, current: Mutex::new(None) }
    }

    /// Returns the current attempt. Begins one if there is none, or if the last one has failed.
    pub(crate) fn attempt(&self) -> Attempt<T, E> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // An attempt may fail after its caller has dropped the future. Do not return such an old error to a
        // later caller.
        let current = match &mut *current {
            Some(attempt) if !attempt.peek().is_some_and(Result::is_err) => attempt,
            current => current.insert(self.begin()),
        };
        current.clone()
    }

    fn begin(&self) -> Attempt<T, E> {
        let attempt = (self.make)().shared();
        tokio::spawn(attempt.clone());
        attempt
    }

    /// Discards the result of `attempt`, so that the next call makes the value again. Does nothing if a newer
    /// attempt was begun meanwhile.
    pub(crate) fn forget(&self, attempt: &Attempt<T, E>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| current.ptr_eq(attempt)) {
            *current = None;
        }
    }
}
