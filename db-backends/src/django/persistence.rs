//! What all databases do alike with Django's table.

use session_core::django::instant;
use session_core::{
    ExpiryWrite, KeyForm, Persistence, PersistenceError, PersistenceProperties, Record, StoreId, StoredKey,
    Timestamp, Version,
};
use sqlx::{SqlStr, query};

use super::row::{self, MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, Row};
use super::{DjangoBackend, DjangoPersistence};
use crate::sql::{Query, Value};

/// A parameter.
enum Parameter<'a> {
    /// The key that a row is looked for by.
    Key(&'a StoredKey),
    Text(&'a str),
    OptionalText(Option<&'a str>),
    /// What expiries are compared with, or the cap of one.
    Instant(Timestamp),
    /// An expiry to be stored.
    Expiry(Timestamp),
}

fn statement<'a, B: DjangoBackend>(
    sql: &SqlStr,
    parameters: impl IntoIterator<Item = Parameter<'a>>,
) -> Query<B> {
    parameters.into_iter().fold(query(sql.clone()), |query, parameter| match parameter {
        Parameter::Key(key) => B::bind_key(query, key.as_str()),
        Parameter::Text(text) => B::bind_text(query, Some(text)),
        Parameter::OptionalText(text) => B::bind_text(query, text),
        Parameter::Instant(instant) => B::bind_text(query, Some(&instant::format(instant))),
        Parameter::Expiry(instant) => B::bind_text(query, Some(&B::expiry(instant))),
    })
}

/// The statements make the expiry the later one of the record's and of what the row has up to here.
pub(super) const fn expiry_cap(expiry: ExpiryWrite) -> Timestamp {
    match expiry {
        ExpiryWrite::Extend => Timestamp::MAX,
        ExpiryWrite::Replace => Timestamp::from_micros(i64::MIN),
    }
}

#[expect(private_bounds, reason = "nobody else implements it")]
impl<B: DjangoBackend> DjangoPersistence<B> {
    /// The row under `key`, if it has not expired.
    async fn row(&self, key: &StoredKey, now: Timestamp) -> Result<Option<B::Row>, PersistenceError> {
        let parameters = [Parameter::Key(key), Parameter::Instant(now)];
        B::read(&self.db, statement::<B>(&self.sql.load, parameters)).await
    }

    /// The data of the session under `key`, which must have the version `expected`, so that a write can demand that they
    /// are still there.
    async fn data_of(
        &self,
        key: &StoredKey,
        expected: Option<Version>,
        now: Timestamp,
    ) -> Result<Option<String>, PersistenceError> {
        let Some(expected) = expected else { return Ok(None) };
        let found = self.row(key, now).await?.ok_or(PersistenceError::NotFound)?;
        let row = Row::read::<B>(&found)?;
        if !row.is_of(key) {
            return Err(PersistenceError::NotFound);
        }
        if row.version() != expected {
            return Err(PersistenceError::Conflict);
        }
        Ok(Some(row.data().to_owned()))
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
        let parameters = [Parameter::Key(key), Parameter::Instant(now)];
        Ok(B::read(&self.db, statement::<B>(&self.sql.is_there, parameters)).await?.is_some())
    }
}

impl<B: DjangoBackend> Persistence for DjangoPersistence<B> {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        let Some(found) = self.row(key, now).await? else { return Ok(None) };
        let row = Row::read::<B>(&found)?;
        Ok(row.is_of(key).then(|| row.record(now, self.session_age)))
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        let payload = row::payload(record)?;
        let parameters =
            [Parameter::Text(key.as_str()), Parameter::Text(payload), Parameter::Expiry(record.expires_at())];
        B::write(&self.db, statement::<B>(&self.sql.insert, parameters)).await?;
        Ok(row::version(key.as_str(), record.payload()))
    }

    async fn update(
        &self,
        key: &StoredKey,
        record: &Record,
        expected: Option<Version>,
        expiry: ExpiryWrite,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        let payload = row::payload(record)?;
        let data = self.data_of(key, expected, now).await?;
        let parameters = [
            Parameter::Text(payload),
            Parameter::Expiry(record.expires_at()),
            Parameter::Instant(expiry_cap(expiry)),
            Parameter::Key(key),
            Parameter::Instant(now),
            Parameter::OptionalText(data.as_deref()),
        ];
        match B::write(&self.db, statement::<B>(&self.sql.update, parameters)).await? {
            0 => Err(self.why_unmatched(key, expected, now).await?),
            _ => Ok(row::version(key.as_str(), record.payload())),
        }
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        // A touch leaves no other trace than a later expiry: see `session_age`.
        let due_until = idle_since + self.session_age;
        let parameters = [
            Parameter::Expiry(expires_at),
            Parameter::Key(key),
            Parameter::Instant(now),
            Parameter::Instant(due_until),
        ];
        match B::write(&self.db, statement::<B>(&self.sql.touch, parameters)).await? {
            0 if self.is_there(key, now).await? => Ok(false),
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
        let payload = row::payload(record)?;
        let data = self.data_of(old, expected, now).await?;
        let parameters = [
            Parameter::Text(payload),
            Parameter::Expiry(record.expires_at()),
            Parameter::Instant(expiry_cap(expiry)),
            Parameter::Text(new.as_str()),
            Parameter::Key(old),
            Parameter::Instant(now),
            Parameter::OptionalText(data.as_deref()),
        ];
        match B::write(&self.db, statement::<B>(&self.sql.rename, parameters)).await? {
            0 => Err(self.why_unmatched(old, expected, now).await?),
            _ => Ok(row::version(new.as_str(), record.payload())),
        }
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        Ok(B::write(&self.db, statement::<B>(&self.sql.delete, [Parameter::Key(key)])).await? > 0)
    }

    async fn delete_expired(&self, before: Timestamp, limit: u32) -> Result<u64, PersistenceError> {
        let query = statement::<B>(&self.sql.delete_expired, [Parameter::Instant(before)]);
        B::write(&self.db, B::bind(query, Value::Integer(limit.into()))).await
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        self.db.now().await
    }

    /// Makes nothing: the table is the site's. The same as [`check_schema`](Self::check_schema), so that a store with
    /// defaults can be built.
    async fn migrate(&self) -> Result<(), PersistenceError> {
        self.check().await
    }

    /// What `manage.py migrate sessions` runs, for databases that no site has ever used.
    fn schema_sql(&self) -> String {
        self.db.table.fill(B::SCHEMA)
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        self.check().await
    }

    fn properties(&self) -> PersistenceProperties {
        PersistenceProperties::new(MAX_PAYLOAD_BYTES)
            .with_name(B::NAME)
            .with_keys(KeyForm::Plain, MAX_KEY_BYTES)
            .with_statement_bound(self.db.properties().statement_bound)
            .with_table_id(StoreId::of([self.db.table.as_str()]).0)
            .with_other_writers()
            .without_created_at()
    }
}
