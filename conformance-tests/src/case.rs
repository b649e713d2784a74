//! A case: one behaviour of a contract, as something that can be run.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;

/// A case of a layer whose backends are made by `F`.
///
/// It passes by returning, and fails by a panic whose message says what was wrong.
pub struct Case<F> {
    /// The behaviour, as a sentence in snake case.
    pub name: &'static str,
    /// The bullet of the trait's `# Behavior` list that it shows, word for word from its beginning. Empty in the layer of
    /// pairs, whose contract is that of `session-cached-db` as a whole.
    pub shows: &'static str,
    #[doc(hidden)]
    pub run: for<'a> fn(&'a F) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl<F> Case<F> {
    /// Runs it against a backend of `fixture`. Needs a tokio runtime with timers and I/O.
    pub async fn run(&self, fixture: &F) {
        (self.run)(fixture).await;
    }
}

impl<F> fmt::Debug for Case<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

tokio::task_local! {
    /// Why the case that runs shows nothing here.
    static SKIPPED: Cell<Option<&'static str>>;
}

/// Notes why the case that runs shows nothing here: its fixture cannot do what it needs. The suite reports it as ignored.
pub(crate) fn skip(reason: &'static str) {
    // Outside of a suite, no report is made.
    let _ = SKIPPED.try_with(|skipped| skipped.set(Some(reason)));
}

/// Runs a case, and returns why it showed nothing, if it was skipped.
pub(crate) async fn skipped(run: impl Future<Output = ()>) -> Option<&'static str> {
    let noted = async {
        run.await;
        SKIPPED.with(Cell::get)
    };
    SKIPPED.scope(Cell::new(None), noted).await
}

/// The cases of a layer, as a function that lists them: each a function of the module, and the bullet that it shows.
macro_rules! cases {
    ($(#[$doc:meta])* for $fixture:ident: $($name:ident $(=> $shows:literal)?,)*) => {
        $(#[$doc])*
        #[must_use]
        pub fn cases<F: $fixture>() -> Vec<$crate::Case<F>> {
            vec![$($crate::Case {
                name: stringify!($name),
                shows: concat!("" $(, $shows)?),
                run: |fixture| Box::pin($name(fixture)),
            },)*]
        }
    };
}

pub(crate) use cases;
