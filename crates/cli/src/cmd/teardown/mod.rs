//! `pinless teardown`: how a program, and the drivers that it uses, die of the kernel's OOM killer.
//!
//! The program runs in a memory cgroup with a small hard limit until the kernel kills it, and is
//! watched until its last page is back. This is how the authors of the kernel's non-blocking MMU
//! notifiers told driver developers to test theirs. What is seen are [`facts`]; the [`verdict`]
//! comes from them alone.

mod facts;
pub(crate) mod press;
mod progress;
#[cfg(test)]
mod replay;
pub(crate) mod report;
mod round;
mod splat;
pub(crate) mod verdict;
mod watch;

use crate::args::{Bytes, TeardownArgs};
use crate::exit::{self, Exit};
use crate::render::json::{Json, JsonError};
use crate::render::teardown as term;
use core::fmt;
use core::sync::atomic::AtomicBool;
use pinless_host::Errno;
use pinless_host::memcg::{self, MemcgError, Version};
use pinless_host::process::HoldError;
use pinless_host::tracefs;
use progress::Progress;
use report::{Report, Round, Spread};
use round::{Outcome, Played};
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use verdict::{Measure, Verdict};

/// No process starts in less.
const LIMIT_MIN: u64 = 1 << 20;

/// Why there is no verdict.
#[derive(Debug)]
pub(crate) enum TeardownError {
    TooSmall(Bytes),
    Group(MemcgError),
    Start {
        program: String,
        error: io::Error,
    },
    PidFd(Errno),
    Pipe(io::Error),
    Hold(HoldError),
    NotReady {
        seconds: u64,
    },
    NotStable {
        seconds: u64,
    },
    NeverReached {
        peak: Bytes,
        limit: Bytes,
        seconds: u64,
    },
    EndedFirst {
        status: ExitStatus,
        peak: Bytes,
        limit: Bytes,
    },
    WrongVictim,
    Json(JsonError),
    Signals(io::Error),
}

impl fmt::Display for TeardownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall(limit) => write!(
                f,
                "no program can start in {limit}: give --limit {} or more",
                Bytes(LIMIT_MIN)
            ),
            Self::Group(error) => write!(
                f,
                "no memory cgroup can be made here ({error}): be root, or give a group that is \
                 yours with --cgroup, or run it in one: \
                 systemd-run --user --scope -p Delegate=yes pinless teardown ..."
            ),
            Self::Start { program, error } => write!(f, "cannot start {program}: {error}"),
            Self::PidFd(errno) => write!(f, "no pidfd for the program: {errno}"),
            Self::Pipe(error) => write!(f, "no pipe for --limit-when ready-fd: {error}"),
            Self::Hold(error) => write!(
                f,
                "--hold cannot keep the address space: {error}; be root, or leave --hold out"
            ),
            Self::NotReady { seconds } => write!(
                f,
                "the program did not say within {seconds} s that it is ready: it must write a \
                 line feed to the descriptor named in PINLESS_READY_FD, or give --patience"
            ),
            Self::NotStable { seconds } => write!(
                f,
                "the program's memory still grew after {seconds} s: give --limit-when start, or \
                 more --patience"
            ),
            Self::NeverReached {
                peak,
                limit,
                seconds,
            } => write!(
                f,
                "the program never hit the limit: it used {peak} at most of {limit} in \
                 {seconds} s; give a lower --limit, more work, or more --patience"
            ),
            Self::EndedFirst {
                status,
                peak,
                limit,
            } => write!(
                f,
                "the program ended by itself ({}) before it hit the limit: it used {peak} at \
                 most of {limit}; give a lower --limit, or more work",
                report::ending(*status)
            ),
            Self::WrongVictim => f.write_str(
                "the kernel killed the helper that takes up the rest instead of the program: \
                 be root, or let the program grow (--limit-when start)",
            ),
            Self::Json(error) => error.fmt(f),
            Self::Signals(error) => write!(f, "Ctrl-C cannot be caught: {error}"),
        }
    }
}

impl std::error::Error for TeardownError {}

/// Plays the rounds, shows the report, and says how it went.
pub(crate) fn main(args: &TeardownArgs) -> Exit {
    let report = match run_and_show(args) {
        Ok(report) => report,
        Err(error) => return exit::bad_use(&error),
    };
    for line in term::failures(&report) {
        exit::eprint_line(&line);
    }
    report.exit_code
}

fn run_and_show(args: &TeardownArgs) -> Result<Report, TeardownError> {
    let json = Json::open(args.json.as_deref()).map_err(TeardownError::Json)?;
    let report = run(args)?;
    json.show(&report, term::table)
        .map_err(TeardownError::Json)?;
    Ok(report)
}

fn run(args: &TeardownArgs) -> Result<Report, TeardownError> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    if args.limit.0 < LIMIT_MIN {
        return Err(TeardownError::TooSmall(args.limit));
    }
    let is_interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&is_interrupted))
            .map_err(TeardownError::Signals)?;
    }
    // What an earlier run left behind that was killed without warning.
    memcg::sweep(args.cgroup.as_deref(), round::PREFIX);
    tracefs::sweep(round::PREFIX);
    let mut progress = Progress::new();
    let mut report = begin(args);
    for nr in 1..=args.repeat {
        progress.begin(nr, args.repeat);
        match round::play(args, nr, &progress, &is_interrupted) {
            Ok(Outcome::Torn(played)) => {
                if add(&mut report, args, *played) >= Verdict::Stuck {
                    // What hangs would hang in each further round, too.
                    break;
                }
            }
            Ok(Outcome::Interrupted) => {
                report.interrupted = true;
                break;
            }
            Err(error) => {
                progress.finish();
                return Err(error);
            }
        }
    }
    progress.finish();
    sum_up(&mut report);
    Ok(report)
}

fn begin(args: &TeardownArgs) -> Report {
    let words = args.program.iter();
    Report {
        ok: false,
        verdict: None,
        interrupted: false,
        exit_code: Exit::Interrupted,
        program: words
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        limit_bytes: args.limit.0,
        limit_when: args.limit_when.to_string(),
        swap_bytes: args.swap.0,
        held: args.hold,
        cgroup: None,
        rounds: Vec::new(),
        kill_to_exit: None,
        kill_to_back: None,
        kvm_unmap_hva_range: None,
        notes: Vec::new(),
    }
}

/// Judges a round, and adds it to the report.
fn add(report: &mut Report, args: &TeardownArgs, played: Played) -> Verdict {
    let facts = &played.facts;
    let words = splat::words(facts.names.iter(), facts.tasks.iter(), facts.devices.iter());
    let complaints = splat::complaints(&facts.log, &words);
    let measure = Measure {
        slow_ns: args.slow.saturating_mul(1_000_000),
        slack_bytes: played.slack_bytes,
        is_held: args.hold,
    };
    let (verdict, why) = verdict::judge(facts, &complaints, measure);
    report.cgroup = Some(Version::name(played.version));
    for note in &played.notes {
        if !report.notes.contains(note) {
            report.notes.push(note.clone());
        }
    }
    let round = Round::new(&played, complaints, verdict, why);
    report.rounds.push(round);
    verdict
}

fn sum_up(report: &mut Report) {
    let rounds = &report.rounds;
    report.verdict = rounds.iter().map(|round| round.verdict).max();
    report.ok = report.verdict.is_some_and(Verdict::is_good);
    report.exit_code = match report.verdict {
        Some(verdict) if !report.interrupted => verdict.exit(),
        _ => Exit::Interrupted,
    };
    report.kill_to_exit = Spread::of(rounds.iter().filter_map(|round| round.kill_to_exit_us));
    report.kill_to_back = Spread::of(rounds.iter().filter_map(|round| round.kill_to_back_us));
    let unmaps = rounds.iter().filter_map(|round| {
        let told = &round.mmu_notifiers;
        Some(told.kvm_unmap_hva_range? + told.kvm_unmap_hva_range_by_reaper?)
    });
    report.kvm_unmap_hva_range = Spread::of(unmaps);
}
