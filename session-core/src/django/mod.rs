//! What a Django site keeps in its sessions, so that it and this program share them: [`DjangoCodec`] reads and writes
//! Django's signed payloads, [`SecretKeys`] are the site's `SECRET_KEY` and `SECRET_KEY_FALLBACKS`.
//!
//! The table that the payloads are in is the business of `db_backends::django`.

mod auth;
mod codec;
pub mod instant;
mod keys;
mod signing;

pub use auth::VerifiedBy;
pub use codec::{DjangoCodec, UnreadablePayload};
pub use keys::{InvalidSecretKeys, SecretKeys};
pub use signing::{is_signed_text, signed_at};
