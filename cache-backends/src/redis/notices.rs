//! Reports of changed keys, by `CLIENT TRACKING` over RESP3.

// The driver calls `Reports::take` while it reads from the connection, before it hands on the reply that follows. So
// reports are applied in the order of the stream, and before every later answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{Cmd, PushInfo, PushKind, Value};
use session_core::{CacheError, Entry, NoticeChannel, NoticeListener, NoticeSource, StoredKey};
use tokio::time::timeout;

use super::connect::{Connection, TakePush};
use super::error::{Failure, NotConnected};
use super::{Inner, RedisCache, commands, error};

/// A function that makes a connection whose push messages go to the argument.
pub(super) type MakeChannel =
    Box<dyn Fn(TakePush) -> BoxFuture<'static, Result<Connection, NotConnected>> + Send + Sync>;

/// The means to make a connection for reports.
pub(super) enum Channels {
    By(MakeChannel),
    /// There is none, for this reason.
    Refused(&'static str),
}

/// The key, after the prefix, by which a channel finds out whether changes are reported. No session has it.
const PROBE: &str = "~near";

/// The time for which the value under the probe's key is kept, in milliseconds.
const PROBE_TTL: u32 = 1_000;

/// The number of pings after which the channel finds out again whether changes are reported.
const PINGS: u32 = 32;

/// The time limit for each step while a channel is opened.
const PATIENCE: Duration = Duration::from_secs(1);

impl NoticeSource for RedisCache {
    type Channel = RedisChannel;

    async fn open_channel(&self, listener: Arc<dyn NoticeListener>) -> Result<RedisChannel, CacheError> {
        let make = match &self.0.channels {
            Channels::By(make) => make,
            Channels::Refused(reason) => return Err(CacheError::Unusable((*reason).into())),
        };
        let reports = Arc::new(Reports {
            listener,
            cache: Arc::clone(&self.0),
            has_seen_probe: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
        });
        let take = Arc::clone(&reports);
        let connected = make(Arc::new(move |push| take.take(&push))).await;
        let connection = connected.map_err(|error| CacheError::from(Failure::NotConnected(error)))?;
        let channel = RedisChannel { cache: self.clone(), connection, reports, pings: AtomicU32::new(0) };
        let mut tracking = Cmd::new();
        tracking.arg("CLIENT").arg("TRACKING").arg("ON");
        let refused = timeout(PATIENCE, channel.send(&tracking)).await.unwrap_or(Err(Failure::Timeout));
        refused.map_err(error::no_tracking)?;
        timeout(PATIENCE, channel.check_reports()).await.map_err(|_| Failure::Timeout)??;
        Ok(channel)
    }

    fn refusal(&self) -> Option<&'static str> {
        match &self.0.channels {
            Channels::By(_) => None,
            Channels::Refused(reason) => Some(reason),
        }
    }
}

/// A connection on which Redis or Valkey reports changes of the keys that were read on it.
pub struct RedisChannel {
    cache: RedisCache,
    connection: Connection,
    reports: Arc<Reports>,
    pings: AtomicU32,
}

impl RedisChannel {
    async fn send(&self, cmd: &Cmd) -> Result<Value, Failure> {
        self.connection.clone().send(cmd).await.map_err(Failure::Answer)
    }

    /// Changes a key of its own, and checks that the report of it comes before the answer to a ping: a proxy may pass
    /// answers and leave reports out.
    async fn check_reports(&self) -> Result<(), CacheError> {
        let key = [self.cache.0.key_prefix.as_bytes(), PROBE.as_bytes()].concat();
        self.reports.has_seen_probe.store(false, Ordering::Release);
        self.send(&commands::get(&key)).await?;
        let mut set = Cmd::new();
        set.arg("SET").arg(&key).arg(1).arg("PX").arg(PROBE_TTL);
        // If the other connection does not answer, that says nothing about this one.
        let is_changed = self.cache.0.servers.call(&key, &set).await.is_ok();
        self.send(&ping()).await?;
        if is_changed && !self.reports.has_seen_probe.load(Ordering::Acquire) {
            return Err(CacheError::Unusable(
                "the server answers and reports no changes; connect to it without the proxy that leaves them out".into(),
            ));
        }
        Ok(())
    }

    fn check_connection(&self) -> Result<(), CacheError> {
        let is_lost = self.reports.is_lost.load(Ordering::Acquire) || self.connection.is_outdated();
        if is_lost {
            Err(CacheError::Unavailable("the connection for reports is lost".into()))
        } else {
            Ok(())
        }
    }
}

impl NoticeChannel for RedisChannel {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        // A read-only command, because others are not tracked: `SET … NX GET` is none.
        let reply = self.send(&commands::get(&self.cache.cache_key(key))).await;
        let found = commands::read(key, reply);
        self.check_connection()?;
        found
    }

    async fn ping(&self) -> Result<(), CacheError> {
        self.check_connection()?;
        if self.pings.fetch_add(1, Ordering::Relaxed) % PINGS == PINGS - 1 {
            self.check_reports().await?;
        } else {
            self.send(&ping()).await?;
        }
        self.check_connection()
    }
}

impl fmt::Debug for RedisChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisChannel").field("cache", &self.cache).finish_non_exhaustive()
    }
}

fn ping() -> Cmd {
    let mut cmd = Cmd::new();
    cmd.arg("PING");
    cmd
}

/// The receiver of a connection's push messages.
struct Reports {
    listener: Arc<dyn NoticeListener>,
    cache: Arc<Inner>,
    /// The probe's key was reported.
    has_seen_probe: AtomicBool,
    /// The connection has ended.
    is_lost: AtomicBool,
}

impl Reports {
    fn take(&self, push: &PushInfo) {
        match (&push.kind, push.data.as_slice()) {
            (PushKind::Invalidate, [Value::Array(keys)]) => {
                for key in keys {
                    self.take_key(key);
                }
            }
            // After a flush there are no keys. Anything else is not understood, and may be about any key.
            (PushKind::Invalidate, _) => self.listener.all_changed(),
            (PushKind::Disconnection, _) => self.is_lost.store(true, Ordering::Release),
            _ => {}
        }
    }

    fn take_key(&self, key: &Value) {
        let Value::BulkString(bytes) = key else { return self.listener.all_changed() };
        // Keys of other numbered databases are reported, too.
        let Some(rest) = bytes.strip_prefix(self.cache.key_prefix.as_bytes()) else { return };
        if rest == PROBE.as_bytes() {
            return self.has_seen_probe.store(true, Ordering::Release);
        }
        match std::str::from_utf8(rest).ok().and_then(|text| StoredKey::parse(text).ok()) {
            Some(key) => self.listener.changed(&key),
            None => tracing::debug!(target: "cache_backends", event = "notice_of_no_session",
                "Redis reports a change of a key that is no session's; it is ignored"),
        }
    }
}
