//! The conformance kit: give it a device, and it says what the device's notifier is worth.
//!
//! A device is made for a memory of a few pages, with the production notifiers, and used while
//! pages are taken away under it, again and again, each time under another schedule. Everything
//! that the device reads, writes, translates and pins goes through the kit, and is judged. An
//! invariant that breaks is reported with a schedule that breaks it, as short as can be found.
//!
//! ```text
//! let report = conformance::check(|memory| {
//!     let (device, subscription) = Accelerator::attach(memory);
//!     Subject::new(device, subscription)
//! });
//! ```
//!
//! stands in a test of one's own, which fails with the report if the device does. The whole of it,
//! with such a device, is in `docs/writing-a-driver.md`.
//!
//! [`Kit`] has the options. What the kit cannot see: a driver that blocks on what is not of
//! `lockdep::sync`, weak memory orders, interrupts, and what hardware does ahead of time.

mod books;
mod invariant;
mod memory;
mod report;
mod scene;
mod stage;

pub use invariant::{Invariant, Need, Pattern};
pub use report::{Conviction, Grade, Graded, Report};

use crate::checker::{Locks, Replays};
use crate::scheduler::{End, Explore, Run, Strategy, contained};
use crate::{Knob, Options, Sim};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use pinless_mm::bus::{Checks, DeviceMemory, DmaDevice, DmaError};
use pinless_mm::mmu_notifier::{Inject, Subscription};
use scene::{SCENES, Scene, Size};
use stage::{Figures, Make, Setting, Stage};
use std::sync::Arc;

/// A device under test, with what ends it.
pub struct Subject {
    device: Arc<dyn DmaDevice>,
    detach: Box<dyn FnOnce() + Send>,
}

impl Subject {
    /// A device with one subscription: it is stopped, and then the subscription ends.
    pub fn new<D: DmaDevice + 'static>(device: Arc<D>, subscription: Subscription) -> Self {
        let stopped = Arc::clone(&device);
        Self::with(device, move || {
            stopped.stop();
            subscription.synchronize();
        })
    }

    /// A device that `detach` stops, and whose subscriptions it ends.
    pub fn with(device: Arc<dyn DmaDevice>, detach: impl FnOnce() + Send + 'static) -> Self {
        Self {
            device,
            detach: Box::new(detach),
        }
    }

    fn device(&self) -> &Arc<dyn DmaDevice> {
        &self.device
    }

    fn detach(self) {
        (self.detach)();
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("device", &self.device.name())
            .finish_non_exhaustive()
    }
}

/// Judges a device by every invariant, under [`Kit::SCHEDULES`] schedules a scene.
///
/// # Panics
///
/// With the report, if the device fails.
#[track_caller]
pub fn check(
    make_device: impl Fn(&Arc<dyn DeviceMemory>) -> Subject + Send + Sync + 'static,
) -> Report {
    let report = Kit::new("device").judge(make_device);
    assert!(report.has_passed(), "{report}");
    report
}

/// How a device is judged.
#[derive(Clone, Debug)]
#[must_use = "a kit does nothing until `judge`"]
pub struct Kit {
    name: String,
    pattern: Option<Pattern>,
    nr_schedules: u64,
    seed: u64,
    inject: Inject,
    checks: Checks,
    scene: Option<String>,
    wanted: Vec<Invariant>,
    shortens: bool,
}

/// Breaches of one scene that are looked for, one after the other.
const BREACHES_MAX: usize = 3;

/// Steps of a schedule that is short.
const STEPS_WANTED: usize = 60;

/// Failing runs that are made to make one shorter, and one that is long after that.
const SHORTENED_MAX: u32 = 12;
const SHORTENED_LONG_MAX: u32 = 200;

/// Failing runs of an exploration that finds one: it is made again for its timeline.
const FOUND_BY: u32 = 2;

/// Failing runs that are made in all to make one shorter: what they hold is never freed.
const FAILURES_MAX: u32 = 300;

/// Of those that are found with each value of what a scene turns on so many are made shorter.
const BEST_MAX: usize = 2;

/// How schedules are chosen: what one of the two rarely meets, the other often does.
const STRATEGIES: [Strategy; 2] = [Strategy::Drawn, Strategy::Pct { depth: 3, steps: 0 }];

/// How often it is begun anew to make one shorter that is still long.
const ROUNDS_MAX: u64 = 3;

/// Where a short schedule is looked for among all that take the turn once from a task that could
/// go on: in so many scenes with one value of what a scene turns on, and in so many runs of them.
const SEEDS_OF_ALL: u64 = 10;
const RUNS_OF_ALL: u64 = 1_000;

/// It is looked for there if a failure has no more tasks than this. Not more than 64 can be told
/// apart, and a scene may have more with another value of what it turns on.
const TASKS_OF_ALL: usize = 32;

/// Points after which a run is thought to go on for ever.
const STEPS_MAX: u64 = 6_000;

impl Kit {
    /// Schedules that are tried of each scene, unless told otherwise.
    pub const SCHEDULES: u64 = 300;

    /// Holds the device of this name to every invariant.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            pattern: None,
            nr_schedules: Self::SCHEDULES,
            seed: 0,
            inject: Inject::None,
            checks: Checks::Generation,
            scene: None,
            wanted: Vec::new(),
            shortens: true,
        }
    }

    /// Holds the device to what its kind owes: see [`Pattern::need`].
    pub fn pattern(self, pattern: Pattern) -> Self {
        Self {
            pattern: Some(pattern),
            ..self
        }
    }

    /// Schedules that are tried of each scene.
    pub fn schedules(self, nr_schedules: u64) -> Self {
        Self {
            nr_schedules,
            ..self
        }
    }

    /// Where chance starts.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Breaks the notifiers, not the device.
    pub fn inject(self, inject: Inject) -> Self {
        Self { inject, ..self }
    }

    /// How far the device's accesses are checked. With [`Checks::Poison`] whoever uses a freed
    /// frame is convicted of that, and it is not said which start it has not heard of; with
    /// [`Checks::Off`] the rest is judged.
    pub fn checks(self, checks: Checks) -> Self {
        Self { checks, ..self }
    }

    /// Plays one scene only.
    pub fn scene(self, scene: impl Into<String>) -> Self {
        Self {
            scene: Some(scene.into()),
            ..self
        }
    }

    /// Ends with the first breach of one of these, which scenes are played first for, and to which
    /// the device is held where they are but figures for devices of its kind.
    pub fn wanted(self, wanted: &[Invariant]) -> Self {
        Self {
            wanted: wanted.to_vec(),
            ..self
        }
    }

    /// Leaves schedules as they were found: for who asks what breaks, and not how. What a run that
    /// failed holds is never freed, and neither are the stacks of its tasks.
    pub fn as_found(self) -> Self {
        Self {
            shortens: false,
            ..self
        }
    }

    /// Whether anybody looks at how this failed.
    fn is_shown(&self, nth: usize, run: &Run) -> bool {
        let broken = invariant_of(run).unwrap_or(SCENES[nth].stuck);
        let is_of = |one: &Invariant| *one == broken || one.shows_as().contains(&broken);
        self.shortens && (self.wanted.is_empty() || self.wanted.iter().any(is_of))
    }

    /// The names of the scenes.
    pub fn scenes() -> impl Iterator<Item = &'static str> {
        SCENES.iter().map(|scene| scene.name)
    }

    /// Judges a device.
    ///
    /// # Panics
    ///
    /// As [`Explore::find`] does, and if a seed gives two different runs of a scene, whether they
    /// pass or not: then the device is not decided by its seed alone. If called from inside a run.
    #[track_caller]
    pub fn judge(
        &self,
        make_device: impl Fn(&Arc<dyn DeviceMemory>) -> Subject + Send + Sync + 'static,
    ) -> Report {
        let setting = Setting {
            make: Arc::new(make_device) as Make,
            pattern: self.pattern,
            ignored: Vec::new(),
            wanted: self.wanted.clone(),
            inject: self.inject,
            checks: self.checks,
            figures: Arc::new(Figures::default()),
            locks: Arc::new(Locks::new()),
            must_register: false,
        };
        let setting = Setting {
            must_register: must_register(&setting),
            ..setting
        };
        let mut report = Report::new(&self.name, self.seed, self.nr_schedules, self.pattern);
        for (nth, scene) in self.order() {
            self.play(nth, scene, &setting, &mut report);
            self.replay(nth, &setting);
            if report.convicts(&self.wanted) {
                break;
            }
        }
        report.close(&setting.figures);
        report
    }

    /// The scenes to be played, with their numbers: those that judge what is wanted come first.
    fn order(&self) -> Vec<(usize, &'static Scene)> {
        let is_asked = |scene: &Scene| self.scene.as_ref().is_none_or(|name| name == scene.name);
        let mut order: Vec<_> = SCENES.iter().enumerate().collect();
        order.retain(|(_, scene)| is_asked(scene));
        order.sort_by_key(|(_, scene)| !scene.judges.iter().any(|one| self.wanted.contains(one)));
        order
    }

    #[track_caller]
    fn play(&self, nth: usize, scene: &'static Scene, setting: &Setting, report: &mut Report) {
        let mut setting = setting.clone();
        for _ in 0..BREACHES_MAX {
            let (nr_runs, failure) = self.search(nth, &setting);
            let failure = failure.map(|run| Conviction::of(scene, &run));
            let is_graded = failure.as_ref().is_some_and(|one| self.grades(one));
            if is_graded {
                setting.figures.stuck(scene.stuck);
            }
            let failure = failure.filter(|_| !is_graded);
            report.add(scene, nr_runs, failure.clone());
            match failure {
                Some(conviction) if !report.convicts(&self.wanted) => {
                    setting.ignored.push(conviction.invariant);
                    if conviction.is_stuck {
                        return; // there is no way around it
                    }
                }
                _ => return,
            }
        }
    }

    /// G15: the first seed of a scene, twice.
    #[track_caller]
    fn replay(&self, nth: usize, setting: &Setting) {
        let mut replays = Replays::new();
        for _ in 0..2 {
            let body = body(nth, setting);
            let options = Options {
                steps_max: STEPS_MAX,
                knobs: scene::knobs(nth as u64, Size::Small)
                    .map(|knob| (knob.name, knob.max))
                    .to_vec(),
                ..Options::new(self.seed)
            };
            let run = Sim::run_with(options, body);
            replays.seen(&run).unwrap_or_else(|breach| breach.raise());
        }
    }

    /// Whether nobody got any further, and that is but a figure for devices of this kind.
    fn grades(&self, conviction: &Conviction) -> bool {
        let is_wanted = self.wanted.contains(&conviction.invariant);
        let need = |pattern: Pattern| match is_wanted {
            true => pattern.need_of_wanted(conviction.invariant),
            false => pattern.need(conviction.invariant),
        };
        conviction.is_stuck && self.pattern.map_or(Need::Must, need) != Need::Must
    }

    /// Little first, so that what is found is short.
    #[track_caller]
    fn search(&self, nth: usize, setting: &Setting) -> (u64, Option<Run>) {
        let part = self.part();
        let [drawn, pct] = STRATEGIES;
        let mut nr_runs = 0;
        for (at, (strategy, size)) in (0..).zip([
            (drawn, Size::Small),
            (pct, Size::Small),
            (drawn, Size::Grown),
        ]) {
            let knobs = scene::knobs(nth as u64, size);
            let all = self.seeds(at * part, part, strategy);
            let (nr, found) = explore(all, Shown::AsFound, nth, &knobs, setting);
            nr_runs += nr;
            let Some(found) = found else { continue };
            if !self.is_shown(nth, &found) {
                return (nr_runs, Some(found));
            }
            return (nr_runs, Some(self.shortest(nth, found, setting)));
        }
        (nr_runs, None)
    }

    /// Schedules of a scene that are tried with one strategy.
    fn part(&self) -> u64 {
        self.nr_schedules.div_ceil(3)
    }

    fn seeds(&self, from: u64, nr: u64, strategy: Strategy) -> Explore {
        let from = self.seed + from;
        Explore::new(from..from + nr).strategy(strategy)
    }

    /// The shortest failure like this one that is found: with as little happening as it needs, or
    /// in a small scene from the start.
    #[track_caller]
    fn shortest(&self, nth: usize, found: Run, setting: &Setting) -> Run {
        let mut left = FAILURES_MAX;
        let found = self.with_less(nth, found, setting, &mut left);
        let mut best = shorter(nth, found, SHORTENED_MAX, setting, &mut left);
        if is_short(&best) {
            return best;
        }
        // Nothing else ends a run: what is looked for is this one.
        let aimed = match invariant_of(&best) {
            Some(invariant) => setting.aimed_at(invariant),
            None => setting.clone(),
        };
        for round in 0..ROUNDS_MAX {
            for size in [Size::Tiny, Size::Small] {
                let all = self.of_each_choice(nth, (size, round), &best, &aimed, &mut left);
                for run in all.into_iter().take(BEST_MAX) {
                    let run = shorter(nth, run, SHORTENED_MAX, &aimed, &mut left);
                    best = [best, run].into_iter().min_by_key(nr_shown).expect("two");
                    if is_short(&best) {
                        return best;
                    }
                }
            }
            best = shorter(nth, best, SHORTENED_LONG_MAX, &aimed, &mut left);
            if is_short(&best) {
                break;
            }
        }
        best
    }

    /// Failures like this one, the shortest first: for each value of the option that a scene turns
    /// on the first that each strategy finds. Each round has other seeds.
    #[track_caller]
    fn of_each_choice(
        &self,
        nth: usize,
        (size, round): (Size, u64),
        like: &Run,
        setting: &Setting,
        left: &mut u32,
    ) -> Vec<Run> {
        let mut all = Vec::new();
        for choice in scene::CHOICES {
            let knobs = scene::knobs(nth as u64, size).map(|knob| match knob.name {
                "choice" => Knob::number("choice", choice, choice),
                _ => knob,
            });
            let drawn = STRATEGIES.map(|strategy| {
                let nr = 3 * self.part();
                self.seeds((1 + round) * nr, nr, strategy)
            });
            let few = Strategy::Exhaustive { preemptions_max: 1 };
            let each = self
                .seeds(round * SEEDS_OF_ALL, SEEDS_OF_ALL, few)
                .runs_max(RUNS_OF_ALL);
            let each = (like.task_names.len() <= TASKS_OF_ALL).then_some(each);
            for seeds in each.into_iter().chain(drawn) {
                let found = another(seeds, nth, &knobs, setting, left);
                all.extend(found.filter(|run| invariant_of(run) == invariant_of(like)));
            }
        }
        all.sort_by_key(nr_shown);
        all
    }

    /// The same failure with fewer users, uses and brackets, as far as it still comes.
    #[track_caller]
    fn with_less(&self, nth: usize, mut best: Run, setting: &Setting, left: &mut u32) -> Run {
        for (name, least) in scene::COUNTS {
            loop {
                let mut knobs = knobs_of(&best);
                let count = knobs.iter_mut().find(|knob| knob.name == name);
                let Some(count) = count.filter(|knob| knob.max > least) else {
                    break;
                };
                *count = Knob::number(name, least, count.max - 1);
                let less = STRATEGIES.into_iter().find_map(|strategy| {
                    let seeds = self.seeds(0, self.part(), strategy);
                    let found = another(seeds, nth, &knobs, setting, left);
                    found.filter(|run| invariant_of(run) == invariant_of(&best))
                });
                match less {
                    Some(less) => best = less,
                    None => break,
                }
            }
        }
        best
    }
}

/// Options that have the values of a run, and no others.
fn knobs_of(run: &Run) -> Vec<Knob> {
    let fixed = |&(name, value): &(&'static str, u64)| Knob::number(name, value, value);
    run.knobs.iter().map(fixed).collect()
}

/// What becomes of a run that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shown {
    AsFound,
    /// Shortened by trials of which so many fail.
    Shortened(u32),
}

/// Steps that are shown of a failure.
fn nr_shown(run: &Run) -> usize {
    report::shown(run).len()
}

/// What a failure is made less of: steps that are shown, and then switches.
fn weight(run: &Run) -> u64 {
    ((nr_shown(run) as u64) << 32) + run.nr_switches() as u64
}

/// Whether a failure can be read at a glance.
fn is_short(run: &Run) -> bool {
    nr_shown(run) <= STEPS_WANTED
}

/// A failure, if one is found, and if so many may still fail that it can be.
#[track_caller]
fn another(
    seeds: Explore,
    nth: usize,
    knobs: &[Knob],
    setting: &Setting,
    left: &mut u32,
) -> Option<Run> {
    let after = left.checked_sub(FOUND_BY)?;
    let (_, found) = explore(seeds, Shown::AsFound, nth, knobs, setting);
    *left = if found.is_some() { after } else { *left };
    found
}

/// The same failure in fewer steps, if any are found, and if so many may still fail.
#[track_caller]
fn shorter(nth: usize, found: Run, failures_max: u32, setting: &Setting, left: &mut u32) -> Run {
    let failures_max = failures_max.min(left.saturating_sub(FOUND_BY));
    if failures_max == 0 {
        return found;
    }
    *left -= FOUND_BY + failures_max;
    let again = Explore::new(found.seed..found.seed + 1).strategy(found.strategy);
    let shown = Shown::Shortened(failures_max);
    let (_, shortened) = explore(again, shown, nth, &knobs_of(&found), setting);
    let is_same = |run: &Run| invariant_of(run) == invariant_of(&found);
    let shortened = shortened.filter(is_same);
    shortened
        .into_iter()
        .chain([found])
        .min_by_key(nr_shown)
        .expect("one is there")
}

/// Plays a scene with each of the seeds until it fails.
#[track_caller]
fn explore(
    seeds: Explore,
    shown: Shown,
    nth: usize,
    knobs: &[Knob],
    setting: &Setting,
) -> (u64, Option<Run>) {
    let seeds = match shown {
        Shown::AsFound => seeds.as_found(),
        Shown::Shortened(failures_max) => seeds.failures_max(failures_max).weighed_by(weight),
    };
    let explored = seeds
        .knobs(knobs)
        .steps_max(STEPS_MAX)
        .find(body(nth, setting));
    (explored.nr_runs, explored.failure)
}

/// Whether the device answers that a page has to be registered before it can be used. One that
/// fails here fails in a scene, too, and is shown there.
fn must_register(setting: &Setting) -> bool {
    let (answers, setting) = (Arc::new(AtomicBool::new(false)), setting.clone());
    let answer = Arc::clone(&answers);
    let asked = Sim::run_with(
        Options {
            steps_max: STEPS_MAX,
            ..Options::new(0)
        },
        move |sim| {
            setting.locks.reset();
            let _watched = setting.locks.watch();
            let stage = Stage::set(sim, &setting, 1);
            contained(|| {
                let met = stage.device.read(0, 0, &mut [0]);
                let must = matches!(met, Err(DmaError::Unregistered { .. }));
                answer.store(must, Relaxed);
                stage.detach();
            });
        },
    );
    asked.has_passed() && answers.load(Relaxed)
}

/// What a run of a scene does.
fn body(nth: usize, setting: &Setting) -> impl Fn(&Sim) + Send + Sync + 'static {
    let (scene, setting) = (&SCENES[nth], setting.clone());
    move |sim| {
        // The environment may ask for another scene than this one.
        if sim.knob("scene") == nth as u64 {
            setting.locks.reset();
            let _watched = setting.locks.watch();
            let nr_pages = sim.knob("pages") as u32;
            let stage = Stage::set(sim, &setting, nr_pages);
            contained(|| (scene.play)(&stage));
        }
    }
}

/// What broke, as the end of the run tells it.
fn breach_of(end: &End) -> Option<(Invariant, &str)> {
    let End::Panicked { message, .. } = end else {
        return None;
    };
    let (name, what) = message.split_once(": ")?;
    let what = what.rsplit_once(", at ").map_or(what, |(what, _)| what);
    Some((Invariant::of_name(name)?, what))
}

fn invariant_of(run: &Run) -> Option<Invariant> {
    breach_of(&run.end).map(|(invariant, _)| invariant)
}
