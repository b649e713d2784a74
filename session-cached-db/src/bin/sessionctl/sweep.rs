//! Goes through all sessions, and rewrites those that need it.

use serde::Serialize;
use session_cached_db::StoredKey;
use session_cached_db::{Error, SweepPage};

use crate::args::Pace;
use crate::connect::Store;
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output::{Output, Table, complain, count, left, right, sessions};
use crate::progress::Progress;

/// The words for a command's work, while it is done and afterwards.
pub(crate) struct Words {
    pub(crate) doing: &'static str,
    pub(crate) done: &'static str,
}

#[derive(Default, Serialize)]
struct Report {
    /// Number of rows that were read, expired ones included.
    seen: u64,
    written: u64,
    /// Number of sessions that another writer changed or ended at the same time.
    missed: u64,
    /// The stored keys of sessions that cannot be read, or that none of the sealing keys opens.
    unreadable: Vec<String>,
    /// The stored keys of sessions that could not be written.
    failed: Vec<String>,
    interrupted: bool,
}

/// Calls `step` for one page after the other. `step` gets the last key of the page before.
pub(crate) async fn sweep(
    store: &Store,
    words: &Words,
    pace: Pace,
    output: &Output,
    interrupt: &Interrupt,
    step: impl AsyncFn(Option<&StoredKey>) -> Result<SweepPage, Error>,
) -> Result<Exit, Failure> {
    let mut report = Report::default();
    let mut progress = Progress::new(words.doing, None, pace);
    let done = pages(&mut report, &mut progress, interrupt, step).await;
    drop(progress);
    store.close().await;
    let done_until_then = format!("{} had been {}", sessions(report.written), words.done);
    done.map_err(|error| Failure::from(error).after(&done_until_then))?;
    output.show(&report, |report| {
        let mut table = Table::default();
        for (name, number) in [
            ("read", report.seen),
            (words.done, report.written),
            ("changed by another writer meanwhile", report.missed),
            ("cannot be read, left alone", report.unreadable.len().try_into().unwrap_or(u64::MAX)),
            ("could not be written", report.failed.len().try_into().unwrap_or(u64::MAX)),
        ] {
            table.row([left(name), right(count(number))]);
        }
        table.to_string() + &output.unreadable(&report.unreadable) + &output.failed(&report.failed)
    })?;
    if report.interrupted {
        complain("interrupted; run it again for the rest: sessions that are done are passed over");
        return Ok(Exit::Interrupted);
    }
    if report.missed > 0 {
        complain("run it once more for the sessions that another writer changed");
    }
    let is_done = report.missed == 0 && report.unreadable.is_empty() && report.failed.is_empty();
    Ok(if is_done { Exit::Done } else { Exit::Found })
}

async fn pages(
    report: &mut Report,
    progress: &mut Progress,
    interrupt: &Interrupt,
    step: impl AsyncFn(Option<&StoredKey>) -> Result<SweepPage, Error>,
) -> Result<(), Error> {
    let mut after = None;
    loop {
        let page = step(after.as_ref()).await?;
        report.seen += page.seen;
        report.written += page.written;
        report.missed += page.missed;
        report.unreadable.extend(page.unreadable.iter().map(|key| key.as_str().to_owned()));
        report.failed.extend(page.failed.iter().map(|key| key.as_str().to_owned()));
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
        progress.advance(page.seen, Some(interrupt)).await;
        if interrupt.is_raised() {
            report.interrupted = true;
            return Ok(());
        }
    }
}
