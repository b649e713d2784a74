//! Random calls, answered by the database and by the reference.

use std::collections::HashMap;
use std::fmt::Debug;

use session_core::{ExpiryWrite, Persistence, PersistenceError, Record, StoredKey, Version};

use super::{MINUTE, NOW, PersistenceFixture, key, record, subject};
use crate::case::cases;
use crate::reference::MemoryPersistence;

cases! {
    /// The cases of this part.
    for PersistenceFixture:
    random_histories_are_those_of_the_reference => "What one call has committed, every later call sees",
}

/// What the reference and the database have answered so far.
struct Histories<P> {
    reference: MemoryPersistence,
    nodes: Vec<P>,
    /// Versions are chosen by each for itself. By the reference's: the database's.
    versions: HashMap<Version, Version>,
    random: fastrand::Rng,
}

pub async fn random_histories_are_those_of_the_reference(fixture: &impl PersistenceFixture) {
    let seed = fastrand::u64(..);
    let mut histories = Histories {
        reference: MemoryPersistence::default(),
        nodes: vec![fixture.open().await, fixture.open().await],
        versions: HashMap::new(),
        random: fastrand::Rng::with_seed(seed),
    };
    let keys = [key(), key(), key()];
    for step in 0..250 {
        histories.step(&keys, &format!("step {step} of seed {seed}")).await;
    }
}

impl<P: Persistence> Histories<P> {
    async fn step(&mut self, keys: &[StoredKey], hint: &str) {
        let random = &mut self.random;
        let key = keys[random.usize(..keys.len())];
        let other = keys[random.usize(..keys.len())];
        // Clocks of nodes differ; often, a session ends just now.
        let now = NOW + random.u32(..8) * MINUTE;
        let record = record(random.u64(..).to_string())
            .with_expires_at(NOW + random.u32(..12) * MINUTE)
            .with_last_seen_at(now)
            .with_subject(if random.bool() { subject("user-42") } else { None });
        let expiry = if random.bool() { ExpiryWrite::Extend } else { ExpiryWrite::Replace };
        let mut known = self.versions.iter().collect::<Vec<_>>();
        known.sort_by_key(|(reference, _)| reference.as_u64());
        let (expected, theirs) = match random.choice(&known) {
            Some((reference, theirs)) if random.bool() => (Some(**reference), Some(**theirs)),
            _ => (None, None),
        };
        let (reference, db) = (&self.reference, &self.nodes[random.usize(..self.nodes.len())]);
        match random.u8(..10) {
            0..=2 => {
                let wanted = reference.load(&key, now).await.expect("it has its table");
                let wanted = wanted.map(|row| self.translated(row));
                assert_eq!(super::load(db, &key, now).await, wanted, "load at {hint}");
            }
            3 => {
                let wanted = reference.insert(&key, &record).await;
                self.versions.extend(same(wanted, db.insert(&key, &record).await, "insert", hint));
            }
            4..=5 => {
                let wanted = reference.update(&key, &record, expected, expiry, now).await;
                let found = db.update(&key, &record, theirs, expiry, now).await;
                self.versions.extend(same(wanted, found, "update", hint));
            }
            6 => {
                let wanted = reference.touch(&key, record.expires_at(), now).await;
                same(wanted, db.touch(&key, record.expires_at(), now).await, "touch", hint);
            }
            7..=8 => {
                let wanted = reference.rename(&key, &other, &record, expected, expiry, now).await;
                let found = db.rename(&key, &other, &record, theirs, expiry, now).await;
                match (&wanted, &found) {
                    // Where several things are wrong, which one is told does not matter.
                    (Err(_), Err(PersistenceError::AlreadyExists))
                    | (Err(PersistenceError::AlreadyExists), Err(_)) => {}
                    _ => self.versions.extend(same(wanted, found, "rename", hint)),
                }
            }
            _ => {
                let wanted = reference.delete(&key).await;
                let (wanted, found) =
                    same(wanted, db.delete(&key).await, "delete", hint).expect("neither refuses");
                assert_eq!(found, wanted, "delete at {hint}");
            }
        }
    }

    fn translated(&self, row: Record) -> Record {
        let version = self.versions[&row.version()];
        row.with_version(version)
    }
}

/// What both have answered, if both did what was asked; none if both refused it alike.
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
