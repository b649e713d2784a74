//! Lists the sessions of a subject.

use serde::Serialize;
use session_cached_db::session_core::{SessionTimes, StoredKey, Subject, Timestamp};

use crate::args::{Connection, List};
use crate::clock::now;
use crate::connect::{Access, database, prefix};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Table, instant, left, rfc3339, span};

/// Maximum number of sessions that one statement lists.
const PAGE: u32 = 1_000;

/// A session without its values.
#[derive(Serialize)]
pub(crate) struct Line {
    stored_key: String,
    created_at: Option<String>,
    last_seen_at: Option<String>,
    expires_at: Option<String>,
}

impl Line {
    /// Returns the line of the session under `key`. `times` is `None` if its row cannot be read.
    pub(crate) fn new(key: &StoredKey, times: Option<SessionTimes>) -> Self {
        Self {
            stored_key: key.as_str().to_owned(),
            created_at: times.and_then(|times| rfc3339(times.created_at)),
            last_seen_at: times.and_then(|times| rfc3339(times.last_seen_at)),
            expires_at: times.and_then(|times| rfc3339(times.expires_at)),
        }
    }
}

pub(crate) async fn run(at: &Connection, command: &List, output: &Output) -> Result<Exit, Failure> {
    let subject = Subject::parse(&command.subject).map_err(|error| Failure::Usage(error.to_string()))?;
    let prefix = prefix(&command.application)?;
    let database = database(at, Access::Read).await?;
    let key_form = database.properties_dyn().key_form;
    let now = now();
    let mut sessions = Vec::new();
    let mut after = None;
    loop {
        let page = database.list_by_subject_dyn(&subject, now, after.as_ref(), PAGE).await?;
        after = page.last().map(|row| row.key);
        let is_last = u32::try_from(page.len()).is_ok_and(|listed| listed < PAGE);
        let own = page.into_iter().filter(|row| row.key.belongs_to(key_form, &prefix));
        sessions.extend(own.map(|row| (row.key, row.contents.ok())));
        if is_last {
            break;
        }
    }
    // Sessions that cannot be read come first.
    sessions.sort_by_key(|(_, times)| {
        std::cmp::Reverse(times.map_or(Timestamp::MAX, |times| times.last_seen_at))
    });
    let lines: Vec<_> = sessions.iter().map(|(key, times)| Line::new(key, *times)).collect();
    output.show(&lines, |lines| {
        if lines.is_empty() {
            return "No sessions.".to_owned();
        }
        let mut table = Table::default();
        table.row(["stored key", "created", "last seen", "expires"].map(left));
        for (line, (_, times)) in lines.iter().zip(&sessions) {
            let key = left(line.stored_key.as_str());
            let Some(times) = times else {
                table.row([key, left("cannot be read"), left(""), left("")]);
                continue;
            };
            table.row([
                key,
                left(instant(times.created_at)),
                left(format!("{} ago", span(now.since(times.last_seen_at)))),
                left(format!("in {}", span(times.expires_at.since(now)))),
            ]);
        }
        table.to_string()
    })?;
    Ok(if sessions.iter().any(|(_, times)| times.is_none()) { Exit::Found } else { Exit::Done })
}
