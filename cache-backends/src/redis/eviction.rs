//! A look at how the server makes room, because one way would make the protocol's fences the first to go.

use futures_util::FutureExt;
use redis::{Cmd, Value};

use super::link::{Connect, Connection};

/// The same, with a look at the server each time that it is connected to.
pub(super) fn looking(connect: Connect) -> Connect {
    Box::new(move || {
        let connecting = connect();
        let looked = async move {
            let connection = connecting.await?;
            tokio::spawn(warn(connection.clone()));
            Ok(connection)
        };
        looked.boxed()
    })
}

/// Emits a warning event if the server evicts the shortest TTLs first. Silent if it does not tell.
async fn warn(mut connection: Connection) {
    let mut cmd = Cmd::new();
    cmd.arg("INFO").arg("memory");
    let Ok(answer) = connection.send(&cmd).await else { return };
    if evicts_fences_first(&answer) {
        tracing::warn!(
            maxmemory_policy = "volatile-ttl",
            "Redis evicts the keys with the shortest TTL first, which are the fences that keep outdated sessions out of \
             the cache; set another maxmemory-policy, such as allkeys-lru"
        );
    }
}

fn evicts_fences_first(answer: &Value) -> bool {
    let text = match answer {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
        Value::VerbatimString { text, .. } => text,
        _ => return false,
    };
    text.lines().any(|line| line.trim_end() == "maxmemory_policy:volatile-ttl")
}
