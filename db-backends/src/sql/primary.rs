//! The server that the connections of a pool lead to: the primary, as far as is known.
//!
//! After a failover an address leads to another server, and connections that were opened before may still
//! lead to the former one, which may not know that it was replaced. So they are used no more as soon as one
//! that was opened later leads elsewhere, or as soon as one finds that its server takes no writes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::sql::session_check::ServerId;

/// The time for which a server that was left is remembered. An address that leads back to it meanwhile leads
/// to several servers at once, none of which replaces another.
const MEMORY: Duration = Duration::from_secs(60);

/// The server that a pool's connections lead to.
#[derive(Default)]
pub(crate) struct Primary {
    known: Mutex<Known>,
    /// Connections that were opened before this instant are used no more.
    since: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct Known {
    server: Option<ServerId>,
    /// The servers before it, and the time at which each was last found.
    former: Vec<(ServerId, Instant)>,
}

impl Primary {
    /// Returns `true` if a connection that was opened at this instant may be used.
    pub(crate) fn may_use(&self, opened_at: Instant) -> bool {
        self.since.borrow().is_none_or(|since| opened_at >= since)
    }

    /// Waits until a connection that was opened at this instant may not be used any more.
    pub(crate) async fn is_left(&self, opened_at: Instant) {
        let is_left = |since: &Option<Instant>| since.is_some_and(|since| opened_at < since);
        // Never fails, because the sender is kept here.
        let _ = self.since.subscribe().wait_for(is_left).await;
    }

    /// Notes that a server takes no writes any more. No connection that was opened up to now may be used.
    pub(crate) fn leave(&self) {
        self.leave_all_before(Instant::now());
    }

    /// Notes that a connection, whose opening began at this instant, leads to `server`.
    pub(crate) fn found(&self, server: &ServerId, began: Instant) {
        if self.is_replaced_by(server) {
            self.leave_all_before(began);
            tracing::info!(
                target: "db_backends",
                event = "database_replaced",
                "the database's address leads to another server than before; connections are opened anew"
            );
        }
    }

    fn is_replaced_by(&self, server: &ServerId) -> bool {
        let mut known = self.known();
        if known.server.as_ref().is_some_and(|present| present.is_same(server)) {
            return false;
        }
        known.former.retain(|(_, met_at)| met_at.elapsed() < MEMORY);
        if let Some((_, met_at)) = known.former.iter_mut().find(|(former, _)| former.is_same(server)) {
            *met_at = Instant::now();
            return false;
        }
        let replaced = known.server.replace(server.clone());
        known.former.extend(replaced.map(|replaced| (replaced, Instant::now())));
        !known.former.is_empty()
    }

    fn leave_all_before(&self, instant: Instant) {
        self.since.send_if_modified(|since| {
            let is_later = since.is_none_or(|since| since < instant);
            if is_later {
                *since = Some(instant);
            }
            is_later
        });
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> ServerId {
        ServerId { name: name.to_owned(), started_at: 0 }
    }

    #[test]
    fn connections_to_a_replaced_server_are_left_and_later_ones_are_kept() {
        let (primary, before) = (Primary::default(), Instant::now());
        primary.found(&server("a"), before);
        assert!(primary.may_use(before), "the first server replaces none");
        let after = before + Duration::from_millis(1);
        primary.found(&server("a"), after);
        assert!(primary.may_use(before));
        primary.found(&server("b"), after);
        assert!(!primary.may_use(before));
        assert!(primary.may_use(after));
    }

    #[test]
    fn servers_that_share_an_address_replace_each_other_once_only() {
        let (primary, at) = (Primary::default(), Instant::now());
        let later = |millis| at + Duration::from_millis(millis);
        for (millis, name) in ["a", "b", "a", "b", "a"].into_iter().enumerate() {
            primary.found(&server(name), later(millis as u64));
        }
        assert!(!primary.may_use(later(0)));
        assert!(primary.may_use(later(1)), "connections to both are kept");
    }

    #[tokio::test]
    async fn waiting_for_a_connection_to_be_left_ends_when_it_is() {
        let (primary, opened_at) = (Primary::default(), Instant::now());
        let mut left = std::pin::pin!(primary.is_left(opened_at));
        let is_over = tokio::time::timeout(Duration::from_millis(1), &mut left).await;
        assert!(is_over.is_err());
        std::thread::sleep(Duration::from_millis(1));
        primary.leave();
        left.await;
        assert!(!primary.may_use(opened_at));
    }
}
