//! The transitions of the coherence protocol, as pure functions.
//!
//! A cache is a register per key with compare-and-exchange. Readers fill it under a *lease*, writers keep
//! fills out with a *fence*. These functions alone decide the next state of an entry. `session-cached-db`
//! drives them over [`Cache::get`](crate::Cache::get) and
//! [`Cache::compare_exchange`](crate::Cache::compare_exchange), in the same way for every backend; neither a
//! backend nor an application calls them.
//!
//! Each transition first gives up *other* holders whose deadline passed more than the clock slack ago, and
//! makes the fence dirty if there were any. A fence without holders counts as vacant: the next writer
//! replaces it, and a settlement removes it.
//!
//! A fence of another version, which a newer node has placed in the middle of a rolling deployment, is kept, too. Its
//! writers are one holder with a deadline that is not known, and get a minute from the first transition on.

use std::time::Duration;

use crate::{Entry, Fence, Holder, Stamp, State, Timestamp, Token, Value};

/// Returns the fence that the writer `me` places over `entry`.
///
/// The writer joins an existing fence, which stays dirty if it was, and replaces anything else. `me` must
/// have a token that was never placed before.
#[must_use]
pub fn fence(entry: Option<&Entry>, me: Holder, now: Timestamp, slack: Duration) -> Fence {
    let mut fence = match entry.map(|entry| &entry.state) {
        Some(State::Fence(fence)) => prune(fence, me.token, now, slack),
        Some(State::Value(_) | State::Lease) | None => None,
    }
    .unwrap_or_else(|| Fence { holders: Vec::with_capacity(1), dirty: false });
    fence.holders.push(me);
    fence
}

/// The next state of an entry when a writer is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The entry stays as it is.
    Keep,
    /// The entry is removed.
    Remove,
    /// This fence of other writers replaces the entry.
    Fence(Fence),
    /// The value that the writer has written replaces the entry.
    Publish,
}

/// Returns the next state of `entry` when the writer `me` is done, whose write has a **definite** outcome.
///
/// A writer that has a value to publish passes the stamp of the entry that its last confirmed fence stored as
/// `publish`. The result is [`Settlement::Publish`] only if `entry` is that very entry, clean, and without
/// other holders.
#[must_use]
pub fn settle(
    entry: Option<&Entry>,
    me: Token,
    publish: Option<Stamp>,
    now: Timestamp,
    slack: Duration,
) -> Settlement {
    let Some(entry) = entry else { return Settlement::Keep };
    let fence = match &entry.state {
        // The writer's fence was lost, and an entry that came in since may be older than its write.
        State::Value(_) | State::Lease => return Settlement::Remove,
        State::Fence(fence) => fence,
    };
    // Every holder was given up. Remove the fence all the same, or one of them may yet find it untouched and
    // publish a value that is older than this write.
    let Some(mut fence) = prune(fence, me, now, slack) else { return Settlement::Remove };
    fence.holders.retain(|holder| holder.token != me);
    if fence.holders.is_empty() {
        let untouched = publish == Some(entry.stamp);
        return if untouched && !fence.dirty { Settlement::Publish } else { Settlement::Remove };
    }
    // Other holders are left. This write overlapped theirs, so they must not publish.
    Settlement::Fence(Fence { dirty: true, ..fence })
}

/// The time for which the writers of a fence of another version are waited for: longer than a write takes.
const STRANGERS_TIME: Duration = Duration::from_secs(60);

/// Returns the fence without the holders, other than `me`, that are given up, or `None` if no holder is left.
fn prune(fence: &Fence, me: Token, now: Timestamp, slack: Duration) -> Option<Fence> {
    let alive = |holder: &&Holder| holder.token == me || holder.deadline + slack >= now;
    let bounded = |holder: &Holder| match holder.deadline {
        Holder::UNKNOWN_DEADLINE => Holder { deadline: now + STRANGERS_TIME, ..*holder },
        _ => *holder,
    };
    let holders: Vec<_> = fence.holders.iter().filter(alive).map(bounded).collect();
    let dirty = fence.dirty || holders.len() < fence.holders.len();
    (!holders.is_empty()).then_some(Fence { holders, dirty })
}

/// Returns `true` if a reader may take `value` from the cache: the session has not ended, and the value is
/// younger than `max_cache_age`. The cache's own clock has no part in this.
#[must_use]
pub fn is_servable(value: &Value, now: Timestamp, max_cache_age: Duration) -> bool {
    !value.record.is_expired(now) && now < value.made_at + max_cache_age
}

/// Returns how long a cache may keep `value`: as long as it [is servable](is_servable).
#[must_use]
pub fn value_ttl(value: &Value, now: Timestamp, max_cache_age: Duration) -> Duration {
    let left_of_age = (value.made_at + max_cache_age).since(now).min(max_cache_age);
    value.record.expires_at().since(now).min(left_of_age)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::Record;

    const SLACK: Duration = Duration::from_secs(2);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_secs(second)
    }

    fn number(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    fn token(n: u64) -> Token {
        Token(number(n))
    }

    fn stamp(n: u64) -> Stamp {
        Stamp(number(n))
    }

    fn holder(n: u64, deadline: i64) -> Holder {
        Holder { token: token(n), deadline: at(deadline) }
    }

    fn fenced(holders: &[Holder], dirty: bool) -> Entry {
        Entry::fence(stamp(99), Fence { holders: holders.to_vec(), dirty })
    }

    fn valued() -> Entry {
        Entry::value(stamp(99), value(10, 1_000))
    }

    fn value(made_at: i64, expires_at: i64) -> Value {
        let record = Arc::new(Record::new(Bytes::new(), at(0), at(expires_at)));
        Value { record, made_at: at(made_at), store: crate::StoreId(1) }
    }

    fn clean(holders: &[Holder]) -> Fence {
        Fence { holders: holders.to_vec(), dirty: false }
    }

    fn dirty(holders: &[Holder]) -> Fence {
        Fence { holders: holders.to_vec(), dirty: true }
    }

    #[test]
    fn fence_replaces_a_value_a_lease_and_nothing() {
        let me = holder(1, 30);
        for entry in [None, Some(valued()), Some(Entry::lease(stamp(5)))] {
            assert_eq!(fence(entry.as_ref(), me, at(0), SLACK), clean(&[me]));
        }
    }

    #[test]
    fn fence_over_a_fence_joins_it_and_keeps_it_dirty() {
        let (other, me) = (holder(1, 30), holder(2, 35));
        assert_eq!(fence(Some(&fenced(&[other], false)), me, at(5), SLACK), clean(&[other, me]));
        assert_eq!(fence(Some(&fenced(&[other], true)), me, at(5), SLACK), dirty(&[other, me]));
    }

    #[test]
    fn holders_past_deadline_and_slack_are_given_up_and_leave_the_fence_dirty() {
        let (dead, alive, me) = (holder(1, 30), holder(2, 60), holder(3, 70));
        let entry = fenced(&[dead, alive], false);
        assert_eq!(fence(Some(&entry), me, at(32), SLACK), clean(&[dead, alive, me]));
        let later = at(32) + Duration::from_micros(1);
        assert_eq!(fence(Some(&entry), me, later, SLACK), dirty(&[alive, me]));
    }

    #[test]
    fn fence_over_a_fence_without_living_holders_is_clean() {
        let entry = fenced(&[holder(1, 30)], true);
        let me = holder(2, 90);
        assert_eq!(fence(Some(&entry), me, at(60), SLACK), clean(&[me]));
    }

    #[test]
    fn fence_of_another_version_is_kept_for_a_minute_and_no_longer() {
        let stranger = Holder { token: token(7), deadline: Holder::UNKNOWN_DEADLINE };
        let entry = fenced(&[stranger], true);
        let (bounded, me) = (holder(7, 65), holder(1, 35));
        assert_eq!(fence(Some(&entry), me, at(5), SLACK), dirty(&[bounded, me]));
        assert_eq!(dirty(&[bounded, me]).ttl(at(5)), Duration::from_secs(60));
        // A newer node has joined the fence of this writer, so it must not publish, nor remove what it cannot read.
        let settled = settle(Some(&entry), token(1), Some(stamp(99)), at(5), SLACK);
        assert_eq!(settled, Settlement::Fence(dirty(&[bounded])));
        // The deadline is an ordinary one from then on.
        let joined = fenced(&[bounded, me], true);
        assert_eq!(fence(Some(&joined), holder(2, 50), at(20), SLACK), dirty(&[bounded, me, holder(2, 50)]));
        assert_eq!(fence(Some(&joined), holder(2, 98), at(68), SLACK), clean(&[holder(2, 98)]));
    }

    #[test]
    fn settle_removes_a_fence_whose_holders_are_all_given_up() {
        let entry = fenced(&[holder(1, 30)], false);
        assert_eq!(settle(Some(&entry), token(2), None, at(60), SLACK), Settlement::Remove);
    }

    #[test]
    fn settle_over_nothing_keeps_nothing() {
        assert_eq!(settle(None, token(1), Some(stamp(99)), at(0), SLACK), Settlement::Keep);
    }

    #[test]
    fn settle_removes_an_entry_that_came_after_a_lost_fence() {
        for entry in [valued(), Entry::lease(stamp(99))] {
            assert_eq!(settle(Some(&entry), token(1), Some(stamp(99)), at(0), SLACK), Settlement::Remove);
        }
    }

    #[test]
    fn settle_publishes_only_over_the_entry_of_the_own_confirmed_fence() {
        let entry = fenced(&[holder(1, 30)], false);
        let settled = |publish| settle(Some(&entry), token(1), publish, at(1), SLACK);
        assert_eq!(settled(Some(stamp(99))), Settlement::Publish);
        assert_eq!(settled(Some(stamp(98))), Settlement::Remove);
        assert_eq!(settled(None), Settlement::Remove);
        let entry = fenced(&[holder(1, 30)], true);
        assert_eq!(settle(Some(&entry), token(1), Some(stamp(99)), at(1), SLACK), Settlement::Remove);
    }

    #[test]
    fn settle_never_gives_up_its_own_writer() {
        let entry = fenced(&[holder(1, 30)], false);
        assert_eq!(settle(Some(&entry), token(1), Some(stamp(99)), at(500), SLACK), Settlement::Publish);
    }

    #[test]
    fn settle_leaves_other_holders_a_dirty_fence() {
        let (me, other) = (holder(1, 30), holder(2, 30));
        let settled = |holders: &[Holder]| {
            settle(Some(&fenced(holders, false)), token(1), Some(stamp(99)), at(1), SLACK)
        };
        assert_eq!(settled(&[me, other]), Settlement::Fence(dirty(&[other])));
        assert_eq!(settled(&[other]), Settlement::Fence(dirty(&[other])));
    }

    #[test]
    fn settle_does_not_publish_after_another_holder_was_given_up() {
        let entry = fenced(&[holder(1, 90), holder(2, 30)], false);
        assert_eq!(settle(Some(&entry), token(1), Some(stamp(99)), at(60), SLACK), Settlement::Remove);
    }

    #[test]
    fn value_is_servable_until_its_session_or_its_age_ends() {
        let age = Duration::from_secs(300);
        for (value, now, left) in [
            (value(0, 1_000), 299, 1),
            (value(0, 1_000), 300, 0),
            (value(0, 100), 99, 1),
            (value(0, 100), 100, 0),
            // The clock of the node that made this value is ahead.
            (value(50, 1_000), 10, 300),
        ] {
            assert_eq!(value_ttl(&value, at(now), age), Duration::from_secs(left));
            assert_eq!(is_servable(&value, at(now), age), left > 0);
        }
    }

    fn any_holder() -> impl Strategy<Value = Holder> {
        (1_u64..6, 0_i64..60).prop_map(|(n, deadline)| holder(n, deadline))
    }

    fn any_entry() -> impl Strategy<Value = Option<Entry>> {
        let holders = prop::collection::vec(any_holder(), 0..4);
        prop_oneof![
            Just(None),
            Just(Some(valued())),
            Just(Some(Entry::lease(stamp(99)))),
            (holders, any::<bool>()).prop_map(|(holders, dirty)| Some(fenced(&holders, dirty))),
        ]
    }

    proptest! {
        #[test]
        fn placed_fence_has_its_writer_and_every_living_holder(
            entry in any_entry(), deadline in 60_i64..90, now in 0_i64..60,
        ) {
            let me = holder(7, deadline);
            let placed = fence(entry.as_ref(), me, at(now), SLACK);
            prop_assert!(placed.holders.contains(&me));
            prop_assert!(placed.ttl(at(now)) >= me.deadline.since(at(now)));
            if let Some(Entry { state: State::Fence(before), .. }) = &entry {
                let alive = before.holders.iter().filter(|h| h.deadline + SLACK >= at(now));
                prop_assert!(alive.clone().all(|h| placed.holders.contains(h)));
                // A dirty fence becomes clean only when its last holder is lost.
                prop_assert!(placed.dirty || !before.dirty || alive.count() == 0);
            }
        }

        #[test]
        fn publish_needs_a_clean_fence_of_the_writer_alone(
            entry in any_entry(), me in 1_u64..6, now in 0_i64..60,
        ) {
            let settled = settle(entry.as_ref(), token(me), Some(stamp(99)), at(now), SLACK);
            if settled == Settlement::Publish {
                let Some(Entry { state: State::Fence(fence), .. }) = entry else {
                    return Err(TestCaseError::fail("published over no fence"));
                };
                prop_assert!(!fence.dirty);
                prop_assert!(fence.holders.iter().all(|h| h.token == token(me)));
            }
        }

        #[test]
        fn settled_fence_lacks_the_writer_and_is_dirty(
            entry in any_entry(), me in 1_u64..6, now in 0_i64..60,
        ) {
            match settle(entry.as_ref(), token(me), None, at(now), SLACK) {
                Settlement::Fence(rest) => {
                    prop_assert!(rest.dirty && !rest.holders.is_empty());
                    prop_assert!(rest.holders.iter().all(|h| h.token != token(me)));
                }
                Settlement::Publish => return Err(TestCaseError::fail("nothing to publish")),
                Settlement::Keep | Settlement::Remove => {}
            }
        }
    }
}
