use crate::MalformedJson;

/// An error in reading Django's payload. Shows nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnreadablePayload {
    /// None of the keys has signed it: it was tampered with, or cut off, or a key is missing.
    #[error(
        "none of the secret keys has signed it; it was tampered with, or the SECRET_KEY of the site or one of its \
         SECRET_KEY_FALLBACKS is missing here"
    )]
    Signature,
    /// It is not of the form that Django signs.
    #[error("it is not of the form that Django signs")]
    Form,
    /// It cannot be inflated.
    #[error("it cannot be inflated")]
    Compression,
    /// It would be too large.
    #[error("its JSON text has more than {limit} bytes; if that is right, raise max_json_bytes")]
    TooLarge {
        /// The largest JSON text, in bytes.
        limit: usize,
    },
    /// The signed text is no JSON object.
    #[error("{0}")]
    Json(#[source] MalformedJson),
}
