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
                if let Some(v) = violation {
                    println!("VIOLATION {} {}", v.vector, v.reason);
                }
            }
            println!("{sum:?} {:?}", start.elapsed());
        }
        "one" => {
            let (explored, violation) = explore(&args[1].parse().unwrap(), true);
            println!("{explored:?}");
            if let Some(v) = violation {
                println!("VIOLATION {} {}", v.vector, v.reason);
                show(&v.vector);
            }
        }
        "in" => {
            let mutant = Mutant::ALL.iter().find(|m| format!("{m:?}") == args[1]).unwrap();
            select_mutant(Some(*mutant));
            let (e, v) = explore(&args[2].parse().unwrap(), true);
            println!("{mutant:?} {} {e:?}", args[2]);
            match v {
                Some(v) => {
                    println!("   {} {}", v.vector, v.reason);
                    if args.len() > 3 {
                        show(&v.vector)
                    }
                }
                None => println!("   NOT FOUND"),
            }
        }
        "mutants" => {
            let only = args.get(1);
            for mutant in Mutant::ALL.iter().filter(|m| only.is_none_or(|o| format!("{m:?}") == *o)) {
                select_mutant(Some(*mutant));
                let t = std::time::Instant::now();
                let mut sum = Explored::default();
                let mut hit = None;
                'search: for (size, faults) in [(2, 0), (2, 1), (3, 0)] {
                    for scenario in Scenario::all(size, faults) {
                        let (e, v) = explore(&scenario, false);
                        sum += e;
                        if v.is_some() {
                            hit = v;
                            break 'search;
                        }
                    }
                }
                println!("{mutant:?} {sum:?} {:?}", t.elapsed());
                match hit {
                    Some(v) => {
                        println!("   {} {}", v.vector, v.reason);
                    }
                    None => println!("   NOT FOUND"),
                }
            }
        }
        _ => show(&args[0].parse().unwrap()),
    }
}
fn show(v: &Vector) {
    let r = replay(v).unwrap();
    for s in r.steps {
        println!("  {s}");
    }
    println!("{:?}", r.violation);
}
