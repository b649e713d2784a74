//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use session_cached_db::session_core::{InvalidKey, KeyPrefix, StoredKey};

/// Looks after the sessions of session-cached-db: its table, and the cache in front of it.
///
/// URLs with passwords are better given by the environment: other users of this machine can see command lines.
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
  141  whoever read the output has gone";

/// Where the sessions are.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The database: postgres://, mysql://, mariadb:// or sqlite://, with ?table=NAME unless it is `sessions`
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
    /// The prefix, to tell its sessions from others'.
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
    /// Delete what has expired, in batches
    ClearExpired(ClearExpired),
    /// Count sessions, subjects and bytes
    Stats(Stats),
    /// List the sessions of a subject
    List(List),
    /// Show one session
    Show(Show),
    /// End sessions, for good, and keep the cache from showing them
    Revoke(Revoke),
    /// Seal with the first key of the ring what is not sealed with it
    Reseal(Reseal),
    /// Give hashed keys to sessions that are stored under plain ones, and log nobody out
    HashKeys(HashKeys),
    /// Compare the cache with the database, key by key, changing nothing
    Check(Check),
    /// Look at the database and the cache for what would cause trouble
    Doctor,
    /// Print completions for a shell
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Only tell what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the statements that make the table, and run none
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) sql: bool,
}

/// How fast a table is gone through.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Pace {
    /// How many sessions one statement takes on
    #[arg(long, value_name = "SESSIONS", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// The most sessions per second, on average; without, as fast as it goes
    #[arg(long, value_name = "SESSIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ClearExpired {
    /// Only tell how many there are
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// How many of the subjects with the most sessions to show
    #[arg(long, value_name = "SUBJECTS", default_value_t = 10)]
    pub(crate) top: usize,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Whose sessions
    #[arg(long)]
    pub(crate) subject: String,
    #[command(flatten)]
    pub(crate) application: Application,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The key that it is stored under, as `list` shows it
    #[arg(value_name = "STORED_KEY", value_parser = stored_key)]
    pub(crate) key: StoredKey,
    /// Show what the session holds, too
    #[arg(long)]
    pub(crate) reveal: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// How the application writes payloads.
#[derive(Debug, Args)]
pub(crate) struct Format {
    /// A file with the sealing keys, the first one sealing; or have them in SESSIONCTL_SEALING_KEYS
    #[arg(long, value_name = "FILE", env = "SESSIONCTL_SEALING_KEYS_FILE")]
    pub(crate) sealing_keys_file: Option<PathBuf>,
    /// Accept payloads that are not sealed, beside those that are
    #[arg(long)]
    pub(crate) accept_unsealed: bool,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = true)]
pub(crate) struct Revoke {
    /// The keys that they are stored under, as `list` shows them
    #[arg(value_name = "STORED_KEY", value_parser = stored_key, group = "which", conflicts_with_all = ["subject", "all"])]
    pub(crate) keys: Vec<StoredKey>,
    /// All of this subject
    #[arg(long, group = "which", conflicts_with = "all")]
    pub(crate) subject: Option<String>,
    /// All that there are: everybody is logged out
    #[arg(long, group = "which", requires = "yes")]
    pub(crate) all: bool,
    /// Yes, all
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) application: Application,
    #[command(flatten)]
    pub(crate) caching: Caching,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

/// Whose sessions they are, where several applications share a table.
#[derive(Clone, Debug, Args)]
pub(crate) struct Application {
    /// What stands in front of every stored key, as the application's `key_prefix` says; sessions with another one are left
    /// alone
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) key_prefix: String,
}

/// What is in front of the database, for who writes to it.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Caching {
    /// There is no cache that could be fenced. Applications that have one all the same (in their own process, like moka)
    /// may show what it was before, for as long as their max_cache_age
    #[arg(long)]
    pub(crate) no_cache: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Reseal {
    #[command(flatten)]
    pub(crate) format: Format,
    /// Compress payloads from this size on, as the application does
    #[arg(long, value_name = "BYTES")]
    pub(crate) compress_from: Option<usize>,
    #[command(flatten)]
    pub(crate) application: Application,
    #[command(flatten)]
    pub(crate) caching: Caching,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

/// First, have the application built with `accept_plain_keys`: it opens sessions under either kind of key, and what other
/// programs there are that know plain keys only do not find their sessions any more.
#[derive(Debug, Args)]
pub(crate) struct HashKeys {
    #[command(flatten)]
    pub(crate) application: Application,
    #[command(flatten)]
    pub(crate) format: Format,
    /// Compress payloads from this size on, as the application does
    #[arg(long, value_name = "BYTES")]
    pub(crate) compress_from: Option<usize>,
    #[command(flatten)]
    pub(crate) caching: Caching,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Only these, also if the database has them no more
    #[arg(value_name = "STORED_KEY", value_parser = stored_key)]
    pub(crate) keys: Vec<StoredKey>,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// For which shell
    pub(crate) shell: Shell,
}

/// Parses a command line, in which a stored key may begin with a hyphen, as every 64th hashed one does. It is longer than any
/// option.
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
    StoredKey::parse(text).map_err(|_| "this is no key that a session could be stored under".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    fn parsed(line: &[&str]) -> Result<Arguments, clap::Error> {
        parse(["sessionctl"].iter().chain(line).map(OsString::from))
    }

    #[test]
    fn a_stored_key_may_begin_with_hyphens_and_a_misspelled_option_is_none() {
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
    fn the_documentation_lists_every_command_variable_and_exit_code() {
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
