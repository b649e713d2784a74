//! The programs that serve the pages.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Result;
use crate::bench::{FEATURES, TOWER_SESSIONS_MANIFEST};
use crate::process::{build, cargo, output, shown};

/// Number of sessions whose pages are asked for.
const SESSIONS: usize = 1_000;

/// The files of both programs.
pub(super) struct Programs {
    pub(super) ours: PathBuf,
    pub(super) theirs: PathBuf,
}

impl Programs {
    pub(super) fn build() -> Result<Self> {
        let features = format!("actix-session,axum,{FEATURES}");
        let mut ours = cargo();
        ours.args(["bench", "--no-run", "--package", "session-cached-db", "--bench", "http"]);
        ours.args(["--features", &features]);
        let mut theirs = cargo();
        theirs.args(["build", "--release", "--manifest-path", TOWER_SESSIONS_MANIFEST, "--bin", "http"]);
        theirs.args(["--target-dir", "target/vs-tower-sessions"]);
        Ok(Self { ours: executable(&mut ours)?, theirs: executable(&mut theirs)? })
    }
}

/// Builds a program, and returns its file.
fn executable(command: &mut Command) -> Result<PathBuf> {
    let mut programs = build(command)?.into_iter().filter(|program| program.name == "http");
    let program = programs.next_back();
    Ok(program.ok_or_else(|| format!("`{}` made no program", shown(command)))?.file)
}

/// A program that serves the pages, until this is dropped.
pub(super) struct Site {
    child: Child,
    /// Names the program in errors.
    pub(super) name: String,
    address: String,
    /// The cookies of all sessions, one on each line.
    pub(super) cookies: String,
}

impl Site {
    /// Starts the program, and makes the sessions.
    pub(super) fn start(program: &Path, stack: &str, pair: &str, dir: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args([stack, pair]).arg(dir);
        let name = shown(&command);
        // Closing its input ends it.
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut address)?;
        }
        let mut site = Self { child, name, address: address.trim().to_owned(), cookies: String::new() };
        if site.address.is_empty() {
            return Err(format!("`{}` did not start; its error is above", site.name).into());
        }
        site.cookies = if stack == "bare" { "none=1\n".to_owned() } else { site.fill()? };
        Ok(site)
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Makes the sessions, and returns their cookies.
    fn fill(&self) -> Result<String> {
        // curl asks for the page again and again, on one connection.
        let url = format!("{}fill?[1-{SESSIONS}]", self.url());
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail-early",
            "--fail",
            "--dump-header",
            "-",
            "--output",
            "/dev/null",
        ]);
        let headers = output(curl.args(["--request", "POST"]).arg(url))
            .map_err(|error| format!("`{}` cannot make a session: {error}", self.name))?;
        let cookies = cookies(&headers);
        let count = cookies.lines().count();
        if count == SESSIONS {
            Ok(cookies)
        } else {
            Err(format!("`{}` has set {count} cookies in {SESSIONS} answers", self.name).into())
        }
    }

    /// Returns the processor time that the program has used, in seconds, where the system tells.
    pub(super) fn processor_seconds(&self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        processor_ticks(&stat).map(|ticks| ticks / TICKS_PER_SECOND)
    }
}

/// The unit of times in `/proc`, which is the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the time of a process in its own code and in the kernel.
fn processor_ticks(stat: &str) -> Option<f64> {
    // The name of the program, in parentheses, may contain spaces. The fields behind it have no names either.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11).map(str::parse::<f64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

/// Returns the cookies that headers set, one on each line.
fn cookies(headers: &str) -> String {
    let set = headers
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    set.filter_map(|(_, value)| value.trim().split(';').next()).map(|cookie| format!("{cookie}\n")).collect()
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_a_name_with_spaces() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 100 0 0";
        assert_eq!(processor_ticks(stat), Some(300.0));
        assert_eq!(processor_ticks("7 (short) S 1"), None);
    }

    #[test]
    fn cookies_are_read_without_their_attributes() {
        let headers = "HTTP/1.1 200 OK\r\nSet-Cookie: id=abc; HttpOnly; Path=/\r\n\r\nHTTP/1.1 200 OK\r\nset-cookie: id=d=; Path=/\r\n";
        assert_eq!(cookies(headers), "id=abc\nid=d=\n");
    }

    #[test]
    fn program_that_ends_at_once_is_named() {
        let error =
            Site::start(Path::new("/bin/false"), "axum", "redis+postgres", Path::new(".")).err().unwrap();
        assert!(error.to_string().contains("false axum redis+postgres"), "{error}");
    }

    #[test]
    fn program_that_cannot_be_built_is_named() {
        let mut command = cargo();
        let error =
            executable(command.args(["build", "--manifest-path", "no-such-package/Cargo.toml"])).unwrap_err();
        assert!(error.to_string().contains("no-such-package"), "{error}");
    }
}
