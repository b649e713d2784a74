//! Timers, and the purpose of each.

use std::task::Waker;
use std::time::Duration;

use session_core::Timestamp;

use super::World;
use crate::simulation::settings::{
    CACHE_TIMEOUT, NEAR_PATIENCE, NEAR_PING, NEAR_WAIT, PROBE_INTERVAL, WRITE_TIMEOUT,
};
use crate::simulation::task_id::TaskId;

/// The maximum time that a load waits for one more attempt.
const LONGEST_LOAD: Duration = Duration::from_millis(5_200);

/// The longest pause before an exchange is tried again.
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// The purpose of a timer, recognized by its duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::simulation) enum Purpose {
    /// The pause of the task that maintains the cache. It may end at any moment.
    Maintain,
    /// The longest wait of a load for one more attempt, or of a write for its turn. It ends only when that time has passed.
    Wait,
    /// The wait of a final operation with a near cache. It ends only when that time has passed.
    Final,
    /// The deadline of a call. It passes by a fault only, which looks like any other lost answer.
    Call,
}

#[derive(Debug)]
pub(in crate::simulation) struct Timer {
    pub(super) number: u32,
    pub(in crate::simulation) purpose: Purpose,
    pub(in crate::simulation) due: Timestamp,
    pub(super) has_fired: bool,
    pub(super) waker: Waker,
}

impl World {
    pub(in crate::simulation) fn set_timer(
        &mut self,
        duration: Duration,
        waker: &Waker,
    ) -> Option<(TaskId, u32)> {
        let purpose = match duration {
            // A pause before an exchange changes nothing but the time, and that little.
            pause if pause <= LONGEST_PAUSE => return None,
            CACHE_TIMEOUT | NEAR_PATIENCE => Purpose::Call,
            NEAR_PING => Purpose::Maintain,
            NEAR_WAIT => Purpose::Final,
            pause if pause <= PROBE_INTERVAL => Purpose::Maintain,
            LONGEST_LOAD | WRITE_TIMEOUT => Purpose::Wait,
            _ => Purpose::Call,
        };
        let (id, due) = (self.polling, self.now + duration);
        let task = self.task(id);
        if purpose == Purpose::Maintain {
            // The task runs a loop, and is at the loop's beginning.
            task.is_maintaining = true;
            task.log = 0;
        }
        task.next_timer += 1;
        let number = task.next_timer;
        task.timers.push(Timer { number, purpose, due, has_fired: false, waker: waker.clone() });
        Some((id, number))
    }

    /// Returns `true` if a timer has fired. If not, `waker` is woken when it does.
    pub(in crate::simulation) fn has_fired(&mut self, task: TaskId, number: u32, waker: &Waker) -> bool {
        let timer = self.task(task).timers.iter_mut().find(|timer| timer.number == number);
        let timer = timer.expect("a timer that was not cleared");
        timer.waker.clone_from(waker);
        timer.has_fired
    }

    /// Lets the first timer of a task fire, and returns the waker to wake.
    pub(in crate::simulation) fn fire(&mut self, task: TaskId) -> Waker {
        let first = self.task(task).timers.iter_mut().min_by_key(|timer| timer.due);
        let first = first.expect("a timer that fires");
        first.has_fired = true;
        first.waker.clone()
    }

    pub(in crate::simulation) fn clear_timer(&mut self, task: TaskId, timer: u32) {
        if let Some(state) = self.tasks.get_mut(&task) {
            state.timers.retain(|other| other.number != timer);
        }
        self.forget_if_over(task);
    }
}
