//! Explorations that take longer than a machine is up, and go on where they were stopped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::explore::Explored;
use super::scenario::Scenario;
use super::sweep::{SweepError, sweep};

/// A file that has a line for each scenario which was explored to the end.
#[derive(Debug)]
pub struct Checkpoint {
    done: BTreeMap<String, Explored>,
    file: Mutex<File>,
}

impl Checkpoint {
    /// Opens the file, or creates it. `build` names the code that explores: what another code has explored proves nothing
    /// about this one. A last line that is not whole is removed.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be read or written, or is not a checkpoint of this build.
    pub fn open(path: &Path, build: &str) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        text.truncate(whole);
        let mut lines = text.lines();
        let header = format!("build {build}");
        match lines.next() {
            None => writeln!(file, "{header}")?,
            Some(first) if first == header => {}
            Some(_) => {
                let reason = format!(
                    "{} was written by another build of the simulator: use that one, or delete the file to begin anew",
                    path.display()
                );
                return Err(io::Error::other(reason));
            }
        }
        let parsed =
            lines.map(|line| parse(line).ok_or_else(|| format!("{line:?} is no line of a checkpoint")));
        let done = parsed.collect::<Result<_, _>>().map_err(io::Error::other)?;
        Ok(Self { done, file: Mutex::new(file) })
    }

    /// Returns the number of scenarios that were explored when the file was opened.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done.len()
    }

    fn note(&self, scenario: &Scenario, explored: Explored) -> io::Result<()> {
        let Explored { states, runs, ends, completions } = explored;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // In one call, so that another process never sees half of it.
        file.write_all(format!("{scenario} {states} {runs} {ends} {completions}\n").as_bytes())
    }
}

fn parse(line: &str) -> Option<(String, Explored)> {
    let fields: Vec<_> = line.split(' ').collect();
    let [name, states, runs, ends, completions] = fields[..] else { return None };
    let number = |text: &str| text.parse().ok();
    let explored = Explored {
        states: number(states)?,
        runs: number(runs)?,
        ends: number(ends)?,
        completions: number(completions)?,
    };
    Some((name.to_owned(), explored))
}

/// Explores those of `scenarios` that are not in `checkpoint` yet, and notes each there. Calls `progress` with the number of
/// those that are done, at the beginning and whenever one is.
///
/// # Errors
///
/// As [`sweep`] does, and if the checkpoint cannot be written.
pub fn resume(
    scenarios: &[Scenario],
    checkpoint: &Checkpoint,
    progress: impl Fn(usize) + Sync,
) -> Result<Explored, Box<dyn std::error::Error + Send + Sync>> {
    let mut sum = Explored::default();
    let mut left = Vec::new();
    for scenario in scenarios {
        match checkpoint.done.get(&scenario.to_string()) {
            Some(explored) => sum += *explored,
            None => left.push(scenario.clone()),
        }
    }
    let done = Mutex::new((scenarios.len() - left.len(), Ok(())));
    progress(scenarios.len() - left.len());
    if !left.is_empty() {
        sum += sweep(&left, |scenario, explored| {
            let noted = checkpoint.note(scenario, explored);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.0 += 1;
            if noted.is_err() {
                done.1 = noted;
            }
            progress(done.0);
        })?;
    }
    done.into_inner().unwrap_or_else(PoisonError::into_inner).1?;
    if sum.states == 0 { Err(SweepError::Nothing.into()) } else { Ok(sum) }
}
