//! The work of every SQL database: which statement runs with which parameters, and what its answer means.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use session_core::{
    DatabaseNotices, ExpiredSessions, ExpiryWrite, Persistence, PersistenceError, PersistenceProperties,
    Record, RecordWrite, Row as Listed, Scan, SessionTimes, StoreId, StoredKey, Subject, SubjectIndex,
    Timestamp, Version,
};
use sqlx::{SqlStr, query};

use crate::sql::checkout::{Checkout, Work};
use crate::sql::columns::{self, Column, Corrupt, MAX_PAYLOAD_BYTES, version_bits};
use crate::sql::connections::{Connections, Usage};
use crate::sql::connector::{Connector, Query};
use crate::sql::error::DriverErrors;
use crate::sql::page::Page;
use crate::sql::reports::{InUse, NO_REPORTS, Reports};
use crate::sql::rotations_table::RotationsTable;
use crate::sql::schema::{self, Schema};
use crate::sql::statements::{ByExpiry, Rest, Statements, Syntax};
use crate::sql::table::TableName;
use crate::sql::value::{RESULT, Value, Values};
use crate::{Finding, FindingSeverity, Inspection};

/// Sessions in an SQL database. Each database has a name of its own for it.
#[expect(private_bounds, reason = "implemented in this crate only")]
pub struct SqlPersistence<B: Backend> {
    pub(crate) connections: B::Connections,
    pub(crate) table: TableName,
    pub(crate) sql: Statements,
    pub(crate) rotations: RotationsTable,
    /// The reports of what this writes, once they are asked for.
    reports: OnceLock<Result<Reports, &'static str>>,
    statement_bound: Duration,
    /// The time for which a statement that reports may wait besides, at its commit.
    report_bound: Duration,
    /// The database's name, as far as it is known.
    database: String,
}

/// One kind of SQL database.
pub(crate) trait Backend: Values + Schema + Sized {
    /// The connections to it.
    type Connections: Connections<Database = Self>;

    /// Its dialect of SQL.
    const SYNTAX: Syntax;

    /// The byte that is appended to a key to make the least key that comes after it.
    const LEAST_BYTE: u8 = 0;

    /// Runs the statements of [`DeleteRows`], and returns the rows.
    fn remove(
        connection: &mut Self::Connection,
        rows: Query<Self>,
        rest: Option<Rest>,
    ) -> Work<'_, Vec<Self::Row>, sqlx::Error>;

    /// Returns the first of the statements of [`Syntax::delete_all`], with its keys.
    fn with_keys(sql: &SqlStr, keys: &[StoredKey]) -> Query<Self>;

    /// Returns the condition of the table and its server, without the findings.
    fn inspect(
        connection: &mut Self::Connection,
        table: &TableName,
    ) -> impl Future<Output = sqlx::Result<Inspection>> + Send;

    /// Rewrites a file without its empty pages. Returns `false` if there is no such file.
    fn vacuum(connection: &mut Self::Connection) -> impl Future<Output = sqlx::Result<bool>> + Send {
        let _ = connection;
        std::future::ready(Ok(false))
    }

    /// Returns the reports of all writers of the table, besides those of the handle with this tag.
    fn notices(
        connections: &Self::Connections,
        table: &TableName,
        tag: &str,
        in_use: InUse,
    ) -> Option<Arc<dyn DatabaseNotices>> {
        let _ = (connections, table, tag, in_use);
        None
    }

    /// Returns findings about the settings of the database.
    fn examine(
        connection: &mut Self::Connection,
        usage: Usage,
    ) -> impl Future<Output = sqlx::Result<Vec<Finding>>> + Send;
}

const IN_USE: &str = "another store listens besides this handle, and would not hear of its writes; connect once for each store";

type ConnectorOf<B> = <<B as Backend>::Connections as Connections>::Connector;

#[expect(private_bounds, reason = "implemented in this crate only")]
impl<B: Backend> SqlPersistence<B> {
    pub(crate) const ERRORS: DriverErrors = <ConnectorOf<B> as Connector>::ERRORS;

    pub(crate) fn new(connections: B::Connections, table: TableName, statement_bound: Duration) -> Self {
        let sql = Statements::new(&B::SYNTAX, &table);
        let rotations = RotationsTable::new(&B::SYNTAX, &table);
        Self {
            connections,
            table,
            sql,
            rotations,
            reports: OnceLock::new(),
            statement_bound,
            report_bound: Duration::ZERO,
            database: String::new(),
        }
    }

    /// Names the database, to distinguish its table from those of the same name in others.
    pub(crate) fn in_database(mut self, name: Option<&str>) -> Self {
        name.unwrap_or_default().clone_into(&mut self.database);
        self
    }

    /// Sets how long a commit that reports may wait for others. `statement_bound` does not include that.
    #[cfg(feature = "postgres")]
    pub(crate) const fn with_report_bound(mut self, report_bound: Duration) -> Self {
        self.report_bound = report_bound;
        self
    }

    /// Waits for the running statements, including abandoned ones, and closes the connections, but not the
    /// application's pool. Later calls fail with [`PersistenceError::Unavailable`].
    ///
    /// Without this call, the connections close when this is dropped, and nothing waits for that.
    pub async fn close(&self) {
        self.connections.close().await;
    }

    /// Returns the statements that write, and whether they report it.
    fn writes(&self) -> (&Statements, bool) {
        match self.reports.get() {
            Some(Ok(reports)) => (&reports.statements, true),
            _ => (&self.sql, false),
        }
    }

    /// Runs a statement that writes, and returns how many rows it matched.
    pub(crate) async fn write(&self, query: Query<B>) -> Result<u64, PersistenceError> {
        self.connections.write(query, &self.table).await
    }

    /// Runs a statement that finds at most one row.
    pub(crate) async fn read(&self, query: Query<B>) -> Result<Option<B::Row>, PersistenceError> {
        self.connections.read(query, &self.table).await
    }

    /// Runs a statement that finds several rows.
    pub(crate) async fn read_all(&self, query: Query<B>) -> Result<Vec<B::Row>, PersistenceError> {
        self.connections.read_all(query, &self.table).await
    }

    /// Refuses settings with which the contract cannot be kept, and logs those that weaken it.
    pub(crate) async fn check_settings(&self) -> Result<(), PersistenceError> {
        self.connections.check().await?;
        for Finding { severity, text } in self.examine().await? {
            match severity {
                FindingSeverity::Problem => return Err(PersistenceError::Config(text)),
                FindingSeverity::Warning => {
                    tracing::warn!(target: "db_backends", event = "database_setting", database = B::NAME, "{text}");
                }
                FindingSeverity::Note => {
                    tracing::info!(target: "db_backends", event = "database_setting", database = B::NAME, "{text}");
                }
            }
        }
        Ok(())
    }

    pub(super) async fn examine(&self) -> Result<Vec<Finding>, PersistenceError> {
        let reader: Checkout<_> = self.connections.reader().await?;
        let usage = self.connections.usage();
        let findings = reader
            .perform(move |connection| Box::pin(async move { B::examine(connection, usage).await }))
            .await;
        findings.map_err(|error| Self::ERRORS.reading(&error, &self.table))
    }

    /// Runs the statements of [`DeleteRows`], and returns the rows.
    ///
    /// Boxed, because the compiler cannot see from outside of this crate that the future is `Send`.
    pub(crate) fn remove(
        &self,
        rows: Query<B>,
        rest: Option<Rest>,
    ) -> Work<'_, Vec<B::Row>, PersistenceError> {
        let is_transaction = rest.is_some();
        Box::pin(self.connections.write_all(
            rows,
            is_transaction,
            move |connection, rows| B::remove(connection, rows, rest.clone()),
            &self.table,
        ))
    }

    /// Runs a statement that returns one number, if it returns one.
    pub(super) async fn read_number(&self, query: Query<B>) -> Result<Option<i64>, PersistenceError> {
        Ok(self.read(query).await?.and_then(|row| B::integer(&row, RESULT).ok()))
    }

    /// Returns `true` if there is a session under `key` that has not expired.
    async fn is_there(&self, key: &StoredKey, now: Timestamp) -> Result<bool, PersistenceError> {
        let query = statement::<B>(&self.sql.is_there, [text(key), instant(now)]);
        Ok(self.read(query).await?.is_some())
    }

    /// Returns a page of the rows that `query` finds from a key on, at most `limit`, with the `contents` of
    /// each.
    ///
    /// Reads on after rows whose keys are no stored keys, because a short page means that nothing comes after
    /// it.
    async fn page<T>(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
        query: impl Fn(&str, u32) -> Query<B>,
        contents: impl Fn(&B::Row) -> Result<T, Corrupt>,
    ) -> Result<Vec<Listed<T>>, PersistenceError> {
        let mut page = Page::new(after, limit, B::LEAST_BYTE);
        while let Some((first, count)) = page.next() {
            let rows = self.read_all(query(first, count)).await?;
            page.add(rows.iter().map(|row| (B::key(row), || contents(row))));
        }
        Ok(page.finish())
    }
}

impl<B: Backend> Persistence for SqlPersistence<B> {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        let query = statement::<B>(&self.sql.load, [text(key), instant(now)]);
        match self.read(query).await? {
            Some(row) => columns::record_of::<B>(&row, key).map(Some),
            None => Ok(None),
        }
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        columns::check_size(record)?;
        let version = columns::fresh_version();
        let values = Column::ALL.map(|column| column.value(key, record, version));
        self.write(statement::<B>(&self.writes().0.insert, values)).await?;
        Ok(version)
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        columns::check_size(write.record)?;
        let version = columns::fresh_version();
        let query = with_record::<B>(&self.writes().0.update, key, write, version);
        let query = bind(query, [text(key), instant(now), expected_version(write)]);
        match self.write(query).await? {
            0 => Err(Box::pin(why_unmatched(write.expected, self.is_there(key, now))).await?),
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
        match self.write(statement::<B>(&self.writes().0.touch, parameters)).await? {
            0 if Box::pin(self.is_there(key, now)).await? => Ok(false),
            0 => Err(PersistenceError::NotFound),
            _ => Ok(true),
        }
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        if old == new {
            return Err(PersistenceError::AlreadyExists);
        }
        columns::check_size(write.record)?;
        let version = columns::fresh_version();
        let (sql, is_reporting) = self.writes();
        let query = with_record::<B>(&sql.rename, new, write, version);
        let query = bind(query, [text(new), text(old), instant(now), expected_version(write)]);
        let query = bind(query, is_reporting.then(|| text(old)));
        match self.write(query).await? {
            0 => Err(Box::pin(why_unmatched(write.expected, self.is_there(old, now))).await?),
            _ => Ok(version),
        }
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        Ok(self.write(statement::<B>(&self.writes().0.delete, [text(key)])).await? > 0)
    }

    async fn delete_all(&self, keys: &[StoredKey]) -> Result<Vec<StoredKey>, PersistenceError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let statements = &self.writes().0.delete_all;
        let removed = self.remove(B::with_keys(&statements.rows, keys), statements.removal()).await?;
        let removed = removed.iter().filter_map(|row| std::str::from_utf8(B::key(row)?).ok());
        Ok(removed.filter_map(|key| StoredKey::parse(key).ok()).collect())
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        // First: an error after the sessions are gone would leave them unreported.
        let has_notes_left = self.remove_notes(before, limit).await?;
        let parameters = [instant(before), Value::Integer(limit.into())];
        let statements = &self.writes().0.delete_expired;
        let due = self.remove(statement(&statements.rows, parameters), statements.rest(before)).await?;
        let removed = columns::expired::<B>(due.iter().filter(|row| columns::is_over::<B>(row, before)));
        let is_full = u32::try_from(due.len()).is_ok_and(|count| count >= limit);
        // Where nothing is asked for, nothing is left to do.
        let removed = removed.with_more(has_notes_left || is_full && limit > 0);
        self.rotations.note_batch(removed.is_unfinished(limit));
        Ok(removed)
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        let micros = self.read_number(query(self.sql.now.clone())).await?;
        Ok(Timestamp::from_micros(micros.ok_or(Corrupt::Clock)?))
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.check_settings().await?;
        let table = self.table.clone();
        let writer: Checkout<_> = self.connections.writer().await?;
        let migrated = writer
            .perform(move |connection| {
                Box::pin(async move {
                    // Without a lock at first: most starts find everything done, and some may not write.
                    if B::check(connection, &table).await?.is_ok() {
                        return Ok(Ok(()));
                    }
                    B::migrate(connection, &table).await
                })
            })
            .await;
        migrated.map_err(|error| Self::ERRORS.writing(&error, &self.table))?
    }

    fn schema_sql(&self) -> String {
        schema::sql::<B>(&self.table)
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        self.check_settings().await?;
        let table = self.table.clone();
        let reader: Checkout<_> = self.connections.reader().await?;
        let checked = reader
            .perform(move |connection| Box::pin(async move { B::check(connection, &table).await }))
            .await;
        Ok(checked.map_err(|error| Self::ERRORS.reading(&error, &self.table))??)
    }

    fn properties(&self) -> PersistenceProperties {
        let bound = match self.writes() {
            (_, true) => self.statement_bound.saturating_add(self.report_bound),
            (_, false) => self.statement_bound,
        };
        PersistenceProperties::new(MAX_PAYLOAD_BYTES)
            .with_deletes_together()
            .with_name(B::NAME)
            .with_statement_bound(bound)
            .with_table_id(StoreId::of([&*self.database, self.table.as_str()]).0)
    }

    fn notify(&self) -> Result<Arc<dyn DatabaseNotices>, &'static str> {
        let reports = self.reports.get_or_init(|| Reports::new(&B::SYNTAX, &self.table));
        let reports = reports.as_ref().map_err(|reason| *reason)?;
        let in_use = reports.take().ok_or(IN_USE)?;
        B::notices(&self.connections, &self.table, &reports.tag, in_use).ok_or(NO_REPORTS)
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
            let parameters = [subject, instant(now), Value::Text(first), Value::Integer(count.into())];
            statement::<B>(&self.sql.list_by_subject, parameters)
        };
        self.page(after, limit, query, columns::times::<B>).await
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
        self.page(after, limit, query, columns::record::<B>).await
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

/// Returns the reason why a write matched no row. `is_there` finds out whether there is a session that has
/// not expired.
pub(crate) async fn why_unmatched(
    expected: Option<Version>,
    is_there: impl Future<Output = Result<bool, PersistenceError>>,
) -> Result<PersistenceError, PersistenceError> {
    match expected {
        Some(_) if is_there.await? => Ok(PersistenceError::Conflict),
        _ => Ok(PersistenceError::NotFound),
    }
}

pub(crate) fn statement<'a, B: Backend>(
    sql: &SqlStr,
    parameters: impl IntoIterator<Item = Value<'a>>,
) -> Query<B> {
    bind(query(sql.clone()), parameters)
}

fn bind<'a, B: Backend>(query: Query<B>, parameters: impl IntoIterator<Item = Value<'a>>) -> Query<B> {
    parameters.into_iter().fold(query, B::bind)
}

/// Binds the parameters that update and rename begin with.
fn with_record<B: Backend>(
    sql: &ByExpiry<SqlStr>,
    key: &StoredKey,
    write: RecordWrite<'_>,
    version: Version,
) -> Query<B> {
    let RecordWrite { record, expiry, .. } = write;
    let updated = Column::updated().map(|column| column.value(key, record, version));
    let again = (expiry == ExpiryWrite::Replace).then(|| instant(record.expires_at()));
    statement(sql.get(expiry), updated.chain([instant(record.expires_at())]).chain(again))
}

/// Returns the parameter that compares the version of the row.
fn expected_version(write: RecordWrite<'_>) -> Value<'static> {
    Value::OptionalInteger(write.expected.map(version_bits))
}

pub(crate) fn text(key: &StoredKey) -> Value<'_> {
    Value::Text(key.as_str())
}

pub(crate) const fn instant(instant: Timestamp) -> Value<'static> {
    Value::Integer(instant.as_micros())
}
