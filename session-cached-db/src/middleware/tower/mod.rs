//! Sessions for services of [tower], and with the feature `axum` for axum.
//!
//! ```
//! # #[cfg(all(feature = "axum", feature = "moka", feature = "sqlite"))]
//! # mod example {
//! use axum::{Router, routing::get};
//! use session_cached_db::tower::{SessionHandle, SessionLayer};
//! use session_cached_db::{CachedDb, Error, MokaCache, SqlitePersistence};
//!
//! # pub
//! async fn app() -> Result<Router, Box<dyn std::error::Error>> {
//!     let cache = MokaCache::builder().max_bytes(64 << 20).build();
//!     let db = SqlitePersistence::connect("sqlite://sessions.db").await?;
//!     let store = CachedDb::builder(cache, db).sole_process().build().await?;
//!     Ok(Router::new().route("/", get(visit)).layer(SessionLayer::new(store)))
//! }
//!
//! async fn visit(session: SessionHandle) -> Result<String, Error> {
//!     let mut session = session.lock().await?; // loads it, if the client has one
//!     let visits = session.modify("visits", |visits: &mut u32| {
//!         *visits += 1;
//!         *visits
//!     })?;
//!     Ok(format!("visit number {visits}")) // after this, the session is saved and the cookie is set
//! }
//! # }
//! ```
//!
//! A handler locks the [`SessionHandle`] and gets the [`Session`](crate::Session) with everything that it can
//! do: merge the changes of two requests that run at the same time, [`log_in`](crate::Session::log_in),
//! [`log_out`](crate::Session::log_out). [`SessionLayer`] documents what happens around
//! the handler.
//!
//! [tower]: https://docs.rs/tower

#[cfg(feature = "axum")]
mod axum;
mod body;
mod caching;
mod cookie;
mod handle;
mod header;
mod layer;
mod lock;
mod opened;
mod response;
mod seal;
mod settings;
mod transport;

#[cfg(feature = "axum")]
pub use self::axum::MissingSessionLayer;
pub use self::body::{AnyBody, ErrorBody, SameBody, SessionBody};
pub use self::cookie::SessionCookie;
pub use self::handle::{SessionGuard, SessionHandle};
pub use self::header::SessionHeader;
pub use self::layer::{SessionLayer, SessionService};
pub use self::response::SessionFailure;
pub use self::transport::{InvalidTransport, PresentedKeys, Transport};
#[cfg(any(feature = "private-cookies", feature = "signed-cookies"))]
pub use ::cookie::Key;
pub use ::cookie::SameSite;
