//! What must hold when nothing happens any more.

use std::time::Duration;

use session_cached_db::CachedDb;
use session_core::{Entry, State};

use super::{FIRST_PROBE, Judged, Simulation, awaits_repair};
use crate::sim::operation::Operation;
use crate::sim::oracle::Promise;
use crate::sim::world::{
    AHEAD, CLOCK_SLACK, FENCE_TTL, KEYS, LEASE_TTL, MAX_CACHE_AGE, VALUE_LAZINESS, World, lock,
};

impl Simulation<'_> {
    /// Judges a state in which nothing happens any more.
    pub(super) fn finish(&mut self) -> Judged {
        let awaits = self.stores.iter().flatten().any(awaits_repair);
        let is_untroubled = self.faults_left == self.scenario.faults;
        {
            let world = lock(&self.world);
            if let Some(stuck) = self.tasks.iter().find(|task| world.tasks[&task.id].timers.is_empty()) {
                return Err(format!("{:?} waits for something that nobody will do", stuck.id));
            }
            for key in 0..KEYS.len() {
                self.check_left_behind(&world, key, is_untroubled)?;
            }
        }
        if !awaits {
            self.check_quiet_cache()?;
        }
        self.drain()?;
        self.check_quiet_cache()?;
        if self.stores.iter().all(Option::is_none) {
            // The process is started again.
            self.stores[0] = Some(self.store(0));
        }
        let mut probe = FIRST_PROBE;
        if !self.is_bounded_only() {
            self.probe_all(&mut probe, false)?;
        }
        self.let_pass(FENCE_TTL + CLOCK_SLACK + LEASE_TTL + AHEAD);
        if !self.is_bounded_only() {
            self.probe_all(&mut probe, true)?;
        }
        self.let_pass(MAX_CACHE_AGE + VALUE_LAZINESS + AHEAD);
        self.exposed.clear();
        self.repairs_lost = false;
        self.probe_all(&mut probe, true)?;
        if self.stores.iter().flatten().any(|store| store.__flights() > 0) {
            return Err("a flight is left behind".into());
        }
        Ok(())
    }

    pub(super) fn let_pass(&mut self, time: Duration) {
        let mut world = lock(&self.world);
        world.pass(time);
        self.oracle.tick(world.now);
    }

    fn check_left_behind(&self, world: &World, key: usize, is_untroubled: bool) -> Judged {
        let Some(entry) = world.entry(key) else { return Ok(()) };
        match &entry.state {
            State::Lease | State::Fence(_) if is_untroubled => {
                Err("a lease or a fence is left behind, although nothing went wrong".into())
            }
            _ => Ok(()),
        }
    }

    /// What the cache shows is what the database has, but for an expiry that is earlier.
    fn check_quiet_cache(&self) -> Judged {
        if self.is_bounded_only() {
            return Ok(());
        }
        let world = lock(&self.world);
        for (key, name) in KEYS.iter().enumerate() {
            let Some(Entry { state: State::Value(value), .. }) = world.entry(key) else { continue };
            let record = &value.record;
            if !session_core::protocol::is_servable(value, world.now, MAX_CACHE_AGE) {
                continue;
            }
            let is_true = world.row(key).is_some_and(|row| {
                row.payload() == record.payload()
                    && row.version() == record.version()
                    && row.subject() == record.subject()
                    && row.expires_at() >= record.expires_at()
            });
            if !is_true {
                return Err(format!(
                    "all is quiet, but the cache does not show what the database has under {name}"
                ));
            }
        }
        Ok(())
    }

    /// Lets the store's own tasks come to their end.
    fn drain(&mut self) -> Judged {
        for _ in 0..200 {
            if self.tasks.is_empty() {
                return Ok(());
            }
            self.serve_all();
            self.run_woken()?;
            let next = {
                let world = lock(&self.world);
                let idle = world.tasks.iter().filter(|(_, task)| task.call.is_none());
                let due =
                    idle.filter_map(|(id, task)| Some((task.timers.iter().map(|timer| timer.1).min()?, *id)));
                due.min().map(|(due, id)| (due.since(world.now), id))
            };
            if let Some((time, id)) = next {
                self.let_pass(time);
                self.fire(id);
                self.run_woken()?;
            }
        }
        Err("a task is left behind that does not come to its end".into())
    }

    /// Loads everything twice in every process. `is_calm` says that leases and fences have run out, so that the second
    /// load of a session must be a hit.
    fn probe_all(&mut self, probe: &mut usize, is_calm: bool) -> Judged {
        for process in 0..self.stores.len() {
            if self.stores[process].is_none() {
                continue;
            }
            for (key, operation) in [Operation::Load, Operation::LoadB].into_iter().enumerate() {
                if self.stores[process].as_ref().is_some_and(CachedDb::__breaker_is_open) {
                    // This one only makes the store find out that the cache answers again.
                    self.probe(probe, process, operation)?;
                }
                self.probe(probe, process, operation)?;
                let reads = lock(&self.world).reads;
                self.probe(probe, process, operation)?;
                let world = lock(&self.world);
                let is_there = world.row(key).is_some_and(|row| !row.is_expired(world.now + AHEAD));
                if is_calm && is_there && world.reads > reads {
                    return Err(format!("the cache is of no use to {} any more", KEYS[key]));
                }
            }
        }
        Ok(())
    }

    fn probe(&mut self, probe: &mut usize, process: usize, operation: Operation) -> Judged {
        let number = *probe;
        *probe += 1;
        self.begin(number, operation, process, None);
        if !self.exposed.is_empty() {
            self.oracle.promise(number, Promise::Fresh);
        }
        for _ in 0..20 {
            self.run_woken()?;
            if self.tasks.iter().all(|task| task.is_background) {
                // The load may have found that the cache needs to be looked after.
                return self.drain();
            }
            self.serve_all();
        }
        Err("a load does not come to its end".into())
    }
}
