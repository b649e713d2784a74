//! dev
use conformance_tests::sim::*;
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args[0].as_str() {
        "all" => {
            let start = std::time::Instant::now();
            let mut sum = Explored::default();
            for scenario in Scenario::all(args[1].parse().unwrap(), args[2].parse().unwrap()) {
                let t = std::time::Instant::now();
                let (explored, violation) = explore(&scenario, true);
                sum += explored;
                println!("{scenario} {explored:?} {:?}", t.elapsed());
                if let Some(v) = violation { println!("VIOLATION {} {}", v.vector, v.reason); }
            }
            println!("{sum:?} {:?}", start.elapsed());
        }
        "one" => {
            let (explored, violation) = explore(&args[1].parse().unwrap(), true);
            println!("{explored:?}");
            if let Some(v) = violation { println!("VIOLATION {} {}", v.vector, v.reason); show(&v.vector); }
        }
        _ => show(&args[0].parse().unwrap()),
    }
}
fn show(v: &Vector) {
    let r = replay(v).unwrap();
    for s in r.steps { println!("  {s}"); }
    println!("{:?}", r.violation);
}
