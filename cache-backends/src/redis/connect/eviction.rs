//! A check of the server's eviction policy, because one policy would evict the protocol's fences first.

use futures_util::FutureExt;
use redis::{Cmd, Value};

use super::connection::{Connection, MakeConnection};

/// Returns a function that connects by `make` and then checks the server, each time.
pub(super) fn checked(make: MakeConnection) -> MakeConnection {
    Box::new(move || {
        let connecting = make();
        let checked = async move {
            let connection = connecting.await?;
            tokio::spawn(warn(connection.clone()));
            Ok(connection)
        };
        checked.boxed()
    })
}

/// Emits a warning event if the server evicts the shortest TTLs first. Emits nothing if the server does not
/// report its policy.
async fn warn(mut connection: Connection) {
    let mut cmd = Cmd::new();
    cmd.arg("INFO").arg("memory");
    let Ok(reply) = connection.send(&cmd).await else { return };
    if evicts_fences_first(&reply) {
        tracing::warn!(
            target: "cache_backends",
            event = "evicts_fences_first",
            maxmemory_policy = "volatile-ttl",
            "Redis evicts the keys with the shortest TTL first, which are the fences that keep outdated sessions out of \
             the cache; set another maxmemory-policy, such as allkeys-lru"
        );
    }
}

fn evicts_fences_first(reply: &Value) -> bool {
    let text = match reply {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
        Value::VerbatimString { text, .. } => text,
        _ => return false,
    };
    text.lines().any(|line| line.trim_end() == "maxmemory_policy:volatile-ttl")
}
