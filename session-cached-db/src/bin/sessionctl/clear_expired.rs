//! Deletes expired sessions, in batches.

use std::time::Duration;

use serde::Serialize;

use crate::args::{ClearExpired, Connection};
use crate::clock::now;
use crate::connect::{Access, database};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output::{Output, complain, sessions};
use crate::progress::Progress;

/// The time since a session's expiry before it is deleted. After that time, no cache shows it any more, even
/// on a node whose clock is behind.
const SLACK: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Report {
    /// Number of expired sessions, if they were counted.
    expired: Option<u64>,
    deleted: u64,
    interrupted: bool,
}

pub(crate) async fn run(
    at: &Connection,
    command: &ClearExpired,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, Failure> {
    let access = if command.dry_run { Access::Read } else { Access::Write };
    let database = interrupt.ends(database(at, access)).await?;
    let before = now() - SLACK;
    let counted = interrupt.ends(async { Ok(database.count_expired(before).await?) }).await;
    if command.dry_run {
        let report = Report { expired: Some(counted?), deleted: 0, interrupted: false };
        output.show(&report, |report| {
            format!("{} would be deleted.", sessions(report.expired.unwrap_or_default()))
        })?;
        return Ok(Exit::Done);
    }
    // A count that failed only costs the progress bar its end.
    let mut report = Report { expired: counted.ok(), deleted: 0, interrupted: interrupt.is_raised() };
    let mut progress = Progress::new("deleting", report.expired, command.pace);
    while !report.interrupted {
        let deleted = database.delete_expired_dyn(before, command.pace.batch).await;
        let deleted = deleted.map_err(|error| {
            Failure::from(error).after(&format!("{} had been deleted", sessions(report.deleted)))
        })?;
        report.deleted += deleted.count;
        if !deleted.is_unfinished(command.pace.batch) {
            break;
        }
        progress.advance(deleted.count, Some(interrupt)).await;
        report.interrupted = interrupt.is_raised();
    }
    drop(progress);
    output.show(&report, |report| format!("Deleted {}.", sessions(report.deleted)))?;
    if report.interrupted {
        complain("interrupted; run it again for the rest");
        return Ok(Exit::Interrupted);
    }
    Ok(Exit::Done)
}
