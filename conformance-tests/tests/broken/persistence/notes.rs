//! The notes of rotations in a broken database.

use super::*;

impl BrokenPersistence {
    fn noted(&self, key: &StoredKey) -> String {
        match self.fault {
            Fault::FoldsNotedKeys => key.as_str().to_lowercase(),
            _ => key.as_str().to_owned(),
        }
    }

    /// Removes notes that have expired. Returns `true` if more may be left.
    pub(super) fn remove_notes(&self, before: Timestamp, limit: usize) -> Result<bool, PersistenceError> {
        match self.fault {
            Fault::LeavesExpiredNotes => return Ok(false),
            Fault::RemovalNeedsATableOfNotes => self.check_notes()?,
            _ => {}
        }
        let is_over = |note: &mut Rotation| match self.fault {
            Fault::SparesNotesThatEndAtTheInstant => note.expires_at < before,
            Fault::RemovesNotesThatEndLater => note.expires_at <= before + std::time::Duration::from_secs(1),
            _ => note.expires_at <= before,
        };
        let most = if self.has(Fault::RemovesNotesBeyondTheLimit) { usize::MAX } else { limit };
        let removed = self.lock().notes.extract_if(.., is_over).take(most).count();
        Ok(limit > 0 && removed >= limit && !self.has(Fault::RemovalForgetsNotesThatAreLeft))
    }

    /// Fails if there is no table of the notes.
    fn check_notes(&self) -> Result<(), PersistenceError> {
        if self.lock().has_notes || self.has(Fault::NotesWithoutATable) {
            return Ok(());
        }
        Err(SchemaProblem::MissingRotations { table: "sessions_rotations".into() }.into())
    }
}

impl Rotations for BrokenPersistence {
    async fn note_rotation(&self, rotation: &Rotation) -> Result<(), PersistenceError> {
        self.check_notes()?;
        let mut table = self.lock();
        if self.has(Fault::NoteEndsTheSession) {
            table.rows.remove(&self.place(&rotation.old));
        }
        if self.has(Fault::NoteOverwrites) {
            table.notes.retain(|note| (note.old, note.new) != (rotation.old, rotation.new));
        }
        let is_same = |note: &Rotation| match self.fault {
            Fault::NotesLoseTheSecond => note.old == rotation.old,
            _ => (note.old, note.new) == (rotation.old, rotation.new),
        };
        match table.notes.iter_mut().find(|note| is_same(note)) {
            Some(_) if self.has(Fault::SecondNoteProlongsNothing) => {}
            Some(note) if self.has(Fault::SecondNoteShortens) => note.expires_at = rotation.expires_at,
            Some(note) => note.expires_at = note.expires_at.max(rotation.expires_at),
            None => table.notes.push(rotation.clone()),
        }
        if !self.has(Fault::NotesComeInTheOrderOfWriting) {
            table.notes.sort_by_key(|note| note.expires_at);
        }
        Ok(())
    }

    async fn rotations(
        &self,
        old: &StoredKey,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Rotation>, PersistenceError> {
        self.check_notes()?;
        let table = self.lock();
        let is_live = |note: &&Rotation| note.expires_at > now || self.has(Fault::FindsExpiredNotes);
        let found =
            table.notes.iter().filter(|note| self.noted(&note.old) == self.noted(old)).filter(is_live);
        let limit = if self.has(Fault::FindsNotesBeyondTheLimit) { usize::MAX } else { limit as usize };
        let mut found = found.take(limit).cloned().collect::<Vec<_>>();
        if self.has(Fault::NotesRevealNoKey) {
            found.iter_mut().for_each(|note| note.masked_key = None);
        }
        Ok(found)
    }

    async fn migrate_rotations(&self) -> Result<(), PersistenceError> {
        if self.has(Fault::CannotMakeTheTableOfNotesAtOnce) {
            if std::mem::replace(&mut self.lock().is_being_made, true) {
                return Err(PersistenceError::Refused("another node makes the table already".into()));
            }
            Self::pause().await;
            self.lock().is_being_made = false;
        }
        let mut table = self.lock();
        table.has_notes = true;
        if self.has(Fault::MakingTheTableOfNotesEmptiesIt) {
            table.notes.clear();
        }
        if self.has(Fault::TableOfNotesIsTheSessionTable) {
            table.is_there = true;
        }
        Ok(())
    }

    fn rotations_sql(&self) -> String {
        "CREATE TABLE sessions_rotations".into()
    }

    async fn check_rotations(&self) -> Result<(), PersistenceError> {
        if self.has(Fault::ChecksNoTableOfNotes) { Ok(()) } else { self.check_notes() }
    }
}
