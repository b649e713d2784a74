//! The meaning of the errors of MySQL and MariaDB.

use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;

use crate::sql::errors::{DriverErrors, Meaning};

pub(super) const ERRORS: DriverErrors = DriverErrors {
    name: "MySQL",
    meaning,
    may_be_shown,
    advice: "TLS to MySQL, and a password for its caching_sha2_password, need the feature mysql-tls of db-backends (on a \
             network that is trusted, mysql-rsa does for the latter); with it, check the certificates that the URL names",
};

/// Reads the number, as in <https://dev.mysql.com/doc/mysql-errors/en/server-error-reference.html> and
/// <https://mariadb.com/kb/en/mariadb-error-code-reference/>.
fn meaning(error: &dyn DatabaseError) -> Meaning {
    if error.is_unique_violation() {
        return Meaning::Duplicate;
    }
    match number(error) {
        // No such table.
        1146 => Meaning::NoTable,
        // Changed since the transaction's snapshot; lock wait timeout, deadlock; killed; MariaDB's
        // max_statement_time.
        1020 | 1205 | 1213 | 1317 | 1969 => Meaning::Busy,
        // Too many connections, host not allowed or blocked, access denied, no such database, too many of
        // this user's.
        1040 | 1044 | 1045 | 1049 | 1129 | 1130 | 1203 | 1226 | 1698 => Meaning::Unavailable,
        // A read-only server or transaction; Galera's node has no quorum, or is not ready.
        1047 | 1290 | 1792 | 1836 | 1874 => Meaning::NotPrimary,
        // Error during the commit; shutdown; killed; connection lost; disconnected because idle.
        1053 | 1152 | 1158..=1161 | 1180 | 1184 | 1927 | 3169 | 4031 => Meaning::Unknown,
        _ => Meaning::Refused,
    }
}

/// Messages about connections, users, databases, privileges, names, locks, limits and read-only servers quote
/// no values. Many others do.
fn may_be_shown(error: &dyn DatabaseError) -> bool {
    matches!(
        number(error),
        1020 | 1021
            | 1030
            | 1036
            | 1037
            | 1040
            | 1044..=1047
            | 1049
            | 1053
            | 1054
            | 1114
            | 1129
            | 1130
            | 1142
            | 1143
            | 1146
            | 1153
            | 1158..=1161
            | 1180
            | 1184
            | 1203
            | 1205
            | 1213
            | 1226
            | 1227
            | 1290
            | 1317
            | 1637
            | 1698
            | 1792
            | 1836
            | 1874
            | 1927
            | 1969
            | 3169
            | 4031
    )
}

fn number(error: &dyn DatabaseError) -> u16 {
    error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number)
}
