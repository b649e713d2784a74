//! Single flight: loads of one key at one time share one attempt within the process.
//!
//! An *attempt* sends calls (the cache's `acquire`, the database's read, the fill) and ends with a result. A load takes the
//! result only if the call that produced it was sent after the load had come; otherwise it waits for one more attempt.
//!
//! An attempt belongs to no load. All loads that wait hold the same future, and each of them drives it when it is polled, so a
//! load that is alive and not polled holds up no other. When the last of them is dropped in the middle, a task sees the attempt
//! to its end: its lease is filled or released, and the statement that it sent is not cut off.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "__simulation")]
use std::task::Poll;

use session_core::{Runtime, StoredKey};

use super::attempt::{Attempt, AttemptResult, Call};
pub(super) use super::attempt::{Attempted, Calls, LoadResult};

/// The keys of this process that are being loaded.
#[derive(Debug)]
pub(crate) struct SingleFlight {
    capacity: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    by_key: HashMap<StoredKey, Flight>,
}

/// The attempt that is under way, and the one after it, for loads that may come too late for the first one's result. They all
/// wait for the next attempt before it begins, so its result is good for every one of them.
#[derive(Debug)]
struct Flight {
    current: Group,
    next: Option<Group>,
}

/// An attempt, and the loads that wait for it.
#[derive(Debug)]
struct Group {
    id: u64,
    attempt: Attempt,
    waiters: usize,
    /// The number of the load that comes next.
    next_number: usize,
    /// The loads that wait, by their tasks, and after which call each of them came.
    #[cfg(feature = "__simulation")]
    waiting: Vec<(u64, Call)>,
    /// Loads that wait without driving the attempt, as a seeded fault has it.
    #[cfg(feature = "__simulation")]
    wakers: Vec<std::task::Waker>,
}

impl Group {
    fn new<F>(last_id: &mut u64, begin: impl FnOnce(Calls) -> F) -> Self
    where
        F: Future<Output = Attempted> + Send + 'static,
    {
        *last_id += 1;
        Self {
            id: *last_id,
            attempt: Attempt::new(begin),
            waiters: 0,
            next_number: 0,
            #[cfg(feature = "__simulation")]
            waiting: Vec::new(),
            #[cfg(feature = "__simulation")]
            wakers: Vec::new(),
        }
    }

    fn enter(&mut self) -> Ticket {
        let came_after = self.attempt.last_call();
        let result = self.attempt.result(self.next_number);
        self.waiters += 1;
        self.next_number += 1;
        #[cfg(feature = "__simulation")]
        self.waiting.push((crate::simulation::current_task(), came_after));
        Ticket {
            id: self.id,
            came_after,
            result,
            #[cfg(feature = "__simulation")]
            task: crate::simulation::current_task(),
        }
    }
}

impl SingleFlight {
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
    ) -> Option<Waiter>
    where
        F: Future<Output = Attempted> + Send + 'static,
    {
        let mut table = self.lock();
        let Table { last_id, by_key } = &mut *table;
        let is_full = by_key.len() >= self.capacity;
        let (flight, has_joined) = match by_key.entry(*key) {
            Slot::Occupied(flight) => (flight.into_mut(), true),
            Slot::Vacant(_) if is_full => return None,
            Slot::Vacant(slot) => {
                let current = Group::new(last_id, begin);
                let mut flight = Flight { current, next: None };
                let ticket = flight.current.enter();
                slot.insert(flight);
                return Some(self.waiter(key, runtime, ticket, None, false));
            }
        };
        let ticket = flight.current.enter();
        // Before its first call was sent, the attempt is good for all that come.
        let next = (ticket.came_after > Call(0))
            .then(|| flight.next.get_or_insert_with(|| Group::new(last_id, begin)).enter());
        Some(self.waiter(key, runtime, ticket, next, has_joined))
    }

    fn waiter(
        self: &Arc<Self>,
        key: &StoredKey,
        runtime: &Arc<dyn Runtime>,
        ticket: Ticket,
        next: Option<Ticket>,
        has_joined: bool,
    ) -> Waiter {
        let (single_flight, runtime) = (Arc::clone(self), Arc::clone(runtime));
        Waiter { single_flight, runtime, key: *key, ticket: Some(ticket), next, has_joined, is_task: false }
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

    /// Notes that a waiter leaves an attempt before its end. Returns `true` if it was the last one, and the attempt has
    /// begun: then the waiter keeps its place, and the caller has to go on with the attempt.
    fn leave(&self, key: &StoredKey, ticket: &Ticket, may_stay: bool) -> bool {
        let mut table = self.lock();
        let Slot::Occupied(mut flight) = table.by_key.entry(*key) else { return false };
        let Flight { current, next } = flight.get_mut();
        #[cfg(feature = "__simulation")]
        for group in [Some(&mut *current), next.as_mut()].into_iter().flatten() {
            if group.id == ticket.id {
                group.waiting.retain(|(task, _)| *task != ticket.task);
                group.wakers.drain(..).for_each(std::task::Waker::wake);
            }
        }
        if let Some(group) = next.as_mut().filter(|group| group.id == ticket.id) {
            group.waiters -= 1;
            // Its attempt has not begun.
            if group.waiters == 0 {
                *next = None;
            }
            return false;
        }
        if current.id != ticket.id {
            return false;
        }
        if current.waiters > 1 {
            current.waiters -= 1;
            return false;
        }
        if may_stay && current.attempt.last_call() > Call(0) && !mutant!(CallerOwnsStatement) {
            return true;
        }
        match next.take() {
            Some(next) => *current = next,
            None => drop(flight.remove()),
        }
        false
    }

    /// Waits without driving the attempt, unless `task` is the first that is waiting.
    #[cfg(feature = "__simulation")]
    async fn wait_for_leader(&self, key: &StoredKey, id: u64, task: u64) {
        std::future::poll_fn(|context| {
            let mut table = self.lock();
            let Some(flight) = table.by_key.get_mut(key) else { return Poll::Ready(()) };
            let groups = [Some(&mut flight.current), flight.next.as_mut()].into_iter().flatten();
            let Some(group) = groups.into_iter().find(|group| group.id == id) else {
                return Poll::Ready(());
            };
            if group.waiting.first().is_none_or(|(first, _)| *first == task) || group.attempt.has_ended() {
                return Poll::Ready(());
            }
            group.wakers.push(context.waker().clone());
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
        let of = |group: &Group| {
            let mut waiting: Vec<_> = group.waiting.iter().map(|(task, call)| (*task, call.0)).collect();
            waiting.sort_unstable();
            (group.attempt.last_call().0, group.waiters, waiting, group.attempt.has_ended())
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
struct Ticket {
    id: u64,
    came_after: Call,
    result: AttemptResult,
    #[cfg(feature = "__simulation")]
    task: u64,
}

/// A load that waits for an attempt, and drives it when it is polled.
pub(crate) struct Waiter {
    single_flight: Arc<SingleFlight>,
    runtime: Arc<dyn Runtime>,
    key: StoredKey,
    ticket: Option<Ticket>,
    /// In the attempt after that, for a load that may come too late for the result of this one.
    next: Option<Ticket>,
    has_joined: bool,
    /// `true` for the task that goes on with the attempt after its loads were dropped.
    is_task: bool,
}

impl Waiter {
    /// Returns `true` if another load has started the attempt.
    pub(crate) const fn has_joined(&self) -> bool {
        self.has_joined
    }

    /// Returns `true` if this load may come too late for the attempt under way, and then waits for the next one.
    pub(crate) const fn may_wait_twice(&self) -> bool {
        self.next.is_some()
    }

    /// Waits for the attempt's result. Returns `None` if this load came too late for it, and waits for the next attempt now.
    pub(crate) async fn wait(&mut self) -> Option<LoadResult> {
        loop {
            let ticket = self.ticket.as_mut()?;
            mutant!(LeaderOwnsFlight => self.single_flight.wait_for_leader(&self.key, ticket.id, ticket.task).await);
            let (call, result) = (&mut ticket.result).await;
            let (id, came_after) = (ticket.id, ticket.came_after);
            self.ticket = None;
            self.single_flight.end(&self.key, id);
            // An error is no older for one load than for another, and the next attempt would take as long again.
            if came_after < call || result.is_err() || mutant!(UngatedFlight) {
                return Some(result);
            }
            self.ticket = self.next.take();
            if self.ticket.is_some() {
                return None;
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // The attempt after the one that this load waits for may have begun, if another load has seen that one end.
        for ticket in [self.next.take(), self.ticket.take()].into_iter().flatten() {
            // A task that is dropped shows that the runtime ends.
            if self.single_flight.leave(&self.key, &ticket, !self.is_task) {
                self.go_on(ticket);
            }
        }
    }
}

impl Waiter {
    /// Sees the attempt of `ticket` to its end in a task.
    fn go_on(&self, ticket: Ticket) {
        let mut task = Self {
            single_flight: Arc::clone(&self.single_flight),
            runtime: Arc::clone(&self.runtime),
            key: self.key,
            ticket: Some(ticket),
            next: None,
            has_joined: self.has_joined,
            is_task: true,
        };
        // Not one of the store's counted tasks: it only reads, and is over after one attempt, so `close` need not wait for it.
        self.runtime.spawn(Box::pin(async move {
            task.wait().await;
        }));
    }
}
