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
                Ok(vec![inspection])
            }
            #[cfg(feature = "redis-cluster")]
            Servers::Cluster(cluster) => {
                let read = |(address, reply)| {
                    let mut inspection = read(&reply)?;
                    inspection.address = Some(address);
                    Ok(inspection)
                };
                cluster.call_all(&cmd).await?.into_iter().map(read).collect()
            }
        }
    }
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
    })
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}
