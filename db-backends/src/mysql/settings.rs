//! The settings of a MySQL or MariaDB server, and of a session there, that are wrong, or may be.

use sqlx::{MySqlConnection, SqlStr};

use super::connect::reported;
use crate::Finding;
use crate::sql::connections::Usage;
use crate::sql::session_check::{Report, Unfit};

const SETTINGS: &str = "SHOW SESSION VARIABLES WHERE Variable_name IN ('autocommit', 'binlog_format', \
    'innodb_flush_log_at_trx_commit', 'log_bin', 'max_connect_errors', 'max_connections', 'max_user_connections', \
    'sql_mode', 'wsrep_on', 'wsrep_sync_wait'); SHOW GLOBAL STATUS WHERE Variable_name = 'Threads_connected'";

/// The number of broken attempts to connect in a row that a server should bear.
const ENOUGH_ERRORS: i64 = 1_000;

pub(super) async fn examine(connection: &mut MySqlConnection, usage: Usage) -> sqlx::Result<Vec<Finding>> {
    match reported(connection, SqlStr::from_static(SETTINGS)).await {
        Ok(report) => Ok(findings(&report, usage)),
        Err(Unfit::Driver(error)) => Err(error),
        // Asking answers nothing else.
        Err(_) => Ok(Vec::new()),
    }
}

fn findings(report: &Report, usage: Usage) -> Vec<Finding> {
    let mut findings = if usage.is_application { session(report) } else { Vec::new() };
    if report.is_on("log_bin") && report.get("binlog_format").eq_ignore_ascii_case("statement") {
        findings.push(Finding::problem(
            "binlog_format is STATEMENT, with which the server refuses every write under READ COMMITTED; set \
             binlog_format = ROW, or MIXED",
        ));
    }
    let number = |name| report.get(name).parse::<i64>().unwrap_or_default();
    match number("innodb_flush_log_at_trx_commit") {
        0 => findings.push(Finding::warning(
            "innodb_flush_log_at_trx_commit is 0: a crash of the server may lose writes of the last second that were \
             acknowledged, so a logout may be undone; set it to 1",
        )),
        1 => {}
        _ => findings.push(Finding::note(
            "innodb_flush_log_at_trx_commit is not 1: a crash of the machine may lose writes that were acknowledged, \
             so a logout may be undone",
        )),
    }
    let errors = number("max_connect_errors");
    if errors < ENOUGH_ERRORS {
        findings.push(Finding::note(format!(
            "max_connect_errors is {errors}: after so many attempts to connect that broke off in a row, as in trouble \
             with the network, the server blocks this host (error 1129) until FLUSH HOSTS; set it to 1000000"
        )));
    }
    for (name, used) in [("max_connections", number("threads_connected")), ("max_user_connections", 1)] {
        // Zero is no limit.
        let limit = Some(number(name)).filter(|limit| *limit > 0).unwrap_or(-1);
        findings.extend(usage.beyond(limit, name, used));
    }
    findings
}

/// Looks at the session of an application's pool. Our own sets all of this itself.
fn session(report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !report.is_on("autocommit") {
        findings.push(Finding::problem(
            "the pool's connections have autocommit = 0, with which a load sees a session as it was long ago; leave \
             it on for the pool",
        ));
    }
    let mode = report.get("sql_mode");
    if !mode.contains("STRICT_TRANS_TABLES") && !mode.contains("STRICT_ALL_TABLES") {
        findings.push(Finding::problem(
            "the sql_mode of the pool's connections is not strict, with which values are cut off in silence; add \
             STRICT_TRANS_TABLES to it, on the server or in the pool's after_connect",
        ));
    }
    let sync_wait = report.get("wsrep_sync_wait").parse::<u32>().unwrap_or_default();
    if report.is_on("wsrep_on") && sync_wait & 3 != 3 {
        findings.push(Finding::problem(format!(
            "the server is a node of a Galera cluster, and the pool's connections have wsrep_sync_wait = {sync_wait}, \
             with which a node does not see what another has committed; run SET SESSION wsrep_sync_wait = 3 in the \
             pool's after_connect, or set it on the server"
        )));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FindingSeverity::{self, Note, Problem, Warning};

    fn severities(is_application: bool, settings: &[(&str, &str)]) -> Vec<FindingSeverity> {
        let mut report = Report::default();
        let sound = [
            ("autocommit", "ON"),
            ("binlog_format", "ROW"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("log_bin", "ON"),
            ("max_connect_errors", "1000000"),
            ("max_connections", "151"),
            ("max_user_connections", "0"),
            ("sql_mode", "STRICT_TRANS_TABLES"),
        ];
        for (name, value) in sound.iter().chain(settings) {
            report.add(name, Some(value));
        }
        let usage = Usage { is_application, max_connections: 10, open: 1 };
        findings(&report, usage).into_iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn settings_of_a_server_that_weaken_the_contract_are_found() {
        assert_eq!(severities(false, &[]), []);
        assert_eq!(severities(false, &[("binlog_format", "STATEMENT")]), [Problem]);
        assert_eq!(severities(false, &[("binlog_format", "STATEMENT"), ("log_bin", "OFF")]), []);
        assert_eq!(severities(false, &[("max_connect_errors", "100")]), [Note]);
        assert_eq!(severities(false, &[("max_connections", "9")]), [Warning]);
        assert_eq!(severities(false, &[("max_user_connections", "9")]), [Warning]);
        assert_eq!(severities(false, &[("threads_connected", "142")]), []);
        assert_eq!(severities(false, &[("threads_connected", "143")]), [Warning]);
        assert_eq!(severities(false, &[("innodb_flush_log_at_trx_commit", "0")]), [Warning]);
        assert_eq!(severities(false, &[("innodb_flush_log_at_trx_commit", "2")]), [Note]);
    }

    #[test]
    fn settings_of_a_pools_session_that_break_the_contract_are_found() {
        for (setting, found) in [
            (("autocommit", "OFF"), true),
            (("sql_mode", "PIPES_AS_CONCAT"), true),
            (("sql_mode", "STRICT_ALL_TABLES"), false),
        ] {
            assert_eq!(severities(true, &[setting]), vec![Problem; usize::from(found)], "{setting:?}");
            assert_eq!(severities(false, &[setting]), [], "our own sessions set it");
        }
        for (sync_wait, found) in [("0", 1), ("1", 1), ("2", 1), ("3", 0), ("7", 0)] {
            let settings = [("wsrep_on", "ON"), ("wsrep_sync_wait", sync_wait)];
            assert_eq!(severities(true, &settings), vec![Problem; found], "{sync_wait}");
        }
        assert_eq!(severities(true, &[("wsrep_on", "OFF"), ("wsrep_sync_wait", "0")]), []);
    }
}
