//! The simulator's command line; `cargo xtask simulate` builds and runs it. See
//! `conformance_tests::simulation`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use conformance_tests::simulation::{
    Detection, Explored, Mutant, SAMPLED, SHOWN_IN, Scenario, Vector, detect_all, detect_in, random_run,
    replay, select_mutant, sweep,
};

const USAGE: &str =
    "usage: simulate [--seed SEED] standard | exhaustive STATE-FILE | random N | mutants [MUTANT]
       simulate scenario NAME
       simulate replay VECTOR [MUTANT]";

/// The number of mixes of three, and of large mixes of two with two faults, in the standard run.
const SAMPLES: usize = 8;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: Vec<String>) -> Result {
    let mut seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_nanos().into();
    if args.first().is_some_and(|arg| arg == "--seed") && args.len() > 1 {
        seed = args.remove(1).parse()?;
        args.remove(0);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["standard"] => {
            mutants()?;
            standard(seed)
        }
        ["exhaustive", state] => exhaustive(Path::new(state)),
        ["random", n] => random(n.parse()?, seed),
        ["mutants"] => mutants(),
        ["mutants", name] => one_mutant(name),
        ["scenario", name] => {
            let begun = Instant::now();
            let explored = sweep(&[name.parse()?], |_, _| {})?;
            print_sum(1, explored, begun);
            Ok(())
        }
        ["replay", vector] => show(&vector.parse()?, None),
        ["replay", vector, mutant] => show(&vector.parse()?, Some(mutant)),
        _ => Err(USAGE.into()),
    }
}

/// A small random generator, which only has to be repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        usize::try_from(z % n.max(1) as u64).unwrap_or(0)
    }
}

fn standard(seed: u64) -> Result {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut scenarios = Scenario::standard(|n| random.below(n), SAMPLES);
    scenarios.extend(Scenario::crowds(false)?);
    scenarios.extend(Scenario::near()?);
    scenarios.extend(Scenario::rare()?);
    scenarios.extend(Scenario::rotations()?);
    Scenario::sort(&mut scenarios);
    let begun = Instant::now();
    let done = Mutex::new((0_usize, Instant::now()));
    let explored = sweep(&scenarios, |_, _| {
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        done.0 += 1;
        if done.1.elapsed().as_secs() >= 10 {
            eprintln!("{} of {} scenarios", done.0, scenarios.len());
            done.1 = Instant::now();
        }
    })
    .map_err(|error| format!("{error}\n(seed {seed})"))?;
    print_sum(scenarios.len(), explored, begun);
    let threes = Scenario::all(3, 0).len() + Scenario::all(3, 1).len();
    println!(
        "left out, and part of the exhaustive run: all but {SAMPLES} of {threes} mixes of three, all but {SAMPLES} of the large \
         mixes of two with two faults, other arrangements with two faults, the large crowds; completed from the middle: one \
         state in {SAMPLED}"
    );
    Ok(())
}

fn print_sum(scenarios: usize, explored: Explored, begun: Instant) {
    let Explored { states, runs, ends, completions, .. } = explored;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{scenarios} scenarios, {states} states, {runs} runs, {ends} of them to a new end, {completions} completed \
         from the middle, {seconds:.0} s"
    );
}

/// Explores all mixes of two with up to two faults, the crowds, and all mixes of three with up to one fault.
/// Notes finished scenarios in `state`, and does not repeat them.
fn exhaustive(state: &Path) -> Result {
    // One arrangement of each mix of three comes first, because all of them take days.
    let (first_threes, other_threes): (Vec<_>, Vec<_>) =
        Scenario::all(3, 1).into_iter().partition(Scenario::is_first_arrangement);
    let stages = [
        ("all mixes of two, up to two faults", Scenario::all(2, 2)),
        ("crowds", Scenario::crowds(true)?),
        (
            "near caches, and other arrangements",
            [Scenario::near()?, Scenario::rare()?, Scenario::rotations()?].concat(),
        ),
        ("all mixes of three, up to one fault, one arrangement each", first_threes),
        ("all mixes of three, up to one fault, their other arrangements", other_threes),
    ];
    let done = read_state(state)?;
    if let Some(parent) = state.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let file = Mutex::new(OpenOptions::new().create(true).append(true).open(state)?);
    println!("finished scenarios are noted in {}", state.display());
    for (name, scenarios) in stages {
        println!("{name}");
        exhaust(&scenarios, &done, &file)?;
    }
    Ok(())
}

fn exhaust(scenarios: &[Scenario], done: &BTreeMap<String, Explored>, file: &Mutex<File>) -> Result {
    let begun = Instant::now();
    let mut sum = Explored::default();
    let mut left = Vec::new();
    for scenario in scenarios {
        match done.get(&scenario.to_string()) {
            Some(explored) => sum += *explored,
            None => left.push(scenario.clone()),
        }
    }
    let before = scenarios.len() - left.len();
    if !left.is_empty() {
        println!("    {} scenarios, {before} of them done before", scenarios.len());
        let noted = Mutex::new((before, Instant::now()));
        sum += sweep(&left, |scenario, Explored { states, runs, ends, completions, .. }| {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(file, "{scenario} {states} {runs} {ends} {completions}");
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            noted.0 += 1;
            if noted.1.elapsed().as_secs() >= 10 {
                eprintln!("    {} of {}, {} s", noted.0, scenarios.len(), begun.elapsed().as_secs());
                noted.1 = Instant::now();
            }
        })?;
    }
    if sum.states == 0 {
        return Err("nothing was explored, which proves nothing".into());
    }
    print!("    ");
    print_sum(scenarios.len(), sum, begun);
    Ok(())
}

fn read_state(state: &Path) -> Result<BTreeMap<String, Explored>> {
    let mut done = BTreeMap::new();
    let Ok(file) = File::open(state) else { return Ok(done) };
    for line in BufReader::new(file).lines() {
        let line = line?;
        let fields: Vec<_> = line.split(' ').collect();
        let [name, states, runs, ends, completions] = fields[..] else {
            // The last line of a run that was killed.
            continue;
        };
        let mut explored = Explored::default();
        (explored.states, explored.runs, explored.ends) = (states.parse()?, runs.parse()?, ends.parse()?);
        explored.completions = completions.parse()?;
        done.insert(name.to_owned(), explored);
    }
    Ok(done)
}

fn random(runs: u64, seed: u64) -> Result {
    println!("seed {seed}");
    if runs == 0 {
        return Err("no runs prove nothing".into());
    }
    let begun = Instant::now();
    let mut random = Random(seed);
    let mut steps = 0;
    for run in 0..runs {
        let (size, faults) = (2 + random.below(4), random.below(5));
        let scenario = Scenario::random(|n| random.below(n), size, u8::try_from(faults)?);
        match random_run(&scenario, |n| random.below(n)) {
            Ok(taken) => steps += taken,
            Err(violation) => {
                println!("run {run} of seed {seed} broke a promise: {}", violation.reason);
                println!("cargo xtask simulate --replay '{}'", violation.vector);
                return Err("a promise was broken".into());
            }
        }
    }
    println!("{runs} runs, {steps} steps, {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

fn mutants() -> Result {
    let begun = Instant::now();
    let missed = Mutex::new(Vec::new());
    detect_all(|result| {
        // Locked until the whole result is printed.
        let mut missed = missed.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(found) => print_detection(&found),
            Err(error) => missed.push(error),
        }
    });
    let missed = missed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (all, scenarios, seconds) = (Mutant::ALL.len(), SHOWN_IN.len(), begun.elapsed().as_secs_f64());
    println!("{all} mutants, found in {} of {scenarios} scenarios, {seconds:.0} s", scenarios - missed.len());
    if missed.is_empty() { Ok(()) } else { Err(missed.join("\n").into()) }
}

fn one_mutant(name: &str) -> Result {
    let mutant = mutant_of(name)?;
    for (_, scenario) in SHOWN_IN.iter().filter(|(listed, _)| *listed == mutant) {
        print_detection(&detect_in(mutant, scenario)?);
    }
    Ok(())
}

fn print_detection(found: &Detection) {
    println!("{:?}: {}", found.mutant, found.mutant.description());
    println!("    {}", found.violation.reason);
    println!("    {} ({} states)", found.violation.vector, found.explored.states);
    println!("    {}", found.specified);
}

fn mutant_of(name: &str) -> Result<Mutant> {
    let mutant = Mutant::ALL.iter().find(|mutant| format!("{mutant:?}") == name);
    Ok(*mutant.ok_or_else(|| format!("there is no mutant {name}"))?)
}

fn show(vector: &Vector, mutant: Option<&str>) -> Result {
    if let Some(name) = mutant {
        select_mutant(Some(mutant_of(name)?));
    }
    let replayed = replay(vector)?;
    for (number, step) in replayed.steps.iter().enumerate() {
        println!("{:>4}  {step}", number + 1);
    }
    match replayed.violation {
        Some(reason) => Err(reason.into()),
        None => {
            println!("all promises were kept");
            Ok(())
        }
    }
}
