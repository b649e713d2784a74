//! The parts that the SQL databases share. Each file uses only those before it in this order: `table`,
//! `error`, `run_to_end`, `queue`, `session_check`, `credentials`, `hosts`, `primary`, `connector`, `route`, `own_pool`,
//! `checkout`, `connections`, `server`; `value`, `columns`, `statements`, `reports`, `rotations_table`, `page`, `schema`;
//! `persistence`, which puts them together; `rotations`, with a table of its own, and `inspect`.
//!
//! Each database builds on them in rooms of its own: builder, connect, error, statements, schema, inspect.

pub(crate) mod checkout;
pub(crate) mod columns;
pub(crate) mod connections;
pub(crate) mod connector;
#[cfg(feature = "_server")]
pub(crate) mod credentials;
pub(crate) mod error;
#[cfg(feature = "_server")]
pub(crate) mod hosts;
mod inspect;
pub(crate) mod own_pool;
mod page;
pub(crate) mod persistence;
pub(crate) mod primary;
pub(crate) mod queue;
pub(crate) mod reports;
pub(crate) mod rotations;
pub(crate) mod rotations_table;
#[cfg(feature = "_server")]
pub(crate) mod route;
pub(crate) mod run_to_end;
pub(crate) mod schema;
#[cfg(feature = "_server")]
pub(crate) mod server;
pub(crate) mod session_check;
pub(crate) mod statements;
pub(crate) mod table;
pub(crate) mod value;
