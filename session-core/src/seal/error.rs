use super::key::SealingKeyId;

/// An error in opening a sealed payload. Shows nothing of it. Leave the row alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// It is not sealed.
    #[error(
        "it is not sealed; another program has written it, or the table is from before: then accept unsealed payloads \
         until all are sealed"
    )]
    Unsealed,
    /// It was sealed with a key that is not in the ring.
    #[error(
        "it is sealed with the key {0}, which is not in the ring of keys; add that key behind the others"
    )]
    UnknownKey(SealingKeyId),
    /// It was written by a newer version.
    #[error("it is sealed in version {0:#04x}, which this version does not know; upgrade")]
    UnknownVersion(u8),
    /// It is shorter than any sealed payload.
    #[error("it was cut off")]
    Truncated,
    /// It was changed, cut off, or moved here from another session.
    #[error(
        "it is not authentic: it was changed or cut off, or belongs to another session; find out by whom"
    )]
    NotAuthentic,
}

impl SealError {
    /// Returns a word for the kind of error that does not change, for logs and metrics.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Unsealed => "unsealed",
            Self::UnknownKey(_) => "unknown_sealing_key",
            Self::UnknownVersion(_) => "unknown_seal_version",
            Self::Truncated => "truncated",
            Self::NotAuthentic => "not_authentic",
        }
    }
}
