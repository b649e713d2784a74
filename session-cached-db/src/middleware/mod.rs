//! Sessions for web frameworks.

#[cfg(feature = "actix-session")]
pub mod actix_session;
#[cfg(any(feature = "actix-session", feature = "tower-sessions"))]
mod adapter;
#[cfg(feature = "tower")]
pub mod tower;
#[cfg(feature = "tower-sessions")]
pub mod tower_sessions;
