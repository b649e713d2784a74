//! What all SQL databases do alike: which statement is run with which parameters, and what its answer means.

pub(crate) mod attended;
pub(crate) mod connections;
pub(crate) mod error;
mod page;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) mod remote;
pub(crate) mod row;
pub(crate) mod schema;
pub(crate) mod table;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use session_core::{
    ExpiryWrite, Persistence, PersistenceError, PersistenceProperties, Record, Row as Listed, Scan,
    SessionTimes, StoreId, StoredKey, Subject, SubjectIndex, Timestamp, Version,
};
use sqlx::{Database, SqlStr, query};

use self::page::Page;
use self::row::{Corrupt, MAX_PAYLOAD_BYTES, Row};
use self::table::TableName;
use crate::{Inspect, Inspection};

/// Sessions in an SQL database: what each database's own name stands for.
#[expect(private_bounds, reason = "nobody else implements it")]
pub struct SqlPersistence<B: Backend> {
    pub(crate) connections: B::Connections,
    pub(crate) table: TableName,
    pub(crate) sql: Statements,
    statement_bound: Duration,
    /// The database's name, as far as it is known.
    database: String,
}

/// The statements, each with its parameters in this order. The columns of a row are always `key`, `payload`,
/// `created_at`, `expires_at`, `last_seen_at`, `version`, `subject`.
pub(crate) struct Statements {
    /// A row by key, now, unless it has expired.
    pub(crate) load: SqlStr,
    /// Adds a row: its columns.
    pub(crate) insert: SqlStr,
    /// Writes payload, subject, last use, version, expiry and cap (see [`expiry_cap`]) to the row with this key, now,
    /// unless it has expired, and with this version, unless that is null.
    pub(crate) update: SqlStr,
    /// Makes expiry and last use later, for the row with this key, now, unless it has expired, and if it was last used
    /// at an instant or before.
    pub(crate) touch: SqlStr,
    /// As `update`, with the new key before the key.
    pub(crate) rename: SqlStr,
    /// One row if there is one with this key, now, that has not expired.
    pub(crate) is_there: SqlStr,
    /// Removes the row with this key.
    pub(crate) delete: SqlStr,
    /// Removes rows that expired at an instant or before, at most so many.
    pub(crate) delete_expired: SqlStr,
    /// How many rows expired at an instant or before.
    pub(crate) count_expired: SqlStr,
    /// `key`, `created_at`, `expires_at` and `last_seen_at` of the rows of a subject, from a key on, now, that have not
    /// expired, at most so many, in the order of the bytes of their keys.
    pub(crate) list_by_subject: SqlStr,
    /// The rows from a key on, at most so many, in the order of the bytes of their keys.
    pub(crate) scan: SqlStr,
    /// The database's clock, in microseconds since 1970. No parameters.
    pub(crate) now: SqlStr,
}

/// A parameter.
pub(crate) enum Value<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Integer(i64),
    OptionalText(Option<&'a str>),
    OptionalInteger(Option<i64>),
}

pub(crate) type Query<B> = query::Query<'static, B, <B as Database>::Arguments>;

/// One kind of SQL database.
pub(crate) trait Backend: Database + Sized {
    /// How it is reached.
    type Connections: Send + Sync + 'static;

    fn bind(query: Query<Self>, value: Value<'_>) -> Query<Self>;

    /// The byte that is appended to a key to make the least key that comes after it.
    const LEAST_BYTE: u8 = 0;

    /// The columns of a row.
    fn columns(row: &Self::Row) -> Result<Row<'_>, Corrupt>;

    /// The first column of a row, a key, whatever bytes it has. `None` if it is of a type that comes after all keys.
    fn key(row: &Self::Row) -> Option<&[u8]>;

    /// A column of a row that is a number.
    fn integer(row: &Self::Row, index: usize) -> Option<i64>;

    /// Runs a statement that writes; how many rows it matched.
    fn write(
        db: &SqlPersistence<Self>,
        query: Query<Self>,
    ) -> impl Future<Output = Result<u64, PersistenceError>> + Send;

    /// Runs a statement that finds at most one row.
    fn read(
        db: &SqlPersistence<Self>,
        query: Query<Self>,
    ) -> impl Future<Output = Result<Option<Self::Row>, PersistenceError>> + Send;

    /// Runs a statement that finds several rows.
    fn read_all(
        db: &SqlPersistence<Self>,
        query: Query<Self>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, PersistenceError>> + Send;

    fn migrate(db: &SqlPersistence<Self>) -> impl Future<Output = Result<(), PersistenceError>> + Send;

    fn schema_sql(table: &TableName) -> String;

    fn check_schema(db: &SqlPersistence<Self>) -> impl Future<Output = Result<(), PersistenceError>> + Send;

    fn inspect(
        db: &SqlPersistence<Self>,
    ) -> impl Future<Output = Result<Inspection, PersistenceError>> + Send;

    fn close(connections: &Self::Connections) -> impl Future<Output = ()> + Send;
}

#[expect(private_bounds, reason = "nobody else implements it")]
impl<B: Backend> SqlPersistence<B> {
    pub(crate) const fn new(
        connections: B::Connections,
        table: TableName,
        sql: Statements,
        statement_bound: Duration,
    ) -> Self {
        Self { connections, table, sql, statement_bound, database: String::new() }
    }

    /// Names the database, to tell its table from those of the same name in others.
    pub(crate) fn in_database(mut self, name: Option<&str>) -> Self {
        name.unwrap_or_default().clone_into(&mut self.database);
        self
    }

    /// Waits for the statements that run, also for those whose callers have gone, and closes the connections; not a pool
    /// of the application's. Calls that come later fail with [`PersistenceError::Unavailable`].
    ///
    /// Without it, the connections close when this is dropped, and nothing waits for that.
    pub async fn close(&self) {
        B::close(&self.connections).await;
    }

    /// Why a write matched no row.
    async fn why_unmatched(
        &self,
        key: &StoredKey,
        expected: Option<Version>,
        now: Timestamp,
    ) -> Result<PersistenceError, PersistenceError> {
        if expected.is_none() {
            return Ok(PersistenceError::NotFound);
        }
        Ok(match self.is_there(key, now).await? {
            true => PersistenceError::Conflict,
            false => PersistenceError::NotFound,
        })
    }

    /// Returns `true` if there is a session under `key` that has not expired.
    async fn is_there(&self, key: &StoredKey, now: Timestamp) -> Result<bool, PersistenceError> {
        let query = statement::<B>(&self.sql.is_there, [text(key), instant(now)]);
        Ok(B::read(self, query).await?.is_some())
    }

    /// Returns a page of the rows that `query` finds from a key on, at most so many, and `contents` of each.
    ///
    /// Goes on behind rows whose keys are no stored keys: a page that is short says that nothing comes after it.
    async fn page<T>(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
        query: impl Fn(&str, u32) -> Query<B>,
        contents: impl Fn(&B::Row) -> Result<T, Corrupt>,
    ) -> Result<Vec<Listed<T>>, PersistenceError> {
        let mut page = Page::new(after, limit, B::LEAST_BYTE);
        while let Some((first, count)) = page.next() {
            let rows = B::read_all(self, query(first, count)).await?;
            page.add(rows.iter().map(|row| (B::key(row), || contents(row))));
        }
        Ok(page.finish())
    }
}

impl<B: Backend> Persistence for SqlPersistence<B> {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        let query = statement::<B>(&self.sql.load, [text(key), instant(now)]);
        match B::read(self, query).await? {
            Some(row) => B::columns(&row)?.record_of(key).map(Some),
            None => Ok(None),
        }
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        row::check_size(record)?;
        let version = row::fresh_version();
        let query = statement::<B>(
            &self.sql.insert,
            [
                text(key),
                Value::Bytes(record.payload()),
                instant(record.created_at()),
                instant(record.expires_at()),
                instant(record.last_seen_at()),
                Value::Integer(bits(version)),
                subject_of(record),
            ],
        );
        B::write(self, query).await?;
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
        row::check_size(record)?;
        let version = row::fresh_version();
        let query = with_record::<B>(&self.sql.update, record, version, expiry);
        let query = bind(query, [text(key), instant(now), Value::OptionalInteger(expected.map(bits))]);
        match B::write(self, query).await? {
            0 => Err(Box::pin(self.why_unmatched(key, expected, now)).await?),
            _ => Ok(version),
        }
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        let parameters = [instant(expires_at), instant(now), text(key), instant(now), instant(idle_since)];
        match B::write(self, statement::<B>(&self.sql.touch, parameters)).await? {
            0 if Box::pin(self.is_there(key, now)).await? => Ok(false),
            0 => Err(PersistenceError::NotFound),
            _ => Ok(true),
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
        if old == new {
            return Err(PersistenceError::AlreadyExists);
        }
        row::check_size(record)?;
        let version = row::fresh_version();
        let query = with_record::<B>(&self.sql.rename, record, version, expiry);
        let query =
            bind(query, [text(new), text(old), instant(now), Value::OptionalInteger(expected.map(bits))]);
        match B::write(self, query).await? {
            0 => Err(Box::pin(self.why_unmatched(old, expected, now)).await?),
            _ => Ok(version),
        }
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        Ok(B::write(self, statement::<B>(&self.sql.delete, [text(key)])).await? > 0)
    }

    async fn delete_expired(&self, before: Timestamp, limit: u32) -> Result<u64, PersistenceError> {
        let parameters = [instant(before), Value::Integer(limit.into())];
        B::write(self, statement::<B>(&self.sql.delete_expired, parameters)).await
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        let row = B::read(self, query(self.sql.now.clone())).await?;
        let micros = row.and_then(|row| B::integer(&row, 0)).ok_or(Corrupt::Clock)?;
        Ok(Timestamp::from_micros(micros))
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        B::migrate(self).await
    }

    fn schema_sql(&self) -> String {
        B::schema_sql(&self.table)
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        B::check_schema(self).await
    }

    fn properties(&self) -> PersistenceProperties {
        PersistenceProperties::new(MAX_PAYLOAD_BYTES)
            .with_name(B::NAME)
            .with_statement_bound(self.statement_bound)
            .with_table_id(StoreId::of([&*self.database, self.table.as_str()]).0)
    }
}

impl<B: Backend> SubjectIndex for SqlPersistence<B> {
    async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Listed<SessionTimes>>, PersistenceError> {
        let query = |first: &str, count: u32| {
            let subject = Value::Text(subject.as_str());
            let parameters = [subject, Value::Text(first), instant(now), Value::Integer(count.into())];
            statement::<B>(&self.sql.list_by_subject, parameters)
        };
        self.page(after, limit, query, times::<B>).await
    }
}

impl<B: Backend> Scan for SqlPersistence<B> {
    async fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Listed<Record>>, PersistenceError> {
        let query = |first: &str, count: u32| {
            statement::<B>(&self.sql.scan, [Value::Text(first), Value::Integer(count.into())])
        };
        self.page(after, limit, query, |row| B::columns(row)?.record()).await
    }
}

#[async_trait]
impl<B: Backend> Inspect for SqlPersistence<B> {
    async fn inspect(&self) -> Result<Inspection, PersistenceError> {
        B::inspect(self).await
    }

    async fn count_expired(&self, before: Timestamp) -> Result<u64, PersistenceError> {
        let count = B::read(self, statement::<B>(&self.sql.count_expired, [instant(before)])).await?;
        let count = count.and_then(|row| B::integer(&row, 0)).unwrap_or_default();
        Ok(u64::try_from(count).unwrap_or_default())
    }
}

impl<B: Backend> fmt::Debug for SqlPersistence<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlPersistence")
            .field("database", &B::NAME)
            .field("table", &self.table.as_str())
            .finish_non_exhaustive()
    }
}

fn statement<'a, B: Backend>(sql: &SqlStr, parameters: impl IntoIterator<Item = Value<'a>>) -> Query<B> {
    bind(query(sql.clone()), parameters)
}

fn bind<'a, B: Backend>(query: Query<B>, parameters: impl IntoIterator<Item = Value<'a>>) -> Query<B> {
    parameters.into_iter().fold(query, B::bind)
}

/// The parameters that update and rename begin with.
fn with_record<B: Backend>(sql: &SqlStr, record: &Record, version: Version, expiry: ExpiryWrite) -> Query<B> {
    statement(
        sql,
        [
            Value::Bytes(record.payload()),
            subject_of(record),
            instant(record.last_seen_at()),
            Value::Integer(bits(version)),
            instant(record.expires_at()),
            Value::Integer(expiry_cap(expiry)),
        ],
    )
}

/// The statements make the expiry the later one of the record's and of what the row has up to here.
const fn expiry_cap(expiry: ExpiryWrite) -> i64 {
    match expiry {
        ExpiryWrite::Extend => i64::MAX,
        ExpiryWrite::Replace => i64::MIN,
    }
}

/// The times in a row of [`Statements::list_by_subject`].
fn times<B: Backend>(row: &B::Row) -> Result<SessionTimes, Corrupt> {
    let instant = |index, name| match B::integer(row, index) {
        Some(micros) => Ok(Timestamp::from_micros(micros)),
        None => Err(Corrupt::Type(name)),
    };
    Ok(SessionTimes {
        created_at: instant(1, "created_at")?,
        expires_at: instant(2, "expires_at")?,
        last_seen_at: instant(3, "last_seen_at")?,
    })
}

fn text(key: &StoredKey) -> Value<'_> {
    Value::Text(key.as_str())
}

const fn instant(instant: Timestamp) -> Value<'static> {
    Value::Integer(instant.as_micros())
}

fn subject_of(record: &Record) -> Value<'_> {
    Value::OptionalText(record.subject().map(Subject::as_str))
}

/// Databases have no unsigned integers of this size, or not all.
const fn bits(version: Version) -> i64 {
    version.as_u64().cast_signed()
}
