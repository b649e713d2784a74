//! The contract of [`DatabaseNotices`](session_core::DatabaseNotices), case by case.

#![allow(missing_docs, reason = "a case is named after what it shows")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use session_core::{
    DatabaseChannel, ExpiryWrite, NoticeListener, Persistence, RecordWrite, StoredKey, Timestamp,
};

use crate::suite::case::{cases, skip};
use crate::suite::persistence::{NOW, another_record, key, record};

/// A fixture that makes handles to one database that reports writes.
///
/// A closure that returns a future of one is a fixture.
pub trait DatabaseNoticeFixture: Send + Sync + 'static {
    /// The database.
    type Db: Persistence;

    /// Opens another handle to the same table, as another node would. The table is there.
    fn open(&self) -> impl Future<Output = Self::Db> + Send;

    /// Cuts every channel of the database. Returns `false` if the fixture cannot do that: the cases that need it are then
    /// skipped. Defaults to `false`.
    fn cut_channels(&self) -> impl Future<Output = bool> + Send {
        std::future::ready(false)
    }
}

impl<F, Fut> DatabaseNoticeFixture for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output: Persistence> + Send,
{
    type Db = Fut::Output;

    fn open(&self) -> impl Future<Output = Self::Db> + Send {
        self()
    }
}

cases! {
    /// Returns all cases of this layer.
    for DatabaseNoticeFixture:
    insert_is_reported => "Every insert, update, touch, rename and delete by a handle that reports",
    update_is_reported => "Every insert, update, touch, rename and delete by a handle that reports",
    touch_is_reported => "Every insert, update, touch, rename and delete by a handle that reports",
    rename_is_reported_with_both_keys => "Every insert, update, touch, rename and delete by a handle that reports",
    delete_is_reported => "Every insert, update, touch, rename and delete by a handle that reports",
    every_session_that_is_reaped_is_reported => "Every insert, update, touch, rename and delete by a handle that reports",
    every_channel_reports_a_write => "Every insert, update, touch, rename and delete by a handle that reports",
    confirmed_writes_are_reported_before_a_ping_ends => "A write whose writer was told of it before",
    write_that_changes_nothing_is_not_reported => "A write that changes nothing, or is undone, is not reported.",
    channel_that_was_cut_fails_every_call => "A channel that may have lost a report fails every later call.",
}

/// The keys that a channel has reported.
#[derive(Debug, Default)]
struct Reports(Mutex<BTreeSet<String>>);

impl Reports {
    /// Returns the keys that were reported since the last call.
    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns `true` if a change of `key` was reported, and forgets all reports.
    fn take_of(&self, key: &StoredKey) -> bool {
        self.take().contains(key.as_str())
    }
}

impl NoticeListener for Reports {
    fn changed(&self, key: &StoredKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.as_str().to_owned());
    }

    fn all_changed(&self) {
        panic!("a database does not report a change of everything");
    }
}

type Channel = Box<dyn DatabaseChannel>;

async fn listen(db: &impl Persistence) -> (Channel, Arc<Reports>) {
    let reports = Arc::new(Reports::default());
    let source = db.notify().expect("the handle listens for the first time");
    let channel = source.open_channel(Arc::clone(&reports) as _).await.expect("a channel can be opened");
    (channel, reports)
}

async fn ping(channel: &Channel) {
    channel.ping().await.expect("the channel answers");
}

/// A handle that writes and reports, and another one that listens.
struct Nodes<D> {
    writer: D,
    _listener: D,
    channel: Channel,
    reports: Arc<Reports>,
}

impl<D: Persistence> Nodes<D> {
    async fn of(fixture: &impl DatabaseNoticeFixture<Db = D>) -> Self {
        let (writer, listener) = (fixture.open().await, fixture.open().await);
        drop(writer.notify().expect("the handle listens for the first time"));
        let (channel, reports) = listen(&listener).await;
        Self { writer, _listener: listener, channel, reports }
    }

    /// Adds a session that is in use, and forgets its report.
    async fn insert(&self) -> StoredKey {
        let key = key();
        self.writer.insert(&key, &record("first")).await.expect("the key is new");
        ping(&self.channel).await;
        self.reports.take();
        key
    }

    async fn reports(&self, key: &StoredKey) -> bool {
        ping(&self.channel).await;
        self.reports.take_of(key)
    }
}

pub async fn insert_is_reported(fixture: &impl DatabaseNoticeFixture) {
    let (nodes, key) = (Nodes::of(fixture).await, key());
    nodes.writer.insert(&key, &record("first")).await.expect("the key is new");
    assert!(nodes.reports(&key).await, "a session was inserted, and no report came before the ping's answer");
}

pub async fn update_is_reported(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let key = nodes.insert().await;
    for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
        nodes
            .writer
            .update(&key, RecordWrite::new(&another_record()).with_expiry(expiry), NOW)
            .await
            .expect("the session is there");
        assert!(nodes.reports(&key).await, "a session was updated ({expiry:?}), and that is not reported");
    }
}

pub async fn touch_is_reported(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let key = nodes.insert().await;
    let later = NOW + Duration::from_secs(100_000);
    assert!(nodes.writer.touch(&key, later, Timestamp::MAX, NOW).await.expect("the session is there"));
    assert!(nodes.reports(&key).await, "a session lives longer, and that is not reported");
}

pub async fn rename_is_reported_with_both_keys(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let (mut old, mut new) = (nodes.insert().await, key());
    for expiry in [ExpiryWrite::Extend, ExpiryWrite::Replace] {
        let renamed = nodes
            .writer
            .rename(&old, &new, RecordWrite::new(&another_record()).with_expiry(expiry), NOW)
            .await;
        renamed.expect("the session is there");
        ping(&nodes.channel).await;
        let reported = nodes.reports.take();
        assert!(reported.contains(old.as_str()), "the old key of a session is not reported ({expiry:?})");
        assert!(reported.contains(new.as_str()), "the new key of a session is not reported ({expiry:?})");
        std::mem::swap(&mut old, &mut new);
    }
}

pub async fn delete_is_reported(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let key = nodes.insert().await;
    assert!(nodes.writer.delete(&key).await.expect("the database answers"));
    assert!(nodes.reports(&key).await, "a session was deleted, and that is not reported");
}

pub async fn every_session_that_is_reaped_is_reported(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let mut expired = BTreeSet::new();
    for _ in 0..120 {
        let key = key();
        let record = record("over").with_expires_at(NOW);
        nodes.writer.insert(&key, &record).await.expect("the key is new");
        expired.insert(key.as_str().to_owned());
    }
    ping(&nodes.channel).await;
    nodes.reports.take();
    while nodes.writer.delete_expired(NOW, 1_000).await.expect("the database answers").is_unfinished(1_000) {}
    ping(&nodes.channel).await;
    let reported = nodes.reports.take();
    let left: Vec<_> = expired.difference(&reported).collect();
    assert!(left.is_empty(), "{} of 120 sessions that were reaped are not reported", left.len());
}

pub async fn every_channel_reports_a_write(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let others = [fixture.open().await, fixture.open().await];
    let channels = [listen(&others[0]).await, listen(&others[1]).await];
    let key = nodes.insert().await;
    nodes.writer.delete(&key).await.expect("the database answers");
    assert!(nodes.reports(&key).await, "the first channel of three has not reported the write");
    for (number, (channel, reports)) in channels.iter().enumerate() {
        ping(channel).await;
        assert!(reports.take_of(&key), "channel {} of three has not reported the write", number + 1);
    }
}

pub async fn confirmed_writes_are_reported_before_a_ping_ends(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let key = nodes.insert().await;
    for round in 0..100 {
        let updated = nodes.writer.update(&key, RecordWrite::new(&another_record()), NOW).await;
        updated.expect("the session is there");
        assert!(
            nodes.reports(&key).await,
            "write {round} was confirmed before the ping, and is not reported"
        );
    }
}

pub async fn write_that_changes_nothing_is_not_reported(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let (there, absent, db) = (nodes.insert().await, key(), &nodes.writer);
    let other = another_record();
    assert!(db.insert(&there, &other).await.is_err(), "the key has a row");
    assert!(db.update(&absent, RecordWrite::new(&other), NOW).await.is_err(), "there is no such session");
    assert!(
        db.rename(&absent, &there, RecordWrite::new(&other), NOW).await.is_err(),
        "there is no such session"
    );
    let another = nodes.insert().await;
    assert!(
        db.rename(&there, &another, RecordWrite::new(&other), NOW).await.is_err(),
        "the new key has a row"
    );
    let touched = db.touch(&there, NOW, Timestamp::from_micros(i64::MIN), NOW).await;
    assert!(!touched.expect("the session is there"), "the touch is not due");
    assert!(!db.delete(&absent).await.expect("the database answers"));
    ping(&nodes.channel).await;
    let reported = nodes.reports.take();
    assert!(reported.is_empty(), "nothing has changed, and {} keys were reported", reported.len());
}

pub async fn channel_that_was_cut_fails_every_call(fixture: &impl DatabaseNoticeFixture) {
    let nodes = Nodes::of(fixture).await;
    let key = nodes.insert().await;
    if !fixture.cut_channels().await {
        return skip("the fixture cannot cut channels");
    }
    for _ in 0..2 {
        assert!(nodes.channel.ping().await.is_err(), "the channel was cut, and a ping succeeds");
    }
    let later = fixture.open().await;
    let (channel, reports) = listen(&later).await;
    nodes.writer.delete(&key).await.expect("the database answers");
    ping(&channel).await;
    assert!(reports.take_of(&key), "another channel, opened after the cut, has not reported a write");
}
