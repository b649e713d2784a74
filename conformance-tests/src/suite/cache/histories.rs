//! Random calls, answered by the cache and by a register.

use session_core::{Acquired, Cache, Entry, Exchange, Expected, Stamp};

use super::{CacheFixture, MINUTE, exchange, fence, get, key, lease, stamp, value};
use crate::suite::case::cases;

cases! {
    /// Returns the cases of this part.
    for CacheFixture:
    random_calls_are_answered_like_a_register => "Atomic against every other exchange",
}

/// Makes random calls, one after the other, on few keys. Each answer must be that of a register.
pub async fn random_calls_are_answered_like_a_register(fixture: &impl CacheFixture) {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let handles = [fixture.open().await, fixture.open().await];
    let keys = [key(), key()];
    let mut model: [Option<Entry>; 2] = [None, None];
    let mut gone: Vec<Stamp> = vec![stamp()];
    for step in 0..300 {
        let (cache, which) = (&handles[random.usize(..2)], random.usize(..2));
        let (key, there) = (&keys[which], &mut model[which]);
        let hint = format!("step {step} of seed {seed}");
        match random.u8(..4) {
            0 => assert_eq!(get(cache, key).await, *there, "{hint}"),
            1 => {
                let new = lease();
                let acquired = cache.acquire(key, new.clone(), MINUTE).await.expect("the cache answers");
                let expected = there.clone().map_or(Acquired::Placed, Acquired::Found);
                assert_eq!(acquired, expected, "{hint}");
                there.get_or_insert(new);
            }
            _ => {
                let expected = match there {
                    Some(entry) if random.u8(..4) > 0 => Expected::Stamp(entry.stamp),
                    _ if random.bool() => Expected::Vacant,
                    _ => Expected::Stamp(gone[random.usize(..gone.len())]),
                };
                let new = match random.u8(..4) {
                    0 => None,
                    1 => Some(lease()),
                    2 => Some(fence()),
                    _ => Some(value()),
                };
                let holds = match expected {
                    Expected::Vacant => there.is_none(),
                    Expected::Stamp(stamp) => there.as_ref().is_some_and(|entry| entry.stamp == stamp),
                };
                let done = exchange(cache, key, expected, new.clone(), MINUTE).await;
                if holds {
                    assert_eq!(done, Exchange::Stored, "{hint}");
                    gone.extend(std::mem::replace(there, new).map(|entry| entry.stamp));
                } else {
                    assert_eq!(done, Exchange::Lost(there.clone()), "{hint}");
                }
            }
        }
    }
}
