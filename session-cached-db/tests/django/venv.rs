//! Python with Django, in a virtual environment.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PACKAGES: [&str; 3] = ["Django>=5.2,<7", "psycopg[binary]>=3.2,<4", "PyMySQL[rsa]>=1.1,<2"];
const IMPORTS: &str = "import django, psycopg, pymysql, cryptography";

pub struct Venv {
    python: PathBuf,
}

impl Venv {
    /// Makes an environment, or uses the one of an earlier run.
    pub fn make() -> Result<Self, String> {
        let base = std::env::var("DJANGO_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let version =
            stdout(Command::new(&base).args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]))?;
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("target"));
        // Each version of Python has its own environment.
        let directory = target.join(format!("django-venv-{}", version.trim()));
        let venv = Self { python: directory.join("bin").join("python") };
        if stdout(venv.python().args(["-c", IMPORTS])).is_ok() {
            return Ok(venv);
        }
        eprintln!("making {} …", directory.display());
        stdout(Command::new(&base).args(["-m", "venv", "--clear"]).arg(&directory))?;
        stdout(
            venv.python()
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(PACKAGES),
        )?;
        stdout(venv.python().args(["-c", IMPORTS]))?;
        Ok(venv)
    }

    pub fn python(&self) -> Command {
        Command::new(&self.python)
    }
}

fn stdout(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } =
        command.output().map_err(|error| format!("{program} cannot be run: {error}"))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(format!("{program} failed: {last}"));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
