//! The settings of a Postgres server, database and role that are wrong, or may be.

use sqlx::{Executor as _, PgConnection, Row as _, raw_sql};

use crate::Finding;
use crate::sql::connections::Usage;
use crate::sql::session_check::Report;

/// Settings and limits as text, by name. What is set for the role, or for the database, is hidden by the settings
/// of the session, so it is read where it is kept.
const SETTINGS: &str = "SELECT name, setting AS value FROM pg_settings WHERE name IN
    ('synchronous_commit', 'max_connections', 'superuser_reserved_connections', 'reserved_connections')
    UNION ALL SELECT 'limit of the role', rolconnlimit::text FROM pg_roles WHERE rolname = current_user
    UNION ALL SELECT 'limit of the database', datconnlimit::text FROM pg_database WHERE datname = current_database()
    UNION ALL SELECT 'used of the role', count(*)::text FROM pg_stat_activity
    WHERE usesysid = (SELECT oid FROM pg_roles WHERE rolname = current_user)
    UNION ALL SELECT 'used of the database', numbackends::text FROM pg_stat_database WHERE datname = current_database()
    UNION ALL SELECT 'used', sum(numbackends)::text FROM pg_stat_database
    UNION ALL SELECT 'role: ' || split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)
    FROM pg_db_role_setting, unnest(setconfig) setting
    WHERE setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))";

pub(super) async fn examine(connection: &mut PgConnection, usage: Usage) -> sqlx::Result<Vec<Finding>> {
    let mut report = Report::default();
    // Prepares nothing, because a pooler may stand between.
    for row in connection.fetch_all(raw_sql(SETTINGS)).await? {
        report.add(row.try_get("name")?, row.try_get("value")?);
    }
    Ok(findings(&report, usage))
}

fn findings(report: &Report, usage: Usage) -> Vec<Finding> {
    let mut findings = Vec::new();
    if report.get("synchronous_commit") == "off" {
        findings.push(Finding::warning(
            "synchronous_commit is off: a crash of the server may lose writes that were acknowledged, so a logout may \
             be undone; set it to on, for the role if not for the server",
        ));
    }
    let isolation = report.get("role: default_transaction_isolation");
    if !matches!(isolation, "" | "read committed") {
        findings.push(Finding::note(format!(
            "default_transaction_isolation is {isolation} for this role or database; sessions are read and written \
             under read committed all the same"
        )));
    }
    let number = |name| report.get(name).parse::<i64>().unwrap_or_default();
    let reserved = number("superuser_reserved_connections") + number("reserved_connections");
    findings.extend(usage.beyond(
        number("max_connections") - reserved,
        "max_connections, less what is reserved,",
        number("used"),
    ));
    findings.extend(usage.beyond(
        number("limit of the role"),
        "the role's CONNECTION LIMIT",
        number("used of the role"),
    ));
    findings.extend(usage.beyond(
        number("limit of the database"),
        "the database's CONNECTION LIMIT",
        number("used of the database"),
    ));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FindingSeverity::{Note, Warning};

    fn severities(settings: &[(&str, &str)]) -> Vec<crate::FindingSeverity> {
        severities_with(1, settings)
    }

    /// `open` of the connections that are in use are this store's.
    fn severities_with(open: u32, settings: &[(&str, &str)]) -> Vec<crate::FindingSeverity> {
        let mut report = Report::default();
        let sound = [("synchronous_commit", "on"), ("max_connections", "100"), ("limit of the role", "-1")];
        for (name, value) in sound.iter().chain([&("limit of the database", "-1")]).chain(settings) {
            report.add(name, Some(value));
        }
        let usage = Usage { is_application: false, max_connections: 10, open };
        findings(&report, usage).into_iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn settings_that_weaken_the_contract_are_found() {
        assert_eq!(severities(&[]), []);
        assert_eq!(severities(&[("limit of the role", "10")]), []);
        assert_eq!(severities(&[("limit of the role", "9")]), [Warning]);
        assert_eq!(severities(&[("limit of the role", "20"), ("used of the role", "11")]), []);
        assert_eq!(severities(&[("limit of the role", "20"), ("used of the role", "12")]), [Warning]);
        assert_eq!(severities(&[("used", "92")]), [Warning]);
        assert_eq!(severities_with(10, &[("used", "100")]), []);
        assert_eq!(severities_with(10, &[("used", "101")]), [Warning]);
        assert_eq!(severities(&[("limit of the database", "0")]), [Warning]);
        assert_eq!(
            severities(&[("max_connections", "12"), ("superuser_reserved_connections", "3")]),
            [Warning]
        );
        assert_eq!(severities(&[("synchronous_commit", "off")]), [Warning]);
        assert_eq!(severities(&[("role: default_transaction_isolation", "serializable")]), [Note]);
    }
}
