//! Handles to the recorder of the crate `metrics`, made once, when a store is built. They do nothing without the feature
//! `metrics`, or if no recorder is installed by then.

use std::fmt;
use std::pin::Pin;

use session_core::Runtime;

/// The labels of every metric.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "nothing is reported"))]
pub(crate) struct Labels {
    /// The name of the store, of which a program may have several.
    pub(crate) store: String,
    pub(crate) cache: &'static str,
    pub(crate) database: &'static str,
}

/// A number that only grows.
pub(crate) struct Counter {
    #[cfg(feature = "metrics")]
    handle: metrics::Counter,
}

/// A number that goes up and down.
pub(crate) struct Gauge {
    #[cfg(feature = "metrics")]
    handle: metrics::Gauge,
}

/// A distribution of durations, in seconds.
pub(crate) struct Histogram {
    #[cfg(feature = "metrics")]
    handle: metrics::Histogram,
}

/// Defines a struct with a histogram for each kind of call.
macro_rules! latencies {
    ($(#[$doc:meta])* $name:ident, $metric:literal, $description:literal, $backend:ident: $($operation:ident),* $(,)?) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name {
            $(pub(crate) $operation: Histogram,)*
        }

        impl $name {
            pub(crate) fn new(labels: &Labels) -> Self {
                #[cfg(feature = "metrics")]
                metrics::describe_histogram!($metric, metrics::Unit::Seconds, $description);
                Self { $($operation: Histogram::new($metric, labels, labels.$backend, stringify!($operation)),)* }
            }
        }
    };
}

latencies! {
    /// The latencies of a shared cache. A cache in this process is not timed: its calls take less time than reading a clock.
    CacheLatencies, "session_cache_call_seconds", "How long calls of the cache take", cache:
    get, acquire, compare_exchange,
}

latencies! {
    DatabaseLatencies, "session_database_call_seconds", "How long calls of the database take", database:
    load, insert, update, touch, rename, delete, delete_all, delete_expired, list_by_subject, scan, now,
    note_rotation, rotations,
}

impl Counter {
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing is reported"))]
    pub(crate) fn new(name: &'static str, description: &'static str, labels: &Labels) -> Self {
        #[cfg(feature = "metrics")]
        metrics::describe_counter!(name, description);
        Self {
            #[cfg(feature = "metrics")]
            handle: metrics::counter!(name, "store" => labels.store.clone()),
        }
    }

    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing is reported"))]
    pub(crate) fn add(&self, n: u64) {
        #[cfg(feature = "metrics")]
        self.handle.increment(n);
    }
}

impl Gauge {
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing is reported"))]
    pub(crate) fn new(name: &'static str, description: &'static str, labels: &Labels) -> Self {
        #[cfg(feature = "metrics")]
        metrics::describe_gauge!(name, description);
        Self {
            #[cfg(feature = "metrics")]
            handle: metrics::gauge!(name, "store" => labels.store.clone()),
        }
    }

    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing is reported"))]
    pub(crate) fn set(&self, value: usize) {
        // A number above 32 bits is shown as the largest of 32 bits.
        #[cfg(feature = "metrics")]
        self.handle.set(f64::from(u32::try_from(value).unwrap_or(u32::MAX)));
    }
}

impl Histogram {
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing is reported"))]
    fn new(name: &'static str, labels: &Labels, backend: &'static str, operation: &'static str) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            handle: metrics::histogram!(
                name, "store" => labels.store.clone(), "backend" => backend, "operation" => operation
            ),
        }
    }

    /// Makes `call`, and records how long it took, to its end or until it was dropped.
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nothing is reported"))]
    pub(crate) async fn time<T>(
        &self,
        runtime: &dyn Runtime,
        call: Pin<&mut (impl Future<Output = T> + Send)>,
    ) -> T {
        #[cfg(feature = "metrics")]
        let _timer = Timer { histogram: self, runtime, began: runtime.now() };
        call.await
    }
}

#[cfg(feature = "metrics")]
struct Timer<'a> {
    histogram: &'a Histogram,
    runtime: &'a dyn Runtime,
    began: session_core::Timestamp,
}

#[cfg(feature = "metrics")]
impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let took = self.runtime.now().since(self.began);
        self.histogram.handle.record(took.as_secs_f64());
    }
}

macro_rules! debug_as_name {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}

debug_as_name!(Counter, Gauge, Histogram);
