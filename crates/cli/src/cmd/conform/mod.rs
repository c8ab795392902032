//! `pinless conform`: every driver model against every invariant, and the faults of the zoo.
//!
//! The kit judges (`pinless_sim::conformance`) and the models are judged (`pinless_devices`);
//! neither knows of the other, they meet here.

mod judge;
pub(crate) mod report;

use crate::args::ConformArgs;
use crate::exit::{self, Exit};
use crate::render::conform as term;
use crate::render::json::{Json, JsonError};
use core::fmt;
use judge::{Plan, Wish};
use pinless_devices::{Bug, ModelInfo, models, zoo};
use report::Report;

/// Why nothing was judged.
#[derive(Debug)]
pub(crate) enum ConformError {
    NoDriver { name: String },
    NoBug { number: u8 },
    NoScene { name: String },
    NoSwitch { bug: u8, driver: String },
    Json(JsonError),
}

impl fmt::Display for ConformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver { name } => {
                let known: Vec<String> = models().iter().map(ModelInfo::full_name).collect();
                write!(
                    f,
                    "there is no driver `{name}`; there is: {}",
                    known.join(", ")
                )
            }
            Self::NoBug { number } => {
                let known: Vec<String> = numbers().map(|number| number.to_string()).collect();
                write!(
                    f,
                    "bug {number} is no switch; these are: {}",
                    known.join(", ")
                )
            }
            Self::NoScene { name } => {
                let known: Vec<&str> = pinless_sim::conformance::Kit::scenes().collect();
                write!(
                    f,
                    "there is no scene `{name}`; there is: {}",
                    known.join(", ")
                )
            }
            Self::NoSwitch { bug, driver } => write!(f, "{driver} has no switch for bug {bug}"),
            Self::Json(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConformError {}

/// Runs the command.
pub(crate) fn main(args: &ConformArgs) -> Exit {
    // A release does not watch locks by itself.
    lockdep::set_enabled(true);
    match run(args) {
        Ok(true) => Exit::Held,
        Ok(false) => Exit::Failed,
        Err(error) => exit::bad_use(&error),
    }
}

/// Whether all that was judged came out as it should.
fn run(args: &ConformArgs) -> Result<bool, ConformError> {
    let plan = plan(args)?;
    let json = Json::open(args.json.as_deref()).map_err(ConformError::Json)?;
    if !matches!(json, Json::Stdout) {
        // First of all: with these the rest can be seen again.
        let (seed, schedules) = (args.seed, args.schedules);
        exit::print_text(&format!("seed {seed}, {schedules} schedules a scene\n"));
    }
    let report = Report::new(args, judge::all(&plan));
    let ok = report.ok;
    json.show(&report, term::table)
        .map_err(ConformError::Json)?;
    for line in term::failures(&report) {
        exit::eprint_line(&line);
    }
    Ok(ok)
}

fn plan(args: &ConformArgs) -> Result<Plan, ConformError> {
    let models = match &args.driver {
        None => models().iter().collect(),
        Some(name) => named(name)?,
    };
    if let Some(name) = &args.scene
        && !pinless_sim::conformance::Kit::scenes().any(|scene| scene == name)
    {
        return Err(ConformError::NoScene { name: name.clone() });
    }
    let bug = args.bug.map(bug_of).transpose()?;
    if let (Some(bug), Some(driver)) = (bug, &args.driver)
        && !models.iter().any(|model| model.switches.contains(&bug))
    {
        let (bug, driver) = (bug.number(), driver.clone());
        return Err(ConformError::NoSwitch { bug, driver });
    }
    Ok(Plan {
        models,
        wish: match bug {
            Some(bug) => Wish::Bug(bug),
            None if args.driver.is_some() => Wish::Drivers,
            None => Wish::Everything,
        },
        schedules: args.schedules,
        seed: args.seed,
        scene: args.scene.clone(),
        checks: args.checks.level(),
    })
}

/// The models of this full name, or of this driver in all its variants.
fn named(name: &str) -> Result<Vec<&'static ModelInfo>, ConformError> {
    let is_named = |model: &&ModelInfo| model.full_name() == name || model.name == name;
    let found: Vec<_> = models().iter().filter(is_named).collect();
    match found.is_empty() {
        true => Err(ConformError::NoDriver { name: name.into() }),
        false => Ok(found),
    }
}

fn numbers() -> impl Iterator<Item = u8> {
    zoo().iter().map(|info| info.bug.number())
}

fn bug_of(number: u8) -> Result<Bug, ConformError> {
    let found = zoo().iter().find(|info| info.bug.number() == number);
    let found = found.ok_or(ConformError::NoBug { number })?;
    Ok(found.bug)
}
