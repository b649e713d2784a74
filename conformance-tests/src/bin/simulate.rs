//! The simulator's command line; `cargo xtask simulate` builds and runs it. See
//! `conformance_tests::simulation`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use conformance_tests::simulation::{
    Checkpoint, Detection, Explored, Mutant, Reduction, SAMPLED, SHOWN_IN, Scenario, Vector, detect_all,
    detect_in, random_run, replay, resume, search, select_mutant, sweep, sweep_until,
};

const USAGE: &str =
    "usage: simulate [--seed SEED] standard | exhaustive STATE-FILE [BEGINNING-OF-NAMES] | random N | mutants [MUTANT]
       simulate scenario NAME
       simulate compare [BEGINNING-OF-NAMES]
       simulate replay VECTOR [MUTANT]";

/// The number of mixes of three, and of large mixes of two with two faults, in the standard run.
const SAMPLES: usize = 8;

/// The time after which the standard run begins no more samples.
const BUDGET: Duration = Duration::from_secs(180);

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
            let begun = Instant::now();
            mutants()?;
            standard(seed, begun)
        }
        ["exhaustive", state] => exhaustive(Path::new(state), ""),
        ["exhaustive", state, filter] => exhaustive(Path::new(state), filter),
        ["random", n] => random(n.parse()?, seed),
        ["mutants"] => mutants(),
        ["mutants", name] => one_mutant(name),
        ["scenario", name] => {
            let begun = Instant::now();
            let explored = sweep(&[name.parse()?], |_, _| {})?;
            print_sum(1, explored, begun);
            Ok(())
        }
        ["compare"] => compare_all(""),
        ["compare", filter] => compare_all(filter),
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

/// Explores what every change is checked with, and then samples, until `BUDGET` is used up since `begun`.
fn standard(seed: u64, begun: Instant) -> Result {
    println!("seed {seed}");
    let mut random = Random(seed);
    let (mut scenarios, mut samples) = Scenario::standard(|n| random.below(n), SAMPLES);
    scenarios.extend(Scenario::crowds(false)?);
    scenarios.extend(Scenario::near()?);
    scenarios.extend(Scenario::rare()?);
    scenarios.extend(Scenario::rotations()?);
    Scenario::sort(&mut scenarios);
    Scenario::sort(&mut samples);
    let done = Mutex::new((0_usize, Instant::now()));
    let of_seed = |error| format!("{error}\n(seed {seed})");
    let progress = |_: &Scenario, _| {
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        done.0 += 1;
        if done.1.elapsed().as_secs() >= 10 {
            eprintln!("{} of {} scenarios", done.0, scenarios.len() + samples.len());
            done.1 = Instant::now();
        }
    };
    let mut explored = sweep(&scenarios, progress).map_err(of_seed)?;
    let mut sampled = 0;
    // Whatever the machine, the stage ends in time.
    let until = begun + BUDGET;
    if Instant::now() < until {
        let (more, done) = sweep_until(&samples, Some(until), progress).map_err(of_seed)?;
        (explored, sampled) = (explored.and(more), done);
    }
    print_sum(scenarios.len() + sampled, explored, begun);
    let threes = Scenario::all(3, 0).len() + Scenario::all(3, 1).len();
    println!(
        "left out, and part of the exhaustive run: all but {sampled} of {} samples (mixes of two with two faults, and \
         {SAMPLES} of {threes} mixes of three), other arrangements with two faults, the large crowds; completed from the \
         middle: one state in {SAMPLED}",
        samples.len()
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

/// Explores a scenario with and without the reductions, and checks that they change no result.
fn compare(scenario: &Scenario) -> Result<[Explored; 2]> {
    let full = search(scenario, Reduction::Nothing);
    let orders = search(scenario, Reduction::Orders);
    if let Some(way) = full.way_to_more_than(&orders).or(orders.way_to_more_than(&full)) {
        let vector = Vector { scenario: scenario.clone(), choices: way.to_vec() };
        return Err(
            format!("{vector}: the order of steps that are said to commute makes a difference").into()
        );
    }
    if full.ends != orders.ends {
        return Err(format!("{scenario}: other ends").into());
    }
    let all = if scenario.has_twins() { search(scenario, Reduction::All) } else { orders.clone() };
    if full.left != all.left {
        return Err(format!("{scenario}: the numbers of equal operations make a difference").into());
    }
    let verdicts = [&full, &orders, &all].map(|searched| searched.violation.is_some());
    if verdicts != [verdicts[0]; 3] {
        return Err(format!("{scenario}: different verdicts: {verdicts:?}").into());
    }
    Ok([full.explored, all.explored])
}

/// Compares all mixes of two with one fault, the crowds, near caches and the other arrangements.
fn compare_all(filter: &str) -> Result {
    let mut scenarios = [Scenario::all(2, 1), Scenario::all_near(2, 1)].concat();
    scenarios.extend([Scenario::crowds(false)?, Scenario::near()?, Scenario::rare()?].concat());
    scenarios.retain(|scenario| scenario.to_string().starts_with(filter));
    Scenario::sort(&mut scenarios);
    scenarios.reverse();
    let mut sums = [Explored::default(); 2];
    let mut last = Instant::now();
    for (number, scenario) in scenarios.iter().enumerate() {
        let [full, reduced] = compare(scenario)?;
        sums = [sums[0].and(full), sums[1].and(reduced)];
        if last.elapsed().as_secs() >= 10 || number + 1 == scenarios.len() {
            last = Instant::now();
            println!(
                "{} of {} scenarios: {} states, {} runs; reduced: {} states, {} runs",
                number + 1,
                scenarios.len(),
                sums[0].states,
                sums[0].runs,
                sums[1].states,
                sums[1].runs
            );
        }
    }
    Ok(())
}

/// Explores everything: the crowds, near caches, all mixes of two with up to two faults, and of three with up to one. Notes
/// finished scenarios in `state`, and does not repeat them. Explores only scenarios whose name begins with `filter`.
fn exhaustive(state: &Path, filter: &str) -> Result {
    let (first_threes, other_threes): (Vec<_>, Vec<_>) =
        Scenario::all(3, 1).into_iter().partition(Scenario::is_first_arrangement);
    let mut stages = [
        ("all mixes of two, up to one fault", [Scenario::all(2, 1), Scenario::all_near(2, 1)].concat()),
        (
            "crowds, near caches, rotations, other arrangements",
            [Scenario::crowds(true)?, Scenario::near()?, Scenario::rare()?, Scenario::rotations()?].concat(),
        ),
        ("all mixes of three, no fault", Scenario::all(3, 0)),
        ("all mixes of three, no fault, near caches", Scenario::all_near(3, 0)),
        ("all mixes of three, up to one fault, one arrangement each", first_threes),
        ("all mixes of three, up to one fault, their other arrangements", other_threes),
        ("all mixes of three, up to one fault, near caches", Scenario::all_near(3, 1)),
        ("all mixes of two, up to two faults", Scenario::all(2, 2)),
    ];
    let checkpoint = Checkpoint::open(state, &build()?)?;
    println!("finished scenarios are noted in {}: {} so far", state.display(), checkpoint.done());
    for (_, scenarios) in &mut stages {
        scenarios.retain(|scenario| scenario.to_string().starts_with(filter));
        // The smallest first: what is explored to its end is worth more than what is begun.
        Scenario::sort(scenarios);
        scenarios.reverse();
    }
    for (name, scenarios) in stages.iter().filter(|(_, scenarios)| !scenarios.is_empty()) {
        println!("{name}: {} scenarios", scenarios.len());
        let begun = Instant::now();
        let last = Mutex::new(None::<Instant>);
        let sum = resume(scenarios, &checkpoint, |done| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|last| last.elapsed().as_secs() >= 60) {
                *last = Some(Instant::now());
                println!("    {done} of {}, {} s", scenarios.len(), begun.elapsed().as_secs());
            }
        })?;
        print!("    ");
        print_sum(scenarios.len(), sum, begun);
    }
    Ok(())
}

/// Returns a name of this build of the simulator.
fn build() -> Result<String> {
    let mut hasher = DefaultHasher::new();
    std::fs::read(std::env::current_exe()?)?.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
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
