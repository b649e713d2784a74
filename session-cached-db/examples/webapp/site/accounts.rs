//! Names and passwords, in a SQLite database of their own. Passwords are kept as Argon2id hashes.

use std::str::FromStr as _;
use std::sync::LazyLock;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use session_cached_db::db_backends::sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use session_cached_db::db_backends::sqlx::{self, query, query_scalar};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Accounts {
    pool: SqlitePool,
}

/// The accounts cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("the accounts cannot be used: {0}")]
pub(crate) struct AccountsError(#[source] BoxError);

pub(crate) enum SignUp {
    /// The user's name, as it was stored.
    Done(String),
    Refused(&'static str),
}

impl Accounts {
    pub(crate) async fn open(url: &str) -> Result<Self, AccountsError> {
        let options = SqliteConnectOptions::from_str(url)?.create_if_missing(true);
        let pool = SqlitePool::connect_with(options).await?;
        let table =
            "CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, password TEXT NOT NULL) STRICT";
        query(table).execute(&pool).await?;
        Ok(Self { pool })
    }

    pub(crate) async fn sign_up(&self, name: &str, password: &str) -> Result<SignUp, AccountsError> {
        let name = name.trim().to_lowercase();
        if name.is_empty()
            || name.chars().count() > 40
            || !name.chars().all(|c| c.is_alphanumeric() || c == '-')
        {
            return Ok(SignUp::Refused("A name has 1 to 40 letters, digits and hyphens."));
        }
        if password.chars().count() < 8 || password.len() > 200 {
            return Ok(SignUp::Refused("A password has at least 8 characters, and at most 200."));
        }
        let password = password.to_owned();
        let hash =
            aside(move || Ok(Argon2::default().hash_password(password.as_bytes())?.to_string())).await?;
        let added = query("INSERT INTO accounts (name, password) VALUES (?, ?) ON CONFLICT DO NOTHING");
        let added = added.bind(&name).bind(hash).execute(&self.pool).await?;
        Ok(match added.rows_affected() {
            0 => SignUp::Refused("This name is taken. Please choose another."),
            _ => SignUp::Done(name),
        })
    }

    /// Returns the name of the user, or `None` if the name or the password is wrong.
    pub(crate) async fn log_in(&self, name: &str, password: &str) -> Result<Option<String>, AccountsError> {
        let name = name.trim().to_lowercase();
        let hash: Option<String> = query_scalar("SELECT password FROM accounts WHERE name = ?")
            .bind(&name)
            .fetch_optional(&self.pool)
            .await?;
        let password = password.to_owned();
        // An unknown name takes as long, so that the time does not reveal which names exist.
        let is_known = hash.is_some();
        let matches = aside(move || {
            let hash = hash.unwrap_or_else(|| UNKNOWN_NAME.clone());
            let hash = PasswordHash::new(&hash)?;
            Ok(Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        Ok((matches.await? && is_known).then_some(name))
    }
}

/// The hash to verify against when the name is unknown.
static UNKNOWN_NAME: LazyLock<String> = LazyLock::new(|| {
    Argon2::default()
        .hash_password(b"no user has this password")
        .map(|hash| hash.to_string())
        .unwrap_or_default()
});

/// Runs `work` in a thread for blocking tasks, because hashing takes long on purpose.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, argon2::password_hash::Error> + Send + 'static,
) -> Result<T, AccountsError> {
    #[allow(clippy::disallowed_methods, reason = "the library must not, an application may")]
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| AccountsError(error.into()))?
        .map_err(|error| AccountsError(error.to_string().into()))
}

impl From<sqlx::Error> for AccountsError {
    fn from(error: sqlx::Error) -> Self {
        Self(error.into())
    }
}
