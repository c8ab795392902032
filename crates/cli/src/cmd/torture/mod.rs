//! `pinless torture`: everything at once and at random, on real memory, until something is wrong.
//!
//! A [`life`] is one address space from its first page to its last; several go on beside each
//! other, each followed by the next. [`Chaos`](chaos) changes bounds, kills and forks meanwhile.
//! The model of contents, the devices and the witness are those of [`run`](super::run). What each
//! thread does follows from the seed; the first failure ends it.

mod acts;
mod chaos;
mod life;
mod plan;
pub(crate) mod report;
mod stage;

use crate::args::TortureArgs;
use crate::cmd::run::corpus::{self, Corpus};
use crate::cmd::run::{RunError, catch_signals, seed_of_clock};
use crate::exit::{self, Exit};
use crate::render::json::Json;
use crate::render::live::Live;
use plan::Plan;
use report::Report;
use stage::Stage;
use std::sync::Arc;

/// Bytes of input that are enough: it repeats.
const CORPUS_BYTES_MAX: u64 = 16 << 20;

/// Runs it, shows the report, and says how it went.
pub(crate) fn main(args: &TortureArgs) -> Exit {
    let report = match run_and_show(args) {
        Ok(report) => report,
        Err(error) => return exit::bad_use(&error),
    };
    for failure in &report.failures {
        exit::eprint_line(&format!("pinless: failed: {failure}"));
    }
    if !report.ok {
        exit::eprint_line(&format!("pinless: again: {}", report.replay));
    }
    match (report.ok, report.interrupted) {
        (false, _) => Exit::Failed,
        (true, true) => Exit::Interrupted,
        (true, false) => Exit::Held,
    }
}

fn run_and_show(args: &TortureArgs) -> Result<Report, RunError> {
    let json = Json::open(args.json.as_deref()).map_err(RunError::Json)?;
    let input = args.input.clone().unwrap_or_else(corpus::default_input);
    let corpus = Corpus::gather(&input, CORPUS_BYTES_MAX).map_err(RunError::Corpus)?;
    let plan = Plan::new(args, args.seed.unwrap_or_else(seed_of_clock));
    let is_interrupted = catch_signals()?;
    let stage = Stage::set(plan, Arc::new(corpus), is_interrupted)?;
    exit::eprint_line(&format!("seed {}: {}", stage.plan.seed, stage.plan.replay));
    let report = stage.play(&Live::new())?;
    json.show(&report, report::table).map_err(RunError::Json)?;
    Ok(report)
}
