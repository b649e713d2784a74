#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod cache;
mod codec;
#[cfg(feature = "compress")]
mod compress;
mod data;
#[cfg(feature = "django")]
mod datetime;
#[cfg(feature = "django")]
pub mod django;
mod entry;
mod envelope;
mod erased;
mod error;
mod expiry;
mod key;
mod near;
mod notices;
mod persistence;
mod persistence_properties;
pub mod protocol;
mod record;
mod record_write;
mod rotations;
mod runtime;
mod scan;
#[cfg(feature = "seal")]
mod seal;
#[cfg(feature = "__simulation")]
#[doc(hidden)]
pub mod simulation;
mod subject;
mod time;

pub use cache::{Acquired, Cache, CacheProperties, Exchange, Expected, Scope};
pub use codec::{Codec, CodecError, JsonCodec};
#[cfg(feature = "compress")]
pub use compress::{CompressCodec, TooLargeInflated};
pub use data::{InvalidValue, MalformedJson, SessionData};
pub use entry::{Entry, Fence, Holder, Stamp, State, StoreId, Token, Value};
pub use envelope::EnvelopeError;
pub use erased::{DynCache, DynDatabase, DynPersistence, DynRotations, DynScan, DynSubjectIndex};
pub use error::{BoxError, CacheError, Outcome, PersistenceError, SchemaProblem};
pub use expiry::Expiry;
pub use key::{InvalidKey, KeyForm, KeyPrefix, RandomnessUnavailable, SessionKey, StoredKey};
pub use near::{Near, NearEvent, NearObserver, NearSource};
pub use notices::{DatabaseChannel, DatabaseNotices, NoticeChannel, NoticeListener, NoticeSource};
pub use persistence::{ExpiredSession, ExpiredSessions, Persistence, Row, SessionTimes, SubjectIndex};
pub use persistence_properties::PersistenceProperties;
pub use record::{Record, RecordParts, Version};
pub use record_write::{ExpiryWrite, RecordWrite};
pub use rotations::{MaskedKey, Rotation, Rotations};
pub use runtime::{BoxFuture, Runtime};
pub use scan::Scan;
#[cfg(feature = "seal")]
pub use seal::{InvalidSealingKey, SealCodec, SealError, SealingKey, SealingKeyId, SealingKeys};
pub use subject::{InvalidSubject, Subject};
pub use time::Timestamp;

// Re-exported because its types are part of this crate's signatures.
pub use bytes;
