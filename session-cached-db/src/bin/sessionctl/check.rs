//! Compares the cache with the database, key by key. It only reads: no entry is filled, leased or fenced.

use serde::Serialize;
use session_cached_db::session_core::{CacheError, Record, Row, State, StoredKey};

use crate::args::{Check, Connection};
use crate::clock::now;
use crate::connect::{
    Access, Cache, Database, cache, database, inspect_channel, is_told_by_database, try_reading,
};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Style, Table, complain, count, left, right, span};
use crate::progress::Progress;

/// Maximum number of times to compare a key that changes during the comparison.
const ATTEMPTS: u32 = 5;

#[derive(Default, Serialize)]
struct Report {
    /// Number of keys that were checked.
    checked: u64,
    /// Number of sessions that are cached as the database has them.
    agree: u64,
    not_cached: u64,
    /// Number of sessions that are being read or written right now.
    in_flight: u64,
    disagree: Vec<Disagreement>,
    /// The stored keys of rows that cannot be read.
    unreadable: Vec<String>,
}

#[derive(Serialize)]
struct Disagreement {
    stored_key: String,
    what: &'static str,
}

/// The result of comparing a key.
enum Verdict {
    Agrees,
    NotCached,
    InFlight,
    Disagrees(&'static str),
}

pub(crate) async fn run(at: &Connection, command: &Check, output: &Output) -> Result<Exit, Failure> {
    let cache = cache(at)?.ok_or_else(|| {
        Failure::Usage("no cache to check; set SESSIONCTL_CACHE_URL, or pass --cache-url".into())
    })?;
    if is_told_by_database(&*cache) {
        return check_channel(at, &cache, output).await;
    }
    // An application cannot use a cache that it cannot write to, whatever is in it.
    try_reading(&*cache).await?;
    let database = database(at, Access::Read).await?;
    let mut report = Report::default();
    let mut progress = Progress::new("comparing", None, command.pace);
    if command.keys.is_empty() {
        let mut after = None;
        loop {
            let page = database.scan_dyn(after.as_ref(), command.pace.batch).await?;
            for Row { key, contents, .. } in &page {
                match contents {
                    Ok(record) => {
                        report.note(key, &compare(&cache, &database, key, Some(record)).await?);
                    }
                    Err(_) => report.unreadable.push(key.as_str().to_owned()),
                }
                progress.advance(1, None).await;
            }
            after = page.last().map(|row| row.key);
            if u32::try_from(page.len()).is_ok_and(|seen| seen < command.pace.batch) {
                break;
            }
        }
    } else {
        for key in &command.keys {
            let verdict = compare(&cache, &database, key, None).await?;
            report.note(key, &verdict);
            progress.advance(1, None).await;
        }
    }
    drop(progress);
    output.show(&report, |report| text(report, output))?;
    if cache.near_dyn().is_some() {
        complain(
            "the shared cache was compared; what nodes have in memory in front of it is out of reach from here",
        );
    }
    if report.checked > 0 && report.checked == report.not_cached {
        complain("none of these sessions is cached; is the key_prefix of the cache's URL the application's?");
    }
    Ok(if report.disagree.is_empty() && report.unreadable.is_empty() { Exit::Done } else { Exit::Found })
}

/// The state of the reports by which nodes keep their memory true. There is no cache to compare.
#[derive(Serialize)]
struct ChannelReport {
    changes_are_reported: bool,
    freshness_bound_ms: u64,
    slowest_answer_micros: Option<u64>,
    /// The reason why changes are not reported.
    error: Option<String>,
}

/// Listens as nodes do whose memory the database tells of changes.
async fn check_channel(at: &Connection, cache: &Cache, output: &Output) -> Result<Exit, Failure> {
    let database = database(at, Access::Read).await?;
    let bound = cache.near_dyn().map(|near| near.freshness_bound()).unwrap_or_default();
    let inspected = inspect_channel(&**cache, &database).await;
    let slowest = inspected.as_ref().ok().map(|channel| channel.slowest_answer);
    let report = ChannelReport {
        changes_are_reported: inspected.is_ok(),
        freshness_bound_ms: bound.as_millis().try_into().unwrap_or(u64::MAX),
        slowest_answer_micros: slowest.map(|took| took.as_micros().try_into().unwrap_or(u64::MAX)),
        error: inspected.err().map(|error| error.to_string()),
    };
    output.show(&report, |report| match (&report.error, slowest) {
        (None, Some(slowest)) => format!(
            "The database reports changes; the slowest answer took {}, and the freshness bound is {}.\n",
            span(slowest),
            span(bound)
        ),
        (error, _) => format!(
            "The database reports no changes, so loads go around memory: {}\n",
            error.as_deref().unwrap_or_default()
        ),
    })?;
    complain("what nodes have in memory is out of reach from here, so it was not compared");
    Ok(if report.changes_are_reported { Exit::Done } else { Exit::Found })
}

/// Compares the cache's entry of `key` with the database. `seen` is the record that the database has just
/// returned, if it was asked.
async fn compare(
    cache: &Cache,
    database: &Database,
    key: &StoredKey,
    seen: Option<&Record>,
) -> Result<Verdict, Failure> {
    for _ in 0..ATTEMPTS {
        let entry = match cache.get_dyn(key).await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Verdict::NotCached),
            Err(CacheError::WrongKey) => return Ok(Verdict::Disagrees("the entry belongs to another key")),
            Err(error) => return Err(error.into()),
        };
        let State::Value(value) = entry.state else { return Ok(Verdict::InFlight) };
        let now = now();
        // An expired session is not served any more.
        if value.record.is_expired(now) {
            return Ok(Verdict::NotCached);
        }
        if difference(&value.record, seen).is_none() {
            return Ok(Verdict::Agrees);
        }
        let row = database.load_dyn(key, now).await?;
        let Some(what) = difference(&value.record, row.as_ref()) else { return Ok(Verdict::Agrees) };
        // The same entry is still there, so no writer came in between.
        let again = cache.get_dyn(key).await?;
        if again.is_some_and(|again| again.stamp == entry.stamp) {
            return Ok(Verdict::Disagrees(what));
        }
    }
    Ok(Verdict::InFlight)
}

/// Returns what is wrong in the cached record, or `None` if it agrees with the database. An earlier expiry
/// and an earlier last use are not wrong, because a touch does not update every cache at once.
fn difference(cached: &Record, row: Option<&Record>) -> Option<&'static str> {
    let Some(row) = row else { return Some("the database has no such session, or it has expired") };
    [
        (cached.version() != row.version(), "another version"),
        (cached.payload() != row.payload(), "another payload"),
        (cached.subject() != row.subject(), "another subject"),
        (cached.created_at() != row.created_at(), "another beginning"),
        (cached.expires_at() > row.expires_at(), "a later end"),
    ]
    .into_iter()
    .find_map(|(differs, what)| differs.then_some(what))
}

impl Report {
    fn note(&mut self, key: &StoredKey, verdict: &Verdict) {
        self.checked += 1;
        match verdict {
            Verdict::Agrees => self.agree += 1,
            Verdict::NotCached => self.not_cached += 1,
            Verdict::InFlight => self.in_flight += 1,
            Verdict::Disagrees(what) => {
                self.disagree.push(Disagreement { stored_key: key.as_str().to_owned(), what });
            }
        }
    }
}

fn text(report: &Report, output: &Output) -> String {
    let mut table = Table::default();
    for (name, number) in [
        ("sessions compared", report.checked),
        ("cached, and the same", report.agree),
        ("not cached", report.not_cached),
        ("being read or written", report.in_flight),
        ("cached, and different", report.disagree.len().try_into().unwrap_or(u64::MAX)),
    ] {
        table.row([left(name), right(count(number))]);
    }
    let mut text = table.to_string();
    if !report.disagree.is_empty() {
        let mut table = Table::default();
        for disagreement in &report.disagree {
            table.row([left(disagreement.stored_key.as_str()), left(disagreement.what)]);
        }
        let heading = output.styled(Style::Red, "Sessions that the cache has wrong");
        text.push_str(&format!("\n{heading}\n{table}"));
    }
    text.push_str(&output.unreadable(&report.unreadable));
    text
}
