//! The contract of [`Persistence`](session_core::Persistence), case by case.
// (Interim version by the lead so that the crate compiles; the full one replaces this file.)

use session_core::{Persistence, SubjectIndex};

/// Makes handles to one table, which is migrated.
pub trait PersistenceFixture: Send + Sync + 'static {
    /// The database.
    type Persistence: Persistence;
    /// Another handle to the same table.
    fn open(&self) -> impl Future<Output = Self::Persistence> + Send;
}

impl<F, Fut> PersistenceFixture for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output: Persistence> + Send,
{
    type Persistence = Fut::Output;
    fn open(&self) -> impl Future<Output = Self::Persistence> + Send {
        self()
    }
}

/// Makes handles to one table with an index of subjects.
pub trait SubjectIndexFixture: Send + Sync + 'static {
    /// The database.
    type Persistence: SubjectIndex;
    /// Another handle to the same table.
    fn open(&self) -> impl Future<Output = Self::Persistence> + Send;
}

impl<F, Fut> SubjectIndexFixture for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output: SubjectIndex> + Send,
{
    type Persistence = Fut::Output;
    fn open(&self) -> impl Future<Output = Self::Persistence> + Send {
        self()
    }
}

/// All cases of this layer.
#[must_use]
pub fn cases<F: PersistenceFixture>() -> Vec<crate::Case<F>> {
    Vec::new()
}
