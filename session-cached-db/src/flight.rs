//! Single flight: loads of one key at one time share one attempt within the process.
//!
//! An *attempt* sends calls (the cache's `acquire`, the database's read, the fill) and ends with a result. A load takes the
//! result only if the call that produced it was sent after the load had come; otherwise it waits for one more attempt.
//!
//! An attempt belongs to no load. All that wait hold the same future, and whichever of them is polled drives it, so a load
//! that is alive and not polled holds up no other. When the last of them is dropped in the middle, a task sees the attempt
//! to its end: the lease that it holds is filled or given back, and the statement that it sent is not cut off.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "__simulation")]
use std::task::Poll;

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

/// The keys of this process that are being loaded.
#[derive(Debug)]
pub(crate) struct Flights {
    capacity: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    by_key: HashMap<StoredKey, Flight>,
}

/// An attempt that is under way, and the one after it, for loads that may come too late for its result. All of those are
/// aboard the next attempt before it begins, so it is good for every one of them.
#[derive(Debug)]
struct Flight {
    current: Attempt,
    next: Option<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    id: u64,
    calls: Calls,
    future: Shared<BoxFuture<Landed>>,
    passengers: usize,
    /// The loads that wait, by their tasks, and after which call each of them came.
    #[cfg(feature = "__simulation")]
    aboard: Vec<(u64, Call)>,
    /// Loads that wait without driving the attempt, as a seeded fault has it.
    #[cfg(feature = "__simulation")]
    wakers: Vec<std::task::Waker>,
}

impl Attempt {
    fn new<F>(last_id: &mut u64, begin: impl FnOnce(Calls) -> F) -> Self
    where
        F: Future<Output = Landed> + Send + 'static,
    {
        *last_id += 1;
        let calls = Calls::default();
        let attempt = AssertUnwindSafe(begin(calls.clone())).catch_unwind();
        // A codec of the application's has panicked: every load that waits gets an answer all the same.
        let attempt = attempt.map(|landed| landed.unwrap_or((Call(u32::MAX), Err(Error::Interrupted))));
        Self {
            id: *last_id,
            calls,
            future: attempt.boxed().shared(),
            passengers: 0,
            #[cfg(feature = "__simulation")]
            aboard: Vec::new(),
            #[cfg(feature = "__simulation")]
            wakers: Vec::new(),
        }
    }

    fn board(&mut self) -> Seat {
        self.passengers += 1;
        #[cfg(feature = "__simulation")]
        self.aboard.push((crate::simulation::current_task(), self.calls.last()));
        Seat {
            id: self.id,
            came_after: self.calls.last(),
            future: self.future.clone(),
            #[cfg(feature = "__simulation")]
            task: crate::simulation::current_task(),
        }
    }
}

impl Flights {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, table: Mutex::default() }
    }

    /// Joins the attempt of `key` that is under way, or else starts the one that `begin` makes. Returns `None` if too many
    /// keys are being loaded.
    pub(crate) fn join<F>(
        self: &Arc<Self>,
        key: &StoredKey,
        runtime: &Arc<dyn Runtime>,
        begin: impl FnOnce(Calls) -> F,
    ) -> Option<Passenger>
    where
        F: Future<Output = Landed> + Send + 'static,
    {
        let mut table = self.lock();
        let Table { last_id, by_key } = &mut *table;
        let is_full = by_key.len() >= self.capacity;
        let (flight, has_joined) = match by_key.entry(*key) {
            Slot::Occupied(flight) => (flight.into_mut(), true),
            Slot::Vacant(_) if is_full => return None,
            Slot::Vacant(slot) => {
                let current = Attempt::new(last_id, begin);
                let mut flight = Flight { current, next: None };
                let seat = flight.current.board();
                slot.insert(flight);
                return Some(self.passenger(key, runtime, seat, None, false));
            }
        };
        let seat = flight.current.board();
        // Before its first call was sent, the attempt is good for all that come.
        let next = (seat.came_after > Call(0))
            .then(|| flight.next.get_or_insert_with(|| Attempt::new(last_id, begin)).board());
        Some(self.passenger(key, runtime, seat, next, has_joined))
    }

    fn passenger(
        self: &Arc<Self>,
        key: &StoredKey,
        runtime: &Arc<dyn Runtime>,
        seat: Seat,
        next: Option<Seat>,
        has_joined: bool,
    ) -> Passenger {
        let (flights, runtime) = (Arc::clone(self), Arc::clone(runtime));
        Passenger { flights, runtime, key: *key, seat: Some(seat), next, has_joined, is_task: false }
    }

    /// Ends the attempt, if it is still under way: the next one takes its place.
    fn end(&self, key: &StoredKey, id: u64) {
        let mut table = self.lock();
        let Slot::Occupied(mut flight) = table.by_key.entry(*key) else { return };
        if flight.get().current.id == id {
            #[cfg(feature = "__simulation")]
            flight.get_mut().current.wakers.drain(..).for_each(std::task::Waker::wake);
            match flight.get_mut().next.take() {
                Some(next) => flight.get_mut().current = next,
                None => drop(flight.remove()),
            }
        }
    }

    /// Notes that a passenger leaves an attempt before its end. Returns `true` if it was the last one, and the attempt has
    /// begun: then the passenger keeps its place, and somebody has to go on with the attempt.
    fn leave(&self, key: &StoredKey, seat: &Seat, may_stay: bool) -> bool {
        let mut table = self.lock();
        let Slot::Occupied(mut flight) = table.by_key.entry(*key) else { return false };
        let Flight { current, next } = flight.get_mut();
        #[cfg(feature = "__simulation")]
        for attempt in [Some(&mut *current), next.as_mut()].into_iter().flatten() {
            if attempt.id == seat.id {
                attempt.aboard.retain(|(task, _)| *task != seat.task);
                attempt.wakers.drain(..).for_each(std::task::Waker::wake);
            }
        }
        if let Some(attempt) = next.as_mut().filter(|attempt| attempt.id == seat.id) {
            attempt.passengers -= 1;
            // It has not begun.
            if attempt.passengers == 0 {
                *next = None;
            }
            return false;
        }
        if current.id != seat.id {
            return false;
        }
        if current.passengers > 1 {
            current.passengers -= 1;
            return false;
        }
        if may_stay && current.calls.last() > Call(0) && !mutant!(CallerOwnsStatement) {
            return true;
        }
        match next.take() {
            Some(next) => *current = next,
            None => drop(flight.remove()),
        }
        false
    }

    /// Waits without driving the attempt, unless `task` is the first that is aboard.
    #[cfg(feature = "__simulation")]
    async fn wait_for_leader(&self, key: &StoredKey, id: u64, task: u64) {
        std::future::poll_fn(|context| {
            let mut table = self.lock();
            let Some(flight) = table.by_key.get_mut(key) else { return Poll::Ready(()) };
            let attempts = [Some(&mut flight.current), flight.next.as_mut()].into_iter().flatten();
            let Some(attempt) = attempts.into_iter().find(|attempt| attempt.id == id) else {
                return Poll::Ready(());
            };
            if attempt.aboard.first().is_none_or(|(first, _)| *first == task)
                || attempt.future.peek().is_some()
            {
                return Poll::Ready(());
            }
            attempt.wakers.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self) -> impl std::hash::Hash + use<> {
        let table = self.lock();
        let of = |attempt: &Attempt| {
            let mut aboard: Vec<_> = attempt.aboard.iter().map(|(task, call)| (*task, call.0)).collect();
            aboard.sort_unstable();
            (attempt.calls.last().0, attempt.passengers, aboard, attempt.future.peek().is_some())
        };
        let digests = table.by_key.iter().map(|(key, flight)| {
            (key.as_str().to_owned(), of(&flight.current), flight.next.as_ref().map(of))
        });
        digests.collect::<std::collections::BTreeSet<_>>()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A load's place in an attempt.
struct Seat {
    id: u64,
    came_after: Call,
    future: Shared<BoxFuture<Landed>>,
    #[cfg(feature = "__simulation")]
    task: u64,
}

/// A load that waits for an attempt, and drives it when it is polled.
pub(crate) struct Passenger {
    flights: Arc<Flights>,
    runtime: Arc<dyn Runtime>,
    key: StoredKey,
    seat: Option<Seat>,
    /// In the attempt after that, for a load that may come too late for the result of this one.
    next: Option<Seat>,
    has_joined: bool,
    /// It is the task that goes on with the attempt for loads that have left.
    is_task: bool,
}

impl Passenger {
    /// Returns `true` if another load has started the attempt.
    pub(crate) const fn has_joined(&self) -> bool {
        self.has_joined
    }

    /// Waits for the attempt's result. Returns `None` if this load came too late for it, and is aboard the next attempt now.
    pub(crate) async fn ride(&mut self) -> Option<LoadResult> {
        loop {
            let seat = self.seat.as_mut()?;
            mutant!(LeaderOwnsFlight => self.flights.wait_for_leader(&self.key, seat.id, seat.task).await);
            let (call, result) = (&mut seat.future).await;
            let (id, came_after) = (seat.id, seat.came_after);
            self.seat = None;
            self.flights.end(&self.key, id);
            // An error is no older for one load than for another, and the next attempt would take as long again.
            if came_after < call || result.is_err() || mutant!(UngatedFlight) {
                return Some(result);
            }
            self.seat = self.next.take();
            if self.seat.is_some() {
                return None;
            }
        }
    }
}

impl Drop for Passenger {
    fn drop(&mut self) {
        if let Some(next) = self.next.take() {
            self.flights.leave(&self.key, &next, false);
        }
        let Some(seat) = self.seat.take() else { return };
        // A task that is dropped shows that the runtime ends.
        if !self.flights.leave(&self.key, &seat, !self.is_task) {
            return;
        }
        let mut task = Self {
            flights: Arc::clone(&self.flights),
            runtime: Arc::clone(&self.runtime),
            key: self.key,
            seat: Some(seat),
            next: None,
            has_joined: self.has_joined,
            is_task: true,
        };
        self.runtime.spawn(Box::pin(async move {
            task.ride().await;
        }));
    }
}
