//! Runs one after another, on a thread of their own, until one fails.
//!
//! A run that fails stops where it is, perhaps in the middle of a panic of one of its tasks. No
//! other run follows on its thread, which ends.

use super::Sim;
use super::baton::{Baton, Ended, Job};
use super::fiber::Idle;
use super::report::Run;
use super::state::Plan;
use lockdep::sync::Mutex;
use std::sync::Arc;
use std::{panic, thread};

/// Plans, and what came of them.
pub(super) trait Source: Send {
    /// The next run; `None` if there is none. `last` has passed.
    fn next(&mut self, last: Option<Run>) -> Option<Plan>;
}

/// What each run does.
pub(super) type Body = Arc<dyn Fn(&Sim) + Send + Sync>;

/// How far a thread got.
enum Stop {
    /// There is no run left.
    Done,
    /// This run failed.
    Failed(Run),
    /// This run passed, and the thread is of no more use.
    Spent(Run),
}

/// Makes runs until one fails: that one. The lock of `source` is free between runs.
pub(super) fn first_failure(
    source: &Arc<Mutex<impl Source + 'static>>,
    body: &Body,
) -> Option<Run> {
    let mut last = None;
    loop {
        let (source, body) = (Arc::clone(source), Arc::clone(body));
        match on_thread(move |idle| make_runs(&source, &body, last, idle)) {
            Stop::Done => return None,
            Stop::Failed(run) => return Some(run),
            Stop::Spent(run) => last = Some(run),
        }
    }
}

fn make_runs(
    source: &Mutex<impl Source>,
    body: &Body,
    mut last: Option<Run>,
    idle: &mut Idle,
) -> Stop {
    loop {
        let plan = source.lock().next(last.take());
        let Some(plan) = plan else {
            return Stop::Done;
        };
        let body = Arc::clone(body);
        let Ended {
            run,
            is_thread_spent,
        } = run(plan, move |sim| body(sim), idle);
        match run.has_passed() {
            false => return Stop::Failed(run),
            true if is_thread_spent => return Stop::Spent(run),
            true => last = Some(run),
        }
    }
}

/// Makes one run.
pub(super) fn single(plan: Plan, body: impl FnOnce(&Sim) + Send + 'static) -> Run {
    on_thread(move |idle| run(plan, body, idle)).run
}

fn run(plan: Plan, body: impl FnOnce(&Sim) + Send + 'static, idle: &mut Idle) -> Ended {
    let (seed, knobs) = (plan.options.seed, Arc::from(plan.options.knobs.as_slice()));
    let baton = Baton::new(plan);
    let sim = Sim {
        baton: Arc::clone(&baton),
        seed,
        knobs,
    };
    let body: Job = Box::new(move || body(&sim));
    baton.run(body, idle)
}

/// Calls `drive` on a thread of its own.
fn on_thread<R: Send + 'static>(drive: impl FnOnce(&mut Idle) -> R + Send + 'static) -> R {
    assert!(!lockdep::scheduler::is_scheduled(), "a run inside a run");
    let thread = thread::Builder::new()
        .name("sim".to_owned())
        .spawn(move || drive(&mut Idle::default()))
        .expect("the machine has a thread for a run");
    match thread.join() {
        Ok(result) => result,
        Err(panic) => panic::resume_unwind(panic),
    }
}
