//! Runs tasks one at a time, in an order that a strategy and its seed decide.
//!
//! Each lock, wait and notification of `lockdep::sync` is a *point*: there the task that runs draws
//! who goes on. A task that waits takes no part in the draw until it is woken, or its timeout comes
//! in virtual time. When nobody can run and no timeout is left, the run ends as a deadlock, and the
//! report says who waits where, and who holds what.
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
//! [`Strategy`] says who runs next: chance, priorities as in probabilistic concurrency testing, or
//! each schedule in turn up to a bound. [`Explore`] tries many, draws options for each run, and
//! shortens and reports the first that fails; its report ends with a line for a shell that makes
//! the run again.
//!
//! A task that spins (`PointKind::Spin`) has no turn until another has done something. When all
//! that can run have spun in vain for long, while time went faster and faster, the run ends as a
//! livelock.
//!
//! # Tasks and threads
//!
//! Tasks are coroutines, all of one thread: to take turns costs no call of the system. What
//! `lockdep` and the memory manager keep for a thread is each task's own, but a thread-local value
//! of the tasks is shared by all. A task must not wait for another but by `lockdep::sync`.
//!
//! # The end of a run
//!
//! When all tasks have ended, daemons are unwound: each gets a panic at its next point that no
//! hook hears of, and runs its destructors. A run that fails stops where it is: its thread ends,
//! and what its tasks hold, with their stacks, is never freed, since destructors of a broken state
//! would hide, or wait for, what is broken. A failing run is meant to be the last one, or nearly.
//! A destructor that panics while its task unwinds ends the process: no hook can leave that. The
//! conformance kit stops a panic before it reaches what a device under test consists of.

mod baton;
mod course;
mod decide;
mod explore;
mod fiber;
mod knobs;
mod panics;
mod place;
mod report;
mod segments;
mod shorten;
mod state;
mod strategy;
mod timeline;

#[cfg(test)]
mod tests;

pub use explore::{Explore, Explored};
pub use knobs::{Knob, Setting};
pub use report::{End, Run, Wait};
pub use strategy::{Strategy, UnknownStrategy};
pub use timeline::{Event, Step};

#[cfg(feature = "conformance")]
pub(crate) use baton::{contained, fail};
#[cfg(feature = "conformance")]
pub(crate) use panics::last as last_panic;

use crate::clock::SimClock;
use crate::rng::Rng;
use baton::Baton;
use core::ops::Range;
use state::{Plan, Role};
use std::fmt;
use std::sync::Arc;

/// How a run is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where chance starts.
    pub seed: u64,
    /// Points after which the run ends as a failure.
    pub steps_max: u64,
    /// Who runs next.
    pub strategy: Strategy,
    /// Whether each step is kept, for a timeline.
    pub timeline: Timeline,
    /// The choices of an earlier run, to be made again; after them the strategy decides.
    pub replay: Option<Vec<u16>>,
    /// What [`Sim::knob`] answers.
    pub knobs: Vec<Setting>,
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
            knobs: Vec::new(),
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
    knobs: Arc<[Setting]>,
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
        course::single(Plan::of(options), body)
    }

    /// Runs `body` with each seed until a run fails; see [`Explore`].
    ///
    /// # Panics
    ///
    /// With the report of that run, shortened. Also if its repetition differs: then `body` is not
    /// decided by its seed alone, and the report says that instead.
    #[track_caller]
    pub fn check(seeds: Range<u64>, body: impl Fn(&Self) + Send + Sync + 'static) {
        Explore::new(seeds).check(body);
    }

    /// Runs `body` with each seed until a run fails: that run, shortened; see [`Explore`].
    ///
    /// # Panics
    ///
    /// If the repetition differs: `body` is not decided by its seed alone.
    #[track_caller]
    pub fn find(seeds: Range<u64>, body: impl Fn(&Self) + Send + Sync + 'static) -> Option<Run> {
        Explore::new(seeds).find(body).failure
    }

    /// The value of an option in this run.
    ///
    /// # Panics
    ///
    /// If the table of the exploration has no option of this name.
    pub fn knob(&self, name: &str) -> u64 {
        let found = self.knobs.iter().find(|(knob, _)| *knob == name);
        found.unwrap_or_else(|| panic!("no option `{name}`")).1
    }

    /// Whether an option is on in this run, that is, not zero.
    ///
    /// # Panics
    ///
    /// If the table of the exploration has no option of this name.
    pub fn is_on(&self, name: &str) -> bool {
        self.knob(name) != 0
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
