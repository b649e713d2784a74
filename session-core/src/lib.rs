#![doc = include_str!("../README.md")]

mod cache;
mod codec;
mod data;
#[cfg(feature = "django")]
pub mod django;
mod entry;
mod envelope;
mod erased;
mod error;
mod expiry;
mod key;
mod persistence;
pub mod protocol;
mod record;
mod runtime;
mod subject;
mod time;

pub use cache::{Acquired, Cache, CacheProperties, Exchange, Expected, Scope};
pub use codec::{Codec, CodecError, JsonCodec};
pub use data::{MalformedJson, SessionData};
pub use entry::{Entry, Fence, Holder, Stamp, State, Token, Value};
pub use envelope::EnvelopeError;
pub use erased::{DynCache, DynPersistence, DynSubjectIndex};
pub use error::{BoxError, CacheError, Outcome, PersistenceError, SchemaProblem};
pub use expiry::Expiry;
pub use key::{InvalidKey, KeyForm, KeyPrefix, RandomnessUnavailable, SessionKey, StoredKey};
pub use persistence::{ExpiryWrite, Persistence, PersistenceProperties, SubjectIndex};
pub use record::{Record, Version};
pub use runtime::{BoxFuture, Runtime};
pub use subject::{InvalidSubject, Subject};
pub use time::Timestamp;

// What appears in this crate's signatures.
pub use bytes;
