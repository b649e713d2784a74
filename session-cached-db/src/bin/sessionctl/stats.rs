//! Counts sessions, subjects and bytes, by reading the whole table.

use std::collections::HashMap;

use serde::Serialize;
use session_cached_db::session_core::{Record, Row, Subject, Timestamp};

use crate::args::{Connection, Stats};
use crate::clock::now;
use crate::connect::{Access, database};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Style, Table, bytes, count, harmless, left, right};
use crate::progress::Progress;

#[derive(Default, Serialize)]
struct Report {
    sessions: u64,
    expired: u64,
    without_subject: u64,
    subjects: u64,
    payload_bytes: u64,
    largest_payload_bytes: u64,
    /// The subjects with the most sessions.
    top_subjects: Vec<Share>,
    /// The stored keys of rows that cannot be read.
    unreadable: Vec<String>,
}

#[derive(Serialize)]
struct Share {
    subject: String,
    sessions: u64,
}

pub(crate) async fn run(at: &Connection, command: &Stats, output: &Output) -> Result<Exit, Failure> {
    let database = database(at, Access::Read).await?;
    let now = now();
    let mut report = Report::default();
    let mut subjects = HashMap::new();
    let mut progress = Progress::new("counting", None, command.pace);
    let mut after = None;
    loop {
        let page = database.scan_dyn(after.as_ref(), command.pace.batch).await?;
        for Row { key, contents, .. } in &page {
            match contents {
                Ok(record) => note(&mut report, &mut subjects, record, now),
                Err(_) => report.unreadable.push(key.as_str().to_owned()),
            }
        }
        let seen = page.len();
        after = page.last().map(|row| row.key);
        if u32::try_from(seen).is_ok_and(|seen| seen < command.pace.batch) {
            break;
        }
        progress.advance(seen.try_into().unwrap_or(u64::MAX), None).await;
    }
    drop(progress);
    report.subjects = subjects.len().try_into().unwrap_or(u64::MAX);
    report.top_subjects = top(subjects, command.top);
    output.show(&report, |report| text(report, output))?;
    Ok(if report.unreadable.is_empty() { Exit::Done } else { Exit::Found })
}

/// Adds a session to the report. An expired one counts only as expired, and with its bytes.
fn note(report: &mut Report, subjects: &mut HashMap<Subject, u64>, record: &Record, now: Timestamp) {
    let size = record.payload().len().try_into().unwrap_or(u64::MAX);
    report.payload_bytes = report.payload_bytes.saturating_add(size);
    report.largest_payload_bytes = report.largest_payload_bytes.max(size);
    if record.is_expired(now) {
        report.expired += 1;
        return;
    }
    report.sessions += 1;
    match record.subject() {
        Some(subject) => *subjects.entry(subject.clone()).or_default() += 1,
        None => report.without_subject += 1,
    }
}

fn top(subjects: HashMap<Subject, u64>, limit: usize) -> Vec<Share> {
    let mut shares: Vec<_> = subjects
        .into_iter()
        .map(|(subject, sessions)| Share { subject: subject.as_str().to_owned(), sessions })
        .collect();
    shares.sort_by(|a, b| b.sessions.cmp(&a.sessions).then_with(|| a.subject.cmp(&b.subject)));
    shares.truncate(limit);
    shares
}

fn text(report: &Report, output: &Output) -> String {
    let mut table = Table::default();
    let rows = report.sessions + report.expired;
    let mean = report.payload_bytes.checked_div(rows).unwrap_or_default();
    for (name, value) in [
        ("sessions", count(report.sessions)),
        ("expired, not yet deleted", count(report.expired)),
        ("without a subject", count(report.without_subject)),
        ("subjects", count(report.subjects)),
        ("bytes of payload, all", bytes(report.payload_bytes)),
        ("bytes of payload, mean", bytes(mean)),
        ("bytes of payload, largest", bytes(report.largest_payload_bytes)),
    ] {
        table.row([left(name), right(value)]);
    }
    let mut text = table.to_string();
    if !report.top_subjects.is_empty() {
        let mut table = Table::default();
        for share in &report.top_subjects {
            table.row([right(count(share.sessions)), left(harmless(&share.subject))]);
        }
        text.push_str(&format!(
            "\n{}\n{table}",
            output.styled(Style::Bold, "Subjects with the most sessions")
        ));
    }
    text.push_str(&output.unreadable(&report.unreadable));
    text
}
