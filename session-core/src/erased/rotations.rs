use std::sync::Arc;

use async_trait::async_trait;

use super::DynDatabase;
use crate::{PersistenceError, Rotation, Rotations, StoredKey, Timestamp};

/// The object-safe twin of [`Rotations`]: the same methods with boxed futures. Implemented for all [`Rotations`].
#[async_trait]
pub trait DynRotations: Send + Sync {
    /// See [`Rotations::note_rotation`].
    async fn note_rotation_dyn(&self, rotation: &Rotation) -> Result<(), PersistenceError>;
    /// See [`Rotations::rotations`].
    async fn rotations_dyn(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Rotation>, PersistenceError>;
    /// See [`Rotations::migrate_rotations`].
    async fn migrate_rotations_dyn(&self) -> Result<(), PersistenceError>;
    /// See [`Rotations::rotations_sql`].
    fn rotations_sql_dyn(&self) -> String;
    /// See [`Rotations::check_rotations`].
    async fn check_rotations_dyn(&self) -> Result<(), PersistenceError>;
}

#[async_trait]
impl<T: Rotations> DynRotations for T {
    async fn note_rotation_dyn(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
        self.note_rotation(rotation).await
    }
    async fn rotations_dyn(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Rotation>, PersistenceError> {
        self.rotations(old, now, limit).await
    }
    async fn migrate_rotations_dyn(&self) -> Result<(), PersistenceError> {
        self.migrate_rotations().await
    }
    fn rotations_sql_dyn(&self) -> String {
        self.rotations_sql()
    }
    async fn check_rotations_dyn(&self) -> Result<(), PersistenceError> {
        self.check_rotations().await
    }
}

/// Implements [`Rotations`] by the methods `$note` and so on of `$target`: a twin, or the target of a pointer.
macro_rules! forward_rotations {
    (($($head:tt)*) ($this:ident => $target:expr) $note:ident $rotations:ident $migrate:ident $sql:ident $check:ident) => {
        #[deny(clippy::missing_trait_methods)]
        $($head)* {
            async fn note_rotation(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
                let $this = self;
                $target.$note(rotation).await
            }
            async fn rotations(
                &self,
                old: &StoredKey,
                now: Timestamp,
                limit: u32,
            ) -> Result<Vec<Rotation>, PersistenceError> {
                let $this = self;
                $target.$rotations(old, now, limit).await
            }
            async fn migrate_rotations(&self) -> Result<(), PersistenceError> {
                let $this = self;
                $target.$migrate().await
            }
            fn rotations_sql(&self) -> String {
                let $this = self;
                $target.$sql()
            }
            async fn check_rotations(&self) -> Result<(), PersistenceError> {
                let $this = self;
                $target.$check().await
            }
        }
    };
}

macro_rules! rotations_for_pointer {
    ($($pointer:ident),*) => {$(
        forward_rotations!((impl<T: Rotations + ?Sized> Rotations for $pointer<T>) (this => (**this))
            note_rotation rotations migrate_rotations rotations_sql check_rotations);
    )*};
}

forward_rotations!((impl Rotations for dyn DynDatabase) (this => this)
    note_rotation_dyn rotations_dyn migrate_rotations_dyn rotations_sql_dyn check_rotations_dyn);
rotations_for_pointer!(Arc, Box);
