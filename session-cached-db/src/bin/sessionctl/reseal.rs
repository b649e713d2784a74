//! Seals with the first key of the ring what is not sealed with it.

use serde::Serialize;

use crate::args::{Connection, Reseal};
use crate::connect::{codec, sealing_keys, store};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output::{Output, Table, complain, count, left, right, sessions};
use crate::progress::Progress;

#[derive(Default, Serialize)]
struct Report {
    /// Rows that were looked at, expired ones too.
    seen: u64,
    resealed: u64,
    /// Those that somebody else wrote or ended at the same time.
    missed: u64,
    /// Those that none of the keys opens.
    unreadable: u64,
    interrupted: bool,
}

pub(crate) async fn run(
    at: &Connection,
    command: &Reseal,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, Failure> {
    if sealing_keys(&command.format)?.is_none() {
        return Err(Failure::Usage(
            "no sealing keys; set SESSIONCTL_SEALING_KEYS, or give --sealing-keys-file".into(),
        ));
    }
    let codec = codec(&command.format, command.compress_from)?;
    let store = interrupt.ends(store(at, command.caching, codec)).await?;
    let mut report = Report::default();
    let mut progress = Progress::new("sealing", None, command.pace);
    let mut after = None;
    let done = loop {
        let page = match store.reseal(after.as_ref(), command.pace.batch).await {
            Ok(page) => page,
            Err(error) => break Err(error),
        };
        report.seen += page.seen;
        report.resealed += page.written;
        report.missed += page.missed;
        report.unreadable += page.unreadable;
        after = page.next;
        if after.is_none() {
            break Ok(());
        }
        progress.advance(page.seen, Some(interrupt)).await;
        if interrupt.is_raised() {
            report.interrupted = true;
            break Ok(());
        }
    };
    drop(progress);
    store.close().await;
    done.map_err(|error| {
        Failure::from(error).after(&format!("{} had been sealed anew", sessions(report.resealed)))
    })?;
    output.show(&report, |report| {
        let mut table = Table::default();
        for (name, number) in [
            ("looked at", report.seen),
            ("sealed anew", report.resealed),
            ("changed by somebody else meanwhile", report.missed),
            ("cannot be read, left alone", report.unreadable),
        ] {
            table.row([left(name), right(count(number))]);
        }
        table.to_string()
    })?;
    if report.interrupted {
        complain("interrupted; run it again: what is sealed with the first key already is passed over");
        return Ok(Exit::Interrupted);
    }
    if report.missed > 0 {
        complain("run it once more for those that somebody else changed");
    }
    Ok(if report.missed + report.unreadable > 0 { Exit::Found } else { Exit::Done })
}
