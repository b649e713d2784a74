//! The commands of the meta protocol, and their replies.

use std::num::NonZeroU64;
use std::time::Duration;

use memcache::exp::{Get, GetResult, Meta, Set, Ttl};
use session_core::bytes::BytesMut;
use session_core::{CacheError, Entry, EnvelopeError, Stamp, State, StoredKey};

use super::connect::Server;

/// A server's clock ticks once a second.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// The longest TTL: long enough, and before the year 2106, when a server's 32 bits for an instant end.
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The contents of a key.
pub(super) enum Found {
    Nothing,
    /// An item that is no readable entry, with its CAS value. The key counts as vacant.
    Unreadable(u64),
    Entry(Entry),
}

impl Found {
    pub(super) fn entry(self) -> Option<Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Nothing | Self::Unreadable(_) => None,
        }
    }
}

/// Gets the contents of a key.
pub(super) async fn fetch(key: &StoredKey, cache_key: &[u8], server: &Server) -> Result<Found, CacheError> {
    read(key, server.run(get(cache_key)).await?)
}

pub(super) fn get(cache_key: &[u8]) -> Get {
    Get::new(cache_key).meta(Meta::NONE.cas())
}

/// Returns the command that writes `entry`, whatever the contents of the key.
pub(super) fn set(
    key: &StoredKey,
    cache_key: &[u8],
    entry: &Entry,
    ttl: Duration,
    max_entry_bytes: usize,
) -> Result<Set, CacheError> {
    let mut value = BytesMut::with_capacity(entry.state.encoded_len(key));
    entry.state.encode(key, &mut value);
    let actual = value.len();
    if actual > max_entry_bytes {
        // Do not send it: a server that cannot store an item drops the one before, which may be another
        // writer's fence.
        let text = format!("the entry has {actual} bytes, but at most {max_entry_bytes} are cached");
        return Err(CacheError::Refused(text.into()));
    }
    Ok(Set::new(cache_key, value).ttl(seconds(ttl)).force_cas(entry.stamp.0.get()))
}

/// Reads the reply to [`get`].
pub(super) fn read(key: &StoredKey, reply: GetResult) -> Result<Found, CacheError> {
    let Some(cas) = reply.item.cas else { return Ok(Found::Nothing) };
    // An item without a value is a placeholder of another program.
    let (Some(stamp), Some(value)) = (NonZeroU64::new(cas), reply.value) else {
        return Ok(Found::Unreadable(cas));
    };
    match State::decode(key, value.into()) {
        Ok(state) => Ok(Found::Entry(Entry { stamp: Stamp(stamp), state })),
        Err(EnvelopeError::WrongKey) => Err(CacheError::WrongKey),
        Err(_) => Ok(Found::Unreadable(cas)),
    }
}

/// Returns a TTL in a server's seconds, rounded up. It is a second longer, because the first tick may come at
/// any moment.
fn seconds(ttl: Duration) -> Ttl {
    Ttl::from(ttl.min(MAX_TTL) + TICK)
}
