//! The pages of a broken database.

use super::*;

impl SubjectIndex for BrokenPersistence {
    async fn list_by_subject(
        &self,
        subject: &Subject,
        now: Timestamp,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<SessionTimes>>, PersistenceError> {
        let compared = |subject: &Subject| match self.fault {
            Fault::FoldsSubjects => subject.as_str().to_lowercase(),
            Fault::PadsSubjects => subject.as_str().trim_end_matches(' ').to_owned(),
            _ => subject.as_str().to_owned(),
        };
        let is_theirs = |row: &Record| {
            (row.subject().is_some_and(|theirs| compared(theirs) == compared(subject))
                || self.has(Fault::ListsEverybodys))
                && (row.version().as_u64() < 2 || !self.has(Fault::ListsWhatWasInserted))
        };
        let is_live = |row: &Record| !row.is_expired(now) || self.has(Fault::ListsExpired);
        let faults = PageFaults {
            begins_again: Fault::ListsFromTheKeyOn,
            is_in_another_order: Fault::ListsInOtherOrders,
            counts_unreadable_keys: Fault::ListsShortPagesAfterUnreadableKeys,
            fails_as_a_whole: Fault::ListsNothingIfOneIsUnreadable,
            hides_unreadable_rows: Fault::ListsNoUnreadableTimes,
        };
        let limit = if self.has(Fault::ListsAHundred) { limit.min(100) } else { limit };
        let is_meant =
            |row: &Record| is_theirs(row) && (is_live(row) || self.has(Fault::ListsWhatIsLeftOfAPage));
        let is_hit = |damage| damage == Damage::Times;
        let page = self.page((after, limit), faults, is_meant, is_hit, |row| {
            let mut times = SessionTimes::from(row);
            if self.has(Fault::ListsOtherTimes) {
                times.last_seen_at = times.created_at;
            }
            (times, is_live(row))
        })?;
        let live = page.into_iter().filter_map(|row| match row.contents {
            Ok((times, is_live)) => is_live.then(|| Row::new(row.key, Ok(times))),
            Err(error) => Some(Row::new(row.key, Err(error))),
        });
        Ok(live.collect())
    }
}

impl Scan for BrokenPersistence {
    async fn scan(
        &self,
        after: Option<&StoredKey>,
        limit: u32,
    ) -> Result<Vec<Row<Record>>, PersistenceError> {
        let faults = PageFaults {
            begins_again: Fault::ScansFromTheKeyOn,
            is_in_another_order: Fault::ScansInOtherOrders,
            counts_unreadable_keys: Fault::ScansShortPagesAfterUnreadableKeys,
            fails_as_a_whole: Fault::ScansNothingIfOneIsUnreadable,
            hides_unreadable_rows: Fault::ScansNoUnreadableRows,
        };
        let is_live = |row: &Record| !row.is_expired(Timestamp::from_micros(1_600_000_000_123_457));
        let is_meant = |row: &Record| is_live(row) || !self.has(Fault::ScansWhatHasNotExpired);
        let limit = if self.has(Fault::ScansShortPages) { limit.min(2) } else { limit };
        let mut page = self.page(
            (after, limit),
            faults,
            is_meant,
            |_| true,
            |row| match self.fault {
                Fault::ScansWithoutPayload => Record::new("".into(), row.created_at(), row.expires_at())
                    .with_last_seen_at(row.last_seen_at())
                    .with_version(row.version())
                    .with_subject(row.subject().cloned()),
                _ => row.clone(),
            },
        )?;
        if self.has(Fault::ScansFromTheSecondOn) && after.is_none() && !page.is_empty() {
            page.remove(0);
        }
        Ok(page)
    }
}
