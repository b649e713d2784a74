//! Reports of changed keys, by `CLIENT TRACKING` over RESP3.

// The driver calls `Reports::take` while it reads from the connection, before it hands on the reply that follows. So
// reports are applied in the order of the stream, and before every later answer.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join, try_join_all};
use redis::{Cmd, PushInfo, PushKind, Value};
use session_core::{CacheError, Entry, NoticeChannel, NoticeListener, NoticeSource, StoredKey};
use tokio::time::timeout;

use super::connect::{Lines, TakePush, is_replica};
use super::error::{Failure, NotConnected};
use super::{Inner, RedisCache, commands, error};

/// A function that makes connections whose push messages go to the argument.
pub(super) type MakeChannel =
    Box<dyn Fn(TakePush) -> BoxFuture<'static, Result<Lines, NotConnected>> + Send + Sync>;

/// The means to make connections for reports.
pub(super) enum Channels {
    By(MakeChannel),
    /// There are none, for this reason.
    Refused(&'static str),
}

/// The beginning, after the prefix, of the keys by which a channel finds out whether changes are reported. No session has
/// such a key. A number follows, except for the first.
const PROBE: &str = "~near";

/// The largest number after [`PROBE`]. Every master of a cluster has one of these keys, unless it has almost no slots.
const MAX_PROBE: u32 = 1 << 16;

/// The time for which the value under a probe's key is kept, in milliseconds.
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
            probes: Mutex::default(),
            is_lost: AtomicBool::new(false),
        });
        let take = Arc::clone(&reports);
        let connected = make(Arc::new(move |push| take.take(&push))).await;
        let lines = connected.map_err(|error| CacheError::from(Failure::NotConnected(error)))?;
        let probes = self.probes(&lines)?;
        let channel = RedisChannel { cache: self.clone(), lines, probes, reports, pings: AtomicU32::new(0) };
        let mut tracking = Cmd::new();
        tracking.arg("CLIENT").arg("TRACKING").arg("ON");
        let tracked = try_join_all((0..channel.probes.len()).map(|line| channel.send(line, &tracking)));
        let refused = timeout(PATIENCE, tracked).await.unwrap_or(Err(Failure::Timeout));
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

impl RedisCache {
    /// Returns a key of a probe for each connection, which the server there has.
    fn probes(&self, lines: &Lines) -> Result<Vec<Vec<u8>>, CacheError> {
        let key = |number: u32| {
            let number = if number == 0 { String::new() } else { number.to_string() };
            [self.0.key_prefix.as_bytes(), PROBE.as_bytes(), number.as_bytes()].concat()
        };
        let lines_and_keys = (0..lines.connections().len())
            .map(|line| (0..MAX_PROBE).map(key).find(|key| lines.number_of(key) == Some(line)));
        lines_and_keys.collect::<Option<_>>().ok_or_else(|| {
            CacheError::Unavailable(
                "a master of the cluster has almost no slots, or the key_prefix pins all keys to one slot"
                    .into(),
            )
        })
    }
}

/// A connection on which Redis or Valkey reports changes of the keys that were read on it; in a cluster, one to every
/// master. If one of them is lost, or a key has moved to another master, the channel is lost.
pub struct RedisChannel {
    cache: RedisCache,
    lines: Lines,
    /// The key of a probe for each connection.
    probes: Vec<Vec<u8>>,
    reports: Arc<Reports>,
    pings: AtomicU32,
}

impl RedisChannel {
    async fn send(&self, line: usize, cmd: &Cmd) -> Result<Value, Failure> {
        let connection = self.lines.connections().get(line).ok_or(Failure::unexpected("CLUSTER SLOTS"))?;
        connection.clone().send(cmd).await.map_err(Failure::Answer)
    }

    /// Changes keys of its own, and checks that the report of each comes before the answer to a ping: a proxy may pass answers
    /// and leave reports out.
    async fn check_reports(&self) -> Result<(), CacheError> {
        try_join_all((0..self.probes.len()).map(|line| self.check_reports_on(line))).await.map(drop)
    }

    async fn check_reports_on(&self, line: usize) -> Result<(), CacheError> {
        let Some(key) = self.probes.get(line) else { return Ok(()) };
        self.reports.lock_probes().remove(key);
        self.send(line, &commands::get(key)).await?;
        let mut set = Cmd::new();
        set.arg("SET").arg(key).arg(1).arg("PX").arg(PROBE_TTL);
        // If the other connection does not answer, that says nothing about this one.
        let is_changed = self.cache.0.servers.call(key, &set).await.is_ok();
        self.ping_on(line).await?;
        if is_changed && !self.reports.lock_probes().contains(key) {
            return Err(CacheError::Unusable(
                "the server answers and reports no changes; connect to it without the proxy that leaves them out".into(),
            ));
        }
        Ok(())
    }

    /// Pings a server, and checks that it is still the one that hears of changes first. One that was made a replica answers
    /// as before, and hears of them late.
    async fn ping_on(&self, line: usize) -> Result<(), CacheError> {
        if self.lines.is_cluster() {
            // A replica, or a node that is cut off from the others, refuses commands with keys.
            let Some(key) = self.probes.get(line) else { return Ok(()) };
            let answer = self.send(line, &commands::get(key)).await;
            if answer.is_err() {
                self.lines.refresh();
            }
            return Ok(answer.map(drop)?);
        }
        let (role, answer) = join(self.send(line, &word("HELLO")), self.send(line, &word("PING"))).await;
        answer?;
        // A server that does not say what it is was accepted when it was connected to, too.
        if role.is_ok_and(|reply| is_replica(&reply)) {
            return Err(CacheError::Unavailable("the server has become a replica".into()));
        }
        Ok(())
    }

    fn check_connection(&self) -> Result<(), CacheError> {
        let is_lost = self.reports.is_lost.load(Ordering::Acquire) || self.lines.is_outdated();
        if is_lost {
            Err(CacheError::Unavailable("a connection for reports is lost, or keys have moved".into()))
        } else {
            Ok(())
        }
    }
}

impl NoticeChannel for RedisChannel {
    async fn get(&self, key: &StoredKey) -> Result<Option<Entry>, CacheError> {
        let cache_key = self.cache.cache_key(key);
        let Some(line) = self.lines.number_of(&cache_key) else {
            self.lines.refresh();
            return Err(CacheError::Unavailable("no master of the cluster has the key".into()));
        };
        // A read-only command, because others are not tracked: `SET … NX GET` is none.
        let reply = self.send(line, &commands::get(&cache_key)).await;
        if reply.as_ref().is_err_and(Failure::has_moved) {
            self.reports.is_lost.store(true, Ordering::Release);
            self.lines.refresh();
        }
        let found = commands::read(key, reply);
        self.check_connection()?;
        found
    }

    async fn ping(&self) -> Result<(), CacheError> {
        self.check_connection()?;
        if self.pings.fetch_add(1, Ordering::Relaxed) % PINGS == PINGS - 1 {
            self.check_reports().await?;
        } else {
            try_join_all((0..self.probes.len()).map(|line| self.ping_on(line))).await?;
        }
        self.check_connection()
    }
}

impl fmt::Debug for RedisChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisChannel").field("cache", &self.cache).finish_non_exhaustive()
    }
}

fn word(command: &str) -> Cmd {
    let mut cmd = Cmd::new();
    cmd.arg(command);
    cmd
}

/// The receiver of push messages.
struct Reports {
    listener: Arc<dyn NoticeListener>,
    cache: Arc<Inner>,
    /// The keys of probes that were reported.
    probes: Mutex<BTreeSet<Vec<u8>>>,
    /// A connection has ended, or a key has moved to another master.
    is_lost: AtomicBool,
}

impl Reports {
    fn lock_probes(&self) -> std::sync::MutexGuard<'_, BTreeSet<Vec<u8>>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        let Some(rest) = bytes.strip_prefix(self.cache.key_prefix.as_bytes()) else {
            return self.listener.ignored();
        };
        if rest.starts_with(PROBE.as_bytes()) {
            self.lock_probes().insert(bytes.clone());
            return;
        }
        match std::str::from_utf8(rest).ok().and_then(|text| StoredKey::parse(text).ok()) {
            Some(key) => self.listener.changed(&key),
            None => self.listener.ignored(),
        }
    }
}
