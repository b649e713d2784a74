//! A future that several loads wait for and drive together, and its result.
//!
//! The `Shared` of the crate `futures-util` could do the same. But when it ends it also wakes the waiter that has just driven
//! it to its end, whose task is then polled once more for nothing: a tenth of the work of a hit in a remote cache.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt as _;
use session_core::BoxFuture;

use crate::Error;
use crate::coherence::Loaded;

/// The result of a load.
pub(crate) type LoadResult = Result<Option<Loaded>, Error>;

/// The number of a call that an attempt has sent. The answer to a call is not older than its sending, so it is good for every
/// load that came before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call(pub(super) u32);

/// The result of an attempt, and the call that produced it.
pub(crate) type Attempted = (Call, LoadResult);

/// The calls that an attempt has sent so far, and the loads that wait for it.
#[derive(Debug, Default)]
struct Progress {
    calls: AtomicU32,
    wakers: Mutex<Wakers>,
}

/// The wakers of the loads that were polled since the last wake-up, by their numbers.
#[derive(Debug, Default)]
struct Wakers {
    /// The waker of the first load, which is mostly the only one.
    first: Option<Waker>,
    others: BTreeMap<usize, Waker>,
    /// The future was woken since a load began to drive it.
    is_woken: bool,
}

impl Progress {
    fn wakers(&self) -> MutexGuard<'_, Wakers> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the load with this number is polled.
    fn note_waiter(&self, number: usize, waker: &Waker) {
        let mut wakers = self.wakers();
        let known = match number {
            0 => wakers.first.as_mut(),
            _ => wakers.others.get_mut(&number),
        };
        match known {
            Some(known) => known.clone_from(waker),
            None if number == 0 => wakers.first = Some(waker.clone()),
            None => drop(wakers.others.insert(number, waker.clone())),
        }
    }

    fn wake_all(&self) {
        let mut wakers = self.wakers();
        wakers.is_woken = true;
        let (first, others) = (wakers.first.take(), std::mem::take(&mut wakers.others));
        drop(wakers);
        first.into_iter().for_each(Waker::wake);
        others.into_values().for_each(Waker::wake);
    }

    fn wake_all_but(&self, number: usize) {
        self.forget_waiter(number);
        self.wake_all();
    }

    fn forget_waiter(&self, number: usize) {
        let mut wakers = self.wakers();
        match number {
            0 => wakers.first = None,
            _ => drop(wakers.others.remove(&number)),
        }
    }
}

/// The waker of the attempt's future: every load that waits may have to drive it.
impl Wake for Progress {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

/// The calls that an attempt has sent so far.
#[derive(Clone, Debug)]
pub(crate) struct Calls(Arc<Progress>);

impl Calls {
    /// Notes that a call is about to be sent.
    pub(super) fn send(&self) -> Call {
        Call(self.0.calls.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

enum State {
    /// No load is driving the future just now.
    Waiting(BoxFuture<Attempted>),
    /// A load on another thread is driving the future.
    Driven,
    Ended(Attempted),
}

/// A handle to an attempt. Clones are handles to the same one.
#[derive(Clone)]
pub(super) struct Attempt {
    progress: Arc<Progress>,
    state: Arc<Mutex<State>>,
}

impl Attempt {
    pub(super) fn new<F>(begin: impl FnOnce(Calls) -> F) -> Self
    where
        F: Future<Output = Attempted> + Send + 'static,
    {
        let progress = Arc::<Progress>::default();
        let future = AssertUnwindSafe(begin(Calls(Arc::clone(&progress)))).catch_unwind();
        // If a codec of the application panics, every load that waits gets an answer all the same.
        let future = future.map(|attempted| attempted.unwrap_or((Call(u32::MAX), Err(Error::Interrupted))));
        Self { progress, state: Arc::new(Mutex::new(State::Waiting(future.boxed()))) }
    }

    /// Returns the last call that was sent.
    pub(super) fn last_call(&self) -> Call {
        Call(self.progress.calls.load(Ordering::SeqCst))
    }

    /// Returns a future of the result for the load with this number. The numbers of loads differ, and the first is 0.
    pub(super) fn result(&self, number: usize) -> AttemptResult {
        AttemptResult { attempt: self.clone(), number }
    }

    #[cfg(feature = "__simulation")]
    pub(super) fn has_ended(&self) -> bool {
        matches!(*self.lock(), State::Ended(_))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of an attempt, for one load that waits for it. Drives the attempt when it is polled.
pub(super) struct AttemptResult {
    attempt: Attempt,
    number: usize,
}

impl Future for AttemptResult {
    type Output = Attempted;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Attempted> {
        let Attempt { progress, .. } = &self.attempt;
        let mut state = self.attempt.lock();
        if let State::Ended(attempted) = &*state {
            return Poll::Ready(attempted.clone());
        }
        // Before the future is driven, so that no wake-up is missed.
        progress.note_waiter(self.number, context.waker());
        let State::Waiting(mut future) = std::mem::replace(&mut *state, State::Driven) else {
            return Poll::Pending;
        };
        drop(state);
        progress.wakers().is_woken = false;
        let waker = Waker::from(Arc::clone(progress));
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut state = self.attempt.lock();
        let Poll::Ready(attempted) = polled else {
            *state = State::Waiting(future);
            drop(state);
            // A load that was polled meanwhile has missed the wake-up, and this one may never be polled again.
            if progress.wakers().is_woken {
                progress.wake_all();
            }
            return Poll::Pending;
        };
        *state = State::Ended(attempted.clone());
        drop(state);
        progress.wake_all_but(self.number);
        Poll::Ready(attempted)
    }
}

/// A load that leaves may have been the one that was woken, so another one has to drive the attempt.
impl Drop for AttemptResult {
    fn drop(&mut self) {
        if !matches!(*self.attempt.lock(), State::Ended(_)) {
            self.attempt.progress.wake_all_but(self.number);
        }
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("progress", &self.progress).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// An attempt that ends when something is sent.
    fn attempt() -> (Attempt, oneshot::Sender<()>) {
        let (sender, receiver) = oneshot::channel();
        let attempt = Attempt::new(|calls| async move {
            let call = calls.send();
            let _ = receiver.await;
            (call, Ok(None))
        });
        (attempt, sender)
    }

    fn poll(result: &mut AttemptResult, count: &Arc<Count>) -> bool {
        let waker = Waker::from(Arc::clone(count));
        Pin::new(result).poll(&mut Context::from_waker(&waker)).is_ready()
    }

    #[test]
    fn load_that_drives_the_attempt_to_its_end_is_woken_once() {
        let (attempt, sender) = attempt();
        let (mut result, count) = (attempt.result(0), Arc::new(Count::default()));
        assert!(!poll(&mut result, &count));
        assert_eq!((count.get(), attempt.last_call()), (0, Call(1)));
        sender.send(()).unwrap();
        assert!(poll(&mut result, &count));
        assert_eq!(count.get(), 1);
    }

    #[test]
    fn every_load_is_woken_and_any_of_them_drives() {
        let (attempt, sender) = attempt();
        let mut results: Vec<_> = (0..3).map(|number| attempt.result(number)).collect();
        let counts: Vec<_> = (0..3).map(|_| Arc::new(Count::default())).collect();
        for (result, count) in results.iter_mut().zip(&counts) {
            assert!(!poll(result, count));
        }
        sender.send(()).unwrap();
        assert!(counts.iter().all(|count| count.get() == 1));
        assert!(poll(&mut results[2], &counts[2]));
        assert!(poll(&mut results[0], &counts[0]));
        assert!(poll(&mut results[1], &counts[1]));
    }

    #[test]
    fn many_loads_wait_and_are_all_woken() {
        let (attempt, sender) = attempt();
        let mut results: Vec<_> = (0..20_000).map(|number| attempt.result(number)).collect();
        let count = Arc::new(Count::default());
        for result in &mut results {
            assert!(!poll(result, &count));
        }
        sender.send(()).unwrap();
        assert_eq!(count.get(), results.len());
        assert!(results.iter_mut().all(|result| poll(result, &count)));
    }

    #[test]
    fn load_that_is_polled_while_another_ends_the_attempt_is_woken() {
        let (attempt, sender) = attempt();
        let (mut first, mut second) = (attempt.result(0), attempt.result(1));
        let counts = [Arc::new(Count::default()), Arc::new(Count::default())];
        assert!(!poll(&mut first, &counts[0]));
        sender.send(()).unwrap();
        // As if the first load were driving it on another thread.
        let taken = std::mem::replace(&mut *attempt.lock(), State::Driven);
        assert!(!poll(&mut second, &counts[1]));
        *attempt.lock() = taken;
        assert!(poll(&mut first, &counts[0]));
        assert_eq!(counts[1].get(), 1);
        assert!(poll(&mut second, &counts[1]));
    }

    #[test]
    fn load_that_is_dropped_after_it_was_woken_wakes_the_others() {
        let (attempt, sender) = attempt();
        let (mut first, mut second) = (attempt.result(0), attempt.result(1));
        let counts = [Arc::new(Count::default()), Arc::new(Count::default())];
        assert!(!poll(&mut first, &counts[0]));
        sender.send(()).unwrap();
        // The attempt's own wake-up is over, as it is for a load that was polled while another one drove.
        attempt.progress.note_waiter(1, &Waker::from(Arc::clone(&counts[1])));
        drop(first);
        assert_eq!(counts[1].get(), 1);
        assert!(poll(&mut second, &counts[1]));
    }

    #[test]
    fn wake_up_while_a_load_drives_reaches_it() {
        let wakes = Attempt::new(|_| async {
            tokio::task::yield_now().await;
            (Call(1), Ok(None))
        });
        let (mut result, count) = (wakes.result(0), Arc::new(Count::default()));
        assert!(!poll(&mut result, &count));
        assert_eq!(count.get(), 1);
        assert!(poll(&mut result, &count));
    }

    #[test]
    fn panic_in_the_future_is_an_answer() {
        let panics = Attempt::new(|_| async { panic!("as a codec may") });
        let mut result = panics.result(0);
        let polled = Pin::new(&mut result).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready((_, Err(Error::Interrupted)))));
    }
}
