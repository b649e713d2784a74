//! The tasks of a run, and what wakes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Wake, Waker};

use session_cached_db::simulation::{enter_task, turns};
use session_cached_db::{CachedDb, Session};
use session_core::BoxFuture;

use super::{Simulation, Verdict, ahead};
use crate::simulation::backends::SimDb;
use crate::simulation::call::Reply;
use crate::simulation::digest;
use crate::simulation::operation::Operation;
use crate::simulation::task_id::TaskId;
use crate::simulation::trace::Event;
use crate::simulation::world::{Spawned, lock};

pub(super) struct Task {
    pub(super) id: TaskId,
    pub(super) process: usize,
    pub(super) future: BoxFuture<()>,
    pub(super) flag: Arc<Flag>,
    /// It has not begun yet.
    pub(super) is_held: bool,
    /// It is never polled again.
    pub(super) is_suspended: bool,
}

impl Task {
    fn wakes(&self) -> u32 {
        self.flag.wakes.load(Ordering::Relaxed)
    }

    pub(super) fn is_woken(&self) -> bool {
        !self.is_held && !self.is_suspended && self.flag.is_woken.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(super) struct Flag {
    is_woken: AtomicBool,
    /// The number of times that the task was woken.
    wakes: AtomicU32,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::Relaxed);
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Simulation<'_> {
    /// Runs everything that can run without a call being answered.
    pub(super) fn run_woken(&mut self) -> Verdict {
        loop {
            let spawned: Vec<_> = lock(&self.world).spawned.drain(..).collect();
            for Spawned(id, future) in spawned {
                let process = lock(&self.world).task(id).process;
                self.add_task(id, process, future, self.holds);
            }
            let woken = self.tasks.iter().enumerate().filter(|(_, task)| task.is_woken());
            let Some((position, _)) = woken.min_by_key(|(_, task)| task.id) else { return Ok(()) };
            let wakes: Vec<_> = self.tasks.iter().map(Task::wakes).collect();
            let task = &mut self.tasks[position];
            task.flag.is_woken.store(false, Ordering::Relaxed);
            let (id, process) = (task.id, task.process);
            lock(&self.world).polling = id;
            enter_task(id.0);
            let waker = Waker::from(Arc::clone(&task.flag));
            let turns_before = turns();
            let poll = task.future.as_mut().poll(&mut Context::from_waker(&waker));
            self.note_told(id, &wakes);
            if poll.is_ready() {
                let finished = self.tasks.remove(position);
                drop(finished);
                lock(&self.world).end(id);
                // While the breaker is open, no settlement is sent, whether or not a caller waits for an
                // answer.
                if self.stores[process].as_ref().is_some_and(CachedDb::__breaker_is_open) {
                    self.lost.insert(id.operation());
                }
                self.judge_answers()?;
            } else {
                if turns() > turns_before {
                    // A queue continues with its next write. Its knowledge is in the digest of the queues.
                    lock(&self.world).task(id).log = 0;
                }
                self.judge_answers()?;
            }
        }
    }

    /// Notes that the tasks which `teller` has just woken may know what it knows. `wakes` are the tasks' wake-ups before.
    fn note_told(&self, teller: TaskId, wakes: &[u32]) {
        let mut world = lock(&self.world);
        let knowledge = world.task(teller).log;
        for (task, before) in self.tasks.iter().zip(wakes) {
            if task.id != teller && task.wakes() != *before {
                let log = &mut world.task(task.id).log;
                *log = digest::of((*log, knowledge));
            }
        }
    }

    pub(super) fn add_task(&mut self, id: TaskId, process: usize, future: BoxFuture<()>, is_held: bool) {
        let flag = Arc::new(Flag { is_woken: AtomicBool::new(true), ..Flag::default() });
        self.tasks.push(Task { id, process, future, flag, is_held, is_suspended: false });
    }

    /// Lets tasks begin that were held back.
    pub(super) fn release(&mut self) {
        for task in &mut self.tasks {
            task.is_held = false;
        }
    }

    /// Starts an operation. Its answer goes to the oracle.
    pub(super) fn begin(
        &mut self,
        number: usize,
        operation: Operation,
        process: usize,
        session: Option<Session>,
    ) {
        let store = self.stores[process].clone().expect("a process that runs");
        let id = TaskId::of_operation(number);
        let mut world = lock(&self.world);
        world.begin(id, process);
        if operation.is_load() {
            let key = operation.keys()[0];
            world.note(|| Event::Begun { number, key });
        }
        self.oracle.begin(number, operation, process, ahead(process), &world);
        drop(world);
        let answers = Arc::clone(&self.answers);
        let db = SimDb { world: Arc::clone(&self.world), process, reports: self.is_notified() };
        let task = Box::pin(async move {
            let answer = match operation {
                Operation::Elsewhere => Operation::run_elsewhere(number, db).await,
                _ => operation.run(number, store, session).await,
            };
            answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(answer);
        });
        self.add_task(id, process, task, false);
    }

    /// Lets every call take effect, and its answer arrive.
    pub(super) fn serve_all(&mut self) {
        let open = lock(&self.world).open_calls();
        for id in open {
            lock(&self.world).apply(id);
            self.deliver_notices(|_, _| true);
            self.arrive(id);
        }
        self.deliver_notices(|_, _| true);
    }

    /// Delivers the reports that no answer is in front of, on the channels of the processes that are meant.
    pub(super) fn deliver_notices(&self, is_meant: impl Fn(&Self, usize) -> bool) {
        let open = lock(&self.world).open_channels();
        for (number, process) in open {
            if is_meant(self, process) {
                let mut world = lock(&self.world);
                while world.has_notice(number) {
                    world.notice(number);
                }
            }
        }
    }

    pub(super) fn answer(&mut self, id: TaskId, reply: Reply) {
        lock(&self.world).task(id).call.as_mut().expect("a call to answer").reply = Some(reply);
    }

    /// Delivers the answer to the call of a task to the task that waits for it.
    pub(super) fn arrive(&mut self, id: TaskId) {
        let waker = lock(&self.world).deliver(id);
        waker.inspect(Waker::wake_by_ref);
    }

    pub(super) fn fire(&mut self, id: TaskId) {
        let waker = lock(&self.world).fire(id);
        waker.wake();
    }

    pub(super) fn end_tasks(&mut self, ends: impl Fn(&Task) -> bool) {
        let ended: Vec<_> = self.tasks.extract_if(.., |task| ends(task)).collect();
        for task in ended {
            let id = task.id;
            // The work that dropping it does counts as its own.
            self.enter(id);
            drop(task);
            lock(&self.world).end(id);
        }
    }

    /// Drops the tasks that dropped tasks started last.
    pub(super) fn drop_spawned(&mut self) {
        loop {
            let unborn = std::mem::take(&mut lock(&self.world).spawned);
            if unborn.is_empty() {
                return;
            }
            for Spawned(id, future) in unborn {
                self.enter(id);
                drop(future);
                lock(&self.world).end(id);
            }
        }
    }
}
