//! The scenarios that are listed by their names.

/// Several writers of one session in one process, several loads of it, and exchanges that are lost
/// repeatedly.
pub(super) const CROWDS: &[&str] = &[
    "merge@0+merge@0+merge@0+touch@0+delete@0/vacant/shared/0",
    "merge@0+merge@0+merge@0+merge@0+merge@0/vacant/shared/0",
    "merge@0+merge@0+overwrite@0+touch@0+delete@0/cached/shared/0",
    "load@1+merge@0+merge@0+merge@0+delete@0/cached/shared/0",
    "load@0+load@1+merge@0+merge@0+merge@0/cached/shared/0",
    "merge@0+merge@0+rename@0+load-b@1/vacant/shared/0",
    "revoke@0+merge@0+merge@0+create@1/vacant/shared/0",
    "merge@0+merge@0+merge@0/vacant/shared/1",
    "merge@0+merge@0+merge@0/cached/sensitive/1",
    "use@0+use@0+use@1+merge@0/vacant/shared/0",
    "use@0+use@0+delete@1/cached/shared/0",
    "use@0+use@1/cached/shared/1",
    "load@0+load@0+load@0+delete@1/vacant/shared/0",
    "load@0+load@0+load@0/vacant/shared/1",
    "merge@0/vacant/shared/1/rival8",
    "delete@0/cached/shared/1/rival8",
    "touch@0/cached/shared/1/rival8",
    "rename@0/vacant/shared/0/rival8",
    "load@1+merge@0/cached/shared/0/rival8",
    "merge@0+merge@0/vacant/shared/0/rival8",
    "delete@0+delete-b@0/vacant/sensitive/2",
];

/// Crowds that take longer.
pub(super) const LARGE_CROWDS: &[&str] = &[
    "merge@0+merge@0+merge@1+merge@1/vacant/shared/0",
    "load@1+merge@0+merge@0+merge@0/vacant/sensitive/1",
    "load@0+load@1+merge@0+merge@0+merge@0+touch@0+delete@0/cached/shared/0",
    "merge@0+merge@1/vacant/shared/0/rival6",
    "merge@0+merge@0+delete@1/vacant/shared/0/rival6",
    "load@0+load@0+load@0/vacant/shared/2",
    "load@0+load@0+load@0+delete@1/vacant/shared/1",
    "merge@0+merge@0+merge@0/vacant/shared/2",
];

/// Processes that each have memory in front of the shared cache, with loads to show what is in it. Their faults are those
/// of channels. What is `cached` is in all memories in the beginning, and what is `ending` in the shared cache only.
pub(super) const NEAR: &[&str] = &[
    "load@0+load@0/vacant/near/1",
    "load@1+overwrite@0/cached/near/1",
    "load@1+delete@0/cached/near/1",
    "load@0+delete@0/cached/near/1",
    "load@1+delete@0/cached/near/0/ticks2",
    "load@1+overwrite@0/cached/near/0/ticks2",
    "load@1+touch@0/cached/near/0/ticks1",
    "load@1+merge@0/cached/near/0/ticks1",
    "load@1+rename@0/cached/near/0",
    "load@1+revoke@0/cached/near/0",
    "load@1+load@1+overwrite@0/cached/near/0/ticks1",
    "load@1+load@1+overwrite@0/ending/near/0",
    "load@0+load@0+overwrite@0/cached/near/0",
    "load@0+load@0+overwrite@0/ending/near/0",
    "load@1+load@1+delete@0/ending/near/0",
    "load@1+delete@0/ending/near/1",
    "follow@1+rename@0/cached/near/1",
];

/// Arrangements that are no part of the mixes.
pub(super) const RARE: &[&str] = &[
    "load@1+save@0/cached/closed/1",
    "load@1+delete@0/cached/closed/2",
    "load@1+rename@0/cached/closed/1",
    "load@1+save@0/cached/failover/2",
    "load@1+delete@0/vacant/failover/2",
    "load@1+delete@0/vacant/fragile/3",
    "load@0+elsewhere@0/vacant/process/0",
    "load@0+save@0+elsewhere@0/cached/process/0",
    "load@0+load@0/vacant/deaf/0",
    "load@1+delete@0/vacant/deaf/0",
    "load@1+overwrite@0/cached/strict/0",
    "load@1+merge@0/cached/strict/1",
    "load@1+save@0/cached/near-sensitive/1",
];

/// Sessions that get another key, and requests that come late with the old one. Their clients are led to the new key after a
/// renewal, and not after a change of rights. A change of rights runs without faults: the oracle does not know that a session whose
/// key no client has is ended.
pub(super) const ROTATIONS: &[&str] = &[
    "open@0+renew@0/vacant/shared/1",
    "open@1+renew@0/cached/shared/1",
    "open@0+cycle@0/vacant/shared/0",
    "open@1+cycle@0/cached/shared/0",
    "merge@0+renew@0/vacant/shared/0",
    "merge@0+renew@1/vacant/shared/1",
    "merge@1+renew@0/cached/shared/1",
    "merge@0+cycle@0/vacant/shared/0",
    "merge@1+cycle@0/cached/shared/0",
    "renew@0+renew@0/vacant/shared/1",
    "renew@0+renew@1/cached/shared/0",
    "log-out@0+renew@0/vacant/shared/1",
    "log-out@1+renew@0/cached/shared/1",
    "log-out@0+cycle@0/vacant/shared/0",
    "log-out@1+cycle@0/cached/shared/0",
    "renew@0+revoke@1/vacant/shared/0",
    "open@1+renew@0+delete-b@1/vacant/shared/0",
    "load@1+load-b@1+renew@0/cached/shared/0",
];

/// Processes that each have memory alone, and a database that reports what others commit. What is `cached` is in all
/// memories in the beginning.
pub(super) const NOTIFIED: &[&str] = &[
    "load@0+load@0/vacant/notified/1",
    "load@1+overwrite@0/cached/notified/1",
    "load@1+delete@0/cached/notified/1",
    "load@0+delete@0/cached/notified/1",
    "load@1+delete@0/cached/notified/0/ticks2",
    "load@1+overwrite@0/cached/notified/0/ticks2",
    "load@1+touch@0/cached/notified/0/ticks1",
    "load@1+merge@0/cached/notified/0/ticks1",
    "load@1+rename@0/cached/notified/0",
    "load@1+revoke@0/cached/notified/0",
    "load@0+revoke@1/cached/notified/1",
    "load@1+follow@0+rename@0/cached/notified/0",
    "load@1+create@0/vacant/notified/0",
    "load@1+load@1+overwrite@0/cached/notified/0/ticks1",
    "load@1+load@1+overwrite@0/vacant/notified/0",
    "load@1+load@1+delete@0/vacant/notified/0",
    "load@0+load@0+overwrite@0/cached/notified/0",
    "load@1+overwrite@0+overwrite@1/cached/notified/0/ticks1",
    "load@1+overwrite@0+overwrite@1/vacant/notified/1",
    "load@1+delete@0+overwrite@1/cached/notified/0",
];
