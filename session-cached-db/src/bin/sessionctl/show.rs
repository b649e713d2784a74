//! Shows one session.

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use session_cached_db::session_core::Subject;

use crate::args::{Connection, Show};
use crate::clock::now;
use crate::connect::{Access, codec, database};
use crate::exit::{Exit, Failure};
use crate::list::Line;
use crate::output::{Output, Table, bytes, complain, harmless, past};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    line: Line,
    payload_bytes: usize,
    subject: Option<String>,
    /// The values, only with `--reveal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
}

pub(crate) async fn run(at: &Connection, command: &Show, output: &Output) -> Result<Exit, Failure> {
    let codec = codec(&command.format, None)?;
    let database = database(at, Access::Read).await?;
    let now = now();
    let Some(record) = database.load_dyn(&command.key, now).await?.map(Arc::new) else {
        complain("there is no session under this key, or it has expired");
        return Ok(Exit::Found);
    };
    let mut exit = Exit::Done;
    let mut payload = None;
    let mut revealed = Table::default();
    if command.reveal {
        match record.data(&command.key, &*codec) {
            Ok(data) => {
                let mut json = Vec::new();
                data.write_json(&mut json);
                for (name, value) in data.iter() {
                    revealed.fact(&harmless(name), harmless(value));
                }
                payload = String::from_utf8(json).ok().and_then(|json| RawValue::from_string(json).ok());
            }
            Err(error) => {
                complain(&format!("the payload cannot be read: {error}"));
                exit = Exit::Found;
            }
        }
    }
    let subject = record.subject().map(Subject::as_str).map(str::to_owned);
    let line = Line::new(&command.key, Some((&*record).into()));
    let report = Report { line, payload_bytes: record.payload().len(), subject, payload };
    output.show(&report, |report| {
        let mut table = Table::default();
        table.fact("stored key", command.key.as_str());
        table.fact("subject", report.subject.as_deref().map_or_else(|| "none".to_owned(), harmless));
        table.fact("created", past(record.created_at(), now));
        table.fact("last seen", past(record.last_seen_at(), now));
        table.fact("expires", past(record.expires_at(), now));
        table.fact("payload", bytes(record.payload().len().try_into().unwrap_or(u64::MAX)));
        match &report.payload {
            Some(_) => format!("{table}\n{revealed}"),
            None => table.to_string(),
        }
    })?;
    Ok(exit)
}
