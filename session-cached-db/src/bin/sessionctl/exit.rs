//! The ends of a run: exit codes, as `docs/sessionctl.md` lists them, and failures.

use std::fmt;
use std::io;
use std::process::ExitCode;

use session_cached_db::session_core::{CacheError, PersistenceError, SchemaProblem};
use session_cached_db::{BuildError, Error, cache_backends, db_backends};

/// The exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Done, and the operator should look at what was found.
    Found = 1,
    /// The command line, the environment, a URL or a clock is wrong. Nothing was done.
    Usage = 2,
    /// The database does not answer, or refuses.
    Database = 3,
    /// The session table is missing, foreign, or of another version.
    Schema = 4,
    /// The cache does not answer, or refuses.
    Cache = 5,
    /// The doctor has warnings.
    Warnings = 6,
    /// The doctor has found problems.
    Problems = 7,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
    /// The program that read the output has gone.
    OutputClosed = 141,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The failure of a command that was not carried out, or not to its end.
#[derive(Debug)]
pub(crate) enum Failure {
    Usage(String),
    Database(String),
    Schema(String),
    Cache(String),
    Interrupted(String),
    Output(io::Error),
}

impl Failure {
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Database(_) => Exit::Database,
            Self::Schema(_) => Exit::Schema,
            Self::Cache(_) => Exit::Cache,
            Self::Interrupted(_) => Exit::Interrupted,
            Self::Output(_) => Exit::OutputClosed,
        }
    }

    /// Adds how far the command had come.
    pub(crate) fn after(mut self, done: &str) -> Self {
        match &mut self {
            Self::Usage(text)
            | Self::Database(text)
            | Self::Schema(text)
            | Self::Cache(text)
            | Self::Interrupted(text) => {
                text.push_str("; before that, ");
                text.push_str(done);
            }
            Self::Output(_) => {}
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text)
            | Self::Database(text)
            | Self::Schema(text)
            | Self::Cache(text)
            | Self::Interrupted(text) => f.write_str(text),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                f.write_str("the program that read the output has closed it; the command itself is done")
            }
            Self::Output(error) => {
                write!(f, "the output cannot be written ({}); the command itself is done", error.kind())
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<PersistenceError> for Failure {
    fn from(error: PersistenceError) -> Self {
        Self::from(&error)
    }
}

impl From<&PersistenceError> for Failure {
    fn from(error: &PersistenceError) -> Self {
        match error {
            PersistenceError::Schema(problem) => Self::Schema(with_advice(problem)),
            PersistenceError::Config(_) => Self::Usage(error.to_string()),
            _ => Self::Database(error.to_string()),
        }
    }
}

/// Returns what is wrong with the table, and which command of this program helps.
fn with_advice(problem: &SchemaProblem) -> String {
    match problem {
        SchemaProblem::Missing { table } => format!(
            "there is no table {table}; if the database and the table=… in its URL are right, run `sessionctl migrate`"
        ),
        SchemaProblem::MissingRotations { table } => {
            format!("there is no table {table}; run `sessionctl migrate --rotations`")
        }
        SchemaProblem::Outdated { table, found, needed } => format!(
            "table {table} has schema version {found}, but {needed} is needed; run `sessionctl migrate`"
        ),
        SchemaProblem::TooNew { table, found, known } => format!(
            "table {table} has schema version {found}, but this sessionctl knows only {known}; install a newer one"
        ),
        problem => problem.to_string(),
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Schema(problem) => PersistenceError::Schema(problem).into(),
            BuildError::Database(error) => error.into(),
            error => Self::Usage(error.to_string()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Database(error) => Self::from(&*error),
            Error::CacheUnavailable => Self::Cache(
                "the cache cannot be reached, so it could go on showing sessions as they were; nothing was changed. Try \
                 again when it answers, or pass --no-cache if it is gone for good"
                    .into(),
            ),
            error => Self::Database(error.to_string()),
        }
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::Cache(error.to_string())
    }
}

impl From<cache_backends::ConnectError> for Failure {
    fn from(error: cache_backends::ConnectError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<db_backends::ConnectError> for Failure {
    fn from(error: db_backends::ConnectError) -> Self {
        match error {
            db_backends::ConnectError::Database(error) => error.into(),
            error => Self::Usage(error.to_string()),
        }
    }
}
