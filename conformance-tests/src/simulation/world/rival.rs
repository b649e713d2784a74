//! A rival process, which gets ahead of exchanges.

use std::time::Duration;

use session_core::{Entry, Holder, Stamp, Token, protocol};

use super::World;
use crate::simulation::settings::{CLOCK_SLACK, FENCE_TTL};
use crate::simulation::task_id::TaskId;

/// The operation to which the exchanges of the rival process belong.
const RIVAL: usize = 97;

impl World {
    /// Lets the rival process, which writes nothing, fence A, or settle its fence if it has one there. Both
    /// replace the stamp.
    pub(in crate::simulation) fn rival(&mut self) {
        self.polling = TaskId::of_operation(RIVAL);
        self.acting = self.polling;
        let now = self.now;
        match self.rival.take() {
            None => {
                let token = Token(self.draw_number());
                self.rival = Some(token);
                let holder = Holder { token, deadline: now + FENCE_TTL };
                let fence = protocol::fence(self.entry(0), holder, now, CLOCK_SLACK);
                let ttl = fence.ttl(now);
                let stamp = Stamp(self.draw_number());
                self.place(0, Some(Entry::fence(stamp, fence)), ttl);
            }
            Some(token) => match protocol::settle(self.entry(0), token, None, now, CLOCK_SLACK) {
                protocol::Settlement::Keep => {}
                protocol::Settlement::Fence(fence) => {
                    let ttl = fence.ttl(now);
                    let stamp = Stamp(self.draw_number());
                    self.place(0, Some(Entry::fence(stamp, fence)), ttl);
                }
                protocol::Settlement::Remove | protocol::Settlement::Publish => {
                    self.place(0, None, Duration::ZERO);
                }
            },
        }
    }

    fn draw_number(&mut self) -> std::num::NonZeroU64 {
        std::num::NonZeroU64::new(self.draw()).expect("tasks are counted from one")
    }

    /// Begins the rival process.
    pub(in crate::simulation) fn begin_rival(&mut self, process: usize) {
        self.begin(TaskId::of_operation(RIVAL), process);
    }
}
