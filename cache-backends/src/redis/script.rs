//! The one script: an exchange in one round trip.

use redis::{Cmd, Script, Value};
use session_core::bytes::Bytes;
use session_core::{CacheError, Entry, Stamp, StoredKey};

use super::error::Failure;
use super::servers::Servers;

const SOURCE: &str = include_str!("compare_exchange.lua");

/// The script, and the hash under which a server remembers it.
pub(super) struct CompareExchange {
    hash: String,
}

/// What is, or must be, under a key.
pub(super) enum Found {
    Nothing,
    /// An entry that begins so.
    Stamped(Bytes),
    /// Just this.
    Raw(Bytes),
}

/// How every readable entry with this stamp begins: the stamp itself, then the version of the binary form.
pub(super) fn beginning(stamp: Stamp, key: &StoredKey) -> Bytes {
    Entry::lease(stamp).encode(key).slice(..=Stamp::LEN)
}

impl CompareExchange {
    pub(super) fn new() -> Self {
        Self { hash: Script::new(SOURCE).get_hash().to_owned() }
    }

    /// Replaces what is under `name` by `new`, or by nothing if that is empty. `None` when that was done, otherwise
    /// what is there instead.
    pub(super) async fn run(
        &self,
        servers: &Servers,
        name: &[u8],
        present: &Found,
        new: &[u8],
        millis: u64,
    ) -> Result<Option<Found>, CacheError> {
        let command = |name_of_command: &str, script: &str| {
            let (kind, bytes): (&str, &[u8]) = match present {
                Found::Nothing => ("nothing", b""),
                Found::Stamped(bytes) => ("stamped", bytes),
                Found::Raw(bytes) => ("raw", bytes),
            };
            let lengths = script.len() + name.len() + bytes.len() + new.len();
            let mut cmd = Cmd::with_capacity(8, lengths + 64);
            cmd.arg(name_of_command).arg(script).arg(1).arg(name).arg(kind).arg(bytes).arg(new).arg(millis);
            cmd
        };
        let mut answer = servers.call(name, &command("EVALSHA", &self.hash)).await;
        if answer.as_ref().is_err_and(Failure::is_no_script) {
            answer = servers.call(name, &command("EVAL", SOURCE)).await;
        }
        match answer? {
            Value::Int(1) => Ok(None),
            Value::Nil => Ok(Some(Found::Nothing)),
            Value::BulkString(bytes) => Ok(Some(Found::Raw(bytes.into()))),
            _ => Err(Failure::unexpected("the script").into()),
        }
    }
}
