//! The warning about an eviction policy that evicts fences first.

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};

use session_core::Cache;
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::server::Server;
use crate::{eventually, key, to};

/// Collects warning events.
#[derive(Clone, Default)]
struct Warnings {
    text: Arc<Mutex<String>>,
    came: Arc<Notify>,
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN && metadata.target().starts_with("cache_backends")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Text(&mut self.text.lock().unwrap()));
        self.came.notify_one();
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

// The test needs one thread only, because the subscriber is set for this thread.
#[tokio::test]
async fn eviction_policy_that_evicts_fences_first_emits_a_warning() {
    for (policy, warned) in [("volatile-ttl", true), ("allkeys-lru", false), ("noeviction", false)] {
        let warnings = Warnings::default();
        let _guard = tracing::subscriber::set_default(warnings.clone());
        let info = format!("# Memory\r\nmaxmemory_policy:{policy}\r\n");
        let server = Server::start_with_info(&format!("${}\r\n{info}\r\n", info.len())).await;
        let cache = to(&server).build().unwrap();
        cache.get(&key()).await.unwrap();
        eventually(&server.asked_for_info).await;
        if warned {
            eventually(&warnings.came).await;
            let text = warnings.text.lock().unwrap();
            assert!(text.contains(policy) && text.contains("event=\"evicts_fences_first\""), "{text}");
        } else {
            // The answer to a later command is read after the one to `INFO`.
            cache.get(&key()).await.unwrap();
            tokio::task::yield_now().await;
            assert_eq!(*warnings.text.lock().unwrap(), "");
        }
    }
}

#[tokio::test]
async fn server_that_does_not_report_its_eviction_policy_is_used() {
    let server =
        Server::start_with_info("-NOPERM this user has no permissions to run the 'info' command\r\n").await;
    assert_eq!(to(&server).build().unwrap().get(&key()).await.unwrap(), None);
}
