//! Lists the sessions of a subject.

use serde::Serialize;
use session_cached_db::core::{Record, StoredKey, Subject};

use crate::args::{Connection, List};
use crate::connect::{Access, database, now};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Table, bytes, instant, left, rfc3339, right, span};

/// A session, without what it holds.
#[derive(Serialize)]
pub(crate) struct Line {
    stored_key: String,
    created_at: Option<String>,
    last_seen_at: Option<String>,
    expires_at: Option<String>,
    payload_bytes: usize,
}

impl Line {
    pub(crate) fn new(key: &StoredKey, record: &Record) -> Self {
        Self {
            stored_key: key.as_str().to_owned(),
            created_at: rfc3339(record.created_at()),
            last_seen_at: rfc3339(record.last_seen_at()),
            expires_at: rfc3339(record.expires_at()),
            payload_bytes: record.payload().len(),
        }
    }
}

pub(crate) async fn run(at: &Connection, command: &List, output: &Output) -> Result<Exit, Failure> {
    let subject = Subject::parse(&command.subject).map_err(|error| Failure::Usage(error.to_string()))?;
    let database = database(at, Access::Read).await?;
    let now = now();
    let mut sessions = database.list_by_subject_dyn(&subject, now).await?;
    sessions.sort_by_key(|(_, record)| std::cmp::Reverse(record.last_seen_at()));
    let lines: Vec<_> = sessions.iter().map(|(key, record)| Line::new(key, record)).collect();
    output.show(&lines, |lines| {
        if lines.is_empty() {
            return "No sessions.".to_owned();
        }
        let mut table = Table::default();
        table.row(
            ["stored key", "created", "last seen", "expires"].map(left).into_iter().chain([right("payload")]),
        );
        for (line, (_, record)) in lines.iter().zip(&sessions) {
            table.row([
                left(line.stored_key.as_str()),
                left(instant(record.created_at())),
                left(format!("{} ago", span(now.since(record.last_seen_at())))),
                left(format!("in {}", span(record.expires_at().since(now)))),
                right(bytes(line.payload_bytes.try_into().unwrap_or(u64::MAX))),
            ]);
        }
        table.to_string()
    })?;
    Ok(Exit::Done)
}
