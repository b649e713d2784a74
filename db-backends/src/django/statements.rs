//! The statements, and how each kind of database writes and reads what is in them.

use session_core::Timestamp;
use session_core::django::instant;
use sqlx::{Database, SqlStr};

use super::error::Corrupt;
use crate::sql::connector::Query;
use crate::sql::persistence::Backend;
use crate::sql::statements::DeleteRows;
use crate::sql::table::TableName;

/// The columns of Django's table, in the order of [`DjangoBackend::TYPES`]. In a statement, `{columns}`
/// stands for them.
pub(super) const COLUMNS: [&str; 3] = [KEY, DATA, EXPIRY];

pub(super) const KEY: &str = "session_key";
pub(super) const DATA: &str = "session_data";
pub(super) const EXPIRY: &str = "expire_date";

/// The statements, each with its parameters in this order. A key is bound by [`DjangoBackend::bind_key`]. An
/// instant is text, in the form of [`instant::format`].
pub(crate) struct Statements<S> {
    /// Returns the columns of the row with this key, now, unless it has expired. The expiry is text, in UTC.
    pub(crate) load: S,
    /// Adds a row: key (once), data, expiry.
    pub(crate) insert: S,
    /// Writes data, expiry and cap (see [`expiry_cap`](super::persistence::expiry_cap)) to the row with this
    /// key, now, unless it has expired, and with this data, unless that is null.
    pub(crate) update: S,
    /// Makes the expiry later, for the row with this key, now, unless it has expired, and if it expires at an
    /// instant or before.
    pub(crate) touch: S,
    /// Does the same as `update`, with the new key (once) before the key.
    pub(crate) rename: S,
    /// Returns one row if there is one with this key, now, that has not expired.
    pub(crate) is_there: S,
    /// Removes the row with this key.
    pub(crate) delete: S,
    /// Removes rows that expired at an instant or before, up to a limit, and returns the key of each as `key`.
    pub(crate) delete_expired: DeleteRows<S>,
    /// Returns of each column of the table with this name: its `name`, its `type`, and in `is_key` the text
    /// `true` if it is in the primary key, and in `is_mandatory` if a row cannot be added without a value for it.
    pub(crate) describe: S,
}

impl Statements<&'static str> {
    /// Returns the statements for `table`.
    pub(super) fn fill(&self, table: &TableName) -> Statements<SqlStr> {
        let columns = COLUMNS.join(", ");
        let fill = |template: &str| table.sql(&template.replace("{columns}", &columns));
        let Self { load, insert, update, touch, rename, is_there, delete, delete_expired, describe } = self;
        Statements {
            load: fill(load),
            insert: fill(insert),
            update: fill(update),
            touch: fill(touch),
            rename: fill(rename),
            is_there: fill(is_there),
            delete: fill(delete),
            delete_expired: delete_expired.map(|template| fill(template)),
            describe: fill(describe),
        }
    }
}

/// The parts of Django's table that differ between kinds of databases.
pub(crate) trait DjangoBackend: Backend {
    const TEMPLATES: Statements<&'static str>;

    /// The statements that `manage.py migrate sessions` runs.
    const SCHEMA: &'static str;

    /// The types of the columns, as the database describes them.
    const TYPES: [&'static str; 3];

    fn bind_text(query: Query<Self>, text: Option<&str>) -> Query<Self>;

    /// Binds the key that a row is looked for by.
    fn bind_key(query: Query<Self>, key: &str) -> Query<Self> {
        Self::bind_text(query, Some(key))
    }

    /// Reads a column of text.
    fn read_text<'r>(row: &'r <Self as Database>::Row, column: &'static str) -> Result<&'r str, Corrupt>;

    /// Returns an expiry as it is stored.
    fn expiry(expiry: Timestamp) -> String {
        instant::format(expiry)
    }
}
