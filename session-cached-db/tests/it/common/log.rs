//! Listening to the log.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Metadata, Subscriber};

/// Everything that is logged at any level, by this thread as long as this is kept, or by all threads.
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    _guard: Option<DefaultGuard>,
}

impl Log {
    /// Starts listening to this thread.
    pub fn listen() -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let guard = tracing::subscriber::set_default(Listener { lines: Arc::clone(&lines) });
        Self { lines, _guard: Some(guard) }
    }

    /// Starts listening to all threads except those that have a listener of their own. Can be called once in
    /// a process.
    pub fn listen_everywhere() -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::set_global_default(Listener { lines: Arc::clone(&lines) }).unwrap();
        Self { lines, _guard: None }
    }

    /// Returns the log, one event a line: its level, then each field as `name=value`.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Returns the events of the store named `event`.
    pub fn events(&self, event: &str) -> Vec<String> {
        let field = format!(" event=\"{event}\"");
        self.lines().into_iter().filter(|line| line.contains(&field)).collect()
    }
}

struct Listener {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut line = Line(format!("span {}", span.metadata().name()));
        span.record(&mut line);
        self.lines.lock().unwrap().push(line.0);
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, values: &Record<'_>) {
        let mut line = Line("record".to_owned());
        values.record(&mut line);
        self.lines.lock().unwrap().push(line.0);
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.lines.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
