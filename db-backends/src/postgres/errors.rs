//! The meaning of Postgres' errors.

use sqlx::error::DatabaseError;

use crate::sql::errors::{DriverErrors, Meaning};

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
        // Serialization failure, deadlock, lock timeout, statement timeout.
        "40001" | "40P01" | "55P03" | "57014" => Meaning::Busy,
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

/// Messages about connections, transactions, authorization, databases, privileges and names, resources,
/// limits, states and operators quote no values. Those about data and constraints may, and so may the
/// messages of triggers.
fn may_be_shown(error: &dyn DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    matches!(code.get(..2), Some("08" | "25" | "28" | "3D" | "3F" | "40" | "42" | "53" | "54" | "55" | "57"))
}
