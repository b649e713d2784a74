//! A PgBouncer in front of a test's Postgres, run from the program of that name. The tests of servers and those of
//! networks have it.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::str::FromStr as _;
use std::time::Duration;

use db_backends::sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;

/// The name of the program.
pub const NAME: &str = "pgbouncer";

pub const MISSING: &str = "there is no program pgbouncer; on Debian: `apt-get install pgbouncer`";

/// The environment variable that names another PgBouncer than the one on the path.
const PROGRAM_VAR: &str = "CONFORMANCE_PGBOUNCER";

fn program() -> String {
    std::env::var(PROGRAM_VAR).unwrap_or_else(|_| NAME.to_owned())
}

/// Returns the version, major and minor, if there is such a program.
pub fn version() -> Option<(u32, u32)> {
    let output = Command::new(program()).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split_whitespace().nth(1)?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The binding of clients' connections to those of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Session,
    Transaction,
    Statement,
}

/// A process of PgBouncer, which ends with this.
pub struct PgBouncer {
    pub address: String,
    process: Child,
    _files: TempDir,
}

impl PgBouncer {
    /// Starts one in front of the server of a URL, with `slots` connections to it, and more lines of settings.
    pub async fn before(url: &str, mode: Mode, slots: u16, more: &[&str]) -> Self {
        let options = PgConnectOptions::from_str(url).unwrap();
        let (_, login) = url.split_once("://").unwrap();
        let (user, password) = login.split_once('@').unwrap().0.split_once(':').unwrap();
        let address = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let files = tempfile::tempdir().unwrap();
        // PgBouncer does not run as root, so it runs as a user who owns nothing.
        std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let users = files.path().join("users");
        std::fs::write(&users, format!("\"{user}\" \"{password}\"\n")).unwrap();
        let mode = match mode {
            Mode::Session => "session",
            Mode::Transaction => "transaction",
            Mode::Statement => "statement",
        };
        let settings = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {slots}\n{}\n",
            options.get_host(),
            options.get_port(),
            address.port(),
            users.display(),
            more.join("\n")
        );
        let file = files.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| {
            use std::os::unix::fs::MetadataExt as _;
            own.uid() == 0
        });
        let mut command = Command::new(program());
        if is_root {
            command.args(["-u", "nobody"]);
        }
        let process = command.arg("-q").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let bouncer = Self { address: address.to_string(), process: process.unwrap(), _files: files };
        for _ in 0..1_000 {
            if std::net::TcpStream::connect(address).is_ok() {
                return bouncer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("PgBouncer does not listen on {address}");
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
