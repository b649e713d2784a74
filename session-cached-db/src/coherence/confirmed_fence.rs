use session_core::{Fence, Stamp, Timestamp, Token};

/// A fence that the cache has confirmed.
pub(super) struct ConfirmedFence {
    pub(super) token: Token,
    pub(super) stamp: Stamp,
    pub(super) fence: Fence,
    pub(super) deadline: Timestamp,
}
