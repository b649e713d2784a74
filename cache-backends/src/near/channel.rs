//! The channel of a near cache: opened, asked again and again, given up, and opened anew.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{Either, select};
use session_core::{CacheError, NearEvent, NearObserver, NoticeListener, Runtime};

use super::source::Source;
use super::{Inner, Listener};
use crate::moka::clock::Tick;

/// The longest pause before another try to open a channel.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The number of bounds for which an answer is waited for before the channel counts as lost. Memory has not answered for
/// long by then, but what is in it is still good if the server was merely slow.
const PATIENCE: u32 = 10;

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
                    // Entries that came in since the last channel was lost may have missed a change. From here on, this one reports.
                    if !mutant!(NotifiedKeptAtOpening) {
                        inner.memory.remove_all();
                    }
                    inner.set_channel(Some(Arc::clone(&channel)));
                    self.observer.note(NearEvent::Opened);
                    drop(inner);
                    let Some(error) = self.use_until_lost(channel).await else { return };
                    self.give_up(&error);
                    pause = self.interval();
                }
                Err(error) => {
                    drop(inner);
                    self.observer.note(NearEvent::NotOpened(&error));
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
        // Before the ping is sent, not when its answer comes: what the server did in between may not be known here.
        let sent = self.inner.upgrade()?.now();
        let answer = match select(pin!(S::ping(channel)), self.runtime.sleep(self.bound * PATIENCE)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(CacheError::Unknown("the channel does not answer".into())),
        };
        Some((sent, answer))
    }

    /// Stops the use of memory, and forgets everything in it: whatever the channel has missed is then not there.
    pub(super) fn give_up(&self, error: &CacheError) {
        let Some(inner) = self.inner.upgrade() else { return };
        inner.fresh_until.store(0, Ordering::Release);
        inner.set_channel(None);
        inner.memory.remove_all();
        self.observer.note(NearEvent::Lost(error));
        self.observer.note(NearEvent::Forgotten);
    }
}
