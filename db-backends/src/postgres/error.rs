//! The meaning of Postgres' errors.

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::sql::error::{DriverErrors, Meaning};

pub(super) const ERRORS: DriverErrors = DriverErrors {
    name: "Postgres",
    meaning,
    may_be_shown,
    advice: "TLS to Postgres needs the feature postgres-tls of db-backends; with it, check the certificates that the URL \
             names",
};

/// Reads the SQLSTATE, as in <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn meaning(error: &dyn DatabaseError) -> Meaning {
    if error.is_unique_violation() {
        return Meaning::Duplicate;
    }
    let code = error.code().unwrap_or_default();
    match &*code {
        "42P01" => Meaning::NoTable,
        // Serialization failure, deadlock.
        "40001" | "40P01" => Meaning::Undone,
        // Lock timeout, statement timeout.
        "55P03" | "57014" => Meaning::Busy,
        // Read-only transaction, as all of them are on a replica.
        "25006" => Meaning::NotPrimary,
        // Too many connections; cannot connect now.
        "53300" | "57P03" => Meaning::Unavailable,
        _ => match code.get(..2) {
            // Not authorized; no such database.
            Some("28" | "3D") => Meaning::Unavailable,
            // Connections, transactions, operators, system, internal. A server that is shut down may report
            // it between a commit and its answer.
            Some("08" | "40" | "57" | "58" | "XX") => Meaning::Unknown,
            _ => Meaning::Refused,
        },
    }
}

/// Messages about connections, cursors, prepared statements, transactions, authorization, databases, privileges and
/// names, resources, limits, states and operators quote no values. Those about constraints name columns and
/// constraints; the values are in the details, which are not shown. Those about data may quote values, and so may
/// the messages of triggers, under any code.
fn may_be_shown(error: &dyn DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    let is_known = matches!(
        code.get(..2),
        Some(
            "08" | "0A"
                | "23"
                | "24"
                | "25"
                | "26"
                | "28"
                | "2B"
                | "2D"
                | "34"
                | "3B"
                | "3D"
                | "3F"
                | "40"
                | "42"
                | "44"
                | "53"
                | "54"
                | "55"
                | "57"
                | "58"
        )
    );
    // A value that is too long for its column.
    (is_known || code == "22001") && !is_raised_by_function(error)
}

/// Returns `true` if a function in a procedural language raised the error, as that of a trigger.
fn is_raised_by_function(error: &dyn DatabaseError) -> bool {
    let file = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::file);
    matches!(file, Some("pl_exec.c" | "plpy_elog.c" | "plpy_plpymodule.c" | "plperl.c" | "pltcl.c"))
}
