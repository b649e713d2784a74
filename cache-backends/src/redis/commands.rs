//! The commands and their replies: `GET`, `SET … NX GET`, and the script that exchanges entries in one round
//! trip.

use std::time::Duration;

use redis::{Cmd, Script, Value};
use session_core::bytes::Bytes;
use session_core::{CacheError, Entry, EnvelopeError, Stamp, StoredKey};

use super::connect::Servers;
use super::error::Failure;

/// The largest value that Redis accepts by default: `proto-max-bulk-len`.
pub(super) const MAX_ENTRY_BYTES: usize = 512 << 20;

/// The longest TTL. Redis refuses TTLs that end after the year 292 million.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

const SCRIPT: &str = include_str!("compare_exchange.lua");

pub(super) fn get(cache_key: &[u8]) -> Cmd {
    let mut cmd = Cmd::with_capacity(2, cache_key.len() + 8);
    cmd.arg("GET").arg(cache_key);
    cmd
}

/// Returns the command that gets the value, or sets `bytes` if there is none.
pub(super) fn set_if_vacant(cache_key: &[u8], bytes: &[u8], ttl: Duration) -> Cmd {
    // Every hit is one of these, so allocate the room for all arguments at once.
    let mut cmd = Cmd::with_capacity(7, cache_key.len() + bytes.len() + 32);
    cmd.arg("SET").arg(cache_key).arg(bytes).arg("NX").arg("GET").arg("PX").arg(millis(ttl));
    cmd
}

/// The script, with the hash under which a server remembers it.
pub(super) struct CompareExchange {
    hash: String,
}

/// The value under a key, found or expected.
pub(super) enum Found {
    Nothing,
    /// An entry that begins with these bytes.
    Stamped(Bytes),
    /// Exactly these bytes.
    Raw(Bytes),
}

impl Found {
    /// Returns the beginning of every entry with this stamp, of whatever version: the stamp itself.
    pub(super) fn stamped(stamp: Stamp) -> Self {
        Self::Stamped(Bytes::copy_from_slice(&stamp.0.get().to_be_bytes()))
    }
}

impl CompareExchange {
    pub(super) fn new() -> Self {
        Self { hash: Script::new(SCRIPT).get_hash().to_owned() }
    }

    /// Replaces the value under `cache_key` by `new`, or removes it if `new` is empty. Returns `None` if that
    /// was done, and otherwise the value that is there instead.
    pub(super) async fn run(
        &self,
        servers: &Servers,
        cache_key: &[u8],
        present: &Found,
        new: &[u8],
        ttl: Duration,
    ) -> Result<Option<Found>, CacheError> {
        let command = |name: &str, script: &str| {
            let (kind, bytes): (&str, &[u8]) = match present {
                Found::Nothing => ("nothing", b""),
                Found::Stamped(bytes) => ("stamped", bytes),
                Found::Raw(bytes) => ("raw", bytes),
            };
            let lengths = script.len() + cache_key.len() + bytes.len() + new.len();
            let mut cmd = Cmd::with_capacity(8, lengths + 64);
            cmd.arg(name).arg(script).arg(1).arg(cache_key).arg(kind).arg(bytes).arg(new).arg(millis(ttl));
            cmd
        };
        let mut reply = servers.call(cache_key, &command("EVALSHA", &self.hash)).await;
        if reply.as_ref().is_err_and(Failure::is_no_script) {
            reply = servers.call(cache_key, &command("EVAL", SCRIPT)).await;
        }
        match reply? {
            Value::Int(1) => Ok(None),
            Value::Nil => Ok(Some(Found::Nothing)),
            Value::BulkString(bytes) => Ok(Some(Found::Raw(bytes.into()))),
            _ => Err(Failure::unexpected("the script").into()),
        }
    }
}

pub(super) fn encode(entry: &Entry, key: &StoredKey) -> Result<Bytes, CacheError> {
    let bytes = entry.encode(key);
    if bytes.len() > MAX_ENTRY_BYTES {
        let text = format!("the entry has {} bytes, but Redis takes at most {MAX_ENTRY_BYTES}", bytes.len());
        return Err(CacheError::Refused(text.into()));
    }
    Ok(bytes)
}

/// Decodes the entry in `bytes`. Returns `None` if they are no readable entry: the key counts as vacant.
pub(super) fn decode(key: &StoredKey, bytes: Bytes) -> Result<Option<Entry>, CacheError> {
    match Entry::decode(key, bytes) {
        Ok(entry) => Ok(Some(entry)),
        Err(EnvelopeError::WrongKey) => Err(CacheError::WrongKey),
        Err(_) => Ok(None),
    }
}

/// Reads the reply to [`get`].
pub(super) fn read(key: &StoredKey, reply: Result<Value, Failure>) -> Result<Option<Entry>, CacheError> {
    match reply {
        Ok(Value::Nil) => Ok(None),
        Ok(Value::BulkString(bytes)) => decode(key, bytes.into()),
        Ok(_) => Err(Failure::unexpected("GET").into()),
        Err(failure) if failure.is_wrong_type() => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Returns a TTL in milliseconds, rounded up.
fn millis(ttl: Duration) -> u64 {
    let ttl = ttl.min(MAX_TTL);
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
