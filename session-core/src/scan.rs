use std::future::Future;

use crate::{Persistence, PersistenceError, Record, Row, StoredKey};

/// A [`Persistence`] that can list all sessions, to seal them again, to change the form of their keys, or to
/// count them.
///
/// It is for maintenance, because it reads the whole table.
pub trait Scan: Persistence {
    /// Returns at most `limit` sessions whose keys come after `after`, or the first ones, in the order of
    /// their keys.
    ///
    /// # Behavior
    ///
    /// - Expired sessions are there, too.
    /// - Keys are in the order of their bytes. Fewer than `limit` means that no more came after them.
    /// - Going on after the last key finds, exactly once, every session that is there all the time under one
    ///   key. One that gets another key meanwhile may be found twice, or not at all.
    /// - A row that cannot be read is in the page, with its key and the error; the others are there all the
    ///   same. A row whose key is no stored key is passed over, with a warning in the log.
    /// - Goes by an index, from where it is to begin: every call costs the same.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`load`](Persistence::load), but for [`PersistenceError::CorruptRow`], which
    /// stands in the place of a row that cannot be read.
    fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Row<Record>>, PersistenceError>> + Send;
}
