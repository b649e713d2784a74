//! A client or connection that the first call makes, and a later one makes again.

use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

/// Makes it.
pub(crate) type Make<T, E> = Box<dyn Fn() -> BoxFuture<'static, Result<T, E>> + Send + Sync>;

/// An attempt to make it that all callers share. It belongs to none of them: it goes on when they are gone.
pub(crate) type Attempt<T, E> = Shared<BoxFuture<'static, Result<T, E>>>;

/// What the first call makes.
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

    /// The present attempt, begun now if there is none, or if the last one has failed.
    pub(crate) fn attempt(&self) -> Attempt<T, E> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // The caller that began it may have left when it failed. Do not show a later caller an error from then.
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

    /// Lets the next call make it anew, unless another one did so already: what `attempt` brought is of no use.
    pub(crate) fn forget(&self, attempt: &Attempt<T, E>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| current.ptr_eq(attempt)) {
            *current = None;
        }
    }
}
