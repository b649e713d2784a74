//! The contracts in executable form: backends that are small enough to be seen to be right.

mod cache;
mod persistence;

pub use cache::{MemoryCache, MemoryChannel};
pub use persistence::MemoryPersistence;
