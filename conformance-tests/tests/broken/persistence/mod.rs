//! Databases that are wrong in one way each, and the case that must notice it.

mod calls;
mod faults;
mod notes;
mod pages;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use conformance_tests::persistence::Damage;
use session_core::{
    ExpiredSession, ExpiredSessions, ExpiryWrite, Persistence, PersistenceError, PersistenceProperties,
    Record, RecordWrite, Rotation, Rotations, Row, Scan, SchemaProblem, SessionTimes, StoredKey, Subject,
    SubjectIndex, Timestamp, Version,
};

pub(crate) use self::faults::{ALL, Fault};

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
    /// The expiries with which sessions were inserted.
    first_ends: HashMap<String, Timestamp>,
    /// The rows that a removal has passed over.
    passed_over: HashSet<String>,
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
