//! The work: which model is judged with which faults, on as many threads as there are processors.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use lockdep::sync::Mutex;
use pinless_devices::model::Pattern as Family;
use pinless_devices::zoo::Home;
use pinless_devices::{Bug, BugInfo, Bugs, DeviceMemory, ModelInfo, models, zoo};
use pinless_mm::bus::Checks;
use pinless_mm::mmu_notifier::Inject;
use pinless_sim::conformance::{Invariant, Kit, Pattern, Report, Subject};
use std::sync::Arc;
use std::thread;

/// How many times more schedules a fault is looked for in, at most and from one try to the next.
const EFFORT_MAX: u64 = 16;
const EFFORT_STEP: u64 = 4;

/// What is judged.
pub(crate) struct Plan {
    pub(crate) models: Vec<&'static ModelInfo>,
    pub(crate) wish: Wish,
    pub(crate) schedules: u64,
    pub(crate) seed: u64,
    pub(crate) scene: Option<String>,
    pub(crate) checks: Checks,
}

/// How much of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// All drivers, and the whole zoo.
    Everything,
    /// The drivers, as they should be and as they shipped.
    Drivers,
    /// One fault, in each driver that has it.
    Bug(Bug),
}

/// One judgement.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) model: &'static ModelInfo,
    pub(crate) what: What,
}

/// What a model is judged with.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// No fault: nothing may be found.
    Fixed,
    /// The faults that its kernel has: findings.
    Shipped,
    /// One fault of its own.
    Bug(&'static BugInfo),
    /// One fault of the notifiers.
    Core(&'static BugInfo, Inject),
}

/// A judgement and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub(crate) job: Job,
    pub(crate) report: Report,
    /// Schedules of each scene that it took.
    pub(crate) schedules: u64,
}

/// Judges all that is planned; in the order of the plan.
pub(crate) fn all(plan: &Plan) -> Vec<Judged> {
    let jobs = jobs(plan);
    let next = AtomicUsize::new(0);
    let done = Mutex::new("cli.conform", Vec::with_capacity(jobs.len()));
    let nr_threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..nr_threads.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Relaxed)) {
                    let judged = judge(plan, job);
                    done.lock().push(judged);
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|judged| judged.job.place());
    done
}

fn jobs(plan: &Plan) -> Vec<Job> {
    let mut jobs = Vec::new();
    for &model in &plan.models {
        if let Wish::Everything | Wish::Drivers = plan.wish {
            jobs.push(Job::new(model, What::Fixed));
            if !model.shipped.is_empty() {
                jobs.push(Job::new(model, What::Shipped));
            }
        }
        for info in model.switches.iter().map(|bug| bug.info()) {
            if plan.wish == Wish::Everything || plan.wish == Wish::Bug(info.bug) {
                jobs.push(Job::new(model, What::Bug(info)));
            }
        }
    }
    let template = &models()[0];
    for info in zoo() {
        if let Home::Core(inject) = info.home
            && (plan.wish == Wish::Everything || plan.wish == Wish::Bug(info.bug))
        {
            jobs.push(Job::new(template, What::Core(info, inject)));
        }
    }
    jobs
}

impl Job {
    fn new(model: &'static ModelInfo, what: What) -> Self {
        Self { model, what }
    }

    fn place(&self) -> (u8, u8, String) {
        let (kind, number) = match self.what {
            What::Fixed => (0, 0),
            What::Shipped => (1, 0),
            What::Bug(info) | What::Core(info, _) => (2, info.bug.number()),
        };
        (kind, number, self.model.full_name())
    }

    /// The faults that are switched on in the model.
    fn bugs(&self) -> Bugs {
        match self.what {
            What::Fixed | What::Core(..) => Bugs::NONE,
            What::Shipped => Bugs::of(self.model.shipped),
            What::Bug(info) => info.bug.into(),
        }
    }

    fn inject(&self) -> Inject {
        match self.what {
            What::Core(_, inject) => inject,
            _ => Inject::None,
        }
    }

    /// What has to be found.
    pub(crate) fn wanted(&self) -> Vec<Invariant> {
        let bugs = match self.what {
            What::Fixed => Vec::new(),
            What::Shipped => self.model.shipped.iter().map(|bug| bug.info()).collect(),
            What::Bug(info) | What::Core(info, _) => vec![info],
        };
        let names = bugs.into_iter().flat_map(|info| info.breaks);
        names.filter_map(|name| Invariant::of_name(name)).collect()
    }
}

impl Judged {
    /// The invariant by which the fault was found: one that it is listed for was convicted of.
    pub(crate) fn found(&self) -> Option<Invariant> {
        let mut wanted = self.job.wanted();
        let others = wanted.clone().into_iter();
        wanted.extend(others.flat_map(|one| one.shows_as()));
        let is_convicted = |one: &Invariant| self.report.convicts(&[*one]);
        wanted.into_iter().find(is_convicted)
    }
}

/// Judges. A fault of the kit's to find that did not show is looked for in more schedules: some
/// need two rare moments at once.
fn judge(plan: &Plan, job: &Job) -> Judged {
    let is_to_be_found = match job.what {
        What::Fixed | What::Shipped => false,
        What::Bug(info) | What::Core(info, _) => {
            matches!(info.home, Home::Model | Home::Core(_))
        }
    };
    let schedules_max = match is_to_be_found {
        true => plan.schedules.saturating_mul(EFFORT_MAX),
        false => plan.schedules,
    };
    let mut schedules = plan.schedules;
    loop {
        let judged = Judged {
            job: job.clone(),
            report: play(plan, job, schedules),
            schedules,
        };
        if judged.found().is_some() || schedules >= schedules_max {
            return judged;
        }
        schedules *= EFFORT_STEP;
    }
}

fn play(plan: &Plan, job: &Job, schedules: u64) -> Report {
    let (model, bugs) = (job.model, job.bugs());
    let wanted = match job.what {
        // All that is wrong with it is of interest.
        What::Fixed | What::Shipped => Vec::new(),
        _ => job.wanted(),
    };
    let mut kit = Kit::new(model.full_name())
        .schedules(schedules)
        .seed(plan.seed)
        .inject(job.inject())
        .checks(plan.checks)
        .wanted(&wanted);
    if let What::Shipped = job.what {
        kit = kit.as_found();
    }
    if let Some(pattern) = pattern_of(model.pattern) {
        kit = kit.pattern(pattern);
    }
    if let Some(scene) = &plan.scene {
        kit = kit.scene(scene.clone());
    }
    kit.judge(move |memory: &Arc<dyn DeviceMemory>| {
        let attached = model.attach(memory, "device", bugs);
        Subject::with(Arc::clone(&attached.device), move || attached.detach())
    })
}

/// What the kit holds a family of drivers to; everything, where it has no name for it.
fn pattern_of(family: Family) -> Option<Pattern> {
    Some(match family {
        Family::FenceWait | Family::HeldAcross => Pattern::Fence,
        Family::StopQueues => Pattern::Queue,
        Family::FastZap => Pattern::Fault,
        Family::CommandZap => Pattern::Command,
        Family::UnlinkNow => Pattern::PinCache,
        Family::Sticky => Pattern::Sticky,
        Family::ReverseMap => Pattern::Grant,
        Family::Adapter => return None,
    })
}
