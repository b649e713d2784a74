//! Digests of the parts of a state.

use std::hash::{Hash, Hasher};

use session_core::{
    Acquired, Entry, Exchange, Expected, Fence, Holder, MaskedKey, Record, Rotation, State, Value,
};

use super::call::{Effect, Reply};

/// A hasher that is fast and mixes well. It needs nothing else, because no adversary chooses what is hashed
/// here.
#[derive(Default)]
pub(super) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        // The finalizer of SplitMix64.
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ (chunk.len() as u64) << 56);
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
    fn write_u64(&mut self, n: u64) {
        let folded = u128::from(self.0.rotate_left(23) ^ n ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        #[allow(clippy::cast_possible_truncation, reason = "both halves are used")]
        let mixed = folded as u64 ^ (folded >> 64) as u64;
        self.0 = mixed.wrapping_add(n);
    }
}

pub(super) fn of(value: impl Hash) -> u64 {
    let mut hasher = Mixer::default();
    value.hash(&mut hasher);
    hasher.finish()
}

// Entries are destructured without `..`, so that a new field is a compile error here.

pub(super) fn record(record: &Record) -> u64 {
    of(record.parts())
}

pub(super) fn entry(entry: &Entry) -> u64 {
    let Entry { stamp, state } = entry;
    match state {
        State::Lease => of((0, stamp)),
        State::Value(value) => {
            // Every store of a run has the same name.
            let Value { record, made_at, store: _ } = value;
            of((1, stamp, self::record(record), made_at))
        }
        State::Fence(fence) => {
            let Fence { holders, dirty } = fence;
            let holder = |Holder { token, deadline }: &Holder| (*token, *deadline);
            of((2, stamp, holders.iter().map(holder).collect::<Vec<_>>(), dirty))
        }
    }
}

pub(super) fn rotation(note: &Rotation) -> u64 {
    let masked_key = note.masked_key.as_ref().map(MaskedKey::as_bytes);
    of((note.old.as_str(), note.new.as_str(), masked_key, note.expires_at))
}

pub(super) fn option(found: Option<&Entry>) -> u64 {
    found.map_or(0, entry)
}

pub(super) fn effect(effect: &Effect) -> u64 {
    match effect {
        Effect::Get(key) => of((0, key)),
        Effect::Acquire(key, lease, ttl) => of((1, key, entry(lease), ttl)),
        Effect::Exchange(key, expected, new, ttl) => {
            let expected = match expected {
                Expected::Vacant => None,
                Expected::Stamp(stamp) => Some(stamp),
            };
            of((2, key, expected, option(new.as_ref()), ttl))
        }
        Effect::Load(key, now) => of((3, key, now)),
        Effect::List(now) => of((4, now)),
        Effect::Insert(key, new) => of((5, key, record(new))),
        Effect::Update(key, new, expected, expiry, now) => {
            of((6, key, record(new), expected, *expiry as u8, now))
        }
        Effect::Touch(key, expires_at, idle_since, now) => of((7, key, expires_at, idle_since, now)),
        Effect::Rename(keys, new, expected, expiry, now) => {
            of((8, keys, record(new), expected, *expiry as u8, now))
        }
        Effect::Delete(key) => of((9, key)),
        Effect::DeleteAll(keys) => of((15, keys)),
        Effect::DeleteExpired(before) => of((10, before)),
        Effect::Watch(channel, key) => of((11, channel, key)),
        Effect::Ping(channel) => of((12, channel)),
        Effect::Note(note) => of((13, rotation(note))),
        Effect::Notes(key, now) => of((14, key, now)),
    }
}

pub(super) fn reply(reply: &Reply) -> u64 {
    match reply {
        Reply::Found(found) => of((0, option(found.as_ref()))),
        Reply::Acquired(Acquired::Placed) => of(1),
        Reply::Acquired(Acquired::Found(found)) => of((2, entry(found))),
        Reply::Exchanged(Exchange::Stored) => of(3),
        Reply::Exchanged(Exchange::Lost(found)) => of((4, option(found.as_ref()))),
        Reply::Loaded(found) => of((5, found.as_ref().map(record))),
        Reply::Listed(rows) => of((6, rows.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>())),
        Reply::Committed(version) => of((7, version)),
        Reply::Touched(is_due) => of((8, is_due)),
        Reply::Deleted(was_there) => of((9, was_there)),
        Reply::DeletedAll(keys) => of((19, keys.iter().map(|key| key.as_str()).collect::<Vec<_>>())),
        Reply::DeletedExpired(keys) => of((10, keys.len() as u64)),
        Reply::NotFound => of(11),
        Reply::Conflict => of(12),
        Reply::AlreadyExists => of(13),
        Reply::Refused => of(14),
        Reply::Unknown => of(15),
        Reply::Ponged => of(16),
        Reply::Noted => of(17),
        Reply::Notes(notes) => of((18, notes.iter().map(rotation).collect::<Vec<_>>())),
    }
}
