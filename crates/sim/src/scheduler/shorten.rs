//! Makes the schedule of a failure as short as it can be.
//!
//! Delta debugging (Zeller and Hildebrandt, 2002) over the segments of a schedule: let a task take
//! all its steps at once, leave some segments out, or make one of two, and see whether the run
//! still fails in the same way. What counts is the number of switches, then that of steps. Whatever
//! is tried is a real run, so a shortened schedule is as true as the first.

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
pub(super) const FAILURES_MAX: u32 = 40;

/// The shortest failure that is found from this one, which has a timeline.
pub(super) fn shortest(first: Run, failures_max: u32, body: &Body) -> Run {
    let trials = Arc::new(Mutex::new("sim.trials", Trials::of(&first)));
    let mut best = first;
    for _ in 0..failures_max {
        let Some(run) = course::first_failure(&trials, body) else {
            break;
        };
        if is_same_failure(&run.end, &best.end) && cost(&run) < cost(&best) {
            let mut trials = trials.lock();
            trials.restart(&run);
            best = run;
        }
    }
    best
}

fn cost(run: &Run) -> (usize, u64) {
    (run.nr_switches(), run.nr_steps)
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

/// The changes of a schedule that are tried, in turn.
struct Trials {
    options: Options,
    segments: Vec<Segment>,
    nr_tasks: usize,
    /// Which task takes all its steps at once, in one of two ways.
    gathered: usize,
    /// How many segments are left out at once; at zero, two are made one.
    size: usize,
    /// Where.
    at: usize,
    nr_runs: u32,
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
        let segments = segments::of(&run.steps);
        Self {
            options,
            nr_tasks: run.task_names.len(),
            gathered: 0,
            size: segments.len() / 2,
            segments,
            at: 0,
            nr_runs: 0,
        }
    }

    /// Goes on from a run that is shorter: at the same place, or all over after the last phase.
    fn restart(&mut self, run: &Run) {
        self.segments = segments::of(&run.steps);
        self.at = self.at.saturating_sub(self.size.max(1));
        if self.size == 0 || self.gathered < 2 * self.nr_tasks {
            self.size = self.segments.len() / 2;
            self.at = 0;
        }
    }

    /// The next change; `None` when all have been tried.
    fn next_change(&mut self) -> Option<Vec<Segment>> {
        // Those that have nothing to do with it are out of the way first.
        while self.gathered < 2 * self.nr_tasks {
            let (task, later) = (self.gathered / 2, self.gathered % 2 == 1);
            self.gathered += 1;
            if let Some(gathered) = self.gathered(task as u16, later) {
                return Some(gathered);
            }
        }
        while self.size > 0 {
            if self.at < self.segments.len() {
                let at = self.at;
                self.at += self.size;
                return Some(self.without(at..(at + self.size).min(self.segments.len())));
            }
            self.size /= 2;
            self.at = 0;
        }
        // Each segment is tried in two ways: what it does later now, or what it does now later.
        while self.at < 2 * self.segments.len() {
            let (at, later) = (self.at / 2, self.at % 2 == 1);
            self.at += 1;
            if let Some(merged) = self.merged(at, later) {
                return Some(merged);
            }
        }
        None
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
