//! The channel of a near cache: opened, asked again and again, given up, and opened anew.

use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{CacheError, NearEvent, NearObserver, NearSource, NoticeListener, Runtime};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::source::Source;
use super::{Inner, Listener, Open};
use crate::moka::clock::Tick;

/// The longest pause before another try to open a channel.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pause after a database has refused for a reason that only an operator can mend. Behind a pooler in transaction mode,
/// each try makes a server's connection listen, and the pooler then lends that connection to another client.
const PAUSE_OF_A_SETTING: Duration = Duration::from_secs(5 * 60);

/// The time to wait for an answer before the channel counts as lost, in freshness bounds. By then, memory has not been used
/// for long, but what is in it is still good if the server was merely slow.
const PATIENCE: u32 = 10;

/// A task that keeps a channel open. It ends when this is dropped.
pub(super) struct Running {
    _stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Running {
    /// Starts the task. When it ends, the channel is closed, and the source is detached.
    pub(super) fn start<S: Source>(runtime: &dyn Runtime, keeper: Keeper<S>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        runtime.spawn(Box::pin(async move {
            let inner = Weak::clone(&keeper.inner);
            let observer = Arc::clone(&keeper.observer);
            // `stopped` comes first: a channel that opens just now must not take the place of a later store's.
            select(stopped, pin!(keeper.run())).await;
            if let Some(inner) = inner.upgrade() {
                inner.reset_unless_used();
            }
            observer.note(NearEvent::Stopped);
            drop(end);
        }));
        Self { _stop: stop, ended }
    }

    /// Returns `false` if the task has ended, or its runtime has dropped it.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Empty))
    }

    /// Ends the task, and waits until it has ended.
    pub(super) async fn stop(self) {
        let Self { _stop: stop, ended } = self;
        drop(stop);
        // The sender is dropped, whether the task was polled to its end or its runtime has dropped it.
        let _ = ended.await;
    }
}

/// Keeps a channel open until the near cache is dropped.
pub(super) struct Keeper<S: Source> {
    pub(super) inner: Weak<Inner<S>>,
    pub(super) listener: Arc<Listener>,
    pub(super) observer: Arc<dyn NearObserver>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) bound: Duration,
}

impl<S: Source> Keeper<S> {
    pub(super) async fn run(self) {
        let mut pause = self.interval();
        while let Some(inner) = self.inner.upgrade() {
            let listener = Arc::clone(&self.listener) as Arc<dyn NoticeListener>;
            match inner.shared.open(listener).await {
                Ok(channel) => {
                    let channel = Arc::new(channel);
                    // Changes of entries that came in since the last channel was lost may not have been reported. From here
                    // on, this one reports. After that, a channel of an earlier task must fill nothing.
                    inner.set_channel(None);
                    if !mutant!(NotifiedKeptAtOpening) {
                        inner.memory.remove_all();
                    }
                    inner.set_channel(Some(Open {
                        channel: Arc::clone(&channel),
                        runtime: Arc::clone(&self.runtime),
                    }));
                    self.observer.note(NearEvent::Opened);
                    drop(inner);
                    let Some(error) = self.use_until_lost(channel).await else { return };
                    self.give_up(&error);
                    pause = self.interval();
                }
                Err(error) => {
                    drop(inner);
                    self.observer.note(NearEvent::NotOpened(&error));
                    if S::KIND == NearSource::Database && matches!(error, CacheError::Unusable(_)) {
                        self.runtime.sleep(PAUSE_OF_A_SETTING).await;
                        continue;
                    }
                }
            }
            self.runtime.sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns the time between two pings.
    pub(super) fn interval(&self) -> Duration {
        self.bound / 4
    }

    /// Pings `channel` until it is lost, and returns the reason, or `None` once the near cache is dropped.
    async fn use_until_lost(&self, channel: Arc<S::Channel>) -> Option<CacheError> {
        mutant!(NearOlderAnswer => return self.use_first_until_lost(channel).await);
        let since = |answered: Tick, sent: Tick| Duration::from_nanos(answered.0.saturating_sub(sent.0));
        let mut last_basis = None;
        loop {
            mutant!(NearNoticesLate => self.listener.catch_up());
            let (sent, answer) = self.ping(&channel).await?;
            if let Err(error) = answer {
                return Some(error);
            }
            let inner = self.inner.upgrade()?;
            let answered = inner.now();
            let basis = if mutant!(NearBasisAtAnswer) { answered } else { sent };
            inner.note_answer(basis, self.bound);
            let basis_age = since(answered, last_basis.replace(sent).unwrap_or(sent));
            self.observer.note(NearEvent::Answered { took: since(answered, sent), basis_age });
            drop(inner);
            self.runtime.sleep(self.interval()).await;
        }
    }

    /// Pings `channel`. Returns the instant of the sending and the answer, or `None` once the near cache is dropped.
    pub(super) async fn ping(&self, channel: &S::Channel) -> Option<(Tick, Result<(), CacheError>)> {
        // Read the clock before the ping is sent: a change that the server makes after answering may be unknown here when the
        // answer comes.
        let sent = self.inner.upgrade()?.now();
        let answer = match select(pin!(S::ping(channel)), self.runtime.sleep(self.bound * PATIENCE)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(CacheError::Unknown("the channel does not answer".into())),
        };
        Some((sent, answer))
    }

    /// Stops the use of memory, and forgets everything in it, because changes may not have been reported.
    pub(super) fn give_up(&self, error: &CacheError) {
        let Some(inner) = self.inner.upgrade() else { return };
        inner.give_up_channel();
        self.observer.note(NearEvent::Lost(error));
        self.observer.note(NearEvent::Forgotten);
    }
}
