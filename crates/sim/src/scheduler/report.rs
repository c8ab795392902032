//! How a run ended, in words.

use super::state::Outcome;
use super::timeline::{self, Step};
use super::{Options, Strategy};
use lockdep::scheduler::PointKind;
use std::fmt;
use std::sync::Arc;

/// Steps of the timeline that a report shows: the last ones.
const REPORT_STEPS: usize = 60;

/// Choices that a report shows; longer schedules are named by their seed only.
const REPORT_CHOICES: usize = 200;

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
    strategy: Strategy,
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
    /// The run took more steps than it may: perhaps a task spins for ever.
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
    pub(super) fn new(options: &Options, outcome: Outcome) -> Self {
        Self {
            seed: options.seed,
            end: outcome.end,
            nr_steps: outcome.nr_steps,
            now_ns: outcome.now_ns,
            schedule: outcome.schedule,
            digest: outcome.digest,
            steps: outcome.steps,
            task_names: outcome.task_names,
            strategy: options.strategy,
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
        let (seed, nr_steps, now_ns) = (self.seed, self.nr_steps, self.now_ns);
        writeln!(
            f,
            "seed {seed}: {} after {nr_steps} steps, {now_ns} ns",
            self.end
        )?;
        let from = self.steps.len().saturating_sub(REPORT_STEPS);
        if !self.steps.is_empty() {
            let text = timeline::render(&self.task_names, &self.steps[from..]);
            write!(f, "the last {} steps:\n{text}", self.steps.len() - from)?;
        }
        match self.strategy {
            Strategy::Drawn => write!(f, "to see it again: Sim::run({seed}, ...)")?,
            strategy => write!(
                f,
                "to see it again: Sim::run_with(Options {{ strategy: {strategy:?}, \
                 ..Options::new({seed}) }}, ...)"
            )?,
        }
        if self.schedule.len() <= REPORT_CHOICES {
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
