//! Single flight: loads of one key at one time share one attempt within the process.
//!
//! An *attempt* sends calls (the cache's `acquire`, the database's read, the fill) and ends with a result. A load takes the
//! result only if the call that produced it was sent after the load had come; otherwise it joins one more attempt.
//!
//! An attempt belongs to no load. All that wait hold the same future, and whichever of them is polled drives it, so a load
//! that is alive and not polled holds up no other. When the last of them is dropped in the middle, a task sees the attempt
//! to its end: the lease that it holds is filled or given back, and the statement that it sent is not cut off.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use session_core::{BoxFuture, Record, Runtime, Stamp, StoredKey};

use crate::Error;

/// What a load found.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) record: Arc<Record>,
    /// The stamp of the cache's entry, if it holds this record.
    pub(crate) stamp: Option<Stamp>,
}

pub(crate) type LoadResult = Result<Option<Loaded>, Error>;

/// The number of a call that an attempt has sent. What a call answers is not older than its sending, so its result is good
/// for every load that came before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call(u32);

/// The calls that an attempt has sent so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(Arc<AtomicU32>);

impl Calls {
    /// Notes that a call is about to be sent.
    pub(crate) fn send(&self) -> Call {
        Call(self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn last(&self) -> Call {
        Call(self.0.load(Ordering::SeqCst))
    }
}

/// The result of an attempt, and the call that produced it.
pub(crate) type Landed = (Call, LoadResult);

/// The attempts of this process that are under way, at most one for each key.
#[derive(Debug)]
pub(crate) struct Flights {
    capacity: usize,
    by_key: Mutex<Attempts>,
}

#[derive(Debug, Default)]
struct Attempts {
    last_id: u64,
    by_key: HashMap<StoredKey, Attempt>,
}

#[derive(Debug)]
struct Attempt {
    id: u64,
    calls: Calls,
    future: Shared<BoxFuture<Landed>>,
    passengers: usize,
}

impl Flights {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, by_key: Mutex::default() }
    }

    /// Joins the attempt of `key` that is under way, or else starts the one that `begin` makes. Returns `None` if there are
    /// too many.
    pub(crate) fn join(
        self: &Arc<Self>,
        key: &StoredKey,
        runtime: &Arc<dyn Runtime>,
        begin: impl FnOnce(Calls) -> BoxFuture<Landed>,
    ) -> Option<Passenger> {
        let mut attempts = self.lock();
        let attempts = &mut *attempts;
        let is_full = attempts.by_key.len() >= self.capacity;
        let (attempt, has_joined) = match attempts.by_key.entry(*key) {
            Slot::Occupied(attempt) => (attempt.into_mut(), true),
            Slot::Vacant(_) if is_full => return None,
            Slot::Vacant(slot) => {
                attempts.last_id += 1;
                let calls = Calls::default();
                let attempt = AssertUnwindSafe(begin(calls.clone())).catch_unwind();
                // A codec of the application's has panicked: every load that waits gets an answer all the same.
                let attempt =
                    attempt.map(|landed| landed.unwrap_or((Call(u32::MAX), Err(Error::Interrupted))));
                let future = attempt.boxed().shared();
                (slot.insert(Attempt { id: attempts.last_id, calls, future, passengers: 0 }), false)
            }
        };
        attempt.passengers += 1;
        Some(Passenger {
            flights: Arc::clone(self),
            runtime: Arc::clone(runtime),
            key: *key,
            id: attempt.id,
            came_after: attempt.calls.last(),
            calls: attempt.calls.clone(),
            future: attempt.future.clone(),
            has_joined,
            is_task: false,
            is_over: false,
        })
    }

    /// Ends the attempt, if it is still this one.
    fn end(&self, key: &StoredKey, id: u64) {
        let mut attempts = self.lock();
        if attempts.by_key.get(key).is_some_and(|attempt| attempt.id == id) {
            attempts.by_key.remove(key);
        }
    }

    /// Notes that a passenger leaves before the end. Returns `true` if it was the last one.
    fn leave(&self, key: &StoredKey, id: u64) -> bool {
        let mut attempts = self.lock();
        match attempts.by_key.get_mut(key).filter(|attempt| attempt.id == id) {
            Some(attempt) => {
                attempt.passengers -= 1;
                attempt.passengers == 0
            }
            None => false,
        }
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self) -> impl std::hash::Hash + use<> {
        let attempts = self.lock();
        let digests = attempts.by_key.iter().map(|(key, attempt)| {
            (
                key.as_str().to_owned(),
                attempt.calls.last().0,
                attempt.passengers,
                attempt.future.peek().is_some(),
            )
        });
        digests.collect::<std::collections::BTreeSet<_>>()
    }

    fn lock(&self) -> MutexGuard<'_, Attempts> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A load that waits for an attempt, and drives it when it is polled. Resolves to the result if that is good for this load,
/// or to `None` if the load came too late for it.
pub(crate) struct Passenger {
    flights: Arc<Flights>,
    runtime: Arc<dyn Runtime>,
    key: StoredKey,
    id: u64,
    came_after: Call,
    calls: Calls,
    future: Shared<BoxFuture<Landed>>,
    has_joined: bool,
    /// It is the task that goes on with the attempt for loads that have left.
    is_task: bool,
    is_over: bool,
}

impl Passenger {
    /// Returns `true` if another load has started the attempt.
    pub(crate) const fn has_joined(&self) -> bool {
        self.has_joined
    }
}

impl Future for Passenger {
    type Output = Option<LoadResult>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready((call, result)) = self.future.poll_unpin(context) else { return Poll::Pending };
        self.is_over = true;
        self.flights.end(&self.key, self.id);
        // An error is no older for one than for the other, and to wait for the next attempt would take as long again.
        let is_good = self.came_after < call || result.is_err() || mutant!(UngatedFlight);
        Poll::Ready(is_good.then_some(result))
    }
}

impl Drop for Passenger {
    fn drop(&mut self) {
        if self.is_over || !self.flights.leave(&self.key, self.id) {
            return;
        }
        // Nothing was sent, so nothing is to be seen to its end. And a task that is dropped shows that the runtime ends.
        if self.calls.last() == Call(0) || self.is_task {
            return self.flights.end(&self.key, self.id);
        }
        if let Some(attempt) =
            self.flights.lock().by_key.get_mut(&self.key).filter(|attempt| attempt.id == self.id)
        {
            attempt.passengers += 1;
        }
        let task = Self {
            flights: Arc::clone(&self.flights),
            runtime: Arc::clone(&self.runtime),
            key: self.key,
            id: self.id,
            came_after: self.came_after,
            calls: self.calls.clone(),
            future: self.future.clone(),
            has_joined: self.has_joined,
            is_task: true,
            is_over: false,
        };
        self.runtime.spawn(task.map(drop).boxed());
    }
}
