//! cache-backends
