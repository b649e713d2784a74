//! Several files, of which all are written, or none.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

/// The files as they are to be.
#[derive(Debug)]
pub(super) struct Plan {
    root: PathBuf,
    files: Vec<File>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// `None` for a new file.
    old: Option<String>,
    new: String,
}

impl Plan {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), files: Vec::new() }
    }

    /// Plans a new file.
    pub(super) fn create(&mut self, path: &str, text: &str) -> Result {
        self.vacant(path)?;
        self.files.push(File { path: path.into(), old: None, new: text.to_owned() });
        Ok(())
    }

    /// Fails if the path exists.
    pub(super) fn vacant(&self, path: &str) -> Result {
        // A link that leads nowhere exists, too.
        match fs::symlink_metadata(self.root.join(path)) {
            Ok(_) => Err(format!("{path} exists already; choose another name").into()),
            Err(_) => Ok(()),
        }
    }

    /// Plans an edit of a file that exists.
    pub(super) fn edit(&mut self, path: &str, change: impl FnOnce(&str) -> Result<String>) -> Result {
        let old = fs::read_to_string(self.root.join(path)).map_err(|error| format!("{path}: {error}"))?;
        let new = change(&old).map_err(|error| format!("{path}: {error}"))?;
        self.files.push(File { path: path.into(), old: Some(old), new });
        Ok(())
    }

    /// Formats every Rust file as the lint asks for.
    pub(super) fn format(&mut self) -> Result {
        for file in &mut self.files {
            if file.path.extension().is_some_and(|extension| extension == "rs") {
                let formatted = formatted(&self.root, &file.new);
                file.new = formatted.map_err(|error| format!("{}: {error}", file.path.display()))?;
            }
        }
        Ok(())
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Writes all files. If one cannot be written, restores those before it.
    pub(super) fn write(&self) -> Result {
        for (number, file) in self.files.iter().enumerate() {
            if let Err(error) = write(&self.root.join(&file.path), &file.new) {
                for written in self.files.iter().take(number + 1).rev() {
                    written.undo(&self.root);
                }
                return Err(format!("{}: {error}; nothing was changed", file.path.display()).into());
            }
        }
        Ok(())
    }
}

impl File {
    fn undo(&self, root: &Path) {
        let path = root.join(&self.path);
        let undone = match &self.old {
            Some(old) => fs::write(&path, old),
            None => fs::remove_file(&path),
        };
        // The file that could not be written may be missing.
        if undone.is_err() && self.old.is_some() {
            eprintln!("{} could not be restored", self.path.display());
        }
        if let (None, Some(parent)) = (&self.old, path.parent()) {
            // Succeeds only if it is empty, that is, new.
            let _ = fs::remove_dir(parent);
        }
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text)
}

fn formatted(root: &Path, text: &str) -> Result<String> {
    let mut rustfmt = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(fs::canonicalize(root)?.join("rustfmt.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("rustfmt could not be started ({error}); `rustup component add rustfmt`"))?;
    // Such a file fits into the buffer of a pipe, so that rustfmt reads all of it before this program reads
    // its output.
    rustfmt.stdin.take().ok_or("rustfmt has no input")?.write_all(text.as_bytes())?;
    let mut formatted = String::new();
    rustfmt.stdout.take().ok_or("rustfmt has no output")?.read_to_string(&mut formatted)?;
    if !rustfmt.wait()?.success() {
        return Err("rustfmt rejects it".into());
    }
    Ok(formatted)
}
