//! Random calls, answered by the database and by the reference.

use std::collections::HashMap;
use std::fmt::Debug;

use session_core::{
    ExpiryWrite, Persistence, PersistenceError, Record, RecordWrite, StoredKey, Timestamp, Version,
};

use super::{MINUTE, NOW, PersistenceFixture, key, record, subject};
use crate::suite::case::cases;
use crate::suite::reference::MemoryPersistence;

cases! {
    /// Returns the cases of this part.
    for PersistenceFixture:
    random_calls_are_answered_like_the_reference => "What one call has committed, every later call sees",
}

/// The reference and the database, with the versions that both have returned.
struct Histories<P> {
    reference: MemoryPersistence,
    nodes: Vec<P>,
    /// The database's version for each of the reference's: each chooses its own.
    versions: HashMap<Version, Version>,
    random: fastrand::Rng,
}

pub async fn random_calls_are_answered_like_the_reference(fixture: &impl PersistenceFixture) {
    let seed = fastrand::u64(..);
    let mut histories = Histories {
        reference: MemoryPersistence::default(),
        nodes: vec![fixture.open().await, fixture.open().await],
        versions: HashMap::new(),
        random: fastrand::Rng::with_seed(seed),
    };
    let keys = [key(), key(), key()];
    for step in 0..300 {
        histories.step(&keys, &format!("step {step} of seed {seed}")).await;
    }
}

impl<P: Persistence> Histories<P> {
    async fn step(&mut self, keys: &[StoredKey], hint: &str) {
        // In one function, because it is one choice with an arm for each method.
        let random = &mut self.random;
        let key = keys[random.usize(..keys.len())];
        let other = keys[random.usize(..keys.len())];
        // The clocks of nodes differ, and often a session ends just now.
        let now = NOW + random.u32(..8) * MINUTE;
        let record = record(random.u64(..).to_string())
            .with_expires_at(NOW + random.u32(..12) * MINUTE)
            .with_last_seen_at(now)
            .with_subject(if random.bool() { subject("user-42") } else { None });
        let expiry = if random.bool() { ExpiryWrite::Extend } else { ExpiryWrite::Replace };
        let current = self.reference.load(&key, NOW - MINUTE).await.expect("it has its table");
        let expected = match random.u8(..4) {
            0 => current.map(|row| row.version()),
            1 => Some(Version::from_u64(random.u64(..=self.versions.len() as u64))),
            _ => None,
        };
        // A version that the reference never returned is unknown to the database as well.
        let theirs = expected.map(|expected| *self.versions.get(&expected).unwrap_or(&Version::UNSAVED));
        let (reference, db) = (&self.reference, &self.nodes[random.usize(..self.nodes.len())]);
        match random.u8(..16) {
            0..=2 => self.compare(&key, now, hint).await,
            3..=5 => {
                let wanted = reference.insert(&key, &record).await;
                self.versions.extend(same(wanted, db.insert(&key, &record).await, "insert", hint));
            }
            6..=9 => {
                let write = RecordWrite::new(&record).with_expected(expected).with_expiry(expiry);
                let wanted = reference.update(&key, write, now).await;
                let write = RecordWrite::new(&record).with_expected(theirs).with_expiry(expiry);
                let found = db.update(&key, write, now).await;
                self.versions.extend(same(wanted, found, "update", hint));
            }
            10..=11 => {
                let idle_since = if random.bool() { Timestamp::MAX } else { NOW + random.u32(..8) * MINUTE };
                let wanted = reference.touch(&key, record.expires_at(), idle_since, now).await;
                let found = db.touch(&key, record.expires_at(), idle_since, now).await;
                if let Some((wanted, found)) = same(wanted, found, "touch", hint) {
                    assert_eq!(found, wanted, "touch at {hint}");
                }
            }
            12..=14 => {
                let write = RecordWrite::new(&record).with_expected(expected).with_expiry(expiry);
                let wanted = reference.rename(&key, &other, write, now).await;
                let write = RecordWrite::new(&record).with_expected(theirs).with_expiry(expiry);
                let found = db.rename(&key, &other, write, now).await;
                match (&wanted, &found) {
                    // If several things are wrong, either may be reported.
                    (Err(_), Err(PersistenceError::AlreadyExists))
                    | (Err(PersistenceError::AlreadyExists), Err(_)) => {}
                    _ => self.versions.extend(same(wanted, found, "rename", hint)),
                }
            }
            _ => {
                let wanted = reference.delete(&key).await;
                let (wanted, found) =
                    same(wanted, db.delete(&key).await, "delete", hint).expect("a delete is never refused");
                assert_eq!(found, wanted, "delete at {hint}");
            }
        }
        // The state after the step, including expired sessions.
        for key in [key, other] {
            self.compare(&key, NOW - MINUTE, hint).await;
        }
    }

    async fn compare(&mut self, key: &StoredKey, now: Timestamp, hint: &str) {
        let wanted = self.reference.load(key, now).await.expect("it has its table");
        let wanted = wanted.map(|row| self.translated(row));
        let node = self.random.usize(..self.nodes.len());
        assert_eq!(super::load(&self.nodes[node], key, now).await, wanted, "load at {hint}");
    }

    fn translated(&self, row: Record) -> Record {
        let version = self.versions[&row.version()];
        row.with_version(version)
    }
}

/// Returns both answers if both calls succeeded, and `None` if both were refused with the same error.
fn same<T: Debug>(
    wanted: Result<T, PersistenceError>,
    found: Result<T, PersistenceError>,
    call: &str,
    hint: &str,
) -> Option<(T, T)> {
    match (wanted, found) {
        (Ok(wanted), Ok(found)) => Some((wanted, found)),
        (Err(wanted), Err(found)) => {
            assert_eq!(format!("{found:?}"), format!("{wanted:?}"), "{call} at {hint}");
            None
        }
        (wanted, found) => panic!("{call} should be {wanted:?} and is {found:?}, at {hint}"),
    }
}
