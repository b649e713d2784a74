//! The calls of a broken database.

use super::*;

impl Persistence for BrokenPersistence {
    async fn load(&self, key: &StoredKey, now: Timestamp) -> Result<Option<Record>, PersistenceError> {
        let mut row = self.row(key);
        if self.has(Fault::ReadsAReplicaThatLags) && self.is_replica
            || self.has(Fault::CachesWhatItRead)
            || self.has(Fault::FindsWhatIsDeleted) && row.is_none()
        {
            let mut copies = self.copies.lock().unwrap();
            let before = copies.get(key).cloned();
            if before.is_none() || !self.has(Fault::CachesWhatItRead) {
                copies.extend(row.clone().map(|row| (*key, row)));
            }
            row = before.or(row);
        } else if self.has(Fault::FindsWhatIsDeleted) {
            self.copies.lock().unwrap().extend(row.clone().map(|row| (*key, row)));
        }
        let Some(row) = row else { return Ok(None) };
        if self.is_expired(&row, now) && !self.has(Fault::FindsExpired) {
            if self.has(Fault::RemovesWhatItFindsExpired) {
                self.lock().rows.remove(&self.place(key));
            }
            return Ok(None);
        }
        match self.lock().damaged.contains_key(&self.place(key)) {
            true => Err(Self::corrupt()),
            false => Ok(Some(row)),
        }
    }

    async fn insert(&self, key: &StoredKey, record: &Record) -> Result<Version, PersistenceError> {
        self.check_size(record)?;
        let before = self.row(key);
        if self.has(Fault::InsertIsNotAtomic) {
            Self::pause().await;
        }
        let is_overwritten = match &before {
            None => true,
            Some(row) => match self.fault {
                Fault::InsertOverwrites => true,
                Fault::InsertOverwritesExpired => row.is_expired(SystemTime::now().into()),
                _ => false,
            },
        };
        if !is_overwritten {
            return Err(PersistenceError::AlreadyExists);
        }
        let version = match self.fault {
            Fault::InsertKeepsTheRecordsVersion => record.version(),
            _ => self.next_version(before.as_ref()),
        };
        let row = self.kept(record, record.created_at(), false).with_version(version);
        if self.has(Fault::InsertIsNotAtomic) {
            self.put(key, row);
            return Ok(version);
        }
        let mut table = self.lock();
        let place = self.place(key);
        if before.is_none() && table.rows.contains_key(&place) {
            return Err(PersistenceError::AlreadyExists);
        }
        table.first_ends.insert(place.clone(), row.expires_at());
        table.rows.insert(place, (*key, row));
        Ok(version)
    }

    async fn update(
        &self,
        key: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        let RecordWrite { record, expected, expiry, .. } = write;
        self.check_size(record)?;
        let row = self.row(key);
        let row = match row {
            None if self.has(Fault::UpdateInserts) => return self.insert(key, record).await,
            None if self.has(Fault::UpdateOfAbsentIsAConflict) && expected.is_some() => {
                return Err(PersistenceError::Conflict);
            }
            None => return Err(PersistenceError::NotFound),
            Some(row) => row,
        };
        let expected =
            expected.or_else(|| self.has(Fault::UpdateExpectsTheRecordsVersion).then_some(record.version()));
        let is_other = expected.is_some_and(|expected| expected != row.version());
        if is_other && self.has(Fault::UpdateOfExpiredIsAConflict) {
            return Err(PersistenceError::Conflict);
        }
        if self.is_expired(&row, now) && !self.has(Fault::UpdateRevives) {
            return Err(PersistenceError::NotFound);
        }
        if is_other && !self.has(Fault::UpdateIgnoresTheVersion) {
            if self.has(Fault::UpdateWritesBeforeItRefuses) {
                let version = row.version();
                self.put(key, self.written(&row, record, expiry, false).with_version(version));
            }
            return Err(PersistenceError::Conflict);
        }
        let written = self.written(&row, record, expiry, false);
        let version = written.version();
        if self.has(Fault::UpdateTakesTwoSteps) {
            self.put(key, written.clone().with_subject(row.subject().cloned()));
            Self::pause().await;
        }
        if self.has(Fault::UpdateIsNotAtomic) || self.has(Fault::UpdateReadsAndWritesBack) {
            Self::pause().await;
            if self.has(Fault::UpdateReadsAndWritesBack) || self.row(key).is_some() {
                self.put(key, written);
            }
            return Ok(version);
        }
        let mut table = self.lock();
        // Other calls may have come in between.
        match table.rows.get_mut(&self.place(key)) {
            None => Err(PersistenceError::NotFound),
            Some((_, there))
                if expected.is_some() && *there != row && !self.has(Fault::UpdateTakesTwoSteps) =>
            {
                Err(PersistenceError::Conflict)
            }
            Some((_, there)) => {
                *there = written;
                Ok(version)
            }
        }
    }

    async fn touch(
        &self,
        key: &StoredKey,
        expires_at: Timestamp,
        idle_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, PersistenceError> {
        let row = self.row(key);
        let row = match row {
            None if self.has(Fault::TouchInserts) => {
                let record = Record::new("1{}".into(), now, expires_at);
                return self.insert(key, &record).await.map(|_| true);
            }
            None => return Err(PersistenceError::NotFound),
            Some(row) => row,
        };
        if self.is_expired(&row, now) && !self.has(Fault::TouchRevives) {
            return Err(PersistenceError::NotFound);
        }
        let is_due = |row: &Record| match self.fault {
            Fault::TouchIsAlwaysWritten => true,
            Fault::TouchIsNotWrittenInTime => row.last_seen_at() < idle_since,
            Fault::TouchNeedsACondition => row.last_seen_at() <= idle_since.min(now),
            _ => row.last_seen_at() <= idle_since,
        };
        let touched = |row: &Record| {
            let end =
                if self.has(Fault::TouchShortens) { expires_at } else { expires_at.max(row.expires_at()) };
            let seen = match self.fault {
                Fault::TouchTurnsTheLastUseBack => now,
                Fault::TouchSetsTheExpiryAlone => row.last_seen_at(),
                _ => now.max(row.last_seen_at()),
            };
            row.clone().with_expires_at(end).with_last_seen_at(seen)
        };
        if self.has(Fault::TouchIsNotAtomic) {
            Self::pause().await;
            self.put(key, touched(&row));
            return Ok(true);
        }
        if self.has(Fault::TouchChangesTheVersion) {
            let version = self.next_version(Some(&row));
            self.put(key, touched(&row).with_version(version));
            return Ok(true);
        }
        let was_due = is_due(&row);
        if self.has(Fault::TouchLooksBeforeItWrites) {
            Self::pause().await;
        }
        match self.lock().rows.get_mut(&self.place(key)) {
            None => Err(PersistenceError::NotFound),
            Some((_, there)) if is_due(there) || was_due && self.has(Fault::TouchLooksBeforeItWrites) => {
                *there = touched(there);
                Ok(true)
            }
            Some(_) if self.has(Fault::TouchThatIsNotDueIsNotFound) => Err(PersistenceError::NotFound),
            Some((_, there)) => {
                if self.has(Fault::TouchOfWhatIsNotDueProlongs) {
                    *there = touched(there);
                }
                Ok(false)
            }
        }
    }

    async fn rename(
        &self,
        old: &StoredKey,
        new: &StoredKey,
        write: RecordWrite<'_>,
        now: Timestamp,
    ) -> Result<Version, PersistenceError> {
        let RecordWrite { record, expected, expiry, .. } = write;
        self.check_size(record)?;
        let row = match self.row(old) {
            None if self.has(Fault::RenameInserts) => return self.insert(new, record).await,
            None => return Err(PersistenceError::NotFound),
            Some(row) => row,
        };
        let is_other = expected.is_some_and(|expected| expected != row.version());
        if is_other && self.has(Fault::UpdateOfExpiredIsAConflict) {
            return Err(PersistenceError::Conflict);
        }
        if self.is_expired(&row, now) && !self.has(Fault::RenameRevives) {
            return Err(PersistenceError::NotFound);
        }
        if is_other && !self.has(Fault::RenameIgnoresTheVersion) {
            return Err(PersistenceError::Conflict);
        }
        let may_overwrite = |there: Option<&Record>| match (there, self.fault) {
            (None, _) | (_, Fault::RenameOverwrites) => true,
            (Some(there), Fault::RenameOverwritesExpired) => self.is_expired(there, now),
            (_, Fault::RenameOntoItselfWorks) => old == new,
            _ => false,
        };
        let mut renamed = self.written(&row, record, expiry, true);
        if self.has(Fault::RenameMovesOnly) {
            let version = renamed.version();
            renamed = row.clone().with_version(version);
        }
        let version = renamed.version();
        if self.has(Fault::RenameInsertsThenDeletes) || self.has(Fault::RenameDeletesThenInserts) {
            if !may_overwrite(self.row(new).as_ref()) {
                return Err(PersistenceError::AlreadyExists);
            }
            if self.has(Fault::RenameDeletesThenInserts) {
                self.lock().rows.remove(&self.place(old));
                Self::pause().await;
                self.put(new, renamed);
            } else {
                self.put(new, renamed);
                Self::pause().await;
                self.lock().rows.remove(&self.place(old));
            }
            return Ok(version);
        }
        let mut table = self.lock();
        if table.rows.get(&self.place(old)).is_none_or(|(_, there)| *there != row) {
            return Err(if expected.is_some() {
                PersistenceError::Conflict
            } else {
                PersistenceError::NotFound
            });
        }
        if !may_overwrite(table.rows.get(&self.place(new)).map(|(_, there)| there)) {
            return Err(PersistenceError::AlreadyExists);
        }
        if !self.has(Fault::RenameCopies) {
            table.rows.remove(&self.place(old));
        }
        table.rows.insert(self.place(new), (*new, renamed));
        Ok(version)
    }

    async fn delete(&self, key: &StoredKey) -> Result<bool, PersistenceError> {
        if self.has(Fault::DeleteIsNotAtomic) {
            let is_there = self.row(key).is_some();
            Self::pause().await;
            self.lock().rows.remove(&self.place(key));
            return Ok(is_there);
        }
        let mut table = self.lock();
        let place = self.place(key);
        if self.has(Fault::DeleteSparesExpired) {
            let is_over = |row: &Record| row.is_expired(Timestamp::from_micros(1_600_000_000_123_457));
            if table.rows.get(&place).is_some_and(|(_, row)| is_over(row)) {
                return Ok(false);
            }
        }
        table.damaged.remove(&place);
        let was_there = table.rows.remove(&place).is_some();
        Ok(match self.fault {
            Fault::DeleteTellsNothing => false,
            Fault::DeleteAlwaysTellsOfOne => true,
            _ => was_there,
        })
    }

    async fn delete_all(&self, keys: &[StoredKey]) -> Result<Vec<StoredKey>, PersistenceError> {
        let keys = match self.fault {
            Fault::DeleteAllSparesTheLast => keys.get(..keys.len().saturating_sub(1)).unwrap_or_default(),
            _ => keys,
        };
        let are_there: Vec<_> = keys.iter().filter(|key| self.row(key).is_some()).copied().collect();
        if self.has(Fault::DeleteAllIsNotAtomic) {
            Self::pause().await;
        }
        let mut table = self.lock();
        let is_removed = |key: &&StoredKey| {
            let place = self.place(key);
            table.damaged.remove(&place);
            table.rows.remove(&place).is_some()
        };
        let removed = keys.iter().filter(is_removed).copied().collect();
        Ok(match self.fault {
            Fault::DeleteAllTellsOfAll => keys.to_vec(),
            Fault::DeleteAllIsNotAtomic => are_there,
            _ => removed,
        })
    }

    async fn delete_expired(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<ExpiredSessions, PersistenceError> {
        let limit = limit as usize;
        let has_notes_left = self.remove_notes(before, limit)?;
        let is_over = |row: &Record| match self.fault {
            Fault::SparesWhatEndsAtTheInstant => row.expires_at() < before,
            Fault::RemovesWhatEndsLater => row.expires_at() <= before + std::time::Duration::from_secs(1),
            _ => row.expires_at() <= before,
        };
        let limit = match self.fault {
            Fault::RemovesBeyondTheLimit => usize::MAX,
            Fault::RemovesLessThanItCould => limit.saturating_sub(1),
            _ => limit,
        };
        let mut places = {
            let mut table = self.lock();
            let first_end = |place: &String| table.first_ends.get(place).copied();
            let is_removed = |place: &String, row: &Record| match self.fault {
                Fault::RemovesByTheFirstExpiry => first_end(place).is_some_and(|end| end <= before),
                Fault::SparesWhatEndsEarlier => {
                    is_over(row) && first_end(place).is_none_or(|end| end <= before)
                }
                Fault::ForgetsWhatLivesOn => is_over(row) && !table.passed_over.contains(place),
                _ => is_over(row),
            };
            let expired = table.rows.iter().filter(|(place, (_, row))| is_removed(place, row));
            let expired = expired.map(|(place, _)| place.clone()).collect::<Vec<_>>();
            let passed_over = table.rows.iter().filter(|(place, (_, row))| {
                !is_over(row) && first_end(place).is_some_and(|end| end <= before)
            });
            let passed_over = passed_over.map(|(place, _)| place.clone()).collect::<Vec<_>>();
            table.passed_over.extend(passed_over);
            expired
        };
        places.truncate(limit);
        if self.has(Fault::RemovalsCountTwice) {
            Self::pause().await;
            let mut table = self.lock();
            for place in &places {
                table.rows.remove(place);
            }
            return Ok(ExpiredSessions::new(places.len() as u64, Vec::new()));
        }
        let mut table = self.lock();
        let mut removed = ExpiredSessions::default();
        for place in places {
            let Some((key, row)) = table.rows.remove(&place) else { continue };
            let damage = table.damaged.remove(&place);
            let subject = row.subject().filter(|_| !self.has(Fault::RemovalsLoseTheSubject)).cloned();
            let session = match damage {
                Some(Damage::Record) if self.has(Fault::RemovalFailsAtUnreadableRows) => {
                    return Err(Self::corrupt());
                }
                Some(Damage::Record) => Some(ExpiredSession::new(key, None)),
                Some(Damage::Key) => None,
                _ => Some(ExpiredSession::new(key, subject)),
            };
            if session.is_some() || !self.has(Fault::RemovalsCountStoredKeysOnly) {
                removed.count += 1;
            }
            removed.sessions.extend(session.filter(|_| !self.has(Fault::RemovalsAreOnlyCounted)));
        }
        Ok(removed.with_more(has_notes_left || self.has(Fault::AlwaysHasMore)))
    }

    async fn now(&self) -> Result<Timestamp, PersistenceError> {
        let now = Timestamp::from(SystemTime::now());
        Ok(match self.fault {
            Fault::ClockIsInLocalTime => now + std::time::Duration::from_secs(3_600),
            Fault::ClockShowsSeconds => {
                Timestamp::from_micros(now.as_micros().div_euclid(1_000_000) * 1_000_000)
            }
            Fault::ClockStandsStill => Timestamp::from_secs(1_700_000_000),
            _ => now,
        })
    }

    async fn migrate(&self) -> Result<(), PersistenceError> {
        if self.has(Fault::CannotMigrateAtOnce) {
            let refused = || PersistenceError::Refused("another node makes the table already".into());
            if std::mem::replace(&mut self.lock().is_being_made, true) {
                return Err(refused());
            }
            Self::pause().await;
            self.lock().is_being_made = false;
        }
        let mut table = self.lock();
        if table.is_there && self.has(Fault::MigratesOnce) {
            return Err(PersistenceError::Refused("the table exists already".into()));
        }
        if self.has(Fault::MigratingEmptiesTheTable) {
            table.rows.clear();
        }
        table.is_there = true;
        Ok(())
    }

    fn schema_sql(&self) -> String {
        if self.has(Fault::HasNoSchema) { String::new() } else { "CREATE TABLE sessions".into() }
    }

    async fn check_schema(&self) -> Result<(), PersistenceError> {
        let mut table = self.lock();
        let is_there = table.is_there;
        if self.has(Fault::CheckMakesTheTable) {
            table.is_there = true;
        }
        if is_there || self.has(Fault::ChecksNothing) { Ok(()) } else { Err(Self::missing()) }
    }

    fn properties(&self) -> PersistenceProperties {
        PersistenceProperties::new(MAX_PAYLOAD_BYTES)
    }
}
