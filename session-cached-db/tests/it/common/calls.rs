//! Calls to the cache and to the database: counted, and stopped or failed where a test says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use super::soon;

/// A kind of call to a cache or a database. Exchanges are distinguished by the entry that they put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Get,
    Acquire,
    PutValue,
    PutFence,
    PutNothing,
    Load,
    Insert,
    Update,
    Touch,
    Rename,
    Delete,
    DeleteExpired,
    List,
    Scan,
    Now,
    Migrate,
    CheckSchema,
    NoteRotation,
    Rotations,
    MigrateRotations,
    CheckRotations,
}

/// A moment in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the call has its effect.
    Before,
    /// After the call's effect, while its answer is on the way.
    After,
}

/// A way in which a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server cannot be reached.
    Unreachable,
    /// The server does not answer.
    NoAnswer,
    /// The server refuses the call.
    Refused,
    /// The server refuses every call.
    Unusable,
    /// The call never returns.
    Hangs,
    /// The call panics.
    Panics,
}

/// The calls of one backend.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    counts: HashMap<Call, usize>,
    rules: Vec<Rule>,
    outage: Option<Fault>,
}

#[derive(Debug)]
struct Rule {
    call: Call,
    moment: Moment,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Hold { reached: oneshot::Sender<()>, go: oneshot::Receiver<()> },
    Fail(Fault),
}

/// A call that waits for the test. It goes on when this is dropped.
pub struct Held {
    reached: oneshot::Receiver<()>,
    go: oneshot::Sender<()>,
}

impl Held {
    /// Waits until the call has come.
    pub async fn reached(&mut self) {
        soon(&mut self.reached).await.unwrap();
    }

    /// Lets the call go on.
    pub fn release(self) {
        let _ = self.go.send(());
    }
}

impl Calls {
    /// Stops the next `call` at `moment`.
    pub fn hold(&self, call: Call, moment: Moment) -> Held {
        let (reached, when_reached) = oneshot::channel();
        let (go, when_gone) = oneshot::channel();
        let action = Action::Hold { reached, go: when_gone };
        self.lock().rules.push(Rule { call, moment, action });
        Held { reached: when_reached, go }
    }

    /// Makes the next `call` fail, before its effect or after it.
    pub fn fail(&self, call: Call, moment: Moment, fault: Fault) {
        self.lock().rules.push(Rule { call, moment, action: Action::Fail(fault) });
    }

    /// Makes every call fail from now on.
    pub fn fail_all(&self, fault: Fault) {
        self.lock().outage = Some(fault);
    }

    /// Makes all calls succeed again.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.outage = None;
        state.rules.clear();
    }

    /// Returns the number of calls of this kind.
    pub fn count(&self, call: Call) -> usize {
        self.lock().counts.get(&call).copied().unwrap_or_default()
    }

    /// Returns the number of calls of all kinds.
    pub fn total(&self) -> usize {
        self.lock().counts.values().sum()
    }

    /// Sets all counts to zero.
    pub fn reset(&self) {
        self.lock().counts.clear();
    }

    /// Runs `effect`, unless the test holds the call or makes it fail.
    pub async fn make<T, E: From<Fault>>(
        &self,
        call: Call,
        effect: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        *self.lock().counts.entry(call).or_default() += 1;
        self.pass(call, Moment::Before).await?;
        let result = effect.await;
        self.pass(call, Moment::After).await?;
        result
    }

    async fn pass(&self, call: Call, moment: Moment) -> Result<(), Fault> {
        let (rule, outage) = {
            let mut state = self.lock();
            let position = state.rules.iter().position(|rule| (rule.call, rule.moment) == (call, moment));
            (position.map(|position| state.rules.remove(position)), state.outage)
        };
        match rule.map(|rule| rule.action) {
            Some(Action::Hold { reached, go }) => {
                let _ = reached.send(());
                let _ = go.await;
            }
            Some(Action::Fail(fault)) => return fault.strike().await,
            None => {}
        }
        match outage {
            Some(fault) => fault.strike().await,
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Fault {
    pub async fn strike(self) -> Result<(), Self> {
        match self {
            Self::Hangs => std::future::pending().await,
            Self::Panics => panic!("the test says so"),
            fault => Err(fault),
        }
    }
}
