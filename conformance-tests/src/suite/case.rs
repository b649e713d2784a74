//! A case: one behavior of a contract, as a test that can be run.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;

/// A case of a layer, for backends that `F` makes.
///
/// It passes by returning, and fails by a panic whose message says what was wrong.
pub struct Case<F> {
    /// The behavior, as a sentence in snake case.
    pub name: &'static str,
    /// The bullet of the trait's `# Behavior` list that the case shows, word for word from its beginning.
    /// Empty in the layer of pairs, whose contract is that of `session-cached-db` as a whole.
    pub shows: &'static str,
    #[doc(hidden)]
    pub run: for<'a> fn(&'a F) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl<F> Case<F> {
    /// Runs the case against a backend of `fixture`. Needs a tokio runtime with timers and I/O.
    ///
    /// Returns the reason if the case was skipped, because the fixture lacks a capability that it needs.
    pub async fn run(&self, fixture: &F) -> Option<&'static str> {
        skipped((self.run)(fixture)).await
    }
}

impl<F> fmt::Debug for Case<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

tokio::task_local! {
    /// The reason for which the running case was skipped.
    static SKIPPED: Cell<Option<&'static str>>;
}

/// Skips the running case, because its fixture lacks a capability that it needs. The suite reports it as
/// ignored.
pub(crate) fn skip(reason: &'static str) {
    // A case's function that is called on its own has no report.
    let _ = SKIPPED.try_with(|skipped| skipped.set(Some(reason)));
}

/// Runs a case, and returns the reason if it was skipped.
async fn skipped(run: impl Future<Output = ()>) -> Option<&'static str> {
    let noted = async {
        run.await;
        SKIPPED.with(Cell::get)
    };
    SKIPPED.scope(Cell::new(None), noted).await
}

/// Defines the function that lists the cases of a module: each is a function, with the bullet that it shows.
macro_rules! cases {
    ($(#[$doc:meta])* for $fixture:ident: $($name:ident $(=> $shows:literal)?,)*) => {
        $(#[$doc])*
        #[must_use]
        pub fn cases<F: $fixture>() -> Vec<$crate::suite::case::Case<F>> {
            vec![$($crate::suite::case::Case {
                name: stringify!($name),
                shows: concat!("" $(, $shows)?),
                run: |fixture| Box::pin($name(fixture)),
            },)*]
        }
    };
}

pub(crate) use cases;
