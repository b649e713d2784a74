//! The statements on the notes of rotations, and the presence of their table.

use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::SqlStr;

use crate::sql::statements::Syntax;
use crate::sql::table::TableName;

/// The table of the notes: its statements, each with its parameters in this order.
pub(crate) struct RotationsTable {
    /// Adds a note: the value of every column.
    pub(crate) note: SqlStr,
    /// Lets a note live until an instant, if it would expire before: the instant, the old key, the new key, the instant.
    pub(crate) prolong: SqlStr,
    /// Returns the notes of an old key, now, that have not expired, up to a limit, in the order of their expiry.
    pub(crate) find: SqlStr,
    /// Removes the notes that expired at an instant or before, up to a limit.
    pub(crate) delete: SqlStr,
    /// The table was seen. Its absence is remembered for a round only: another node may make it at any time.
    was_seen: AtomicBool,
    /// In this round, notes are left alone: there is no table, or they could not be removed.
    is_left_alone: AtomicBool,
}

impl RotationsTable {
    pub(crate) fn new(syntax: &Syntax, table: &TableName) -> Self {
        let sql = |template: &str| syntax.fill(template, table);
        Self {
            note: sql(
                "INSERT INTO {rotations} (old_key, new_key, masked_key, expires_at) VALUES (?, ?, ?, ?)",
            ),
            prolong: sql("UPDATE {rotations} SET expires_at = ?
                          WHERE old_key = ? AND new_key = ? AND expires_at < ?"),
            find: sql("SELECT old_key, new_key, masked_key, expires_at FROM {rotations}
                       WHERE old_key = ? AND expires_at > ? ORDER BY expires_at LIMIT ?"),
            delete: sql(syntax.delete_rotations),
            was_seen: AtomicBool::new(false),
            is_left_alone: AtomicBool::new(false),
        }
    }

    pub(crate) fn was_seen(&self) -> bool {
        self.was_seen.load(Ordering::Relaxed)
    }

    pub(crate) fn note_seen(&self, is_there: bool) {
        self.was_seen.store(is_there, Ordering::Relaxed);
    }

    pub(crate) fn is_left_alone(&self) -> bool {
        self.is_left_alone.load(Ordering::Relaxed)
    }

    /// Leaves the notes alone until the round of deletions has ended.
    pub(crate) fn leave_alone(&self) {
        self.is_left_alone.store(true, Ordering::Relaxed);
    }

    /// Notes that a batch of deletions is done: the last of a round, unless it `is_unfinished`.
    pub(crate) fn note_batch(&self, is_unfinished: bool) {
        if !is_unfinished {
            self.is_left_alone.store(false, Ordering::Relaxed);
        }
    }
}
