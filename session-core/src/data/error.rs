/// The error for text that is not the expected JSON. It names the place and shows nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the expected JSON, from line {line} column {column} on")]
pub struct MalformedJson {
    line: usize,
    column: usize,
}

impl MalformedJson {
    /// Creates the error for the byte `position` of `text`. Columns are counted in bytes.
    pub(super) fn at(text: &[u8], position: usize) -> Self {
        let mut before = text.get(..position).unwrap_or(text).rsplit(|byte| *byte == b'\n');
        let column = before.next().map_or(1, |line| line.len() + 1);
        Self { line: before.count() + 1, column }
    }
}

/// Keeps the place only: the error's own text may quote values.
impl From<serde_json::Error> for MalformedJson {
    fn from(error: serde_json::Error) -> Self {
        Self { line: error.line(), column: error.column() }
    }
}

/// The error for a text that a [`SessionData`](crate::SessionData) does not take as a value. It shows nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// The text is not one JSON value.
    #[error(transparent)]
    Malformed(#[from] MalformedJson),
    /// Arrays and objects are nested deeper than [`SessionData::MAX_DEPTH`](crate::SessionData::MAX_DEPTH): no reader would
    /// take the value again.
    #[error("arrays and objects are nested more than {limit} deep, which could not be read again; nest less")]
    TooDeep {
        /// The deepest nesting that is accepted.
        limit: usize,
    },
}

impl From<serde_json::Error> for InvalidValue {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.into())
    }
}
