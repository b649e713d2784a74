//! session-cached-db
