//! Many runs of one body, in search of one that fails.

use super::course::{self, Body, Source};
use super::knobs::{self, Knob};
use super::place::{Place, VARIABLE, Wish};
use super::report::{Found, Run};
use super::shorten;
use super::state::Plan;
use super::strategy::{Choice, Strategy};
use super::{Options, Sim};
use core::ops::Range;
use core::panic::Location;
use lockdep::sync::Mutex;
use std::sync::Arc;

/// An exploration: which schedules of a body are tried.
///
/// The first run that fails is repeated, shortened and reported, with a line for a shell that
/// makes it again. That line sets `PINLESS_SIM`, by which anyone may also choose the strategy,
/// the seeds and the options of an exploration: `PINLESS_SIM='strategy=pct:3 seeds=0..10000'`.
///
/// ```
/// use lockdep::sync::Mutex;
/// use pinless_sim::{Explore, Knob, Strategy};
/// use std::sync::Arc;
///
/// let explored = Explore::new(0..1)
///     .strategy(Strategy::Exhaustive { preemptions_max: 2 })
///     .knobs(&[Knob::number("tasks", 2, 3)])
///     .check(|sim| {
///         let total = Arc::new(Mutex::new("total", 0));
///         for _ in 0..sim.knob("tasks") {
///             let total = Arc::clone(&total);
///             sim.spawn("adder", move || *total.lock() += 1);
///         }
///         sim.join_all();
///         assert_eq!(*total.lock(), sim.knob("tasks"));
///     });
/// assert!(explored.is_complete);
/// ```
#[derive(Clone, Debug)]
#[must_use = "an exploration begins with `check` or `find`"]
pub struct Explore {
    seeds: Range<u64>,
    strategy: Strategy,
    knobs: Vec<Knob>,
    steps_max: u64,
    runs_max: u64,
    shortens: Shortens,
    weigh: fn(&Run) -> u64,
}

/// Whether a failing schedule is made shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shortens {
    /// By trials of which at most this many fail: what a run that failed holds is never freed.
    Yes {
        failures_max: u32,
    },
    No,
}

/// What came of an exploration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explored {
    /// Runs up to the one that failed, with it, without those that shortened it.
    pub nr_runs: u64,
    /// Whether all runs that were asked for were made.
    pub is_complete: bool,
    /// The run that failed.
    pub failure: Option<Run>,
}

impl Explore {
    /// A run for each of these seeds; with [`Strategy::Exhaustive`], all schedules for each.
    pub const fn new(seeds: Range<u64>) -> Self {
        Self {
            seeds,
            strategy: Strategy::Drawn,
            knobs: Vec::new(),
            steps_max: Options::STEPS_MAX,
            runs_max: u64::MAX,
            shortens: Shortens::Yes {
                failures_max: shorten::FAILURES_MAX,
            },
            weigh: shorten::weight,
        }
    }

    /// Who runs next.
    pub fn strategy(self, strategy: Strategy) -> Self {
        Self { strategy, ..self }
    }

    /// Options that are drawn for each run, from its seed; see [`Sim::knob`].
    pub fn knobs(self, table: &[Knob]) -> Self {
        Self {
            knobs: table.to_vec(),
            ..self
        }
    }

    /// Steps after which a run ends as a failure.
    pub fn steps_max(self, steps_max: u64) -> Self {
        Self { steps_max, ..self }
    }

    /// Runs after which the exploration ends without a result.
    pub fn runs_max(self, runs_max: u64) -> Self {
        Self { runs_max, ..self }
    }

    /// Makes a failing schedule shorter by trials of which at most this many fail; what a run that
    /// failed holds is never freed.
    pub fn failures_max(self, failures_max: u32) -> Self {
        Self {
            shortens: Shortens::Yes { failures_max },
            ..self
        }
    }

    /// What a failing schedule is made less of; switches of tasks, and then steps, unless told
    /// otherwise.
    pub fn weighed_by(self, weigh: fn(&Run) -> u64) -> Self {
        Self { weigh, ..self }
    }

    /// Leaves a failing schedule as it was found.
    pub fn as_found(self) -> Self {
        Self {
            shortens: Shortens::No,
            ..self
        }
    }

    /// Explores, and expects that no run fails.
    ///
    /// # Panics
    ///
    /// With the report of the run that failed. Also as [`Explore::find`] does.
    #[track_caller]
    pub fn check(self, body: impl Fn(&Sim) + Send + Sync + 'static) -> Explored {
        let explored = self.find(body);
        if let Some(run) = &explored.failure {
            panic!("{run}");
        }
        explored
    }

    /// Explores until a run fails.
    ///
    /// # Panics
    ///
    /// If the failure does not come again with the same choices: then `body` is not decided by
    /// its seed alone. If `PINLESS_SIM` holds what is not understood. If called from inside a run.
    #[track_caller]
    pub fn find(self, body: impl Fn(&Sim) + Send + Sync + 'static) -> Explored {
        let place = Place::new(Location::caller());
        let wish = place.wish();
        self.find_at(place, wish, body)
    }

    #[track_caller]
    pub(super) fn find_at(
        self,
        place: Place,
        wish: Wish,
        body: impl Fn(&Sim) + Send + Sync + 'static,
    ) -> Explored {
        let body: Body = Arc::new(body);
        let search = Arc::new(Mutex::new("sim.search", Search::new(&self, wish)));
        let failure = course::first_failure(&search, &body);
        let search = search.lock();
        let nr_runs = search.nr_runs;
        let failure = failure.map(|first| {
            let again = repeat(&first, search.options(first.seed), &body);
            let found = Found {
                place,
                nr_runs,
                nr_switches: again.nr_switches(),
            };
            let shown = match self.shortens {
                Shortens::Yes { failures_max } if !search.replays() => {
                    shorten::shortest(again, failures_max, self.weigh, &body)
                }
                _ => again,
            };
            Run {
                found: Some(found),
                ..shown
            }
        });
        Explored {
            nr_runs,
            is_complete: search.is_complete,
            failure,
        }
    }
}

/// Makes the choices of a failure again, with a timeline.
#[track_caller]
fn repeat(first: &Run, options: Options, body: &Body) -> Run {
    let options = Options {
        strategy: first.strategy,
        replay: Some(first.schedule.clone()),
        ..options.with_timeline()
    };
    let body = Arc::clone(body);
    let again = course::single(Plan::of(options), move |sim| body(sim));
    assert!(
        again.digest == first.digest,
        "seed {} gave two different runs, the first:\n{first}\nthe second:\n{again}",
        first.seed
    );
    again
}

/// What is left to be tried.
struct Search {
    seeds: Range<u64>,
    strategy: Strategy,
    schedule: Option<Vec<u16>>,
    table: Vec<Knob>,
    fixed: Vec<(String, u64)>,
    steps_max: u64,
    runs_max: u64,
    nr_runs: u64,
    /// The most steps that a run has taken.
    nr_steps_seen: u64,
    /// The choices of the last run, for the exhaustive strategy; empty where a seed begins.
    branches: Vec<Branch>,
    is_complete: bool,
}

/// A choice, and which alternatives have been taken.
struct Branch {
    choice: Choice,
    tried: u64,
    /// Preemptions before it.
    nr_preemptions: u32,
}

impl Search {
    fn new(explore: &Explore, wish: Wish) -> Self {
        let known = |name: &str| explore.knobs.iter().any(|knob| knob.name == name);
        if let Some((name, _)) = wish.knobs.iter().find(|(name, _)| !known(name)) {
            panic!("{VARIABLE}: there is no option `{name}`");
        }
        Self {
            seeds: wish.seeds.unwrap_or_else(|| explore.seeds.clone()),
            strategy: wish.strategy.unwrap_or(explore.strategy),
            schedule: wish.schedule,
            table: explore.knobs.clone(),
            fixed: wish.knobs,
            steps_max: explore.steps_max,
            runs_max: explore.runs_max,
            nr_runs: 0,
            nr_steps_seen: 0,
            branches: Vec::new(),
            is_complete: false,
        }
    }

    /// Whether one schedule is asked for.
    fn replays(&self) -> bool {
        self.schedule.is_some()
    }

    fn options(&self, seed: u64) -> Options {
        let strategy = match self.strategy {
            Strategy::Pct { depth, steps: 0 } => Strategy::Pct {
                depth,
                steps: self.nr_steps_seen,
            },
            strategy => strategy,
        };
        Options {
            strategy,
            steps_max: self.steps_max,
            replay: self.schedule.clone(),
            knobs: knobs::draw(&self.table, seed, &self.fixed),
            ..Options::new(seed)
        }
    }

    /// The choices of the next schedule of the seed; `None` if it has no more.
    fn next_branch(&mut self, last: Vec<Choice>, preemptions_max: u32) -> Option<Vec<u16>> {
        for choice in last.into_iter().skip(self.branches.len()) {
            assert!(choice.candidates != 0, "64 tasks can be told apart");
            let nr_preemptions = self.branches.last().map_or(0, Branch::nr_preemptions_after);
            self.branches.push(Branch {
                tried: 1 << choice.chosen,
                choice,
                nr_preemptions,
            });
        }
        while let Some(mut branch) = self.branches.pop() {
            if branch.take_next(preemptions_max) {
                self.branches.push(branch);
                return Some(
                    self.branches
                        .iter()
                        .map(|branch| branch.choice.chosen)
                        .collect(),
                );
            }
        }
        None
    }
}

impl Source for Search {
    fn next(&mut self, last: Option<Run>) -> Option<Plan> {
        if self.nr_runs >= self.runs_max {
            return None;
        }
        if let Some(run) = last {
            self.nr_steps_seen = self.nr_steps_seen.max(run.nr_steps);
            if let Strategy::Exhaustive { preemptions_max } = self.strategy
                && !self.replays()
                && let Some(prefix) = self.next_branch(run.choices, preemptions_max)
            {
                self.nr_runs += 1;
                let options = Options {
                    replay: Some(prefix),
                    ..self.options(run.seed)
                };
                return Some(Plan::of(options));
            }
        }
        let Some(seed) = self.seeds.next() else {
            self.is_complete = true;
            return None;
        };
        self.nr_runs += 1;
        Some(Plan::of(self.options(seed)))
    }
}

impl Branch {
    fn nr_preemptions_after(&self) -> u32 {
        let Choice {
            chosen, current, ..
        } = self.choice;
        self.nr_preemptions + u32::from(current.is_some_and(|current| current != chosen))
    }

    /// Takes the next alternative; false if there is none within the bound.
    fn take_next(&mut self, preemptions_max: u32) -> bool {
        // Whoever could go on went on first: all that is left are preemptions.
        if self.choice.current.is_some() && self.nr_preemptions >= preemptions_max {
            return false;
        }
        let left = self.choice.candidates & !self.tried;
        if left == 0 {
            return false;
        }
        let chosen = left.trailing_zeros();
        self.tried |= 1 << chosen;
        self.choice.chosen = chosen as u16;
        true
    }
}
