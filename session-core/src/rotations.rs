use std::fmt;
use std::future::Future;

use sha2::{Digest, Sha256};

use crate::{Persistence, PersistenceError, SessionKey, StoredKey, Timestamp};

/// A [`Persistence`] that also keeps notes of rotations, in a table of their own. A note says which new key a session has got,
/// so that requests that come late with the old key can follow it.
///
/// A note is not a session. It is written before the session moves, so the session may never arrive at the new key.
///
/// # Behavior
///
/// - [`Persistence::delete_expired`] also removes notes that expired at `before` or earlier, at most `limit` of them in a call,
///   and neither counts nor returns them. It sets [`has_more`](crate::ExpiredSessions::has_more) when it has removed as many.
/// - It does so whether or not a store uses the notes: those of a grace that was turned off go, too. Without the table, it
///   removes sessions only.
#[diagnostic::on_unimplemented(
    message = "`{Self}` keeps no notes of rotations, so a store over it can have no `rotation_grace`",
    note = "the databases of the crate `db-backends` keep them, Django's tables included; for another one, implement `Rotations`, or leave `rotation_grace` out"
)]
pub trait Rotations: Persistence {
    /// Writes a note.
    ///
    /// # Behavior
    ///
    /// - A note with the same two keys that is there already keeps the key that it reveals, or reveals none, and expires at the
    ///   later one of both instants.
    /// - Sessions are neither needed nor changed.
    ///
    /// # Errors
    ///
    /// Returns a [`PersistenceError`] that every method can return: see [`Persistence`](Persistence#errors).
    fn note_rotation(&self, rotation: &Rotation)
    -> impl Future<Output = Result<(), PersistenceError>> + Send;

    /// Returns at most `limit` notes about the key `old`.
    ///
    /// # Behavior
    ///
    /// - Notes that expire first come first.
    /// - Every node finds the notes of every other node.
    /// - Notes that have expired at `now` are not found.
    /// - The keys are compared byte for byte.
    /// - A note that cannot be read is left out.
    ///
    /// # Errors
    ///
    /// Returns a [`PersistenceError`] that every method can return: see [`Persistence`](Persistence#errors).
    fn rotations(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Rotation>, PersistenceError>> + Send;

    /// Creates the table of the notes.
    ///
    /// # Behavior
    ///
    /// - Creating it again changes nothing; several nodes may create it at once.
    /// - The session table is neither needed nor changed, nor is its schema version: older nodes go on beside it.
    ///
    /// # Errors
    ///
    /// Returns [`PersistenceError::Schema`] if another table has the name.
    fn migrate_rotations(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send;

    /// Returns the statements that [`migrate_rotations`](Self::migrate_rotations) runs, for applications that run their
    /// migrations themselves.
    fn rotations_sql(&self) -> String;

    /// Checks that the table of the notes exists and is as this version needs it. Changes nothing.
    ///
    /// # Behavior
    ///
    /// - A missing table of the notes is reported, and not created.
    ///
    /// # Errors
    ///
    /// Returns [`PersistenceError::Schema`], which says what to do, if the table is missing or different.
    fn check_rotations(&self) -> impl Future<Output = Result<(), PersistenceError>> + Send;
}

/// A note that a session has moved, or was about to move, from one key to another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rotation {
    /// The key before.
    pub old: StoredKey,
    /// The key after.
    pub new: StoredKey,
    /// The new session key, for clients that know the old one. `None` if they must not get it.
    pub masked_key: Option<MaskedKey>,
    /// The instant from which the note no longer counts.
    pub expires_at: Timestamp,
}

impl Rotation {
    /// Creates a note that does not reveal the new session key.
    #[must_use]
    pub const fn new(old: StoredKey, new: StoredKey, expires_at: Timestamp) -> Self {
        Self { old, new, masked_key: None, expires_at }
    }

    /// Adds the new session key for clients that know the old one.
    #[must_use]
    pub const fn with_masked_key(mut self, masked_key: Option<MaskedKey>) -> Self {
        self.masked_key = masked_key;
        self
    }
}

/// A [generated](SessionKey::generate) session key, masked by another one: a reader of the database who does not know
/// the other key learns nothing of it.
///
/// ```
/// use session_core::{KeyForm, KeyPrefix, MaskedKey, SessionKey, StoredKey};
///
/// let (old, new) = (SessionKey::generate()?, SessionKey::generate()?);
/// let stored = StoredKey::derive(&new, KeyForm::Hashed, &KeyPrefix::NONE)?;
/// let masked = MaskedKey::mask(&new, &stored, &old).expect("it was generated");
/// assert_eq!(masked.unmask(&stored, &old), Some(new));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MaskedKey([u8; Self::LEN]);

impl MaskedKey {
    const LEN: usize = SessionKey::GENERATED_LEN;

    /// Masks `key`, under which a session is stored as `stored`, by the key `old`. Returns `None` if `key` does not have the
    /// length of a generated key.
    #[must_use]
    pub fn mask(key: &SessionKey, stored: &StoredKey, old: &SessionKey) -> Option<Self> {
        let bytes = key.expose().as_bytes().try_into().ok()?;
        Some(Self(bytes).xor(&pad(stored, old)))
    }

    /// Returns the key, if `stored` and `old` are what it was masked with. Otherwise returns another key, or `None`: compare
    /// its [stored form](StoredKey::derive) with `stored`.
    #[must_use]
    pub fn unmask(&self, stored: &StoredKey, old: &SessionKey) -> Option<SessionKey> {
        let Self(bytes) = self.xor(&pad(stored, old));
        SessionKey::parse(std::str::from_utf8(&bytes).ok()?).ok()
    }

    /// Reads what [`as_bytes`](Self::as_bytes) has returned. Returns `None` if it has another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// Returns the masked key, to be stored.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn xor(&self, pad: &[u8; Self::LEN]) -> Self {
        let mut bytes = self.0;
        bytes.iter_mut().zip(pad).for_each(|(byte, pad)| *byte ^= pad);
        Self(bytes)
    }
}

/// Returns bytes that only holders of the key `old` know. The new stored key is in them because a pad must serve only once.
fn pad(stored: &StoredKey, old: &SessionKey) -> [u8; MaskedKey::LEN] {
    let digest = Sha256::new()
        .chain_update(b"session rotation\0")
        .chain_update(stored.as_bytes())
        .chain_update(b"\0")
        .chain_update(old.expose().as_bytes());
    digest.finalize().into()
}

impl fmt::Debug for MaskedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MaskedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyForm, KeyPrefix};

    fn key() -> (SessionKey, StoredKey) {
        let key = SessionKey::generate().unwrap();
        let stored = StoredKey::derive(&key, KeyForm::Hashed, &KeyPrefix::NONE).unwrap();
        (key, stored)
    }

    #[test]
    fn masked_key_is_unmasked_by_the_old_key_alone() {
        let ((old, _), (new, stored), (other, other_stored)) = (key(), key(), key());
        let masked = MaskedKey::mask(&new, &stored, &old).unwrap();
        assert_eq!(masked.unmask(&stored, &old), Some(new.clone()));
        assert_ne!(masked.unmask(&stored, &other), Some(new.clone()));
        assert_ne!(masked.unmask(&other_stored, &old), Some(new));
        assert_eq!(MaskedKey::from_bytes(masked.as_bytes()), Some(masked));
        assert_eq!(MaskedKey::from_bytes(b"short"), None);
    }

    #[test]
    fn two_keys_masked_by_one_old_key_do_not_share_a_pad() {
        let ((old, _), (one, one_stored), (other, other_stored)) = (key(), key(), key());
        let masked = MaskedKey::mask(&one, &one_stored, &old).unwrap();
        let MaskedKey(sum) = MaskedKey::mask(&other, &other_stored, &old).unwrap().xor(&masked.0);
        let keys = one.expose().bytes().zip(other.expose().bytes());
        assert!(keys.zip(sum).any(|((one, other), sum)| one ^ other != sum));
    }

    #[test]
    fn only_a_key_of_the_generated_length_is_masked_and_debug_shows_none() {
        let ((old, _), (new, stored)) = (key(), key());
        let short = SessionKey::parse("12345678").unwrap();
        assert_eq!(MaskedKey::mask(&short, &stored, &old), None);
        let masked = MaskedKey::mask(&new, &stored, &old);
        let rotation = Rotation::new(stored, stored, Timestamp::from_secs(1)).with_masked_key(masked);
        let shown = format!("{rotation:?}");
        assert!(shown.contains("MaskedKey(..)") && !shown.contains(stored.as_str()), "{shown}");
    }
}
