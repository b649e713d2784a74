//! The report for an operator.

use async_trait::async_trait;
use redis::{Cmd, Value};
use session_core::{CacheError, Timestamp};

use super::RedisCache;
use super::connect::{Servers, is_too_old};
use super::error::Failure;
use crate::{Inspect, Inspection};

#[async_trait]
impl Inspect for RedisCache {
    async fn inspect(&self) -> Result<Vec<Inspection>, CacheError> {
        let mut cmd = Cmd::new();
        cmd.arg("INFO");
        match &self.0.servers {
            Servers::One(server) => {
                let mut inspection = read(&server.call(&cmd).await?)?;
                inspection.address = server.master().await;
                if inspection.tracked_keys.is_some() {
                    // A user who may not ask has no answer here, which is no problem.
                    inspection.max_tracked_keys =
                        server.call(&max_tracked_keys()).await.ok().and_then(|reply| limit(&reply));
                }
                Ok(vec![inspection])
            }
            #[cfg(feature = "redis-cluster")]
            Servers::Cluster(cluster) => {
                let read = |(address, reply)| {
                    let mut inspection = read(&reply)?;
                    inspection.address = Some(address);
                    Ok(inspection)
                };
                let mut inspections: Vec<_> =
                    cluster.call_all(&cmd).await?.into_iter().map(read).collect::<Result<_, CacheError>>()?;
                if inspections.iter().any(|inspection| inspection.tracked_keys.is_some()) {
                    let limits = cluster.call_all(&max_tracked_keys()).await.unwrap_or_default();
                    for (inspection, (_, reply)) in inspections.iter_mut().zip(&limits) {
                        inspection.max_tracked_keys = limit(reply);
                    }
                }
                Ok(inspections)
            }
        }
    }
}

fn max_tracked_keys() -> Cmd {
    let mut cmd = Cmd::new();
    cmd.arg("CONFIG").arg("GET").arg("tracking-table-max-keys");
    cmd
}

/// Returns the limit in the reply to [`max_tracked_keys`]. Zero stands for none.
fn limit(reply: &Value) -> Option<u64> {
    let value = match reply {
        Value::Array(parts) => parts.get(1)?,
        Value::Map(pairs) => &pairs.first()?.1,
        _ => return None,
    };
    text(value)?.parse().ok().filter(|limit| *limit > 0)
}

fn read(reply: &Value) -> Result<Inspection, CacheError> {
    let info = text(reply).ok_or_else(|| Failure::unexpected("INFO"))?;
    let field = |name: &str| {
        info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':')).map(str::to_owned)
    };
    let number = |name| field(name).and_then(|value| value.parse::<u64>().ok());
    // Valkey reports the version of Redis that it is compatible with, too.
    let (redis, valkey) = (field("redis_version"), field("valkey_version"));
    let is_old = valkey.is_none() && redis.as_deref().is_some_and(is_too_old);
    let version = valkey.map(|version| format!("Valkey {version}"));
    let version = version.or_else(|| redis.map(|version| format!("Redis {version}")));
    let clock = number("server_time_usec").and_then(|micros| i64::try_from(micros).ok());
    let eviction = field("maxmemory_policy");
    Ok(Inspection {
        address: None,
        version,
        needed_version: is_old.then_some("Redis 7.0, or Valkey"),
        clock: clock.map(Timestamp::from_micros),
        evicts_fences_first: eviction.as_deref() == Some("volatile-ttl"),
        eviction,
        is_replica: matches!(field("role").as_deref(), Some("slave" | "replica")),
        used_bytes: number("used_memory"),
        max_bytes: number("maxmemory").filter(|bytes| *bytes > 0),
        evicted: number("evicted_keys"),
        tracked_keys: number("tracking_total_keys"),
        max_tracked_keys: None,
    })
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}
