//! Sessions shared with a Django site: [`DjangoCodec`] reads and writes Django's signed payloads,
//! [`SecretKeys`] holds the site's `SECRET_KEY` and `SECRET_KEY_FALLBACKS`.
//!
//! `db_backends::django` reads and writes the table that the payloads are in.

mod auth;
mod codec;
mod error;
mod keys;
mod signing;

pub use auth::VerifiedBy;
pub use codec::DjangoCodec;
pub use error::UnreadablePayload;
pub use keys::{InvalidSecretKeys, SecretKeys};
// Hidden, because only `db_backends::django` needs them: Django's table has no columns for what it learns by
// these.
#[doc(hidden)]
pub use signing::{is_signed_text, signed_at};

// Hidden, because only `db_backends::django` needs it, for a column of text.
#[doc(hidden)]
pub mod instant {
    pub use crate::datetime::{format, isoformat, parse};
}
