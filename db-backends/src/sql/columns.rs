//! The columns of the session table. Everything that has to know them is made from the one list here: the
//! statements, the values that they bind, the records that are read from rows, and what the schema's check
//! looks for.
//!
//! To add a column, add it here, and to each database's `CHANGES`: to the statement that makes the table, and
//! as a change that adds it to a table of an older version.
//!
//! The reaper finds rows by `reap_at`, which is at or before `expires_at`: equal when the row is inserted, and
//! left alone by writes that make the expiry later. So such a write, nearly every one, touches no index. When
//! the reaper finds that a session lives on, it makes `reap_at` equal to `expires_at` again: one write of the
//! index for each lifetime of a session, instead of one for each request. A row that an older version has
//! inserted, which does not know the column, has the default, 0, so the reaper looks at it in its next round.

use bytes::Bytes;
use session_core::{
    ExpiredSession, ExpiredSessions, PersistenceError, Record, SessionTimes, StoredKey, Subject, Timestamp,
    Version,
};

use crate::sql::value::{Value, Values};

/// The largest payload, in bytes: what fits into one statement at MariaDB's default `max_allowed_packet` of
/// 16 MiB. The same for every database, so that sessions can move.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 15 << 20;

/// A column of the session table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Key,
    Payload,
    CreatedAt,
    ExpiresAt,
    LastSeenAt,
    Version,
    Subject,
    /// The instant from which the reaper looks at the row.
    ReapAt,
}

/// The contents of a column. Each database has a type for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Bytes,
    Integer,
}

struct Description {
    name: &'static str,
    kind: Kind,
    is_nullable: bool,
    /// An update writes the record's value to it. The expiry has a rule of its own, and the other columns
    /// stay.
    is_updated: bool,
    /// Sessions are looked for by it, so an index must begin with it.
    is_indexed: bool,
}

impl Description {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, is_nullable: false, is_updated: false, is_indexed: false }
    }
}

impl Column {
    pub(crate) const ALL: [Self; 8] = [
        Self::Key,
        Self::Payload,
        Self::CreatedAt,
        Self::ExpiresAt,
        Self::LastSeenAt,
        Self::Version,
        Self::Subject,
        Self::ReapAt,
    ];

    const fn describe(self) -> Description {
        match self {
            Self::Key => Description { is_indexed: true, ..Description::new("key", Kind::Text) },
            Self::Payload => Description { is_updated: true, ..Description::new("payload", Kind::Bytes) },
            Self::CreatedAt => Description::new("created_at", Kind::Integer),
            Self::ExpiresAt => Description::new("expires_at", Kind::Integer),
            Self::LastSeenAt => {
                Description { is_updated: true, ..Description::new("last_seen_at", Kind::Integer) }
            }
            Self::Version => Description { is_updated: true, ..Description::new("version", Kind::Integer) },
            Self::Subject => Description {
                is_nullable: true,
                is_updated: true,
                is_indexed: true,
                ..Description::new("subject", Kind::Text)
            },
            Self::ReapAt => Description { is_indexed: true, ..Description::new("reap_at", Kind::Integer) },
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        self.describe().name
    }

    pub(crate) const fn kind(self) -> Kind {
        self.describe().kind
    }

    pub(crate) const fn is_nullable(self) -> bool {
        self.describe().is_nullable
    }

    /// Returns the columns that a table of this version has at least. Zero is a version that was not recorded.
    pub(crate) fn of_version(version: u32) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |column| version >= 2 || *column != Self::ReapAt)
    }

    /// Returns the columns that a record is read from.
    pub(crate) fn of_record() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|column| *column != Self::ReapAt)
    }

    /// Returns the columns to which an update writes the record's value.
    pub(crate) fn updated() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|column| column.describe().is_updated)
    }

    /// Returns the value of this column for `record` under `key`.
    pub(crate) fn value<'a>(self, key: &'a StoredKey, record: &'a Record, version: Version) -> Value<'a> {
        match self {
            Self::Key => Value::Text(key.as_str()),
            Self::Payload => Value::Bytes(record.payload()),
            Self::CreatedAt => Value::Integer(record.created_at().as_micros()),
            Self::ExpiresAt | Self::ReapAt => Value::Integer(record.expires_at().as_micros()),
            Self::LastSeenAt => Value::Integer(record.last_seen_at().as_micros()),
            Self::Version => Value::Integer(version_bits(version)),
            Self::Subject => Value::OptionalText(record.subject().map(Subject::as_str)),
        }
    }

    /// Returns those of the columns that sessions are looked for by and that are not `indexed`.
    pub(crate) fn missing_indexes(indexed: &[String]) -> Vec<&'static str> {
        let needed = Self::ALL.into_iter().filter(|column| column.describe().is_indexed).map(Self::name);
        needed.filter(|name| !indexed.iter().any(|indexed| indexed == name)).collect()
    }

    fn text<B: Values>(self, row: &B::Row) -> Result<Option<&[u8]>, Corrupt> {
        B::text(row, self.name()).map_err(|_| Corrupt::Type(self.name()))
    }

    fn bytes<B: Values>(self, row: &B::Row) -> Result<&[u8], Corrupt> {
        B::bytes(row, self.name()).map_err(|_| Corrupt::Type(self.name()))
    }

    fn instant<B: Values>(self, row: &B::Row) -> Result<Timestamp, Corrupt> {
        Ok(Timestamp::from_micros(self.integer::<B>(row)?))
    }

    fn integer<B: Values>(self, row: &B::Row) -> Result<i64, Corrupt> {
        B::integer(row, self.name()).map_err(|_| Corrupt::Type(self.name()))
    }
}

/// Reads the record in a row, if it is the row of `key`.
pub(crate) fn record_of<B: Values>(row: &B::Row, key: &StoredKey) -> Result<Record, PersistenceError> {
    if Column::Key.text::<B>(row)? != Some(key.as_bytes()) {
        return Err(Corrupt::WrongKey.into());
    }
    Ok(record::<B>(row)?)
}

/// Reads the record in a row, whatever its key.
pub(crate) fn record<B: Values>(row: &B::Row) -> Result<Record, Corrupt> {
    let payload = Column::Payload.bytes::<B>(row)?;
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(Corrupt::Payload);
    }
    let subject = subject::<B>(row)?;
    let SessionTimes { created_at, expires_at, last_seen_at } = times::<B>(row)?;
    let version = Column::Version.integer::<B>(row)?;
    Ok(Record::new(Bytes::copy_from_slice(payload), created_at, expires_at)
        .with_last_seen_at(last_seen_at)
        .with_version(Version::from_u64(version.cast_unsigned()))
        .with_subject(subject))
}

/// Reads the subject in a row.
fn subject<B: Values>(row: &B::Row) -> Result<Option<Subject>, Corrupt> {
    let Some(bytes) = Column::Subject.text::<B>(row)? else { return Ok(None) };
    let subject = std::str::from_utf8(bytes).ok().and_then(|text| Subject::parse(text).ok());
    subject.map(Some).ok_or(Corrupt::Subject)
}

/// Reads the rows of expired sessions that were removed, with the columns `key` and `subject`.
pub(crate) fn expired<'r, B: Values>(rows: impl Iterator<Item = &'r B::Row>) -> ExpiredSessions {
    let mut expired = ExpiredSessions::default();
    for row in rows {
        expired.count += 1;
        let key = B::key(row).and_then(|key| StoredKey::parse(std::str::from_utf8(key).ok()?).ok());
        // The row is gone, so an error would only hide the others.
        let session = key.map(|key| ExpiredSession::new(key, subject::<B>(row).unwrap_or_default()));
        expired.sessions.extend(session);
    }
    expired
}

/// Returns `true` if the session in a row with the column `expires_at` expired at `before` or earlier. A row
/// whose expiry cannot be read counts as one that lives on.
pub(crate) fn is_over<B: Values>(row: &B::Row, before: Timestamp) -> bool {
    Column::ExpiresAt.instant::<B>(row).is_ok_and(|expires_at| expires_at <= before)
}

/// Reads the times in a row.
pub(crate) fn times<B: Values>(row: &B::Row) -> Result<SessionTimes, Corrupt> {
    Ok(SessionTimes {
        created_at: Column::CreatedAt.instant::<B>(row)?,
        expires_at: Column::ExpiresAt.instant::<B>(row)?,
        last_seen_at: Column::LastSeenAt.instant::<B>(row)?,
    })
}

/// Refuses a payload that is too large, before any I/O.
pub(crate) fn check_size(record: &Record) -> Result<(), PersistenceError> {
    match record.payload().len() {
        actual if actual > MAX_PAYLOAD_BYTES => {
            Err(PersistenceError::TooLarge { actual, limit: MAX_PAYLOAD_BYTES })
        }
        _ => Ok(()),
    }
}

/// Returns a version that the key has never had, and never that of [`Version::UNSAVED`]. It is random, so
/// that the row need not be read for it. It does not have to be unpredictable.
pub(crate) fn fresh_version() -> Version {
    Version::from_u64(fastrand::u64(1..))
}

/// Returns a version as databases hold it: they have no unsigned integers of this size, or not all of them.
pub(crate) const fn version_bits(version: Version) -> i64 {
    version.as_u64().cast_signed()
}

/// An error in reading a row. Shows nothing of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corrupt {
    #[error("column {0} has a value of the wrong type")]
    Type(&'static str),
    #[error("it is the row of another key")]
    WrongKey,
    #[error("column payload holds more than this version ever writes")]
    Payload,
    #[error("column subject holds no subject")]
    Subject,
    #[error("the database's clock is outside the range of timestamps; set it right")]
    Clock,
}

impl From<Corrupt> for PersistenceError {
    fn from(corrupt: Corrupt) -> Self {
        Self::CorruptRow(Box::new(corrupt))
    }
}
