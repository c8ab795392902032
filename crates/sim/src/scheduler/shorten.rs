//! Makes the schedule of a failure as short as it can be.
//!
//! Delta debugging (Zeller and Hildebrandt, 2002) over the segments of a schedule: leave a task
//! out, let it take all its steps at once, leave some segments out, make one of two, or let one end
//! earlier, and see whether the run still fails in the same way. What counts is the number of
//! switches, then that of steps, or what the caller says. Whatever is tried is a real run, so a
//! shortened schedule is as true as the first.

use super::Options;
use super::course::{self, Body, Source};
use super::report::{End, Run};
use super::segments::{self, Segment};
use super::state::Plan;
use lockdep::sync::Mutex;
use std::mem;
use std::sync::Arc;

/// Runs that are made to shorten one.
const RUNS_MAX: u32 = 2_000;

/// Runs of those that may fail, unless told otherwise: what a run that failed holds is never freed.
pub(super) const FAILURES_MAX: u32 = 100;

/// The shortest failure that is found from this one, which has a timeline.
pub(super) fn shortest(first: Run, failures_max: u32, weigh: fn(&Run) -> u64, body: &Body) -> Run {
    let trials = Arc::new(Mutex::new("sim.trials", Trials::of(&first)));
    let mut best = first;
    for _ in 0..failures_max {
        let Some(run) = course::first_failure(&trials, body) else {
            break;
        };
        if is_same_failure(&run.end, &best.end) && weigh(&run) < weigh(&best) {
            let mut trials = trials.lock();
            trials.restart(&run);
            best = run;
        }
    }
    best
}

/// First the switches count, then the steps.
pub(super) fn weight(run: &Run) -> u64 {
    ((run.nr_switches() as u64) << 32) + run.nr_steps.min(u64::from(u32::MAX))
}

/// The same kind of end; for a panic, at the same place of the source.
fn is_same_failure(a: &End, b: &End) -> bool {
    fn place(message: &str) -> Option<&str> {
        message.rsplit_once(", at ").map(|(_, place)| place)
    }
    match (a, b) {
        (End::Panicked { message: a, .. }, End::Panicked { message: b, .. }) => {
            place(a) == place(b)
        }
        _ => mem::discriminant(a) == mem::discriminant(b),
    }
}

/// The changes of a schedule that are tried, in turn: all phases, and again while that helps.
struct Trials {
    options: Options,
    segments: Vec<Segment>,
    nr_tasks: usize,
    phase: Phase,
    /// Which change of the phase is the next one.
    at: usize,
    /// A change has been kept since the first phase began.
    has_helped: bool,
    nr_runs: u32,
}

/// What is tried with each task, or with each segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// A task has no turn while another can have it. Those that have nothing to do with the
    /// failure are out of the way first.
    LeaveOut,
    /// A task takes all its steps at once, where it took the first or the last.
    Gather,
    /// So many segments are left out.
    Cut(usize),
    /// A segment and the next one of its task are one, in the place of either.
    Merge,
    /// A segment ends earlier, by half or by a step, so that what follows comes sooner.
    Trim,
}

impl Trials {
    fn of(run: &Run) -> Self {
        let options = Options {
            strategy: run.strategy,
            knobs: run.knobs.clone(),
            // A longer run is no shorter one.
            steps_max: run.nr_steps.saturating_mul(2).max(100),
            ..Options::new(run.seed).with_timeline()
        };
        Self {
            options,
            segments: segments::of(&run.steps),
            nr_tasks: run.task_names.len(),
            phase: Phase::LeaveOut,
            at: 0,
            has_helped: false,
            nr_runs: 0,
        }
    }

    /// Goes on from a run that is shorter, at the same place.
    fn restart(&mut self, run: &Run) {
        self.segments = segments::of(&run.steps);
        self.has_helped = true;
        if !matches!(self.phase, Phase::LeaveOut | Phase::Gather) {
            self.at = self.at.saturating_sub(1);
        }
    }

    /// The next change; `None` when all have been tried in vain.
    fn next_change(&mut self) -> Option<Vec<Segment>> {
        loop {
            while self.at < self.nr_changes() {
                let at = self.at;
                self.at += 1;
                if let Some(changed) = self.change(at) {
                    return Some(changed);
                }
            }
            self.at = 0;
            self.phase = self.next_phase()?;
        }
    }

    fn next_phase(&mut self) -> Option<Phase> {
        let phase = match self.phase {
            Phase::LeaveOut => Phase::Gather,
            Phase::Gather => Phase::Cut((self.segments.len() / 2).max(1)),
            Phase::Cut(1) => Phase::Merge,
            Phase::Cut(size) => Phase::Cut(size / 2),
            Phase::Merge => Phase::Trim,
            Phase::Trim if mem::take(&mut self.has_helped) => Phase::LeaveOut,
            Phase::Trim => return None,
        };
        Some(phase)
    }

    fn nr_changes(&self) -> usize {
        match self.phase {
            Phase::LeaveOut => self.nr_tasks,
            Phase::Gather => 2 * self.nr_tasks,
            Phase::Cut(size) => self.segments.len().div_ceil(size),
            Phase::Merge | Phase::Trim => 2 * self.segments.len(),
        }
    }

    fn change(&self, at: usize) -> Option<Vec<Segment>> {
        let (half, is_second) = (at / 2, at % 2 == 1);
        match self.phase {
            Phase::LeaveOut => self.without_task(at as u16),
            Phase::Gather => self.gathered(half as u16, is_second),
            Phase::Cut(size) => {
                let end = (at + 1) * size;
                Some(self.without(at * size..end.min(self.segments.len())))
            }
            Phase::Merge => self.merged(half, is_second),
            Phase::Trim => self.trimmed(half, is_second),
        }
    }

    /// All segments but those of `task`.
    fn without_task(&self, task: u16) -> Option<Vec<Segment>> {
        let mut rest = Vec::with_capacity(self.segments.len());
        for segment in self.segments.iter().filter(|segment| segment.task != task) {
            segments::push(&mut rest, segment.task, segment.nr_steps);
        }
        (rest.len() < self.segments.len()).then_some(rest)
    }

    /// All segments of `task` as one, at the place of the first or the last.
    fn gathered(&self, task: u16, later: bool) -> Option<Vec<Segment>> {
        let is_its = |segment: &&Segment| segment.task == task;
        let nr_steps = self
            .segments
            .iter()
            .filter(is_its)
            .map(|segment| segment.nr_steps)
            .sum();
        let first = self
            .segments
            .iter()
            .position(|segment| segment.task == task)?;
        let last = self
            .segments
            .iter()
            .rposition(|segment| segment.task == task)?;
        let place = if later { last } else { first };
        let mut rest = Vec::with_capacity(self.segments.len());
        for (nth, segment) in self.segments.iter().enumerate() {
            if nth == place {
                segments::push(&mut rest, task, nr_steps);
            } else if segment.task != task {
                segments::push(&mut rest, segment.task, segment.nr_steps);
            }
        }
        (first < last).then_some(rest)
    }

    fn without(&self, range: core::ops::Range<usize>) -> Vec<Segment> {
        let mut rest = Vec::with_capacity(self.segments.len());
        for (nth, segment) in self.segments.iter().enumerate() {
            if !range.contains(&nth) {
                segments::push(&mut rest, segment.task, segment.nr_steps);
            }
        }
        rest
    }

    /// The segment `at` and the next one of its task as one.
    fn merged(&self, at: usize, later: bool) -> Option<Vec<Segment>> {
        let segment = self.segments[at];
        let mut rest = self.segments.iter().skip(at + 1);
        let next = at + 1 + rest.position(|other| other.task == segment.task)?;
        let mut changed = self.segments.clone();
        let nr_steps = segment.nr_steps + changed[next].nr_steps;
        let (kept, gone) = if later { (next, at) } else { (at, next) };
        changed[kept].nr_steps = nr_steps;
        changed.remove(gone);
        Some(changed)
    }

    /// The segment `at` with half of its steps, or all but the last; the next one of its task
    /// takes the rest.
    fn trimmed(&self, at: usize, by_one: bool) -> Option<Vec<Segment>> {
        let mut changed = self.segments.clone();
        let nr_steps = changed[at].nr_steps;
        let nr_moved = if by_one { 1 } else { nr_steps / 2 };
        if nr_steps < 2 || (by_one && nr_steps < 4) {
            return None; // the same as half
        }
        changed[at].nr_steps -= nr_moved;
        let task = changed[at].task;
        let mut rest = changed[at + 1..].iter_mut();
        if let Some(next) = rest.find(|segment| segment.task == task) {
            next.nr_steps += nr_moved;
        }
        Some(changed)
    }
}

impl Source for Trials {
    fn next(&mut self, _: Option<Run>) -> Option<Plan> {
        if self.nr_runs >= RUNS_MAX {
            return None;
        }
        self.nr_runs += 1;
        Some(Plan {
            script: Some(self.next_change()?),
            ..Plan::of(self.options.clone())
        })
    }
}
