//! Ends sessions through the store, which fences the cache: an ended session is not served any more.

use std::cell::Cell;
use std::future::ready;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;
use session_cached_db::session_core::{DynDatabase, JsonCodec, Persistence as _, Scan as _, StoredKey};
use session_cached_db::{Coherence, Error, Written};

use crate::args::{Connection, Pace, Revoke};
use crate::connect::{Access, Store, database, prefix, store};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output::{Output, complain, sessions};
use crate::progress::Progress;

#[derive(Serialize)]
struct Report {
    /// Number of sessions that were ended.
    revoked: u64,
    /// Number of keys without a session.
    not_found: u64,
    /// `true` if a cache may still show the ended sessions, for as long as the applications' `max_cache_age`.
    may_be_shown: bool,
    interrupted: bool,
}

pub(crate) async fn run(
    at: &Connection,
    command: &Revoke,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, Failure> {
    let store = interrupt
        .ends(store(
            at,
            command.write.caching,
            Arc::new(JsonCodec::default()),
            &command.write.application.key_prefix,
        ))
        .await?;
    let mut report =
        Report { revoked: 0, not_found: 0, may_be_shown: command.write.caching.no_cache, interrupted: false };
    let done = match &command.subject {
        Some(subject) => revoke_subject(&store, subject, &mut report).await,
        None if command.all => revoke_all(at, &store, command, &mut report, interrupt).await,
        None => revoke_keys(&store, &command.keys, command.write.pace, &mut report, interrupt).await,
    };
    // Even after an error, writes that have begun are carried out.
    store.close().await;
    done.map_err(|failure| failure.after(&format!("{} had been ended", sessions(report.revoked))))?;
    output.show(&report, |report| format!("Ended {}.", sessions(report.revoked)))?;
    if report.may_be_shown {
        complain(
            "no cache was fenced: where there is one, it may show them for as long as the application's max_cache_age",
        );
    }
    if report.not_found > 0 {
        complain(&format!("{} of the keys had no session", report.not_found));
    }
    if report.interrupted {
        complain("interrupted; the other sessions are as they were");
        return Ok(Exit::Interrupted);
    }
    Ok(if report.not_found > 0 { Exit::Found } else { Exit::Done })
}

async fn revoke_subject(store: &Store, subject: &str, report: &mut Report) -> Result<(), Failure> {
    let written = store.revoke_subject(subject).await.map_err(|error| match error {
        Error::InvalidSubject(error) => Failure::Usage(error.to_string()),
        error => error.into(),
    })?;
    report.revoked = written.value;
    report.may_be_shown |= written.coherence == Coherence::Degraded;
    Ok(())
}

async fn revoke_keys(
    store: &Store,
    keys: &[StoredKey],
    pace: Pace,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let mut progress = Progress::new("ending", keys.len().try_into().ok(), pace);
    report.not_found += revoke_each(store, keys, pace, report, &mut progress, interrupt).await?;
    Ok(())
}

/// Ends the sessions that were there when this began.
async fn revoke_all(
    at: &Connection,
    store: &Store,
    command: &Revoke,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let (pace, prefix) = (command.write.pace, prefix(&command.write.application)?);
    let database: Arc<dyn DynDatabase> = database(at, Access::Read).await?;
    let mut progress = Progress::new("ending", None, pace);
    let mut after = None;
    loop {
        let page = database.scan(after.as_ref(), pace.batch).await?;
        let key_form = database.properties().key_form;
        // The key is enough: the rest of the row may be unreadable.
        let keys = page.iter().map(|row| row.key).filter(|key| key.belongs_to(key_form, &prefix));
        let keys: Vec<_> = keys.collect();
        revoke_each(store, &keys, pace, report, &mut progress, interrupt).await?;
        if report.interrupted {
            return Ok(());
        }
        after = page.last().map(|row| row.key);
        if u32::try_from(page.len()).is_ok_and(|seen| seen < pace.batch) {
            return Ok(());
        }
    }
}

/// The number of sessions that are ended at the same time: with a near cache, mostly they wait until no node shows them.
const SIDE_BY_SIDE: u32 = 256;

/// Ends the sessions under `keys`, several at a time, and returns how many there were none of. After an interruption or an
/// error, none is begun.
async fn revoke_each(
    store: &Store,
    keys: &[StoredKey],
    pace: Pace,
    report: &mut Report,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<u64, Failure> {
    let has_failed = Cell::new(false);
    let may_begin = |_: &&StoredKey| ready(!interrupt.is_raised() && !has_failed.get());
    // No further ahead of its rate than by a second.
    let side_by_side = pace.rate.unwrap_or(SIDE_BY_SIDE).clamp(1, SIDE_BY_SIDE);
    let mut ending = stream::iter(keys)
        .take_while(may_begin)
        .map(|key| store.revoke(key))
        .buffer_unordered(side_by_side.try_into().unwrap_or(1));
    let (mut failure, mut seen, mut not_found) = (None, 0, 0);
    while let Some(ended) = ending.next().await {
        seen += 1;
        match ended {
            Ok(Written { value, coherence }) => {
                report.revoked += u64::from(value);
                not_found += u64::from(!value);
                report.may_be_shown |= coherence == Coherence::Degraded;
            }
            Err(error) => {
                has_failed.set(true);
                failure.get_or_insert(error);
            }
        }
        progress.advance(1, Some(interrupt)).await;
    }
    report.interrupted |= seen < keys.len();
    failure.map_or(Ok(not_found), |error| Err(error.into()))
}
