//! Runs one after another, on one thread, until one fails.
//!
//! A run that fails stops where it is, perhaps in the middle of the thread that makes the runs:
//! the thread is lost then, and the failure is told to the one who waits for the course.

use super::Sim;
use super::baton::Baton;
use super::report::Run;
use super::state::Plan;
use super::worker::{self, Cpu, Home, Job};
use lockdep::sync::Mutex;
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};

/// Plans, and what came of them.
pub(super) trait Source: Send {
    /// The next run; `None` if there is none. `last` has passed.
    fn next(&mut self, last: Option<Run>) -> Option<Plan>;
}

/// What each run does.
pub(super) type Body = Arc<dyn Fn(&Sim) + Send + Sync>;

pub(super) struct Course {
    caller: Thread,
    /// Where its threads run.
    pub(super) cpu: Cpu,
    /// The run that failed, or `None` if there was none.
    result: OnceLock<Option<Run>>,
}

/// Makes runs until one fails: that one. The lock of `source` is free between runs.
pub(super) fn first_failure(
    source: &Arc<Mutex<impl Source + 'static>>,
    body: &Body,
) -> Option<Run> {
    let (source, body) = (Arc::clone(source), Arc::clone(body));
    on_driver(move |course| {
        let mut last = None;
        loop {
            let plan = source.lock().next(last.take());
            let body = Arc::clone(&body);
            let run = run(course, plan?, move |sim| body(sim));
            if !run.has_passed() {
                return Some(run);
            }
            last = Some(run);
        }
    })
}

/// Makes one run.
pub(super) fn single(plan: Plan, body: impl FnOnce(&Sim) + Send + 'static) -> Run {
    let result = on_driver(move |course| Some(run(course, plan, body)));
    result.expect("a run was made")
}

fn run(course: &Arc<Course>, plan: Plan, body: impl FnOnce(&Sim) + Send + 'static) -> Run {
    let (seed, knobs) = (plan.options.seed, Arc::from(plan.options.knobs.as_slice()));
    let baton = Baton::new(plan, Arc::clone(course));
    let sim = Sim {
        baton: Arc::clone(&baton),
        seed,
        knobs,
    };
    let body: Job = Box::new(move || body(&sim));
    baton.run(body)
}

/// Calls `drive` on another thread, and waits for what it returns or for a run that failed.
fn on_driver(drive: impl FnOnce(&Arc<Course>) -> Option<Run> + Send + 'static) -> Option<Run> {
    assert!(!lockdep::scheduler::is_scheduled(), "a run inside a run");
    let course = Arc::new(Course {
        caller: thread::current(),
        cpu: worker::next_cpu(),
        result: OnceLock::new(),
    });
    let driven = Arc::clone(&course);
    let work = move |home: &Home| {
        let result = drive(&driven);
        home.enter();
        driven.report(result);
    };
    worker::start(course.cpu, Box::new(work));
    loop {
        match course.result.get() {
            Some(result) => return result.clone(),
            None => thread::park(),
        }
    }
}

impl Course {
    pub(super) fn report(&self, result: Option<Run>) {
        // A course that has failed is over: nobody is left who could report once more.
        let _first = self.result.set(result);
        self.caller.unpark();
    }
}
