//! The reasons why a row of Django's table cannot be read.

use session_core::PersistenceError;

/// An error in reading a row. Shows nothing of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corrupt {
    #[error("column {0} has a value that Django never writes")]
    Column(&'static str),
    #[error("column session_data holds more than this version ever reads")]
    Size,
}

impl From<Corrupt> for PersistenceError {
    fn from(corrupt: Corrupt) -> Self {
        Self::CorruptRow(Box::new(corrupt))
    }
}
