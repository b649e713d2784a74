use std::time::Duration;

use crate::{KeyForm, StoredKey};

/// The kind, the limits and the name of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PersistenceProperties {
    /// The form in which keys are stored. Defaults to [`KeyForm::Hashed`].
    pub key_form: KeyForm,
    /// The longest stored key, in bytes. Defaults to [`StoredKey::MAX_LEN`].
    pub max_key_bytes: usize,
    /// The largest payload, in bytes.
    pub max_payload_bytes: usize,
    /// The longest time that a statement whose client has given up may go on before it commits or is ended.
    /// Defaults to 10 s.
    pub statement_bound: Duration,
    /// `true` if other programs write to the table, which know nothing of the cache in front of it. Defaults
    /// to `false`.
    pub has_other_writers: bool,
    /// `true` if [`delete_all`](crate::Persistence::delete_all) removes several sessions in one statement or one short transaction.
    /// Otherwise a store ends sessions side by side instead. Defaults to `false`.
    pub deletes_together: bool,
    /// `true` if the table keeps a record's `created_at` as it was inserted. Defaults to `true`.
    pub keeps_created_at: bool,
    /// The name of the database in metrics: `SQLite`, for instance. Defaults to `database`.
    pub name: &'static str,
    /// A number that differs between tables, so that stores over two tables do not trust each other's cached
    /// values:
    /// [`StoreId::of`](crate::StoreId::of) the table's name, for instance. Defaults to 0.
    pub table_id: u64,
}

impl PersistenceProperties {
    /// Creates properties with a limit on payloads, in bytes, and the defaults of all other fields.
    #[must_use]
    pub const fn new(max_payload_bytes: usize) -> Self {
        Self {
            key_form: KeyForm::Hashed,
            max_key_bytes: StoredKey::MAX_LEN,
            max_payload_bytes,
            statement_bound: Duration::from_secs(10),
            has_other_writers: false,
            deletes_together: false,
            keeps_created_at: true,
            name: "database",
            table_id: 0,
        }
    }

    /// Sets the bound on a statement whose client has given up. Defaults to 10 s.
    #[must_use]
    pub const fn with_statement_bound(mut self, statement_bound: Duration) -> Self {
        self.statement_bound = statement_bound;
        self
    }

    // Stands in `CacheProperties`, too: two structs with a name have a setter each.
    /// Sets the name in metrics. Defaults to `database`.
    #[must_use]
    pub const fn with_name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Sets the number that differs between tables. Defaults to 0.
    #[must_use]
    pub const fn with_table_id(mut self, table_id: u64) -> Self {
        self.table_id = table_id;
        self
    }

    /// Sets the form of keys and the longest key, in bytes. Defaults to hashed keys of any length that a
    /// [`StoredKey`] can have.
    #[must_use]
    pub const fn with_keys(mut self, key_form: KeyForm, max_key_bytes: usize) -> Self {
        self.key_form = key_form;
        self.max_key_bytes = max_key_bytes;
        self
    }

    /// Marks the table as one that other programs write to.
    #[must_use]
    pub const fn with_other_writers(mut self) -> Self {
        self.has_other_writers = true;
        self
    }

    /// Notes that [`delete_all`](crate::Persistence::delete_all) is more than one deletion after another.
    #[must_use]
    pub const fn with_deletes_together(mut self) -> Self {
        self.deletes_together = true;
        self
    }

    /// Marks the table as one that does not keep when a session began.
    #[must_use]
    pub const fn without_created_at(mut self) -> Self {
        self.keeps_created_at = false;
        self
    }
}
