//! The table of the notes of rotations, for a store that does not know whether its database has one.

use std::fmt;

use futures_util::future::BoxFuture;
use session_core::{PersistenceError, Rotation, Rotations, StoredKey};

use super::database::Database;
use crate::Error;

/// The maximum number of notes of one key to read, in the order of their expiry. There are several if many requests rotated
/// a session: only one of them has moved it, and it was one of the first.
const MAX_NOTES: u32 = 16;

/// The notes of rotations in a database of the type `P`. An object, because most of a store does not know whether its
/// database keeps any.
pub(crate) trait RotationTable<P>: fmt::Debug + Send + Sync {
    fn migrate<'a>(&self, db: &'a P) -> BoxFuture<'a, Result<(), PersistenceError>>;
    fn check<'a>(&self, db: &'a P) -> BoxFuture<'a, Result<(), PersistenceError>>;
    fn note<'a>(&self, db: &'a Database<P>, rotation: &'a Rotation) -> BoxFuture<'a, Result<(), Error>>;
    fn find<'a>(
        &self,
        db: &'a Database<P>,
        old: &'a StoredKey,
    ) -> BoxFuture<'a, Result<Vec<Rotation>, Error>>;
}

/// The table of a database that has one.
#[derive(Debug)]
pub(super) struct Table;

impl<P: Rotations> RotationTable<P> for Table {
    fn migrate<'a>(&self, db: &'a P) -> BoxFuture<'a, Result<(), PersistenceError>> {
        Box::pin(db.migrate_rotations())
    }
    fn check<'a>(&self, db: &'a P) -> BoxFuture<'a, Result<(), PersistenceError>> {
        Box::pin(db.check_rotations())
    }
    fn note<'a>(&self, db: &'a Database<P>, rotation: &'a Rotation) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(db.note_rotation(rotation))
    }
    fn find<'a>(
        &self,
        db: &'a Database<P>,
        old: &'a StoredKey,
    ) -> BoxFuture<'a, Result<Vec<Rotation>, Error>> {
        Box::pin(db.rotations(old, MAX_NOTES))
    }
}
