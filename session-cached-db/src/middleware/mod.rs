//! Sessions for web frameworks.

#[cfg(feature = "actix-session")]
pub mod actix_session;
#[cfg(any(feature = "actix-session", feature = "tower-sessions", feature = "tower-sessions-0_14"))]
mod adapter;
#[cfg(feature = "tower")]
pub mod tower;
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-0_14"))]
pub mod tower_sessions;
