//! The channel of a near cache: when it is tried again, and when it ends.

#![cfg(feature = "near")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_backends::moka::MokaCache;
use cache_backends::near::{NotifiedCache, notified};
use session_core::{
    BoxFuture, Cache as _, DatabaseChannel, DatabaseNotices, NearEvent, NearObserver, NoticeListener,
    PersistenceError, Runtime, Timestamp,
};

/// A runtime whose time passes only while something sleeps.
#[derive(Debug, Default)]
struct Sleeper(AtomicU64);

impl Sleeper {
    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::SeqCst))
    }
}

/// A sleep that ends at once, while another task has had its turn.
struct Nap(Arc<Sleeper>);

impl Runtime for Nap {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(0) + self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let time = Arc::clone(&self.0);
        Box::pin(async move {
            tokio::task::yield_now().await;
            time.0.fetch_add(duration.as_micros().try_into().unwrap(), Ordering::SeqCst);
        })
    }

    fn spawn(&self, task: BoxFuture<()>) {
        tokio::spawn(task);
    }

    fn random_u64(&self) -> NonZeroU64 {
        NonZeroU64::MIN
    }
}

impl std::fmt::Debug for Nap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nap")
    }
}

#[derive(Debug)]
struct Unobserved;

impl NearObserver for Unobserved {
    fn note(&self, _: NearEvent<'_>) {}
}

/// A database that lets no one listen, and notes when it was asked.
#[derive(Debug)]
struct Refusing {
    error: fn() -> PersistenceError,
    time: Arc<Sleeper>,
    asked_at: Mutex<Vec<Duration>>,
}

impl DatabaseNotices for Refusing {
    fn open_channel(
        self: Arc<Self>,
        _: Arc<dyn NoticeListener>,
    ) -> BoxFuture<Result<Box<dyn DatabaseChannel>, PersistenceError>> {
        self.asked_at.lock().unwrap().push(self.time.elapsed());
        Box::pin(async move { Err((self.error)()) })
    }
}

fn cache() -> NotifiedCache {
    notified(MokaCache::builder().build())
}

/// Returns the times between the first tries to open a channel.
async fn pauses_after(error: fn() -> PersistenceError, tries: usize) -> Vec<Duration> {
    let (time, cache) = (Arc::new(Sleeper::default()), cache());
    let notices = Arc::new(Refusing { error, time: Arc::clone(&time), asked_at: Mutex::default() });
    let runtime = Arc::new(Nap(time)) as Arc<dyn Runtime>;
    cache.near().unwrap().start(&runtime, Arc::new(Unobserved), Some(Arc::clone(&notices) as _)).unwrap();
    loop {
        let asked_at = notices.asked_at.lock().unwrap().clone();
        if asked_at.len() > tries {
            return asked_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        }
        tokio::task::yield_now().await;
    }
}

/// Each try may disturb other clients of a pooler, and only an operator can change a setting.
#[tokio::test]
async fn channel_that_a_setting_forbids_is_tried_again_after_minutes() {
    let pauses = pauses_after(|| PersistenceError::Config("a pooler".to_owned()), 3).await;
    assert!(pauses.iter().all(|pause| *pause >= Duration::from_secs(120)), "{pauses:?}");
}

#[tokio::test]
async fn channel_to_a_server_that_is_away_is_tried_again_within_seconds() {
    let pauses = pauses_after(|| PersistenceError::Unavailable("it is away".into()), 12).await;
    assert!(pauses[0] < Duration::from_secs(1), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(5)), "{pauses:?}");
}

/// The first store's channel would not report what another database commits.
#[tokio::test]
async fn memory_that_one_database_tells_is_refused_to_another() {
    let cache = cache();
    let near = cache.near().unwrap();
    let time = Arc::new(Sleeper::default());
    let runtime = Arc::new(Nap(Arc::clone(&time))) as Arc<dyn Runtime>;
    let start = || {
        let error = || PersistenceError::Unavailable("it is away".into());
        let notices = Refusing { error, time: Arc::clone(&time), asked_at: Mutex::default() };
        near.start(&runtime, Arc::new(Unobserved), Some(Arc::new(notices)))
    };
    assert_eq!(near.refusal(), None);
    start().unwrap();
    let refused = start().unwrap_err();
    assert!(refused.contains("another store's"), "{refused}");
    // What was refused need not be stopped.
    near.stop().await;
    start().unwrap();
}
