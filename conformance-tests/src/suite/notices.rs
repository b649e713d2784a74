//! The contract of [`NoticeSource`], case by case.

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use session_core::{Cache, Entry, Expected, NoticeChannel, NoticeListener, NoticeSource, StoredKey};

use crate::suite::cache::{MINUTE, exchange, key, put, short_ttl, value};
use crate::suite::case::{cases, skip};

/// A fixture that makes handles to one cache that reports changes.
///
/// A closure that returns a future of one is a fixture.
pub trait NoticeFixture: Send + Sync + 'static {
    /// The cache.
    type Source: Cache + NoticeSource;

    /// Opens another handle to the same cache, as another node would.
    fn open(&self) -> impl Future<Output = Self::Source> + Send;

    /// Cuts every channel of the cache. Returns `false` if the fixture cannot do that: the cases that need it are then
    /// skipped. Defaults to `false`.
    fn cut_channels(&self) -> impl Future<Output = bool> + Send {
        std::future::ready(false)
    }
}

impl<F, Fut> NoticeFixture for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output: Cache + NoticeSource> + Send,
{
    type Source = Fut::Output;

    fn open(&self) -> impl Future<Output = Self::Source> + Send {
        self()
    }
}

cases! {
    /// Returns all cases of this layer.
    for NoticeFixture:
    replaced_entry_is_reported_before_a_later_ping_ends => "An entry that a channel has returned is *watched*",
    removed_entry_is_reported_before_a_later_ping_ends => "An entry that a channel has returned is *watched*",
    entry_placed_under_a_key_that_was_read_is_reported => "A key for which a channel has returned `None` is watched",
    entry_whose_ttl_ends_is_reported => "The end of a TTL is a change.",
    entry_that_is_read_again_is_watched_again => "An entry is watched anew each time that it is read.",
    confirmed_changes_of_many_keys_are_reported_before_a_ping_ends => "A change that its writer was told of before",
    change_is_reported_before_a_read_shows_it => "A change is reported before the channel returns an entry",
    every_channel_reports_a_change => "Every channel reports what it has read, whatever other channels do.",
    channel_that_was_cut_fails_every_call => "A channel that may have lost a report fails every later call.",
}

/// The time within which the end of a TTL must be reported: a server looks for expired entries now and then.
const PATIENCE: Duration = Duration::from_secs(20);

/// The reports of a channel so far. `None` is about all keys.
#[derive(Debug, Default)]
struct Reports(Mutex<Vec<Option<StoredKey>>>);

impl Reports {
    /// Returns `true` if a change of `key` was reported, and forgets all reports.
    fn take(&self, key: &StoredKey) -> bool {
        let reports = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        reports.iter().any(|report| report.is_none_or(|reported| reported == *key))
    }
}

impl NoticeListener for Reports {
    fn changed(&self, key: &StoredKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Some(*key));
    }

    fn all_changed(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(None);
    }
}

async fn listen<S: NoticeSource>(source: &S) -> (S::Channel, Arc<Reports>) {
    let reports = Arc::new(Reports::default());
    let channel = source.open_channel(Arc::clone(&reports) as _).await.expect("a channel can be opened");
    (channel, reports)
}

async fn watch(channel: &impl NoticeChannel, key: &StoredKey, expected: &Entry) {
    let found = channel.get(key).await.expect("the channel answers");
    assert_eq!(found.as_ref(), Some(expected), "the channel reads what is there");
}

async fn ping(channel: &impl NoticeChannel) {
    channel.ping().await.expect("the channel answers");
}

async fn replace(cache: &impl Cache, key: &StoredKey, old: &Entry, new: Option<&Entry>) {
    let expected = Expected::Stamp(old.stamp);
    let exchanged = exchange(cache, key, expected, new.cloned(), MINUTE).await;
    assert_eq!(exchanged, session_core::Exchange::Stored);
}

pub async fn replaced_entry_is_reported_before_a_later_ping_ends(fixture: &impl NoticeFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    let (old, new) = (value(), value());
    put(&there, &key, &old, MINUTE).await;
    let (channel, reports) = listen(&here).await;
    watch(&channel, &key, &old).await;
    replace(&there, &key, &old, Some(&new)).await;
    ping(&channel).await;
    assert!(
        reports.take(&key),
        "another handle has replaced the entry, and no report came before the ping's answer"
    );
    watch(&channel, &key, &new).await;
}

pub async fn removed_entry_is_reported_before_a_later_ping_ends(fixture: &impl NoticeFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    put(&cache, &key, &old, MINUTE).await;
    let (channel, reports) = listen(&cache).await;
    watch(&channel, &key, &old).await;
    replace(&cache, &key, &old, None).await;
    ping(&channel).await;
    assert!(
        reports.take(&key),
        "this handle has removed the entry, and no report came before the ping's answer"
    );
}

pub async fn entry_placed_under_a_key_that_was_read_is_reported(fixture: &impl NoticeFixture) {
    let (here, there, key, new) = (fixture.open().await, fixture.open().await, key(), value());
    let (channel, reports) = listen(&here).await;
    assert_eq!(channel.get(&key).await.expect("the channel answers"), None, "nothing is there yet");
    put(&there, &key, &new, MINUTE).await;
    ping(&channel).await;
    assert!(
        reports.take(&key),
        "another handle has placed an entry, and no report came before the ping's answer"
    );
    watch(&channel, &key, &new).await;
}

pub async fn entry_whose_ttl_ends_is_reported(fixture: &impl NoticeFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    put(&cache, &key, &old, short_ttl(&cache)).await;
    let (channel, reports) = listen(&cache).await;
    watch(&channel, &key, &old).await;
    let begin = Instant::now();
    while !reports.take(&key) {
        assert!(
            begin.elapsed() < PATIENCE,
            "the entry's TTL has ended, and no report came within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        ping(&channel).await;
    }
}

pub async fn entry_that_is_read_again_is_watched_again(fixture: &impl NoticeFixture) {
    let (cache, key) = (fixture.open().await, key());
    let mut present = value();
    put(&cache, &key, &present, MINUTE).await;
    let (channel, reports) = listen(&cache).await;
    for round in 0..4 {
        watch(&channel, &key, &present).await;
        let next = value();
        replace(&cache, &key, &present, Some(&next)).await;
        present = next;
        ping(&channel).await;
        assert!(reports.take(&key), "change {round} was not reported, although the entry was read before it");
    }
}

pub async fn confirmed_changes_of_many_keys_are_reported_before_a_ping_ends(fixture: &impl NoticeFixture) {
    let (here, there) = (fixture.open().await, fixture.open().await);
    let (channel, reports) = listen(&here).await;
    for _ in 0..100 {
        let (key, old, new) = (key(), value(), value());
        put(&there, &key, &old, MINUTE).await;
        watch(&channel, &key, &old).await;
        replace(&there, &key, &old, Some(&new)).await;
        ping(&channel).await;
        assert!(reports.take(&key), "a change that was confirmed before the ping was sent is not reported");
    }
}

pub async fn change_is_reported_before_a_read_shows_it(fixture: &impl NoticeFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    let mut present = value();
    put(&there, &key, &present, MINUTE).await;
    let (channel, reports) = listen(&here).await;
    watch(&channel, &key, &present).await;
    for _ in 0..100 {
        let next = value();
        let writes = replace(&there, &key, &present, Some(&next));
        let reads = async {
            loop {
                let shown =
                    channel.get(&key).await.expect("the channel answers").expect("it is never removed");
                let was_reported = reports.take(&key);
                if shown.stamp == next.stamp {
                    assert!(
                        was_reported,
                        "the channel shows an entry, and did not report that the one before has changed"
                    );
                    return;
                }
                // This read may have come just before the change, and its watch may be over.
                if was_reported {
                    watch(&channel, &key, &next).await;
                    return;
                }
            }
        };
        tokio::join!(writes, reads);
        present = next;
    }
}

pub async fn every_channel_reports_a_change(fixture: &impl NoticeFixture) {
    let (here, there, key) = (fixture.open().await, fixture.open().await, key());
    let (old, new) = (value(), value());
    put(&here, &key, &old, MINUTE).await;
    let channels = [listen(&here).await, listen(&here).await, listen(&there).await];
    for (channel, _) in &channels {
        watch(channel, &key, &old).await;
    }
    replace(&here, &key, &old, Some(&new)).await;
    for (number, (channel, reports)) in channels.iter().enumerate() {
        ping(channel).await;
        assert!(reports.take(&key), "channel {number} of three has not reported the change");
    }
}

pub async fn channel_that_was_cut_fails_every_call(fixture: &impl NoticeFixture) {
    let (cache, key, old) = (fixture.open().await, key(), value());
    put(&cache, &key, &old, MINUTE).await;
    let (channel, _) = listen(&cache).await;
    watch(&channel, &key, &old).await;
    if !fixture.cut_channels().await {
        return skip("the fixture cannot cut channels");
    }
    for _ in 0..2 {
        assert!(channel.ping().await.is_err(), "the channel was cut, and a ping succeeds");
        assert!(channel.get(&key).await.is_err(), "the channel was cut, and a read succeeds");
    }
    let (another, reports) = listen(&cache).await;
    watch(&another, &key, &old).await;
    replace(&cache, &key, &old, None).await;
    ping(&another).await;
    assert!(reports.take(&key), "another channel, opened after the cut, has not reported a change");
}
