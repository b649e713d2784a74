use crate::{Record, Version};

/// A record that replaces a stored one, the version that it replaces, and its effect on the session's expiry.
///
/// ```
/// use session_core::{ExpiryWrite, Record, RecordWrite, Timestamp};
///
/// let found = Record::new("{}".into(), Timestamp::from_secs(0), Timestamp::from_secs(3_600));
/// let ended = found.clone().with_expires_at(Timestamp::from_secs(60));
/// let write = RecordWrite::new(&ended).with_expected(found.version()).with_expiry(ExpiryWrite::Replace);
/// assert_eq!(write.expected, Some(found.version()));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RecordWrite<'a> {
    /// The record to write. Its own version and its `created_at` do not count.
    pub record: &'a Record,
    /// The version that the session must have. Defaults to `None`: any version is replaced.
    pub expected: Option<Version>,
    /// The effect on the session's expiry. Defaults to [`ExpiryWrite::Extend`].
    pub expiry: ExpiryWrite,
}

impl<'a> RecordWrite<'a> {
    /// Creates a write of `record` over any version, which never makes the expiry earlier.
    #[must_use]
    pub const fn new(record: &'a Record) -> Self {
        Self { record, expected: None, expiry: ExpiryWrite::Extend }
    }

    /// Sets the version that the session must have. Defaults to `None`: any version is replaced.
    #[must_use]
    pub fn with_expected(mut self, expected: impl Into<Option<Version>>) -> Self {
        self.expected = expected.into();
        self
    }

    /// Sets the effect on the session's expiry. Defaults to [`ExpiryWrite::Extend`].
    #[must_use]
    pub const fn with_expiry(mut self, expiry: ExpiryWrite) -> Self {
        self.expiry = expiry;
        self
    }
}

/// The effect of a write on a session's expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryWrite {
    /// The row gets the later one of its own expiry and the record's. So a write that was prepared before
    /// another node's touch does not undo it.
    Extend,
    /// The row gets the record's expiry, also when it is earlier, because the application has chosen it.
    Replace,
}
