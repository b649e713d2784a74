//! The meaning of the errors of MySQL and MariaDB.

use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;

use crate::sql::error::{DriverErrors, Meaning};

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
        // Changed since the transaction's snapshot; deadlock, or another node of a cluster came first.
        1020 | 1213 | 3101 => Meaning::Undone,
        // Lock wait timeout; killed; MariaDB's max_statement_time.
        1205 | 1317 | 1969 => Meaning::Busy,
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

// Long, because rustfmt gives most of the numbers a line of their own.
/// Messages about connections, users, databases, privileges, names, tables, columns, constraints, locks, limits, logs,
/// clusters and read-only servers quote no values, and a syntax error only a statement, which has none. Many others
/// do.
fn may_be_shown(error: &dyn DatabaseError) -> bool {
    matches!(
        number(error),
        1005
            | 1006
            | 1007
            | 1008
            | 1020
            | 1021
            | 1030
            | 1036
            | 1037
            | 1038
            | 1040
            | 1041
            | 1044..=1051
            | 1053
            | 1054
            | 1064
            | 1071
            | 1114
            | 1118
            | 1129
            | 1130
            | 1141
            | 1142
            | 1143
            | 1146
            | 1153
            | 1158..=1161
            | 1180
            | 1184
            | 1193
            | 1203
            | 1205
            | 1206
            | 1213
            | 1226
            | 1227
            | 1235
            | 1243
            | 1290
            | 1298
            | 1317
            | 1364
            | 1370
            | 1406
            | 1412
            | 1451
            | 1452
            | 1461
            | 1568
            | 1615
            | 1637
            | 1665
            | 1698
            | 1792
            | 1820
            | 1836
            | 1862
            | 1874
            | 1927
            | 1969
            | 3024
            | 3101
            | 3118
            | 3159
            | 3169
            | 3819
            | 4025
            | 4031
            | 4151
    )
}

fn number(error: &dyn DatabaseError) -> u16 {
    error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number)
}
