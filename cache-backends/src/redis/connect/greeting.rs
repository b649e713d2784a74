//! The check of a server on each new connection: its version, its commands, and whether it is a master.

use futures_util::future::join;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisResult, Value};

use crate::redis::error::NotConnected;

/// The oldest version of Redis that has `SET` with both `NX` and `GET`.
const OLDEST_MAJOR: u32 = 7;

/// The commands that the cache needs. An error for an unknown command quotes its arguments, and the driver closes the
/// connection if they are no text, as entries are not. So the server is asked for them before.
const NEEDED: [&str; 5] = ["GET", "SET", "DEL", "EVAL", "EVALSHA"];

/// The part that a server may play.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::redis) enum Part {
    /// It must be a master: entries of a replica may be old.
    Master,
    /// A node of a cluster, which sends callers to the master itself, or a server whose role is checked otherwise.
    Node,
    /// A sentinel, which has no entries.
    Sentinel,
}

/// The server's own description. A part of it is `None` if the server does not tell.
#[derive(Default)]
pub(super) struct Greeting {
    program: Option<String>,
    version: Option<String>,
    role: Option<String>,
    /// The needed commands that the server does not know.
    unknown: Vec<&'static str>,
}

/// Asks the server what it is. A server that refuses the question may still be usable.
pub(super) async fn ask(connection: &mut MultiplexedConnection, part: Part) -> RedisResult<Greeting> {
    if part == Part::Sentinel {
        return Ok(Greeting::default());
    }
    let mut other = connection.clone();
    let needed = [&["COMMAND", "INFO"], &NEEDED[..]].concat();
    let (hello, commands) = join(send(connection, &["HELLO"]), send(&mut other, &needed)).await;
    let mut greeting = match hello {
        Ok(reply) => read(&reply),
        // The user must log in first, or the connection is broken.
        Err(error) if error.code() == Some("NOAUTH") || error.is_unrecoverable_error() => return Err(error),
        Err(_) => Greeting::default(),
    };
    if part == Part::Master && greeting.role.is_none() {
        greeting.role = match send(connection, &["ROLE"]).await {
            Ok(Value::Array(role)) => role.first().and_then(text).map(str::to_owned),
            Ok(_) => None,
            Err(error) if error.is_unrecoverable_error() => return Err(error),
            Err(_) => None,
        };
    }
    // A user who may not ask may have the rights all the same.
    if let Ok(Value::Array(known)) = commands {
        let of_each = NEEDED.into_iter().zip(known);
        greeting.unknown =
            of_each.filter(|(_, known)| matches!(known, Value::Nil)).map(|(name, _)| name).collect();
    }
    Ok(greeting)
}

async fn send(connection: &mut MultiplexedConnection, words: &[&str]) -> RedisResult<Value> {
    let mut cmd = Cmd::new();
    cmd.arg(words);
    connection.send_packed_command(&cmd).await?.extract_error()
}

impl Greeting {
    /// Checks that the server at `address` can be used as `part`.
    pub(super) fn check(&self, part: Part, address: &str) -> Result<(), NotConnected> {
        if let Some(version) = &self.version
            && self.program.as_deref().is_none_or(|program| program == "redis")
            && is_too_old(version)
        {
            return Err(NotConnected::TooOld { address: address.into(), version: version.clone() });
        }
        if !self.unknown.is_empty() {
            let commands = self.unknown.join(" and ");
            return Err(NotConnected::NoCommand { address: address.into(), commands });
        }
        if part == Part::Master && self.is_replica() {
            return Err(NotConnected::Replica { address: address.into() });
        }
        Ok(())
    }

    fn is_replica(&self) -> bool {
        matches!(self.role.as_deref(), Some("slave" | "replica"))
    }
}

/// Returns `true` if the server calls itself a replica in this reply to `HELLO`.
pub(in crate::redis) fn is_replica(reply: &Value) -> bool {
    read(reply).is_replica()
}

/// Returns `true` if this version of Redis is older than the cache needs.
pub(in crate::redis) fn is_too_old(version: &str) -> bool {
    version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .is_some_and(|major: u32| major < OLDEST_MAJOR)
}

/// Reads the reply to `HELLO`: names and values, one after the other or as a map.
fn read(reply: &Value) -> Greeting {
    let pairs: Vec<(&Value, &Value)> = match reply {
        Value::Map(pairs) => pairs.iter().map(|(name, value)| (name, value)).collect(),
        Value::Array(parts) => {
            parts.chunks_exact(2).filter_map(|pair| Some((pair.first()?, pair.get(1)?))).collect()
        }
        _ => Vec::new(),
    };
    let field = |wanted: &str| {
        let (_, value) = pairs.iter().find(|(name, _)| text(name) == Some(wanted))?;
        text(value).map(str::to_owned)
    };
    Greeting { program: field("server"), version: field("version"), role: field("role"), unknown: Vec::new() }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}
