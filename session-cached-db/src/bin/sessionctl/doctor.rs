//! Examines the database and the cache, and reports likely causes of trouble.

use std::time::Duration;

use serde::Serialize;
use session_cached_db::cache_backends::ChannelInspection;
use session_cached_db::db_backends::FindingSeverity;
use session_cached_db::session_core::{CacheError, PersistenceError, Timestamp};
use session_cached_db::{
    DEFAULT_CLOCK_SLACK, DEFAULT_WRITE_TIMEOUT, SHORTEST_FRESHNESS_BOUND, cache_backends, db_backends,
};

use crate::args::Connection;
use crate::clock::{Skew, TOO_FAR, now};
use crate::connect::{Access, Database, any_database, cache, inspect_channel, is_told_by_database, try_all};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Style, Table, bytes, count, left, sessions, span};

/// The age of an expired session that shows that no reaper runs. A reaper makes a round every ten minutes.
const REAPER_IS_LATE: Duration = Duration::from_secs(60 * 60);

#[derive(Default, Serialize)]
struct Report {
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    severity: Severity,
    about: &'static str,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    Ok,
    Note,
    Warning,
    Problem,
}

use Severity::{Note, Ok as Fine, Problem, Warning};

impl From<FindingSeverity> for Severity {
    fn from(severity: FindingSeverity) -> Self {
        match severity {
            FindingSeverity::Note => Self::Note,
            FindingSeverity::Warning => Self::Warning,
            _ => Self::Problem,
        }
    }
}

impl Report {
    fn say(&mut self, severity: Severity, about: &'static str, text: impl Into<String>) {
        self.findings.push(Finding { severity, about, text: text.into() });
    }
}

pub(crate) async fn run(at: &Connection, output: &Output) -> Result<Exit, Failure> {
    let mut report = Report::default();
    // A wrong URL is a mistake in the command line, not a finding about the server.
    let database = match any_database(at, Access::Read).await {
        Ok(database) => {
            examine_database(&database, &mut report).await;
            Some(database)
        }
        Err(failure @ Failure::Usage(_)) => return Err(failure),
        Err(failure) => {
            report.say(Problem, "database", failure.to_string());
            None
        }
    };
    match at.cache_url.as_ref().map(|url| url.0.as_str()) {
        Some(url) if url.starts_with("moka:") => report.say(Note, "cache", OUT_OF_REACH),
        _ => match cache(at)? {
            Some(cache) if is_told_by_database(&*cache) => {
                report.say(Note, "cache", OUT_OF_REACH);
                if let Some(database) = database {
                    examine_channel(&inspect_channel(&*cache, &database).await, &mut report);
                }
            }
            Some(cache) => examine_cache(&*cache, &mut report).await,
            None => report.say(Note, "cache", "none was named, so none was examined"),
        },
    }
    output.show(&report, |report| text(report, output))?;
    Ok(match report.findings.iter().map(|finding| finding.severity).max() {
        Some(Problem) => Exit::Problems,
        Some(Warning) => Exit::Warnings,
        _ => Exit::Done,
    })
}

async fn examine_database(database: &Database, report: &mut Report) {
    const ABOUT: &str = "database";
    let asked_at = now();
    let inspection = match database.inspect().await {
        Ok(inspection) => inspection,
        Err(error) => return report.say(Problem, ABOUT, error.to_string()),
    };
    let answered_at = now();
    // MariaDB speaks MySQL's language.
    let is_mariadb = inspection.version.contains("MariaDB");
    let name = if is_mariadb { "MariaDB" } else { database.properties_dyn().name };
    report.say(
        Fine,
        ABOUT,
        format!("{name} {} answers in {}", inspection.version, span(answered_at.since(asked_at))),
    );
    if inspection.is_read_only {
        report.say(
            Problem,
            ABOUT,
            "it takes no writes; is it a replica? sessions are read and written at the primary",
        );
    }
    examine_clock(inspection.clock, asked_at, answered_at, ABOUT, report);
    for finding in &inspection.findings {
        report.say(finding.severity.into(), "settings", finding.text.as_str());
    }
    examine_table(database, &inspection, report).await;
}

async fn examine_table(database: &Database, inspection: &db_backends::Inspection, report: &mut Report) {
    const ABOUT: &str = "table";
    if let Err(error) = database.check_schema_dyn().await {
        // A setting with which no store is built was reported already.
        if matches!(&error, PersistenceError::Config(text) if is_among(text, inspection)) {
            return;
        }
        return report.say(Problem, ABOUT, Failure::from(error).to_string());
    }
    report.say(Fine, ABOUT, "it is as this version needs it");
    for finding in &inspection.condition {
        report.say(finding.severity.into(), ABOUT, finding.text.as_str());
    }
    for column in &inspection.missing_indexes {
        report.say(
            Warning,
            ABOUT,
            format!(
                "no index begins with its column {column}, so statements read the whole table; `sessionctl migrate \
                 --sql` shows the indexes that there should be"
            ),
        );
    }
    match database.count_expired(now() - REAPER_IS_LATE).await {
        Ok(0) => report.say(Fine, ABOUT, "no session in it expired long ago"),
        Ok(late) => report.say(
            Warning,
            ABOUT,
            format!(
                "{} expired more than an hour ago and {} still there; does a reaper run, or `sessionctl clear-expired`?",
                sessions(late),
                if late == 1 { "is" } else { "are" }
            ),
        ),
        Err(error) => report.say(Warning, ABOUT, format!("expired sessions could not be counted: {error}")),
    }
}

fn is_among(text: &str, inspection: &db_backends::Inspection) -> bool {
    inspection.findings.iter().any(|finding| finding.text == text)
}

const OUT_OF_REACH: &str = "moka is in the application's own process, out of reach from here";

async fn examine_cache(cache: &dyn cache_backends::Inspect, report: &mut Report) {
    const ABOUT: &str = "cache";
    let channel = cache.inspect_channel(None).await;
    let asked_at = now();
    let (inspected, tried) = (cache.inspect().await, try_all(cache).await);
    let answered_at = now();
    match &inspected {
        Ok(servers) => {
            for server in servers {
                examine_server(server, asked_at, answered_at, report);
                if channel.is_some() || server.tracked_keys.is_some_and(|count| count > 0) {
                    examine_tracking(server, report);
                }
            }
        }
        // The same error as below, or only the report is forbidden.
        Err(_) if tried.is_err() => {}
        Err(error) => {
            report.say(Note, ABOUT, format!("it can be used, but does not report on itself: {error}"));
        }
    }
    if let Err(error) = tried {
        report.say(Problem, ABOUT, error.to_string());
    } else if let Some(channel) = channel {
        examine_channel(&channel, report);
    }
}

/// Reports whether nodes with near caches are told of changes, and soon enough.
fn examine_channel(channel: &Result<ChannelInspection, CacheError>, report: &mut Report) {
    const ABOUT: &str = "near cache";
    let channel = match channel {
        Ok(channel) => channel,
        Err(error) => {
            let text = format!("changes are not reported, so loads go around the memory of nodes: {error}");
            return report.say(Warning, ABOUT, text);
        }
    };
    let bound = channel.freshness_bound;
    let text = format!(
        "changes are reported; the slowest answer took {}, and the freshness bound is {}",
        span(channel.slowest_answer),
        span(bound)
    );
    if !(SHORTEST_FRESHNESS_BOUND..DEFAULT_WRITE_TIMEOUT).contains(&bound) {
        report.say(
            Warning,
            ABOUT,
            format!(
                "{text}; stores refuse a bound below {}, and one that is not below their write_timeout ({} by default)",
                span(SHORTEST_FRESHNESS_BOUND),
                span(DEFAULT_WRITE_TIMEOUT)
            ),
        );
    } else if channel.slowest_answer > bound / 2 {
        // Pings are a quarter of the bound apart, so the basis is older than half of the bound anyway.
        report.say(Warning, ABOUT, format!("{text}; memory will often not answer: choose a longer bound"));
    } else {
        report.say(Fine, ABOUT, text);
    }
}

/// Reports how full the table is in which a server remembers what near caches have in memory.
fn examine_tracking(server: &cache_backends::Inspection, report: &mut Report) {
    const ABOUT: &str = "near cache";
    let Some(tracked) = server.tracked_keys else { return };
    let place = server.address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
    match server.max_tracked_keys {
        Some(max) if tracked >= max - max / 10 => report.say(
            Warning,
            ABOUT,
            format!(
                "the server{place} remembers {} keys for near caches, and has room for {}; when it is full, it reports keys that \
                 have not changed: raise tracking-table-max-keys",
                count(tracked),
                count(max)
            ),
        ),
        Some(max) => report.say(
            Fine,
            ABOUT,
            format!("the server{place} remembers {} of at most {} keys for near caches", count(tracked), count(max)),
        ),
        None => report.say(
            Fine,
            ABOUT,
            format!("the server{place} remembers {} keys for near caches", count(tracked)),
        ),
    }
}

fn examine_server(
    server: &cache_backends::Inspection,
    asked_at: Timestamp,
    answered_at: Timestamp,
    report: &mut Report,
) {
    const ABOUT: &str = "cache";
    let place = server.address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
    let version = server.version.as_deref().unwrap_or("a server of unknown version");
    report.say(Fine, ABOUT, format!("{version}{place} answers in {}", span(answered_at.since(asked_at))));
    if let Some(needed) = server.needed_version {
        report.say(Problem, ABOUT, format!("{version}{place} is too old; the cache needs {needed}"));
    }
    if server.is_replica {
        report.say(
            Warning,
            ABOUT,
            format!("the server{place} is a replica; the application must use the master"),
        );
    }
    examine_clock(server.clock, asked_at, answered_at, ABOUT, report);
    examine_eviction(server, &place, report);
}

fn examine_eviction(server: &cache_backends::Inspection, place: &str, report: &mut Report) {
    const ABOUT: &str = "eviction";
    let policy = server.eviction.as_deref();
    let memory = match (server.used_bytes, server.max_bytes) {
        (Some(used), Some(max)) => format!("{} of {} used", bytes(used), bytes(max)),
        (Some(used), None) => format!("{} used, without limit", bytes(used)),
        _ => "its memory is unknown".to_owned(),
    };
    let evicted = server.evicted.map(|evicted| format!(", {} evicted", count(evicted))).unwrap_or_default();
    match policy {
        None => report.say(Note, ABOUT, format!("the server{place} does not report how it makes room; {memory}{evicted}")),
        Some(policy) if server.evicts_fences_first => report.say(
            Problem,
            ABOUT,
            format!(
                "{policy}{place} evicts fences first, and fences keep outdated sessions out of the cache; choose another \
                 policy, such as allkeys-lru; {memory}{evicted}"
            ),
        ),
        Some(policy @ ("noeviction" | "none")) if server.max_bytes.is_some() => report.say(
            Note,
            ABOUT,
            format!("{policy}{place}: when it is full, sessions come from the database; {memory}{evicted}"),
        ),
        Some(policy) => report.say(Fine, ABOUT, format!("{policy}{place}; {memory}{evicted}")),
    }
}

/// Reports the skew of `clock`, which was read between two instants of this machine's clock.
fn examine_clock(
    clock: Option<Timestamp>,
    earliest: Timestamp,
    latest: Timestamp,
    about: &'static str,
    report: &mut Report,
) {
    let Some(clock) = clock else { return };
    let skew = Skew::new(clock, earliest, latest);
    // Stores read their own nodes' clocks. A skew here shows that some machine's clock is wrong, not that a
    // store is affected yet.
    let severity = match skew.by {
        by if by >= TOO_FAR => Problem,
        by if by > DEFAULT_CLOCK_SLACK => Warning,
        _ => return,
    };
    report.say(
        severity,
        about,
        format!(
            "its clock is {}; the nodes' clocks must not differ by more than the stores' clock_slack ({} by default)",
            skew.text(),
            span(DEFAULT_CLOCK_SLACK)
        ),
    );
}

fn text(report: &Report, output: &Output) -> String {
    let mut table = Table::default();
    for finding in &report.findings {
        let word = match finding.severity {
            Fine => "ok",
            Note => "note",
            Warning => "warning",
            Problem => "PROBLEM",
        };
        table.row([left(word), left(finding.about), left(finding.text.as_str())]);
    }
    let lines = table.to_string();
    let styled = lines.lines().zip(&report.findings).map(|(line, finding)| {
        let style = match finding.severity {
            Fine => Style::Green,
            Note => Style::Blue,
            Warning => Style::Yellow,
            Problem => Style::Red,
        };
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        format!("{} {rest}\n", output.styled(style, word))
    });
    styled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn severity_of(clock: i64) -> Option<Severity> {
        let mut report = Report::default();
        let at = Timestamp::from_secs;
        examine_clock(Some(at(clock)), at(1_000), at(1_001), "cache", &mut report);
        report.findings.first().map(|finding| finding.severity)
    }

    #[test]
    fn clock_skew_within_the_slack_is_not_reported() {
        assert_eq!([998, 999, 1_000, 1_001, 1_003].map(severity_of), [None; 5]);
        assert_eq!([980, 990, 1_004, 1_030].map(severity_of), [Some(Warning); 4]);
        assert_eq!([0, 900, 1_031, 9_999].map(severity_of), [Some(Problem); 4]);
    }

    #[test]
    fn full_tracking_table_is_a_warning() {
        let severity_of = |tracked_keys, max_tracked_keys| {
            let mut server = cache_backends::Inspection::default();
            (server.tracked_keys, server.max_tracked_keys) = (tracked_keys, max_tracked_keys);
            let mut report = Report::default();
            examine_tracking(&server, &mut report);
            report.findings.first().map(|finding| finding.severity)
        };
        assert_eq!(severity_of(None, None), None);
        assert_eq!(severity_of(Some(5), None), Some(Fine));
        assert_eq!(severity_of(Some(899_999), Some(1_000_000)), Some(Fine));
        assert_eq!(severity_of(Some(900_000), Some(1_000_000)), Some(Warning));
    }

    #[test]
    fn eviction_policy_is_a_problem_only_if_it_evicts_fences_first() {
        let severity_of = |policy: Option<&str>, evicts_fences_first, max_bytes| {
            let mut server = cache_backends::Inspection::default();
            server.eviction = policy.map(str::to_owned);
            server.evicts_fences_first = evicts_fences_first;
            server.max_bytes = max_bytes;
            let mut report = Report::default();
            examine_eviction(&server, "", &mut report);
            report.findings.first().map(|finding| finding.severity)
        };
        assert_eq!(severity_of(Some("volatile-ttl"), true, Some(1)), Some(Problem));
        assert_eq!(severity_of(Some("allkeys-lru"), false, Some(1)), Some(Fine));
        assert_eq!(severity_of(Some("noeviction"), false, Some(1)), Some(Note));
        assert_eq!(severity_of(Some("noeviction"), false, None), Some(Fine));
        assert_eq!(severity_of(None, false, None), Some(Note));
    }
}
