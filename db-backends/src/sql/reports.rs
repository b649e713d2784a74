//! The reports of written keys: the statements that make them, and who uses them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sql::statements::{Statements, Syntax};
use crate::sql::table::TableName;

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
    /// Returns `None` if the database reports nothing.
    pub(crate) fn new(syntax: &Syntax, table: &TableName) -> Option<Self> {
        let tag = format!("{:016x}", fastrand::u64(..));
        let statements = Statements::reporting(syntax, table, &tag)?;
        Some(Self { statements, tag, is_in_use: Arc::default() })
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
