//! `pinless run`: the main job, on real memory with real files and devices.
//!
//! Four times more memory than the limit is filled with files and used, by everybody at once:
//! threads, devices that do DMA, io_uring. Whatever is read is compared with a model that lies
//! outside of managed memory. What did not hold goes to the [`judge`]; the rest is a [`report`].

pub(crate) mod corpus;
pub(crate) mod judge;
pub(crate) mod model;
mod oom_story;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod rng;
mod rss;
pub(crate) mod scenario;
mod stage;
pub(crate) mod tenant;
pub(crate) mod verify;
mod witness;
pub(crate) mod workload;

use crate::args::{Bytes, RunArgs};
use crate::exit::{self, Exit};
use crate::render::json::{Json, JsonError};
use crate::render::{live::Live, term};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use corpus::{Corpus, CorpusError};
use pinless::{BuildError, MapError};
use plan::Plan;
use report::Report;
use stage::Stage;
use std::fs::{File, OpenOptions};
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

/// Why the run could not even begin.
#[derive(Debug)]
pub(crate) enum RunError {
    Corpus(CorpusError),
    TooSmall {
        limit: Bytes,
        nr_tenants: u32,
        needed: Bytes,
    },
    TooLarge {
        limit: Bytes,
    },
    Build(BuildError),
    Map(MapError),
    TempFile(io::Error),
    Json(JsonError),
    Signals(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corpus(error) => error.fmt(f),
            Self::TooSmall {
                limit,
                nr_tenants,
                needed,
            } => write!(
                f,
                "a limit of {limit} is too small for {nr_tenants} tenants and the reserve: \
                 give --limit {needed} or more, or fewer --tenants"
            ),
            Self::TooLarge { limit } => write!(
                f,
                "a limit of {limit} is too large: a tenant's memory would have too many pages"
            ),
            Self::Build(error) => error.fmt(f),
            Self::Map(error) => write!(f, "a tenant's memory cannot be mapped: {error}"),
            Self::TempFile(error) => write!(
                f,
                "no temporary file can be made in {}: {error}; set TMPDIR",
                std::env::temp_dir().display()
            ),
            Self::Json(error) => error.fmt(f),
            Self::Signals(error) => write!(f, "Ctrl-C cannot be caught: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

/// Runs it, shows the report, and says how it went.
pub(crate) fn main(args: &RunArgs) -> Exit {
    if let Some(scenario) = args.scenario {
        return scenario::main(args, scenario);
    }
    let report = match run_and_show(args) {
        Ok(report) => report,
        Err(error) => return exit::bad_use(&error),
    };
    for line in term::failures(&report) {
        exit::eprint_line(&line);
    }
    match (report.ok, report.interrupted) {
        (false, _) => Exit::Failed,
        (true, true) => Exit::Interrupted,
        (true, false) => Exit::Held,
    }
}

fn run_and_show(args: &RunArgs) -> Result<Report, RunError> {
    let json = Json::open(args.json.as_deref()).map_err(RunError::Json)?;
    let report = run(args)?;
    json.show(&report, term::table).map_err(RunError::Json)?;
    Ok(report)
}

fn run(args: &RunArgs) -> Result<Report, RunError> {
    let seed = args.seed.unwrap_or_else(seed_of_clock);
    let input = args.input.clone().unwrap_or_else(corpus::default_input);
    let corpus = Corpus::gather(&input, Plan::managed_bytes_max(args)).map_err(RunError::Corpus)?;
    let corpus = Arc::new(corpus);
    let plan = Plan::new(args, seed, &corpus)?;
    let is_interrupted = catch_signals()?;
    let stage = Stage::set(plan, &input, corpus, is_interrupted)?;
    Ok(stage.play(&Live::new()))
}

/// A flag that is set when the user, or the system, wants an end.
pub(crate) fn catch_signals() -> Result<Arc<AtomicBool>, RunError> {
    let is_interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_interrupted))
            .map_err(RunError::Signals)?;
    }
    Ok(is_interrupted)
}

/// A seed for whoever gave none.
pub(crate) fn seed_of_clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // Six digits are easy to type again.
    since.map_or(1, |since| rng::mix(since.as_nanos() as u64) % 1_000_000)
}

/// A file without a name: nothing is left behind, however the run ends.
fn temp_file() -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nr = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("pinless-{}-{nr}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
