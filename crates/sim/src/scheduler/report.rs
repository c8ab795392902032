//! How a run ended, in words.

use super::knobs::Setting;
use super::place::{self, Place};
use super::segments;
use super::state::Outcome;
use super::strategy::{Choice, Strategy};
use super::timeline::{self, Step};
use lockdep::scheduler::PointKind;
use std::fmt;
use std::sync::Arc;

/// Lines of the timeline that a report shows: the last ones.
const REPORT_LINES: usize = 60;

/// What came of a run. Its `Display` is the report of a failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where chance started.
    pub seed: u64,
    /// How the run ended.
    pub end: End,
    /// Points that were passed.
    pub nr_steps: u64,
    /// Virtual time at the end.
    pub now_ns: u64,
    /// Who was chosen, wherever there was a choice: with the seed, all that decided the run.
    pub schedule: Vec<u16>,
    /// A hash over all steps. Equal runs have equal digests, in every process.
    pub digest: u64,
    /// The steps, if they were kept.
    pub steps: Vec<Step>,
    /// The names of the tasks; a step's task is an index.
    pub task_names: Vec<Arc<str>>,
    /// Who ran next, unless the schedule was given.
    pub strategy: Strategy,
    /// The options that were drawn.
    pub knobs: Vec<Setting>,
    /// What the exploration says of it, if there was one.
    pub(super) found: Option<Found>,
    pub(super) choices: Vec<Choice>,
}

/// Where a failure comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) nr_runs: u64,
    /// Switches in the schedule as it was found.
    pub(super) nr_switches: usize,
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// All tasks ended.
    Passed,
    /// A task panicked.
    Panicked {
        /// Which.
        task: String,
        /// What it said.
        message: String,
    },
    /// Nobody can go on, and no time limit will end a wait.
    Deadlock {
        /// Who waits where.
        waits: Vec<Wait>,
    },
    /// All that could run did nothing but spin, for hours of virtual time.
    Livelock {
        /// Who is where.
        waits: Vec<Wait>,
    },
    /// The run took more steps than it may.
    StepLimit {
        /// Who is where.
        waits: Vec<Wait>,
    },
    /// A replayed choice could not be made: the schedule belongs to another program.
    Diverged {
        /// Which choice.
        choice: usize,
    },
}

/// Where a task is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wait {
    /// The task.
    pub task: String,
    /// Whether the run would have ended without it.
    pub is_daemon: bool,
    /// Whether it waits; else it could run.
    pub is_blocked: bool,
    /// What it does there.
    pub kind: PointKind,
    /// The class of the object, and which one of them.
    pub at: String,
    /// The locks that it holds. Those taken by trying are not seen.
    pub holds: Vec<String>,
}

impl Run {
    pub(super) fn new(outcome: Outcome) -> Self {
        Self {
            seed: outcome.options.seed,
            end: outcome.end,
            nr_steps: outcome.nr_steps,
            now_ns: outcome.now_ns,
            schedule: outcome.schedule,
            digest: outcome.digest,
            steps: outcome.steps,
            task_names: outcome.task_names,
            strategy: outcome.options.strategy,
            knobs: outcome.options.knobs,
            found: None,
            choices: outcome.choices,
        }
    }

    /// Whether every task ended as it should.
    pub fn has_passed(&self) -> bool {
        self.end == End::Passed
    }

    /// The steps as text, one column a task; empty if they were not kept.
    pub fn timeline(&self) -> String {
        timeline::render(&self.task_names, &self.steps)
    }

    /// The steps after the point that `scheduler_point` named, or all if there is none.
    pub fn steps_after(&self, class: &str) -> &[Step] {
        let named = self.steps.iter().position(|step| step.class == class);
        &self.steps[named.map_or(0, |named| named + 1)..]
    }

    /// Some of the steps, with what is one to a reader as one: a lock that is taken and let go of
    /// with nothing between, and a wait that begins at once.
    pub fn folded(&self, steps: &[Step]) -> Vec<Step> {
        timeline::folded(steps)
    }

    /// Some of the steps as text, one column a task.
    pub fn timeline_of(&self, steps: &[Step]) -> String {
        timeline::render(&self.task_names, steps)
    }

    /// How often another task went on than the one that ran; zero if the steps were not kept.
    pub fn nr_switches(&self) -> usize {
        segments::of(&self.steps).len().saturating_sub(1)
    }

    /// The line for a shell that makes the run again, if an exploration found it.
    pub fn replay_command(&self) -> Option<String> {
        let found = self.found.as_ref()?;
        Some(found.place.command(self))
    }

    /// Ends the test that made the run, unless it passed.
    ///
    /// # Panics
    ///
    /// With the report, if the run failed.
    #[track_caller]
    pub fn expect_pass(&self) {
        assert!(self.has_passed(), "{self}");
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nr_steps, now_ns) = (self.nr_steps, self.now_ns);
        write!(f, "seed {}, strategy {}", self.seed, self.strategy)?;
        for (name, value) in &self.knobs {
            write!(f, ", {name} {value}")?;
        }
        writeln!(f, ": {} after {nr_steps} steps, {now_ns} ns", self.end)?;
        if !self.steps.is_empty() {
            let text = timeline::render_end(&self.task_names, &self.steps, REPORT_LINES);
            write!(f, "the last steps:\n{text}")?;
        }
        match &self.found {
            Some(found) => self.write_found(found, f),
            None => self.write_calls(f),
        }
    }
}

impl Run {
    fn write_found(&self, found: &Found, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nr_runs, before) = (found.nr_runs, found.nr_switches);
        let after = self.nr_switches();
        writeln!(
            f,
            "found by run {nr_runs}, with {before} switches; shown with {after}"
        )?;
        write!(f, "to see it again: {}", found.place.command(self))
    }

    fn write_calls(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seed = self.seed;
        match self.strategy {
            Strategy::Drawn => write!(f, "to see it again: Sim::run({seed}, ...)")?,
            strategy => write!(
                f,
                "to see it again: Sim::run_with(Options {{ strategy: {strategy:?}, \
                 ..Options::new({seed}) }}, ...)"
            )?,
        }
        if self.schedule.len() <= place::CHOICES_MAX {
            write!(f, ", or Sim::replay({seed}, &{:?}, ...)", self.schedule)?;
        }
        Ok(())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, waits) = match self {
            Self::Passed => return f.write_str("passed"),
            Self::Panicked { task, message } => {
                return write!(f, "task `{task}` panicked: {message}");
            }
            Self::Diverged { choice } => {
                return write!(f, "choice {choice} of the schedule could not be made again");
            }
            Self::Deadlock { waits } => ("deadlock", waits),
            Self::Livelock { waits } => ("livelock", waits),
            Self::StepLimit { waits } => ("no end in sight", waits),
        };
        writeln!(f, "{what}:")?;
        waits.iter().try_for_each(|wait| writeln!(f, "  {wait}"))
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let daemon = if self.is_daemon { " (daemon)" } else { "" };
        let does = if self.is_blocked {
            "waits at"
        } else {
            "could run from"
        };
        let kind = timeline::word(self.kind);
        write!(f, "{}{daemon} {does} {kind} {}", self.task, self.at)?;
        if !self.holds.is_empty() {
            write!(f, ", holds {}", self.holds.join(" and "))?;
        }
        Ok(())
    }
}
