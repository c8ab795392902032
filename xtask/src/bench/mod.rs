//! Benchmarks: `cargo xtask bench NAME`.
//!
//! To add one: a file beside this one with a function that takes the number of rounds and gives
//! rows, and a line in [`BENCHES`].

mod affinity;
mod fault;
mod lock;
mod lockdep;
mod notifier;
mod paging;
mod picture;
mod reap;
mod report;
mod sim;

use report::{BenchError, Outcome};
use std::path::PathBuf;
use std::process::ExitCode;

/// What `cargo xtask bench` is given.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The benchmark to run; `--list` tells which there are.
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// Write the rows to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the picture, if the benchmark has one, into this file; else beside that of `--json`.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How many interleaved rounds to run.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// List the benchmarks.
    #[arg(long)]
    list: bool,
}

/// A benchmark.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(rounds: u32) -> Result<Outcome, BenchError>,
}

/// Every benchmark there is.
const BENCHES: &[Bench] = &[
    Bench {
        name: "lock",
        about: "lock and unlock, uncontended, beside the standard library",
        run: lock::run,
    },
    Bench {
        name: "notifier",
        about: "brackets, intervals and their sequences, beside interval maps",
        run: notifier::run,
    },
    Bench {
        name: "lockdep",
        about: "locks while the validator watches, beside bare ones and other validators",
        run: lockdep::run,
    },
    Bench {
        name: "fault",
        about: "one fault of each kind, beside its steps by hand; faults a second by threads",
        run: fault::run,
    },
    Bench {
        name: "paging",
        about: "access to four times the limit, beside the kernel's memcg with zram swap",
        run: paging::run,
    },
    Bench {
        name: "reap",
        about: "the reaper, beside MADV_DONTNEED and the kernel's, and the choice of a victim",
        run: reap::run,
    },
    Bench {
        name: "sim",
        about: "schedules a second of the simulator, beside shuttle",
        run: sim::run,
    },
];

/// A process that a benchmark starts for itself. Not for people.
#[derive(clap::Args)]
pub(crate) struct Part {
    /// Which part it plays.
    name: String,
}

/// Plays a part.
pub(crate) fn play(part: &Part) -> ExitCode {
    ::lockdep::set_enabled(false);
    let played = match part.name.as_str() {
        reap::VICTIM => reap::victim(),
        name => paging::play(name),
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", part.name);
            ExitCode::FAILURE
        }
    }
}

/// Runs what `args` ask for. Exit code 2 for bad use, 1 when it could not be measured.
pub(crate) fn run(args: &Args) -> ExitCode {
    // What is measured is what a release runs: the benchmark of the validator switches it on.
    ::lockdep::set_enabled(false);
    if args.list {
        for bench in BENCHES {
            println!("{:10} {}", bench.name, bench.about);
        }
        return ExitCode::SUCCESS;
    }
    let name = args.name.as_deref().unwrap_or_default();
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        let known: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        eprintln!(
            "there is no benchmark `{name}`; there is: {}",
            known.join(", ")
        );
        return ExitCode::from(2);
    };
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, its figures mean little: use `cargo xtask bench {name}`");
    }
    match (bench.run)(args.rounds) {
        Ok(outcome) => tell(bench.name, args, &outcome),
        Err(error) => {
            eprintln!("bench {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tell(name: &str, args: &Args, outcome: &Outcome) -> ExitCode {
    print!("{}", report::markdown(outcome));
    let beside = || args.json.as_ref().map(|json| json.with_extension("svg"));
    if let (Some(picture), Some(path)) = (&outcome.picture, args.svg.clone().or_else(beside))
        && let Err(error) = std::fs::write(&path, picture.svg())
    {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::from(2);
    }
    let Some(path) = &args.json else {
        return ExitCode::SUCCESS;
    };
    match report::write_json(path, name, args.rounds, outcome) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write {}: {error}", path.display());
            ExitCode::from(2)
        }
    }
}
