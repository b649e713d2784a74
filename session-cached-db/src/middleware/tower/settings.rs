use std::sync::Arc;

use super::cookie::SessionCookie;
use crate::session::SessionBackend;

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) store: Arc<dyn SessionBackend>,
    pub(super) cookie: SessionCookie,
    pub(super) is_touching: bool,
}
