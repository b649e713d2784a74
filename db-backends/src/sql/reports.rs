//! The reports of written keys: the statements that make them, and who uses them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sql::statements::{Statements, Syntax};
use crate::sql::table::TableName;

pub(crate) const NO_REPORTS: &str = "it cannot report changes to a cache in memory, as Postgres can; use a cache that the \
    processes share, sole_process() if there is only one, or memory alone within max_cache_age";

/// A handle ignores reports with its own tag, so no other handle may have the same one.
const NO_TAG: &str = "the operating system returns no random number, which is needed to distinguish this handle's reports from \
    those of others";

/// The reports of one handle's writes.
pub(crate) struct Reports {
    /// The statements that report what they write.
    pub(crate) statements: Statements,
    /// The tag in each report by this handle, which no other handle has.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "only Postgres reports"))]
    pub(crate) tag: String,
    is_in_use: Arc<AtomicBool>,
}

impl Reports {
    /// Makes the statements. Fails with the reason if nothing can be reported: the database has no reports, or the system
    /// no random number for the tag.
    pub(crate) fn new(syntax: &Syntax, table: &TableName) -> Result<Self, &'static str> {
        let tag = getrandom::u64().map_err(|_| NO_TAG)?;
        let tag = format!("{tag:016x}");
        let statements = Statements::reporting(syntax, table, &tag).ok_or(NO_REPORTS)?;
        Ok(Self { statements, tag, is_in_use: Arc::default() })
    }

    /// Returns the right to listen besides this handle, unless another store has it.
    pub(crate) fn take(&self) -> Option<InUse> {
        let was_in_use = self.is_in_use.swap(true, Ordering::AcqRel);
        (!was_in_use).then(|| InUse(Arc::clone(&self.is_in_use)))
    }
}

/// The right to listen besides a handle, until this is dropped.
#[derive(Debug)]
pub(crate) struct InUse(Arc<AtomicBool>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
