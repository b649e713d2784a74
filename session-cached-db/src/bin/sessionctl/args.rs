//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use session_cached_db::session_core::{InvalidKey, KeyPrefix, StoredKey};

/// Looks after the sessions of session-cached-db: its table, and the cache in front of it.
///
/// Pass URLs with passwords in the environment: other users of this machine can see command lines.
#[derive(Debug, Parser)]
#[command(name = "sessionctl", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: Connection,

    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    done, and something was found: no such session, a cache that disagrees, sessions that cannot be read
  2    the command line, the environment, a URL or a clock is wrong; nothing was done
  3    the database does not answer, or refuses
  4    the session table is missing, foreign, or of another version
  5    the cache does not answer, or refuses
  6    doctor: warnings
  7    doctor: problems
  130  stopped by Ctrl-C, after the batch
  141  the program that read the output has gone";

/// The places where the sessions are.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The database, such as postgres://USER@HOST/NAME or sqlite://FILE, with ?table=NAME unless it is `sessions`
    #[arg(long, global = true, value_name = "URL", env = "SESSIONCTL_DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: Option<Secret>,

    /// The cache, with the key_prefix of the application: redis://, rediss://, redis+cluster://, redis+sentinel:// or memcache://
    #[arg(long, global = true, value_name = "URL", env = "SESSIONCTL_CACHE_URL", hide_env_values = true)]
    pub(crate) cache_url: Option<Secret>,
}

/// A URL, which may hold a password.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Application {
    /// Returns the prefix that distinguishes the application's sessions from those of others.
    pub(crate) fn prefix(&self) -> Result<KeyPrefix, InvalidKey> {
        KeyPrefix::parse(&self.key_prefix)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the session table, or bring it up to date
    Migrate(Migrate),
    /// Delete expired sessions, in batches
    ClearExpired(ClearExpired),
    /// Count sessions, subjects and bytes
    Stats(Stats),
    /// List the sessions of a subject
    List(List),
    /// Show one session
    Show(Show),
    /// End sessions, for good, and keep the cache from showing them
    Revoke(Revoke),
    /// Seal every session with the first key of the ring, unless it is already
    Reseal(Rewrite),
    /// Move sessions that are stored under plain keys to hashed keys; no user is logged out
    ///
    /// Build the application with `accept_plain_keys` first: it then opens sessions under either kind of key.
    /// Other programs that know only plain keys do not find these sessions any more.
    HashKeys(Rewrite),
    /// Compare the cache with the database, key by key, changing nothing
    Check(Check),
    /// Rewrite a SQLite file without its empty pages; it gives back space bit by bit from then on
    Vacuum,
    /// Examine the database and the cache, and report likely causes of trouble
    Doctor,
    /// Print completions for a shell
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Only report what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the statements that make the table, and do not run them
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) sql: bool,
    /// Also make the table that a store with `rotation_grace` needs
    #[arg(long)]
    pub(crate) rotations: bool,
}

/// The speed at which a command goes through the table.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Pace {
    /// Number of sessions that one statement handles
    #[arg(long, value_name = "SESSIONS", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// Maximum number of sessions per second, on average; no limit without this option
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ClearExpired {
    /// Only count them
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Number of subjects to show, those with the most sessions first
    #[arg(long, value_name = "SUBJECTS", default_value_t = 10)]
    pub(crate) top: usize,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The subject whose sessions to list
    #[arg(long)]
    pub(crate) subject: String,
    #[command(flatten)]
    pub(crate) application: Application,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The stored key of the session, as `list` shows it
    #[arg(value_name = "STORED_KEY", value_parser = stored_key)]
    pub(crate) key: StoredKey,
    /// Show the session's values, too
    #[arg(long)]
    pub(crate) reveal: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// The format in which the application writes payloads.
#[derive(Debug, Args)]
pub(crate) struct Format {
    /// A file with the sealing keys, of which the first one seals; or set SESSIONCTL_SEALING_KEYS
    #[arg(long, value_name = "FILE", env = "SESSIONCTL_SEALING_KEYS_FILE")]
    pub(crate) sealing_keys_file: Option<PathBuf>,
    /// Accept unsealed payloads beside sealed ones
    #[arg(long)]
    pub(crate) accept_unsealed: bool,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = true)]
pub(crate) struct Revoke {
    /// The stored keys of the sessions to end, as `list` shows them
    #[arg(value_name = "STORED_KEY", value_parser = stored_key, group = "which", conflicts_with_all = ["subject", "all"])]
    pub(crate) keys: Vec<StoredKey>,
    /// End all sessions of this subject
    #[arg(long, group = "which", conflicts_with = "all")]
    pub(crate) subject: Option<String>,
    /// End all sessions: every user is logged out
    #[arg(long, group = "which", requires = "yes")]
    pub(crate) all: bool,
    /// Confirm --all
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) write: WriteOptions,
}

/// The options of the commands that write sessions, and fence the cache for it.
#[derive(Debug, Args)]
pub(crate) struct WriteOptions {
    #[command(flatten)]
    pub(crate) application: Application,
    #[command(flatten)]
    pub(crate) caching: Caching,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

/// The application whose sessions to handle, where several applications share a table.
#[derive(Clone, Debug, Args)]
pub(crate) struct Application {
    /// The application's `key_prefix`, which stands in front of every stored key; sessions with another
    /// prefix are left alone
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) key_prefix: String,
}

/// The absence of a cache, for commands that write.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Caching {
    /// Write without fencing a cache. An application that has one all the same (in its own process, like
    /// moka) may show sessions as they were before, for as long as its max_cache_age
    #[arg(long)]
    pub(crate) no_cache: bool,
}

/// The options of the commands that encode sessions again.
#[derive(Debug, Args)]
pub(crate) struct Rewrite {
    #[command(flatten)]
    pub(crate) format: Format,
    /// Compress payloads from this size on, as the application does
    #[arg(long, value_name = "BYTES")]
    pub(crate) compress_from: Option<usize>,
    #[command(flatten)]
    pub(crate) write: WriteOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Check only these keys, even if the database does not have them any more
    #[arg(value_name = "STORED_KEY", value_parser = stored_key)]
    pub(crate) keys: Vec<StoredKey>,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

/// Parses a command line. A stored key in it may begin with a hyphen, as every 64th hashed one does; it is
/// recognised by its length, which no option has.
pub(crate) fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let is_key = |argument: &OsString| {
        let argument = argument.to_str().filter(|text| text.starts_with('-') && text.len() >= 32);
        argument.is_some_and(|text| StoredKey::parse(text).is_ok())
    };
    let (keys, mut line): (Vec<_>, Vec<_>) = line.into_iter().partition(is_key);
    if !keys.is_empty() && !line.iter().any(|argument| argument == "--") {
        line.push("--".into());
    }
    line.extend(keys);
    Arguments::try_parse_from(line)
}

fn stored_key(text: &str) -> Result<StoredKey, String> {
    StoredKey::parse(text).map_err(|_| "not a key that a session could be stored under".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_definition_is_well_formed() {
        Arguments::command().debug_assert();
    }

    fn parsed(line: &[&str]) -> Result<Arguments, clap::Error> {
        parse(["sessionctl"].iter().chain(line).map(OsString::from))
    }

    #[test]
    fn stored_key_may_begin_with_hyphens_and_misspelled_option_is_refused() {
        for beginning in ["-h", "-V", "--", "-"] {
            let key = format!("{beginning}{}", "x".repeat(43 - beginning.len()));
            for command in ["show", "revoke", "check"] {
                for line in [[command, &key, "--json"], [command, "--json", &key], ["--json", command, &key]]
                {
                    assert!(parsed(&line).is_ok_and(|arguments| arguments.json), "{line:?}");
                }
                assert!(parsed(&[command, "--", &key]).is_ok());
            }
            let Command::Revoke(revoke) = parsed(&["revoke", &key, "an-other-key"]).unwrap().command else {
                panic!("another command");
            };
            assert_eq!(revoke.keys.len(), 2);
        }
        for line in [["revoke", "--no-cahce"], ["show", "--revael"], ["check", "--btach"]] {
            assert!(parsed(&[&line[..], &["some-key-or-other"]].concat()).is_err());
        }
    }

    #[test]
    fn documentation_lists_every_command_variable_and_exit_code() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sessionctl.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        let has_row = |beginning: &str| docs.lines().any(|line| line.starts_with(&format!("| {beginning}")));
        let command = Arguments::command();
        for subcommand in command.get_subcommands() {
            assert!(has_row(&format!("`{}", subcommand.get_name())), "{}", subcommand.get_name());
            for variable in
                subcommand.get_arguments().chain(command.get_arguments()).filter_map(clap::Arg::get_env)
            {
                assert!(has_row(&format!("`{}`", variable.to_str().unwrap())), "{variable:?}");
            }
        }
        for line in EXIT_CODES.lines().skip(1) {
            let code = line.split_whitespace().next().unwrap();
            assert!(has_row(&format!("{code} |")), "{code}");
        }
    }

    #[test]
    fn debug_shows_no_url() {
        let line = ["sessionctl", "--database-url", "postgres://u:s3cr3t@h/d", "doctor"];
        assert!(!format!("{:?}", parse(line.map(OsString::from)).unwrap()).contains("s3cr3t"));
    }
}
