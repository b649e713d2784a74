//! Loads of one key at one time, shared within the process.
//!
//! A flight makes one attempt after the other until everybody who waits is served. An attempt sends calls (the cache's
//! `acquire`, the database's read, the fill), and a caller is served by the first result that cannot be older than the
//! caller's coming. A flight belongs to no caller: whoever leaves, the others are served.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use session_core::{PersistenceError, Record, Stamp, StoredKey};
use tokio::sync::oneshot;

/// What a load found.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) record: Arc<Record>,
    /// The stamp of the cache's entry, if it holds this record.
    pub(crate) stamp: Option<Stamp>,
}

pub(crate) type LoadResult = Result<Option<Loaded>, Arc<PersistenceError>>;

/// The number of a call that a flight has sent. What a call tells is not older than its sending, so its result is good
/// for everybody who came before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call(u32);

/// The flights of this process.
#[derive(Debug)]
pub(crate) struct Flights {
    capacity: usize,
    by_key: Mutex<HashMap<StoredKey, Flight>>,
}

#[derive(Debug)]
struct Flight {
    last_sent: Call,
    waiting: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    came_after: Call,
    reply: oneshot::Sender<LoadResult>,
}

/// What somebody who loads a key becomes.
pub(crate) enum Role {
    /// The first. It makes the flight's first attempt, and is about to send this call.
    Leader(Call),
    /// One who waits.
    Follower(oneshot::Receiver<LoadResult>),
    /// One who reads the database alone, because there are too many flights.
    Loner,
}

impl Flights {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, by_key: Mutex::default() }
    }

    /// Joins the flight of `key`, or starts it.
    pub(crate) fn join(&self, key: &StoredKey) -> Role {
        let mut flights = self.lock();
        let full = flights.len() >= self.capacity;
        match flights.entry(*key) {
            Slot::Occupied(mut flight) => Role::Follower(flight.get_mut().wait()),
            Slot::Vacant(_) if full => Role::Loner,
            Slot::Vacant(slot) => {
                let first = Call(1);
                slot.insert(Flight { last_sent: first, waiting: Vec::new() });
                Role::Leader(first)
            }
        }
    }

    /// Says that a call is about to be sent.
    pub(crate) fn send(&self, key: &StoredKey) -> Call {
        self.lock().get_mut(key).map_or(Call(0), |flight| {
            flight.last_sent.0 += 1;
            flight.last_sent
        })
    }

    /// Gives `result` to all who came before `call` was sent; whether anybody is left. If nobody is, the flight is over.
    pub(crate) fn serve(&self, key: &StoredKey, call: Call, result: &LoadResult) -> bool {
        let mut flights = self.lock();
        let Slot::Occupied(mut slot) = flights.entry(*key) else { return false };
        let flight = slot.get_mut();
        let served: Vec<_> = flight
            .waiting
            .extract_if(.., |waiter| waiter.came_after < call || mutant!(UngatedFlight))
            .collect();
        let anybody_left = flight.has_company();
        if !anybody_left {
            slot.remove();
        }
        drop(flights);
        for waiter in served {
            // Whoever has left needs no answer.
            let _ = waiter.reply.send(result.clone());
        }
        anybody_left
    }

    /// Ends the flight if nobody waits for it; whether somebody does.
    pub(crate) fn end_if_empty(&self, key: &StoredKey) -> bool {
        let mut flights = self.lock();
        let Slot::Occupied(mut slot) = flights.entry(*key) else { return false };
        let anybody_left = slot.get_mut().has_company();
        if !anybody_left {
            slot.remove();
        }
        anybody_left
    }

    /// Ends the flight; those who wait are told that there will be no answer.
    pub(crate) fn abandon(&self, key: &StoredKey) {
        self.lock().remove(key);
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    #[cfg(feature = "__simulation")]
    pub(crate) fn digest(&self) -> impl std::hash::Hash + use<> {
        let flights = self.lock();
        let digests = flights.iter().map(|(key, flight)| {
            let waiting = flight.waiting.iter().map(|waiter| (waiter.came_after.0, waiter.reply.is_closed()));
            (key.as_str().to_owned(), flight.last_sent.0, waiting.collect::<Vec<_>>())
        });
        digests.collect::<std::collections::BTreeSet<_>>()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StoredKey, Flight>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn wait(&mut self) -> oneshot::Receiver<LoadResult> {
        let (reply, answer) = oneshot::channel();
        self.waiting.push(Waiter { came_after: self.last_sent, reply });
        answer
    }

    fn has_company(&mut self) -> bool {
        self.waiting.retain(|waiter| !waiter.reply.is_closed());
        !self.waiting.is_empty()
    }
}
