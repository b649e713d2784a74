//! Django's own session table, shared with a Django site.
//!
//! The site makes the table and keeps it in order; here, sessions are read from it and written to it under the keys that
//! Django's cookies hold. The payloads are Django's, so the store needs the codec `session_core::django::DjangoCodec`:
//! a payload of any other form is refused.
//!
//! What this table cannot do, because it has no columns for it:
//!
//! - There are no subjects: a record that has one is refused, and there is no `SubjectIndex`.
//! - Nobody knows when a session began: a record's `created_at` is when it was last saved.
//! - A record's `last_seen_at` is made up of when it was last saved and of when it expires; see
//!   [`DjangoPersistence::session_age`].
//! - A record's version is a hash of its row. A write that expects a version reads the row, and then writes only if the row
//!   still has what was read, in one statement. Whoever changes a session and changes it back within one second brings a
//!   version back; who writes over it then writes over the very content that it read.
//! - An expiry after the year 9999 becomes the end of that year.
//! - In MySQL and MariaDB, there cannot be two keys that differ in case only, because Django's collation takes them for the
//!   same. Neither is ever found under the other. Keys that are made here or by Django are in lower case.
//!
//! Instants are in UTC. At the site, `USE_TZ` must be true, which is the default, and no database may have a `TIME_ZONE`
//! other than UTC.

mod persistence;
mod row;
mod schema;

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::fmt;
use std::time::Duration;

use session_core::{PersistenceError, Timestamp};
use sqlx::{Database, SqlStr};

use self::row::Corrupt;
use crate::SqlPersistence;
use crate::sql::table::TableName;
use crate::sql::{Backend, Query};

/// Sessions in Django's table in a SQLite file.
#[cfg(feature = "sqlite")]
pub type DjangoSqlite = DjangoPersistence<sqlx::Sqlite>;
/// Sessions in Django's table in a Postgres database.
#[cfg(feature = "postgres")]
pub type DjangoPostgres = DjangoPersistence<sqlx::Postgres>;
/// Sessions in Django's table in a MySQL or MariaDB database.
#[cfg(feature = "mysql")]
pub type DjangoMySql = DjangoPersistence<sqlx::MySql>;

/// Django's `SESSION_COOKIE_AGE`, if the site's settings do not say otherwise: two weeks.
const SESSION_COOKIE_AGE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Sessions in the table of a Django site. See [the module](self) for what is different there.
///
/// # Cancel safety
///
/// As that of the database that it is [over](Self::over).
#[expect(private_bounds, reason = "nobody else implements it")]
pub struct DjangoPersistence<B: DjangoBackend> {
    /// With the connections, and the name of Django's table.
    db: SqlPersistence<B>,
    sql: Statements<SqlStr>,
    session_age: Duration,
}

#[expect(private_bounds, reason = "nobody else implements it")]
impl<B: DjangoBackend> DjangoPersistence<B> {
    /// In the table `django_session` of the database that `db` is connected to, over its connections and with its
    /// timeouts. The name of a table that `db` was built with does not count.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), session_core::PersistenceError> {
    /// # #[cfg(feature = "sqlite")] {
    /// use std::time::Duration;
    ///
    /// use db_backends::django::DjangoPersistence;
    /// use db_backends::sqlite::SqlitePersistence;
    ///
    /// let db = SqlitePersistence::builder().busy_timeout(Duration::from_secs(2)).connect("sqlite::memory:").await?;
    /// let db = DjangoPersistence::over(db);
    /// # }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn over(db: SqlPersistence<B>) -> Self {
        Self::in_table(db, TableName::django())
    }

    /// The same in another table, for a site with a session model of its own. Its further columns must have defaults, or
    /// be nullable: they are left alone.
    ///
    /// # Errors
    ///
    /// [`PersistenceError::Config`] unless the name is 1 to 48 characters of `[A-Za-z0-9_]`, not beginning with a digit or
    /// `sqlite_`.
    pub fn with_table(self, name: &str) -> Result<Self, PersistenceError> {
        Ok(Self { session_age: self.session_age, ..Self::in_table(self.db, TableName::parse(name)?) })
    }

    fn in_table(mut db: SqlPersistence<B>, table: TableName) -> Self {
        let sql = B::TEMPLATES.map(|template| table.sql(template));
        db.table = table;
        Self { db, sql, session_age: SESSION_COOKIE_AGE }
    }

    /// How long a session lives that does not choose otherwise: the site's `SESSION_COOKIE_AGE`, and the store's
    /// `idle_timeout`. By default two weeks.
    ///
    /// A touch leaves no other trace than a later expiry. So a session counts as last used this long before it expires, or
    /// when it was last saved, whichever is later. A touch that asks to be written only if the session is idle since some
    /// instant looks at the expiry alone: it is written if the session expires this long after that instant, or before.
    /// With another value here than in the store, and for sessions with an expiry of their own, touches are written more
    /// often, or less, than the store's `touch_interval` says.
    #[must_use]
    pub const fn session_age(mut self, session_age: Duration) -> Self {
        self.session_age = session_age;
        self
    }

    /// Waits for the statements that run, also for those whose callers have gone, and closes the connections; not a pool
    /// of the application's. Calls that come later fail with [`PersistenceError::Unavailable`].
    pub async fn close(&self) {
        self.db.close().await;
    }
}

impl<B: DjangoBackend> fmt::Debug for DjangoPersistence<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DjangoPersistence")
            .field("database", &B::NAME)
            .field("table", &self.db.table.as_str())
            .finish_non_exhaustive()
    }
}

/// The statements, each with its parameters in this order. A key is what [`DjangoBackend::bind_key`] binds; an instant is
/// text, as [`instant::format`](session_core::django::instant::format) makes it.
pub(crate) struct Statements<S> {
    /// Key, data and expiry of the row with this key, now, unless it has expired. The expiry is text, in UTC.
    pub(crate) load: S,
    /// Adds a row: key (once), data, expiry.
    pub(crate) insert: S,
    /// Writes data, expiry and cap (see [`expiry_cap`](persistence::expiry_cap)) to the row with this key, now, unless it
    /// has expired, and with this data, unless that is null.
    pub(crate) update: S,
    /// Makes the expiry later, for the row with this key, now, unless it has expired, and if it expires at an instant or
    /// before.
    pub(crate) touch: S,
    /// As `update`, with the new key (once) before the key.
    pub(crate) rename: S,
    /// One row if there is one with this key, now, that has not expired.
    pub(crate) is_there: S,
    /// Removes the row with this key.
    pub(crate) delete: S,
    /// Removes rows that expired at an instant or before, at most so many.
    pub(crate) delete_expired: S,
    /// Of each column of the table with this name: its name, its type, and `true` if it is in the primary key.
    pub(crate) columns: S,
}

impl Statements<&'static str> {
    fn map<T>(&self, mut with: impl FnMut(&'static str) -> T) -> Statements<T> {
        Statements {
            load: with(self.load),
            insert: with(self.insert),
            update: with(self.update),
            touch: with(self.touch),
            rename: with(self.rename),
            is_there: with(self.is_there),
            delete: with(self.delete),
            delete_expired: with(self.delete_expired),
            columns: with(self.columns),
        }
    }
}

/// What is Django's own in one kind of database.
pub(crate) trait DjangoBackend: Backend {
    const TEMPLATES: Statements<&'static str>;

    /// What `manage.py migrate sessions` runs.
    const SCHEMA: &'static str;

    /// The types of `session_key`, `session_data` and `expire_date`, as the database describes them.
    const TYPES: [&'static str; 3];

    fn bind_text(query: Query<Self>, text: Option<&str>) -> Query<Self>;

    /// Binds the key that a row is looked for by.
    fn bind_key(query: Query<Self>, key: &str) -> Query<Self> {
        Self::bind_text(query, Some(key))
    }

    fn text(row: &<Self as Database>::Row, column: Column) -> Result<&str, Corrupt>;

    /// Refuses connections that are not as they were said to be.
    fn check_connections(
        _db: &SqlPersistence<Self>,
    ) -> impl Future<Output = Result<(), PersistenceError>> + Send {
        std::future::ready(Ok(()))
    }

    /// An expiry as it is stored.
    fn expiry(instant: Timestamp) -> String {
        session_core::django::instant::format(instant)
    }
}

/// A column of an answer.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) index: usize,
    pub(crate) name: &'static str,
}
