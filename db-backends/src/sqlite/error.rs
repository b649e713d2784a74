//! The meaning of SQLite's errors.

use sqlx::error::DatabaseError;

use crate::sql::error::{DriverErrors, Meaning};

pub(super) const ERRORS: DriverErrors =
    DriverErrors { name: "SQLite", meaning, may_be_shown, advice: "check the options of the SQLite URL" };

/// Reads the result code, as in <https://sqlite.org/rescode.html>. The lowest byte is the primary one.
fn meaning(error: &dyn DatabaseError) -> Meaning {
    if error.is_unique_violation() {
        return Meaning::Duplicate;
    }
    match code(error) & 0xff {
        // BUSY, LOCKED.
        5 | 6 => Meaning::Busy,
        // IOERR: whether a commit reached the disk is not known.
        10 => Meaning::Unknown,
        // CANTOPEN.
        14 => Meaning::Unavailable,
        // ERROR has no code of its own for this.
        1 if error.message().starts_with("no such table: ") => Meaning::NoTable,
        _ => Meaning::Refused,
    }
}

/// SQLite's messages name tables and columns, but quote no values. The message of an application's trigger
/// (CONSTRAINT_TRIGGER) may.
fn may_be_shown(error: &dyn DatabaseError) -> bool {
    code(error) != 1811
}

fn code(error: &dyn DatabaseError) -> u32 {
    error.code().and_then(|code| code.parse().ok()).unwrap_or(1)
}
