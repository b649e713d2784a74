//! Merging saves onto what a session has become.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use session_core::bytes::Bytes;
use session_core::{
    Cache, ExpiryWrite, Persistence, Record, RecordWrite, SessionData, StoredKey, Subject, Version,
};

use super::expiry::{EXPIRY_KEY, copy_expiry, expiry_of};
use super::inner::Inner;
use super::job::{Save, Waiting};
use super::settings::ConflictPolicy;
use crate::Error;

/// Saves applied to a session, one after the other.
struct Sum<'a> {
    /// The record that the first save was applied to.
    base: Arc<Record>,
    /// The data after the saves so far. `None` as long as none was applied.
    data: Option<Cow<'a, SessionData>>,
    subject: Option<Option<Subject>>,
    expiry: ExpiryWrite,
}

impl<'a> Sum<'a> {
    const fn of(base: Arc<Record>) -> Self {
        Self { base, data: None, subject: None, expiry: ExpiryWrite::Extend }
    }

    fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref().map_or(self.base.subject(), Option::as_ref)
    }
}

/// The result of applying a save.
enum Applied {
    Yes,
    Rejected,
}

/// A record to write, if the session still has the expected version.
pub(super) struct Draft {
    expected: Version,
    pub(super) record: Record,
    expiry: ExpiryWrite,
}

impl Draft {
    /// Returns the request to the database.
    pub(super) fn write(&self) -> RecordWrite<'_> {
        RecordWrite::new(&self.record).with_expected(self.expected).with_expiry(self.expiry)
    }
}

/// The result of merging saves.
pub(super) enum Merged {
    Write(Draft),
    /// All of them were rejected.
    Nothing,
    /// The session has to be read before one of them can be rejected.
    MustRead,
    /// They cannot be merged because of one of them: write each with a statement of its own.
    Apart,
}

/// The origin of the record that saves are merged onto.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// This process has read or written it before.
    Remembered,
    /// It was read from the database just now.
    Read,
}

impl<C: Cache, P: Persistence> Inner<C, P> {
    /// Reads the session, and merges `saves` onto it.
    pub(super) async fn merge_anew(
        &self,
        key: &StoredKey,
        saves: &mut Vec<Waiting>,
    ) -> Result<Merged, Error> {
        let fresh = self.read(key).await?.ok_or(Error::SessionGone)?.record;
        self.merge(key, fresh, saves, Base::Read)
    }

    /// Applies the changes of `saves`, one after the other, to `base`. Saves that the conflict policy rejects are answered and
    /// removed from the list.
    pub(super) fn merge(
        &self,
        key: &StoredKey,
        base: Arc<Record>,
        saves: &mut Vec<Waiting>,
        source: Base,
    ) -> Result<Merged, Error> {
        let may_part = saves.len() > 1;
        // A codec of the application may panic, or a modification that meets another value than it did at first.
        match catch_unwind(AssertUnwindSafe(|| self.merge_all(key, base, saves, source))) {
            Ok(Err(error)) if may_part && error.is_data_error() => Ok(Merged::Apart),
            Ok(merged) => merged,
            Err(_) if may_part => Ok(Merged::Apart),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Does the work of [`merge`](Self::merge), which has the same arguments and catches a panic in here.
    fn merge_all(
        &self,
        key: &StoredKey,
        base: Arc<Record>,
        saves: &mut Vec<Waiting>,
        source: Base,
    ) -> Result<Merged, Error> {
        let mut sum = Sum::of(base);
        let mut rejected = Vec::new();
        for (number, (save, _)) in saves.iter().enumerate() {
            match self.apply(key, save, &mut sum)? {
                Applied::Yes => {}
                // Another process may have written since, and this save may have seen that.
                Applied::Rejected if source == Base::Remembered => return Ok(Merged::MustRead),
                Applied::Rejected => rejected.push(number),
            }
        }
        let draft = (rejected.len() < saves.len()).then(|| self.draft(key, sum));
        for number in rejected.into_iter().rev() {
            self.telemetry.counters.conflicts.bump();
            drop(saves.remove(number).1.send(Err(Error::Conflict)));
        }
        draft.map_or(Ok(Merged::Nothing), |draft| draft.map(Merged::Write))
    }

    /// Returns the record that `sum` becomes under `key`.
    fn draft(&self, key: &StoredKey, sum: Sum<'_>) -> Result<Draft, Error> {
        let Sum { base, data, subject, expiry } = sum;
        let mut record = Record::clone(&base);
        if let Some(subject) = subject {
            record = record.with_subject(subject);
        }
        let record = self.with_data(record, key, &data.unwrap_or_default())?;
        Ok(Draft { expected: base.version(), record, expiry })
    }

    /// Applies the changes of `save` to `sum`, unless the conflict policy rejects them.
    fn apply<'a>(&self, key: &StoredKey, save: &'a Save, sum: &mut Sum<'a>) -> Result<Applied, Error> {
        let changes_expiry = self.changes_expiry(key, save);
        if sum.data.is_none() && sum.base.version() == save.base.version() {
            sum.data = Some(Cow::Borrowed(&save.data));
        } else {
            let theirs = match &sum.data {
                Some(data) => data,
                None => &sum.base.data(key, &*self.codec).map_err(|error| self.unreadable(key, error))?,
            };
            // The expiry is not one of the application's values: the later choice counts.
            let overlaps =
                save.data.overlaps(theirs, |key| key != EXPIRY_KEY) || save.overlaps_subject(sum.subject());
            if save.conflict_policy == ConflictPolicy::Reject && overlaps {
                return Ok(Applied::Rejected);
            }
            let mut merged = save.data.rebase(theirs);
            if !changes_expiry {
                // A clear is not meant for the expiry, but removes what another request has chosen.
                copy_expiry(&mut merged, theirs);
            }
            self.telemetry.counters.merges.bump();
            sum.data = Some(Cow::Owned(merged));
        }
        if let Some(subject) = &save.subject {
            sum.subject = Some(subject.clone());
        }
        if changes_expiry {
            sum.expiry = ExpiryWrite::Replace;
        }
        Ok(Applied::Yes)
    }

    /// Returns `true` if `save`, of the session under `key`, chooses another expiry.
    fn changes_expiry(&self, key: &StoredKey, save: &Save) -> bool {
        let before = save.base.data(key, &*self.codec).unwrap_or_default();
        save.data.get(EXPIRY_KEY) != before.get(EXPIRY_KEY)
    }

    /// Merges `save` onto `base` under the key `new`. Returns `None` if the conflict policy rejects it.
    pub(super) fn merge_rename(
        &self,
        key: &StoredKey,
        new: &StoredKey,
        save: &Save,
        base: Arc<Record>,
    ) -> Result<Option<Draft>, Error> {
        let mut sum = Sum::of(base);
        match self.apply(key, save, &mut sum)? {
            Applied::Yes => self.draft(new, sum).map(Some),
            Applied::Rejected => Ok(None),
        }
    }

    /// Reads the session, and merges `save` onto it under the key `new`.
    pub(super) async fn merge_rename_anew(
        &self,
        key: &StoredKey,
        new: &StoredKey,
        save: &Save,
    ) -> Result<Draft, Error> {
        let fresh = self.read(key).await?.ok_or(Error::SessionGone)?.record;
        self.merge_rename(key, new, save, fresh)?.ok_or(Error::Conflict)
    }

    /// Returns a new record of `data`, which begins now.
    pub(crate) fn new_record(
        &self,
        key: &StoredKey,
        data: &SessionData,
        subject: Option<Subject>,
    ) -> Result<Record, Error> {
        let now = self.runtime.now();
        self.with_data(Record::new(Bytes::new(), now, now).with_subject(subject), key, data)
    }

    /// Returns `record` with `data`, last used now.
    fn with_data(&self, record: Record, key: &StoredKey, data: &SessionData) -> Result<Record, Error> {
        self.check_keys(data)?;
        let now = self.runtime.now();
        let payload = self.codec.encode(key, data).map_err(Error::of_encoding)?;
        let expires_at = self.settings.expires_at(expiry_of(data), record.created_at(), now);
        let record = record.with_payload(payload).with_expires_at(expires_at).with_last_seen_at(now);
        self.check_size(&record)?;
        Ok(record)
    }

    fn check_keys(&self, data: &SessionData) -> Result<(), Error> {
        let Some(limit) = self.settings.max_keys else { return Ok(()) };
        // The expiry that the session keeps for itself does not count.
        let actual = data.len() - usize::from(data.contains(EXPIRY_KEY));
        if actual > limit { Err(Error::TooManyKeys { actual, limit }) } else { Ok(()) }
    }

    pub(super) fn check_size(&self, record: &Record) -> Result<(), Error> {
        let (actual, limit) = (record.payload().len(), self.settings.max_payload_bytes);
        if actual > limit { Err(Error::TooLarge { actual, limit }) } else { Ok(()) }
    }
}
