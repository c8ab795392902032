//! Runs tasks one at a time, in an order that a seed decides.
//!
//! Tasks are threads. Each lock, wait and notification of `lockdep::sync` is a *point*: there the
//! task that runs holds the baton, draws who runs next, and hands the baton over. A task that
//! waits takes no part in the draw until it is woken, or its timeout comes in virtual time. When
//! nobody can run and no timeout is left, the run ends as a deadlock, and the report says who
//! waits where, and who holds what.
//!
//! ```
//! use lockdep::sync::Mutex;
//! use pinless_sim::Sim;
//! use std::sync::Arc;
//!
//! Sim::check(0..100, |sim| {
//!     let total = Arc::new(Mutex::new("total", 0));
//!     for _ in 0..2 {
//!         let total = Arc::clone(&total);
//!         sim.spawn("adder", move || *total.lock() += 1);
//!     }
//!     sim.join_all();
//!     assert_eq!(*total.lock(), 2);
//! });
//! ```
//!
//! # What is explored
//!
//! Interleavings at points, sequentially consistent. A data race between two points is not seen,
//! nor a weak memory order: those are for loom. `lockdep::scheduler::scheduler_point` makes a
//! point where there is no lock.
//!
//! # The end of a run
//!
//! When all tasks have ended, daemons are unwound: each gets a panic at its next point that no
//! hook hears of, and runs its destructors. A run that fails stops where it is: its threads sleep
//! for ever and what they hold is never freed, since destructors of a broken state would hide, or
//! wait for, what is broken. A failing run is meant to be the last one, or nearly.

mod baton;
mod panics;
mod report;
mod state;
mod timeline;
mod worker;

#[cfg(test)]
mod tests;

pub use report::{End, Run, Wait};
pub use timeline::{Event, Step};

use crate::clock::SimClock;
use crate::rng::Rng;
use baton::Baton;
use core::ops::Range;
use state::Role;
use std::fmt;
use std::sync::Arc;

/// How a run is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where chance starts.
    pub seed: u64,
    /// Points after which the run ends as a failure.
    pub steps_max: u64,
    /// How often the baton goes on.
    pub strategy: Strategy,
    /// Whether each step is kept, for a timeline.
    pub timeline: Timeline,
    /// The choices of an earlier run, to be made again; after them the strategy decides.
    pub replay: Option<Vec<u16>>,
}

/// How often the baton goes on while its holder could go on itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// The seed draws one of the others: some bugs need many switches, some need few.
    Drawn,
    /// At one point in this many, to any task that can run; one means at every point.
    SwitchOneIn(u32),
}

/// Whether the steps of a run are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeline {
    /// They are.
    Kept,
    /// They are not: faster.
    Dropped,
}

impl Options {
    /// Points after which a run ends, unless told otherwise.
    pub const STEPS_MAX: u64 = 1_000_000;

    /// A run with this seed: strategy drawn, no timeline.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            steps_max: Self::STEPS_MAX,
            strategy: Strategy::Drawn,
            timeline: Timeline::Dropped,
            replay: None,
        }
    }

    /// The same run with a timeline.
    #[must_use]
    pub fn with_timeline(self) -> Self {
        Self {
            timeline: Timeline::Kept,
            ..self
        }
    }
}

/// The inside of a run: what its tasks know of it.
#[derive(Clone)]
pub struct Sim {
    baton: Arc<Baton>,
    seed: u64,
}

impl Sim {
    /// Runs `body` and the tasks that it spawns until all have ended.
    ///
    /// # Panics
    ///
    /// If called from inside a run.
    pub fn run(seed: u64, body: impl FnOnce(&Self) + Send + 'static) -> Run {
        Self::run_with(Options::new(seed), body)
    }

    /// Makes the choices of `schedule` again; see [`Run::schedule`].
    ///
    /// # Panics
    ///
    /// If called from inside a run.
    pub fn replay(seed: u64, schedule: &[u16], body: impl FnOnce(&Self) + Send + 'static) -> Run {
        let options = Options {
            replay: Some(schedule.to_vec()),
            ..Options::new(seed).with_timeline()
        };
        Self::run_with(options, body)
    }

    /// Runs `body` as `options` say.
    ///
    /// # Panics
    ///
    /// If called from inside a run.
    pub fn run_with(options: Options, body: impl FnOnce(&Self) + Send + 'static) -> Run {
        assert!(!lockdep::scheduler::is_scheduled(), "a run inside a run");
        let seed = options.seed;
        let baton = Baton::new(options);
        let sim = Self {
            baton: Arc::clone(&baton),
            seed,
        };
        baton.run(Box::new(move || body(&sim)))
    }

    /// Runs `body` with each seed; the first run that fails is repeated with a timeline.
    ///
    /// # Panics
    ///
    /// With the report of that run. Also if the repetition differs: then `body` is not decided by
    /// its seed alone, and the report says that instead.
    #[track_caller]
    pub fn check(seeds: Range<u64>, body: impl Fn(&Self) + Send + Sync + 'static) {
        if let Some(run) = Self::find(seeds, body) {
            panic!("{run}");
        }
    }

    /// Runs `body` with each seed until a run fails, and repeats that run with a timeline.
    ///
    /// # Panics
    ///
    /// If the repetition differs: `body` is not decided by its seed alone.
    #[track_caller]
    pub fn find(seeds: Range<u64>, body: impl Fn(&Self) + Send + Sync + 'static) -> Option<Run> {
        let body = Arc::new(body);
        let run_with = |options| {
            let body = Arc::clone(&body);
            Self::run_with(options, move |sim| body(sim))
        };
        for seed in seeds {
            let run = run_with(Options::new(seed));
            if run.has_passed() {
                continue;
            }
            let again = run_with(Options::new(seed).with_timeline());
            assert!(
                again.digest == run.digest,
                "seed {seed} gave two different runs, the first:\n{run}\nthe second:\n{again}"
            );
            return Some(again);
        }
        None
    }

    /// Starts a task. It may run before this returns.
    ///
    /// # Panics
    ///
    /// If the caller is no task of this run.
    pub fn spawn(&self, name: &str, task: impl FnOnce() + Send + 'static) {
        self.baton.spawn(name, Role::Task, Box::new(task));
    }

    /// Starts a task for which the run does not wait: when all others have ended, it is unwound.
    ///
    /// # Panics
    ///
    /// If the caller is no task of this run.
    pub fn spawn_daemon(&self, name: &str, task: impl FnOnce() + Send + 'static) {
        self.baton.spawn(name, Role::Daemon, Box::new(task));
    }

    /// Waits until all tasks but the caller and the daemons have ended.
    ///
    /// # Panics
    ///
    /// If the caller is no task of this run.
    pub fn join_all(&self) {
        self.baton.join_all();
    }

    /// The clock of the run.
    pub fn clock(&self) -> Arc<SimClock> {
        Arc::clone(self.baton.clock())
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chance for what the tasks do, apart from that of the scheduler: `stream` tells several
    /// users apart.
    pub fn rng(&self, stream: u64) -> Rng {
        Rng::new(crate::rng::nth(!self.seed, stream))
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}
