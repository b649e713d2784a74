//! Databases that are wrong in one way each, and the case that must notice it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use conformance_tests::persistence::Damage;
use session_core::{
    ExpiredSession, ExpiredSessions, ExpiryWrite, Persistence, PersistenceError, PersistenceProperties,
    Record, Rotation, Rotations, Row, Scan, SchemaProblem, SessionTimes, StoredKey, Subject, SubjectIndex,
    Timestamp, Version,
};

/// The fault of a broken backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No fault. The suite must pass, which shows that the other backends fail because of their faults.
    Nothing,
    // Loads.
    HasATablePerHandle,
    ReadsAReplicaThatLags,
    CachesWhatItRead,
    FindsWhatIsDeleted,
    FindsExpired,
    FindsWhatEndsNow,
    RemovesWhatItFindsExpired,
    ComparesExpiriesAsText,
    ComparesExpiriesIn32Bits,
    AsksItsOwnClock,
    // The contents that are returned.
    CutsPayloads,
    CutsUpdatedPayloads,
    TakesPayloadsForText,
    EndsPayloadsAtNul,
    CutsInstants,
    CutsInstantsToMillis,
    TrimsSubjects,
    FoldsSubjectsThatAreStored,
    LosesTheCreation,
    LosesTheSubject,
    FoldsKeys,
    CutsKeys,
    HasNoLimit,
    // Inserts.
    InsertOverwrites,
    InsertOverwritesExpired,
    InsertIsNotAtomic,
    InsertKeepsTheRecordsVersion,
    CountsVersionsFromOne,
    // Updates.
    UpdateInserts,
    UpdateRevives,
    UpdateIgnoresTheVersion,
    UpdateExpectsTheRecordsVersion,
    UpdateIsNotAtomic,
    UpdateOfAbsentIsAConflict,
    UpdateOfExpiredIsAConflict,
    UpdateWritesBeforeItRefuses,
    UpdateKeepsTheSubject,
    UpdateKeepsTheVersion,
    UpdateTakesTwoSteps,
    UpdateShortens,
    UpdateNeverShortens,
    UpdateReadsAndWritesBack,
    // Touches.
    TouchInserts,
    TouchRevives,
    TouchShortens,
    TouchSetsTheExpiryAlone,
    TouchChangesTheVersion,
    TouchTurnsTheLastUseBack,
    TouchIsNotAtomic,
    TouchIsAlwaysWritten,
    TouchIsNotWrittenInTime,
    TouchOfWhatIsNotDueProlongs,
    TouchLooksBeforeItWrites,
    TouchNeedsACondition,
    TouchThatIsNotDueIsNotFound,
    // The clock.
    ClockIsInLocalTime,
    ClockShowsSeconds,
    ClockStandsStill,
    // Renames.
    RenameCopies,
    RenameOverwrites,
    RenameOverwritesExpired,
    RenameOntoItselfWorks,
    RenameRevives,
    RenameIgnoresTheVersion,
    RenameMovesOnly,
    RenameKeepsTheVersion,
    RenameShortens,
    RenameInsertsThenDeletes,
    RenameDeletesThenInserts,
    RenameInserts,
    // Deletes.
    DeleteTellsNothing,
    DeleteAlwaysTellsOfOne,
    DeleteSparesExpired,
    DeleteIsNotAtomic,
    RemovesBeyondTheLimit,
    RemovalsAreOnlyCounted,
    RemovalsLoseTheSubject,
    RemovalsCountStoredKeysOnly,
    RemovalFailsAtUnreadableRows,
    RemovesWhatEndsLater,
    SparesWhatEndsAtTheInstant,
    RemovesLessThanItCould,
    RemovalsCountTwice,
    // The table.
    MigratingEmptiesTheTable,
    MigratesOnce,
    ChecksNothing,
    CheckMakesTheTable,
    CannotMigrateAtOnce,
    HasNoSchema,
    // The index.
    ListsEverybodys,
    ListsExpired,
    FoldsSubjects,
    PadsSubjects,
    ListsAHundred,
    ListsWhatWasInserted,
    ListsOtherTimes,
    ListsInOtherOrders,
    ListsFromTheKeyOn,
    ListsWhatIsLeftOfAPage,
    ListsNoUnreadableTimes,
    ListsNothingIfOneIsUnreadable,
    ListsShortPagesAfterUnreadableKeys,
    // The scan.
    ScansWhatHasNotExpired,
    ScansInOtherOrders,
    ScansShortPages,
    ScansFromTheKeyOn,
    ScansWithoutPayload,
    ScansFromTheSecondOn,
    ScansNoUnreadableRows,
    ScansNothingIfOneIsUnreadable,
    ScansShortPagesAfterUnreadableKeys,
    // The notes of rotations.
    NotesRevealNoKey,
    NotesLoseTheSecond,
    FindsExpiredNotes,
    FindsNotesBeyondTheLimit,
    FoldsNotedKeys,
    NoteOverwrites,
    NoteEndsTheSession,
    RemovesNotesThatEndLater,
    SparesNotesThatEndAtTheInstant,
    RemovesNotesBeyondTheLimit,
    MakingTheTableOfNotesEmptiesIt,
    CannotMakeTheTableOfNotesAtOnce,
    TableOfNotesIsTheSessionTable,
    ChecksNoTableOfNotes,
    NotesWithoutATable,
}

/// Each fault, and the case that must notice it.
pub(crate) const ALL: &[(Fault, &str)] = &[
    (Fault::HasATablePerHandle, "inserted_session_is_found_on_every_node"),
    (Fault::ReadsAReplicaThatLags, "updated_session_is_found_on_every_node"),
    (Fault::CachesWhatItRead, "load_sees_everything_committed_before_it"),
    (Fault::FindsWhatIsDeleted, "deleted_session_is_found_on_no_node"),
    (Fault::FindsExpired, "expired_session_is_not_found"),
    (Fault::FindsWhatEndsNow, "expired_session_is_not_found"),
    (Fault::RemovesWhatItFindsExpired, "expired_session_is_not_found"),
    (Fault::ComparesExpiriesAsText, "expiries_are_compared_as_instants"),
    (Fault::ComparesExpiriesIn32Bits, "expiries_are_compared_as_instants"),
    (Fault::AsksItsOwnClock, "expiry_is_judged_by_the_callers_clock"),
    (Fault::CutsPayloads, "large_payload_is_read_whole"),
    (Fault::CutsUpdatedPayloads, "large_payload_is_read_whole"),
    (Fault::TakesPayloadsForText, "every_byte_of_a_payload_is_kept"),
    (Fault::EndsPayloadsAtNul, "every_byte_of_a_payload_is_kept"),
    (Fault::CutsInstants, "instants_are_kept_to_the_microsecond"),
    (Fault::CutsInstantsToMillis, "instants_are_kept_to_the_microsecond"),
    (Fault::TrimsSubjects, "subject_is_kept_byte_for_byte"),
    (Fault::FoldsSubjectsThatAreStored, "subject_is_kept_byte_for_byte"),
    (Fault::LosesTheCreation, "created_at_stays"),
    (Fault::LosesTheSubject, "subject_is_kept_byte_for_byte"),
    (Fault::FoldsKeys, "keys_that_differ_in_case_are_different"),
    (Fault::CutsKeys, "longest_and_strangest_keys_are_kept_apart"),
    (Fault::HasNoLimit, "payload_above_the_limit_is_refused"),
    (Fault::InsertOverwrites, "insert_leaves_an_existing_session_as_it_is"),
    (Fault::InsertOverwritesExpired, "insert_leaves_an_expired_row_as_it_is"),
    (Fault::InsertIsNotAtomic, "one_of_several_inserts_of_a_key_takes_place"),
    (Fault::InsertKeepsTheRecordsVersion, "insert_returns_the_version_that_is_found"),
    (Fault::CountsVersionsFromOne, "session_made_again_has_new_versions"),
    (Fault::UpdateInserts, "absent_session_is_not_updated"),
    (Fault::UpdateRevives, "expired_session_is_not_updated"),
    (Fault::UpdateIgnoresTheVersion, "update_of_another_version_is_a_conflict"),
    (Fault::UpdateExpectsTheRecordsVersion, "update_that_expects_no_version_replaces_any"),
    (Fault::UpdateIsNotAtomic, "one_of_several_updates_of_a_version_takes_place"),
    (Fault::UpdateIsNotAtomic, "committed_update_is_never_lost_among_many"),
    (Fault::UpdateOfAbsentIsAConflict, "absent_session_is_not_updated"),
    (Fault::UpdateOfExpiredIsAConflict, "expired_session_is_absent_even_when_a_version_is_expected"),
    (Fault::UpdateWritesBeforeItRefuses, "refused_update_changes_nothing"),
    (Fault::UpdateKeepsTheSubject, "update_replaces_payload_subject_expiry_and_last_use"),
    (Fault::UpdateKeepsTheVersion, "every_update_makes_a_new_version"),
    (Fault::UpdateTakesTwoSteps, "load_sees_whole_writes_only"),
    (Fault::UpdateShortens, "extending_update_does_not_shorten"),
    (Fault::UpdateNeverShortens, "update_that_replaces_the_expiry_may_shorten"),
    (Fault::UpdateReadsAndWritesBack, "update_brings_no_deleted_session_back"),
    (Fault::TouchInserts, "absent_session_is_not_touched"),
    (Fault::TouchRevives, "expired_session_is_not_touched"),
    (Fault::TouchShortens, "touch_does_not_shorten"),
    (Fault::TouchSetsTheExpiryAlone, "touch_prolongs_and_notes_the_use"),
    (Fault::TouchChangesTheVersion, "touch_changes_neither_payload_nor_version"),
    (Fault::TouchTurnsTheLastUseBack, "late_touch_does_not_turn_the_last_use_back"),
    (Fault::TouchIsNotAtomic, "latest_of_several_concurrent_touches_counts"),
    (Fault::TouchIsNotAtomic, "touch_brings_no_deleted_session_back"),
    (Fault::TouchIsAlwaysWritten, "touch_that_is_not_due_changes_nothing"),
    (Fault::TouchIsNotWrittenInTime, "touch_that_is_not_due_changes_nothing"),
    (Fault::TouchOfWhatIsNotDueProlongs, "touch_that_is_not_due_changes_nothing"),
    (Fault::TouchThatIsNotDueIsNotFound, "touch_that_is_not_due_changes_nothing"),
    (Fault::TouchIsAlwaysWritten, "one_of_several_due_touches_is_written"),
    (Fault::TouchLooksBeforeItWrites, "one_of_several_due_touches_is_written"),
    (Fault::TouchNeedsACondition, "touch_without_a_condition_is_always_written"),
    (Fault::ClockIsInLocalTime, "clock_of_the_database_shows_the_present"),
    (Fault::ClockShowsSeconds, "clock_of_the_database_advances_within_a_second"),
    (Fault::ClockStandsStill, "clock_of_the_database_shows_the_present"),
    (Fault::RenameCopies, "renamed_session_is_under_its_new_key_alone"),
    (Fault::RenameOverwrites, "rename_onto_a_session_changes_nothing"),
    (Fault::RenameOverwrites, "one_of_several_renames_to_a_key_takes_place"),
    (Fault::RenameOverwritesExpired, "rename_onto_an_expired_row_changes_nothing"),
    (Fault::RenameOntoItselfWorks, "rename_onto_itself_changes_nothing"),
    (Fault::RenameRevives, "expired_session_is_not_renamed"),
    (Fault::RenameIgnoresTheVersion, "rename_of_another_version_is_a_conflict"),
    (Fault::RenameIgnoresTheVersion, "refused_rename_changes_nothing"),
    (Fault::RenameMovesOnly, "rename_writes_the_record_as_an_update_does"),
    (Fault::RenameKeepsTheVersion, "every_rename_makes_a_new_version"),
    (Fault::RenameShortens, "extending_rename_does_not_shorten"),
    (Fault::RenameInsertsThenDeletes, "renamed_session_is_never_under_two_keys_or_none"),
    (Fault::RenameDeletesThenInserts, "renamed_session_is_never_under_two_keys_or_none"),
    (Fault::RenameInsertsThenDeletes, "one_of_several_renames_of_a_session_takes_place"),
    (Fault::RenameInserts, "absent_session_is_not_renamed"),
    (Fault::DeleteTellsNothing, "delete_returns_true_if_there_was_a_session"),
    (Fault::DeleteAlwaysTellsOfOne, "delete_returns_true_if_there_was_a_session"),
    (Fault::DeleteSparesExpired, "expired_row_can_be_deleted"),
    (Fault::DeleteIsNotAtomic, "one_of_several_deletes_of_a_session_returns_true"),
    (Fault::RemovesBeyondTheLimit, "no_more_sessions_than_the_limit_are_removed"),
    (Fault::RemovalsAreOnlyCounted, "removed_sessions_are_returned_with_their_keys"),
    (Fault::RemovalsLoseTheSubject, "removed_sessions_are_returned_with_their_subjects"),
    (Fault::RemovalsCountStoredKeysOnly, "expired_row_without_a_stored_key_is_removed_and_counted"),
    (Fault::RemovalFailsAtUnreadableRows, "expired_row_that_cannot_be_read_is_removed_and_returned"),
    (Fault::RemovesWhatEndsLater, "sessions_expired_at_an_instant_or_before_are_removed"),
    (Fault::SparesWhatEndsAtTheInstant, "sessions_expired_at_an_instant_or_before_are_removed"),
    (Fault::RemovesLessThanItCould, "fewer_removed_than_the_limit_means_that_none_is_left"),
    (Fault::RemovalsCountTwice, "several_nodes_remove_expired_sessions_at_once"),
    (Fault::MigratingEmptiesTheTable, "second_migration_changes_nothing"),
    (Fault::MigratingEmptiesTheTable, "several_nodes_can_migrate_at_once"),
    (Fault::MigratesOnce, "second_migration_changes_nothing"),
    (Fault::ChecksNothing, "missing_table_is_reported_and_not_made"),
    (Fault::CheckMakesTheTable, "missing_table_is_reported_and_not_made"),
    (Fault::CannotMigrateAtOnce, "several_nodes_can_make_the_table_at_once"),
    (Fault::HasNoSchema, "schema_sql_is_always_the_same"),
    (Fault::ListsEverybodys, "every_session_of_a_subject_is_listed"),
    (Fault::ListsExpired, "expired_session_is_not_listed"),
    (Fault::FoldsSubjects, "subjects_are_compared_byte_for_byte"),
    (Fault::PadsSubjects, "subjects_are_compared_byte_for_byte"),
    (Fault::ListsAHundred, "hundreds_of_sessions_are_listed"),
    (Fault::ListsWhatWasInserted, "session_is_listed_under_the_subject_of_its_last_write"),
    (Fault::ListsOtherTimes, "listed_times_are_those_of_the_session"),
    (Fault::ListsInOtherOrders, "sessions_are_listed_in_the_order_of_their_keys"),
    (Fault::ListsFromTheKeyOn, "page_continues_after_any_key"),
    (Fault::ListsFromTheKeyOn, "sessions_are_listed_in_the_order_of_their_keys"),
    (Fault::ListsWhatIsLeftOfAPage, "short_page_is_the_last_one"),
    (Fault::ListsNoUnreadableTimes, "row_with_unreadable_times_is_listed_in_its_place"),
    (Fault::ListsNothingIfOneIsUnreadable, "row_with_unreadable_times_is_listed_in_its_place"),
    (Fault::ListsShortPagesAfterUnreadableKeys, "session_without_a_stored_key_is_not_listed"),
    (Fault::ScansWhatHasNotExpired, "expired_sessions_are_found"),
    (Fault::ScansInOtherOrders, "keys_are_in_the_order_of_their_bytes"),
    (Fault::ScansShortPages, "page_shorter_than_the_limit_is_the_last"),
    (Fault::ScansFromTheKeyOn, "scan_in_pages_finds_each_session_once"),
    (Fault::ScansWithoutPayload, "scanned_record_is_the_loaded_one"),
    (Fault::ScansFromTheSecondOn, "scan_without_a_key_begins_with_the_first"),
    (Fault::ScansNoUnreadableRows, "unreadable_row_is_in_its_place"),
    (Fault::ScansNothingIfOneIsUnreadable, "unreadable_row_is_in_its_place"),
    (Fault::ScansShortPagesAfterUnreadableKeys, "row_without_a_stored_key_is_skipped"),
    (Fault::HasATablePerHandle, "note_is_found_whole_on_every_node"),
    (Fault::NotesRevealNoKey, "note_is_found_whole_on_every_node"),
    (Fault::NotesLoseTheSecond, "note_is_found_whole_on_every_node"),
    (Fault::FindsExpiredNotes, "expired_note_is_not_found"),
    (Fault::FindsNotesBeyondTheLimit, "no_more_notes_than_the_limit_are_found"),
    (Fault::FoldsNotedKeys, "noted_keys_are_compared_byte_for_byte"),
    (Fault::NoteOverwrites, "second_note_of_two_keys_changes_nothing"),
    (Fault::NoteEndsTheSession, "note_leaves_sessions_alone"),
    (Fault::RemovesNotesThatEndLater, "notes_expired_at_an_instant_or_before_are_removed"),
    (Fault::SparesNotesThatEndAtTheInstant, "notes_expired_at_an_instant_or_before_are_removed"),
    (Fault::RemovesNotesBeyondTheLimit, "fewer_removed_notes_than_the_limit_means_that_none_is_left"),
    (Fault::MakingTheTableOfNotesEmptiesIt, "table_of_notes_can_be_made_again"),
    (Fault::CannotMakeTheTableOfNotesAtOnce, "several_nodes_can_make_the_table_of_notes_at_once"),
    (Fault::TableOfNotesIsTheSessionTable, "table_of_notes_needs_no_session_table"),
    (Fault::ChecksNoTableOfNotes, "missing_table_of_notes_is_reported_and_not_made"),
    (Fault::NotesWithoutATable, "missing_table_of_notes_is_reported_and_not_made"),
    // Faults that only random calls notice.
    (Fault::UpdateShortens, "random_calls_are_answered_like_the_reference"),
    (Fault::FindsWhatEndsNow, "random_calls_are_answered_like_the_reference"),
    (Fault::RenameOverwritesExpired, "random_calls_are_answered_like_the_reference"),
    (Fault::TouchTurnsTheLastUseBack, "random_calls_are_answered_like_the_reference"),
];

const MAX_PAYLOAD_BYTES: usize = 1 << 22;

/// A map under a lock, with a fault.
#[derive(Clone, Debug)]
pub(crate) struct BrokenPersistence {
    fault: Fault,
    table: Arc<Mutex<Table>>,
    /// The rows that this handle has read, for faults that return them again.
    copies: Arc<Mutex<HashMap<StoredKey, Record>>>,
    /// `true` if this is not the first handle.
    is_replica: bool,
}

/// The faults of one kind of page.
#[derive(Clone, Copy)]
struct PageFaults {
    begins_again: Fault,
    is_in_another_order: Fault,
    counts_unreadable_keys: Fault,
    fails_as_a_whole: Fault,
    hides_unreadable_rows: Fault,
}

#[derive(Debug, Default)]
struct Table {
    is_there: bool,
    is_being_made: bool,
    has_notes: bool,
    notes: Vec<Rotation>,
    rows: HashMap<String, (StoredKey, Record)>,
    versions: u64,
    /// The rows that were damaged, and how.
    damaged: HashMap<String, Damage>,
}

impl BrokenPersistence {
    pub(crate) fn with(fault: Fault) -> Self {
        let table = Table { is_there: true, ..Table::default() };
        Self { fault, table: Arc::new(Mutex::new(table)), copies: Arc::default(), is_replica: false }
    }

    /// Opens another handle to the same table.
    pub(crate) fn another(&self) -> Self {
        let mut other = Self { copies: Arc::default(), is_replica: true, ..self.clone() };
        if self.has(Fault::HasATablePerHandle) {
            other.table = Self::with(self.fault).table;
        }
        other
    }

    /// Opens a handle to a table that is not made yet.
    pub(crate) fn before_migration(&self) -> Self {
        Self { table: Arc::default(), ..self.another() }
    }

    /// Damages the row under `key`, as another program might.
    pub(crate) fn damage(&self, key: &StoredKey, damage: Damage) {
        self.lock().damaged.insert(self.place(key), damage);
    }

    /// Returns a page of the rows for which `is_meant` is true, in the order of their keys, with the
    /// `contents` of each that is not damaged.
    fn page<T>(
        &self,
        (after, limit): (Option<&StoredKey>, u32),
        faults: PageFaults,
        is_meant: impl Fn(&Record) -> bool,
        is_hit: fn(Damage) -> bool,
        contents: impl Fn(&Record) -> T,
    ) -> Result<Vec<Row<T>>, PersistenceError> {
        let table = self.lock();
        let after = after.map_or("", StoredKey::as_str);
        let mut rows = table.rows.values().filter(|(_, row)| is_meant(row)).collect::<Vec<_>>();
        rows.retain(|(key, _)| {
            key.as_str() > after || self.has(faults.begins_again) && key.as_str() == after
        });
        rows.sort_by_key(|(key, _)| match self.has(faults.is_in_another_order) {
            true => key.as_str().to_lowercase(),
            false => key.as_str().to_owned(),
        });
        let has_no_key = |key: &StoredKey| table.damaged.get(&self.place(key)) == Some(&Damage::Key);
        if !self.has(faults.counts_unreadable_keys) {
            rows.retain(|(key, _)| !has_no_key(key));
        }
        rows.truncate(limit as usize);
        rows.retain(|(key, _)| !has_no_key(key));
        let mut page = Vec::new();
        for (key, row) in rows {
            if table.damaged.get(&self.place(key)).is_some_and(|damage| is_hit(*damage)) {
                if self.has(faults.fails_as_a_whole) {
                    return Err(Self::corrupt());
                }
                if !self.has(faults.hides_unreadable_rows) {
                    page.push(Row::new(*key, Err(Self::corrupt())));
                }
            } else {
                page.push(Row::new(*key, Ok(contents(row))));
            }
        }
        Ok(page)
    }

    fn corrupt() -> PersistenceError {
        PersistenceError::CorruptRow("it was damaged".into())
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap()
    }

    fn place(&self, key: &StoredKey) -> String {
        match self.fault {
            Fault::FoldsKeys => key.as_str().to_lowercase(),
            Fault::CutsKeys => key.as_str().chars().take(63).collect(),
            _ => key.as_str().to_owned(),
        }
    }

    fn row(&self, key: &StoredKey) -> Option<Record> {
        self.lock().rows.get(&self.place(key)).map(|(_, row)| row.clone())
    }

    fn put(&self, key: &StoredKey, row: Record) {
        self.lock().rows.insert(self.place(key), (*key, row));
    }

    fn is_expired(&self, row: &Record, now: Timestamp) -> bool {
        let (end, now) = (row.expires_at().as_micros(), now.as_micros());
        match self.fault {
            Fault::ComparesExpiriesAsText => end.to_string() <= now.to_string(),
            #[allow(clippy::cast_possible_truncation)]
            Fault::ComparesExpiriesIn32Bits => {
                let seconds = |micros: i64| micros.div_euclid(1_000_000) as i32;
                (seconds(end), end.rem_euclid(1_000_000)) <= (seconds(now), now.rem_euclid(1_000_000))
            }
            Fault::FindsWhatEndsNow => end < now,
            Fault::AsksItsOwnClock => end <= Timestamp::from(SystemTime::now()).as_micros(),
            _ => end <= now,
        }
    }

    fn next_version(&self, before: Option<&Record>) -> Version {
        if self.has(Fault::CountsVersionsFromOne) {
            return Version::from_u64(before.map_or(1, |row| row.version().as_u64() + 1));
        }
        let mut table = self.lock();
        table.versions += 1;
        Version::from_u64(table.versions)
    }

    /// Returns what the database keeps of `record`.
    fn kept(&self, record: &Record, created_at: Timestamp, is_update: bool) -> Record {
        let payload = record.payload();
        let payload = match self.fault {
            Fault::CutsPayloads => payload.slice(..payload.len().min(65_535)),
            Fault::CutsUpdatedPayloads if is_update => payload.slice(..payload.len().min(65_536)),
            Fault::TakesPayloadsForText => String::from_utf8_lossy(payload).into_owned().into(),
            Fault::EndsPayloadsAtNul => payload.split(|byte| *byte == 0).next().unwrap().to_vec().into(),
            _ => payload.clone(),
        };
        let cut = |instant: Timestamp| {
            let unit = match self.fault {
                Fault::CutsInstants => 1_000_000,
                Fault::CutsInstantsToMillis => 1_000,
                _ => 1,
            };
            Timestamp::from_micros(instant.as_micros().div_euclid(unit) * unit)
        };
        let subject = record.subject().and_then(|subject| match self.fault {
            Fault::LosesTheSubject => None,
            Fault::TrimsSubjects => Subject::parse(subject.as_str().trim_end()).ok(),
            Fault::FoldsSubjectsThatAreStored => Subject::parse(&subject.as_str().to_lowercase()).ok(),
            _ => Some(subject.clone()),
        });
        Record::new(payload, cut(created_at), cut(record.expires_at()))
            .with_last_seen_at(cut(record.last_seen_at()))
            .with_subject(subject)
    }

    fn written(&self, row: &Record, record: &Record, expiry: ExpiryWrite, is_rename: bool) -> Record {
        let shortens = self.has(if is_rename { Fault::RenameShortens } else { Fault::UpdateShortens });
        let created_at =
            if self.has(Fault::LosesTheCreation) { record.created_at() } else { row.created_at() };
        let mut written = self.kept(record, created_at, true);
        let is_extended = expiry == ExpiryWrite::Extend && !shortens;
        if is_extended || self.has(Fault::UpdateNeverShortens) {
            let later = written.expires_at().max(row.expires_at());
            written = written.with_expires_at(later);
        }
        if self.has(Fault::UpdateKeepsTheSubject) {
            written = written.with_subject(row.subject().cloned());
        }
        let keeps = if is_rename { Fault::RenameKeepsTheVersion } else { Fault::UpdateKeepsTheVersion };
        let version = if self.has(keeps) { row.version() } else { self.next_version(Some(row)) };
        written.with_version(version)
    }

    fn check_size(&self, record: &Record) -> Result<(), PersistenceError> {
        match record.payload().len() {
            actual if actual > MAX_PAYLOAD_BYTES && !self.has(Fault::HasNoLimit) => {
                Err(PersistenceError::TooLarge { actual, limit: MAX_PAYLOAD_BYTES })
            }
            _ => Ok(()),
        }
    }

    /// Waits long enough for other calls to come in between.
    async fn pause() {
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }

    fn missing() -> PersistenceError {
        SchemaProblem::Missing { table: "sessions".into() }.into()
    }
}

impl Persistence for BrokenPersistence {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        let mut row = self.row(key);
        if self.has(Fault::ReadsAReplicaThatLags) && self.is_replica
            || self.has(Fault::CachesWhatItRead)
            || self.has(Fault::FindsWhatIsDeleted) && row.is_none()
        {
            let mut copies = self.copies.lock().unwrap();
            let before = copies.get(key).cloned();
            if before.is_none() || !self.has(Fault::CachesWhatItRead) {
                copies.extend(row.clone().map(|row| (*key, row)));
            }
            row = before.or(row);
        } else if self.has(Fault::FindsWhatIsDeleted) {
            self.copies.lock().unwrap().extend(row.clone().map(|row| (*key, row)));
        }
        let Some(row) = row else { return Ok(None) };
        if self.is_expired(&row, now) && !self.has(Fault::FindsExpired) {
            if self.has(Fault::RemovesWhatItFindsExpired) {
                self.lock().rows.remove(&self.place(key));
            }
            return Ok(None);
        }
        match self.lock().damaged.contains_key(&self.place(key)) {
            true => Err(Self::corrupt()),
            false => Ok(Some(row)),
        }
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        self.check_size(record)?;
        let before = self.row(key);
        if self.has(Fault::InsertIsNotAtomic) {
            Self::pause().await;
        }
        let is_overwritten = match &before {
            None => true,
            Some(row) => match self.fault {
                Fault::InsertOverwrites => true,
                Fault::InsertOverwritesExpired => row.is_expired(SystemTime::now().into()),
                _ => false,
            },
        };
        if !is_overwritten {
            return Err(PersistenceError::AlreadyExists);
        }
        let version = match self.fault {
            Fault::InsertKeepsTheRecordsVersion => record.version(),
            _ => self.next_version(before.as_ref()),
        };
        let row = self.kept(record, record.created_at(), false).with_version(version);
        if self.has(Fault::InsertIsNotAtomic) {
            self.put(key, row);
            return Ok(version);
        }
        let mut table = self.lock();
        let place = self.place(key);
        if before.is_none() && table.rows.contains_key(&place) {
            return Err(PersistenceError::AlreadyExists);
        }
        table.rows.insert(place, (*key, row));
        Ok(version)
    }

    async fn update(
        &self,
        key: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.check_size(record)?;
        let row = self.row(key);
        let row = match row {
            None if self.has(Fault::UpdateInserts) => return self.insert(key, record).await,
            None if self.has(Fault::UpdateOfAbsentIsAConflict) && expected.is_some() => {
                return Err(PersistenceError::Conflict);
            }
            None => return Err(PersistenceError::NotFound),
            Some(row) => row,
        };
        let expected =
            expected.or_else(|| self.has(Fault::UpdateExpectsTheRecordsVersion).then_some(record.version()));
        let is_other = expected.is_some_and(|expected| expected != row.version());
        if is_other && self.has(Fault::UpdateOfExpiredIsAConflict) {
            return Err(PersistenceError::Conflict);
        }
        if self.is_expired(&row, now) && !self.has(Fault::UpdateRevives) {
            return Err(PersistenceError::NotFound);
        }
        if is_other && !self.has(Fault::UpdateIgnoresTheVersion) {
            if self.has(Fault::UpdateWritesBeforeItRefuses) {
                let version = row.version();
                self.put(key, self.written(&row, record, expiry, false).with_version(version));
            }
            return Err(PersistenceError::Conflict);
        }
        let written = self.written(&row, record, expiry, false);
        let version = written.version();
        if self.has(Fault::UpdateTakesTwoSteps) {
            self.put(key, written.clone().with_subject(row.subject().cloned()));
            Self::pause().await;
        }
        if self.has(Fault::UpdateIsNotAtomic) || self.has(Fault::UpdateReadsAndWritesBack) {
            Self::pause().await;
            if self.has(Fault::UpdateReadsAndWritesBack) || self.row(key).is_some() {
                self.put(key, written);
            }
            return Ok(version);
        }
        let mut table = self.lock();
        // Other calls may have come in between.
        match table.rows.get_mut(&self.place(key)) {
            None => Err(PersistenceError::NotFound),
            Some((_, there))
                if expected.is_some() && *there != row && !self.has(Fault::UpdateTakesTwoSteps) =>
            {
                Err(PersistenceError::Conflict)
            }
            Some((_, there)) => {
                *there = written;
                Ok(version)
            }
        }
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        let row = self.row(key);
        let row = match row {
            None if self.has(Fault::TouchInserts) => {
                let record = Record::new("1{}".into(), now, expires_at);
                return self.insert(key, &record).await.map(|_| true);
            }
            None => return Err(PersistenceError::NotFound),
            Some(row) => row,
        };
        if self.is_expired(&row, now) && !self.has(Fault::TouchRevives) {
            return Err(PersistenceError::NotFound);
        }
        let is_due = |row: &Record| match self.fault {
            Fault::TouchIsAlwaysWritten => true,
            Fault::TouchIsNotWrittenInTime => row.last_seen_at() < idle_since,
            Fault::TouchNeedsACondition => row.last_seen_at() <= idle_since.min(now),
            _ => row.last_seen_at() <= idle_since,
        };
        let touched = |row: &Record| {
            let end =
                if self.has(Fault::TouchShortens) { expires_at } else { expires_at.max(row.expires_at()) };
            let seen = match self.fault {
                Fault::TouchTurnsTheLastUseBack => now,
                Fault::TouchSetsTheExpiryAlone => row.last_seen_at(),
                _ => now.max(row.last_seen_at()),
            };
            row.clone().with_expires_at(end).with_last_seen_at(seen)
        };
        if self.has(Fault::TouchIsNotAtomic) {
            Self::pause().await;
            self.put(key, touched(&row));
            return Ok(true);
        }
        if self.has(Fault::TouchChangesTheVersion) {
            let version = self.next_version(Some(&row));
            self.put(key, touched(&row).with_version(version));
            return Ok(true);
        }
        let was_due = is_due(&row);
        if self.has(Fault::TouchLooksBeforeItWrites) {
            Self::pause().await;
        }
        match self.lock().rows.get_mut(&self.place(key)) {
            None => Err(PersistenceError::NotFound),
            Some((_, there)) if is_due(there) || was_due && self.has(Fault::TouchLooksBeforeItWrites) => {
                *there = touched(there);
                Ok(true)
            }
            Some(_) if self.has(Fault::TouchThatIsNotDueIsNotFound) => Err(PersistenceError::NotFound),
            Some((_, there)) => {
                if self.has(Fault::TouchOfWhatIsNotDueProlongs) {
                    *there = touched(there);
                }
                Ok(false)
            }
        }
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        self.check_size(record)?;
        let row = match self.row(old) {
            None if self.has(Fault::RenameInserts) => return self.insert(new, record).await,
            None => return Err(PersistenceError::NotFound),
            Some(row) => row,
        };
        let is_other = expected.is_some_and(|expected| expected != row.version());
        if is_other && self.has(Fault::UpdateOfExpiredIsAConflict) {
            return Err(PersistenceError::Conflict);
        }
        if self.is_expired(&row, now) && !self.has(Fault::RenameRevives) {
            return Err(PersistenceError::NotFound);
        }
        if is_other && !self.has(Fault::RenameIgnoresTheVersion) {
            return Err(PersistenceError::Conflict);
        }
        let may_overwrite = |there: Option<&Record>| match (there, self.fault) {
            (None, _) | (_, Fault::RenameOverwrites) => true,
            (Some(there), Fault::RenameOverwritesExpired) => self.is_expired(there, now),
            (_, Fault::RenameOntoItselfWorks) => old == new,
            _ => false,
        };
        let mut renamed = self.written(&row, record, expiry, true);
        if self.has(Fault::RenameMovesOnly) {
            let version = renamed.version();
            renamed = row.clone().with_version(version);
        }
        let version = renamed.version();
        if self.has(Fault::RenameInsertsThenDeletes) || self.has(Fault::RenameDeletesThenInserts) {
            if !may_overwrite(self.row(new).as_ref()) {
                return Err(PersistenceError::AlreadyExists);
            }
            if self.has(Fault::RenameDeletesThenInserts) {
                self.lock().rows.remove(&self.place(old));
                Self::pause().await;
                self.put(new, renamed);
            } else {
                self.put(new, renamed);
                Self::pause().await;
                self.lock().rows.remove(&self.place(old));
            }
            return Ok(version);
        }
        let mut table = self.lock();
        if table.rows.get(&self.place(old)).is_none_or(|(_, there)| *there != row) {
            return Err(if expected.is_some() {
                PersistenceError::Conflict
            } else {
                PersistenceError::NotFound
            });
        }
        if !may_overwrite(table.rows.get(&self.place(new)).map(|(_, there)| there)) {
            return Err(PersistenceError::AlreadyExists);
        }
        if !self.has(Fault::RenameCopies) {
            table.rows.remove(&self.place(old));
        }
        table.rows.insert(self.place(new), (*new, renamed));
        Ok(version)
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        if self.has(Fault::DeleteIsNotAtomic) {
            let is_there = self.row(key).is_some();
            Self::pause().await;
            self.lock().rows.remove(&self.place(key));
            return Ok(is_there);
        }
        let mut table = self.lock();
        let place = self.place(key);
        if self.has(Fault::DeleteSparesExpired) {
            let is_over = |row: &Record| row.is_expired(Timestamp::from_micros(1_600_000_000_123_457));
            if table.rows.get(&place).is_some_and(|(_, row)| is_over(row)) {
                return Ok(false);
            }
        }
        table.damaged.remove(&place);
        let was_there = table.rows.remove(&place).is_some();
        Ok(match self.fault {
            Fault::DeleteTellsNothing => false,
            Fault::DeleteAlwaysTellsOfOne => true,
            _ => was_there,
        })
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        let limit = limit as usize;
        let is_over = |row: &Record| match self.fault {
            Fault::SparesWhatEndsAtTheInstant => row.expires_at() < before,
            Fault::RemovesWhatEndsLater => row.expires_at() <= before + std::time::Duration::from_secs(1),
            _ => row.expires_at() <= before,
        };
        let limit = match self.fault {
            Fault::RemovesBeyondTheLimit => usize::MAX,
            Fault::RemovesLessThanItCould => limit.saturating_sub(1),
            _ => limit,
        };
        let mut places = {
            let table = self.lock();
            let expired = table.rows.iter().filter(|(_, (_, row))| is_over(row));
            expired.map(|(place, _)| place.clone()).collect::<Vec<_>>()
        };
        places.truncate(limit);
        if self.has(Fault::RemovalsCountTwice) {
            Self::pause().await;
            let mut table = self.lock();
            for place in &places {
                table.rows.remove(place);
            }
            return Ok(ExpiredSessions::new(places.len() as u64, Vec::new()));
        }
        let mut table = self.lock();
        let mut removed = ExpiredSessions::default();
        for place in places {
            let Some((key, row)) = table.rows.remove(&place) else { continue };
            let damage = table.damaged.remove(&place);
            let subject = row.subject().filter(|_| !self.has(Fault::RemovalsLoseTheSubject)).cloned();
            let session = match damage {
                Some(Damage::Record) if self.has(Fault::RemovalFailsAtUnreadableRows) => {
                    return Err(Self::corrupt());
                }
                Some(Damage::Record) => Some(ExpiredSession::new(key, None)),
                Some(Damage::Key) => None,
                _ => Some(ExpiredSession::new(key, subject)),
            };
            if session.is_some() || !self.has(Fault::RemovalsCountStoredKeysOnly) {
                removed.count += 1;
            }
            removed.sessions.extend(session.filter(|_| !self.has(Fault::RemovalsAreOnlyCounted)));
        }
        Ok(removed)
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        let now = Timestamp::from(SystemTime::now());
        Ok(match self.fault {
            Fault::ClockIsInLocalTime => now + std::time::Duration::from_secs(3_600),
            Fault::ClockShowsSeconds => {
                Timestamp::from_micros(now.as_micros().div_euclid(1_000_000) * 1_000_000)
            }
            Fault::ClockStandsStill => Timestamp::from_secs(1_700_000_000),
            _ => now,
        })
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        if self.has(Fault::CannotMigrateAtOnce) {
            let refused = || PersistenceError::Refused("another node makes the table already".into());
            if std::mem::replace(&mut self.lock().is_being_made, true) {
                return Err(refused());
            }
            Self::pause().await;
            self.lock().is_being_made = false;
        }
        let mut table = self.lock();
        if table.is_there && self.has(Fault::MigratesOnce) {
            return Err(PersistenceError::Refused("the table exists already".into()));
        }
        if self.has(Fault::MigratingEmptiesTheTable) {
            table.rows.clear();
        }
        table.is_there = true;
        Ok(())
    }

    fn schema_sql(&self) -> String {
        if self.has(Fault::HasNoSchema) { String::new() } else { "CREATE TABLE sessions".into() }
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        let mut table = self.lock();
        let is_there = table.is_there;
        if self.has(Fault::CheckMakesTheTable) {
            table.is_there = true;
        }
        if is_there || self.has(Fault::ChecksNothing) { Ok(()) } else { Err(Self::missing()) }
    }

    fn properties(&self) -> PersistenceProperties {
        PersistenceProperties::new(MAX_PAYLOAD_BYTES)
    }
}

impl SubjectIndex for BrokenPersistence {
    async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
        let compared = |subject: &Subject| match self.fault {
            Fault::FoldsSubjects => subject.as_str().to_lowercase(),
            Fault::PadsSubjects => subject.as_str().trim_end_matches(' ').to_owned(),
            _ => subject.as_str().to_owned(),
        };
        let is_theirs = |row: &Record| {
            (row.subject().is_some_and(|theirs| compared(theirs) == compared(subject))
                || self.has(Fault::ListsEverybodys))
                && (row.version().as_u64() < 2 || !self.has(Fault::ListsWhatWasInserted))
        };
        let is_live = |row: &Record| !row.is_expired(now) || self.has(Fault::ListsExpired);
        let faults = PageFaults {
            begins_again: Fault::ListsFromTheKeyOn,
            is_in_another_order: Fault::ListsInOtherOrders,
            counts_unreadable_keys: Fault::ListsShortPagesAfterUnreadableKeys,
            fails_as_a_whole: Fault::ListsNothingIfOneIsUnreadable,
            hides_unreadable_rows: Fault::ListsNoUnreadableTimes,
        };
        let limit = if self.has(Fault::ListsAHundred) { limit.min(100) } else { limit };
        let is_meant =
            |row: &Record| is_theirs(row) && (is_live(row) || self.has(Fault::ListsWhatIsLeftOfAPage));
        let is_hit = |damage| damage == Damage::Times;
        let page = self.page((after, limit), faults, is_meant, is_hit, |row| {
            let mut times = SessionTimes::from(row);
            if self.has(Fault::ListsOtherTimes) {
                times.last_seen_at = times.created_at;
            }
            (times, is_live(row))
        })?;
        let live = page.into_iter().filter_map(|row| match row.contents {
            Ok((times, is_live)) => is_live.then(|| Row::new(row.key, Ok(times))),
            Err(error) => Some(Row::new(row.key, Err(error))),
        });
        Ok(live.collect())
    }
}

impl Scan for BrokenPersistence {
    async fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, PersistenceError> {
        let faults = PageFaults {
            begins_again: Fault::ScansFromTheKeyOn,
            is_in_another_order: Fault::ScansInOtherOrders,
            counts_unreadable_keys: Fault::ScansShortPagesAfterUnreadableKeys,
            fails_as_a_whole: Fault::ScansNothingIfOneIsUnreadable,
            hides_unreadable_rows: Fault::ScansNoUnreadableRows,
        };
        let is_live = |row: &Record| !row.is_expired(Timestamp::from_micros(1_600_000_000_123_457));
        let is_meant = |row: &Record| is_live(row) || !self.has(Fault::ScansWhatHasNotExpired);
        let limit = if self.has(Fault::ScansShortPages) { limit.min(2) } else { limit };
        let mut page = self.page(
            (after, limit),
            faults,
            is_meant,
            |_| true,
            |row| match self.fault {
                Fault::ScansWithoutPayload => Record::new("".into(), row.created_at(), row.expires_at())
                    .with_last_seen_at(row.last_seen_at())
                    .with_version(row.version())
                    .with_subject(row.subject().cloned()),
                _ => row.clone(),
            },
        )?;
        if self.has(Fault::ScansFromTheSecondOn) && after.is_none() && !page.is_empty() {
            page.remove(0);
        }
        Ok(page)
    }
}

impl BrokenPersistence {
    fn noted(&self, key: &StoredKey) -> String {
        match self.fault {
            Fault::FoldsNotedKeys => key.as_str().to_lowercase(),
            _ => key.as_str().to_owned(),
        }
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
        if !table.notes.iter().any(is_same) {
            table.notes.push(rotation.clone());
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

    async fn delete_rotations(&self, before: Timestamp, limit: u32) -> Result<u64, PersistenceError> {
        let is_over = |note: &mut Rotation| match self.fault {
            Fault::SparesNotesThatEndAtTheInstant => note.expires_at < before,
            Fault::RemovesNotesThatEndLater => note.expires_at <= before + std::time::Duration::from_secs(1),
            _ => note.expires_at <= before,
        };
        let limit = if self.has(Fault::RemovesNotesBeyondTheLimit) { usize::MAX } else { limit as usize };
        Ok(self.lock().notes.extract_if(.., is_over).take(limit).count() as u64)
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
